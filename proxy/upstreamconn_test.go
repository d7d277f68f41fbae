package proxy

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

func TestLargeBodiesAreSentWhole(t *testing.T) {
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, s.target())
	data := strings.Repeat("0123456789abcdef", 10_000)
	fixed := fmt.Sprintf("POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n", len(data))
	const chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
	chunks := func(size int) string {
		var b strings.Builder
		for rest := data; rest != ""; {
			n := min(size, len(rest))
			fmt.Fprintf(&b, "%x\r\n%s\r\n", n, rest[:n])
			rest = rest[n:]
		}
		return b.String() + "0\r\n\r\n"
	}
	tests := []struct {
		name string
		out  outgoing
		want string
	}{
		{"fixed", outgoing{head: []byte(fixed), body: strings.NewReader(data), bodyLen: int64(len(data))}, fixed + data},
		{"fixed, end with the data", outgoing{head: []byte(fixed), body: iotest.DataErrReader(strings.NewReader(data)), bodyLen: int64(len(data))}, fixed + data},
		{"fixed, more than said", outgoing{head: []byte(fixed), body: strings.NewReader(data + "more"), bodyLen: int64(len(data))}, fixed + data},
		{"chunked", outgoing{head: []byte(chunked), body: strings.NewReader(data), bodyLen: -1}, chunked + chunks(pieceBytes)},
		{"chunked, end with the data", outgoing{head: []byte(chunked), body: iotest.DataErrReader(strings.NewReader(data)), bodyLen: -1}, chunked + chunks(1024)},
		{"chunked, byte by byte", outgoing{head: []byte(chunked), body: iotest.OneByteReader(strings.NewReader(data[:100])), bodyLen: -1}, chunked + strings.Repeat("1\r\n?\r\n", 100) + "0\r\n\r\n"},
		{"chunked, empty", outgoing{head: []byte(chunked), body: strings.NewReader(""), bodyLen: -1}, chunked + "0\r\n\r\n"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if status, body, err := roundTrip(u, &tt.out); status != 200 || body != "ok" || err != nil {
				t.Fatalf("got %d %q, %v", status, body, err)
			}
			got := s.recorded()[i]
			if strings.Contains(tt.name, "byte by byte") {
				for _, c := range data[:100] {
					tt.want = strings.Replace(tt.want, "?", string(c), 1)
				}
			}
			if got != tt.want {
				t.Errorf("got %d bytes, want %d others", len(got), len(tt.want))
			}
		})
	}
	if s.connections() != 1 {
		t.Errorf("got %d connections, want 1", s.connections())
	}
}

func TestFailingClientBodyIsNeverEndedProperly(t *testing.T) {
	fault := errors.New("client is gone")
	broken := func() io.Reader { return io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(fault)) }
	tests := []struct {
		name string
		out  outgoing
		want error
	}{
		{"chunked", outgoing{head: []byte("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), body: broken(), bodyLen: -1}, fault},
		{"fixed", outgoing{head: []byte("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"), body: broken(), bodyLen: 9}, fault},
		{"fixed, too short", outgoing{head: []byte("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"), body: strings.NewReader("abc"), bodyLen: 9}, io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := make(chan bool, 1)
			s := startRaw(t, func(p *peer) {
				_, whole := p.take()
				got <- whole
			})
			u := upstreamTo(t, s.target())
			_, _, err := roundTrip(u, &tt.out)
			wantFault(t, err, faultClient)
			if !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want it to wrap %v", err, tt.want)
			}
			if <-got {
				t.Errorf("the upstream took %q for a whole request", s.recorded())
			}
			if u.openConns() != 0 {
				t.Errorf("%d connections are open, want 0", u.openConns())
			}
		})
	}
}

func TestEarlyAnswerEndsTheUpload(t *testing.T) {
	const early = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge"
	s := startRaw(t, func(p *peer) {
		p.send(early) // and close with the body unread: a reset
		_, _ = p.r.ReadByte()
	})
	u := upstreamTo(t, s.target())
	for _, length := range []int64{-1, 1 << 30} {
		endless := io.LimitReader(zeros{}, 1<<30)
		status, body, err := roundTrip(u, &outgoing{head: []byte("POST / HTTP/1.1\r\n\r\n"), body: endless, bodyLen: length})
		if status != 413 || body != "large" || err != nil {
			t.Errorf("got %d %q, %v", status, body, err)
		}
		if u.openConns() != 0 {
			t.Errorf("%d connections are open, want 0", u.openConns())
		}
	}
}

// The upstream neither reads on nor closes: only its answer can end the upload.
func TestErrorAnswerEndsTheUploadWithoutAWriteError(t *testing.T) {
	s := startStalled(t, func(p *peer) {
		_, _ = p.r.ReadByte()
		p.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
	})
	u := upstreamTo(t, s.target())
	body, client := io.Pipe()
	go func() {
		for { // the pace of a client: the answer comes before the socket's buffers are full
			time.Sleep(time.Millisecond)
			if _, err := client.Write([]byte("piece")); err != nil {
				return
			}
		}
	}()
	defer body.Close()
	var in incoming
	defer in.finish()
	out := &outgoing{head: []byte("POST / HTTP/1.1\r\n\r\n"), body: body, bodyLen: -1, stopBody: func() { body.Close() }}
	err := u.do(out, &in)
	if err != nil || in.status != 413 || in.early {
		t.Errorf("got %d, early %v, %v", in.status, in.early, err)
	}
	start := time.Now()
	if !in.unsent() || !in.early || in.reuse {
		t.Errorf("got early %v, reuse %v, want an upload that was broken off", in.early, in.reuse)
	}
	if took := time.Since(start); took > uploadGrace+time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestUpstreamMayAnswerWhileItReadsOn(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
	s := startRaw(t, func(p *peer) {
		p.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
		p.take()
		p.send("ok")
		p.ended()
	})
	u := upstreamTo(t, s.target())
	data := strings.Repeat("x", 3*pieceBytes)
	status, body, err := roundTrip(u, &outgoing{head: []byte(head), body: iotest.HalfReader(strings.NewReader(data)), bodyLen: -1})
	if status != 200 || body != "ok" || err != nil {
		t.Errorf("got %d %q, %v", status, body, err)
	}
	if got := strings.Count(s.recorded()[0], "x"); got != len(data) || u.idleConns() != 1 {
		t.Errorf("the upstream got %d bytes, want %d; %d idle connections, want 1", got, len(data), u.idleConns())
	}
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestUploadToAnUpstreamThatClosesIsAFault(t *testing.T) {
	s := startRaw(t, func(p *peer) { _, _ = p.r.ReadByte() })
	u := upstreamTo(t, s.target())
	_, _, err := roundTrip(u, &outgoing{head: []byte("POST / HTTP/1.1\r\n\r\n"), body: zeros{}, bodyLen: 1 << 40})
	wantFault(t, err, faultClosed)
}

// startStalled is a server that does first and then nothing until the test ends.
func startStalled(t *testing.T, first func(p *peer)) *rawServer {
	over := make(chan bool)
	s := startRaw(t, func(p *peer) {
		first(p)
		<-over
	})
	t.Cleanup(func() { close(over) })
	return s
}

func TestUploadToAnUpstreamThatStopsReadingTimesOut(t *testing.T) {
	s := startStalled(t, func(p *peer) { _, _ = p.r.ReadByte() })
	u := upstreamTo(t, s.target())
	u.idleTimeout = 200 * time.Millisecond
	start := time.Now()
	_, _, err := roundTrip(u, &outgoing{head: []byte("POST / HTTP/1.1\r\n\r\n"), body: zeros{}, bodyLen: 1 << 40})
	wantFault(t, err, faultTimeout)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// Every fault shows within the time-out that is for it, after one attempt.
func TestFaultsOfTheUpstream(t *testing.T) {
	const timeout = 200 * time.Millisecond
	tests := []struct {
		name    string
		script  func(p *peer)
		want    fault
		atLeast time.Duration
	}{
		{"never answers", func(p *peer) { p.take() }, faultTimeout, timeout},
		{"one byte of the head in 20 ms", func(p *peer) {
			p.take()
			for _, b := range answerOK {
				time.Sleep(20 * time.Millisecond)
				p.send(string(b))
			}
		}, faultTimeout, timeout},
		{"stalls amid the head", func(p *peer) { p.take(); p.send("HTTP/1.1 200 OK\r\nA:") }, faultTimeout, timeout},
		{"stalls amid the body", func(p *peer) { p.take(); p.send(answerOK[:len(answerOK)-1]) }, faultTimeout, timeout},
		{"stalls amid a chunk", func(p *peer) {
			p.take()
			p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nab")
		}, faultTimeout, timeout},
		{"sends interim responses only", func(p *peer) {
			p.take()
			for range 10 {
				p.send("HTTP/1.1 102 Processing\r\n\r\n")
				time.Sleep(30 * time.Millisecond)
			}
		}, faultTimeout, timeout},
		{"closes at once", func(p *peer) { p.Close() }, faultClosed, 0},
		{"closes without an answer", func(p *peer) { p.take(); p.Close() }, faultClosed, 0},
		{"closes after one byte", func(p *peer) { p.take(); p.send("H"); p.Close() }, faultClosed, 0},
		{"closes amid the body", func(p *peer) { p.take(); p.send(answerOK[:len(answerOK)-1]); p.Close() }, faultClosed, 0},
		{"speaks TLS", func(p *peer) { p.take(); p.send("\x15\x03\x01\x00\x02\x02\x46") }, faultProtocol, 0},
		{"speaks HTTP/2", func(p *peer) { p.take(); p.send("HTTP/2 200\r\n\r\n") }, faultProtocol, 0},
		{"switches protocols", func(p *peer) { p.take(); p.send("HTTP/1.1 101 Switching Protocols\r\n\r\n") }, faultProtocol, 0},
		{"sends a bad chunk", func(p *peer) { p.take(); p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx") }, faultProtocol, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := startStalled(t, tt.script)
			u := upstreamTo(t, s.target())
			u.responseTimeout, u.idleTimeout = timeout, timeout
			start := time.Now()
			_, _, err := roundTrip(u, &outgoing{head: []byte(getHead)})
			wantFault(t, err, tt.want)
			if took := time.Since(start); took < tt.atLeast || took > tt.atLeast+timeout {
				t.Errorf("it took %v, want %v", took, tt.atLeast)
			}
			if s.connections() != 1 || len(s.recorded()) > 1 || u.openConns() != 0 {
				t.Errorf("got %d connections, %d requests, %d still open; want one attempt and none open", s.connections(), len(s.recorded()), u.openConns())
			}
		})
	}
}

func TestConnectionRefused(t *testing.T) {
	s := startRaw(t, always(answerOK))
	s.stop()
	u := upstreamTo(t, s.target())
	_, _, err := roundTrip(u, &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultConnect)
	if !errors.Is(err, syscall.ECONNREFUSED) || u.openConns() != 0 {
		t.Errorf("got %v, %d connections open", err, u.openConns())
	}
}

func TestConnectTimesOut(t *testing.T) {
	u, err := newUpstream(upstreamOptions{urls: []string{"http://" + blackHole(t)}, connectTimeout: 200 * time.Millisecond, maxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, _, err = roundTrip(u, &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultTimeout)
	if took := time.Since(start); took < 200*time.Millisecond || took > 400*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}

// The deadline that is set on a connection is left from an earlier request; it
// must not cut a later one short.
func TestOldDeadlinesDoNotCutLaterRequestsShort(t *testing.T) {
	const timeout = 200 * time.Millisecond
	s := startRaw(t, func(p *peer) {
		for n := 0; ; n++ {
			if _, ok := p.take(); !ok {
				return
			}
			time.Sleep(time.Duration(n%2) * timeout * 3 / 4)
			p.send(answerOK)
		}
	})
	u := upstreamTo(t, s.target())
	u.responseTimeout, u.idleTimeout = timeout, timeout
	for range 5 {
		mustAnswer(t, u, "ok")
	}
	time.Sleep(timeout + 10*time.Millisecond) // the deadlines pass while the connection is idle
	mustAnswer(t, u, "ok")
	if s.connections() != 1 {
		t.Errorf("got %d connections, want 1", s.connections())
	}
}

func TestSlowBodyMayTakeItsTime(t *testing.T) {
	const timeout = 100 * time.Millisecond
	s := startRaw(t, func(p *peer) {
		p.take()
		p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range 10 {
			time.Sleep(timeout / 2)
			p.send("1\r\nx\r\n")
		}
		p.send("0\r\n\r\n")
		p.ended()
	})
	u := upstreamTo(t, s.target())
	u.responseTimeout, u.idleTimeout = timeout, timeout
	mustAnswer(t, u, "xxxxxxxxxx")
	if u.idleConns() != 1 {
		t.Errorf("got %d idle connections, want 1", u.idleConns())
	}
}

func TestLargeBodiesAreReadWhole(t *testing.T) {
	data := strings.Repeat("0123456789abcdef", 100_000)
	for _, raw := range []string{
		fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(data), data),
		fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", 1000, data[:1000], len(data)-1000, data[1000:]),
		"HTTP/1.1 200 OK\r\n\r\n" + data,
	} {
		s := startRaw(t, func(p *peer) { p.take(); p.send(raw) })
		u := upstreamTo(t, s.target())
		status, got, err := roundTrip(u, &outgoing{head: []byte(getHead)})
		if status != 200 || got != data || err != nil {
			t.Errorf("%.60q: got %d, %d bytes, %v", raw, status, len(got), err)
		}
	}
}

func TestFieldsStayValidWhileTheBodyIsRead(t *testing.T) {
	long := strings.Repeat("v", 20_000)
	raw := "HTTP/1.1 200 OK\r\nFirst: " + long + "\r\nContent-Length: 50000\r\n\r\n"
	s := startRaw(t, func(p *peer) { p.take(); p.send(raw); p.send(strings.Repeat("b", 50_000)); p.ended() })
	u := upstreamTo(t, s.target())
	var in incoming
	if err := u.do(&outgoing{head: []byte(getHead)}, &in); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, &in); n+int64(len(in.conn.buf)) < 50_000 || err != nil {
		t.Fatalf("got %d bytes, %v", n, err)
	}
	if f := in.fields[0]; string(f.name) != "First" || string(f.value) != long || string(in.reason) != "OK" {
		t.Errorf("the fields changed: %.40q", in.fields)
	}
	in.finish()
	if len(in.fields) != 0 || u.idleConns() != 1 {
		t.Errorf("after finish: got %d fields, %d idle connections", len(in.fields), u.idleConns())
	}
	if kept := len(u.targets[0].idle[0].buf); kept > keptReadBuffer {
		t.Errorf("the pool keeps a buffer of %d bytes", kept)
	}
}
