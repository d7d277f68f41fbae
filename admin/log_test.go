package admin

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/r8limiter/r8limiter/limiter"
)

// loggedLines are the next n lines about requests of g's log, without what is never the same.
func loggedLines(t *testing.T, g *gateway, level string, n int) (lines []map[string]any) {
	t.Helper()
	eventually(t, "all is logged", func() bool {
		lines = parseLog(t, g.log.String(), level)
		return len(lines) == n
	})
	for _, l := range lines {
		for _, name := range []string{"level", "listener", "request_id", "duration_ms", "bytes", "tokens_left", "retry_after"} {
			if l[name] == nil && name != "tokens_left" && name != "retry_after" {
				t.Errorf("%v has no %s", l, name)
			}
			delete(l, name)
		}
	}
	return lines
}

func TestCheckLogsWhatWasDescribed(t *testing.T) {
	g := start(t, setup{})
	about := func(uri string, fields ...string) []string {
		return append([]string{"X-Forwarded-Method: PUT", "X-Forwarded-Uri: " + uri, "X-Forwarded-For: 192.0.2.9", "X-User-Id: ann",
			"Authorization: Bearer s3cret", "Cookie: sid=s3cret"}, fields...)
	}
	of := func(m map[string]any) map[string]any {
		return with(map[string]any{"endpoint": "/check", "method": "PUT", "route": "items", "client_ip": "192.0.2.9", "peer": "127.0.0.1"}, m)
	}
	charged := func(m map[string]any) map[string]any {
		return of(with(map[string]any{"user_id": "ann", "resource": "items", "cost": 1.0, "limit": "items"}, m))
	}
	want := []map[string]any{}
	ask := func(line string, fields []string, logged map[string]any) {
		method, target, _ := strings.Cut(line, " ")
		g.do(t, method, target, fields...)
		want = append(want, logged)
	}
	const refusing = "GET /check?deny_status=403"
	ask(refusing, about("/v1/items/7?token=s3cret"), charged(map[string]any{"path": "/v1/items/7", "decision": "allow", "status": 200.0}))
	ask("GET /check", about("/gold?s3cret"), charged(map[string]any{"path": "/gold", "plan": "gold", "decision": "allow", "status": 200.0}))
	ask("GET /check", about("https://u:s3cret@h/a?s3cret"), charged(map[string]any{"path": "/a", "decision": "allow", "status": 200.0}))
	ask("GET /check", about("/cost/11?s3cret"), charged(map[string]any{"path": "/cost/11", "cost": 11.0, "decision": "deny", "status": 429.0}))
	ask(refusing, about("/cost/8"), charged(map[string]any{"path": "/cost/8", "cost": 8.0, "decision": "deny", "status": 403.0, "own_status": 429.0}))
	ask(refusing, about("/nowhere"), of(map[string]any{"path": "/nowhere", "status": 403.0, "own_status": 404.0, "error": "refused"}))
	ask(refusing, about("/blocked"), of(map[string]any{"path": "/blocked", "status": 403.0, "error": "refused"}))
	ask("GET /check", about("/login?s3cret"), of(map[string]any{"path": "/login", "status": 401.0, "error": "refused"}))
	ask("GET /check", about("/free?s3cret"), of(map[string]any{"path": "/free", "status": 200.0}))
	ask("POST /check/admin/user/x?s3cret", []string{"X-Forwarded-For: 192.0.2.9", "X-User-Id: ann"},
		charged(map[string]any{"method": "POST", "path": "/admin/user/x", "decision": "allow", "status": 200.0}))
	// Where nothing is described the question itself is logged, as any other.
	ask("GET /check?deny_status=s3cret", about("/a"), map[string]any{"method": "GET", "path": "/check", "status": 400.0, "client_ip": "127.0.0.1"})
	ask(refusing, []string{"X-Forwarded-For: 192.0.2.9"}, map[string]any{"method": "GET", "path": "/check", "status": 403.0, "own_status": 400.0, "client_ip": "127.0.0.1"})
	if diff := cmp.Diff(want, loggedLines(t, g, "info", len(want))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if strings.Contains(g.log.String(), "s3cret") {
		t.Errorf("there is a secret in %s", g.log.String())
	}
}

func TestStoreTroubleAtCheckIsAWarningWhateverIsAnswered(t *testing.T) {
	c := frozen(t, 10)
	c.OnStoreError = limiter.StandInDeny
	g := start(t, setup{limits: c, store: brokenStore{limiter.NewMemoryStore()}})
	g.do(t, "GET", "/check?deny_status=403", "X-Forwarded-Uri: /a", "X-Forwarded-For: 192.0.2.9")
	got := loggedLines(t, g, "warn", 1)[0]
	if got["status"] != 403.0 || got["own_status"] != 503.0 || got["decision"] != "error" || got["error"] == nil {
		t.Errorf("got %v", got)
	}
}

func TestAllowLogsThePlanAndWhatWasReplayed(t *testing.T) {
	g := start(t, setup{})
	for range 2 {
		g.do(t, "POST", "/allow?user_id=ann&resource=r&plan=gold&cost=2&idempotency=k1")
	}
	g.do(t, "POST", "/allow?user_id=ann&resource=r&plan=gold&cost=3&idempotency=k1")
	line := map[string]any{"method": "POST", "path": "/allow", "client_ip": "127.0.0.1", "user_id": "ann", "resource": "r", "plan": "gold", "cost": 2.0}
	want := []map[string]any{
		with(line, map[string]any{"decision": "allow", "limit": "r", "status": 200.0}),
		with(line, map[string]any{"decision": "allow", "limit": "r", "replayed": true, "status": 200.0}),
		with(line, map[string]any{"cost": 3.0, "decision": "error", "status": 422.0}),
	}
	if diff := cmp.Diff(want, loggedLines(t, g, "info", 3)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLoggedPathIsNoMoreThanAPath(t *testing.T) {
	for target, want := range map[string]string{
		"/": "/", "/a/b?c": "/a/b", "/a#b?c": "/a", "/a;p=1": "/a;p=1", "*": "*", "/x://y?z": "/x://y",
		"https://u:p@h/a?b": "/a", "https://h": "", "https://h?q": "", "https://u:p@h#/f": "", "u:p@h/a": "", "://": "", "": "",
	} {
		if got := string(pathOf([]byte(target))); got != want {
			t.Errorf("%s: got %s, want %s", target, got, want)
		}
	}
}
