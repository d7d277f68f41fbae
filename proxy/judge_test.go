package proxy

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// askedOf is what a request of HTTP/1.1 asks, as whoever describes it would say.
func askedOf(t *testing.T, raw string) *Asked {
	t.Helper()
	head, _, _ := strings.Cut(raw, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	words := strings.SplitN(lines[0], " ", 3)
	a := &Asked{Method: []byte(words[0]), Target: []byte(words[1]), Peer: netip.MustParseAddr("127.0.0.1"), Direct: true}
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("%q is no field", line)
		}
		a.AddField([]byte(name), []byte(strings.TrimSpace(value)))
	}
	return a
}

// Whatever the listener answers by itself, and whatever it asks the limiter, the judge
// says too.
func TestJudgeSaysWhatTheListenerDoes(t *testing.T) {
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"echo:"}}}
	c.Limits.BodyBytes = 1000
	c.APIKeys = &APIKeysConfig{Keys: []APIKeyConfig{{SHA256: sha256.Sum256([]byte("known")), UserID: "corp"}}}
	c.Routes = []RouteConfig{
		{Name: "hosted", Match: MatchConfig{Path: []string{"/hosted"}, Headers: map[string]ValueMatch{"host": {Exact: "a.test", isText: true}}}, UserID: []Template{template(t, "{header.Host}")}, Upstream: "api"},
		{Name: "key", Match: MatchConfig{Path: []string{"/key"}}, UserID: []Template{template(t, "{api_key.user_id}"), template(t, "{header.Host|lower}")}, Upstream: "api"},
		{Name: "blocked", Match: MatchConfig{Path: []string{"/blocked"}}, Action: "block"},
		{Name: "rest", Match: MatchConfig{Path: []string{"/rest/*"}}, Upstream: "api"},
	}
	rg := startRig(t, c, nil, newLimiter(t, 1000))
	const host = "Host: a.test\r\n"
	for _, each := range []struct{ what, head, body string }{
		{"Host as a field", "GET /hosted HTTP/1.1\r\n" + host, ""},
		{"another Host", "GET /hosted HTTP/1.1\r\nHost: b.test\r\n", ""},
		{"a Host with port and capitals", "GET /key HTTP/1.1\r\nHost: A.Test:8080\r\n", ""},
		{"a known key", "GET /key HTTP/1.1\r\n" + host + "X-Api-Key: known\r\n", ""},
		{"an unknown key", "GET /key HTTP/1.1\r\n" + host + "X-Api-Key: other\r\n", ""},
		{"a blocked path", "GET /blocked HTTP/1.1\r\n" + host, ""},
		{"no route", "GET /nowhere HTTP/1.1\r\n" + host, ""},
		{"a long target", "GET /rest/" + strings.Repeat("x", 9000) + " HTTP/1.1\r\n" + host, ""},
		{"a large head", "GET /rest/x HTTP/1.1\r\n" + host + "X-Large: " + strings.Repeat("x", 70_000) + "\r\n", ""},
		{"many fields", "GET /rest/x HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 200), ""},
		{"an odd coding", "POST /rest/x HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n", ""},
		{"two lengths", "POST /rest/x HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 1\r\n", "x"},
		{"no number", "POST /rest/x HTTP/1.1\r\n" + host + "Content-Length: x\r\n", ""},
		{"a look-alike", "POST /rest/x HTTP/1.1\r\n" + host + "Content_Length: 5\r\n", ""},
		{"an odd trailer", "POST /rest/x HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n", "0\r\n\r\n"},
		{"an odd expectation", "POST /rest/x HTTP/1.1\r\n" + host + "Content-Length: 1\r\nExpect: foo\r\n", "x"},
		{"a large body", "POST /rest/x HTTP/1.1\r\n" + host + "Content-Length: 1001\r\n", ""},
		{"a body", "POST /rest/x HTTP/1.1\r\n" + host + "Content-Length: 3\r\n", "abc"},
		{"another authority", "GET http://b.test/rest/x HTTP/1.1\r\n" + host, ""},
		{"CONNECT", "CONNECT a.test:443 HTTP/1.1\r\n" + host, ""},
	} {
		raw := each.head + "\r\n" + each.body
		rg.log.forget()
		wanted := rg.statusOf(t, raw)
		eventually(t, each.what+" is logged", func() bool { return strings.Contains(rg.log.String(), "\n") })
		var j Judgement
		rg.p.Rules().Judge(askedOf(t, raw), &j)
		got := "200"
		if j.Refused != nil {
			got = fmt.Sprint(j.Status)
		}
		want(t, each.what, got, wanted)
		if wanted != "200" {
			continue
		}
		line := rg.lines(t)[0]
		want(t, each.what+": route", j.Route, fmt.Sprint(line["route"]))
		want(t, each.what+": user", string(j.Ask.User), fmt.Sprint(line["user_id"]))
	}
}

// What explains a request leaves no trace of its token.
func TestExplainedTokensAreNeitherCountedNorKept(t *testing.T) {
	c := DefaultConfig()
	c.JWT = &JWTConfig{Secret: testSecret}
	c.Routes = []RouteConfig{{Name: "all", UserID: []Template{template(t, "{jwt.sub}")}}}
	rs, err := NewRules(c)
	if err != nil {
		t.Fatal(err)
	}
	for token, user := range map[string]string{signed(t, "HS256", []byte(testSecret), nil, map[string]any{"sub": "ann"}): "ann", "a.b.c": ""} {
		a := &Asked{Method: []byte("GET"), Target: []byte("/"), Host: []byte("a"), Direct: true}
		a.AddField([]byte("Authorization"), []byte("Bearer "+token))
		e := rs.Explain(a)
		if (e.Refused != nil) != (user == "") || string(e.Judgement.Ask.User) != user {
			t.Errorf("%s: got %+v", token, e)
		}
	}
	m := rs.jwt.metrics
	for result, n := range m.results {
		if n.Get() != 0 {
			t.Errorf("%v was counted", result)
		}
	}
	if m.hits.Get() != 0 || rs.jwt.cache.size() != 0 {
		t.Errorf("%d hits, %d kept", m.hits.Get(), rs.jwt.cache.size())
	}
}

func TestClaimsLeaveTheAPIKeyWhatItIs(t *testing.T) {
	c := DefaultConfig()
	c.JWT = &JWTConfig{Secret: testSecret, Required: true}
	c.APIKeys = &APIKeysConfig{Required: true, Keys: []APIKeyConfig{{SHA256: sha256.Sum256([]byte("known")), UserID: "corp", Plan: "gold"}}}
	c.Routes = []RouteConfig{{Name: "all", UserID: []Template{template(t, "{jwt.sub}:{api_key.user_id}")}, Plan: template(t, "{api_key.plan}"), Cost: template(t, "{header.X-Cost}")}}
	rs, err := NewRules(c)
	if err != nil {
		t.Fatal(err)
	}
	for key, wanted := range map[string]string{
		"known": "ann:corp gold 3 <nil>",
		"other": "  0 401 the API key in the header field X-Api-Key is unknown",
		"":      "  0 401 an API key is needed, in the header field X-Api-Key",
	} {
		a := &Asked{Method: []byte("GET"), Target: []byte("/"), Host: []byte("a")}
		a.SetClaim("sub", []byte("ann"))
		a.AddField([]byte("X-Cost"), []byte("3"))
		if key != "" {
			a.AddField([]byte("X-Api-Key"), []byte(key))
		}
		e := rs.Explain(a)
		got := fmt.Sprint(string(e.Judgement.Ask.User), " ", string(e.Judgement.Ask.Plan), " ", e.Judgement.Ask.Cost, " ")
		if e.Refused == nil {
			got += "<nil>"
		} else {
			got += fmt.Sprint(e.Refused.Status, " ", e.Refused.Detail)
		}
		want(t, "key "+key, got, wanted)
		// Nothing is said about templates that nobody came to.
		if refused := e.Refused != nil; (e.UserID == nil) != refused || (e.Cost == nil) != refused {
			t.Errorf("key %s: got user %+v, cost %+v", key, e.UserID, e.Cost)
		}
	}
}
