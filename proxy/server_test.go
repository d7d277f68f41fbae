package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ended waits for the end of the connection and returns what came before it.
func (c *rawClient) ended() string {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if err != nil {
		c.t.Errorf("after %q: %v, want a clean end", rest, err)
	}
	return string(rest)
}

func TestIdleConnectionsEndWithoutAWord(t *testing.T) {
	rg, _ := rawRig(t, 10, always(okAnswer), func(c *Config) { c.Limits.KeepAliveTimeout = 50 * time.Millisecond })
	for _, used := range []bool{false, true} {
		c := rg.dial(t)
		if used {
			c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			c.answer("GET")
		}
		want(t, fmt.Sprintf("idle, used: %v", used), c.ended(), "")
	}
}

func TestConnectionsAreLimitedInAllAndByClient(t *testing.T) {
	for name, c := range map[string]struct {
		set    func(c *Config)
		reason int
		most   int
	}{
		"in all":    {func(c *Config) { c.Limits.Connections = 3 }, refusedTotal, 3},
		"by client": {func(c *Config) { c.Limits.ConnectionsPerClient = 2 }, refusedPerClient, 2},
		"trusted proxies are not": {func(c *Config) {
			c.Limits.ConnectionsPerClient = 2
			c.TrustedProxies = []Prefix{{netip.MustParsePrefix("127.0.0.0/8")}}
		}, refusedPerClient, 100},
	} {
		t.Run(name, func(t *testing.T) {
			rg, _ := rawRig(t, 1000, always(okAnswer), c.set)
			var kept []*rawClient
			for range 5 {
				conn := rg.dial(t)
				conn.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				got := conn.answer("GET")
				wantStatus := "200"
				if len(kept) >= c.most {
					wantStatus = "503"
				}
				if !strings.HasPrefix(got, "HTTP/1.1 "+wantStatus) {
					t.Errorf("connection %d: got %q, want %s", len(kept)+1, got, wantStatus)
				}
				kept = append(kept, conn)
			}
			if got, most := rg.p.server.refused[c.reason].Get(), max(0, 5-c.most); got != uint64(most) {
				t.Errorf("counted %d refused connections, want %d", got, most)
			}
			kept[0].Close()
			eventually(t, "there is room again", func() bool {
				conn, err := net.Dial("tcp", rg.addr)
				if err != nil {
					return false
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
				answer, _ := io.ReadAll(conn)
				return strings.HasPrefix(string(answer), "HTTP/1.1 200 ")
			})
		})
	}
}

func TestNetworkOfAnIPv6ClientIsOneClient(t *testing.T) {
	s := &server{proxy: new(Proxy)}
	s.proxy.rules.Store(&Rules{client: LimitsConfig{ConnectionsPerClient: 1}, prefix6: 64})
	a, b := s.clientOf(netip.MustParseAddr("2001:db8::1")), s.clientOf(netip.MustParseAddr("2001:db8::ffff"))
	other := s.clientOf(netip.MustParseAddr("2001:db8:0:1::1"))
	if a != b || a == other {
		t.Errorf("got %v, %v of one network and %v of another", a, b, other)
	}
}

func TestPanicCostsOneRequest(t *testing.T) {
	rg, _ := rawRig(t, 10, always(okAnswer), func(c *Config) {
		c.Routes = []RouteConfig{{Name: "broken", Match: MatchConfig{Path: []string{"/broken"}}, Upstream: "api"}, {Name: "all", Upstream: "api"}}
	})
	broken, err := rg.p.rules.Load().router.resolve(&request{path: []byte("/broken")})
	if err != nil {
		t.Fatal(err)
	}
	broken.upstream = nil
	c := rg.dial(t)
	c.send("GET /broken HTTP/1.1\r\nHost: a\r\n\r\n")
	if got := c.ended(); !strings.HasPrefix(got, "HTTP/1.1 500 ") {
		t.Errorf("got %q, want 500", got)
	}
	if got := rg.statusOf(t, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); got != "200" {
		t.Errorf("the next client got %s, want 200", got)
	}
	if got := rg.p.metrics.panics.Get(); got != 1 {
		t.Errorf("counted %d panics, want 1", got)
	}
}

// starved is a listener whose first accepts fail for want of descriptors.
type starved struct {
	net.Listener
	failures int
}

func (l *starved) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptingOutlivesAWantOfDescriptors(t *testing.T) {
	rg, _ := rawRig(t, 10, always(okAnswer), nil)
	l := &starved{listenLoopback(t), 3}
	go func() { _ = rg.p.Serve(l) }()
	rg.addr = l.Addr().String()
	if got := rg.statusOf(t, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); got != "200" {
		t.Errorf("got %s, want 200", got)
	}
	if log := rg.log.String(); strings.Count(log, "raise the limit of open files") != 1 {
		t.Errorf("the log is %q, want one line about it", log)
	}
}

// shutdown stops the proxy in the background.
func (rg *rig) shutdown(wait time.Duration) <-chan error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		done <- rg.p.Shutdown(ctx)
	}()
	return done
}

func TestShutdownEndsIdleConnectionsAndLetsRequestsFinish(t *testing.T) {
	arrived, letGo := make(chan struct{}), make(chan struct{})
	rg, _ := rawRig(t, 10, func(p *peer) {
		for {
			request, ok := p.take()
			if !ok {
				return
			}
			if strings.HasPrefix(request, "GET /slow") {
				close(arrived)
				<-letGo
			}
			p.send(okAnswer)
		}
	}, nil)
	idle, busy, fresh := rg.dial(t), rg.dial(t), rg.dial(t)
	idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	idle.answer("GET")
	busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	<-arrived
	done := rg.shutdown(5 * time.Second)
	want(t, "idle connection", idle.ended(), "")
	fresh.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n") // it was accepted, and is about to ask
	if got := fresh.ended(); !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.Contains(got, "Connection: close\r\n") {
		t.Errorf("fresh connection: got %q, want 200 and close", got)
	}
	close(letGo)
	if got := busy.ended(); !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.Contains(got, "Connection: close\r\n") {
		t.Errorf("request in flight: got %q, want 200 and close", got)
	}
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if _, err := net.Dial("tcp", rg.addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after shutdown: %v, want connection refused", err)
	}
}

func TestShutdownCutsOffWhatDoesNotEnd(t *testing.T) {
	arrived := make(chan struct{})
	rg, _ := rawRig(t, 10, func(p *peer) { p.take(); close(arrived); p.ended() }, nil)
	c := rg.dial(t)
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-arrived
	if err := <-rg.shutdown(100 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: got %v, want the deadline", err)
	}
	if _, err := io.ReadAll(c.r); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection: %v", err)
	}
	eventually(t, "the connection is gone", func() bool { return rg.p.server.connections() == 0 })
}

func TestShutdownBeforeServeEndsServe(t *testing.T) {
	rg, _ := rawRig(t, 10, always(okAnswer), nil)
	if err := <-rg.shutdown(time.Second); err != nil {
		t.Error(err)
	}
	if err := rg.p.Serve(listenLoopback(t)); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

func TestRequestBehindABodyIsReadWhole(t *testing.T) {
	rg, up := rawRig(t, 100, always(okAnswer), nil)
	long := "GET /next?" + strings.Repeat("n", 7000) + " HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, first := range []string{
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n" + strings.Repeat("x", 5000) + "\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n" + strings.Repeat("x", 70000),
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		c := rg.dial(t)
		c.send(first + long + long)
		for range 3 {
			if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
				t.Fatalf("%.80q: got %q", first, got)
			}
		}
		recorded := up.recorded()
		for _, got := range recorded[len(recorded)-2:] {
			if !strings.HasPrefix(got, strings.TrimSuffix(long, "\r\n")) {
				t.Errorf("behind %.80q the upstream got %.100q", first, got)
			}
		}
	}
}
