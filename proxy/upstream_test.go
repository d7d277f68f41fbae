package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	getHead  = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	postHead = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
	answerOK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
)

func TestTargets(t *testing.T) {
	tests := []struct{ target, network, address, host, named string }{
		{"http://a.example", "tcp", "a.example:80", "a.example", "a.example"},
		{"http://a.example:8080", "tcp", "a.example:8080", "a.example:8080", "a.example"},
		{"https://a.example", "tcp", "a.example:443", "a.example", "a.example"},
		{"HTTPS://a.example:8443", "tcp", "a.example:8443", "a.example:8443", "a.example"},
		{"HTTP://127.0.0.1:1", "tcp", "127.0.0.1:1", "127.0.0.1:1", ""},
		{"http://[::1]:8080", "tcp", "[::1]:8080", "[::1]:8080", ""},
		{"http://[::1]", "tcp", "[::1]:80", "[::1]", ""},
		{"unix:/run/a.sock", "unix", "/run/a.sock", "localhost", ""},
	}
	for _, tt := range tests {
		got, err := newTarget(nil, tt.target, 0)
		if err != nil {
			t.Errorf("%s: %v", tt.target, err)
			continue
		}
		if got := [4]string{got.network, got.address, string(got.host), got.hostname}; got != [4]string{tt.network, tt.address, tt.host, tt.named} {
			t.Errorf("%s: got %q", tt.target, got)
		}
		if secure := strings.EqualFold(tt.target[:6], "https:"); got.secure != secure {
			t.Errorf("%s: secure is %t", tt.target, got.secure)
		}
	}
}

func TestMalformedTargetsAreRefused(t *testing.T) {
	for _, target := range []string{
		"", "a.example", "a.example:80", "//a.example", "http://", "http://:80", "http:a", "http://a/", "http://a/b",
		"http://a?b", "http://a?", "http://a#b", "http://u@a", "http://u:p@a", "http://a:", "http://a:0", "http://a:65536", "http://a:x",
		"ftp://a", "unix:", "unix:a", "unix://a/b/", "http://a b", "https://", "https://a/", "https://u@a", "https://a:0", "httpss://a", "echo",
	} {
		if _, err := newTarget(nil, target, 0); !errors.Is(err, errTarget) {
			t.Errorf("%q: got error %v, want %v", target, err, errTarget)
		}
	}
}

func TestRequestsShareAConnectionAndArriveByteForByte(t *testing.T) {
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, s.target())
	for _, head := range []string{getHead, postHead, getHead} {
		status, body, err := roundTrip(u, &outgoing{head: []byte(head)})
		if status != 200 || body != "ok" || err != nil {
			t.Fatalf("got %d %q, %v", status, body, err)
		}
	}
	if diff := cmp.Diff([]string{getHead, postHead, getHead}, s.recorded()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if s.connections() != 1 || u.openConns() != 1 || u.idleConns() != 1 {
		t.Errorf("got %d connections, %d open, %d idle; want 1 of each", s.connections(), u.openConns(), u.idleConns())
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := serveRaw(t, l, always(answerOK))
	u := upstreamTo(t, "unix:"+path)
	mustAnswer(t, u, "ok")
	mustAnswer(t, u, "ok")
	if s.connections() != 1 {
		t.Errorf("got %d connections, want 1", s.connections())
	}
}

func TestMaxConnsIsABoundThatRecovers(t *testing.T) {
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, s.target())
	u.maxConns = 2
	var a, b, c incoming
	out := &outgoing{head: []byte(getHead)}
	for _, in := range []*incoming{&a, &b} {
		if err := u.do(out, in); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	wantFault(t, u.do(out, &c), faultBusy)
	if waited := time.Since(start); waited > 50*time.Millisecond {
		t.Errorf("being busy took %v to say", waited)
	}
	c.finish()
	if _, err := io.ReadAll(&a); err != nil {
		t.Fatal(err)
	}
	a.finish() // goes to the pool
	mustAnswer(t, u, "ok")
	b.finish() // unread, so it is closed and makes room
	if u.openConns() != 1 {
		t.Errorf("%d connections are open, want 1", u.openConns())
	}
	mustAnswer(t, u, "ok")
}

func TestExtraBytesAreNobodysAnswer(t *testing.T) {
	const extra = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for _, late := range []time.Duration{0, 10 * time.Millisecond} {
		for _, first := range []string{answerOK, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"} {
			sent := make(chan bool, 8)
			s := startRaw(t, func(p *peer) {
				if _, ok := p.take(); !ok {
					return
				}
				if late == 0 {
					p.send(first + extra)
				} else {
					p.send(first)
					time.Sleep(late) // the case itself: bytes that come later
					p.send(extra)
				}
				sent <- true
				p.ended()
			})
			u := upstreamTo(t, s.target())
			for n := 1; n <= 3; n++ {
				mustAnswer(t, u, "ok")
				<-sent
				if s.connections() != n {
					t.Errorf("%d requests went over %d connections, want one each", n, s.connections())
				}
			}
			if late > 0 {
				continue // the last connection looks idle until it is taken
			}
			if u.openConns() != 0 {
				t.Errorf("%d connections are open, want 0", u.openConns())
			}
		}
	}
}

// Neither fails nor is sent twice.
func TestPostNeverMeetsAConnectionThatTheUpstreamClosed(t *testing.T) {
	closed := make(chan bool)
	s := startRaw(t, func(p *peer) {
		for n := 0; n < p.number%3+1; n++ {
			if _, ok := p.take(); !ok {
				return
			}
			p.send(answerOK)
		}
		p.Close()
		closed <- true
	})
	u := upstreamTo(t, s.target())
	const posts = 60
	served := 0
	for n := range posts {
		head := fmt.Sprintf("POST /%d HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", n)
		status, _, err := roundTrip(u, &outgoing{head: []byte(head)})
		if status != 200 || err != nil {
			t.Fatalf("request %d: got %d, %v", n, status, err)
		}
		if served++; served == s.connections()%3+1 {
			<-closed
			served = 0
		}
	}
	for n, r := range s.recorded() {
		if want := fmt.Sprintf("POST /%d HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", n); r != want {
			t.Fatalf("request %d: got %q, want %q", n, r, want)
		}
	}
	if got := len(s.recorded()); got != posts {
		t.Errorf("the upstream got %d requests, want %d", got, posts)
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, s.target())
	age := func() {
		u.targets[0].mu.Lock()
		defer u.targets[0].mu.Unlock()
		for _, c := range u.targets[0].idle {
			c.idleSince = c.idleSince.Add(-maxIdle)
		}
	}
	mustAnswer(t, u, "ok")
	age()
	mustAnswer(t, u, "ok")
	if s.connections() != 2 || u.openConns() != 1 {
		t.Errorf("taken after 4 s: got %d connections, %d open; want 2, 1", s.connections(), u.openConns())
	}
	age()
	u.targets[0].sweep()
	if u.openConns() != 0 || u.idleConns() != 0 {
		t.Errorf("swept after 4 s: got %d open, %d idle", u.openConns(), u.idleConns())
	}
}

func TestSweeperComesByItself(t *testing.T) {
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, s.target())
	mustAnswer(t, u, "ok")
	u.targets[0].mu.Lock()
	u.targets[0].idle[0].idleSince = u.targets[0].idle[0].idleSince.Add(-maxIdle + 20*time.Millisecond)
	u.targets[0].mu.Unlock()
	u.targets[0].sweep() // too early: it only asks to be woken
	if u.openConns() != 1 {
		t.Fatal("a connection was closed too early")
	}
	eventually(t, "the idle connection is closed", func() bool { return u.openConns() == 0 })
}

func TestPoolHandsOutTheLatestConnection(t *testing.T) {
	s := startRaw(t, func(p *peer) {
		for {
			if _, ok := p.take(); !ok {
				return
			}
			p.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", p.number))
		}
	})
	u := upstreamTo(t, s.target())
	ins := make([]incoming, 3)
	for i := range ins {
		if err := u.do(&outgoing{head: []byte(getHead)}, &ins[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range []int{0, 2, 1} {
		if _, err := io.ReadAll(&ins[i]); err != nil {
			t.Fatal(err)
		}
		ins[i].finish()
	}
	mustAnswer(t, u, "2")
	mustAnswer(t, u, "2")
	if u.idleConns() != 3 {
		t.Errorf("got %d idle connections, want 3", u.idleConns())
	}
}

func TestUnfinishedResponsesCloseTheirConnection(t *testing.T) {
	for _, raw := range []string{
		answerOK,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
		"HTTP/1.1 200 OK\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
	} {
		gone := make(chan bool, 1)
		s := startRaw(t, func(p *peer) {
			p.take()
			p.send(raw)
			p.ended()
			gone <- true
		})
		u := upstreamTo(t, s.target())
		var in incoming
		if err := u.do(&outgoing{head: []byte(getHead)}, &in); err != nil {
			t.Fatal(err)
		}
		in.finish()
		in.finish()
		<-gone
		if u.openConns() != 0 {
			t.Errorf("%q: %d connections are open, want 0", raw, u.openConns())
		}
	}
}

func TestClosedUpstreamClosesItsConnections(t *testing.T) {
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, s.target())
	var a, b incoming
	for _, in := range []*incoming{&a, &b} {
		if err := u.do(&outgoing{head: []byte(getHead)}, in); err != nil {
			t.Fatal(err)
		}
		if _, whole := in.buffered(); !whole {
			t.Fatal("the body is not there")
		}
	}
	a.finish()
	u.close()
	u.close()
	if u.openConns() != 1 {
		t.Errorf("%d connections are open, want the one in use", u.openConns())
	}
	b.finish()
	if u.openConns() != 0 {
		t.Errorf("%d connections are open, want 0", u.openConns())
	}
	wantFault(t, u.do(&outgoing{head: []byte(getHead)}, &a), faultConnect)
	(&upstream{echo: true}).close()
}

func TestUpstreamThatRestartsIsUsedAgain(t *testing.T) {
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, s.target())
	mustAnswer(t, u, "ok")
	s.stop()
	_, _, err := roundTrip(u, &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultConnect)
	l, err := net.Listen("tcp", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	serveRaw(t, l, always(answerOK))
	mustAnswer(t, u, "ok")
	if u.openConns() != 1 {
		t.Errorf("%d connections are open, want 1", u.openConns())
	}
}

func TestConcurrentRequestsGetTheirOwnAnswers(t *testing.T) {
	s := startRaw(t, func(p *peer) {
		for n := 1; ; n++ {
			raw, ok := p.take()
			if !ok {
				return
			}
			path := strings.Fields(raw)[1]
			p.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(path), path))
			if n%5 == 0 {
				p.send("extra")
			}
		}
	})
	u := upstreamTo(t, s.target())
	var workers sync.WaitGroup
	for w := range u.maxConns {
		workers.Go(func() {
			for n := range 50 {
				path := fmt.Sprintf("/%d-%d", w, n)
				out := &outgoing{head: []byte("GET " + path + " HTTP/1.1\r\n\r\n")}
				// Extra bytes may come after the check: then it is an error, never another's answer.
				if _, got, err := roundTrip(u, out); err == nil && got != path || err != nil && faultOf(err) != faultProtocol && faultOf(err) != faultClosed {
					t.Errorf("%s: got %q, %v", path, got, err)
				}
			}
		})
	}
	workers.Wait()
	if u.openConns() > u.maxConns || u.openConns() != u.idleConns() {
		t.Errorf("got %d open, %d idle connections", u.openConns(), u.idleConns())
	}
}
