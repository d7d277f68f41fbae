package proxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func newTestRouter(tb testing.TB, patterns ...string) *router {
	tb.Helper()
	var c Config
	for _, pattern := range patterns {
		c.Routes = append(c.Routes, RouteConfig{Name: pattern, Match: MatchConfig{Path: []string{pattern}}})
	}
	return newTestRules(tb, c).router
}

func newTestRules(tb testing.TB, c Config) *Rules {
	tb.Helper()
	rs, err := NewRules(c)
	if err != nil {
		tb.Fatal(err)
	}
	return rs
}

func TestFirstMatchInFileOrderWins(t *testing.T) {
	rt := newTestRouter(t, "/v1/items/{id}", "/v1/items/new", "/v1/*", "/exact", "/dir/")
	for _, c := range []struct{ path, want string }{
		{"/v1/items/7", "/v1/items/{id}"},
		{"/v1/items/new", "/v1/items/{id}"},
		{"/v1/items/a%2Fb", "ambiguous"},
		{"/v1/items/7/more", "/v1/*"},
		{"/v1/", "/v1/*"},
		{"/v1", "none"},
		{"/exact", "/exact"},
		{"/exact/", "none"},
		{"/%65xact", "/exact"},
		{"/dir/", "/dir/"},
		{"/dir", "none"},
		{"//exact", "ambiguous"},
		{"/v1/./items/7", "ambiguous"},
		{"/v1/a/../b", "/v1/*"},
		{"/Exact", "none"},
	} {
		r := &request{path: []byte(c.path)}
		found, err := rt.resolve(r)
		got := "none"
		switch {
		case err != nil:
			got = "ambiguous"
		case found != nil:
			got = found.name
		}
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.path, got, c.want)
		}
	}
}

func TestTemplateIsEmptyIfAPlaceholderIs(t *testing.T) {
	r := &request{
		method: []byte("GET"), host: []byte("a.test"), query: []byte("q=a%20b&x=1&x=2"),
		fields: []field{{[]byte("X-User-Id"), []byte("Ann")}, {[]byte("Cookie"), []byte("s=1; t=2")}},
		client: netip.MustParseAddr("2001:db8::1"), prefix6: 64, route: &route{name: "r"},
	}
	for _, c := range []struct{ text, want, fault string }{
		{"{header.x-user-id}", "Ann", ""},
		{"u:{header.X-User-Id|lower}", "u:ann", ""},
		{"{header.X-User-Id|lower|sha256}", "9834876dcfb05cb167a5c24953eba58c4ac89b1adf57f28f2f9d09af107ee8f0", ""},
		{"u:{header.None}", "", ""},
		{"{query.q}", "a b", ""},
		{"{query.x}", "", "twice"},
		{"{cookie.t}", "2", ""},
		{"{client_ip}", "2001:db8::/64", ""},
		{"{method} {host} {route}", "GET a.test r", ""},
	} {
		tpl := template(t, c.text)
		got, err := tpl.appendTo(nil, r)
		if (err == nil) != (c.fault == "") {
			t.Errorf("%s: error %v, want %q", c.text, err, c.fault)
			continue
		}
		if c.text != "{header.X-User-Id|lower|sha256}" && string(got) != c.want || len(got) != len(c.want) {
			t.Errorf("%s: got %q, want %q", c.text, got, c.want)
		}
	}
}

func TestClientAddressIsTheLastUntrustedHop(t *testing.T) {
	var trusted Prefix
	if err := trusted.UnmarshalText([]byte("10.0.0.0/8")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		peer string
		xff  []string
		want string
	}{
		{"1.1.1.1", []string{"6.6.6.6"}, "1.1.1.1"},
		{"10.0.0.1", []string{"6.6.6.6, 2.2.2.2"}, "2.2.2.2"},
		{"10.0.0.1", []string{"6.6.6.6", "2.2.2.2, 10.0.0.2"}, "2.2.2.2"},
		{"10.0.0.1", []string{"6.6.6.6, nonsense, 10.0.0.2"}, "10.0.0.2"},
		{"10.0.0.1", []string{"::ffff:2.2.2.2"}, "2.2.2.2"},
		{"10.0.0.1", []string{"[2001:db8::1]:80"}, "2001:db8::1"},
		{"10.0.0.1", nil, "10.0.0.1"},
	} {
		r := &request{peer: netip.MustParseAddr(c.peer)}
		for _, value := range c.xff {
			r.fields = append(r.fields, field{[]byte("X-Forwarded-For"), []byte(value)})
		}
		if got, _ := clientAddress(r, []Prefix{trusted}); got.String() != c.want {
			t.Errorf("%s %q: got %s, want %s", c.peer, c.xff, got, c.want)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	for _, text := range []string{"{header.X}", "a{query.q|lower|sha256}b", "{", "}{", "{path.id}", "{cookie.a}{host}"} {
		f.Add(text, "q=1&q", "a=b; c")
	}
	f.Fuzz(func(t *testing.T, text, query, cookie string) {
		tpl, err := ParseTemplate(text)
		if err != nil {
			return
		}
		for i := range tpl.parts {
			if tpl.parts[i].from == fromPath {
				return
			}
		}
		r := &request{query: []byte(query), fields: []field{{[]byte("Cookie"), []byte(cookie)}}, route: &route{name: "r"}}
		before := []byte("kept")
		got, err := tpl.appendTo(before, r)
		if !bytes.HasPrefix(got, before) || err != nil && len(got) != len(before) {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	})
}

func BenchmarkRouteMatch(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("routes=%d", n), func(b *testing.B) {
			var patterns []string
			for i := range n {
				patterns = append(patterns, fmt.Sprintf("/v1/service%d/{id}", i))
			}
			rt := newTestRouter(b, patterns...)
			r := &request{path: fmt.Appendf(nil, "/v1/service%d/42", n-1), method: []byte("GET")}
			b.ReportAllocs()
			for b.Loop() {
				if found, err := rt.resolve(r); found == nil || err != nil {
					b.Fatal(found, err)
				}
			}
		})
	}
}

// judged is the route that rules find for a request: a method, a URL's host and target,
// the address of the client, and header lines.
func judged(t *testing.T, rs *Rules, request string) (string, Judgement) {
	t.Helper()
	lines := strings.Split(request, "\n")
	start := strings.Fields(lines[0])
	var a Asked
	var j Judgement
	for range 2 { // the second time in used memory
		a.Reset()
		a.Method, a.Host, a.Target = []byte(start[0]), []byte(start[1]), []byte(start[2])
		a.Peer = netip.MustParseAddr("192.0.2.7")
		if len(start) > 3 {
			a.Peer = netip.MustParseAddr(start[3])
		}
		for _, line := range lines[1:] {
			name, value, _ := strings.Cut(line, ": ")
			a.AddField([]byte(name), []byte(value))
		}
		rs.Judge(&a, &j)
	}
	if j.Route == "" {
		return fmt.Sprint(j.Status), j
	}
	return j.Route, j
}

func TestEveryMatcherMustHold(t *testing.T) {
	rs := newTestRules(t, Config{TrustedProxies: []Prefix{{netip.MustParsePrefix("10.0.0.0/8")}}, Routes: []RouteConfig{
		{Name: "hosts", Match: MatchConfig{Host: []string{"a.test", "*.b.test"}, Path: []string{"/x/{id}", "/y/z/{id}"}}, Resource: template(t, "{path.id}")},
		{Name: "methods", Match: MatchConfig{Path: []string{"/m"}, Methods: []string{"GET", "HEAD"}}},
		{Name: "exact", Match: MatchConfig{Path: []string{"/h"}, Headers: map[string]ValueMatch{"X-A": {Exact: "1"}, "X-B": {Present: true}}}},
		{Name: "prefix", Match: MatchConfig{Path: []string{"/h"}, Headers: map[string]ValueMatch{"User-Agent": {Prefix: "curl/"}}}},
		{Name: "regexp", Match: MatchConfig{Path: []string{"/h"}, Headers: map[string]ValueMatch{"X-A": {Regexp: "a|bc"}}}},
		{Name: "query", Match: MatchConfig{Path: []string{"/q"}, Query: map[string]ValueMatch{"v": {Exact: "2"}, "debug": {Present: true}}}},
		{Name: "query-regexp", Match: MatchConfig{Path: []string{"/q"}, Query: map[string]ValueMatch{"v": {Regexp: "[0-9]+"}}}},
		{Name: "clients", Match: MatchConfig{Path: []string{"/c"}, ClientIP: []Prefix{{netip.MustParsePrefix("192.0.2.0/24")}, {netip.MustParsePrefix("2001:db8::/32")}}}},
		{Name: "rest"},
	}})
	for _, c := range []struct{ request, want string }{
		{"GET a.test /x/1", "hosts"},
		{"GET A.test:80 /y/z/1", "hosts"},
		{"GET c.b.test /x/1", "hosts"},
		{"GET b.test /x/1", "rest"},
		{"GET a.test /y/1", "rest"},
		{"GET a /m", "methods"},
		{"HEAD a /m", "methods"},
		{"POST a /m", "rest"},
		{"GET a /h\nx-a: 1\nX-B: ", "exact"},
		{"GET a /h\nX-A: 1", "rest"},
		{"GET a /h\nX-A: 1\nX-A: 1\nX-B: 1", "400"}, // which of the two would the upstream read?
		{"GET a /h\nUser-Agent: curl/8", "prefix"},
		{"GET a /h\nUser-Agent: a curl/8", "rest"},
		{"GET a /h\nX-A: a", "regexp"},
		{"GET a /h\nX-A: bc", "regexp"},
		{"GET a /h\nX-A: ac", "rest"},
		{"GET a /h\nX-A: bcd", "rest"},
		{"GET a /q?v=2&debug", "query"},
		{"GET a /q?v=2", "query-regexp"},
		{"GET a /q?%76=2&debug=", "query"},
		{"GET a /q?v=x", "rest"},
		{"GET a /q?v=2&v=3", "400"},
		{"GET a /q?V=2", "400"},
		{"GET a /c", "clients"},
		{"GET a /c 198.51.100.1", "rest"},
		{"GET a /c ::ffff:192.0.2.1", "clients"},
		{"GET a /c 2001:db8::1", "clients"},
		{"GET a /c 10.0.0.1\nX-Forwarded-For: 192.0.2.9", "clients"},
		{"GET a /c 10.0.0.1\nX-Forwarded-For: ::ffff:192.0.2.9", "clients"},
		{"GET a /c 10.0.0.1\nX-Forwarded-For: 192.0.2.9, 198.51.100.1", "rest"},
		{"G(T a /c", "400"},
		{"GET a/b /c", "400"},
		{"GET a c", "400"},
		{"CONNECT a a:80", "405"},
		{"GET a /c\nX-A: \x01", "400"},
	} {
		if got, _ := judged(t, rs, c.request); got != c.want {
			t.Errorf("%q: got %s, want %s", c.request, got, c.want)
		}
	}
	if _, j := judged(t, rs, "GET a.test /y/z/q"); string(j.Ask.Resource) != "q" {
		t.Errorf("resource %q of the second path, want q", j.Ask.Resource)
	}
}

func TestWhoWhatPlanAndCostAreJudged(t *testing.T) {
	rs := newTestRules(t, Config{Routes: []RouteConfig{
		{Name: "block", Match: MatchConfig{Path: []string{"/block"}}, Action: "block"},
		{Name: "free", Match: MatchConfig{Path: []string{"/free"}}, Action: "bypass"},
		{Name: "all", UserID: []Template{template(t, "{header.U}")}, Plan: template(t, "{header.P|lower}"), Cost: template(t, "{header.C}")},
	}})
	for _, c := range []struct{ request, want string }{
		{"GET a /block", "block 403 false"},
		{"GET a /free", "free 0 false"},
		{"OPTIONS a /\nOrigin: b\nAccess-Control-Request-Method: PUT", "all 0 false"},
		{"OPTIONS a /", "all 0 true 192.0.2.7 all  1"},
		{"GET a /\nU: ann\nP: GOLD\nC: 3", "all 0 true ann all gold 3"},
		{"GET a /\nU: ann\nC: 3.5", "all 400 true"},
		{"GET a / 2001:db8:1:2:3::4", "all 0 true 2001:db8:1:2::/64 all  1"},
	} {
		rs.prefix6 = 64
		_, j := judged(t, rs, c.request)
		got := fmt.Sprint(j.Route, " ", j.Status, " ", j.Charged)
		if j.Charged && j.Refused == nil {
			got += fmt.Sprintf(" %s %s %s %d", j.Ask.User, j.Ask.Resource, j.Ask.Plan, j.Ask.Cost)
		}
		if got != c.want {
			t.Errorf("%q: got %q, want %q", c.request, got, c.want)
		}
	}
}

// TestAllocJudging pins that a request is judged without garbage.
func TestAllocJudging(t *testing.T) {
	c := Config{IPv6Prefix: 64}
	for i := range 1000 {
		c.Routes = append(c.Routes, RouteConfig{Name: fmt.Sprint("r", i), Match: MatchConfig{Path: []string{fmt.Sprintf("/v1/service%d/{id}", i), fmt.Sprintf("/v2/service%d/{id}", i)}}})
	}
	c.Routes = append(c.Routes, RouteConfig{
		Name: "last", UserID: []Template{template(t, "{header.U}")}, Plan: template(t, "{header.P|lower}"), Cost: template(t, "{header.C}"),
		Match: MatchConfig{Headers: map[string]ValueMatch{"U": {Regexp: "[a-z]+"}}, Query: map[string]ValueMatch{"q": {Prefix: "x"}}},
	})
	rs := newTestRules(t, c)
	var a Asked
	var j Judgement
	method, host, target := []byte("GET"), []byte("a.test"), []byte("/v3/service1/7?q=x%20y")
	names, values := [][]byte{[]byte("U"), []byte("P"), []byte("C")}, [][]byte{[]byte("ann"), []byte("Gold"), []byte("3")}
	got := testing.AllocsPerRun(100, func() {
		a.Reset()
		a.Method, a.Host, a.Target, a.Peer = method, host, target, netip.AddrFrom4([4]byte{192, 0, 2, 1})
		for i := range names {
			a.AddField(names[i], values[i])
		}
		if rs.Judge(&a, &j); j.Refused != nil || j.Route != "last" || j.Ask.Cost != 3 {
			t.Fatal(j)
		}
	})
	if got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func TestPrefixOfMappedAddressesIsThatOfIPv4(t *testing.T) {
	for text, want := range map[string]string{"::ffff:10.0.0.0/104": "10.0.0.0/8", "::ffff:10.1.2.3": "10.1.2.3/32", "10.0.0.0/8": "10.0.0.0/8", "::ffff:0.0.0.0/95": "", "::ffff:10.1.0.0/104": ""} {
		var p Prefix
		err := p.UnmarshalText([]byte(text))
		if got := p.String(); err == nil && got != want || err != nil && want != "" {
			t.Errorf("%s: got %s, %v, want %q", text, got, err, want)
		}
	}
}
