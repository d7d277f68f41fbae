package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// wayKind is a way in which many routes of one host and path can differ.
type wayKind struct {
	name  string
	match func(i int) MatchConfig           // of route i
	ask   func(a *Asked, target int) *Asked // what that route takes, and no other
}

// exactly is a match for one value.
func exactly(name, format string, i int) map[string]ValueMatch {
	return map[string]ValueMatch{name: {Exact: fmt.Sprintf(format, i)}}
}

func network(i, bits int) Prefix {
	return Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), bits)}
}

func network6(i, bits int) Prefix {
	return Prefix{netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i)}), bits)}
}

func withField(a *Asked, name, format string, i int) *Asked {
	a.AddField([]byte(name), fmt.Appendf(nil, format, i))
	return a
}

var manyHosts = func() (all []string) {
	for i := range 50 {
		all = append(all, fmt.Sprintf("h%d.test", i))
	}
	return all
}()

// wayKinds are those whose routes are looked up. Of some, each route wants something besides
// that others want too.
var wayKinds = []wayKind{
	{"segment", func(i int) MatchConfig { return MatchConfig{Path: []string{fmt.Sprintf("/v1/service%d/{id}", i)}} },
		func(a *Asked, i int) *Asked { a.Target = fmt.Appendf(nil, "/v1/service%d/42", i); return a }},
	{"host", func(i int) MatchConfig { return MatchConfig{Host: []string{fmt.Sprintf("h%d.test", i)}} },
		func(a *Asked, i int) *Asked { a.Host = fmt.Appendf(nil, "h%d.test", i); return a }},
	{"header", func(i int) MatchConfig { return MatchConfig{Headers: exactly("X-Tenant", "t%d", i)} },
		func(a *Asked, i int) *Asked { return withField(a, "x-TENANT", "t%d", i) }},
	{"query", func(i int) MatchConfig { return MatchConfig{Query: exactly("tenant", "t%d", i)} },
		func(a *Asked, i int) *Asked { a.Target = fmt.Appendf(nil, "/?a=b&tenant=%%74%d", i); return a }},
	{"client_ip", func(i int) MatchConfig { return MatchConfig{ClientIP: []Prefix{network(i, 24)}} },
		func(a *Asked, i int) *Asked { a.Peer = network(i, 24).Addr().Next(); return a }},
	{"client_ip of IPv6", func(i int) MatchConfig { return MatchConfig{ClientIP: []Prefix{network6(i, 48), network6(i+5000, 64)}} },
		func(a *Asked, i int) *Asked { a.Peer = network6(i, 48).Addr().Next(); return a }},
	{"methods", func(i int) MatchConfig {
		return MatchConfig{Methods: []string{fmt.Sprintf("GET%d", i), fmt.Sprintf("PUT%d", i)}}
	},
		func(a *Asked, i int) *Asked { a.Method = fmt.Appendf(nil, "PUT%d", i); return a }},
	{"header and region", func(i int) MatchConfig {
		headers := exactly("X-Tenant", "t%d", i%32)
		headers["X-Region"] = ValueMatch{Exact: fmt.Sprintf("r%d", i/32)}
		return MatchConfig{Path: []string{"/{any}"}, Headers: headers, Methods: []string{"GET", "POST"}, ClientIP: []Prefix{network(0, 8), network6(0, 32)}}
	}, func(a *Asked, i int) *Asked {
		return withField(withField(a, "X-Region", "r%d", i/32), "X-Tenant", "t%d", i%32)
	}},
	{"query behind a common header", func(i int) MatchConfig {
		return MatchConfig{Headers: exactly("X-Version", "2", 0), Query: exactly("id", "%d", i)}
	}, func(a *Asked, i int) *Asked {
		a.Target = fmt.Appendf(nil, "/?id=%d", i)
		return withField(a, "X-Version", "2", 0)
	}},
	{"client_ip on common hosts", func(i int) MatchConfig {
		return MatchConfig{Host: manyHosts, ClientIP: []Prefix{network(i, 24)}}
	}, func(a *Asked, i int) *Asked {
		a.Host, a.Peer = []byte("h7.test"), network(i, 24).Addr().Next()
		return a
	}},
	{"header beside expressions", func(i int) MatchConfig {
		if i < 5 {
			return MatchConfig{Headers: map[string]ValueMatch{"X-Tenant": {Regexp: fmt.Sprintf("a%d.*", i)}}}
		}
		return MatchConfig{Headers: exactly("X-Tenant", "t%d", i)}
	}, func(a *Asked, i int) *Asked { return withField(a, "X-Tenant", "t%d", i) }},
}

// ownNames is a kind that is looked up too. But each name that any route reads is checked
// in each request, which takes its time.
var ownNames = wayKind{"header beside a name of its own", func(i int) MatchConfig {
	headers := exactly(fmt.Sprintf("X-%d", i), "%d", i)
	headers["X-Tenant"] = ValueMatch{Exact: fmt.Sprintf("t%d", i/2)}
	return MatchConfig{Headers: headers}
}, func(a *Asked, i int) *Asked {
	return withField(withField(a, fmt.Sprintf("X-%d", i), "%d", i), "X-Tenant", "t%d", i/2)
}}

// routes are n of the kind.
func (k *wayKind) routes(n int) (all []RouteConfig) {
	for i := range n {
		all = append(all, RouteConfig{Name: fmt.Sprint(i), Match: k.match(i)})
	}
	return all
}

func (k *wayKind) rules(tb testing.TB, n int) *Rules {
	tb.Helper()
	return newTestRules(tb, Config{Routes: k.routes(n)})
}

// asked is a request for route i.
func (k *wayKind) asked(i int) *Asked {
	return k.ask(&Asked{Method: []byte("GET"), Host: []byte("a.test"), Target: []byte("/x"), Peer: netip.MustParseAddr("10.0.0.1")}, i)
}

// read is a's request, ready to be matched.
func read(tb testing.TB, rs *Rules, a *Asked) *request {
	tb.Helper()
	if err := rs.read(a); err != nil {
		tb.Fatal(err)
	}
	return &a.request
}

func TestEachOfManyAlikeRoutesIsFound(t *testing.T) {
	const n = 300
	for _, k := range wayKinds {
		rs := k.rules(t, n)
		for i := 5; i < n; i++ {
			if found, err := rs.find(read(t, rs, k.asked(i))); err != nil || found == nil || found.index != i {
				t.Fatalf("%s: got %+v, %v, want route %d", k.name, found, err, i)
			}
		}
		if found, err := rs.find(read(t, rs, k.asked(n))); err != nil || found != nil {
			t.Errorf("%s: got %+v, %v, want no route", k.name, found, err)
		}
	}
}

// lookedAt counts the ways that a request may look at: it makes all routes accept
// whatever comes, and then, one after the other, those that are found refuse it.
func lookedAt(tb testing.TB, rs *Rules, r *request) (n int) {
	tb.Helper()
	if _, err := rs.find(r); err != nil {
		tb.Fatal(err)
	}
	for _, rt := range rs.routes {
		rt.methods, rt.clients, rt.headers, rt.queries = nil, nil, nil, nil
	}
	for {
		found, err := rs.router.resolve(r)
		if err != nil {
			tb.Fatal(err)
		}
		if found == nil {
			return n
		}
		found.methods = []string{"no method"}
		n++
	}
}

func TestWaysLookedAtDoNotGrowWithTheRoutes(t *testing.T) {
	const most = 8 // the list of two tables, or five expressions and a list
	for _, k := range append([]wayKind{ownNames}, wayKinds...) {
		for _, n := range []int{10, 100, 1000} {
			for _, i := range []int{n - 1, n} { // the last route, and none
				rs := k.rules(t, n)
				got := lookedAt(t, rs, read(t, rs, k.asked(i)))
				if got > most {
					t.Errorf("%s: a request for %d of %d routes looks at %d, want no more than %d", k.name, i, n, got, most)
				}
				if got < n-i {
					t.Errorf("%s: looked at none of %d", k.name, n)
				}
			}
		}
	}
}

// TestOnlyExpressionsAreLookedThrough shows that the count above counts.
func TestOnlyExpressionsAreLookedThrough(t *testing.T) {
	k := wayKind{match: func(i int) MatchConfig {
		if i%2 > 0 {
			return MatchConfig{Headers: exactly("X-Tenant", "t%d", i)}
		}
		return MatchConfig{Headers: map[string]ValueMatch{"X-Tenant": {Regexp: fmt.Sprintf("a%d.*", i)}}}
	}, ask: func(a *Asked, i int) *Asked { return withField(a, "X-Tenant", "t%d", i) }}
	rs := k.rules(t, 100)
	if got := lookedAt(t, rs, read(t, rs, k.asked(99))); got != 51 {
		t.Errorf("got %d, want the 50 expressions and the one exact value", got)
	}
}

func TestExpressionsBehindAnExactMatchAreNotTried(t *testing.T) {
	k := wayKind{match: func(i int) MatchConfig {
		if i < 20 {
			return MatchConfig{Headers: exactly("X-Tenant", "t%d", i)}
		}
		return MatchConfig{Headers: map[string]ValueMatch{"X-Tenant": {Regexp: ".*"}}}
	}, ask: func(a *Asked, i int) *Asked { return withField(a, "X-Tenant", "t%d", i) }}
	rs := k.rules(t, 40)
	for _, rt := range rs.routes[20:] {
		rt.headers, rt.queries = nil, []valueMatch{{index: 1000}} // whoever asks for it panics
	}
	if found, err := rs.find(read(t, rs, k.asked(3))); err != nil || found == nil || found.index != 3 {
		t.Errorf("got %+v, %v, want route 3", found, err)
	}
}

// BenchmarkMatchAlike matches the last of many routes that differ in one thing.
func BenchmarkMatchAlike(b *testing.B) {
	for _, k := range wayKinds {
		for _, n := range []int{10, 1000} {
			b.Run(fmt.Sprintf("%s/routes=%d", k.name, n), func(b *testing.B) {
				rs := k.rules(b, n)
				r := read(b, rs, k.asked(n-1))
				b.ReportAllocs()
				for b.Loop() {
					r.scratch = r.scratch[:0]
					if found, err := rs.find(r); found == nil || err != nil {
						b.Fatal(found, err)
					}
				}
			})
		}
	}
}

// BenchmarkBuildAlike is what a reload pays for.
func BenchmarkBuildAlike(b *testing.B) {
	for _, k := range wayKinds {
		b.Run(k.name, func(b *testing.B) {
			c := Config{Routes: k.routes(1000)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := NewRules(c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// dice makes rules and requests out of few values, so that they meet.
type dice struct{ *rand.Rand }

func rolled[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

// some is a list of up to three.
func some[T any](d dice, from ...T) (list []T) {
	for range d.IntN(4) {
		list = append(list, rolled(d, from...))
	}
	return list
}

func (d dice) value() string { return rolled(d, "", "1", "2", "3", "1a", "A", fmt.Sprint(d.IntN(30))) }

func (d dice) valueMatch() ValueMatch {
	switch d.IntN(8) {
	case 0:
		return ValueMatch{Regexp: rolled(d, "1|2", "[0-9]+", ".*")}
	case 1:
		return ValueMatch{Prefix: rolled(d, "1", "2")}
	case 2:
		return ValueMatch{Present: true}
	}
	return ValueMatch{Exact: d.value(), isText: true}
}

func (d dice) valueMatches(names ...string) map[string]ValueMatch {
	all := map[string]ValueMatch{}
	for _, name := range some(d, names...) {
		all[name] = d.valueMatch()
	}
	return all
}

func (d dice) networks(tb testing.TB) (all []Prefix) {
	for _, text := range some(d, "0.0.0.0/0", "::/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1", "::ffff:10.2.0.0/112", "::ffff:10.1.1.2",
		"2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::1", "::/1", fmt.Sprintf("10.1.%d.0/24", d.IntN(9))) {
		var p Prefix
		if err := p.UnmarshalText([]byte(text)); err != nil {
			tb.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) == 3 {
		all[2] = Prefix{netip.MustParsePrefix("10.1.1.7/24")} // which no file can have
	}
	return all
}

// config has n routes. All have few places to stand at, or each some of many.
func (d dice) config(tb testing.TB, n int) (c Config) {
	hosts, paths := []string{"", "a.test", "*.Test", "*.a.test"}, []string{"", "/x", "/x/*", "/{id}", "/x/{id}", "/*", "/x/", "/{id}/*"}
	if d.IntN(2) > 0 {
		hosts, paths = hosts[:1], paths[:2]
	}
	for i := range n {
		m := MatchConfig{Host: some(d, hosts...), Path: some(d, paths...), Methods: some(d, "GET", "POST", "PUT")}
		if m.Headers = d.valueMatches("X-A", "x-a", "X-B", "X_B"); d.IntN(2) > 0 {
			m.Query = d.valueMatches("p", "q_r")
		}
		if d.IntN(3) == 0 {
			m.ClientIP = d.networks(tb)
		}
		if d.IntN(3) > 0 {
			m.Methods = nil
		}
		c.Routes = append(c.Routes, RouteConfig{Name: fmt.Sprint(i), Match: m})
	}
	return c
}

func (d dice) asked() *Asked {
	a := &Asked{
		Method: []byte(rolled(d, "GET", "POST", "PATCH")), Host: []byte(rolled(d, "a.test", "b.a.test:80", "A.TEST", "x")), Target: []byte(rolled(d, "/x", "/x", "/x/1", "/y", "/x/", "/", "/x/%2e/y", "/x%2F1", "//x", "/x;a=b", "*")),
		Peer: rolled(d, netip.Addr{}, netip.MustParseAddr("::ffff:10.1.1.2"), netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("10.2.0.9"), netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("9.9.9.9"),
			netip.AddrFrom4([4]byte{10, 1, byte(d.IntN(9)), 1})),
	}
	if a.Target[0] == '*' {
		a.Method = []byte("OPTIONS")
	}
	for _, name := range some(d, "X-A", "x-A", "X-B", "x-b", "X_B", "Connection") {
		a.AddField([]byte(name), []byte(d.value()))
	}
	for i, name := range some(d, "p", "q_r", "%70", "q.r", "other") {
		a.Target = fmt.Appendf(a.Target, "%c%s=%s", "?&"[min(i, 1)], name, d.value())
	}
	return a
}

// withoutIndex are the rules that look through all ways of a node.
func withoutIndex(tb testing.TB, rs *Rules) *Rules {
	tb.Helper()
	plain := *rs
	plain.router, plain.routes = newRouter(), nil
	ways := 0
	for i := range rs.config.Routes {
		rt, err := newRoute(place{i, ways}, &rs.config.Routes[i], nil)
		if err != nil {
			tb.Fatal(err)
		}
		ways += len(rt.ways)
		plain.routes = append(plain.routes, rt)
		plain.router.add(rt, rs.config.Routes[i].Match.hosts())
	}
	return &plain
}

// checkIndexed compares what random rules say of random requests with and without an
// index, and with a search through all routes that knows of no tree either. It counts the
// requests that a route takes.
func checkIndexed(t *testing.T, seed uint64) (matched int) {
	t.Helper()
	d := dice{rand.New(rand.NewPCG(seed, 1))}
	rs := newTestRules(t, d.config(t, rolled(d, 3, 12, 40, 200)))
	plain := withoutIndex(t, rs)
	for range 200 {
		a := d.asked()
		var got, want Judgement
		plain.Judge(a, &want)
		rs.Judge(a, &got)
		if got.Index != want.Index || fmt.Sprint(got.Refused) != fmt.Sprint(want.Refused) {
			t.Fatalf("seed %d: %s %s %s %v %s: got route %d, %v, want %d, %v", seed, a.Method, a.Host, a.Target, a.Peer, a.request.fields, got.Index, got.Refused, want.Index, want.Refused)
		}
		if got.Refused != nil && got.Refused != errNoRoute {
			continue
		}
		first := -1
		for i := len(rs.routes) - 1; i >= 0; i-- {
			if matcher, _ := rs.whyNot(rs.routes[i], &a.request); matcher == "" {
				first = i
			}
		}
		if got.Index != first {
			t.Fatalf("seed %d: %s %s %s: got route %d, want the first, %d", seed, a.Method, a.Host, a.Target, got.Index, first)
		}
		if first >= 0 {
			matched++
		}
	}
	return matched
}

func TestIndexedRoutesAreThoseOfASearchThroughAll(t *testing.T) {
	matched := 0
	for seed := range uint64(300) {
		matched += checkIndexed(t, seed)
	}
	if matched < 300*200/10 {
		t.Errorf("only %d requests had a route", matched)
	}
}

func FuzzIndexedRoutes(f *testing.F) {
	f.Fuzz(func(t *testing.T, seed uint64) { checkIndexed(t, seed) })
}
