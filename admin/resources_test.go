package admin

import (
	"strings"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// withoutTimes replaces each last_seen, which must be from began to now.
func withoutTimes(t *testing.T, body string, began time.Time) string {
	t.Helper()
	for strings.Contains(body, `"last_seen":"`) {
		at := between(body, `"last_seen":"`, `"`)
		if when, err := time.Parse(time.RFC3339Nano, at); err != nil || when.Before(began.Truncate(time.Millisecond)) || when.After(time.Now()) {
			t.Errorf("got last_seen %s, %v, want one from %s to now", at, err, began)
		}
		body = strings.Replace(body, `"last_seen":"`+at+`"`, `"last_seen":NOW`, 1)
	}
	return body
}

// readGateway has one resource in its file.
func readGateway(t *testing.T) *gateway {
	limits := frozen(t, 10)
	limits.Resources = map[string]limiter.ResourceConfig{"read": {Capacity: 5, RefillRate: rate(t, "0.034/d")}}
	return start(t, setup{limits: limits})
}

func TestResourcesShowLimitsTheirSourceAndFigures(t *testing.T) {
	g := readGateway(t)
	began := time.Now()
	g.do(t, "POST", "/allow?user_id=a&resource=x%2Fy&cost=9")
	g.do(t, "POST", "/allow?user_id=a&resource=x%2Fy&cost=9")
	several := `{"limits":[{"name":"burst","capacity":20,"refill_rate":"10/s"},{"name":"everyone","per":"resource","capacity":5000,"refill_rate":"5000/s"},{"name":"next","shadow":true,"capacity":10,"refill_rate":"5/s"}]}`
	g.says(t, "PUT", "/admin/resources/search", several)
	want := `200 {"resources":[` +
		`{"resource":"read","source":"config","limits":[{"limit":"read","per":"user","capacity":5,"refill_rate":"0.034/d"}],"allowed":0,"denied":0,"last_seen":null},` +
		`{"resource":"search","source":"persisted","limits":[{"limit":"burst","per":"user","capacity":20,"refill_rate":"10/s"},{"limit":"everyone","per":"resource","capacity":5000,"refill_rate":"5000/s"},` +
		`{"limit":"next","per":"user","shadow":true,"capacity":10,"refill_rate":"5/s"}],"allowed":0,"denied":0,"last_seen":null},` +
		`{"resource":"x/y","source":"default","limits":[{"limit":"x/y","per":"user","capacity":10,"refill_rate":"0.034/d"}],"allowed":1,"denied":1,"last_seen":NOW}]}`
	if got := withoutTimes(t, g.says(t, "GET", "/admin/resources", ""), began); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestPersistedLimitReplacesTheFilesUntilItIsDeleted(t *testing.T) {
	g := readGateway(t)
	read := func(source, capacity string) string {
		return `{"resource":"read","source":"` + source + `","limits":[{"limit":"read","per":"user","capacity":` + capacity + `,"refill_rate":"0.034/d"}],"allowed":0,"denied":0,"last_seen":null}`
	}
	g.walk(t, []step{
		{"DELETE", "/admin/resources/read", "", `404 {"error":"this resource has no persisted limits: the file's are in force"}`},
		{"DELETE", "/admin/resources/unheard", "", `404 {"error":"this resource has no persisted limits: the file's are in force"}`},
		{"PUT", "/admin/resources/read", `{"capacity":7,"refill_rate":"0.034/d"}`, "200 " + read("persisted", "7")},
		{"PUT", "/admin/resources/read", `{"capacity":8,"refill_rate":"0.034/d"}`, "200 " + read("persisted", "8")},
		{"POST", "/allow?user_id=a&resource=read&cost=4", "", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 4.0}`},
		{"PUT", "/admin/resources/read", `{"limits":[{"name":"read","capacity":3,"refill_rate":"0.034/d"},{"name":"all","per":"resource","capacity":2,"refill_rate":"0.034/d"}]}`, ""},
		{"POST", "/allow?user_id=b&resource=read&cost=2", "", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 0.0}`},
		{"POST", "/allow?user_id=c&resource=read&cost=3", "", `400 {"error":"cost 3 exceeds the capacity 2 of limit \"all\": it can never pass"}`},
		{"DELETE", "/admin/resources/read", "", ""},
		{"DELETE", "/admin/resources/read", "", `404 {"error":"this resource has no persisted limits: the file's are in force"}`},
		// What was spent under one form of the limit stays spent.
		{"POST", "/allow?user_id=a&resource=read&cost=0", "", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 1.0}`},
	})
}

func TestResourceToChangeIsOneSegmentOfUTF8(t *testing.T) {
	g := start(t, setup{})
	body := `{"capacity":3,"refill_rate":"1/s"}`
	for segment, want := range map[string]string{
		"a%2Fb":  `"resource":"a/b"`,
		"..":     `"resource":".."`,
		"a+b%20": `"resource":"a+b "`,
		"a/b":    `404 {"error":"there is nothing here"}`,
		"":       `404 {"error":"there is nothing here"}`,
		"%ff":    `400 {"error":"resource: it is not UTF-8"}`,
		"%":      `400 {"error":"resource: malformed escape \"%\": write %25 for a percent sign"}`,
		"a?x=1":  `400 {"error":"unknown parameter \"x\": there are none here"}`,
	} {
		if got := g.says(t, "PUT", "/admin/resources/"+segment, body); !strings.Contains(got, want) {
			t.Errorf("%s: got %s, want %s", segment, got, want)
		}
	}
}

func TestLimitsThatAreNoneAreRefusedWithAReason(t *testing.T) {
	limit := `{"name":"a","capacity":1,"refill_rate":"1/s"}`
	list := func(limits ...string) string { return `{"limits":[` + strings.Join(limits, ",") + `]}` }
	many := make([]string, 17)
	for i := range many {
		many[i] = `{"name":"` + string(rune('a'+i)) + `","capacity":1,"refill_rate":"1/s"}`
	}
	readGateway(t).refuseAll(t, "/admin/resources/read", "LimitsBody", []refusedBody{
		{`{}`, `"has no limit; give capacity and refill_rate, or limits"`, false},
		{`null`, `"has no limit; give capacity and refill_rate, or limits"`, false},
		{list(), `"has no limit; give capacity and refill_rate, or limits"`, false},
		{`{"capacity":1}`, `"refill_rate is missing; write a rate like 10/s, 0.5/m, 100/h or 5000/d"`, false},
		{`{"refill_rate":"1/s"}`, `"capacity must be from 1 to 1000000000 tokens, is 0"`, false},
		{`{"capacity":-1,"refill_rate":"1/s"}`, `"capacity must be from 1 to 1000000000 tokens, is -1"`, false},
		{`{"capacity":1,"refill_rate":"1/s","limits":[` + limit + `]}`, `"has both limits and a capacity or refill_rate of its own; keep one of the two forms"`, false},
		{list(limit, limit), `"limits[1].name \"a\" is the name of a limit before; names must be unique in a resource"`, true},
		{list(`{"capacity":1,"refill_rate":"1/s"}`), `"limits[0].name is missing; each of several limits needs a name"`, false},
		{list(limit, `{"name":"b","per":"planet","capacity":1,"refill_rate":"1/s"}`), `"limits[1].per \"planet\" is unknown; write user or resource"`, false},
		{list(`{"name":"a","shadow":true,"capacity":1,"refill_rate":"1/s"}`), `"limits are all shadows; at least one must decide"`, true},
		{list(`{"name":"a","capacity":0,"refill_rate":"1/s"}`), `"limits[0].capacity must be from 1 to 1000000000 tokens, is 0"`, false},
		{list(many...), `"limits has 17 limits; at most 16 are possible"`, false},
		{list(`{"name":"a","capacity":"1","refill_rate":"1/s"}`), `"read the body: limits.capacity must be a whole number, not \"string\""`, false},
		{list(`{"name":"a","burst":1}`), `"read the body: unknown field \"burst\""`, false},
		{`{"limits":{"a":1}}`, `"read the body: limits must be an array, not \"object\""`, false},
		{list(`"a"`), `"read the body: limits must be an object, not \"string\""`, false},
		{list(`{"name":"a","name":"b","capacity":1,"refill_rate":"1/s"}`), `"read the body: field \"name\" is there twice"`, true},
		{`{"capacity":1,"refill_rate":"1/s","ttl":"1h"}`, `"read the body: unknown field \"ttl\""`, false},
		{`{"capacity":1,"refill_rate":"1/31d"}`, `"read the body: rate \"1/31d\": write a number and a unit, like 10/s, 0.5/m, 100/h or 5000/d"`, false},
	})
}

func TestConfigIsShownAsItWasGiven(t *testing.T) {
	g := start(t, setup{shown: map[string]any{"log": map[string]any{"level": "info"}, "admin": map[string]any{"token": "(hidden)"}}})
	g.walk(t, []step{
		{"GET", "/admin/config", "", `200 {"admin":{"token":"(hidden)"},"log":{"level":"info"}}`},
		{"GET", "/admin/config?secrets=1", "", `400 {"error":"unknown parameter \"secrets\": there are none here"}`},
	})
}
