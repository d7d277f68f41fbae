package proxy

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

const chunkedPost = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"

// clientPipe is a client's body that the test writes to. stops counts the
// calls of stopBody.
type clientPipe struct {
	*io.PipeWriter
	body  *io.PipeReader
	stops atomic.Int32
}

func newClientPipe() *clientPipe {
	r, w := io.Pipe()
	return &clientPipe{PipeWriter: w, body: r}
}

func (c *clientPipe) out() *outgoing {
	return &outgoing{head: []byte(chunkedPost), body: c.body, bodyLen: -1, stopBody: c.stop}
}

func (c *clientPipe) stop() {
	c.stops.Add(1)
	c.body.Close()
}

// write waits until the upload has read s.
func (c *clientPipe) write(t *testing.T, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Errorf("the upload takes no more: %v", err)
	}
}

// takeHead reads a request up to its body.
func (p *peer) takeHead() {
	for line := ""; line != "\r\n"; {
		var err error
		if line, err = p.r.ReadString('\n'); err != nil {
			return
		}
	}
}

// wantEnded checks that no goroutine of the upload is left.
func wantEnded(t *testing.T, in *incoming) {
	t.Helper()
	if in.upload == nil || !in.upload.endsWithin(0) {
		t.Error("the upload outlives its exchange")
	}
}

func mustDo(t *testing.T, u *upstream, out *outgoing, in *incoming, status int) {
	t.Helper()
	if err := u.do(out, in); err != nil || in.status != status {
		t.Fatalf("got %d, %v; want %d", in.status, err, status)
	}
}

// Neither side reads all before it sends: with one direction at a time both
// would wait for ever once the sockets' buffers are full.
func TestUpstreamThatAnswersAsItReadsStallsNobody(t *testing.T) {
	const length = 48 << 20
	s := startRaw(t, func(p *peer) {
		for range 2 {
			p.takeHead()
			p.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", length))
			_, _ = io.CopyN(p, p.r, length)
		}
		p.ended()
	})
	u := upstreamTo(t, s.target())
	for range 2 {
		var in incoming
		head := fmt.Sprintf("POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n", length)
		mustDo(t, u, &outgoing{head: []byte(head), body: zeros{}, bodyLen: length}, &in, 200)
		start, _ := in.buffered()
		n, err := io.Copy(io.Discard, &in)
		if got := n + int64(len(start)); got != length || err != nil {
			t.Fatalf("got %d bytes, %v; want %d", got, err, length)
		}
		if in.unsent() {
			t.Errorf("the body was not sent whole: %v", in.upload.err)
		}
		in.finish()
		wantEnded(t, &in)
	}
	if s.connections() != 1 || u.idleConns() != 1 {
		t.Errorf("got %d connections, %d idle; want one, kept", s.connections(), u.idleConns())
	}
}

func TestHeadIsPassedOnWhileTheBodyGoesOn(t *testing.T) {
	for _, status := range []int{200, 404, 503} {
		s := startRaw(t, func(p *peer) {
			p.takeHead()
			_, _ = io.CopyN(io.Discard, p.r, int64(len("3\r\none\r\n")))
			p.send(fmt.Sprintf("HTTP/1.1 %d x\r\nTransfer-Encoding: chunked\r\n\r\n", status))
			var rest strings.Builder
			if p.copyChunks(&rest) {
				p.send("3\r\nend\r\n0\r\n\r\n")
			}
			p.ended()
		})
		u := upstreamTo(t, s.target())
		client := newClientPipe()
		go client.write(t, "one")
		var in incoming
		mustDo(t, u, client.out(), &in, status)
		if in.upload.endsWithin(0) {
			t.Fatal("the upload has ended before the client's body")
		}
		client.write(t, "two")
		client.Close()
		if body, err := io.ReadAll(&in); string(body) != "end" || err != nil {
			t.Errorf("got %q, %v", body, err)
		}
		if in.unsent() || in.early {
			t.Errorf("the body was not sent whole: %v", in.upload.err)
		}
		in.finish()
		if u.idleConns() != 1 || client.stops.Load() != 0 {
			t.Errorf("got %d idle connections, %d stops; want the connection kept", u.idleConns(), client.stops.Load())
		}
	}
}

// earlyServer answers before it reads the body, and then reads it.
func earlyServer(t *testing.T) *rawServer {
	return startRaw(t, func(p *peer) {
		for {
			p.takeHead()
			p.send(answerOK)
			var body strings.Builder
			if !p.copyChunks(&body) {
				return
			}
		}
	})
}

func TestUploadThatEndsSoonAfterTheAnswerKeepsTheClientsConnectionOnly(t *testing.T) {
	u := upstreamTo(t, earlyServer(t).target())
	client := newClientPipe()
	var in incoming
	mustDo(t, u, client.out(), &in, 200)
	if body, whole := in.buffered(); string(body) != "ok" || !whole {
		t.Fatalf("got %q, whole %v", body, whole)
	}
	go func() {
		time.Sleep(uploadGrace / 10) // the case itself: the client is a little late
		client.write(t, "last")
		client.Close()
	}()
	if in.unsent() {
		t.Errorf("the body was not sent whole: %v", in.upload.err)
	}
	in.finish()
	if u.openConns() != 0 { // the upstream might take the rest for a request
		t.Errorf("got %d connections, want none", u.openConns())
	}
}

func TestUploadThatGoesOnAfterTheAnswerIsStopped(t *testing.T) {
	for _, asked := range []bool{true, false} {
		u := upstreamTo(t, earlyServer(t).target())
		client := newClientPipe()
		var in incoming
		mustDo(t, u, client.out(), &in, 200)
		in.buffered()
		start := time.Now()
		if asked && !in.unsent() {
			t.Error("unsent said that the body was sent whole")
		}
		in.finish()
		if took := time.Since(start); took < uploadGrace || took > uploadGrace+time.Second {
			t.Errorf("it took %v, want %v", took, uploadGrace)
		}
		wantEnded(t, &in)
		if !in.early || !in.unsent() || client.stops.Load() != 1 || u.openConns() != 0 {
			t.Errorf("got early %v, %d stops, %d connections; want true, 1, 0", in.early, client.stops.Load(), u.openConns())
		}
	}
}

// Who finishes amid the answer wants no grace.
func TestFinishAmidTheAnswerStopsTheUploadAtOnce(t *testing.T) {
	const partial = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"
	blockedRead, blockedWrite := newClientPipe().out(), &outgoing{head: []byte(chunkedPost), body: zeros{}, bodyLen: -1}
	for name, out := range map[string]*outgoing{"in a read": blockedRead, "in a write": blockedWrite} {
		s := startStalled(t, func(p *peer) { p.takeHead(); p.send(partial) })
		u := upstreamTo(t, s.target())
		var in incoming
		mustDo(t, u, out, &in, 200)
		start := time.Now()
		in.finish()
		if took := time.Since(start); took > uploadGrace/2 {
			t.Errorf("%s: it took %v", name, took)
		}
		wantEnded(t, &in)
		if !in.early || u.openConns() != 0 {
			t.Errorf("%s: got early %v, %d connections", name, in.early, u.openConns())
		}
	}
}

func TestClientFaultAmidTheAnswerCutsItOff(t *testing.T) {
	fault := errors.New("client is gone")
	for _, framing := range []string{"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "Content-Length: 9\r\n\r\nabc", "\r\nabc"} {
		got := make(chan string, 1)
		s := startRaw(t, func(p *peer) {
			p.takeHead()
			p.send("HTTP/1.1 200 OK\r\n" + framing)
			body, _ := io.ReadAll(p.r)
			got <- string(body)
		})
		u := upstreamTo(t, s.target())
		client := newClientPipe()
		var in incoming
		mustDo(t, u, client.out(), &in, 200)
		client.write(t, "piece")
		client.CloseWithError(fault)
		_, err := io.ReadAll(&in)
		wantFault(t, err, faultClient)
		if !errors.Is(err, fault) || !in.unsent() {
			t.Errorf("%q: got %v, unsent %v; want %v, true", framing, err, in.unsent(), fault)
		}
		in.finish()
		if body := <-got; body != "5\r\npiece\r\n" || u.openConns() != 0 {
			t.Errorf("the upstream got %q, %d connections are open; want the piece without a last chunk, none", body, u.openConns())
		}
	}
}

func TestClientFaultWhileWaitingForTheHeadIsSeenAtOnce(t *testing.T) {
	s := startStalled(t, func(p *peer) { p.takeHead() })
	u := upstreamTo(t, s.target())
	client := newClientPipe()
	go func() {
		client.write(t, "piece")
		client.CloseWithError(io.ErrUnexpectedEOF)
	}()
	var in incoming
	start := time.Now()
	err := u.do(client.out(), &in)
	wantFault(t, err, faultClient)
	if took := time.Since(start); took > time.Second || !in.unsent() || u.openConns() != 0 {
		t.Errorf("it took %v, unsent %v, %d connections", took, in.unsent(), u.openConns())
	}
	wantEnded(t, &in)
}

type panickingBody struct{}

func (panickingBody) Read([]byte) (int, error) { panic("a bug") }

func TestPanicInABodyCostsOneRequest(t *testing.T) {
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, s.target())
	_, _, err := roundTrip(u, &outgoing{head: []byte(chunkedPost), body: panickingBody{}, bodyLen: -1})
	wantFault(t, err, faultClient)
	if err == nil || !strings.Contains(err.Error(), "a bug") {
		t.Errorf("got %v, want the panic's text", err)
	}
	mustAnswer(t, u, "ok")
}

// No time-out of the upstream counts while the client takes its time.
func TestResponseTimeoutCountsFromTheEndOfTheUpload(t *testing.T) {
	const timeout = 150 * time.Millisecond
	for _, answers := range []bool{true, false} {
		s := startStalled(t, func(p *peer) {
			if _, ok := p.take(); ok && answers {
				p.send(answerOK)
			}
		})
		u := upstreamTo(t, s.target())
		u.responseTimeout, u.idleTimeout = timeout, timeout
		client := newClientPipe()
		ended := make(chan time.Time, 1)
		go func() {
			for range 5 {
				time.Sleep(timeout / 2) // the case itself: a slow client
				client.write(t, "piece")
			}
			ended <- time.Now()
			client.Close()
		}()
		_, body, err := roundTrip(u, client.out())
		took := time.Since(<-ended)
		if answers {
			if body != "ok" || err != nil {
				t.Errorf("got %q, %v", body, err)
			}
			continue
		}
		wantFault(t, err, faultTimeout)
		if took < timeout || took > 2*timeout {
			t.Errorf("it took %v from the end of the body, want %v", took, timeout)
		}
	}
}

// An upstream that has sent its head may need the whole request for the rest.
func TestIdleTimeoutOfTheAnswerCountsFromTheEndOfTheUpload(t *testing.T) {
	const timeout = 150 * time.Millisecond
	for _, answers := range []bool{true, false} {
		s := startStalled(t, func(p *peer) {
			p.takeHead()
			p.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
			var body strings.Builder
			if p.copyChunks(&body) && answers {
				time.Sleep(timeout / 2)
				p.send("ok")
			}
		})
		u := upstreamTo(t, s.target())
		u.idleTimeout = timeout
		client := newClientPipe()
		go func() {
			for range 6 {
				time.Sleep(timeout * 3 / 4) // the case itself: a slow client
				client.write(t, "piece")
			}
			client.Close()
		}()
		start := time.Now()
		_, body, err := roundTrip(u, client.out())
		if answers {
			if body != "ok" || err != nil {
				t.Errorf("got %q, %v", body, err)
			}
			continue
		}
		wantFault(t, err, faultTimeout)
		if took := time.Since(start); took < 5*timeout || took > 9*timeout {
			t.Errorf("it took %v", took)
		}
	}
}

// The upstream takes no more of the body, but goes on with its answer.
func TestAnswerGoesOnWhenTheUploadStalls(t *testing.T) {
	const timeout = 100 * time.Millisecond
	s := startStalled(t, func(p *peer) {
		p.takeHead()
		p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range 5 {
			time.Sleep(timeout / 2)
			p.send("1\r\nx\r\n")
		}
		p.send("0\r\n\r\n")
	})
	u := upstreamTo(t, s.target())
	u.idleTimeout = timeout
	var in incoming
	mustDo(t, u, &outgoing{head: []byte(chunkedPost), body: zeros{}, bodyLen: -1}, &in, 200)
	if body, err := io.ReadAll(&in); string(body) != "xxxxx" || err != nil {
		t.Errorf("got %q, %v", body, err)
	}
	if !in.unsent() || faultOf(in.upload.err) != faultTimeout {
		t.Errorf("got upload error %v, want a time-out", in.upload.err)
	}
	in.finish()
	if u.openConns() != 0 {
		t.Errorf("%d connections are open, want 0", u.openConns())
	}
}

func TestUpstreamThatClosesAmidTheUploadEndsIt(t *testing.T) {
	s := startRaw(t, func(p *peer) { p.takeHead() })
	u := upstreamTo(t, s.target())
	client := newClientPipe() // writes nothing: only the answer's side can notice
	var in incoming
	start := time.Now()
	wantFault(t, u.do(client.out(), &in), faultClosed)
	if took := time.Since(start); took > time.Second || client.stops.Load() != 1 || !in.unsent() {
		t.Errorf("it took %v, %d stops, unsent %v", took, client.stops.Load(), in.unsent())
	}
	wantEnded(t, &in)
}

// An upload leaves deadlines behind on its connection.
func TestUploadLeavesACleanConnection(t *testing.T) {
	const delay = 30 * time.Millisecond
	s := startRaw(t, func(p *peer) {
		for {
			if _, ok := p.take(); !ok {
				return
			}
			time.Sleep(delay)
			p.send(answerOK)
		}
	})
	u := upstreamTo(t, s.target())
	for range 3 {
		out := &outgoing{head: []byte(chunkedPost), body: iotest.HalfReader(strings.NewReader("data")), bodyLen: -1}
		if status, body, err := roundTrip(u, out); status != 200 || body != "ok" || err != nil {
			t.Fatalf("got %d %q, %v", status, body, err)
		}
		mustAnswer(t, u, "ok")
	}
	if s.connections() != 1 {
		t.Errorf("got %d connections, want 1", s.connections())
	}
}

func TestRequestWithoutALargeBodyStartsNoUpload(t *testing.T) {
	u := upstreamTo(t, startRaw(t, always(answerOK)).target())
	var in incoming
	defer in.finish()
	mustDo(t, u, &outgoing{head: []byte("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nsmall")}, &in, 200)
	if in.upload != nil || in.unsent() {
		t.Errorf("got upload %v, unsent %v", in.upload, in.unsent())
	}
}

func TestEarlyAnswerReachesAClientThatStillSends(t *testing.T) {
	rg, _ := rawRig(t, 10, func(p *peer) {
		p.takeHead()
		p.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge")
		p.ended()
	}, nil)
	c := rg.dial(t)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome")
	if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 413 ") || !strings.HasSuffix(got, "\r\n\r\nlarge") {
		t.Errorf("got %q, want the upstream's 413", got)
	}
	start := time.Now()
	if rest, err := io.ReadAll(c.r); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v; want the end of the connection", rest, err)
	}
	if took := time.Since(start); took > uploadGrace+lingerTimeout/2 {
		t.Errorf("the connection ended after %v", took)
	}
}

func TestClientIsAnsweredWhileItSends(t *testing.T) {
	const length = 8 << 20
	rg, up := rawRig(t, 10, func(p *peer) {
		for {
			p.takeHead()
			p.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", length))
			if _, err := io.CopyN(p, p.r, length); err != nil {
				return
			}
		}
	}, nil)
	c := rg.dial(t)
	for range 2 {
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n0", length))
		for line := ""; line != "\r\n"; { // the head comes before the rest of the body went
			var err error
			if line, err = c.r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		go func() { _, _ = io.CopyN(c, zeros{}, length-1) }()
		if n, err := io.CopyN(io.Discard, c.r, length); err != nil {
			t.Fatalf("got %d bytes, %v", n, err)
		}
	}
	if up.connections() != 1 {
		t.Errorf("got %d connections to the upstream, want 1", up.connections())
	}
}
