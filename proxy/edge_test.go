package proxy

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// rawRig is a proxy in front of a scripted upstream; every user may do `capacity` requests.
func rawRig(t *testing.T, capacity int64, script func(p *peer), more func(c *Config)) (*rig, *rawServer) {
	t.Helper()
	up := startRaw(t, script)
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{up.target()}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api"}}
	if more != nil {
		more(&c)
	}
	return startRig(t, c, nil, newLimiter(t, capacity)), up
}

func TestForwardingFieldsOfATrustedPeerAreKept(t *testing.T) {
	rg, up := rawRig(t, 1, always(okAnswer), func(c *Config) {
		c.TrustedProxies = []Prefix{{netip.MustParsePrefix("127.0.0.0/8")}, {netip.MustParsePrefix("10.0.0.0/8")}}
	})
	c := rg.dial(t)
	c.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nx-forwarded-for: 10.1.1.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\nX-Request-Id: r\r\n\r\n")
	c.answer("GET")
	want(t, "request", up.recorded()[0], "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\nX-Request-Id: r\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.1.1.1, 127.0.0.1\r\n\r\n")
	// The left-most hops are the client's to choose: another one is still the same client.
	c.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 7.7.7.7, 203.0.113.9\r\n\r\n")
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 429 ") {
		t.Errorf("same client by another hop: got %q, want 429", got)
	}
	c.send("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.10\r\n\r\n")
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("another client: got %q, want 200", got)
	}
}

func TestChunkedBodyOverTheCapIs413AndNeverEndsAtTheUpstream(t *testing.T) {
	got := make(chan string, 1)
	rg, _ := rawRig(t, 10, func(p *peer) {
		body, _ := io.ReadAll(p.r)
		got <- string(body)
	}, nil)
	c := rg.dial(t)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
	go func() {
		chunk := fmt.Sprintf("%x\r\n%s\r\n", 1<<20, strings.Repeat("x", 1<<20))
		for range 11 {
			if _, err := io.WriteString(c, chunk); err != nil {
				return
			}
		}
	}()
	if answer := c.answer("POST"); !strings.HasPrefix(answer, "HTTP/1.1 413 ") || !strings.Contains(answer, "Connection: close\r\n") {
		t.Errorf("got %q, want 413 and close", answer)
	}
	if body := <-got; strings.HasSuffix(body, "0\r\n\r\n") || len(body) > 10<<20+wireOverhead {
		t.Errorf("the upstream got %d bytes that end in %q, want at most the cap and no last chunk", len(body), body[max(0, len(body)-9):])
	}
}

func TestEndlessChunkExtensionsAreCutOff(t *testing.T) {
	rg, _ := rawRig(t, 10, func(p *peer) { p.ended() }, nil)
	c := rg.dial(t)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;")
	piece := strings.Repeat("e", 1<<20)
	for sent := 0; ; sent += len(piece) {
		if _, err := io.WriteString(c, piece); err != nil {
			break
		}
		if sent > 4*10<<20 {
			t.Fatal("the proxy took 40 MiB for one byte of body")
		}
	}
}

func TestSlowUpstreamIs504AndIsAskedOnce(t *testing.T) {
	rg, up := rawRig(t, 10, func(p *peer) { p.take(); p.ended() }, func(c *Config) {
		c.Upstreams["api"] = UpstreamConfig{Targets: c.Upstreams["api"].Targets, ResponseTimeout: 50 * time.Millisecond}
	})
	c := rg.dial(t)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 504 ") || !strings.Contains(got, "upstream api did not answer in time") {
		t.Errorf("got %q, want 504", got)
	}
	if got := up.recorded(); len(got) != 1 {
		t.Errorf("the upstream got %d requests, want 1", len(got))
	}
}

func TestPartOfAnAnswerIsNeverTakenForTheWhole(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf.\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf.\r\nzz\r\n",
	} {
		rg, _ := rawRig(t, 10, func(p *peer) { p.take(); p.send(answer) }, nil)
		c := rg.dial(t)
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		rest, err := io.ReadAll(c.r)
		if err != nil || strings.HasSuffix(string(rest), "\r\n0\r\n\r\n") {
			t.Errorf("%q: got %q, %v, want a part and the end of the connection", answer, rest, err)
		}
		if strings.HasPrefix(string(rest), "HTTP/1.1 200 ") && !strings.HasSuffix(strings.TrimSuffix(string(rest), "\r\n"), "half.") {
			t.Errorf("%q: got %q, want what came", answer, rest)
		}
	}
}

func TestPiecesAreRelayedAsTheyCome(t *testing.T) {
	next := make(chan struct{})
	rg, _ := rawRig(t, 10, func(p *peer) {
		p.take()
		p.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
		for range 3 {
			<-next
			p.send("data: x\n\n")
		}
	}, nil)
	c := rg.dial(t)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	for line := ""; line != "\r\n"; { // the head comes before any piece
		var err error
		if line, err = c.r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		next <- struct{}{}
		piece := make([]byte, len("9\r\ndata: x\n\n\r\n"))
		if _, err := io.ReadFull(c.r, piece); err != nil || string(piece) != "9\r\ndata: x\n\n\r\n" {
			t.Fatalf("got %q, %v", piece, err)
		}
	}
}

func TestClientThatLeavesInItsBodyIsNoFaultOfTheUpstream(t *testing.T) {
	ended := make(chan struct{})
	rg, _ := rawRig(t, 10, func(p *peer) { p.ended(); close(ended) }, nil)
	c := rg.dial(t)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nsome")
	c.Close()
	<-ended
	faults := rg.p.rules.Load().upstreams["api"].metrics.faults
	eventually(t, "the fault is counted", func() bool { return faults[faultClient].Get() == 1 })
	for f := range faultCount {
		if f != faultClient && faults[f].Get() != 0 {
			t.Errorf("fault %v was counted", f)
		}
	}
}
