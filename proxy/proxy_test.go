package proxy

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
)

func TestRequestIsForwardedAsItCame(t *testing.T) {
	rg := newRig(t, 10, okAnswer)
	c := rg.dial(t)
	c.send("GET /v1/a%20b?x=%zz&b HTTP/1.1\r\nHost: api.test:80\r\nX-User-Id: u\r\nx-odd: 1\r\nX-Odd: 2\r\nConnection: keep-alive, X-Hop\r\nX-Hop: gone\r\nTE: trailers\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\r\n")
	got := c.answer("GET")
	want(t, "request", steady(<-rg.up.requests), "GET /v1/a%20b?x=%zz&b HTTP/1.1\r\nHost: api.test:80\r\nX-User-Id: u\r\nx-odd: 1\r\nX-Odd: 2\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: api.test:80\r\nX-Request-Id: *\r\n\r\n")
	want(t, "answer", got, "HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 10:00:00 GMT\r\nSet-Cookie: a=1\r\nSet-Cookie: a=2\r\nContent-Length: 2\r\nRateLimit-Policy: \"all\";q=10;w=36000\r\nRateLimit: \"all\";r=9;t=32400\r\n\r\nhi")
}

const denied = "HTTP/1.1 429 Too Many Requests\r\nDate: *\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\nContent-Length: 269\r\nRetry-After: 3600\r\nRateLimit-Policy: \"all\";q=1;w=3600\r\nRateLimit: \"all\";r=0;t=3600\r\n\r\n"

const deniedBody = `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":"Limit \"all\" of resource \"all\" allows 1 per hour.","violated-policies":["all"],"allowed":false,"retry_after":N,"tokens_left":N}`

var numbers = regexp.MustCompile(`("retry_after":|"tokens_left":|Content-Length: )[0-9.]+`)

func TestDeniedRequestGetsTheWholeProblem(t *testing.T) {
	rg := newRig(t, 1, okAnswer)
	c := rg.dial(t)
	const get = "GET /v1/x HTTP/1.1\r\nHost: a\r\nX-User-Id: u\r\n\r\n"
	c.send(get)
	c.answer("GET")
	c.send(get)
	mask := func(s string) string { return numbers.ReplaceAllString(steady(s), "${1}N") }
	want(t, "GET", mask(c.answer("GET")), mask(denied)+deniedBody)
	c.send(strings.Replace(get, "GET", "HEAD", 1))
	want(t, "HEAD", mask(c.answer("HEAD")), mask(denied))
	<-rg.up.requests
	rg.up.wantNothing(t)
}

func TestDeniedPostBodyIsNotTheNextRequest(t *testing.T) {
	rg := newRig(t, 1, okAnswer)
	c := rg.dial(t)
	smuggled := "GET /v1/SMUGGLED HTTP/1.1\r\nHost: a\r\nX-User-Id: other\r\n\r\n"
	c.send("GET /v1/x HTTP/1.1\r\nHost: a\r\nX-User-Id: u\r\n\r\n")
	c.answer("GET")
	<-rg.up.requests
	c.send(fmt.Sprintf("POST /v1/x HTTP/1.1\r\nHost: a\r\nX-User-Id: u\r\nContent-Length: %d\r\n\r\n%s", len(smuggled), smuggled))
	if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 429 ") {
		t.Fatalf("got %q, want 429", got)
	}
	c.send("GET /v1/next HTTP/1.1\r\nHost: a\r\nX-User-Id: v\r\n\r\n")
	c.answer("GET")
	if got := <-rg.up.requests; !strings.HasPrefix(got, "GET /v1/next ") {
		t.Errorf("upstream got %q, want /v1/next", got)
	}
	rg.up.wantNothing(t)
}

func TestDeniedLargeUploadReadsItsWholeAnswer(t *testing.T) {
	rg := newRig(t, 1, okAnswer)
	first := rg.dial(t)
	first.send("GET /v1/x HTTP/1.1\r\nHost: a\r\nX-User-Id: u\r\n\r\n")
	first.answer("GET")
	for range 20 {
		c := rg.dial(t)
		c.send("POST /v1/x HTTP/1.1\r\nHost: a\r\nX-User-Id: u\r\nContent-Length: 500000\r\n\r\n")
		go func() { _, _ = c.Write(make([]byte, 500000)) }()
		if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 429 ") || !strings.Contains(got, "Connection: close\r\n") {
			t.Fatalf("got %q, want 429 and close", got)
		}
		c.wantClosed()
	}
}

func TestBodiesReachTheUpstreamWhole(t *testing.T) {
	rg := newRig(t, 100, okAnswer)
	c := rg.dial(t)
	for _, size := range []int{0, 1, 5000, 64 << 10, 300 << 10} {
		body := strings.Repeat("0123456789abcdef", size/16+1)[:size]
		c.send(fmt.Sprintf("POST /v1/x HTTP/1.1\r\nHost: a\r\nX-User-Id: u\r\nContent-Length: 000%d\r\n\r\n%s", size, body))
		c.answer("POST")
		head, got, _ := strings.Cut(<-rg.up.requests, "\r\n\r\n")
		if got != body || !strings.HasSuffix(head, fmt.Sprintf("Content-Length: %d", size)) {
			t.Errorf("%d bytes: upstream got %d bytes behind %q", size, len(got), head)
		}
	}
	c.send("POST /v1/x HTTP/1.1\r\nHost: a\r\nX-User-Id: u\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n0\r\n\r\n")
	c.answer("POST")
	if got := <-rg.up.requests; !strings.HasSuffix(got, "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n") {
		t.Errorf("chunked: upstream got %q", got)
	}
}

func TestExpectationIsDecidedOnceBeforeTheBody(t *testing.T) {
	rg := newRig(t, 1, okAnswer)
	c := rg.dial(t)
	const post = "POST /v1/x HTTP/1.1\r\nHost: a\r\nX-User-Id: u\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
	c.send(post)
	want(t, "interim answer", c.answer("HEAD"), "HTTP/1.1 100 Continue\r\n\r\n")
	c.send("abc")
	if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Fatalf("got %q, want 200", got)
	}
	if got := <-rg.up.requests; strings.Contains(got, "Expect") || !strings.HasSuffix(got, "\r\n\r\nabc") {
		t.Errorf("upstream got %q", got)
	}
	c.send(post)
	if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 429 ") {
		t.Errorf("got %q, want 429", got)
	}
	c.wantClosed()
}

func TestChunkedAndUnboundedAnswersAreRelayed(t *testing.T) {
	rg := newRig(t, 10, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\nyou\r\n0\r\n\r\n")
	c := rg.dial(t)
	c.send("GET /free HTTP/1.1\r\nHost: a\r\n\r\n")
	got := c.answer("GET")
	head, body, _ := strings.Cut(got, "\r\n\r\n")
	want(t, "head", head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked")
	if body != "5\r\nhiyou\r\n0\r\n\r\n" && body != "2\r\nhi\r\n3\r\nyou\r\n0\r\n\r\n" {
		t.Errorf("body: got %q", body)
	}
	old := rg.dial(t)
	old.send("GET /free HTTP/1.0\r\n\r\n")
	text, err := io.ReadAll(old.r)
	want(t, "HTTP/1.0", string(text), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhiyou")
	if err != nil {
		t.Error(err)
	}
}

func TestAnswersOfOurOwn(t *testing.T) {
	rg := newRig(t, 10, "garbage\r\n\r\n")
	for _, c := range []struct{ name, request, status string }{
		{"no route", "GET /none HTTP/1.1\r\nHost: a\r\n\r\n", "404"},
		{"blocked", "GET /internal/x HTTP/1.1\r\nHost: a\r\n\r\n", "403"},
		{"nonsense upstream", "GET /free HTTP/1.1\r\nHost: a\r\n\r\n", "502"},
		{"too large", "POST /free HTTP/1.1\r\nHost: a\r\nContent-Length: 10485761\r\n\r\nx", "413"},
		{"large head", "GET /free HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 20000) + "\r\n\r\n", "431"},
		{"many fields", "GET /free HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 100) + "\r\n", "431"},
		{"connect", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "40"},
		{"expectation", "POST /free HTTP/1.1\r\nHost: a\r\nExpect: foo\r\nContent-Length: 1\r\n\r\nx", "417"},
	} {
		client := rg.dial(t)
		client.send(c.request)
		got := client.answer("GET")
		if !strings.HasPrefix(got, "HTTP/1.1 "+c.status) || !strings.Contains(got, "application/problem+json") {
			t.Errorf("%s: got %q, want %s", c.name, got, c.status)
		}
	}
}

func TestWhatTwoParsersMightReadInTwoWaysIsRefused(t *testing.T) {
	rg := newRig(t, 1000, okAnswer)
	const smuggled = "GET /free?SMUGGLED HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, request := range []string{
		"POST /free HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
		"POST /free HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST /free HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"POST /free HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
		"POST /free HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"POST /free HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"POST /free HTTP/1.1\r\nHost: a\r\nTransfer Encoding: chunked\r\n\r\n",
		"POST /free HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST /free HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nabcde",
		"GET /free HTTP/1.1\r\nHost: a\r\nX: 1\nY: 2\r\n\r\n",
		"GET /free HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
		"GET /free HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n",
		"GET /free HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"GET /free HTTP/1.1\r\nHost: u@a\r\n\r\n",
		"GET /free HTTP/1.1\r\n\r\n",
		"GET /free HTTP/2.0\r\nHost: a\r\n\r\n",
		"GET http://b/free HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET https://a/free HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /free%00 HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /internal%2Fx HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /v1/../internal/x HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /%2e%2e/v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET //free HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		c := rg.dial(t)
		c.send(request + smuggled)
		if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 400 ") && !strings.HasPrefix(got, "HTTP/1.1 505 ") || !strings.Contains(got, "Connection: close\r\n") {
			t.Errorf("%q: got %q, want 400 or 505 and close", request, got)
		}
		c.wantClosed()
		rg.up.wantNothing(t)
	}
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	rg := newRig(t, 2, okAnswer)
	c := rg.dial(t)
	c.send(strings.Repeat("GET /v1/x HTTP/1.1\r\nHost: a\r\nX-User-Id: u\r\n\r\n", 3))
	for _, status := range []string{"200", "200", "429"} {
		if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 "+status) {
			t.Errorf("got %q, want %s", got, status)
		}
	}
}

func TestUpstreamThatIsGoneIs502(t *testing.T) {
	rg := newRig(t, 10, okAnswer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	l.Close()
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://" + gone}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api"}}
	rg = startRig(t, c, rg.up, newLimiter(t, 10))
	conn := rg.dial(t)
	conn.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if got := conn.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 502 ") || !strings.Contains(got, "can't be reached") {
		t.Errorf("got %q, want 502", got)
	}
}

func TestEchoMirrorsTheForwardedRequest(t *testing.T) {
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"echo": {Targets: []string{"echo:"}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "echo"}}
	rg := startRig(t, c, nil, newLimiter(t, 10))
	conn := rg.dial(t)
	conn.send("POST /a HTTP/1.1\r\nHost: h\r\nX-Request-Id: r\r\nContent-Length: 3\r\n\r\n\"b\x01")
	_, body, _ := strings.Cut(conn.answer("POST"), "\r\n\r\n")
	want(t, "body", body, `{"method":"POST","target":"/a","headers":[["Host","h"],["X-Request-Id","r"],["X-Forwarded-For","127.0.0.1"],["X-Forwarded-Proto","http"],["X-Forwarded-Host","h"],["Content-Length","3"]],"body":"\"b\u0001","body_bytes":3}`+"\n")
}
