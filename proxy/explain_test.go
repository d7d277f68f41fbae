package proxy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// explainConfig has every kind of matcher, in routes that overlap.
func explainConfig(t testing.TB) Config {
	t.Helper()
	c := DefaultConfig()
	for _, text := range []string{"10.0.0.0/8", "192.0.2.1"} {
		var p Prefix
		if err := p.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		c.TrustedProxies = append(c.TrustedProxies, p)
	}
	template := func(text string) Template {
		parsed, err := ParseTemplate(text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://user:secret@127.0.0.1:1"}}}
	c.Routes = []RouteConfig{
		{Name: "block", Match: MatchConfig{Path: []string{"/internal/*", "/admin"}}, Action: "block"},
		{Name: "wild", Match: MatchConfig{Host: []string{"*.api.test"}, Path: []string{"/v1/{id}/", "/v1/new"}}},
		{Name: "post", Match: MatchConfig{Host: []string{"api.test", "other.test"}, Path: []string{"/v1/{id}"}, Methods: []string{"POST"}}, UserID: []Template{template("{path.id}")}},
		{Name: "net", Match: MatchConfig{Path: []string{"/v1/*"}, ClientIP: []Prefix{c.TrustedProxies[0]}}, Action: "bypass"},
		{Name: "beta", Match: MatchConfig{Path: []string{"/v1/a/*"}, Headers: map[string]ValueMatch{"X-Beta": {Exact: "hunter2"}}, Query: map[string]ValueMatch{"q": {Prefix: "x"}}}},
		{
			Name: "item", Match: MatchConfig{Path: []string{"/v1/{id}", "/v2/{id}/{more}"}, Methods: []string{"GET", "OPTIONS"}},
			UserID:   []Template{template("{header.X-Api-Key|sha256}"), template("{header.X-User|lower}"), template("{header.Authorization}")},
			Resource: template("item-{path.id}"), Plan: template("{query.plan}"), Cost: template("{header.X-Cost}"), Upstream: "api",
		},
		{Name: "star", Match: MatchConfig{Path: []string{"/*"}, Methods: []string{"OPTIONS"}}, UserID: []Template{template("{cookie.uid}")}},
		{Name: "exact", Match: MatchConfig{Host: []string{"a.api.test"}, Path: []string{"/x/"}}, Shadow: true},
	}
	return c
}

func oneFrom[T any](random *rand.Rand, from ...T) T { return from[random.IntN(len(from))] }

// someAsked is a request that is often near some route.
func someAsked(random *rand.Rand) *Asked {
	segment := func() string {
		return oneFrom(random, "v1", "v1", "v2", "a", "b", "new", "internal", "admin", "x", "", "..", ".", "a%2Fb", "%2e", "a;b", "%zz", "é", "%5c")
	}
	var target strings.Builder
	for range 1 + random.IntN(3) {
		target.WriteString("/" + segment())
	}
	target.WriteString(oneFrom(random, "", "", "/", "?q=xy", "?q=1&plan=gold", "?q=%zz", "?q=1&q=2", "?plan=a%00"))
	a := &Asked{
		Method: []byte(oneFrom(random, "GET", "GET", "POST", "OPTIONS", "CONNECT", "B D")), Target: []byte(oneFrom(random, target.String(), target.String(), target.String(), "/v1/a/b?q=xy", "*", "nonsense", "http://other.test"+target.String())),
		Host: []byte(oneFrom(random, "api.test", "a.api.test", "a.b.API.test:8080", ".api.test", "other.test", "", "x y")),
		Peer: netip.MustParseAddr(oneFrom(random, "10.1.1.1", "192.0.2.1", "203.0.113.9", "2001:db8::7")), Believed: random.IntN(9) == 0,
	}
	for range random.IntN(4) {
		f := oneFrom(random, [2]string{"X-Beta", "hunter2"}, [2]string{"X-Beta", "no"}, [2]string{"X-User", "Ann"}, [2]string{"X-Api-Key", "k"}, [2]string{"Authorization", "Bearer s"},
			[2]string{"X-Cost", "3"}, [2]string{"X-Cost", "many"}, [2]string{"Cookie", "uid=7"}, [2]string{"X-Forwarded-For", "203.0.113.5, 10.2.2.2"}, [2]string{"X-Forwarded-For", "junk, 192.0.2.1"},
			[2]string{"Origin", "https://x"}, [2]string{"Access-Control-Request-Method", "PUT"}, [2]string{"X_User", "bob"})
		a.AddField([]byte(f[0]), []byte(f[1]))
	}
	return a
}

// holdTogether finds where an explanation says something else than the judgement.
func holdTogether(rs *Rules, a *Asked) string {
	var j Judgement
	rs.Judge(a, &j)
	want := fmt.Sprintf("%v %d %s %d %q %t %q %q %q %d %t", j.Refused, j.Status, j.Challenge, j.Index, j.Route, j.Charged, j.Ask.User, j.Ask.Resource, j.Ask.Plan, j.Ask.Cost, j.Ask.Shadow)
	e := rs.Explain(a)
	j = e.Judgement
	if got := fmt.Sprintf("%v %d %s %d %q %t %q %q %q %d %t", j.Refused, j.Status, j.Challenge, j.Index, j.Route, j.Charged, j.Ask.User, j.Ask.Resource, j.Ask.Plan, j.Ask.Cost, j.Ask.Shadow); got != want {
		return "another judgement: " + got + "\nwant " + want
	}
	r := &a.request
	if e.Client.ClientIP != string(r.appendClient(nil)) && len(r.roots) > 0 {
		return "client is " + e.Client.ClientIP
	}
	for i, rt := range e.Routes {
		last := i == len(e.Routes)-1
		switch {
		case rt.Index != i, rt.Matched && (rt.Index != j.Index || !last):
			return fmt.Sprintf("route %d is out of place", i)
		case !rt.Matched && rt.Matcher == "" && (!last || j.Refused == nil):
			return fmt.Sprintf("nothing keeps route %d from a match", i)
		}
	}
	if j.Index >= 0 {
		if len(e.Routes) != j.Index+1 || !e.Routes[j.Index].Matched {
			return "the match is not the last route"
		}
		if matcher, why := rs.whyNot(r.route, r); matcher != "" && r.way != nil && len(e.Readings) == 0 {
			return "the match does not match: " + why
		}
	}
	for _, each := range []struct {
		d    *Derivation
		want string
	}{{e.UserID, string(j.Ask.User)}, {e.Resource, string(j.Ask.Resource)}, {e.Plan, string(j.Ask.Plan)}} {
		if made := each.d.made(); made != "" && !strings.Contains(made, "\x00hidden") && made != each.want {
			return fmt.Sprintf("the parts make %q, want %q", made, each.want)
		}
	}
	return ""
}

// made is the value that the parts of the last template come to.
func (d *Derivation) made() (text string) {
	if d == nil || d.From == "" {
		return ""
	}
	for _, p := range d.Tried[len(d.Tried)-1].Parts {
		switch {
		case p.Result != "":
			text += p.Result
		case p.Hidden:
			text += "\x00hidden"
		case p.Value != "":
			text += p.Value
		default:
			text += p.Part
		}
	}
	return text
}

func TestExplainAgreesWithJudge(t *testing.T) {
	rs := newTestRules(t, explainConfig(t))
	random := rand.New(rand.NewPCG(7, 7))
	matched := map[string]int{}
	for range 30_000 {
		a := someAsked(random)
		if fault := holdTogether(rs, a); fault != "" {
			t.Fatalf("%s %s %s %q: %s", a.Method, a.Host, a.Target, a.request.fields, fault)
		}
		matched[rs.Explain(a).Route]++
	}
	for _, rt := range append(rs.routes, &route{name: ""}) {
		if matched[rt.name] == 0 {
			t.Errorf("no request was for route %q", rt.name)
		}
	}
}

func FuzzExplain(f *testing.F) {
	f.Add("GET", "/v1/a%2Fb?q=x", "api.test", "X-Beta", "hunter2")
	f.Add("POST", "/v1//..;/x", "A.api.test:1", "X-Forwarded-For", "10.1.1.1,::1")
	rs := newTestRules(f, explainConfig(f))
	f.Fuzz(func(t *testing.T, method, target, host, name, value string) {
		a := &Asked{Method: []byte(method), Target: []byte(target), Host: []byte(host), Peer: netip.MustParseAddr("192.0.2.1")}
		a.AddField([]byte(name), []byte(value))
		if fault := holdTogether(rs, a); fault != "" {
			t.Error(fault)
		}
	})
}

func ask(method, target, host string, fields ...string) *Asked {
	a := &Asked{Method: []byte(method), Target: []byte(target), Host: []byte(host), Peer: netip.MustParseAddr("192.0.2.1")}
	for i := 0; i < len(fields); i += 2 {
		a.AddField([]byte(fields[i]), []byte(fields[i+1]))
	}
	return a
}

func TestExplainSaysWhyEachEarlierRouteDidNotMatch(t *testing.T) {
	rs := newTestRules(t, explainConfig(t))
	e := rs.Explain(ask("GET", "/v1/a?q=1&plan=gold", "api.test", "X-Forwarded-For", "198.51.100.1, 203.0.113.5, 10.2.2.2", "X-Beta", "no"))
	var got []string
	for _, r := range e.Routes {
		got = append(got, strings.TrimSpace(r.Route+" "+r.Matcher+": "+r.Why))
	}
	want := []string{
		`block path: none of 2 paths; /internal/*: path segment 1 "v1" is not "internal"`,
		`wild host: host "api.test" is not *.api.test`,
		"post methods: method GET is not POST",
		"net client_ip: client 203.0.113.5 is not in 10.0.0.0/8",
		"beta path: the path ends before segment 3, /*",
		"item :",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	a := ask("GET", "/v1/a/b?q=no", "", "X-Beta", "hunter2")
	a.Peer = netip.MustParseAddr("203.0.113.9")
	e = rs.Explain(a)
	if last := e.Routes[4]; last.Why != "query parameter q does not begin with the prefix" {
		t.Errorf("got %+v", last)
	}
}

func TestExplainTellsTheHopsFromTheRight(t *testing.T) {
	rs := newTestRules(t, explainConfig(t))
	for _, c := range []struct {
		peer, forwarded, client string
		want                    ClientTrace
	}{
		{"203.0.113.9", "1.2.3.4", "203.0.113.9", ClientTrace{Ignored: true}},
		{"10.1.1.1", "198.51.100.1, 203.0.113.5, 10.2.2.2", "203.0.113.5", ClientTrace{Trusted: true, Hops: []HopTrace{{"10.2.2.2", "trusted"}, {"203.0.113.5", "client"}}}},
		{"10.1.1.1", "203.0.113.5, junk, 10.2.2.2", "10.2.2.2", ClientTrace{Trusted: true, Hops: []HopTrace{{"10.2.2.2", "trusted"}, {"junk", "malformed"}}}},
		{"10.1.1.1", "10.3.3.3", "10.3.3.3", ClientTrace{Trusted: true, Hops: []HopTrace{{"10.3.3.3", "client"}}}},
		{"10.1.1.1", "[2001:db8::7]:443", "2001:db8::/64", ClientTrace{Trusted: true, Hops: []HopTrace{{"[2001:db8::7]:443", "client"}}}},
	} {
		a := ask("GET", "/", "api.test", "X-Forwarded-For", c.forwarded)
		a.Peer = netip.MustParseAddr(c.peer)
		got := rs.Explain(a).Client
		if got.ClientIP != c.client || got.Peer != c.peer {
			t.Errorf("%s: got %+v", c.forwarded, got)
		}
		got.Peer, got.Address, got.ClientIP = "", "", ""
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.forwarded, diff)
		}
	}
}

func TestExplainListsTheReadingsOfAnAmbiguousPath(t *testing.T) {
	rs := newTestRules(t, explainConfig(t))
	e := rs.Explain(ask("GET", "/v1/a%2Fb", "api.test"))
	want := []Reading{{"/v1/a%2Fb", []string{}, "item"}, {"/v1/a/b", []string{"%2F separates segments"}, ""}}
	if diff := cmp.Diff(want, e.Readings); diff != "" || e.Refused == nil || e.Refused.Status != 400 {
		t.Errorf("%+v (-want +got):\n%s", e.Refused, diff)
	}
}

func TestExplainNeverShowsASecret(t *testing.T) {
	c := explainConfig(t)
	c.APIKeys = &APIKeysConfig{Header: "X-Pass", Keys: []APIKeyConfig{{UserID: "ann"}}}
	for _, text := range []string{
		"{header.Authorization}", "{header.X-Pass}", "{cookie.session}", "{query.api_key|lower}", "a{header.X-Pass|sha256}b", "{header.Cookie}", "{basic_user}",
	} {
		template, err := ParseTemplate(text)
		if err != nil {
			t.Fatal(err)
		}
		c.Routes = []RouteConfig{{
			Name: "all", UserID: []Template{template}, Resource: template, Plan: template,
			Match: MatchConfig{Headers: map[string]ValueMatch{"X-Pass": {Present: true}}},
		}, {Name: "other"}}
		rs := newTestRules(t, c)
		a := ask("GET", "/x?api_key=hunter2", "api.test", "X-Pass", "hunter2", "Cookie", "session=hunter2", "Authorization", "Basic YW5uOmh1bnRlcjI=")
		out, err := json.Marshal(rs.Explain(a))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(out), "hunter2") || strings.Contains(string(out), "secret") {
			t.Errorf("%s: got %s", text, out)
		}
	}
	c.Routes[0].Match.Headers["X-Pass"] = ValueMatch{Exact: "hunter2"}
	out, err := json.Marshal(newTestRules(t, c).Explain(ask("GET", "/", "api.test", "X-Pass", "guess")))
	if err != nil || strings.Contains(string(out), "hunter2") || !strings.Contains(string(out), "header X-Pass differs") {
		t.Errorf("got %s, %v", out, err)
	}
}

func TestExplainTellsWhichTemplateIsAtFault(t *testing.T) {
	rs := newTestRules(t, explainConfig(t))
	e := rs.Explain(ask("GET", "/v1/a", "api.test", "X-User", "Ann", "X-Cost", "many"))
	if e.UserID.Value != "ann" || e.UserID.From != "user_id[1]" || e.Resource.Value != "item-a" || e.Cost.Value != "" || e.Cost.Tried[0].Fault == "" || e.Refused.Status != 400 || e.Enforced != nil {
		t.Errorf("got %+v %+v %+v", e.UserID, e.Cost, e.Refused)
	}
	e = rs.Explain(ask("GET", "/v1/a", "api.test", "X-User", "Ann", "X-User", "Bob"))
	if e.UserID.Value != "" || e.UserID.Tried[1].Fault == "" || e.Resource != nil {
		t.Errorf("got %+v %+v", e.UserID, e.Resource)
	}
}
