package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// hopFields are fields of one connection, all that there are, in odd spellings.
const hopFields = "Keep-Alive: timeout=5\r\nproxy-connection: keep-alive\r\nTE: trailers, gzip\r\nTrailer: X-Sum\r\nUPGRADE: tls/1.0\r\n" +
	"Proxy-Authorization: Basic eA==\r\nProxy-Authenticate: Basic\r\nHTTP2-Settings: AAMA\r\n"

// forwardFields are what is added for a client that no trusted proxy speaks for.
const forwardFields = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\nX-Request-Id: *\r\n"

// A client can take away its own fields by naming them in Connection (RFC 9110
// section 7.6.1), but none of ours: that was CVE-2021-33197.
func TestFieldsOfOneConnectionStopHereOnTheWayUp(t *testing.T) {
	rg, up := rawRig(t, 100, always(okAnswer), nil)
	for _, c := range []struct{ name, fields, kept string }{
		{"none", "X: 1\r\n", "X: 1\r\n"},
		{"all known", hopFields + "X: 1\r\n", "X: 1\r\n"},
		{"all known, named", "Connection: keep-alive, proxy-connection, te, trailer, upgrade\r\n" + hopFields + "X: 1\r\n", "X: 1\r\n"},
		{"ours", "Connection: X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Request-Id, X-Real-IP, Keep-Alive\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n", ""},
		{"ours, in capitals", "CONNECTION: X-FORWARDED-FOR\r\n", ""},
		{"the Host", "Connection: Host\r\nX: 1\r\n", "X: 1\r\n"},
		{"an empty line first", "Connection:\r\nConnection: X-Real-IP\r\nX-Real-IP: 6.6.6.6\r\nX: 1\r\n", "X: 1\r\n"},
		{"two lines", "Connection: X\r\nX: 1\r\nY: 2\r\nConnection: Y\r\nZ: 3\r\n", "Z: 3\r\n"},
		{"empty elements and tabs", "Connection: ,, \t,\tX\t,\r\nX: 1\r\nY: 2\r\n", "Y: 2\r\n"},
		{"a field of two lines", "X: 1\r\nConnection: x\r\nX: 2\r\nXX: 3\r\n", "XX: 3\r\n"},
		{"nothing but keep-alive", "Connection: Keep-Alive\r\nX: 1\r\n", "X: 1\r\n"},
	} {
		rg.statusOf(t, get(c.fields))
		recorded := up.recorded()
		want(t, c.name, steady(recorded[len(recorded)-1]), "GET /x HTTP/1.1\r\nHost: a\r\n"+c.kept+forwardFields+"\r\n")
	}
}

// What Connection names is no way to lose a body's framing, either.
func TestConnectionCannotTakeTheFramingOfABody(t *testing.T) {
	rg, up := rawRig(t, 100, always(okAnswer), nil)
	for fields, framing := range map[string]string{
		"Content-Length: 5\r\n":          "Content-Length: 5\r\n\r\nabcde",
		"Transfer-Encoding: chunked\r\n": "Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
	} {
		_, body, _ := strings.Cut(framing, "\r\n\r\n")
		rg.statusOf(t, post("Connection: Content-Length, Transfer-Encoding, Expect\r\n"+fields, body))
		recorded := up.recorded()
		want(t, fields, steady(recorded[len(recorded)-1]), "POST /x HTTP/1.1\r\nHost: a\r\n"+forwardFields+framing)
	}
}

func TestFieldsOfOneConnectionStopHereOnTheWayDown(t *testing.T) {
	const start, end = "HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 10:00:00 GMT\r\n", "Content-Length: 2\r\n"
	for _, c := range []struct{ name, fields, kept string }{
		{"all known", hopFields + "X: 1\r\n", "X: 1\r\n"},
		{"named", "Connection: X-Hop\r\nX-Hop: 1\r\nX: 1\r\n", "X: 1\r\n"},
		{"an empty line first", "Connection:\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX: 1\r\n", "X: 1\r\n"},
		{"the length", "Connection: Content-Length\r\nX: 1\r\n", "X: 1\r\n"},
		{"the end of the upstream's connection", "Connection: close\r\nX: 1\r\n", "X: 1\r\n"},
		{"fields of several lines", "Set-Cookie: a=1; Path=/\r\nSet-Cookie: a=2; Path=/\r\nVary: a\r\nVary: b\r\n", "Set-Cookie: a=1; Path=/\r\nSet-Cookie: a=2; Path=/\r\nVary: a\r\nVary: b\r\n"},
	} {
		rg, _ := rawRig(t, 100, always(start+c.fields+end+"\r\nhi"), bypassing)
		client := rg.dial(t)
		for range 2 { // the client's connection outlives what the upstream said of its own
			client.send(plainGet)
			want(t, c.name, client.answer("GET"), start+c.kept+end+"\r\nhi")
		}
	}
}

// bypassing makes the route one without limits, and so without their fields.
func bypassing(c *Config) { c.Routes[0].Action = "bypass" }

func TestForwardedForOfAnUntrustedPeerIsReplaced(t *testing.T) {
	rg, up := rawRig(t, 100, always(okAnswer), nil)
	for _, fields := range []string{
		"X-Forwarded-For: 6.6.6.6\r\n",
		"X-Forwarded-For: 6.6.6.6, 7.7.7.7\r\nx-forwarded-for: 8.8.8.8\r\n",
		"X-Forwarded-For:\r\nX-Forwarded-For: nonsense\xff, ;\"\r\n",
		"X-Forwarded-For: " + strings.Repeat("10.0.0.1, ", 199) + "10.0.0.1\r\n",
		"X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\n",
		"X_Forwarded_For: 6.6.6.6\r\nX-Forwarded_For: 6.6.6.6\r\n",
	} {
		rg.statusOf(t, get(fields))
		recorded := up.recorded()
		want(t, fmt.Sprintf("%.60q", fields), steady(recorded[len(recorded)-1]), "GET /x HTTP/1.1\r\nHost: a\r\n"+forwardFields+"\r\n")
	}
}

func TestForwardedForOfATrustedPeerGrowsByOne(t *testing.T) {
	rg, up := rawRig(t, 100, always(okAnswer), func(c *Config) {
		c.TrustedProxies = []Prefix{{netip.MustParsePrefix("127.0.0.0/8")}, {netip.MustParsePrefix("10.0.0.0/8")}}
	})
	long := strings.Repeat("10.0.0.1, ", 199) + "10.0.0.1"
	for i, c := range []struct{ fields, hops, client string }{
		{"", "", "127.0.0.1"},
		{"X-Forwarded-For: 1.1.1.1\r\n", "1.1.1.1, ", "1.1.1.1"},
		{"X-Forwarded-For: 6.6.6.6, 1.1.1.2, 10.0.0.1\r\n", "6.6.6.6, 1.1.1.2, 10.0.0.1, ", "1.1.1.2"},
		{"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 1.1.1.3\r\n", "6.6.6.6, 1.1.1.3, ", "1.1.1.3"},
		{"X-Forwarded-For: 6.6.6.6, <script>, 10.0.0.1\r\n", "6.6.6.6, <script>, 10.0.0.1, ", "10.0.0.1"},
		{"X-Forwarded-For: <script>\r\n", "<script>, ", "127.0.0.1"},
		{"X-Forwarded-For: " + long + "\r\n", long + ", ", "10.0.0.1"},
		{"Connection: X-Forwarded-For\r\nX-Forwarded-For: 1.1.1.4\r\n", "1.1.1.4, ", "1.1.1.4"},
	} {
		rg.statusOf(t, get(c.fields))
		eventually(t, "it is logged", func() bool { return len(rg.lines(t)) == i+1 })
		recorded, lines := up.recorded(), rg.lines(t)
		head := recorded[len(recorded)-1]
		if !strings.Contains(head, "\r\nX-Forwarded-For: "+c.hops+"127.0.0.1\r\n") || strings.Count(strings.ToLower(head), "x-forwarded-for") != 1 {
			t.Errorf("%.60q: the upstream got %q", c.fields, head)
		}
		if got := lines[len(lines)-1]["client_ip"]; got != c.client {
			t.Errorf("%.60q: the client is %v, want %s", c.fields, got, c.client)
		}
	}
}

// No field is invented, whatever the other side left out (hazards 1.C9). Our own
// answers, which have an origin in us, hold exactly one Date.
func TestNoFieldIsInvented(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
		"HTTP/1.1 200 \r\nDate: Mon, 23 Nov 2026 10:00:00 GMT\r\nServer: s/1\r\nContent-Length: 2\r\n\r\nhi",
		"HTTP/1.1 404 Gone Fishing\r\ncontent-TYPE: text/x\r\nContent-Length: 0\r\n\r\n",
	} {
		rg, up := rawRig(t, 100, always(answer), bypassing)
		client := rg.dial(t)
		client.send(sized)
		want(t, "answer", client.answer("POST"), answer)
		want(t, "request", steady(up.recorded()[0]), "POST /x HTTP/1.1\r\nHost: a\r\n"+forwardFields+"Content-Length: 5\r\n\r\nabcde")
	}
	rg, _ := rawRig(t, 1, always(okAnswer), nil)
	for _, raw := range []string{plainGet, plainGet, get("X\r\n"), line("GET /x HTTP/9.9"), "CONNECT a HTTP/1.1\r\n\r\n"} {
		client := rg.dial(t)
		client.send(raw)
		head := strings.ToLower(client.answer("GET"))
		if strings.Count(head, "\r\ndate: ") != 1 || strings.Contains(head, "\r\nserver:") || strings.Count(head, "\r\ncontent-type:") > 1 {
			t.Errorf("%.40q: got %q, want one Date and no Server", raw, head)
		}
	}
}

// The upstream reads the very target that the client wrote, or the client is
// told that it can't be read (400): never another path.
func TestTargetsArePassedOnByteForByteOrRefused(t *testing.T) {
	rg, up := rawRig(t, 1000, always(okAnswer), nil)
	for _, target := range []string{
		"/", "/a%2Fb", "/a%2fb", "/a//b", "//a", "///", "/a/../b", "/a/..", "/../a", "/./a", "/a/.", "/a/%2e%2e/b", "/a/..%2fb", "/%7e", "/~", "/%41", "/a%20b", "/a+b",
		"/?a=%zz&b", "/?x=/../", "/?", "/??", "/?a=1&a=2", "/?a;b", "/?%", "/?\xc3\xa9", "/\xc3\xa9", "/%c3%a9", "/%ff", "/a;b=1", "/a;/../b", "/a;b=1/c", "/a:b@c", "/x?u=http://b/",
		"/'\"<>[]{}|^`", "/a%", "/a%2", "/a%zz", "/a%00b", "/a\\b", "/a%5cb", "/*", "/" + strings.Repeat("a/", 2000), "/a?" + strings.Repeat("x=1&", 1500),
	} {
		before := len(up.recorded())
		status := rg.statusOf(t, "GET "+target+" HTTP/1.1\r\nHost: a\r\n\r\n")
		var sees []string
		for _, text := range up.recorded()[before:] {
			sees = append(sees, strings.TrimSuffix(text[:strings.Index(text, "\r\n")], " HTTP/1.1"))
		}
		switch {
		case status == "200" && slices.Equal(sees, []string{"GET " + target}), status == "400" && sees == nil:
		default:
			t.Errorf("%.60q: got %s, and the upstream %.60q", target, status, sees)
		}
		if status == "400" && !strings.ContainsAny(target, "%\\;.") {
			t.Errorf("%.60q is refused", target)
		}
	}
}
