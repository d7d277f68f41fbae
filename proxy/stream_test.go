package proxy

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

const upgradeRequest = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
const switchingAnswer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: s\r\n\r\n"

// mirror answers an upgrade and then sends back what it gets, with hello first.
func mirror(p *peer) {
	if _, ok := p.take(); !ok {
		return
	}
	p.send(switchingAnswer + "hello ")
	_, _ = io.Copy(p, p.r)
	_ = p.Conn.(*net.TCPConn).CloseWrite()
}

// head reads a head of the answer.
func (c *rawClient) head() string { return c.answer("HEAD") }

func TestUpgradeBecomesATunnelDecidedOnce(t *testing.T) {
	rg, up := rawRig(t, 2, mirror, nil)
	for range 2 {
		c := rg.dial(t)
		c.send(upgradeRequest + "early ")
		want(t, "answer", steady(c.head()), "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nRateLimit-Policy: \"all\";q=2;w=7200\r\nRateLimit: \"all\";r="+map[bool]string{true: "1;t=3600", false: "0;t=3600"}[len(up.recorded()) == 1]+"\r\n\r\n")
		frame := strings.Repeat("0123456789abcdef", 1<<16)
		go c.send(frame)
		got := make([]byte, len("hello early ")+len(frame))
		if _, err := io.ReadFull(c.r, got); err != nil || string(got) != "hello early "+frame {
			t.Fatalf("got %d bytes that begin with %q, %v", len(got), got[:20], err)
		}
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil { // half a close goes through, and the other half comes back
			t.Fatal(err)
		}
		c.wantClosed()
	}
	want(t, "request", steady(up.recorded()[0]), "GET /chat HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: k\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\nX-Request-Id: *\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if got := rg.statusOf(t, upgradeRequest); got != "429" {
		t.Errorf("the third got %s, want 429", got)
	}
	eventually(t, "no connection is left", func() bool { return rg.p.rules.Load().upstreams["api"].openConns() == 0 })
	lines := rg.lines(t)
	if lines[0]["status"] != 101. || lines[0]["bytes"] != float64(len("hello early ")+1<<20) {
		t.Errorf("logged %v", lines[0])
	}
}

func TestRefusedUpgradeOpensNoTunnel(t *testing.T) {
	for _, answer := range []string{"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", okAnswer} {
		rg, up := rawRig(t, 10, always(answer), nil)
		c := rg.dial(t)
		c.send(upgradeRequest + "GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
		for range 2 { // what follows is the next request, and is decided about
			if got := c.answer("GET"); !strings.HasPrefix(got, answer[:12]) || strings.Contains(got, "Upgrade") {
				t.Errorf("got %q, want %.12s", got, answer)
			}
		}
		if got := up.recorded(); len(got) != 2 || !strings.HasPrefix(got[1], "GET /next ") {
			t.Errorf("the upstream got %q", got)
		}
	}
}

func TestUpgradesThatAreNotPassedOn(t *testing.T) {
	rg, up := rawRig(t, 100, always(okAnswer), nil)
	for _, lines := range []string{
		"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
		"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
		"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
		"GET / HTTP/1.1\r\nUpgrade: websocket\r\n",
		"GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
		"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: other\r\n",
		"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n",
	} {
		c := rg.dial(t)
		body := ""
		if strings.Contains(lines, "Content-Length") {
			body = "x"
		}
		c.send(lines + "Host: a\r\n\r\n" + body)
		if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("%q: got %q", lines, got)
		}
		recorded := up.recorded()
		if got := recorded[len(recorded)-1]; strings.Contains(got, "Upgrade") || strings.Contains(got, "HTTP2") {
			t.Errorf("%q: the upstream got %q", lines, got)
		}
	}
}

func TestSwitchToAnotherProtocolIs502(t *testing.T) {
	rg, _ := rawRig(t, 10, func(p *peer) {
		p.take()
		p.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
		p.ended()
	}, nil)
	if got := rg.statusOf(t, upgradeRequest); got != "502" {
		t.Errorf("got %s, want 502", got)
	}
	eventually(t, "the connection is gone", func() bool { return rg.p.rules.Load().upstreams["api"].openConns() == 0 })
}

func TestIdleTunnelEnds(t *testing.T) {
	rg, _ := rawRig(t, 10, mirror, func(c *Config) {
		c.Upstreams["api"] = UpstreamConfig{Targets: c.Upstreams["api"].Targets, IdleTimeout: 100 * time.Millisecond}
	})
	c := rg.dial(t)
	c.send(upgradeRequest)
	c.head()
	if rest, err := io.ReadAll(c.r); string(rest) != "hello " || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %q, %v", rest, err)
	}
	eventually(t, "the log says why", func() bool { return strings.Contains(rg.log.String(), errTunnelIdle.Error()) })
}

func TestInterimAnswersPassOn(t *testing.T) {
	const hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n"
	rg, _ := rawRig(t, 10, always("HTTP/1.1 100 Continue\r\n\r\n"+hints+"Connection: X-Hop\r\nX-Hop: 1\r\n\r\n"+hints+"\r\n"+okAnswer), nil)
	c := rg.dial(t)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	want(t, "first", c.head(), hints+"\r\n")
	want(t, "second", c.head(), hints+"\r\n")
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("got %q, want the answer", got)
	}
	old := rg.dial(t)
	old.send("GET / HTTP/1.0\r\n\r\n")
	if got := old.ended(); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("HTTP/1.0 got %q, which knows no interim answers", got)
	}
}

func TestAnnouncedTrailersPassOn(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nTrailer: X-Sum, Set-Cookie\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\nSet-Cookie: a=1\r\nX-Other: 1\r\n\r\n"
	for _, pause := range []bool{false, true} { // the end comes with the head, or later
		rg, _ := rawRig(t, 10, func(p *peer) {
			for {
				if _, ok := p.take(); !ok {
					return
				}
				start, rest, _ := strings.Cut(answer, "0\r\n")
				p.send(start)
				if pause {
					time.Sleep(20 * time.Millisecond)
				}
				p.send("0\r\n" + rest)
			}
		}, nil)
		c := rg.dial(t)
		c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		got := c.ended()
		if !strings.Contains(got, "\r\nTrailer: X-Sum\r\n") || !strings.HasSuffix(got, "2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n") {
			t.Errorf("got %q", got)
		}
		old := rg.dial(t)
		old.send("GET / HTTP/1.0\r\n\r\n")
		if got := old.ended(); strings.Contains(got, "Trailer") || !strings.HasSuffix(got, "\r\n\r\nhi") {
			t.Errorf("HTTP/1.0 got %q", got)
		}
	}
}

func TestClientThatLeavesEndsTheUpstreamsWork(t *testing.T) {
	for name, first := range map[string]string{
		"before the head":   "",
		"amid the answer":   "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.",
		"after early hints": "HTTP/1.1 103 Early Hints\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			arrived, ended := make(chan struct{}), make(chan struct{})
			rg, _ := rawRig(t, 10, func(p *peer) {
				p.take()
				p.send(first)
				close(arrived)
				p.ended()
				close(ended)
			}, nil)
			c := rg.dial(t)
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			<-arrived
			c.Close()
			select {
			case <-ended:
			case <-time.After(3 * time.Second):
				t.Fatal("the upstream still works for a client that left")
			}
			eventually(t, "the connections are gone", func() bool {
				return rg.p.server.connections() == 0 && rg.p.rules.Load().upstreams["api"].openConns() == 0
			})
			eventually(t, "it is logged", func() bool { return len(rg.lines(t)) > 0 })
			line, status := rg.lines(t)[0], 499.
			if strings.HasPrefix(first, "HTTP/1.1 200") {
				status = 200
			}
			if line["status"] != status || line["error"] != errClientLeft.Error() {
				t.Errorf("logged %v", line)
			}
			faults := rg.p.rules.Load().upstreams["api"].metrics.faults
			for f := range faultCount {
				if got := faults[f].Get(); (f == faultClient) != (got == 1) {
					t.Errorf("fault %v was counted %d times", f, got)
				}
			}
		})
	}
}
