package admin

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// put sends a JSON body.
func (g *gateway) put(t *testing.T, target, body string) (status, answer string) {
	t.Helper()
	return g.call(t, apiCall{method: "PUT", target: target, body: body})
}

// spend asks /allow n times and returns how many were allowed.
func (g *gateway) spend(t *testing.T, user, resource string, n int) (allowed int) {
	t.Helper()
	for range n {
		if status, _ := g.do(t, "POST", "/allow?user_id="+user+"&resource="+resource); status == "200" {
			allowed++
		}
	}
	return allowed
}

func TestBadChangesAreRefusedAndSayWhy(t *testing.T) {
	g := start(t, setup{})
	for _, c := range []struct{ target, body, want string }{
		{"/admin/user/a/override", `{"exempt":true,"block":true}`, `400 {"error":"write one of `},
		{"/admin/user/a/override", `{"capacity":5,"refill_rate":"1/s"}`, `400 {"error":"resource is missing`},
		{"/admin/user/a/override", `{"resource":"r","capacity":5}`, `400 {"error":"refill_rate is missing`},
		{"/admin/user/a/override", `{"resource":"r","capacity":-5,"refill_rate":"1/s"}`, `400 {"error":"capacity must be from 1`},
		{"/admin/user/a/override", `{"resource":"r","capacity":5,"refill_rate":"1/year"}`, `400 {"error":"read the body: rate \"1/year\": write a number and a unit`},
		{"/admin/user/a/override", `{"block":true,"ttl":"10"}`, `400 {"error":"ttl \"10\" is not a duration`},
		{"/admin/user/a/override", `{"block":true,"ttl":"-1s"}`, `400 {"error":"ttl \"-1s\" is not a duration`},
		{"/admin/user/a/override", `{"block":true,"ttl":"1ms"}`, `400 {"error":"ttl must be from 1s to`},
		{"/admin/user/a/override", `{"block":true,"reason":"` + strings.Repeat("x", 257) + `"}`, `400 {"error":"reason is longer than 256 bytes`},
		{"/admin/user/a/override", `{"blocked":true}`, `400 {"error":"read the body: unknown field \"blocked\"`},
		{"/admin/user/a/override", `{"block":"yes"}`, `400 {"error":"read the body: block must be true or false, not`},
		{"/admin/user/a/override", `{"block":true}{}`, `400 {"error":"read the body: something follows`},
		{"/admin/user/a/override", `[]`, `400 {"error":"read the body: `},
		{"/admin/user/a/override", `{`, `400 {"error":"read the body: unexpected EOF`},
		{"/admin/user/a/override?resource=r", `{"block":true}`, `400 {"error":"unknown parameter`},
		{"/admin/user/%ff/override", `{"block":true}`, `400 {"error":"user_id: it is not UTF-8`},
		{"/admin/resources/r", `{"capacity":5}`, `400 {"error":"refill_rate is missing`},
		{"/admin/resources/r", `{}`, `400 {"error":"has no limit`},
		{"/admin/resources/r", `{"capacity":5,"refill_rate":"1/s","limits":[]}`, `200`},
		{"/admin/resources/r", `{"limits":[{"name":"a","capacity":5,"refill_rate":"1/s"},{"name":"a","capacity":5,"refill_rate":"1/s"}]}`, `400 {"error":"limits[1].name \"a\" is the name of a limit before`},
		{"/admin/resources/r", `{"limits":[{"name":"a","shadow":true,"capacity":5,"refill_rate":"1/s"}]}`, `400 {"error":"limits are all shadows`},
		{"/admin/resources/%c3", `{"capacity":5,"refill_rate":"1/s"}`, `400 {"error":"resource: it is not UTF-8`},
		{"/admin/resources/a/b", `{"capacity":5,"refill_rate":"1/s"}`, `404 {"error":`},
	} {
		status, body := g.put(t, c.target, c.body)
		if got := status + " " + body; !strings.HasPrefix(got, c.want) {
			t.Errorf("%s %s:\ngot  %s\nwant %s", c.target, c.body, got, c.want)
		}
	}
	if _, body := g.do(t, "GET", "/admin/overrides"); body != `{"overrides":[]}` {
		t.Errorf("something was kept: %s", body)
	}
}

func TestChangeNeedsAJSONBody(t *testing.T) {
	g := start(t, setup{})
	for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""} {
		fields := []string{"Content-Length: 14"}
		if kind != "" {
			fields = append(fields, "Content-Type: "+kind)
		}
		answer := g.send(t, request("PUT", "/admin/user/a/override", fields...)+`{"block":true}`)
		if !strings.Contains(answer, " 400 ") || !strings.HasSuffix(answer, `{"error":"send the body as Content-Type: application/json"}`) {
			t.Errorf("%q: got %s", kind, answer)
		}
	}
	answer := g.send(t, request("PUT", "/admin/user/a/override", "Content-Type: application/json; charset=utf-8", "Content-Length: 14")+`{"block":true}`)
	if answer[9:12] != "200" {
		t.Errorf("got %s", answer)
	}
	large := fmt.Sprintf(`{"reason":"%s"}`, strings.Repeat("x", 70_000))
	if status, body := g.put(t, "/admin/user/a/override", large); status != "413" {
		t.Errorf("got %s %s", status, body)
	}
}

func TestBlockedUserGets403AndExemptAlwaysPasses(t *testing.T) {
	g := start(t, setup{limits: frozen(t, 2)})
	g.put(t, "/admin/user/bad/override", `{"block":true}`)
	g.put(t, "/admin/user/vip/override", `{"exempt":true}`)
	answer := g.send(t, request("POST", "/allow?user_id=bad"))
	if !strings.HasPrefix(answer, "HTTP/1.1 403 ") || field(answer, "Retry-After") != "" || field(answer, "RateLimit") != "" ||
		!strings.HasSuffix(answer, `{"allowed": false, "retry_after": 0.0, "tokens_left": 0.0, "error": "the user is blocked by an override"}`) {
		t.Errorf("blocked: got %s", answer)
	}
	if got := g.spend(t, "vip", "default", 9); got != 9 {
		t.Errorf("exempt: %d of 9 allowed", got)
	}
	if status, body := g.do(t, "POST", "/allow?user_id=vip&cost=100"); status+body != `200{"allowed": true, "retry_after": 0.0, "tokens_left": 2.0}` {
		t.Errorf("exempt with a cost above the capacity: %s %s", status, body)
	}
	if _, body := g.do(t, "GET", "/admin/user/vip"); !strings.Contains(body, `"overrides":[{"user_id":"vip","exempt":true}]`) || !strings.Contains(body, `"tokens":2.0`) {
		t.Errorf("got %s", body)
	}
	eventually(t, "both are counted by their reason", func() bool {
		_, metrics := g.do(t, "GET", "/metrics")
		return strings.Contains(metrics, `outcome="deny",reason="override"} 1`) && strings.Contains(metrics, `outcome="allow",reason="override"} 10`)
	})
}

func TestAuditSaysWhoChangedWhatAndWhen(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken}})
	auth := "Authorization: Bearer " + adminToken
	body := `{"capacity":7,"refill_rate":"1/s"}`
	g.call(t, apiCall{method: "PUT", target: "/admin/resources/a%2Fb", body: body}, auth, "X-Request-Id: change-1")
	g.call(t, apiCall{method: "POST", target: "/admin/user/ann/reset"}, auth)
	_, answer := g.call(t, apiCall{method: "GET", target: "/admin/audit"}, auth)
	var got struct{ Audit []limiter.AuditEntry }
	if err := json.Unmarshal([]byte(answer), &got); err != nil || len(got.Audit) != 2 {
		t.Fatalf("%v in %s", err, answer)
	}
	if e := got.Audit[0]; e.Action != "user.reset" || e.User != "ann" || time.Since(e.Time).Abs() > time.Minute {
		t.Errorf("got %+v", e)
	}
	e := got.Audit[1]
	if e.Action != "limits.set" || e.Resource != "a/b" || e.By != (limiter.Actor{ClientIP: "127.0.0.1", Auth: "token", RequestID: "change-1"}) || e.Gateway == "" {
		t.Errorf("got %+v", e)
	}
	if detail, _ := json.Marshal(e.Detail); string(detail) != body {
		t.Errorf("got %s, want %s", detail, body)
	}
	if strings.Contains(answer, adminToken) {
		t.Error("the token is in the audit trail")
	}
	_, answer = g.call(t, apiCall{method: "GET", target: "/admin/audit?n=1"}, auth)
	if strings.Count(answer, `"action"`) != 1 {
		t.Errorf("got %s", answer)
	}
}

func TestBadWindowsAreRefused(t *testing.T) {
	g := start(t, setup{})
	for query, want := range map[string]string{
		"window=1h&bucket=minute&top_n=10": `200 {"window":"1h","bucket":"minute","top_offenders":[]}`,
		"window=15m":                       `200 {"window":"15m","bucket":"minute","top_offenders":[]}`,
		"window=7d&bucket=hour":            `200 {"window":"7d","bucket":"hour","top_offenders":[]}`,
		"window=6h":                        `200 {"window":"6h","bucket":"minute","top_offenders":[]}`,
		"window=7h":                        `400 {"error":"window 7h is longer than buckets of one minute are kept: at most 6h0m0s; a longer bucket goes further back"}`,
		"window=32d&bucket=day":            `400 {"error":"window 32d is longer`,
		"window=0m":                        `400 {"error":"window \"0m\" is malformed`,
		"window=m":                         `400 {"error":"window \"m\" is malformed`,
		"window=":                          `400 {"error":"window \"\" is malformed`,
		"window=-1h":                       `400 {"error":"window \"-1h\" is malformed`,
		"window=1.5h":                      `400 {"error":"window \"1.5h\" is malformed`,
		"window=99999999999h":              `400 {"error":"window \"99999999999h\" is malformed`,
		"window=15s":                       `400 {"error":"window \"15s\" is malformed`,
		"bucket=week":                      `400 {"error":"bucket \"week\" is unknown`,
		"top_n=101":                        `400 {"error":"top_n \"101\" is not`,
		"top_n=1e1":                        `400 {"error":"top_n \"1e1\" is not`,
		"window=%zz":                       `400 {"error":"malformed escape`,
	} {
		status, body := g.do(t, "GET", "/admin/top_offenders?"+query)
		if got := status + " " + body; !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %s, want %s", query, got, want)
		}
	}
}

// TestTwoGatewaysAreOne makes every change on one and looks for it on the
// other, and after both have started anew.
func TestTwoGatewaysAreOne(t *testing.T) {
	socket := startRedis(t)
	open := func() *gateway {
		return start(t, setup{limits: frozen(t, 3), store: openRedis(t, socket), started: true})
	}
	a, b := open(), open()
	b.spend(t, "ann", "read", 4)
	a.put(t, "/admin/resources/read", `{"capacity":5,"refill_rate":"0.034/d"}`)
	a.put(t, "/admin/user/bad/override", `{"block":true}`)
	a.put(t, "/admin/user/big/override", `{"resource":"read","capacity":8,"refill_rate":"0.034/d"}`)
	changed := time.Now()
	eventually(t, "the other gateway blocks", func() bool { return b.spend(t, "bad", "read", 1) == 0 })
	eventually(t, "the other gateway has the persisted limit", func() bool {
		_, body := b.do(t, "GET", "/admin/resources")
		return strings.Contains(body, `"resource":"read","source":"persisted"`)
	})
	if took := time.Since(changed); took > time.Second {
		t.Errorf("in force only after %v", took)
	}
	if got := b.spend(t, "ann", "read", 9); got != 2 {
		t.Errorf("ann: %d allowed, want the 2 that the new capacity adds", got)
	}
	if got := b.spend(t, "big", "read", 20); got != 8 {
		t.Errorf("big: %d allowed, want 8", got)
	}
	a.do(t, "POST", "/admin/user/ann/reset")
	if got := b.spend(t, "ann", "read", 9); got != 5 {
		t.Errorf("after the reset: %d allowed, want 5", got)
	}
	c := open()
	if got := c.spend(t, "bad", "read", 1) + c.spend(t, "big", "read", 1); got != 0 {
		t.Error("a restart has lost an override")
	}
	_, audit := c.do(t, "GET", "/admin/audit")
	for _, action := range []string{"limits.set", "override.set", "user.reset"} {
		if !strings.Contains(audit, action) {
			t.Errorf("%s is not in the audit trail: %s", action, audit)
		}
	}
	eventually(t, "their figures add up", func() bool {
		_, body := a.do(t, "GET", "/admin/stats?top_n=1")
		return strings.Contains(body, `"allowed_total":18,`) && strings.Contains(body, `"active_keys":2,`) &&
			strings.Contains(body, `"top_offenders":[{"user_id":"big","denies":13}]`)
	})
}
