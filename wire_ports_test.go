package main

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// controlPaths are what the control listener serves, and what its like serve.
var controlPaths = []string{
	"/admin", "/admin/", "/admin/stats", "/admin/config", "/admin/user/ann/reset", "/admin/web/page.js", "/allow?user_id=ann",
	"/metrics", "/readyz", "/livez", "/healthz", "/debug/pprof/", "/debug/vars", "//metrics", "/%6detrics", "/METRICS", "/x/../metrics",
}

// The proxy listener has no path of its own: what the control listener serves is
// the upstream's or nobody's.
func TestWireProxyListenerServesNothingOfItsOwn(t *testing.T) {
	upstream := httptestServer(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "upstream's ", r.RequestURI) })
	for name, c := range map[string]struct{ path, statuses string }{
		"all routed": {"/*", "200 400"}, // 400: readings of the path differ
		"one routed": {"/x", "404 400"},
	} {
		p := startProcess(t, fmt.Sprintf(`
proxy:
  listen: "127.0.0.1:0"
  upstreams: {api: {targets: [%q]}}
  routes: [{name: some, match: {path: %q}, action: bypass, upstream: api}]
admin: {listen: "127.0.0.1:0", token: "a-token-that-is-long-enough"}
`, upstream, c.path))
		for _, path := range controlPaths {
			for _, method := range []string{"GET", "POST", "DELETE"} {
				got := rawAnswer(p.proxy, method+" "+path+" HTTP/1.1\r\nHost: "+strings.TrimPrefix(p.control, "http://")+
					"\r\nAuthorization: Bearer a-token-that-is-long-enough\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
				head, body, _ := strings.Cut(got, "\r\n\r\n")
				status := strings.TrimPrefix(head, "HTTP/1.1 ")[:3]
				if !strings.Contains(c.statuses, status) || status == "200" && !strings.Contains(body, "upstream's "+path) {
					t.Errorf("%s: %s %s: got %q, want one of %s, from the upstream if 200", name, method, path, got, c.statuses)
				}
			}
		}
	}
}

// The control listener never asks anybody else, however it is asked.
func TestWireControlListenerForwardsNothing(t *testing.T) {
	var asked atomic.Int64
	upstream := listen(t)
	var accepting sync.WaitGroup
	t.Cleanup(accepting.Wait)
	t.Cleanup(func() { upstream.Close() })
	accepting.Go(func() {
		for {
			conn, err := upstream.Accept()
			if err != nil {
				return
			}
			asked.Add(1)
			_ = conn.Close()
		}
	})
	to := upstream.Addr().String()
	p := startProcess(t, fmt.Sprintf(`
proxy:
  listen: "127.0.0.1:0"
  upstreams: {api: {targets: ["http://%s"]}}
  routes: [{name: all, action: bypass, upstream: api}]
admin: {listen: "127.0.0.1:0"}
`, to))
	for _, request := range []string{
		"GET /x HTTP/1.1\r\nHost: " + to + "\r\n",
		"GET http://" + to + "/x HTTP/1.1\r\nHost: " + to + "\r\n",
		"GET http://" + to + "/metrics HTTP/1.1\r\nHost: " + to + "\r\n",
		"GET https://" + to + "/livez HTTP/1.1\r\nHost: " + to + "\r\n",
		"GET //" + to + "/x HTTP/1.1\r\nHost: a\r\n",
		"GET @" + to + "/x HTTP/1.1\r\nHost: a\r\n",
		"CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: " + to + "\r\n",
		"GET /x HTTP/1.1\r\nHost: " + to + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
		"POST /x HTTP/1.1\r\nHost: " + to + "\r\nX-Forwarded-Host: " + to + "\r\nX-Original-URL: /x\r\nX-Rewrite-URL: http://" + to + "/x\r\nContent-Length: 0\r\n",
	} {
		got := rawAnswer(p.control, request+"Connection: close\r\n\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 4") {
			t.Errorf("%q: got %q, want 4xx", request, got)
		}
	}
	if got := asked.Load(); got != 0 {
		t.Errorf("the upstream got %d connections, want none", got)
	}
	if rawAnswer(p.proxy, "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); asked.Load() == 0 {
		t.Error("the proxy listener doesn't reach the upstream either: nothing was tested")
	}
}

// The control listener answers while the proxy listener is full and busy: its
// connections are its own.
func TestWireMetricsAnswerWhileTheProxyIsSaturated(t *testing.T) {
	p := startProcess(t, slowConfig(t, "connections: 300"))
	stop := make(chan struct{})
	var busy sync.WaitGroup
	var answered atomic.Int64
	for range 250 {
		busy.Go(func() {
			for c := (&wireClient{fleet: steadyFleet(p), keep: true, text: wireGet}); ; answered.Add(1) {
				select {
				case <-stop:
					c.close()
					return
				default:
				}
				if err := c.ask(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer busy.Wait()
	defer close(stop)
	eventually(t, "all are busy", func() bool { return p.connections(t) >= 250 && answered.Load() > 500 })
	var idle []net.Conn
	for range 100 {
		conn := dialWire(t, p.proxy)
		idle = append(idle, conn)
	}
	eventually(t, "the proxy is full", func() bool {
		return p.metric(t, `r8limiter_connections_refused_total{listener="proxy",reason="connections"}`) > 0
	})
	var took []time.Duration
	for range 20 {
		start := time.Now()
		if got := rawAnswer(p.control, "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("/metrics: got %.200q, want 200", got)
		}
		took = append(took, time.Since(start))
	}
	middle := median(took)
	t.Logf("/metrics took %v, %v at most, beside %d requests on 250 of %d connections", middle, took[len(took)-1], answered.Load(), 250+len(idle))
	if middle > 5*time.Second || allFaults && middle > crowdMetrics {
		t.Errorf("/metrics took %v, want at most %v", middle, crowdMetrics)
	}
}
