package proxy

import (
	"net/url"
	"strings"
	"testing"
)

// lookedUp is what a template makes of a request with these raw header lines
// and this query, or "refused".
func lookedUp(t *testing.T, text, lines, query string) string {
	t.Helper()
	limits := defaultLimits()
	r := &request{query: []byte(query), route: &route{name: "r"}}
	if err := r.parseFields([]byte(lines+"\r\n"), &limits); err != nil {
		t.Fatalf("%q: %v", lines, err)
	}
	tpl := template(t, text)
	got, err := tpl.appendTo([]byte("kept "), r)
	if err != nil {
		if string(got) != "kept " {
			t.Errorf("%q, %q: left %q behind", lines, query, got)
		}
		return "refused"
	}
	return string(got[len("kept "):])
}

func TestHeaderFieldThatARuleReadsIsClear(t *testing.T) {
	for _, c := range []struct{ lines, want string }{
		{"", ""},
		{"X-Api-Key: k\r\n", "k"},
		{"x-API-key:\tk \t\r\n", "k"},
		{"X-Api-Key: K\r\nX-Api-Key2: other\r\n", "K"},
		{"X-Api-Key: a, b\r\n", "a, b"},
		{"X-Api-Key: k\r\nConnection: keep-alive\r\n", "k"},
		{"Connection: X-Api-Key\r\n", ""},
		{"X-Api-Key: k\r\nX-Api-Key: k\r\n", "refused"},
		{"X-Api-Key: k\r\nx-api-KEY: l\r\n", "refused"},
		{"X-Api-Key: k\r\nX_Api_Key: l\r\n", "refused"},
		{"X_Api-Key: l\r\n", "refused"},
		{"x_api_key: l\r\n", "refused"},
		{"X.Api.Key: l\r\n", "refused"},
		{"X-Api-Key: k\r\nConnection: x-api-key\r\n", "refused"},
		{"X-Api-Key: k\r\nConnection: close\r\nConnection: a,\tX-Api-Key\r\n", "refused"},
		{"X_Other_Key: a\r\nX-Other-Key: b\r\nX-Other-Key: c\r\nConnection: X-Other-Key\r\n", ""},
	} {
		if got := lookedUp(t, "{header.X-Api-Key}", c.lines, ""); got != c.want {
			t.Errorf("%q: got %q, want %q", c.lines, got, c.want)
		}
	}
	if got := lookedUp(t, "{header.X_Api_Key}", "X_Api_Key: k\r\n", ""); got != "k" {
		t.Errorf("a rule that reads the underscore: got %q", got)
	}
	if got := lookedUp(t, "{header.X_Api_Key}", "X-Api-Key: k\r\n", ""); got != "refused" {
		t.Errorf("a rule that reads the underscore, and a dash: got %q", got)
	}
}

func TestQueryParameterThatARuleReadsIsClear(t *testing.T) {
	for _, c := range []struct{ query, want string }{
		{"", ""},
		{"user_id", ""},
		{"user_id=", ""},
		{"user_id=ann", "ann"},
		{"a=1&user%5Fid=ann&b=2", "ann"},
		{"user_id=a+b", "a b"},
		{"user_id=a%20b", "a b"},
		{"user_id=a=b", "a=b"},
		{"user_id=a%3Bb", "a;b"},
		{"a=%zz&user_id=ann", "ann"},
		{"a=1;b=2&user_id=ann", "ann"},
		{"user=1&user=2&user_id=ann&user_idx=3&user_ids[]=4", "ann"},
		{"user_id=a&user_id=a", "refused"},
		{"user_id=a&user%5fid=b", "refused"},
		{"user_id=%zz", "refused"},
		{"user_id=%4", "refused"},
		{"user_id=a%00b", "refused"},
		{"%zz=1&user_id=ann", "refused"},
		{"%u0075ser_id=ann", "refused"},
		{"user_id=ann;a=1", "refused"},
		{"a=1;user_id=ann", "refused"},
		{"user_id=a&b=1;user_id=b", "refused"},
		{"user_id[]=ann", "refused"},
		{"user_id%5B0%5D=ann", "refused"},
		{"user_id%00x=ann", "refused"},
		{"+user_id=ann", "refused"},
		{"user.id=ann", "refused"},
		{"user%20id=ann", "refused"},
		{"User_Id=ann", "refused"},
		{strings.Repeat("a&", 999) + "user_id=ann", "ann"},
		{strings.Repeat("a&", 1000) + "user_id=ann", "refused"},
		{strings.Repeat("a;", 1000) + "&user_id=ann", "refused"},
	} {
		if got := lookedUp(t, "{query.user_id}", "", c.query); got != c.want {
			t.Errorf("%.60q: got %q, want %q", c.query, got, c.want)
		}
	}
}

func TestCookieThatARuleReadsIsClear(t *testing.T) {
	for _, c := range []struct{ lines, want string }{
		{"", ""},
		{"Cookie: sid=abc\r\n", "abc"},
		{"cookie: a=1; sid=abc ;b=2\r\n", "abc"},
		{"Cookie: sid=\"abc\"\r\n", "abc"},
		{"Cookie: sid=%61b%63\r\n", "abc"},
		{"Cookie: sid=s%3Aabc%3D+=\r\n", "s:abc=+="},
		{"Cookie: sid=a%zz%\r\n", "a%zz%"},
		{"Cookie: sid= abc\r\n", "abc"},
		{"Cookie: sid=\r\n", ""},
		{"Cookie: prefs={\"a\":1,\"b\":\"c d\"}; sid=abc; x=\"q, r\"\r\n", "abc"},
		{"Cookie: a=1; sid=abc\r\nConnection: close\r\n", "abc"},
		{"Cookie: sid=a; sid=a\r\n", "refused"},
		{"Cookie: sid; sid=a\r\n", "refused"},
		{"Cookie: sid=a\r\nCookie: b=1\r\n", "refused"},
		{"Cookie: b=1\r\nCookie: sid=a\r\n", "refused"},
		{"Cookie: sid=a,b\r\n", "refused"},
		{"Cookie: sid=a b\r\n", "refused"},
		{"Cookie: sid=a\\b\r\n", "refused"},
		{"Cookie: sid=a\"b\r\n", "refused"},
		{"Cookie: sid=\"a\r\n", "refused"},
		{"Cookie: sid=a%00\r\n", "refused"},
		{"Cookie: x=\"; sid=a; y=\"\r\n", "refused"},
		{"Cookie: x=\"\\\"; sid=a; y=\"\r\n", "refused"},
		{"Cookie: x=1,sid=a\r\n", "refused"},
		{"Cookie: x=1, sid=a; sid=b\r\n", "refused"},
		{"Cookie: sid =a\r\n", "refused"},
		{"Cookie: =sid=a\r\n", "refused"},
		{"Cookie: SID=a\r\n", "refused"},
		{"Cookie: %73id=a\r\n", "refused"},
		{"Cookie: sid[xxxxxxxxxxxxxxxxxxxxxxxxxx]=a\r\n", "refused"},
		{"Cookie: sid=a\r\nConnection: cookie\r\n", "refused"},
	} {
		if got := lookedUp(t, "{cookie.sid}", c.lines, ""); got != c.want {
			t.Errorf("%q: got %q, want %q", c.lines, got, c.want)
		}
	}
}

// TestRulesRefuseOnlyWhatTheyRead sends all of it past a rule that reads other names.
func TestRulesRefuseOnlyWhatTheyRead(t *testing.T) {
	rg, up := rawRig(t, 9, always(okAnswer), func(c *Config) {
		c.Routes[0].UserID = []Template{template(t, "{query.key}"), template(t, "{cookie.key}"), template(t, "{header.X-Key}")}
	})
	const odd = "GET /?a=%zz;b&a=1&A[]=2 HTTP/1.1\r\nHost: a\r\nCookie: b=1,2; b=\"c\r\nX_User: a\r\nX-User: b\r\nX-User: c\r\n\r\n"
	c := rg.dial(t)
	c.send(odd)
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 400 ") { // the quote hides what may follow it
		t.Errorf("got %q, want 400", got)
	}
	c = rg.dial(t)
	c.send(strings.Replace(odd, `"c`, "c", 1))
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("got %q, want 200", got)
	}
	if got := up.recorded(); len(got) != 1 || !strings.Contains(got[0], "GET /?a=%zz;b&a=1&A[]=2 HTTP/1.1\r\n") || !strings.Contains(got[0], "X_User: a\r\nX-User: b\r\nX-User: c\r\n") {
		t.Errorf("the upstream got %q", got)
	}
}

func TestUnclearIdentityIs400AndReachesNobody(t *testing.T) {
	rg, up := rawRig(t, 9, always(okAnswer), func(c *Config) {
		c.Routes[0].UserID = []Template{template(t, "{header.X-Api-Key}")}
		c.Routes[0].Resource = template(t, "{query.plan}")
		c.Routes[0].Cost = template(t, "{cookie.cost}")
	})
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\nX_Api_Key: k\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nX-Api-Key: k\r\nConnection: X-Api-Key\r\n\r\n",
		"GET /?plan=a&pl%61n=b HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nCookie: cost=1; cost=0\r\n\r\n",
	} {
		if got := rg.statusOf(t, request); got != "400" {
			t.Errorf("%q: got %s, want 400", request, got)
		}
	}
	if got := up.recorded(); len(got) != 0 {
		t.Errorf("the upstream got %q", got)
	}
}

func TestLookingUpAllocatesNothing(t *testing.T) {
	r := &request{query: []byte("page=2&us%65r=ann&long=" + strings.Repeat("x", 300)), route: &route{}, fields: []field{
		{[]byte("Connection"), []byte("keep-alive")}, {[]byte("X-Api-Key"), []byte("k")}, {[]byte("Cookie"), []byte("a=1; sid=abc; theme=dark")},
	}}
	tpl := template(t, "{header.X-Api-Key}{query.user}{cookie.sid}")
	memory := make([]byte, 0, 64)
	if got := testing.AllocsPerRun(100, func() {
		if out, err := tpl.appendTo(memory, r); err != nil || string(out) != "kannabc" {
			t.Fatalf("%q, %v", out, err)
		}
	}); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func TestWhatHostMayBe(t *testing.T) {
	for _, c := range []struct{ host, want string }{
		{"a", "a"}, {"API.Example.com", "api.example.com"}, {"a.", "a"}, {"a.:80", "a"}, {"a:80", "a"}, {"a:", "a"}, {"a_b.c", "a_b.c"},
		{"127.0.0.1:65535", "127.0.0.1"}, {"[::1]", "[::1]"}, {"[2001:DB8::1]:8080", "[2001:db8::1]"}, {"a.example.com.", "a.example.com"},
		{"", ""}, {"a:99999", ""}, {"a:65536", ""}, {"a:000080", ""}, {"a:+80", ""}, {"a:80:80", ""}, {"a:b", ""}, {":80", ""}, {"[::1", ""}, {"[::1]x", ""}, {"[::1]:99999", ""},
		{"[]", ""}, {"[1.2.3.4]", ""}, {"[fe80::1%eth0]", ""}, {"[fe80::1%25eth0]", ""}, {"::1", ""}, {"a, b", ""}, {"a,b", ""}, {"u:p@a", ""}, {"u@a", ""}, {"a b", ""},
		{"a/b", ""}, {"a?b", ""}, {"a#b", ""}, {`a\b`, ""}, {"a%2eb", ""}, {"a%", ""}, {"a\x80", ""}, {"a\"b", ""}, {".", ""}, {"..", ""}, {".a", ""}, {"a..", ""}, {"a\tb", ""},
	} {
		r := &request{hostport: []byte(c.host), version: 1}
		err := r.parseHost()
		if string(r.host) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: got %q, %v, want %q", c.host, r.host, err, c.want)
		}
		if err == nil && strings.ToLower(strings.Trim(hostname(t, c.host), ".")) != strings.Trim(c.want, "[]") {
			t.Errorf("%q: got %q, but net/url reads %q", c.host, r.host, hostname(t, c.host))
		}
	}
}

// hostname is the name that net/http's parser sees in a Host field.
func hostname(t *testing.T, host string) string {
	t.Helper()
	u, err := url.Parse("http://" + host + "/")
	if err != nil {
		t.Fatalf("%q: %v", host, err)
	}
	return u.Hostname()
}

func TestPatternsThatCouldNeverMatchAreRefused(t *testing.T) {
	for _, pattern := range []string{"/a;b", "/a%2Fb", "/%61", "/a/../b", "/a//b", "a"} {
		if _, err := parsePath(pattern); err == nil {
			t.Errorf("%s: no error", pattern)
		}
	}
	for _, pattern := range []string{"/100%", "/a%zz/{id}", "/"} {
		if _, err := parsePath(pattern); err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
	}
}
