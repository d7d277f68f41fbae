package admin

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/r8limiter/r8limiter/limiter"
)

// says is the status and the body of the answer to a request with a JSON body,
// if any. Tokens have one decimal: frozen limits gain a millionth in 3 seconds.
func (g *gateway) says(t *testing.T, method, target, body string) string {
	t.Helper()
	raw := request(method, target)
	if body != "" {
		raw = strings.Replace(put(target, body), "PUT", method, 1)
	}
	head, answer, ok := strings.Cut(g.send(t, raw), "\r\n\r\n")
	if !ok || len(head) < 12 {
		t.Fatalf("%s %s: got %q", method, target, head)
	}
	return head[9:12] + " " + millionths.ReplaceAllString(answer, "$1")
}

var millionths = regexp.MustCompile(`(tokens(?:_left)?": ?\d+\.\d)0*\d`)

// step is a request and what must be said; "" for any 200.
type step struct{ method, target, body, want string }

func (g *gateway) walk(t *testing.T, steps []step) {
	t.Helper()
	for i, s := range steps {
		if got := g.says(t, s.method, s.target, s.body); got != s.want && (s.want != "" || got[:3] != "200") {
			t.Errorf("step %d: %s %s %s\n got %s\nwant %s", i, s.method, s.target, s.body, got, s.want)
		}
	}
}

const (
	full   = `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 10.0}`
	barred = `403 {"allowed": false, "retry_after": 0.0, "tokens_left": 0.0, "error": "the user is blocked by an override"}`
	noneOf = `404 {"error":"this user has no such override"}`
)

// The bytes that are compared in these tests are what openapi.yaml says.
func TestBlockedAnswerIsTheOneDocumented(t *testing.T) {
	d := readDocument(t, nil)
	_, schema := d.find("#/components/schemas/Blocked")
	if err := d.valid(schema, barred[4:]); err != nil {
		t.Error(err)
	}
}

func TestLimitOfAUsersOwnHoldsForThatUserAndResource(t *testing.T) {
	g := start(t, setup{})
	own := `{"user_id":"a/b","resource":"read","capacity":20,"refill_rate":"0.034/d","reason":"load test"}`
	g.walk(t, []step{
		{"POST", "/allow?user_id=a/b&resource=read&cost=5", "", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 5.0}`},
		{"PUT", "/admin/user/a%2Fb/override", `{"resource":"read","capacity":20,"refill_rate":"0.034/d","reason":"load test"}`, "200 " + own},
		{"GET", "/admin/overrides", "", `200 {"overrides":[` + own + `]}`},
		// What was spent before stays spent.
		{"POST", "/allow?user_id=a/b&resource=read&cost=3", "", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 12.0}`},
		{"POST", "/allow?user_id=a/b&resource=other&cost=11", "", `400 {"error":"cost 11 exceeds the capacity 10 of limit \"other\": it can never pass"}`},
		{"POST", "/allow?user_id=bob&resource=read&cost=11", "", `400 {"error":"cost 11 exceeds the capacity 10 of limit \"read\": it can never pass"}`},
		{"DELETE", "/admin/user/a%2Fb/override?resource=other", "", noneOf},
		{"DELETE", "/admin/user/a/override", "", noneOf},
		{"DELETE", "/admin/user/a%2Fb/override?resource=read", "", `200 {"overrides":[]}`},
		{"DELETE", "/admin/user/a%2Fb/override", "", noneOf},
		{"POST", "/allow?user_id=a/b&resource=read&cost=0", "", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 2.0}`},
	})
	_, shown := g.do(t, "GET", "/admin/user/a%2Fb")
	if strings.Contains(shown, "overrides") {
		t.Errorf("got %s, want no overrides", shown)
	}
}

func TestUserShowsTheirOwnLimitAndOverrides(t *testing.T) {
	g := start(t, setup{})
	g.walk(t, []step{
		{"POST", "/allow?user_id=ann&resource=read&cost=0", "", full},
		{"PUT", "/admin/user/ann/override", `{"resource":"read","capacity":20,"refill_rate":"0.5/s"}`, `200 {"user_id":"ann","resource":"read","capacity":20,"refill_rate":"0.5/s"}`},
		{"PUT", "/admin/user/ann/override", `{"block":true}`, `200 {"user_id":"ann","block":true}`},
		{"GET", "/admin/user/ann", "", `200 {"user_id":"ann","resources":[{"resource":"read","limit":"read","capacity":20,"refill_rate_per_sec":0.5,"tokens":20.0,"next_token_seconds":0.0,"full_refill_seconds":0.0}],` +
			`"overrides":[{"user_id":"ann","block":true},{"user_id":"ann","resource":"read","capacity":20,"refill_rate":"0.5/s"}]}`},
		{"DELETE", "/admin/user/ann/override?resource=read", "", `200 {"overrides":[{"user_id":"ann","block":true}]}`},
		{"DELETE", "/admin/user/ann/override", "", `200 {"overrides":[]}`},
	})
}

func TestExemptUserPassesWithAnEmptyBucketAndSpendsNothing(t *testing.T) {
	g := start(t, setup{})
	g.walk(t, []step{
		{"POST", "/allow?user_id=vip&cost=10", "", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 0.0}`},
		{"PUT", "/admin/user/vip/override", `{"exempt":true,"reason":"contract 7"}`, `200 {"user_id":"vip","exempt":true,"reason":"contract 7"}`},
		{"POST", "/allow?user_id=vip", "", full},
		{"POST", "/allow?user_id=vip&cost=1000000000", "", full},
		{"DELETE", "/admin/user/vip/override", "", `200 {"overrides":[]}`},
		{"POST", "/allow?user_id=vip&cost=0", "", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 0.0}`},
	})
	if status, body := g.do(t, "POST", "/allow?user_id=vip"); status != "429" {
		t.Errorf("got %s %s, want 429 again", status, body)
	}
}

func TestBlockedUserGets403UntilTheBlockIsGone(t *testing.T) {
	g := start(t, setup{})
	g.walk(t, []step{
		{"POST", "/allow?user_id=bad&idempotency=k&cost=0", "", full},
		{"PUT", "/admin/user/bad/override", `{"block":true}`, `200 {"user_id":"bad","block":true}`},
		{"POST", "/allow?user_id=bad", "", barred},
		{"POST", "/allow?user_id=bad&idempotency=k&cost=0", "", barred}, // a remembered decision opens no door
		{"POST", "/allow?user_id=bad&cost=11", "", barred},
		{"POST", "/allow?user_id=%62ad&resource=x", "", barred},
		{"POST", "/allow?user_id=Bad", "", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 9.0}`},
		// One for a resource goes before one for all.
		{"PUT", "/admin/user/bad/override", `{"exempt":true,"resource":"health"}`, `200 {"user_id":"bad","resource":"health","exempt":true}`},
		{"POST", "/allow?user_id=bad&resource=health", "", full},
		{"POST", "/allow?user_id=bad&resource=other", "", barred},
	})
	answer := g.send(t, request("POST", "/allow?user_id=bad"))
	for _, name := range []string{"Retry-After", "RateLimit", "RateLimit-Policy"} {
		if got := field(answer, name); got != "" {
			t.Errorf("blocked: got %s: %s, want none", name, got)
		}
	}
	g.walk(t, []step{
		{"DELETE", "/admin/user/bad/override", "", `200 {"overrides":[]}`},
		{"POST", "/allow?user_id=bad&cost=0", "", full},
	})
}

func TestOverrideEndsWithItsTimeToLiveExactly(t *testing.T) {
	start(t, setup{}).do(t, "GET", "/livez") // fasthttp's clock must start outside the bubble
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, setup{})
		said := func(raw string) string {
			_, body, _ := strings.Cut(g.pipeFrom(t, local, raw), "\r\n\r\n")
			return body
		}
		if got, want := said(put("/admin/user/bad/override", `{"block":true,"ttl":"10m"}`)), `{"user_id":"bad","block":true,"seconds_left":600.0}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		time.Sleep(10*time.Minute - time.Millisecond)
		if got, want := said(request("GET", "/admin/overrides")), `{"overrides":[{"user_id":"bad","block":true,"seconds_left":0.001}]}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got := said(request("POST", "/allow?user_id=bad&cost=0")); got != barred[4:] {
			t.Errorf("a millisecond before the end: got %s", got)
		}
		time.Sleep(time.Millisecond)
		if got := said(request("POST", "/allow?user_id=bad&cost=0")); got != full[4:] {
			t.Errorf("at the end: got %s", got)
		}
		if got := said(request("GET", "/admin/overrides")); got != `{"overrides":[]}` {
			t.Errorf("got %s, want none", got)
		}
	})
}

// refusedBody is a body that must be refused for a reason. The document's
// schema must refuse it too, unless it is beyond what a schema can say.
type refusedBody struct {
	body, want string
	beyond     bool
}

// refuseAll sends the bodies and makes sure that nothing came of it.
func (g *gateway) refuseAll(t *testing.T, target, schema string, all []refusedBody) {
	t.Helper()
	d := readDocument(t, nil)
	for _, c := range all {
		got := g.says(t, "PUT", target, c.body)
		if want := `400 {"error":` + c.want + `}`; got != want {
			t.Errorf("%.120s\n got %s\nwant %s", c.body, got, want)
		}
		if err := d.valid("#/components/schemas/"+schema, c.body); err == nil && !c.beyond {
			t.Errorf("%.120s is fine by openapi.yaml", c.body)
		}
	}
	g.walk(t, []step{
		{"GET", "/admin/overrides", "", `200 {"overrides":[]}`},
		{"GET", "/admin/audit", "", `200 {"audit":[]}`},
	})
}

const writeOne = `"write one of {\"resource\":\"read\",\"capacity\":100,\"refill_rate\":\"50/s\"}, {\"exempt\":true} or {\"block\":true}"`

func TestOverrideThatIsNoneIsRefusedWithAReason(t *testing.T) {
	g := start(t, setup{})
	limit := func(capacity, rate string) string {
		return `{"resource":"read","capacity":` + capacity + `,"refill_rate":` + rate + `}`
	}
	g.refuseAll(t, "/admin/user/ann/override", "OverrideBody", []refusedBody{
		{`{}`, writeOne, false},
		{`null`, writeOne, false},
		{`{"exempt":false}`, writeOne, false},
		{`{"exempt":true,"block":true}`, writeOne, false},
		{`{"block":true,"resource":"read","capacity":1,"refill_rate":"1/s"}`, writeOne, false},
		{`{"capacity":1,"refill_rate":"1/s"}`, `"resource is missing: say which resource the limit is for"`, false},
		{`{"resource":"","capacity":1,"refill_rate":"1/s"}`, `"resource is missing: say which resource the limit is for"`, false},
		{`{"resource":"read","capacity":1}`, `"refill_rate is missing; write a rate like 10/s, 0.5/m, 100/h or 5000/d"`, false},
		{`{"resource":"read","refill_rate":"1/s"}`, `"capacity must be from 1 to 1000000000 tokens, is 0"`, false},
		{limit(`-1`, `"1/s"`), `"capacity must be from 1 to 1000000000 tokens, is -1"`, false},
		{limit(`1000000001`, `"1/s"`), `"capacity must be from 1 to 1000000000 tokens, is 1000000001"`, false},
		{limit(`1.5`, `"1/s"`), `"read the body: capacity must be a whole number, not \"number 1.5\""`, false},
		{limit(`1e400`, `"1/s"`), `"read the body: capacity must be a whole number, not \"number 1e400\""`, false},
		{limit(`"5"`, `"1/s"`), `"read the body: capacity must be a whole number, not \"string\""`, false},
		{limit(`5`, `5`), `"read the body: refill_rate must be a string like \"10/s\", not \"number\""`, false},
		{limit(`5`, `"5/w"`), `"read the body: rate \"5/w\": write a number and a unit, like 10/s, 0.5/m, 100/h or 5000/d"`, false},
		{limit(`5`, `"-5/s"`), `"read the body: rate \"-5/s\": write a number and a unit, like 10/s, 0.5/m, 100/h or 5000/d"`, false},
		{limit(`5`, `"0/s"`), `"read the body: rate \"0/s\": must be from 1 per 30 days to 1000000/s"`, true},
		{limit(`5`, `"1.23456789/s"`), `"read the body: rate \"1.23456789/s\": more than 8 significant digits; round it"`, true},
		{`{"exempt":"yes"}`, `"read the body: exempt must be true or false, not \"string\""`, false},
		{`{"block":1}`, `"read the body: block must be true or false, not \"number\""`, false},
		{`{"block":true,"reason":["x"]}`, `"read the body: reason must be a string, not \"array\""`, false},
		{`{"block":true,"reason":"` + strings.Repeat("x", 257) + `"}`, `"reason is longer than 256 bytes"`, false},
		{`{"block":true,"reason":"` + strings.Repeat("ü", 129) + `"}`, `"reason is longer than 256 bytes"`, true},
		{`{"block":true,"ttl":10}`, `"read the body: ttl must be a string, not \"number\""`, false},
		{`{"block":true,"ttl":"10"}`, `"ttl \"10\" is not a duration: write a number and a unit, as in 10m or 24h"`, false},
		{`{"block":true,"ttl":"-10m"}`, `"ttl \"-10m\" is not a duration: write a number and a unit, as in 10m or 24h"`, false},
		{`{"block":true,"ttl":"0s"}`, `"ttl \"0s\" is not a duration: write a number and a unit, as in 10m or 24h"`, true},
		{`{"block":true,"ttl":"7d"}`, `"ttl \"7d\" is not a duration: write a number and a unit, as in 10m or 24h"`, false},
		{`{"block":true,"ttl":"999ms"}`, `"ttl must be from 1s to 8784h0m0s; leave it out for good"`, true},
		{`{"block":true,"ttl":"8785h"}`, `"ttl must be from 1s to 8784h0m0s; leave it out for good"`, true},
		{`{"block":true,"user_id":"bob"}`, `"read the body: unknown field \"user_id\""`, false},
	})
}

func TestBodyThatIsNotOneStrictObjectIsRefused(t *testing.T) {
	g := start(t, setup{})
	g.refuseAll(t, "/admin/user/ann/override", "OverrideBody", []refusedBody{
		{`{"block":true,"Block":false}`, `"read the body: unknown field \"Block\""`, false},
		{`{"BLOCK":true}`, `"read the body: unknown field \"BLOCK\""`, false},
		{`{"bloc` + "\u212a" + `":true}`, `"read the body: unknown field \"bloc` + "\u212a" + `\""`, false},
		{`{"block":true,"":1}`, `"read the body: unknown field \"\""`, false},
		{`{"block":true,"block":true}`, `"read the body: field \"block\" is there twice"`, true},
		{`{"block":true}{"exempt":true}`, `"read the body: something follows the JSON object"`, false},
		{`{"block":true} x`, `"read the body: something follows the JSON object"`, false},
		{`[{"block":true}]`, `"read the body: it must be an object, not array"`, false},
		{`"block"`, `"read the body: it must be an object, not string"`, false},
		{`{"block":true`, `"read the body: unexpected EOF"`, false},
		{`block=true`, `"read the body: invalid character 'b' looking for beginning of value"`, false},
		{`{'block':true}`, `"read the body: invalid character '\\'' looking for beginning of object key string"`, false},
		{"{\"block\":true,\"reason\":\"\xff\"}", `"read the body: it is not UTF-8"`, true},
		{"\ufeff" + `{"block":true}`, `"read the body: invalid character 'ï' looking for beginning of value"`, false},
		{strings.Repeat("[", 60000), `"read the body: invalid character '[' exceeded max depth"`, false},
		{" ", `"read the body: it is empty: send a JSON object"`, false},
	})
}

func TestBodyMustSayThatItIsJSONAndBeOfBoundedSize(t *testing.T) {
	g := start(t, setup{})
	body := `{"block":true}`
	length := fmt.Sprintf("Content-Length: %d", len(body))
	for _, c := range []struct {
		status string
		fields []string
		body   string
	}{
		{"400", []string{length}, body},
		{"400", []string{length, "Content-Type: text/plain"}, body}, // what a form of a web page can send
		{"400", []string{length, "Content-Type: application/x-www-form-urlencoded"}, body},
		{"400", []string{length, "Content-Type: multipart/form-data; boundary=application/json"}, body},
		{"400", []string{length, "Content-Type: application/jsonp"}, body},
		{"400", []string{"Content-Type: application/json"}, ""},
		{"200", []string{length, "Content-Type: application/json"}, body},
		{"200", []string{length, "Content-Type: Application/JSON; charset=utf-8"}, body},
		{"200", []string{"Transfer-Encoding: chunked", "Content-Type: application/json"}, "e\r\n" + body + "\r\n0\r\n\r\n"},
		{"200", []string{"Content-Length: 65536", "Content-Type: application/json"}, body + strings.Repeat(" ", 65536-len(body))},
		{"413", []string{"Content-Length: 65537", "Content-Type: application/json"}, body + strings.Repeat(" ", 65537-len(body))},
		{"413", []string{"Transfer-Encoding: chunked", "Content-Type: application/json"}, "10001\r\n" + body + strings.Repeat(" ", 65537-len(body)) + "\r\n0\r\n\r\n"},
	} {
		answer := g.send(t, request("PUT", "/admin/user/ann/override", c.fields...)+c.body)
		if answer[9:12] != c.status {
			t.Errorf("%q: got %.200q, want %s", c.fields, answer, c.status)
		}
	}
}

func TestUserToChangeIsOneSegmentOfUTF8(t *testing.T) {
	g := start(t, setup{})
	for _, c := range []struct{ segment, want string }{
		{"a+b", `200 {"user_id":"a+b","block":true}`},
		{"..", `200 {"user_id":"..","block":true}`},
		{"%2e%2e%2F%00%C3%BC", `200 {"user_id":"../\u0000ü","block":true}`},
		{"reset", `200 {"user_id":"reset","block":true}`},
		{"a/b", `404 {"error":"there is nothing here"}`},
		{"", `404 {"error":"there is nothing here"}`},
		{"%ff", `400 {"error":"user_id: it is not UTF-8"}`},
		{"%C3", `400 {"error":"user_id: it is not UTF-8"}`},
		{"%ED%A0%80", `400 {"error":"user_id: it is not UTF-8"}`},
		{"a%2", `400 {"error":"user_id: malformed escape \"%2\": write %25 for a percent sign"}`},
	} {
		if got := g.says(t, "PUT", "/admin/user/"+c.segment+"/override", `{"block":true}`); got != c.want {
			t.Errorf("PUT %s: got %s, want %s", c.segment, got, c.want)
		}
		if c.want[:3] != "200" {
			for _, r := range []struct{ method, what string }{{"DELETE", "override"}, {"POST", "reset"}} {
				if got := g.says(t, r.method, "/admin/user/"+c.segment+"/"+r.what, ""); got != c.want {
					t.Errorf("%s %s: got %s, want %s", r.method, c.segment, got, c.want)
				}
			}
		}
	}
	if got := len(g.Limiter.Overrides("")); got != 4 {
		t.Errorf("got %d overrides, want 4", got)
	}
}

func TestResetRefillsOneUsersOwnBuckets(t *testing.T) {
	limits := frozen(t, 10)
	limits.Resources = map[string]limiter.ResourceConfig{"search": {Limits: []limiter.LimitConfig{
		{Name: "own", Capacity: 10, RefillRate: rate(t, "0.034/d")},
		{Name: "everyone", Per: "resource", Capacity: 100, RefillRate: rate(t, "0.034/d")},
	}}}
	g := start(t, setup{limits: limits})
	empty := `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 0.0}`
	g.walk(t, []step{
		{"POST", "/allow?user_id=ann&resource=search&cost=10", "", empty},
		{"POST", "/allow?user_id=ann&resource=read&cost=10", "", empty},
		{"POST", "/allow?user_id=bob&resource=read&cost=10", "", empty},
		{"POST", "/admin/user/ann/reset?resource=read", "", `200 {"user_id":"ann","reset":["read"]}`},
		{"POST", "/allow?user_id=ann&resource=read&cost=0", "", full},
		{"POST", "/allow?user_id=ann&resource=search&cost=0", "", empty},
		{"POST", "/allow?user_id=bob&resource=read&cost=0", "", empty},
		{"POST", "/allow?user_id=ann&resource=read&cost=10", "", empty},
		{"POST", "/admin/user/ann/reset", "", `200 {"user_id":"ann","reset":["read","search"]}`},
		{"POST", "/allow?user_id=ann&resource=read&cost=0", "", full},
		{"POST", "/allow?user_id=ann&resource=search&cost=0", "", full},
		{"POST", "/allow?user_id=bob&resource=read&cost=0", "", empty},
		{"POST", "/admin/user/ann/reset?resource=", "", `400 {"error":"parameter resource is empty or not UTF-8: leave it out for all resources"}`},
		{"POST", "/admin/user/ann/reset?resource=%ff", "", `400 {"error":"parameter resource is empty or not UTF-8: leave it out for all resources"}`},
		{"POST", "/admin/user/ann/reset?resource=a&resource=b", "", `400 {"error":"parameter \"resource\" is given more than once"}`},
		{"POST", "/admin/user/ann/reset?ressource=a", "", `400 {"error":"unknown parameter \"ressource\": there is resource"}`},
	})
	shown := g.says(t, "GET", "/admin/user/ann", "")
	if got := between(shown, `"everyone","per":"resource",`, `,"next`); !strings.HasSuffix(got, `"tokens":90.0`) {
		t.Errorf("the bucket that all share: got %s, want 90 tokens still", got)
	}
	fresh := start(t, setup{})
	if got, want := fresh.says(t, "POST", "/admin/user/ann/reset", ""), `200 {"user_id":"ann","reset":[]}`; got != want {
		t.Errorf("where no resource is known: got %s, want %s", got, want)
	}
}

func TestAuditSaysWhoChangedWhatAndWhen(t *testing.T) {
	for _, auth := range []string{"loopback", "token"} {
		s := setup{}
		var fields []string
		if auth == "token" {
			s.config.Token = adminToken
			fields = []string{"Authorization: Bearer " + adminToken}
		}
		g := start(t, s)
		began := time.Now().Truncate(time.Millisecond)
		g.change(t, fields)
		_, body := g.do(t, "GET", "/admin/audit", fields...)
		for strings.Contains(body, `"time":"`) {
			at := between(body, `"time":"`, `"`)
			if when, err := time.Parse(time.RFC3339Nano, at); err != nil || when.Before(began) || when.After(time.Now()) {
				t.Errorf("got time %s, %v, want one from %s to now", at, err, began)
			}
			body = strings.Replace(body, `"time":"`+at+`",`, "", 1)
		}
		if diff := cmp.Diff(trail(auth, between(body, `"gateway":"`, `"`)), body); diff != "" {
			t.Errorf("%s (-want +got):\n%s", auth, diff)
		}
		eventually(t, "the request that the trail names is in the log", func() bool { return strings.Contains(g.log.String(), `"request_id":"r3"`) })
	}
}

// change makes one change of each kind, in requests r0 to r4, and two requests
// that change nothing.
func (g *gateway) change(t *testing.T, fields []string) {
	t.Helper()
	for i, r := range []string{
		put("/admin/user/ann/override", `{"block":true,"ttl":"10m","reason":"abuse"}`),
		request("POST", "/admin/user/ann/reset?resource=read"),
		put("/admin/resources/read", `{"limits":[{"name":"a","per":"resource","capacity":3,"refill_rate":"1/d"}]}`),
		request("DELETE", "/admin/user/ann/override"),
		request("DELETE", "/admin/resources/read"),
		request("DELETE", "/admin/resources/read"),
		request("POST", "/allow?user_id=ann"),
	} {
		all := append([]string{"Host: localhost", fmt.Sprintf("X-Request-Id: r%d", i)}, fields...)
		g.send(t, strings.Replace(r, "Host: localhost", strings.Join(all, "\r\n"), 1))
	}
}

// trail is the audit trail of change, without times.
func trail(auth, gateway string) string {
	by := func(id string) string {
		return `"by":{"client_ip":"127.0.0.1","auth":"` + auth + `","request_id":"` + id + `"},"gateway":"` + gateway + `"`
	}
	return `{"audit":[` +
		`{"action":"limits.drop","resource":"read",` + by("r4") + `},` +
		`{"action":"override.drop","user_id":"ann",` + by("r3") + `},` +
		`{"action":"limits.set","resource":"read",` + by("r2") + `,"detail":{"limits":[{"capacity":3,"name":"a","per":"resource","refill_rate":"1/d"}]}},` +
		`{"action":"user.reset","user_id":"ann","resource":"read",` + by("r1") + `},` +
		`{"action":"override.set","user_id":"ann",` + by("r0") + `,"detail":{"block":true,"reason":"abuse","ttl":"10m0s"}}]}`
}

func TestAuditTakesANumberOfEntries(t *testing.T) {
	g := start(t, setup{})
	for i := range 3 {
		g.says(t, "PUT", fmt.Sprintf("/admin/user/u%d/override", i), `{"block":true}`)
	}
	for _, c := range []struct {
		query string
		want  int
	}{{"", 3}, {"?n=1", 1}, {"?n=2", 2}, {"?n=1000", 3}} {
		if _, body := g.do(t, "GET", "/admin/audit"+c.query); strings.Count(body, `"action"`) != c.want || !strings.HasPrefix(between(body, `"user_id":"`, `"`), "u2") {
			t.Errorf("%q: got %s, want the newest %d", c.query, body, c.want)
		}
	}
	for _, bad := range []string{"0", "1001", "-1", "+5", "05", "1e2", "5x", " 5", ""} {
		want := fmt.Sprintf(`400 {"error":"n \"%s\" is not a whole number from 1 to 1000"}`, bad)
		if got := g.says(t, "GET", "/admin/audit?n="+strings.NewReplacer("+", "%2B", " ", "%20").Replace(bad), ""); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if id := between(g.says(t, "GET", "/admin/audit", ""), `"request_id":"`, `"`); len(id) != 32 {
		t.Errorf("got request_id %q, want 32 digits of our own", id)
	}
}
