package admin

import (
	"strings"
	"testing"

	"github.com/r8limiter/r8limiter/limiter"
)

// What a reload puts in force holds for the next request, on connections that are open too.
func TestCommitReplacesWhatTheListenerGoesBy(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken, AllowToken: allowToken}, shown: "old"})
	auth := func(token string) string { return "Authorization: Bearer " + token }
	const other, another = "another-token-of-admin", "another-token-of-allow"
	ask := func(want, method, target, token string) {
		t.Helper()
		if answer := g.send(t, request(method, target, auth(token))); answer[9:12] != want {
			t.Errorf("%s by %s: got %.200q, want %s", target, token, answer, want)
		}
	}
	ask("200", "GET", "/admin/config", adminToken)
	ask("200", "POST", "/allow?user_id=a", allowToken)
	g.Commit(NewSettings(Config{Token: other, AllowToken: another}, Terms{LogRequests: "none", Config: "new"}))
	logged := len(g.log.String())
	ask("401", "GET", "/admin/config", adminToken)
	ask("401", "POST", "/allow?user_id=a", allowToken)
	ask("200", "POST", "/allow?user_id=a", another)
	if answer := g.send(t, request("GET", "/admin/config", auth(other))); !strings.HasSuffix(answer, `"new"`) {
		t.Errorf("got %q, want the new configuration", answer)
	}
	if lines := g.log.String()[logged:]; lines != "" {
		t.Errorf("logged %s", lines)
	}
	g.Commit(NewSettings(Config{}, Terms{}))
	if answer := g.send(t, request("POST", "/allow?user_id=a")); answer[9:12] != "200" {
		t.Errorf("without a token: got %q", answer)
	}
}

func TestReadinessFollowsACommit(t *testing.T) {
	limits := frozen(t, 10)
	g := start(t, setup{limits: limits, store: deadStore{limiter.NewMemoryStore()}})
	for _, c := range []struct {
		when bool
		want string
	}{{false, "503"}, {true, "200"}, {false, "503"}} {
		g.Commit(NewSettings(Config{ReadyWhenDegraded: c.when}, Terms{}))
		if answer := g.send(t, request("GET", "/readyz")); answer[9:12] != c.want {
			t.Errorf("ready_when_degraded %v: got %q, want %s", c.when, answer, c.want)
		}
	}
}

func TestReloadIsAnsweredByWhatBecameOfIt(t *testing.T) {
	g := start(t, setup{reload: someReloads()})
	for _, want := range []string{
		`200 {"reloaded":true,"changed":true,"needs_restart":["proxy.listen","limiter.redis"]}`,
		`200 {"reloaded":true,"changed":true,"needs_restart":[],"warnings":[{"line":2,"column":3,"path":"admin.token","message":"is in clear text"}]}`,
		`200 {"reloaded":true,"changed":false,"needs_restart":[]}`,
		`422 {"error":"the configuration can't be put in force: the old one stays as it is","problems":[{"line":1,"column":1,"path":"","message":"the file is empty"},{"line":3,"column":7,"path":"admin.token","message":"is short"}]}`,
		`409 {"error":"there is no file"}`,
	} {
		status, body := g.do(t, "POST", "/admin/reload")
		if got := status + " " + body; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	_, audit := g.do(t, "GET", "/admin/audit")
	if n := strings.Count(audit, `"action":"config.reload","by":{"client_ip":"127.0.0.1"`); n != 3 {
		t.Errorf("%d entries, want one for each reload that changed something or failed: %s", n, audit)
	}
	for _, detail := range []string{`{"needs_restart":["proxy.listen","limiter.redis"],"result":"applied"}`, `{"result":"applied"}`, `{"problems":2,"result":"failed"}`} {
		if strings.Count(audit, `"detail":`+detail) != 1 {
			t.Errorf("there is no one entry with %s in %s", detail, audit)
		}
	}
}

// A reload is done, and said to be, whether the store takes the entry or not.
func TestReloadIsDoneWhereTheAuditTrailIsAway(t *testing.T) {
	g := start(t, setup{store: deadStore{limiter.NewMemoryStore()}, reload: func() Reloaded { return Reloaded{Changed: true} }})
	if status, body := g.do(t, "POST", "/admin/reload"); status != "200" {
		t.Errorf("got %s %s", status, body)
	}
	if !strings.Contains(g.log.String(), "missing in the audit trail") {
		t.Errorf("logged %s", g.log.String())
	}
}
