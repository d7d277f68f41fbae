package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// installed is the path of a program of the distribution, which `make test` or
// `make test-faults` installs.
func installed(t *testing.T, name string) string {
	t.Helper()
	for _, file := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(file); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing: run make test-faults for it, or install it", name)
	return ""
}

// freeAddress is an address that nobody listened on a moment ago, on a port that
// the system gives to no outgoing connection.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(22_000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("there is no free port")
	return ""
}

// haproxy is a HAProxy in front of gateways.
type haproxy struct{ front, stats string }

// haproxyConfig forgives nothing: a request that fails is not tried again.
// http-reuse always sends also the first request of a client over a kept
// connection.
const haproxyConfig = `
global
  maxconn 2000
defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
  option http-keep-alive
  http-reuse always
  retries 0
frontend front
  bind %s
  default_backend gateways
backend gateways
  balance roundrobin
  option httpchk GET /readyz
  http-check expect status 200
  default-server inter 200ms fall 1 rise 1
  %s
listen stats
  bind %s
  stats enable
  stats uri /
`

// startHAProxy runs HAProxy until the test ends. Each server is the address of
// a gateway and of its control listener.
func startHAProxy(t *testing.T, servers [][2]string) *haproxy {
	t.Helper()
	h := &haproxy{front: freeAddress(t), stats: freeAddress(t)}
	var lines []string
	for i, s := range servers {
		_, port, _ := net.SplitHostPort(s[1])
		lines = append(lines, fmt.Sprintf("server s%d %s check port %s", i, s[0], port))
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	write(t, file, fmt.Appendf(nil, haproxyConfig, h.front, strings.Join(lines, "\n  "), h.stats))
	c := exec.Command(installed(t, "haproxy"), "-db", "-f", file)
	log := &processLog{}
	c.Stderr = log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			t.Logf("HAProxy: %s", log.lines())
		}
	})
	eventually(t, "HAProxy listens", func() bool {
		resp, err := http.Get("http://" + h.stats + "/;csv")
		if err != nil {
			return false
		}
		drop(resp)
		return true
	})
	return h
}

// awaitUp waits until HAProxy uses a server.
func (h *haproxy) awaitUp(t *testing.T, server int) {
	t.Helper()
	up := regexp.MustCompile(fmt.Sprintf(`(?m)^gateways,s%d,.*,UP,`, server))
	eventually(t, "HAProxy uses the gateway", func() bool {
		_, table := ask(t, "http://"+h.stats+"/;csv")
		return up.MatchString(table)
	})
}

// Two gateways behind HAProxy are restarted in turn, on their ports, under load
// over kept and fresh connections. Nobody gets an error.
func TestWireRollingRestartBehindHAProxyFailsNoRequest(t *testing.T) {
	if !allFaults {
		t.Skip("with FAULTS=all only: it wants HAProxy")
	}
	upstream := wireUpstream(t, nil)
	var servers [][2]string
	for range 2 {
		servers = append(servers, [2]string{freeAddress(t), freeAddress(t)})
	}
	begin := func(i int) *process {
		p := startProcess(t, fmt.Sprintf(`
proxy:
  listen: %q
  drain_delay: 1s
  trusted_proxies: [127.0.0.0/8]
  upstreams: {api: {targets: [%q]}}
  routes: [{name: all, upstream: api}]
limiter: {default: {capacity: %d, refill_rate: 1/d}}
admin: {listen: %q}
log: {requests: none}
`, servers[i][0], upstream, drainCapacity, servers[i][1]))
		p.awaitReady(t)
		return p
	}
	gateways := []*process{begin(0), begin(1)}
	h := startHAProxy(t, servers)
	front := &instance{addr: h.front}
	front.serves.Store(true)
	h.awaitUp(t, 0)
	h.awaitUp(t, 1)
	load := startLoad(&fleet{instances: []*instance{front}}, 2500*time.Microsecond, 24)
	for restart := range 10 {
		load.await(t, 200)
		i := restart % 2
		gateways[i].signal(t, syscall.SIGTERM)
		if code, _ := gateways[i].within(t, 30*time.Second); code != exitFine {
			t.Errorf("exit code %d, want 0: %s", code, gateways[i].log.lines())
		}
		gateways[i] = begin(i)
		h.awaitUp(t, i)
	}
	load.await(t, 200)
	load.end(t)
}
