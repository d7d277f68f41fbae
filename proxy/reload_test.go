package proxy

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
)

// commit puts c in force on a running rig.
func (rg *rig) commit(t *testing.T, c Config) {
	t.Helper()
	c.Validate(func(string) int64 { return 1000 }, func(path, problem string) { t.Fatalf("%s: %s", path, problem) })
	rs, err := rg.p.Prepare(c, Terms{})
	if err != nil {
		t.Fatal(err)
	}
	rg.p.Commit(rs)
}

// series is what the proxy's metrics say, line by line.
func (rg *rig) series() string {
	var b bytes.Buffer
	rg.p.WriteMetrics(&b)
	return b.String()
}

func TestUnchangedUpstreamsKeepTheirConnections(t *testing.T) {
	up := startRaw(t, always(okAnswer))
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{up.target()}, HealthCheck: &HealthCheckConfig{}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api"}}
	rg := startRig(t, c, nil, newLimiter(t, 100))
	u := rg.p.rules.Load().upstreams["api"]
	cl := rg.dial(t)
	for i := range 5 {
		c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{up.target()}, Balance: "round_robin", HealthCheck: &HealthCheckConfig{Path: "/healthz"}}}
		rg.commit(t, c)
		cl.send(plainGet)
		if got := cl.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200") {
			t.Fatalf("request %d: %s", i, got)
		}
	}
	if rg.p.rules.Load().upstreams["api"] != u {
		t.Error("an upstream that is written with its defaults is another one")
	}
	asked := slices.DeleteFunc(up.recorded(), func(r string) bool { return strings.Contains(r, "/healthz") })
	if len(asked) != 5 || u.openConns() != 1 {
		t.Errorf("%d requests, %d connections open, want 5 over one", len(asked), u.openConns())
	}
}

func TestChangedUpstreamServesWhatItHasAndIsGone(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	old := startRaw(t, func(p *peer) {
		if _, ok := p.take(); ok {
			close(begun)
			<-goOn
			p.send(okAnswer)
			p.ended()
		}
	})
	fresh := startRaw(t, always(strings.Replace(okAnswer, "hi", "ho", 1)))
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{old.target()}}, "gone": {Targets: []string{old.target()}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api"}}
	rg := startRig(t, c, nil, newLimiter(t, 100))
	before := rg.p.rules.Load()
	waiting := rg.dial(t)
	waiting.send(plainGet)
	<-begun
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{fresh.target()}}}
	rg.commit(t, c)
	next := rg.dial(t)
	next.send(plainGet)
	if got := next.answer("GET"); !strings.HasSuffix(got, "ho") {
		t.Errorf("behind the reload: %s", got)
	}
	close(goOn)
	if got := waiting.answer("GET"); !strings.HasSuffix(got, "hi") {
		t.Errorf("the request before the reload: %s", got)
	}
	eventually(t, "the old connection is closed", func() bool { return before.upstreams["api"].openConns() == 0 })
	waiting.send(plainGet)
	if got := waiting.answer("GET"); !strings.HasSuffix(got, "ho") {
		t.Errorf("the same client's next request: %s", got)
	}
}

// TestRetiredUpstreamStillDials is about a request that found its route just
// before a reload.
func TestRetiredUpstreamStillDials(t *testing.T) {
	up := startRaw(t, always(okAnswer))
	u := upstreamTo(t, up.target())
	u.start()
	u.retire()
	for range 3 {
		mustAnswer(t, u, "hi")
	}
	if up.connections() != 3 || u.openConns() != 0 {
		t.Errorf("%d connections, %d open; want 3, each closed behind its request", up.connections(), u.openConns())
	}
}

func TestSeriesFollowTheRoutesAndUpstreams(t *testing.T) {
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"echo:"}}, "other": {Targets: []string{"http://127.0.0.1:9"}}}
	c.Routes = []RouteConfig{{Name: "stays", Upstream: "api"}, {Name: "goes", Match: MatchConfig{Path: []string{"/goes"}}, Upstream: "api"}}
	rg := startRig(t, c, nil, newLimiter(t, 100))
	cl := rg.dial(t)
	ask := func() {
		cl.send(plainGet)
		cl.answer("GET")
	}
	ask()
	const count = `request_latency_seconds_count{endpoint="stays"} `
	eventually(t, "the request is counted", func() bool { return strings.Contains(rg.series(), count+"1\n") })
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"echo:"}}, "new": {Targets: []string{"http://127.0.0.1:9"}}}
	c.Routes = []RouteConfig{{Name: "stays", Upstream: "api"}, {Name: "comes", Upstream: "new"}}
	rg.commit(t, c)
	ask()
	eventually(t, "the counter goes on", func() bool { return strings.Contains(rg.series(), count+"2\n") })
	now := rg.series()
	for text, want := range map[string]bool{`"goes"`: false, `"other"`: false, `"comes"`: true, `r8limiter_upstream_targets{upstream="new",state="healthy"} 1`: true} {
		if strings.Contains(now, text) != want {
			t.Errorf("%s is there: %t, want %t", text, !want, want)
		}
	}
}

func TestLimitsOfClientsFollow(t *testing.T) {
	rg := newRig(t, 100, okAnswer)
	c := DefaultConfig()
	c.Limits.TargetBytes, c.Limits.KeepAliveTimeout = 20, 50*time.Millisecond
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"echo:"}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api"}}
	rg.commit(t, c)
	if got := rg.statusOf(t, "GET /"+strings.Repeat("a", 20)+" HTTP/1.1\r\nHost: a\r\n\r\n"); got != "414" {
		t.Errorf("got %s for a target that is too long now, want 414", got)
	}
	cl := rg.dial(t)
	cl.send(plainGet)
	cl.answer("GET")
	cl.wantClosed()
}

// narrow puts limits in force that a body of 3,000 bytes breaks by its size, and in a
// moment by its pace if body_timeout is short.
func (rg *rig) narrow(t *testing.T, bodyTimeout time.Duration) {
	t.Helper()
	c := *rg.p.Rules().config
	c.Limits.BodyBytes, c.Limits.BodyTimeout = 1000, bodyTimeout
	rg.commit(t, c)
}

// A request that has begun ends by the limits that it began with.
func TestLimitsOfRunningUploadsStay(t *testing.T) {
	half := strings.Repeat("x", 1500)
	for framing, text := range map[string][2]string{
		"Content-Length: 3000":       {half, half},
		"Transfer-Encoding: chunked": {"5dc\r\n" + half + "\r\n", "5dc\r\n" + half + "\r\n0\r\n\r\n"},
	} {
		rg, up := rawRig(t, 10, always(okAnswer), nil)
		cl := rg.dial(t)
		cl.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + framing + "\r\n\r\n")
		cl.answer("HEAD") // the 100: the request has begun
		rg.narrow(t, time.Millisecond)
		cl.send(text[0])
		time.Sleep(20 * time.Millisecond) // longer than body_timeout is now
		cl.send(text[1])
		if got := cl.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 200 ") || len(up.recorded()) != 1 {
			t.Errorf("%s: got %q, want 200", framing, got)
		}
		rg.narrow(t, time.Minute)
		cl.send("POST / HTTP/1.1\r\nHost: a\r\n" + framing + "\r\n\r\n" + text[0] + text[1])
		if got := cl.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 413 ") {
			t.Errorf("%s: got %q for the next request, want 413", framing, got)
		}
	}
}

func TestLimitsOfRunningUploadsOfHTTP2Stay(t *testing.T) {
	rg := newH2Rig(t, 10, always(okAnswer), nil)
	cl := rg.dialH2(t)
	half := bytes.Repeat([]byte("x"), 1500)
	cl.post(1, "/", "expect", "100-continue")
	if got := cl.status(); got != "100" {
		t.Fatalf("got %s, want 100", got)
	}
	rg.narrow(t, time.Millisecond)
	cl.must(cl.WriteData(1, false, half))
	time.Sleep(20 * time.Millisecond) // longer than body_timeout is now
	cl.must(cl.WriteData(1, true, half))
	if got := cl.status(); got != "200" {
		t.Errorf("got %s, want 200", got)
	}
	rg.narrow(t, time.Minute)
	cl.post(3, "/")
	cl.must(cl.WriteData(3, false, half))
	if got := cl.status(); got != "413" {
		t.Errorf("got %s for the next request, want 413", got)
	}
}

// What waits for its next request is not held to limits of before.
func TestLimitsOfIdleConnectionsFollow(t *testing.T) {
	rg, _ := rawRig(t, 10, always(okAnswer), func(c *Config) { c.Limits.HeaderBytes, c.Limits.TargetBytes = 2000, 1000 })
	cl := rg.dial(t)
	cl.send(plainGet)
	cl.answer("GET")
	c := *rg.p.Rules().config
	c.Limits.HeaderBytes = 8000
	rg.commit(t, c)
	cl.send("GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + strings.Repeat("x", 4000) + "\r\n\r\n")
	if got := cl.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("got %q, want 200", got)
	}
}
