//go:build !race

// The race detector makes sync.Pool drop what it holds, so allocations are
// counted only without it.

package proxy

import (
	"io"
	"net"
	"testing"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
)

// allocRig is a proxy that logs every request and an upstream that allocates nothing.
func allocRig(tb testing.TB, capacity int64) *rig {
	tb.Helper()
	l := listenLoopback(tb)
	go answerAll(l)
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://" + l.Addr().String()}}}
	user, err := ParseTemplate("{header.X-User-Id}")
	if err != nil {
		tb.Fatal(err)
	}
	c.Routes = []RouteConfig{{Name: "all", Match: MatchConfig{Path: []string{"/v1/{id}"}}, Upstream: "api", UserID: []Template{user}}}
	lc := limiter.DefaultConfig()
	lc.Default.Capacity = capacity
	p, err := New(c, Options{Limiter: limiter.New(lc, limiter.NewMemoryStore()), Log: zerolog.New(io.Discard)})
	if err != nil {
		tb.Fatal(err)
	}
	front := listenLoopback(tb)
	go func() { _ = p.Serve(front) }()
	return &rig{addr: front.Addr().String(), p: p}
}

func TestProxiedRequestAllocatesNothing(t *testing.T) {
	for _, c := range []struct {
		name     string
		capacity int64
	}{{"allowed", limiter.MaxCapacity}, {"denied", 1}} {
		rg := allocRig(t, c.capacity)
		conn := dialLoopback(t, rg.addr)
		request := []byte("GET /v1/7 HTTP/1.1\r\nHost: a\r\nX-User-Id: ann\r\nAccept: */*\r\n\r\n")
		buf := make([]byte, 4096)
		once := func() {
			if _, err := conn.Write(request); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(buf); err != nil {
				t.Fatal(err)
			}
		}
		for range 200 {
			once()
		}
		if got := testing.AllocsPerRun(2000, once); got != 0 {
			t.Errorf("%s: %v allocations a request, want none", c.name, got)
		}
	}
}

func TestMatchingManyAlikeRoutesAllocatesNothing(t *testing.T) {
	for _, k := range wayKinds {
		rs := k.rules(t, 1000)
		r := read(t, rs, k.asked(999))
		if got := testing.AllocsPerRun(100, func() {
			r.scratch = r.scratch[:0]
			if found, err := rs.find(r); found == nil || err != nil {
				t.Fatal(k.name, found, err)
			}
		}); got != 0 {
			t.Errorf("%s: %v allocations, want none", k.name, got)
		}
	}
}

func BenchmarkProxiedRequest(b *testing.B) { benchmarkProxied(b, limiter.MaxCapacity) }
func BenchmarkDeniedRequest(b *testing.B)  { benchmarkProxied(b, 1) }

func benchmarkProxied(b *testing.B, capacity int64) {
	rg := allocRig(b, capacity)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		conn := dialLoopback(b, rg.addr)
		request := []byte("GET /v1/7 HTTP/1.1\r\nHost: a\r\nX-User-Id: ann\r\n\r\n")
		buf := make([]byte, 4096)
		for pb.Next() {
			if _, err := conn.Write(request); err != nil {
				b.Error(err)
				return
			}
			if _, err := conn.Read(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func dialLoopback(tb testing.TB, addr string) net.Conn {
	tb.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// answerAll answers each read, which is one small request here.
func answerAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf, answer := make([]byte, 4096), []byte(okAnswer)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
		}()
	}
}
