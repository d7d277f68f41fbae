package proxy

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/r8limiter/r8limiter/limiter"
)

// rolloutRig is a proxy with one limit of 2 tokens, 4 in plan gold, for the users
// that X-User-Id names; change completes its one route.
func rolloutRig(t *testing.T, change func(rt *RouteConfig)) (*rig, *limiter.Limiter) {
	t.Helper()
	c := limiter.DefaultConfig()
	slow, err := limiter.ParseRate("1/h")
	if err != nil {
		t.Fatal(err)
	}
	c.Default = limiter.ResourceConfig{Capacity: 2, RefillRate: slow}
	c.Plans = map[string]map[string]limiter.ResourceConfig{"gold": {"all": {Capacity: 4, RefillRate: slow}}}
	lim := limiter.New(c, limiter.NewMemoryStore())
	rt := RouteConfig{Name: "all", Upstream: "api", UserID: []Template{template(t, "{header.X-User-Id}")}}
	change(&rt)
	pc := DefaultConfig()
	pc.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"echo:"}}}
	pc.Routes = []RouteConfig{rt}
	return startRig(t, pc, nil, lim), lim
}

// ask is the head of the answer to a request with these fields.
func (c *rawClient) ask(fields string) string {
	c.send("GET / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n")
	head, _, _ := strings.Cut(c.answer("GET"), "\r\n\r\n")
	return head
}

func isStatus(head, status string) bool { return strings.HasPrefix(head, "HTTP/1.1 "+status+" ") }

func TestShadowRouteDeniesNobody(t *testing.T) {
	rg, lim := rolloutRig(t, func(rt *RouteConfig) { rt.Shadow = true })
	c := rg.dial(t)
	for i := range 5 {
		head := c.ask("X-User-Id: ann\r\n")
		if !isStatus(head, "200") || strings.Contains(strings.ToLower(head), "ratelimit") {
			t.Errorf("request %d: %s", i, head)
		}
	}
	eventually(t, "the waived ones are logged", func() bool {
		return strings.Count(rg.log.String(), `"shadow_denied":"all"`) == 3 && strings.Count(rg.log.String(), `"decision":"allow"`) == 5
	})
	var b bytes.Buffer
	lim.WriteMetrics(&b)
	for _, line := range []string{
		`requests_total{result="allow"} 5`, `requests_total{result="deny"} 0`,
		`r8limiter_decisions_total{route="all",limit="default",outcome="shadow_deny",reason="tokens"} 3`,
	} {
		if !strings.Contains(b.String(), line+"\n") {
			t.Errorf("there is no %s in %s", line, b.String())
		}
	}
}

func TestOnlyTheShareIsDenied(t *testing.T) {
	var share limiter.Percent
	if err := share.UnmarshalText([]byte("30%")); err != nil {
		t.Fatal(err)
	}
	rg, _ := rolloutRig(t, func(rt *RouteConfig) { rt.Enforce = share })
	c := rg.dial(t)
	denied := 0
	const users = 200
	for i := range users {
		user := fmt.Sprint("user", i)
		var last string
		for range 3 {
			last = c.ask("X-User-Id: " + user + "\r\n")
		}
		if in := share.Includes("all", []byte(user)); in != isStatus(last, "429") || in != strings.Contains(last, "RateLimit:") {
			t.Errorf("%s, in the share: %t, got %s", user, in, last)
		} else if in {
			denied++
		}
	}
	if denied < users/5 || denied > users*2/5 {
		t.Errorf("%d of %d users are in 30%%", denied, users)
	}
}

func TestPlanOfARouteReplacesTheLimits(t *testing.T) {
	rg, _ := rolloutRig(t, func(rt *RouteConfig) { rt.Plan = template(t, "{header.X-Plan|lower}") })
	c := rg.dial(t)
	for i, want := range []string{"200", "200", "429"} {
		if head := c.ask("X-User-Id: ann\r\nX-Plan: Silver\r\n"); !isStatus(head, want) {
			t.Errorf("request %d without a plan of ours: %s, want %s", i, head, want)
		}
	}
	// The bucket is the same: two tokens of four are spent.
	for i, want := range []string{"200", "200", "429"} {
		if head := c.ask("X-User-Id: ann\r\nX-Plan: GOLD\r\n"); !isStatus(head, want) {
			t.Errorf("request %d of plan gold: %s, want %s", i, head, want)
		}
	}
	eventually(t, "the plan is logged", func() bool { return strings.Contains(rg.log.String(), `"plan":"gold"`) })
}
