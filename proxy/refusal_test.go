package proxy

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
)

// lines are those of the log so far, decoded.
func (rg *rig) lines(t *testing.T) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(rg.log.String()) {
		var each map[string]any
		if err := json.Unmarshal([]byte(line), &each); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		all = append(all, each)
	}
	return all
}

func TestUnreadableRequestsAreLoggedWithTheirSenderAndNothingOfTheirs(t *testing.T) {
	rg := newRig(t, 10, okAnswer)
	for _, raw := range []string{
		"GET /x\r\nHost: a\r\nAuthorization: Bearer hush\r\nCookie: sid=hush\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer hush\x01\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: a\r\nX-Api-Key hush\r\n\r\n",
		"GET /x\r\nX: hush" + strings.Repeat("\x01", 12_000) + "\r\n\r\n",
	} {
		before := len(rg.lines(t))
		c := rg.dial(t)
		c.send(raw)
		if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%.60q: got %.60q, want 400", raw, got)
		}
		c.wantClosed()
		lines := rg.lines(t)
		if len(lines) != before+1 {
			t.Fatalf("%d lines", len(lines)-before)
		}
		line := lines[before]
		if line["client_ip"] != "127.0.0.1" || line["request_id"] == "" || line["request_id"] == nil || line["error"] == nil {
			t.Errorf("%.60q: logged %v", raw, line)
		}
	}
	if log := rg.log.String(); strings.Contains(log, "hush") || len(log) > 4000 {
		t.Errorf("%d bytes of log: %.300s", len(log), log)
	}
}

func TestConnectIs405(t *testing.T) {
	c := newRig(t, 10, okAnswer).dial(t)
	c.send("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n")
	if got := c.answer("CONNECT"); !strings.HasPrefix(got, "HTTP/1.1 405 ") {
		t.Errorf("got %q", got)
	}
}

// statusOf is the status that raw gets on a connection of its own.
func (rg *rig) statusOf(t *testing.T, raw string) string {
	t.Helper()
	c := rg.dial(t)
	c.send(raw)
	got := c.answer("GET")
	if len(got) < 12 {
		t.Fatalf("got %q", got)
	}
	return got[9:12]
}

func TestHostWithATrailingDotIsTheSameHost(t *testing.T) {
	rg, up := rawRig(t, 1, always(okAnswer), func(c *Config) {
		c.Routes = []RouteConfig{
			{Name: "api", Match: MatchConfig{Host: []string{"api.example.com"}}, Action: "block"},
			{Name: "rest", Upstream: "api"},
		}
	})
	for _, host := range []string{"api.example.com", "API.example.com.", "api.example.com.:8080"} {
		if got := rg.statusOf(t, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); got != "403" {
			t.Errorf("%s: got %s, want 403", host, got)
		}
	}
	for _, host := range []string{".", "..", ".:80"} {
		if got := rg.statusOf(t, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); got != "400" {
			t.Errorf("%s: got %s, want 400", host, got)
		}
	}
	c := rg.dial(t)
	c.send("GET / HTTP/1.1\r\nHost: other.example.\r\n\r\n")
	c.answer("GET")
	if got := up.recorded(); !strings.Contains(got[len(got)-1], "Host: other.example.\r\n") {
		t.Errorf("the upstream got %q, want the Host as it came", got)
	}
}

func TestFieldsThatDecideMustBeThereOnceAndReachTheUpstream(t *testing.T) {
	rg, _ := rawRig(t, 1, always(okAnswer), func(c *Config) {
		c.Routes = []RouteConfig{
			{Name: "vip", Match: MatchConfig{Headers: map[string]ValueMatch{"X-Tier": {Exact: "gold"}}}, Upstream: "api", Action: "bypass"},
			{Name: "rest", Upstream: "api"},
		}
	})
	for fields, want := range map[string]string{
		"X-Tier: gold\r\n":                          "200",
		"x-tier: gold\r\nConnection: close\r\n":     "200",
		"X-Tier: silver\r\nX-Tier: gold\r\n":        "400",
		"X-Tier: gold\r\nX-Tier: gold\r\n":          "400",
		"X-Tier: gold\r\nConnection: x-tier\r\n":    "400",
		"X-Tier: gold\r\nConnection: a, X-Tier\r\n": "400",
	} {
		if got := rg.statusOf(t, "GET / HTTP/1.1\r\nHost: a\r\n"+fields+"\r\n"); got != want {
			t.Errorf("%q: got %s, want %s", fields, got, want)
		}
	}
}

func TestUnderscoreSpellingsOfForwardingFieldsAreDropped(t *testing.T) {
	rg, up := rawRig(t, 9, always(okAnswer), nil)
	c := rg.dial(t)
	c.send("GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 8.8.8.8\r\nx-forwarded_proto: https\r\nX_Request_Id: 1\r\nX_Own: kept\r\nX-Request-Id: r\r\n\r\n")
	c.answer("GET")
	want(t, "request", up.recorded()[0], "GET / HTTP/1.1\r\nHost: a\r\nX_Own: kept\r\nX-Request-Id: r\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n\r\n")
}

func TestOutageIsNeverSilent(t *testing.T) {
	p := &Proxy{options: Options{Log: zerolog.New(io.Discard)}}
	quiet := &Rules{logRequests: LogNone}
	now := time.Now()
	first := exchange{proxy: p, rules: quiet, status: 503, cause: errors.New("down"), start: now}
	if e := first.event(); e == nil {
		t.Error("the first trouble is not logged")
	} else {
		e.Send()
	}
	soon := first
	soon.start = now.Add(time.Second / 2)
	if e := soon.event(); e != nil {
		t.Error("trouble is logged twice within a second")
	}
	later := first
	later.start = now.Add(2 * time.Second)
	if e := later.event(); e == nil {
		t.Error("an outage that goes on is not logged again")
	} else {
		e.Send()
	}
	fine := exchange{proxy: p, rules: quiet, status: 200, start: now.Add(time.Hour)}
	if e := fine.event(); e != nil {
		t.Error("a request is logged though none are to be")
	}
}

func TestShadowDenialsAreLogged(t *testing.T) {
	limits := limiter.DefaultConfig()
	rate, _ := limiter.ParseRate("1/h")
	limits.Resources = map[string]limiter.ResourceConfig{"all": {Limits: []limiter.LimitConfig{
		{Name: "real", Capacity: 9, RefillRate: rate},
		{Name: "next", Shadow: true, Capacity: 1, RefillRate: rate},
	}}}
	up := startRaw(t, always(okAnswer))
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{up.target()}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api"}}
	rg := startRig(t, c, nil, limiter.New(limits, limiter.NewMemoryStore()))
	client := rg.dial(t)
	for range 2 {
		client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		client.answer("GET")
	}
	client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	client.answer("GET")
	client.wantClosed()
	lines := rg.lines(t)
	if lines[0]["shadow_denied"] != nil || lines[1]["shadow_denied"] != "next" || lines[1]["decision"] != "allow" {
		t.Errorf("got %v", lines)
	}
}

func TestUnknownFaultOfARequestIsForTheLogOnly(t *testing.T) {
	rg := newRig(t, 10, okAnswer)
	far, near := tcpPair(t)
	c := newClientConn(rg.p.server, near)
	rg.p.serve(c, netip.MustParseAddr("127.0.0.1"), errors.New("open /etc/hush"))
	_ = near.CloseWrite()
	got, err := io.ReadAll(far)
	if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 400 ") || !strings.Contains(string(got), "the request can't be read") {
		t.Errorf("got %q, %v", got, err)
	}
	if strings.Contains(string(got), "hush") {
		t.Errorf("the client was told the cause: %q", got)
	}
	if log := rg.log.String(); !strings.Contains(log, "open /etc/hush") {
		t.Errorf("the cause is not in the log: %s", log)
	}
}
