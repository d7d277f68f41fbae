package proxy

import (
	"crypto/tls"

	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestInterruptingIdleConnectionsHarmsNoRequest(t *testing.T) {
	rg, _ := rawRig(t, 1_000_000, always(okAnswer), nil)
	var wrong atomic.Int64
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // as shutdown does, but again and again
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				rg.p.server.endIdle()
			}
		}
	}()
	ask := func(c *rawClient, i int) bool {
		body := strings.Repeat("b", 6000)
		head := fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: a\r\nX: %s\r\nContent-Length: %d\r\n\r\n", i, strings.Repeat("x", 5000), len(body))
		if _, err := io.WriteString(c, head[:i%len(head)]); err != nil {
			return false
		}
		_, _ = io.WriteString(c, head[i%len(head):]+body[:i%len(body)])
		_, _ = io.WriteString(c, body[i%len(body):])
		line, err := c.r.ReadString('\n')
		if err != nil {
			return false // it was idle, and could end
		}
		if !strings.HasPrefix(line, "HTTP/1.1 200 ") {
			wrong.Add(1)
			t.Errorf("got %q", line)
		}
		for line != "\r\n" && err == nil {
			line, err = c.r.ReadString('\n')
		}
		_, _ = c.r.Discard(2)
		return err == nil
	}
	for i := 1; i < 1500 && wrong.Load() == 0; {
		c := rg.dial(t)
		first := true
		for ; i < 1500; i++ {
			if !ask(c, i*7) {
				if first {
					t.Error("the first request of a connection had no answer")
				}
				break
			}
			first = false
		}
		c.Close()
		i++
	}
	close(stop)
	<-done
}

func TestLeavingIsSeenBehindUnreadBytes(t *testing.T) {
	t.Run("another request", func(t *testing.T) {
		ended := make(chan struct{})
		rg, _ := rawRig(t, 10, func(p *peer) { p.take(); p.ended(); close(ended) }, nil)
		c := rg.dial(t)
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next")
		eventually(t, "the upstream works", func() bool { return rg.p.rules.Load().upstreams["api"].openConns() == 1 })
		c.Close()
		wantSoon(t, ended)
	})
	t.Run("an alert of TLS", func(t *testing.T) {
		ended := make(chan struct{})
		rg := newH2Rig(t, 10, func(p *peer) { p.take(); p.ended(); close(ended) }, nil)
		c, err := tls.Dial("tcp", rg.addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the upstream works", func() bool { return rg.p.rules.Load().upstreams["api"].openConns() == 1 })
		c.Close() // with its alert
		wantSoon(t, ended)
	})
}

func wantSoon(t *testing.T, ended <-chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(3 * time.Second):
		t.Fatal("the upstream still works for a client that left")
	}
}

func TestAnswerAnnouncedByA204IsNobodys(t *testing.T) {
	sent := make(chan struct{})
	rg, _ := rawRig(t, 10, func(p *peer) {
		if _, ok := p.take(); !ok {
			return
		}
		if p.number > 1 {
			p.send(okAnswer)
			p.ended()
			return
		}
		p.send("HTTP/1.1 204 No Content\r\nContent-Length: 42\r\n\r\n")
		p.take()
		p.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
		close(sent)
	}, nil)
	c := rg.dial(t)
	c.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
	if got := c.head(); !strings.HasPrefix(got, "HTTP/1.1 204 ") {
		t.Fatalf("got %q", got)
	}
	c.send("GET /victim HTTP/1.1\r\nHost: a\r\n\r\n")
	if got := c.answer("GET"); strings.Contains(got, "evil") || !strings.HasSuffix(got, "hi") {
		t.Errorf("got %q, want its own answer", got)
	}
	<-sent
}

func TestShortageOfDescriptorsIsNoFaultOfATarget(t *testing.T) {
	s := startRaw(t, always(okAnswer))
	rg, _ := rawRig(t, 100, always(okAnswer), func(c *Config) {
		c.Upstreams["api"] = UpstreamConfig{Targets: []string{s.target(), c.Upstreams["api"].Targets[0]}}
	})
	u := rg.p.rules.Load().upstreams["api"]
	var short atomic.Bool
	short.Store(true)
	for _, target := range u.targets {
		target.dialer.Control = func(string, string, syscall.RawConn) error {
			if short.Load() {
				return syscall.EMFILE
			}
			return nil
		}
	}
	for range 10 {
		c := rg.dial(t)
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "the gateway has no room") {
			t.Fatalf("got %q", got)
		}
	}
	if got := u.metrics.faults[faultLocal].Get(); got != 10 || u.ejectedTargets() != 0 {
		t.Errorf("counted %d faults of our own, %d targets ejected; want 10 and none", got, u.ejectedTargets())
	}
	if !strings.Contains(rg.log.String(), "raise that of open files") {
		t.Errorf("the log is %q", rg.log.String())
	}
	short.Store(false)
	if got := rg.statusOf(t, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); got != "200" {
		t.Errorf("afterwards got %s, want 200", got)
	}
}

func TestOtherSpellingsOfOurFieldsAreDropped(t *testing.T) {
	rg, up := rawRig(t, 10, always(okAnswer), nil)
	c := rg.dial(t)
	c.send("GET / HTTP/1.1\r\nHost: a\r\nX.Forwarded.For: 6.6.6.6\r\nX!Forwarded!Host: evil\r\nx-forwarded.proto: https\r\nX.Request.Id: 1\r\nX-Request-Id: r\r\n\r\n")
	c.answer("GET")
	want(t, "request", up.recorded()[0], "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: r\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n\r\n")
}

func TestWhatCostsTooMuchToReadIsRefused(t *testing.T) {
	rg, _ := rawRig(t, 100, always(okAnswer), nil)
	for _, lines := range []string{
		"Host: " + strings.Repeat("a.", 127) + "a\r\n",
		"Host: a\r\nConnection: " + strings.Repeat("a,", 101) + "\r\n",
		"Host: a\r\nContent.Length: 5\r\n",
	} {
		if got := rg.statusOf(t, "GET / HTTP/1.1\r\n"+lines+"\r\n"); got != "400" {
			t.Errorf("%.40q: got %s, want 400", lines, got)
		}
	}
	if got := rg.statusOf(t, "GET / HTTP/1.1\r\nHost: "+strings.Repeat("a.", 126)+"a\r\nConnection: "+strings.Repeat("a,", 99)+"\r\n\r\n"); got != "200" {
		t.Errorf("got %s, want 200", got)
	}
}

func TestWhatTheDrainCutsOffIsLoggedAsThat(t *testing.T) {
	arrived := make(chan struct{}, 2)
	rg, _ := rawRig(t, 10, func(p *peer) {
		request, _ := p.take()
		if strings.HasPrefix(request, "GET /stream") {
			p.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.")
		}
		arrived <- struct{}{}
		p.ended()
	}, nil)
	for _, path := range []string{"/wait", "/stream"} {
		c := rg.dial(t)
		c.send("GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n")
		<-arrived
	}
	err := <-rg.shutdown(100 * time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "2 connections") || !strings.Contains(err.Error(), "proxy.drain_timeout") {
		t.Errorf("shutdown: got %v", err)
	}
	eventually(t, "both are logged", func() bool { return strings.Count(rg.log.String(), errDrained.Error()) == 2 })
	for _, line := range rg.lines(t) {
		if line["level"] != "warn" || line["path"] == "/wait" && line["status"] != 503. {
			t.Errorf("logged %v", line)
		}
	}
}

func TestAnswerThatWasCutIsLoggedAsTrouble(t *testing.T) {
	rg, _ := rawRig(t, 10, func(p *peer) { p.take(); p.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.") }, nil)
	c := rg.dial(t)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	_, _ = io.ReadAll(c.r)
	eventually(t, "the line", func() bool { return strings.Contains(rg.log.String(), `"warn"`) })
}

func TestConnectionThatEndsBeforeItsFirstByteIsNoFailure(t *testing.T) {
	rg := newH2Rig(t, 10, always(okAnswer), nil)
	c, err := net.Dial("tcp", rg.addr)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	eventually(t, "the connection is gone", func() bool { return rg.p.server.connections() == 0 })
	if got := rg.p.server.refused[refusedHandshake].Get(); got != 0 || strings.Contains(rg.log.String(), `"warn"`) {
		t.Errorf("counted %d, logged %q", got, rg.log.String())
	}
}
