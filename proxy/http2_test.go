package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

const (
	h2Date   = "Mon, 23 Nov 2026 10:00:00 GMT"
	twoBytes = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
)

var resets = regexp.MustCompile(`t=\d+|reset=\d+`)

func TestHTTP2RequestIsForwardedAsHTTP11(t *testing.T) {
	rg := newH2Rig(t, 5, always(okAnswer), nil)
	c := rg.dialH2(t)
	c.get(1, "GET", "/v1/a%2Fb?q=1", "x-user-id", "ann", "x-request-id", "r", "cookie", "a=1", "cookie", "b=2", "x-b", "1", "x-a", "2", "x-b", "3", "te", "trailers")
	want(t, "answer", resets.ReplaceAllString(c.next(), "*"), "HEADERS status=200 date="+h2Date+
		` ratelimit="all";r=4;* ratelimit-policy="all";q=5;w=18000 set-cookie=a=1 set-cookie=a=2 content-length=2`)
	want(t, "body", c.next(), `DATA "hi" END`)
	want(t, "request", rg.raw.recorded()[0], "GET /v1/a%2Fb?q=1 HTTP/1.1\r\nHost: a.test\r\nCookie: a=1; b=2\r\nX-A: 2\r\nX-B: 1\r\nX-B: 3\r\nX-Request-Id: r\r\nX-User-Id: ann\r\n"+
		"X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a.test\r\n\r\n")
}

func TestHTTP2DenialIsTheSameAsOfHTTP11(t *testing.T) {
	rg := newH2Rig(t, 1, always(twoBytes), nil)
	client := rg.transport(t)
	ask := func(client *http.Client) (int, string, http.Header) {
		t.Helper()
		resp, err := client.Get("https://" + rg.addr + "/v1/a")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, regexp.MustCompile(`"retry_after":[0-9.]+|"tokens_left":[0-9.]+`).ReplaceAllString(string(body), "*"), resp.Header
	}
	if status, body, _ := ask(client); status != 200 || body != "hi" {
		t.Fatalf("got %d %q, want 200 hi", status, body)
	}
	old := &http.Client{Transport: &http.Transport{TLSClientConfig: rg.client.Clone()}}
	t.Cleanup(old.CloseIdleConnections)
	status1, body1, fields1 := ask(old)
	status2, body2, fields2 := ask(client)
	if status1 != 429 || status2 != 429 || body1 != body2 {
		t.Errorf("got %d %q, and by HTTP/1.1 %d %q; want equal 429s", status2, body2, status1, body1)
	}
	for _, name := range []string{"Content-Type", "Cache-Control", "RateLimit-Policy", "RateLimit", "Retry-After"} {
		if got := fields2.Get(name); got == "" || got != fields1.Get(name) {
			t.Errorf("%s: got %q, and by HTTP/1.1 %q", name, got, fields1.Get(name))
		}
	}
}

func TestHTTP2AnswersHaveNoNeedlessFrames(t *testing.T) {
	for answer, frames := range map[string][]string{
		"HTTP/1.1 200 OK\r\nDate: " + h2Date + "\r\nContent-Length: 2\r\n\r\nhi":                                 {"HEADERS status=200 date=" + h2Date + " content-length=2", `DATA "hi" END`},
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n":                              {"HEADERS status=200 content-length=2", `DATA "hi" END`},
		"HTTP/1.1 204 No Content\r\n\r\n":                                                                        {"HEADERS status=204 END"},
		"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n":                                                       {`HEADERS status=304 etag="x" END`},
		"HTTP/1.1 302 Found\r\nLocation: /x\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n":       {"HEADERS status=302 location=/x content-length=0 END"},
		"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nproxy-connection: x\r\nx-a: 1\r\nContent-Length: 0\r\n\r\n": {"HEADERS status=200 x-a=1 content-length=0 END"},
	} {
		rg := newH2Rig(t, 5, always(answer), func(c *Config) { c.Routes[1].Action = "bypass" })
		c := rg.dialH2(t)
		c.get(1, "GET", "/")
		for _, frame := range frames {
			want(t, "frame of "+answer, c.next(), frame)
		}
	}
}

func TestHTTP2HeadHasNoBody(t *testing.T) {
	rg := newH2Rig(t, 5, always("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), func(c *Config) { c.Routes[1].Action = "bypass" })
	c := rg.dialH2(t)
	c.get(1, "HEAD", "/")
	want(t, "answer", c.next(), "HEADERS status=200 content-length=1000 END")
	c.get(3, "HEAD", "/internal/x")
	if got := c.next(); !strings.HasPrefix(got, "HEADERS status=403") || !strings.HasSuffix(got, " END") || !strings.Contains(got, "content-type=application/problem+json") {
		t.Errorf("own answer: got %s, want 403 without a body", got)
	}
}

func TestHTTP2EventsArriveOneByOne(t *testing.T) {
	next := make(chan string)
	rg := newH2Rig(t, 5, func(p *peer) {
		p.take()
		p.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
		for event := range next {
			p.send(fmt.Sprintf("%x\r\n%s\r\n", len(event), event))
		}
		p.send(lastChunk)
		p.ended()
	}, func(c *Config) { c.Routes[1].Action = "bypass"; c.Limits.WriteTimeout = 50 * time.Millisecond })
	c := rg.dialH2(t)
	c.get(1, "GET", "/events")
	want(t, "head", c.next(), "HEADERS status=200 content-type=text/event-stream")
	for _, event := range []string{"data: 1\n\n", "data: 2\n\n"} {
		next <- event
		want(t, "event", c.next(), fmt.Sprintf("DATA %q", event))
		// A pause between events is nobody's fault, however long it is beside write_timeout.
		if event == "data: 1\n\n" {
			<-time.After(150 * time.Millisecond)
		}
	}
	close(next)
	want(t, "end", c.next(), `DATA "" END`)
}

func TestHTTP2InterimAnswersAndTrailersArePassedOn(t *testing.T) {
	for name, test := range map[string]struct {
		answer string
		frames []string
	}{
		"at once": {
			"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\nX-Other: 3\r\n\r\n",
			[]string{"HEADERS status=103 link=</a.css>", "HEADERS status=200 content-length=2", `DATA "hi"`, "HEADERS x-sum=1 x-sum=2 END"},
		},
		"no body": {
			"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n",
			[]string{"HEADERS status=200 content-length=0", "HEADERS x-sum=1 END"},
		},
		"none came": {
			"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
			[]string{"HEADERS status=200 content-length=2", `DATA "hi" END`},
		},
	} {
		rg := newH2Rig(t, 5, always(test.answer), func(c *Config) { c.Routes[1].Action = "bypass" })
		c := rg.dialH2(t)
		c.get(1, "GET", "/")
		for _, frame := range test.frames {
			want(t, name, c.next(), frame)
		}
	}
}

func TestHTTP2TrailersFollowAStreamedBody(t *testing.T) {
	more := make(chan struct{})
	rg := newH2Rig(t, 5, func(p *peer) {
		p.take()
		p.send("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
		<-more
		p.send("0\r\nX-Sum: 1\r\n\r\n")
		p.ended()
	}, func(c *Config) { c.Routes[1].Action = "bypass" })
	c := rg.dialH2(t)
	c.get(1, "GET", "/")
	want(t, "head", c.next(), "HEADERS status=200")
	want(t, "body", c.next(), `DATA "hi"`)
	close(more)
	want(t, "trailers", c.next(), "HEADERS x-sum=1 END")
}

func TestHTTP2ClientThatLeavesEndsTheUpstreamsWork(t *testing.T) {
	for name, leave := range map[string]func(c *h2Client){
		"reset": func(c *h2Client) { c.must(c.WriteRSTStream(1, http2.ErrCodeCancel)) },
		"close": func(c *h2Client) { c.Close() },
	} {
		left := make(chan struct{})
		rg := newH2Rig(t, 5, func(p *peer) { p.take(); p.ended(); close(left) }, nil)
		c := rg.dialH2(t)
		c.get(1, "GET", "/")
		eventually(t, "the request is at the upstream", func() bool { return len(rg.raw.recorded()) == 1 })
		leave(c)
		select {
		case <-left:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the upstream still works for nobody after 5 s", name)
		}
		eventually(t, "the log says so", func() bool { return strings.Contains(rg.log.String(), `"status":499`) })
	}
}

func TestHTTP2CutOffAnswerIsResetNeverEnded(t *testing.T) {
	for name, answer := range map[string]string{
		"length":           "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
		"chunks":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"malformed chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
	} {
		rg := newH2Rig(t, 5, func(p *peer) { p.take(); p.send(answer) }, nil)
		c := rg.dialH2(t)
		c.get(1, "GET", "/")
		frame := ""
		for frame = c.next(); strings.HasPrefix(frame, "HEADERS") || strings.HasPrefix(frame, "DATA"); frame = c.next() {
			if strings.HasSuffix(frame, " END") {
				t.Errorf("%s: got %s, a part that looks whole", name, frame)
			}
		}
		want(t, name, frame, "RST INTERNAL_ERROR")
		// It costs this stream only.
		c.get(3, "GET", "/internal/x")
		want(t, name+": next stream", c.status(), "403")
	}
}

func TestHTTP2ContinueIsSaidAfterTheDecisionOnly(t *testing.T) {
	rg := newH2Rig(t, 1, always(twoBytes), nil)
	c := rg.dialH2(t)
	c.post(1, "/", "expect", "100-continue", "content-length", "3")
	want(t, "word", c.next(), "HEADERS status=100")
	c.must(c.WriteData(1, true, []byte("abc")))
	want(t, "status", c.status(), "200")
	c.next()
	c.post(3, "/", "expect", "100-continue", "content-length", "3")
	want(t, "denied", c.status(), "429")
	c.post(5, "/", "expect", "tea")
	want(t, "unknown", c.status(), "417")
	if got := rg.raw.recorded(); len(got) != 1 || !strings.HasSuffix(got[0], "Content-Length: 3\r\n\r\nabc") {
		t.Errorf("upstream got %q, want the one that was allowed", got)
	}
}

func TestHTTP2UnreadBodyIsStoppedWithoutAnError(t *testing.T) {
	rg := newH2Rig(t, 5, always(twoBytes), nil)
	c := rg.dialH2(t)
	c.post(1, "/internal/x", "content-length", "1000000")
	want(t, "status", c.status(), "403")
	for frame := c.next(); frame != "RST NO_ERROR"; frame = c.next() {
		if !strings.HasPrefix(frame, "DATA") {
			t.Fatalf("got %s, want the answer and RST NO_ERROR", frame)
		}
	}
	c.get(3, "GET", "/")
	want(t, "next stream", c.status(), "200")
}

func TestHTTP2UploadWaitsForTheUpstream(t *testing.T) {
	const size = 32 << 20 // more than two sockets hold
	read, got := make(chan struct{}), make(chan int, 1)
	rg := newH2Rig(t, 5, func(p *peer) {
		<-read
		text, _ := p.take()
		_, body, _ := strings.Cut(text, "\r\n\r\n")
		got <- len(body)
		p.send(twoBytes)
		p.ended()
	}, func(c *Config) { c.Limits.BodyBytes = size })
	sent := new(countingReader)
	answered := make(chan string, 1)
	go func() {
		req, _ := http.NewRequest("POST", "https://"+rg.addr+"/up", io.LimitReader(sent, size))
		req.ContentLength = size
		resp, err := rg.transport(t).Do(req)
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		answered <- resp.Status
	}()
	// The upstream's socket takes some; then nothing moves until it reads.
	last := int64(-1)
	eventually(t, "the upload stands still", func() bool {
		before := last
		last = sent.n.Load()
		<-time.After(100 * time.Millisecond)
		return last > 0 && last == before
	})
	if last == size {
		t.Errorf("the proxy took %d bytes that nobody had read", last)
	}
	close(read)
	want(t, "status", <-answered, "200 OK")
	if n := <-got; n != size {
		t.Errorf("the upstream got %d bytes, want %d", n, size)
	}
}

func TestHTTP2BodyOverTheCapIs413(t *testing.T) {
	rg := newH2Rig(t, 5, func(p *peer) { p.ended() }, func(c *Config) { c.Limits.BodyBytes = 1 << 20 })
	c := rg.dialH2(t)
	c.post(1, "/", "content-length", "1048577")
	want(t, "declared", c.status(), "413")
	resp, err := rg.transport(t).Post("https://"+rg.addr+"/", "", io.LimitReader(new(countingReader), 2<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 413 {
		t.Errorf("undeclared: got %d, want 413", resp.StatusCode)
	}
}

type h2Head struct {
	status string
	fields []string
}

// h2Heads are heads and what they get, in words of h2Client.status.
func h2Heads() map[string]h2Head {
	pseudo := func(method, scheme, authority, path string, more ...string) []string {
		return append([]string{":method", method, ":scheme", scheme, ":authority", authority, ":path", path}, more...)
	}
	many := []string(nil)
	for i := range 20 {
		many = append(many, fmt.Sprintf("x-%d", i), "1")
	}
	reset := "RST PROTOCOL_ERROR"
	return map[string]h2Head{
		"fine":                    {"200", nil},
		"OPTIONS *":               {"200", pseudo("OPTIONS", "https", "a", "*")},
		"GET *":                   {"400", pseudo("GET", "https", "a", "*")},
		"http scheme":             {"400", pseudo("GET", "http", "a", "/")},
		"bad method":              {"400", pseudo("G T", "https", "a", "/")},
		"no authority":            {"400", []string{":method", "GET", ":scheme", "https", ":path", "/"}},
		"Host alone":              {"200", []string{":method", "GET", ":scheme", "https", ":path", "/", "host", "a"}},
		"Host differs":            {reset, pseudo("GET", "https", "a", "/", "host", "b")},
		"two Hosts":               {reset, pseudo("GET", "https", "a", "/", "host", "a", "host", "a")},
		"bad authority":           {"400", pseudo("GET", "https", "a:b", "/")},
		"user in authority":       {reset, pseudo("GET", "https", "u@a", "/")},
		"fragment":                {"400", pseudo("GET", "https", "a", "/x#y")},
		"space in path":           {"400", pseudo("GET", "https", "a", "/x y")},
		"absolute path":           {reset, pseudo("GET", "https", "a", "https://a/")},
		"long target":             {"414", pseudo("GET", "https", "a", "/"+strings.Repeat("x", 1000))},
		"large head":              {"431", []string{"x-large", strings.Repeat("x", 4096)}},
		"head of twice the size":  {"431", []string{"x-large", strings.Repeat("x", 8000)}},
		"head of any size":        {"GOAWAY COMPRESSION_ERROR", []string{"x-large", strings.Repeat("x", 16000)}},
		"many fields":             {"431", many},
		"CONNECT":                 {"405", []string{":method", "CONNECT", ":authority", "a:443"}},
		"extended CONNECT":        {reset, pseudo("CONNECT", "https", "a", "/", ":protocol", "websocket")},
		"Connection":              {"400", []string{"connection", "close"}},
		"Keep-Alive":              {"400", []string{"keep-alive", "1"}},
		"Proxy-Connection":        {"400", []string{"proxy-connection", "close"}},
		"Transfer-Encoding":       {"400", []string{"transfer-encoding", "chunked"}},
		"Upgrade":                 {"400", []string{"upgrade", "websocket"}},
		"TE":                      {"400", []string{"te", "gzip"}},
		"length by underscore":    {"400", []string{"content_length", "5"}},
		"length without a body":   {"400", []string{"content-length", "5"}},
		"two lengths":             {"400", []string{"content-length", "0", "content-length", "0"}},
		"length no number":        {"400", []string{"content-length", "+0"}},
		"control byte":            {reset, []string{"x-a", "a\rb"}},
		"space around a value":    {"400", []string{"x-a", " a"}},
		"upper case name":         {reset, []string{"X-A", "a"}},
		"name with a space":       {reset, []string{"x a", "a"}},
		"unknown pseudo field":    {reset, pseudo("GET", "https", "a", "/", ":x", "a")},
		"pseudo field comes last": {reset, []string{":method", "GET", ":scheme", "https", "x-a", "1", ":path", "/"}},
	}
}

func TestHTTP2MalformedHeadsAreRefused(t *testing.T) {
	rg := newH2Rig(t, 4, always(twoBytes), func(c *Config) {
		c.Limits.HeaderBytes, c.Limits.HeaderFields, c.Limits.TargetBytes = 4096, 20, 1000
	})
	for name, test := range h2Heads() {
		c := rg.dialH2(t)
		c.get(1, "GET", "/", test.fields...)
		want(t, name, c.status(), test.status)
	}
	c := rg.dialH2(t) // the fourth: what was refused cost nothing
	c.get(1, "GET", "/")
	want(t, "another", c.status(), "200")
}

func TestHTTP2LengthAndDataMustAgree(t *testing.T) {
	rg := newH2Rig(t, 100, always(twoBytes), nil)
	for name, data := range map[string]string{"too short": "ab", "too long": "abcd"} {
		c := rg.dialH2(t)
		c.post(1, "/", "content-length", "3")
		c.must(c.WriteData(1, true, []byte(data)))
		if got := c.status(); got != "400" && got != "RST PROTOCOL_ERROR" {
			t.Errorf("%s: got %s, want 400 or a reset", name, got)
		}
	}
	if got := rg.raw.recorded(); len(got) != 0 {
		t.Errorf("upstream got %q, want nothing", got)
	}
}

func TestHTTP2SlowBodyIs408(t *testing.T) {
	rg := newH2Rig(t, 100, always(twoBytes), func(c *Config) { c.Limits.BodyTimeout = 50 * time.Millisecond })
	c := rg.dialH2(t)
	c.post(1, "/", "content-length", "3")
	c.must(c.WriteData(1, false, []byte("a")))
	want(t, "small", c.status(), "408")
	c.post(3, "/")
	want(t, "large", c.status(), "408")
}

func TestHTTP2ClientThatOpensNoWindowIsResetInTime(t *testing.T) {
	rg := newH2Rig(t, 100, always("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), func(c *Config) { c.Limits.WriteTimeout = 100 * time.Millisecond })
	c := rg.dialH2(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	began := time.Now()
	c.get(1, "GET", "/")
	want(t, "head", c.status(), "200")
	want(t, "end", c.next(), "RST INTERNAL_ERROR")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v with a write_timeout of 100 ms", took)
	}
}

// Its windows are open, but its socket takes nothing any more.
func TestHTTP2ClientThatReadsNothingIsCutOff(t *testing.T) {
	closed := make(chan struct{})
	rg := newH2Rig(t, 100, func(p *peer) {
		defer close(closed)
		p.take()
		p.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
		for piece := strings.Repeat("x", 1<<20); ; {
			if _, err := io.WriteString(p, piece); err != nil {
				return
			}
		}
	}, func(c *Config) { c.Limits.WriteTimeout = 200 * time.Millisecond })
	c := rg.dialH2(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	c.must(c.WriteWindowUpdate(0, 1<<30))
	c.get(1, "GET", "/")
	select {
	case <-closed:
	case <-time.After(9 * time.Second):
		t.Error("the upstream still sends after 9 s")
	}
}

func TestHTTP2AndHTTP11ShareTheListener(t *testing.T) {
	rg := newH2Rig(t, 100, always(twoBytes), nil)
	for _, offers := range [][]string{nil, {"http/1.1"}} {
		c := rg.dialTLS(t, offers...)
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 OK\r\n")) {
			t.Errorf("offering %q: got %q, %v; want HTTP/1.1", offers, answer, err)
		}
	}
}

func TestHTTP2DrainSendsClientsElsewhere(t *testing.T) {
	rg := newH2Rig(t, 100, always(twoBytes), nil)
	c := rg.dialH2(t)
	c.get(1, "GET", "/")
	want(t, "before", c.status(), "200")
	c.next()
	rg.p.Drain()
	c.get(3, "GET", "/")
	frames := c.next() + "\n" + c.next() + "\n" + c.next()
	if !strings.Contains(frames, "GOAWAY NO_ERROR") || !strings.Contains(frames, "HEADERS status=200") || strings.Contains(frames, "connection=") {
		t.Errorf("got %s, want an answer and GOAWAY", frames)
	}
	if codes := c.ended(); len(codes) > 0 {
		t.Errorf("then got GOAWAY %v", codes)
	}
}

func TestHTTP2ShutdownLetsStreamsEndAndIdleConnectionsGo(t *testing.T) {
	finish := make(chan struct{})
	rg := newH2Rig(t, 100, func(p *peer) { p.take(); <-finish; p.send(twoBytes); p.ended() }, nil)
	idle, busy := rg.dialH2(t), rg.dialH2(t)
	busy.get(1, "GET", "/")
	idle.get(1, "GET", "/internal/x")
	want(t, "idle", idle.status(), "403")
	eventually(t, "the request is at the upstream", func() bool { return rg.raw.connections() == 1 })
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		done <- rg.p.Shutdown(ctx)
	}()
	if codes := idle.ended(); len(codes) != 1 || codes[0] != http2.ErrCodeNo {
		t.Errorf("idle: got GOAWAY %v, want NO_ERROR", codes)
	}
	want(t, "busy", busy.next(), "GOAWAY NO_ERROR")
	close(finish)
	want(t, "busy", busy.status(), "200")
	want(t, "body", busy.next(), `DATA "hi" END`)
	if err := <-done; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}
