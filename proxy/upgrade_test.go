package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	upgradeHead = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"
	switching   = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"
)

func TestInterimResponsesArePassedOn(t *testing.T) {
	const raw = "HTTP/1.1 100 Continue\r\n\r\n" +
		"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nX:  y \r\n\r\n" +
		"HTTP/1.1 100 \r\n\r\n" +
		"HTTP/1.1 102 \r\n\r\n" +
		"HTTP/1.1 199 Odd\r\nLink: </b.css>\r\n\r\n" + answerOK
	s := startRaw(t, always(raw))
	u := upstreamTo(t, s.target())
	var got []string
	note := func(status int, reason []byte, fields []field) {
		got = append(got, fmt.Sprintf("%d %s", status, reason))
		for _, f := range fields {
			got = append(got, fmt.Sprintf("%s=%s", f.name, f.value))
		}
	}
	want := []string{"103 Early Hints", "Link=</a.css>", "X=y", "102 ", "199 Odd", "Link=</b.css>"}
	for range 2 {
		got = nil
		if status, body, err := roundTrip(u, &outgoing{head: []byte(getHead), interim: note}); status != 200 || body != "ok" || err != nil {
			t.Fatalf("got %d %q, %v", status, body, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("interim responses (-want +got):\n%s", diff)
		}
	}
	mustAnswer(t, u, "ok") // without interim they are dropped
	if s.connections() != 1 {
		t.Errorf("got %d connections, want 1", s.connections())
	}
}

func TestInterimResponseIsPassedOnAmidTheUpload(t *testing.T) {
	s := startRaw(t, func(p *peer) {
		p.takeHead()
		p.send("HTTP/1.1 103 Early Hints\r\n\r\n")
		var body strings.Builder
		if p.copyChunks(&body) {
			p.send(answerOK)
		}
		p.ended()
	})
	u := upstreamTo(t, s.target())
	client := newClientPipe()
	out := client.out()
	hints := 0
	out.interim = func(int, []byte, []field) { // only now the client goes on
		hints++
		go func() { client.write(t, "rest"); client.Close() }()
	}
	if status, body, err := roundTrip(u, out); status != 200 || body != "ok" || err != nil || hints != 1 {
		t.Errorf("got %d %q, %v, %d hints", status, body, err, hints)
	}
	if u.idleConns() != 1 {
		t.Errorf("got %d idle connections, want 1", u.idleConns())
	}
}

func TestInterimResponsesAreBounded(t *testing.T) {
	s := startRaw(t, always(strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 150)+answerOK))
	u := upstreamTo(t, s.target())
	passed := 0
	_, _, err := roundTrip(u, &outgoing{head: []byte(getHead), interim: func(int, []byte, []field) { passed++ }})
	wantFault(t, err, faultProtocol)
	if !errors.Is(err, errInterim) || passed != maxInterim || u.openConns() != 0 {
		t.Errorf("got %v, %d passed on, %d connections; want %v, %d, 0", err, passed, u.openConns(), errInterim, maxInterim)
	}
}

func TestSwitchedConnectionIsHandedOver(t *testing.T) {
	s := startRaw(t, func(p *peer) {
		p.takeHead()
		p.send(switching + "early bytes")
		_, _ = io.Copy(p, p.r)
		p.send("bye")
	})
	u := upstreamTo(t, s.target())
	u.responseTimeout = 100 * time.Millisecond
	var in incoming
	mustDo(t, u, &outgoing{head: []byte(upgradeHead), upgrade: true}, &in, 101)
	if in.length != 0 || string(in.fields[1].value) != "chat" {
		t.Errorf("got length %d, fields %q", in.length, in.fields)
	}
	conn, early, err := in.tunnel()
	if err != nil {
		t.Fatal(err)
	}
	in.finish() // has nothing to do with it any more
	time.Sleep(2 * u.responseTimeout)
	if _, err := io.WriteString(conn, "after the deadlines"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(conn)
	if got, want := string(early)+string(rest), "early bytesafter the deadlinesbye"; got != want || err != nil {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if u.openConns() != 1 || u.idleConns() != 0 {
		t.Errorf("got %d connections, %d idle; want 1, 0", u.openConns(), u.idleConns())
	}
	conn.Close()
	conn.Close()
	if u.openConns() != 0 {
		t.Errorf("%d connections are open after Close, want 0", u.openConns())
	}
	if _, _, err := in.tunnel(); !errors.Is(err, errNotSwitched) {
		t.Errorf("a second time: got %v, want %v", err, errNotSwitched)
	}
}

func TestSwitchedConnectionThatNobodyTakesIsClosed(t *testing.T) {
	gone := make(chan bool, 1)
	s := startRaw(t, func(p *peer) { p.takeHead(); p.send(switching); p.ended(); gone <- true })
	u := upstreamTo(t, s.target())
	var in incoming
	mustDo(t, u, &outgoing{head: []byte(upgradeHead), upgrade: true}, &in, 101)
	if n, err := in.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("Read: got %d, %v; want io.EOF", n, err)
	}
	in.finish()
	<-gone
	if u.openConns() != 0 {
		t.Errorf("%d connections are open, want 0", u.openConns())
	}
}

func TestBad101IsAFault(t *testing.T) {
	asked := outgoing{head: []byte(upgradeHead), upgrade: true}
	tests := []struct {
		name, raw string
		out       outgoing
		want      error
	}{
		{"nobody asked", switching, outgoing{head: []byte(getHead)}, errSwitching},
		{"nobody asked us to allow it", switching, outgoing{head: []byte(upgradeHead)}, errSwitching},
		{"after an interim response", "HTTP/1.1 103 x\r\n\r\n" + switching, outgoing{head: []byte(getHead)}, errSwitching},
		{"no protocol", "HTTP/1.1 101 x\r\n\r\n", asked, errBadSwitch},
		{"empty protocol", "HTTP/1.1 101 x\r\nUpgrade:\r\n\r\n", asked, errBadSwitch},
		{"HTTP/1.0", "HTTP/1.0 101 x\r\nUpgrade: chat\r\n\r\n", asked, errBadSwitch},
		{"a length", "HTTP/1.1 101 x\r\nUpgrade: chat\r\nContent-Length: 0\r\n\r\n", asked, errBadSwitch},
		{"a coding", "HTTP/1.1 101 x\r\nUpgrade: chat\r\nTransfer-Encoding: chunked\r\n\r\n", asked, errBadSwitch},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startRaw(t, always(tt.raw))
			u := upstreamTo(t, s.target())
			_, _, err := roundTrip(u, &tt.out)
			wantFault(t, err, faultProtocol)
			if !errors.Is(err, tt.want) || u.openConns() != 0 || len(s.recorded()) != 1 {
				t.Errorf("got %v, %d connections open, %d requests; want %v, 0, 1", err, u.openConns(), len(s.recorded()), tt.want)
			}
		})
	}
}

func TestSwitchBeforeTheBodyWasSentIsAFault(t *testing.T) {
	s := startStalled(t, func(p *peer) { p.takeHead(); p.send(switching) })
	u := upstreamTo(t, s.target())
	client := newClientPipe()
	out := client.out()
	out.upgrade = true
	var in incoming
	err := u.do(out, &in)
	wantFault(t, err, faultProtocol)
	if !errors.Is(err, errSwitchEarly) || u.openConns() != 0 || client.stops.Load() != 1 {
		t.Errorf("got %v, %d connections, %d stops", err, u.openConns(), client.stops.Load())
	}
	wantEnded(t, &in)
}

func TestSwitchAfterTheBodyWasSent(t *testing.T) {
	s := startRaw(t, func(p *peer) { p.take(); p.send(switching + "hello") })
	u := upstreamTo(t, s.target())
	out := &outgoing{head: []byte(chunkedPost), body: strings.NewReader("data"), bodyLen: -1, upgrade: true}
	var in incoming
	mustDo(t, u, out, &in, 101)
	conn, early, err := in.tunnel()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rest, err := io.ReadAll(conn)
	if got := append(early, rest...); !bytes.Equal(got, []byte("hello")) || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// What follows a refused upgrade is HTTP again; but a body that was sent with
// it might be taken for the new protocol, and its answer for the next one.
func TestRefusedUpgradeKeepsTheConnectionIfThereWasNoBody(t *testing.T) {
	const small = "POST / HTTP/1.1\r\nUpgrade: chat\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
	tests := []struct {
		name string
		out  outgoing
		want int
	}{
		{"no body", outgoing{head: []byte(upgradeHead), upgrade: true}, 1},
		{"small body", outgoing{head: []byte(small), upgrade: true}, 0},
		{"large body", outgoing{head: []byte(chunkedPost), body: strings.NewReader("data"), bodyLen: -1, upgrade: true}, 0},
		{"small body, no upgrade", outgoing{head: []byte(small)}, 1},
	}
	for _, tt := range tests {
		for _, status := range []int{200, 403} {
			s := startRaw(t, always(fmt.Sprintf("HTTP/1.1 %d x\r\nContent-Length: 2\r\n\r\nno", status)))
			u := upstreamTo(t, s.target())
			out := tt.out
			if r, ok := out.body.(*strings.Reader); ok {
				r.Reset("data")
			}
			if got, body, err := roundTrip(u, &out); got != status || body != "no" || err != nil {
				t.Errorf("%s: got %d %q, %v", tt.name, got, body, err)
			}
			if u.idleConns() != tt.want || u.openConns() != tt.want {
				t.Errorf("%s, %d: got %d connections, %d idle; want %d", tt.name, status, u.openConns(), u.idleConns(), tt.want)
			}
		}
	}
}
