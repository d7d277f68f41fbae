package admin

import (
	"strings"
	"testing"
)

// changes are requests that change something.
var changes = []string{
	request("POST", "/admin/user/ann/reset"),
	put("/admin/user/ann/override", `{"block":true}`),
	request("DELETE", "/admin/user/ann/override"),
	put("/admin/resources/read", `{"capacity":1,"refill_rate":"1/s"}`),
	request("DELETE", "/admin/resources/read"),
}

// from is raw with an Origin and more fields.
func from(origin, raw string, fields ...string) string {
	all := append([]string{"Host: localhost", "Origin: " + origin}, fields...)
	return strings.Replace(raw, "Host: localhost", strings.Join(all, "\r\n"), 1)
}

func TestWebPagesMayNotChangeAnythingOnTheirVisitorsMachine(t *testing.T) {
	g := start(t, setup{})
	for _, raw := range changes {
		for _, origin := range []string{"https://evil.example", "null", "http://localhost:8000", ""} {
			if answer := g.send(t, from(origin, raw)); answer[9:12] != "403" || !strings.Contains(answer, "/admin is not for web pages") {
				t.Errorf("Origin %q, %.60q: got %q, want 403", origin, raw, answer)
			}
		}
	}
	if got := g.says(t, "GET", "/admin/audit", ""); got != `200 {"audit":[]}` {
		t.Errorf("got %s, want that nothing changed", got)
	}
}

func TestOriginIsNoMatterWhereATokenIsAskedFor(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken}})
	for _, raw := range changes {
		answer := g.send(t, from("https://ui.example", raw, "Authorization: Bearer "+adminToken))
		if got := answer[9:12]; got != "200" {
			t.Errorf("%.60q: got %q, want 200", raw, answer)
		}
		if strings.Contains(answer, "Access-Control-") {
			t.Errorf("%.60q: got a CORS field in %q", raw, answer)
		}
	}
}

// A preflight is how a browser asks; what is not allowed by a field of the
// answer, it refuses to send or to show.
func TestPreflightsAreRefusedWithoutACORSField(t *testing.T) {
	for _, config := range []Config{{}, {Token: adminToken, AllowToken: allowToken}} {
		g := start(t, setup{config: config})
		g.strangers = true
		for _, o := range readDocument(t, nil).operations() {
			for _, method := range []string{"OPTIONS", o.method} {
				raw := from("https://evil.example", request(method, o.example()), "Access-Control-Request-Method: "+o.method, "Access-Control-Request-Headers: authorization")
				answer := g.send(t, raw)
				if method == "OPTIONS" && answer[9] != '4' {
					t.Errorf("OPTIONS %s: got %q, want that it is refused", o.example(), answer)
				}
				if strings.Contains(strings.ToLower(answer), "access-control-") {
					t.Errorf("%s %s: got a CORS field in %q", method, o.example(), answer)
				}
			}
		}
	}
}
