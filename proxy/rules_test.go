package proxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
)

func newTestRouter(tb testing.TB, patterns ...string) *router {
	tb.Helper()
	rt := newRouter()
	for i, pattern := range patterns {
		path, err := parsePath(pattern)
		if err != nil {
			tb.Fatal(err)
		}
		rt.add(&route{index: i, name: pattern, path: path}, "")
	}
	return rt
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
