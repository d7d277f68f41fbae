package proxy

import (
	"bufio"
	"io"
	"net/http"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// gateCase is what a client sends and what becomes of it.
type gateCase struct {
	name   string
	raw    string
	status string // of the answer; when it is not 200 the connection has to end
	sees   string // what the upstream gets, without our own fields and the chunks; only for 200
	cut    bool   // the fault is in the body: the upstream gets a request without an end
	last   bool   // the connection ends also behind a 200
}

func ok(name, raw, sees string) gateCase {
	return gateCase{name: name, raw: raw, status: "200", sees: sees}
}
func refused(name, raw string) gateCase { return gateCase{name: name, raw: raw, status: "400"} }
func cutOff(name, raw string) gateCase {
	return gateCase{name: name, raw: raw, status: "400", cut: true}
}
func status(code int, name, raw string) gateCase {
	return gateCase{name: name, raw: raw, status: strconv.Itoa(code)}
}

func get(fields string) string { return "GET /x HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n" }
func post(fields, body string) string {
	return "POST /x HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n" + body
}
func chunked(body string) string { return post("Transfer-Encoding: chunked\r\n", body) }
func line(line string) string    { return line + "\r\nHost: a\r\n\r\n" }
func host(host string) string    { return "GET /x HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }

const (
	plainGet  = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
	coded     = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
	sized     = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde"
	smuggled  = "GET /SMUGGLED HTTP/1.1\r\nHost: a\r\n\r\n"
	lastPiece = "0\r\n\r\n"
)

// headOf is a head of size bytes.
func headOf(size int) string {
	const start, end = "GET /x HTTP/1.1\r\nHost: a\r\nX: ", "\r\n\r\n"
	return start + strings.Repeat("x", size-len(start)-len(end)) + end
}

var gateCases = []gateCase{
	ok("plain", plainGet, plainGet),
	ok("a length", sized, sized),
	ok("chunks", chunked("2\r\nab\r\n3;x=y\r\ncde\r\n0\r\n\r\n"), coded+"abcde"),
	ok("a body with a GET", "GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde", "GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde"),
	ok("any method", line("Pur-ge /x HTTP/1.1"), "Pur-ge /x HTTP/1.1\r\nHost: a\r\n\r\n"),

	// Two lengths (A1, A3).
	refused("two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "abcdef")),
	refused("the same length twice", post("Content-Length: 5\r\ncontent-length: 5\r\n", "abcde")),
	refused("length and chunked", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", lastPiece)),
	refused("chunked and length", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", lastPiece)),
	refused("length 0 and chunked", post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", lastPiece)),

	// Transfer codings (A4, A5, A6).
	ok("chunked in capitals behind a tab", post("Transfer-Encoding:\tCHUNKED\r\n", lastPiece), coded),
	refused("chunked twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", lastPiece)),
	refused("chunked, chunked", post("Transfer-Encoding: chunked, chunked\r\n", lastPiece)),
	refused("gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", lastPiece)),
	refused("chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", lastPiece)),
	refused("xchunked", post("Transfer-Encoding: xchunked\r\n", lastPiece)),
	refused("identity", post("Transfer-Encoding: identity\r\n", "")),
	refused("no coding", post("Transfer-Encoding:\r\n", "")),
	refused("chunked with a parameter", post("Transfer-Encoding: chunked;q=1\r\n", lastPiece)),
	refused("chunked in quotes", post("Transfer-Encoding: \"chunked\"\r\n", lastPiece)),
	refused("chunked and a vertical tab", post("Transfer-Encoding:\tchunked\x0b\r\n", lastPiece)),
	refused("chunked and a form feed", post("Transfer-Encoding: \x0cchunked\r\n", lastPiece)),
	refused("chunked on a folded line", post("Transfer-Encoding:\r\n chunked\r\n", lastPiece)),
	refused("chunked of HTTP/1.0", "POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"+lastPiece),
	refused("space before the colon", post("Transfer-Encoding : chunked\r\n", lastPiece)),
	refused("tab before the colon", post("Content-Length\t: 5\r\n", "abcde")),
	refused("space in Transfer Encoding", post("Transfer Encoding: chunked\r\n", lastPiece)),
	refused("underscore in Transfer_Encoding", post("Transfer_Encoding: chunked\r\n", lastPiece)),
	refused("underscore in Content_Length", post("content_length: 5\r\n", "abcde")),
	refused("both spellings of a length", post("Content-Length: 5\r\nContent_Length: 0\r\n", "abcde")),

	// Field lines (A6, A8, A9, A11, A13).
	refused("space in a name", get("X Y: z\r\n")),
	refused("space before the first name", "GET /x HTTP/1.1\r\n Host: a\r\n\r\n"),
	refused("tab before the first name", "GET /x HTTP/1.1\r\n\tHost: a\r\n\r\n"),
	refused("white first line before Host", "GET /x HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n"),
	refused("folded line", get("X: 1\r\n folded\r\n")),
	refused("line of white space", get("X: 1\r\n \r\n")),
	refused("LF behind a field", get("X: 1\nY: 2\r\n")),
	refused("LF behind the request line", "GET /x HTTP/1.1\nHost: a\r\n\r\n"),
	refused("LF throughout", "GET /x HTTP/1.1\nHost: a\n\n"),
	refused("empty line of LF", "GET /x HTTP/1.1\r\nHost: a\r\n\nGET /SMUGGLED HTTP/1.1\r\nHost: a\r\n\r\n"),
	refused("empty line of LF before a body", post("Content-Length: 38\r\n\n", smuggled)),
	refused("CR CR LF", get("X: 1\r\r\n")),
	refused("CR in a name", get("X\rY: 1\r\n")),
	refused("CR in a value", get("X: 1\rY: 2\r\n")),
	refused("CR in the target", line("GET /x\ry HTTP/1.1")),
	refused("CR behind the version", line("GET /x HTTP/1.1\r")),
	refused("NUL in a name", get("X\x00: 1\r\n")),
	refused("NUL in a value", get("X: \x00\r\n")),
	refused("DEL in a value", get("X: \x7f\r\n")),
	refused("no colon", get("X\r\n")),
	refused("no name", get(": x\r\n")),
	refused("letters beyond ASCII in a name", get("X\xc3\xa9: 1\r\n")),
	ok("letters beyond ASCII in a value", get("X: \xc3\xa9\xff\r\n"), "GET /x HTTP/1.1\r\nHost: a\r\nX: \xc3\xa9\xff\r\n\r\n"),
	ok("no value", get("X:\r\n"), "GET /x HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n"),
	ok("fields that servers read in different ways", get("Content-Type: a\r\nContent-Type: b\r\nAuthorization: c\r\nauthorization: d\r\n"),
		"GET /x HTTP/1.1\r\nHost: a\r\nContent-Type: a\r\nContent-Type: b\r\nAuthorization: c\r\nauthorization: d\r\n\r\n"),

	// Content-Length (A14).
	ok("zeros before a length", post("Content-Length: 0005\r\n", "abcde"), sized),
	ok("white space around a length", post("Content-Length: \t5 \r\n", "abcde"), sized),
	refused("length with a plus", post("Content-Length: +5\r\n", "abcde")),
	refused("length with a minus", post("Content-Length: -5\r\n", "abcde")),
	refused("length with a prefix", post("Content-Length: 0x5\r\n", "abcde")),
	refused("length with an underscore", post("Content-Length: 1_0\r\n", "abcdefghij")),
	refused("empty length", post("Content-Length:\r\n", "")),
	refused("length and a comma", post("Content-Length: 5,\r\n", "abcde")),
	refused("list of lengths", post("Content-Length: 5, 5\r\n", "abcde")),
	refused("length with a space", post("Content-Length: 1 0\r\n", "abcdefghij")),
	refused("length with an exponent", post("Content-Length: 1e1\r\n", "abcdefghij")),
	refused("length with a fraction", post("Content-Length: 5.0\r\n", "abcde")),
	refused("length of other digits", post("Content-Length: \xd9\xa5\r\n", "abcde")),
	refused("length of 2^63", post("Content-Length: 9223372036854775808\r\n", "abcde")),
	refused("length of 2^64", post("Content-Length: 18446744073709551616\r\n", "abcde")),
	refused("length of 2^64+5", post("Content-Length: 18446744073709551621\r\n", "abcde")),
	status(413, "length of 2^63-1", post("Content-Length: 9223372036854775807\r\n", "abcde")),
	status(413, "length over the cap", post("Content-Length: 10485761\r\n", "abcde")),

	// Chunks (A15, A17).
	cutOff("LF behind a size", chunked("5\nabcde\r\n0\r\n\r\n")),
	cutOff("size with a prefix", chunked("0x5\r\nabcde\r\n0\r\n\r\n")),
	cutOff("size with a plus", chunked("+5\r\nabcde\r\n0\r\n\r\n")),
	cutOff("size with a minus", chunked("-1\r\nabcde\r\n0\r\n\r\n")),
	cutOff("size with an underscore", chunked("5_0\r\nabcde\r\n0\r\n\r\n")),
	cutOff("space before a size", chunked(" 5\r\nabcde\r\n0\r\n\r\n")),
	cutOff("space behind a size", chunked("5 \r\nabcde\r\n0\r\n\r\n")),
	cutOff("no size", chunked("\r\nabcde\r\n0\r\n\r\n")),
	cutOff("no size but an extension", chunked(";x\r\nabcde\r\n0\r\n\r\n")),
	cutOff("sixteen digits", chunked("0000000000000005\r\nabcde\r\n0\r\n\r\n")),
	cutOff("size that overflows", chunked("fffffffffffffffff\r\nabcde\r\n0\r\n\r\n")),
	cutOff("chunk longer than its size", chunked("4\r\nabcde\r\n0\r\n\r\n")),
	cutOff("chunk that ends in LF", chunked("5\r\nabcde\n0\r\n\r\n")),
	cutOff("body that ends in LF", chunked("5\r\nabcde\r\n0\r\n\n")),
	cutOff("LF in an extension", chunked("5;x\nabcde\r\n0\r\n\r\n")),
	cutOff("CR in an extension", chunked("5;x\ry\r\nabcde\r\n0\r\n\r\n")),
	cutOff("flood of extensions", chunked(strings.Repeat("1;"+strings.Repeat("e", 1000)+"\r\na\r\n", 20))),
	cutOff("long extension", chunked("1;"+strings.Repeat("e", 8<<10)+"\r\na\r\n0\r\n\r\n")),
	ok("fifteen digits", chunked("000000000000005\r\nabcde\r\n0\r\n\r\n"), coded+"abcde"),
	ok("a quoted extension", chunked("5;x=\"y; 0\"\r\nabcde\r\n0;z\r\n\r\n"), coded+"abcde"),
	ok("data that looks like an end", chunked("5\r\n0\r\n\r\n\r\n0\r\n\r\n"), coded+"0\r\n\r\n"),

	// Trailers (A19): never fields.
	ok("trailers of every kind", chunked("5\r\nabcde\r\n0\r\nContent-Length: 3\r\nHost: b\r\nX-Forwarded-For: 6.6.6.6\r\nAuthorization: x\r\nX: y\r\n\r\n"), coded+"abcde"),
	ok("announced trailer", post("Transfer-Encoding: chunked\r\nTrailer: X\r\n", "0\r\nX: y\r\n\r\n"), coded),
	refused("announced trailer that frames", post("Transfer-Encoding: chunked\r\nTrailer: X, content-length\r\n", lastPiece)),
	cutOff("trailer without a colon", chunked("0\r\nX\r\n\r\n")),
	cutOff("trailer without a name", chunked("0\r\n: x\r\n\r\n")),
	cutOff("trailer with a space in its name", chunked("0\r\nX Y: z\r\n\r\n")),
	cutOff("trailer that ends in LF", chunked("0\r\nX: y\n\r\n")),
	cutOff("folded trailer", chunked("0\r\nX: y\r\n z\r\n\r\n")),

	// Host (A21, A22).
	refused("no Host", line("GET /x HTTP/1.1")[:len("GET /x HTTP/1.1\r\n")]+"\r\n"),
	refused("two Hosts", get("Host: b\r\n")),
	refused("the same Host twice", get("host: a\r\n")),
	refused("empty Host", host("")),
	refused("list of Hosts", host("a, b")),
	refused("space in Host", host("a b")),
	refused("user in Host", host("u:p@a")),
	refused("open bracket", host("[::1")),
	refused("name in brackets", host("[a]")),
	refused("IPv4 in brackets", host("[1.2.3.4]")),
	refused("zone in brackets", host("[fe80::1%eth0]")),
	refused("text behind brackets", host("[::1]a")),
	refused("large port", host("a:99999")),
	refused("named port", host("a:http")),
	refused("two ports", host("a:80:80")),
	refused("port alone", host(":80")),
	refused("slash in Host", host("a/b")),
	refused("backslash in Host", host("a\\b")),
	refused("escape in Host", host("a%2eb")),
	refused("query in Host", host("a?b")),
	ok("IPv6 and port", host("[::1]:8080"), host("[::1]:8080")),
	ok("capitals in Host", host("A.Example:80"), host("A.Example:80")),
	{name: "HTTP/1.0 without Host", raw: "GET /x HTTP/1.0\r\n\r\n", status: "200", sees: "GET /x HTTP/1.1\r\nHost: UPSTREAM\r\n\r\n", last: true},
	{name: "HTTP/1.0 with Host", raw: "GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", status: "200", sees: plainGet, last: true},

	// Request lines and versions (P4, P10, A24).
	status(505, "preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
	status(505, "HTTP/2.0", line("GET /x HTTP/2.0")),
	status(505, "HTTP/9.9", line("GET /x HTTP/9.9")),
	status(505, "HTTP/0.9", line("GET /x HTTP/0.9")),
	status(505, "HTTP/1.2", line("GET /x HTTP/1.2")),
	refused("HTTP/1.10", line("GET /x HTTP/1.10")),
	refused("HTTP/01.1", line("GET /x HTTP/01.1")),
	refused("http/1.1", line("GET /x http/1.1")),
	refused("no version", line("GET /x")),
	refused("no target", line("GET HTTP/1.1")),
	refused("empty target", line("GET  HTTP/1.1")),
	refused("space in the target", line("GET /x y HTTP/1.1")),
	refused("two spaces before the version", line("GET /x  HTTP/1.1")),
	refused("tab for a space", line("GET\t/x HTTP/1.1")),
	refused("space before the method", line(" GET /x HTTP/1.1")),
	refused("space behind the version", line("GET /x HTTP/1.1 ")),
	refused("no token for a method", line("GE(T /x HTTP/1.1")),
	refused("empty line before the request line", "\r\n"+plainGet), // net/http refuses it too
	refused("empty line of LF before the request line", "\n"+plainGet),
	refused("fragment", line("GET /x#y HTTP/1.1")),
	refused("control byte in the target", line("GET /x\x01 HTTP/1.1")),
	refused("relative target", line("GET x HTTP/1.1")),

	// Targets (A26, A27, A28, U1 to U5).
	ok("absolute target", line("GET http://A/y?z HTTP/1.1"), "GET /y?z HTTP/1.1\r\nHost: a\r\n\r\n"),
	refused("absolute target of another host", line("GET http://b/y HTTP/1.1")),
	refused("absolute target of another port", line("GET http://a:80/y HTTP/1.1")),
	refused("absolute target without a path", line("GET http://a HTTP/1.1")),
	refused("absolute target of https", line("GET https://a/y HTTP/1.1")),
	refused("absolute target of ftp", line("GET ftp://a/y HTTP/1.1")),
	refused("absolute target with a user", line("GET http://u:p@a/y HTTP/1.1")),
	refused("absolute target and Host with a user", "GET http://u:p@a/y HTTP/1.1\r\nHost: u:p@a\r\n\r\n"),
	ok("authority in the path", line("GET //other/x://y HTTP/1.1"), "GET //other/x://y HTTP/1.1\r\nHost: a\r\n\r\n"),
	ok("URL in the query", line("GET /x?u=http://b/ HTTP/1.1"), "GET /x?u=http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
	ok("asterisk of OPTIONS", line("OPTIONS * HTTP/1.1"), "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
	refused("asterisk of GET", line("GET * HTTP/1.1")),
	status(405, "CONNECT", line("CONNECT a:80 HTTP/1.1")),
	status(405, "CONNECT of a path", line("CONNECT /x HTTP/1.1")),
	ok("odd query", line("GET /x?a=%zz&b=/../ HTTP/1.1"), "GET /x?a=%zz&b=/../ HTTP/1.1\r\nHost: a\r\n\r\n"),
	refused("encoded NUL", line("GET /x%00 HTTP/1.1")),
	refused("backslash", line("GET /x\\y HTTP/1.1")),
	refused("half an escape", line("GET /x%2 HTTP/1.1")),

	// Upgrade to HTTP/2 (A25).
	ok("h2c", get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"), plainGet),
	ok("h2c that Connection does not name", get("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"), plainGet),

	// Sizes (A30).
	ok("head just under its bound", headOf(16<<10-1), headOf(16<<10-1)),
	ok("head of its bound", headOf(16<<10), headOf(16<<10)),
	status(431, "head over its bound", headOf(16<<10+1)),
	status(431, "endless field", "GET /x HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("x", 20<<10)),
	ok("as many fields as may be", get(strings.Repeat("X: y\r\n", 99)), "GET /x HTTP/1.1\r\nHost: a\r\n"+strings.Repeat("X: y\r\n", 99)+"\r\n"),
	status(431, "one field too many", get(strings.Repeat("X: y\r\n", 100))),
	status(431, "flood of fields", get(strings.Repeat("a:\r\n", 5000))),
	ok("target of its bound", line("GET /"+strings.Repeat("x", 8<<10-1)+" HTTP/1.1"), "GET /"+strings.Repeat("x", 8<<10-1)+" HTTP/1.1\r\nHost: a\r\n\r\n"),
	status(414, "target over its bound", line("GET /"+strings.Repeat("x", 8<<10)+" HTTP/1.1")),
	status(414, "endless request line", "GET /"+strings.Repeat("x", 20<<10)),
	status(417, "unknown expectation", post("Expect: foo\r\nContent-Length: 5\r\n", "abcde")),
	status(417, "two expectations", post("Expect: 100-continue, foo\r\nContent-Length: 5\r\n", "abcde")),
}

// TestGate sends each case at once and byte by byte, alone and with another
// request behind it, and checks what has to hold after any request: the upstream
// got what was meant or nothing, the connection of a bad one ended, what was behind
// it was not served, everybody else is, and everything was counted and logged once.
func TestGate(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("case", func(t *testing.T) {
		for i := range gateCases {
			t.Run(gateCases[i].name, gateCases[i].run)
		}
	})
	eventually(t, "no goroutine is left over", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func (g *gateCase) run(t *testing.T) {
	rg, up := rawRig(t, 1000, always(okAnswer), nil)
	g.sees = strings.Replace(g.sees, "UPSTREAM", strings.TrimPrefix(up.target(), "http://"), 1)
	var due tally
	for _, piece := range []int{1 << 20, 1} {
		for _, behind := range []string{"", smuggled} {
			if g.last && piece == 1 {
				behind = "" // what comes after the end of a connection may reset it
			}
			answers := g.try(t, rg, up, g.raw+behind, piece)
			due.add(g, answers)
			if got := rg.statusOf(t, plainGet); got != "200" {
				t.Errorf("another connection gets %s, want 200", got)
			}
			due.decisions, due.lines = due.decisions+1, due.lines+1
			eventually(t, "everything is counted and logged once", func() bool { return rg.tally() == due })
		}
	}
}

// try sends text and checks what comes of it; it says how many answers came.
func (g *gateCase) try(t *testing.T, rg *rig, up *rawServer, text string, piece int) int {
	t.Helper()
	seen, answers := len(up.recorded()), 1
	c := rg.dial(t)
	defer c.Close()
	c.offer(text, piece)
	got := c.answer("GET")
	if !strings.HasPrefix(got, "HTTP/1.1 "+g.status+" ") {
		t.Fatalf("in pieces of %d: got %q, want %s", piece, got, g.status)
	}
	switch {
	case g.status != "200":
		if !strings.Contains(got, "\r\nConnection: close\r\n") || !strings.Contains(got, "\r\nContent-Type: application/problem+json\r\n") {
			t.Errorf("got %q, want a problem and the end of the connection", got)
		}
		c.wantClosed()
	case g.last:
		c.wantClosed()
	case text != g.raw:
		answers++
		c.answer("GET")
	}
	g.wantSeen(t, up, seen, answers)
	return answers
}

// offer sends text in pieces, for as long as the other side takes it.
func (c *rawClient) offer(text string, piece int) {
	for len(text) > 0 {
		n := min(piece, len(text))
		if _, err := io.WriteString(c, text[:n]); err != nil {
			return
		}
		text = text[n:]
	}
}

// wantSeen checks what the upstream got since it had seen before requests.
func (g *gateCase) wantSeen(t *testing.T, up *rawServer, before, answers int) {
	t.Helper()
	if g.cut {
		eventually(t, "the upstream gets the request and its end", func() bool { return len(up.recorded()) == before+1 })
		if text := up.recorded()[before]; strings.HasSuffix(text, "\r\n"+lastPiece) || strings.Contains(text, "SMUGGLED") {
			t.Errorf("the upstream got %q, want no end of it", text)
		}
		return
	}
	var wants []string
	if g.status == "200" {
		wants = []string{g.sees, smuggled}[:answers]
	}
	got := up.recorded()[before:]
	if len(got) != len(wants) {
		t.Fatalf("the upstream got %q, want %q", got, wants)
	}
	for i := range wants {
		want(t, "request at the upstream", understood(t, got[i]), wants[i])
	}
}

var ours = regexp.MustCompile(`X-Forwarded-For: 127\.0\.0\.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: [^\r]*\r\nX-Request-Id: [0-9a-f]{32}\r\n`)

// understood is a request as net/http reads it: its head without our fields, and
// its body without the chunks.
func understood(t *testing.T, raw string) string {
	t.Helper()
	br := bufio.NewReaderSize(strings.NewReader(raw), 64<<10)
	req, err := http.ReadRequest(br)
	if err != nil {
		t.Fatalf("the upstream got %q: %v", raw, err)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil || br.Buffered() > 0 {
		t.Fatalf("the upstream got %q: %v, and %d bytes behind it", raw, err, br.Buffered())
	}
	head, _, _ := strings.Cut(raw, "\r\n\r\n")
	if !ours.MatchString(head + "\r\n") {
		t.Errorf("the upstream got %q, want the fields that we set", head)
	}
	return ours.ReplaceAllString(head+"\r\n", "") + "\r\n" + string(body)
}

// tally is what a rig has counted.
type tally struct{ decisions, problems, lines, panics int }

func (rg *rig) tally() (sum tally) {
	var text strings.Builder
	rg.p.options.Limiter.WriteMetrics(&text)
	rg.p.WriteMetrics(&text)
	for line := range strings.Lines(text.String()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		n, _ := strconv.Atoi(value)
		switch name, _, _ = strings.Cut(name, "{"); name {
		case "r8limiter_decisions_total":
			sum.decisions += n
		case "r8limiter_problems_total":
			sum.problems += n
		case "r8limiter_panics_total":
			sum.panics += n
		}
	}
	sum.lines = strings.Count(rg.log.String(), "\n")
	return sum
}

// add counts a request of g and those behind it that were answered.
func (a *tally) add(g *gateCase, answers int) {
	a.lines += answers
	if g.status == "200" || g.cut {
		a.decisions += answers
	}
	if g.status != "200" {
		a.problems++
	}
}
