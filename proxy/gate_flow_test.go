package proxy

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// spent is a rig whose only user has no token left.
func spent(t *testing.T, more func(c *Config)) (*rig, *rawServer) {
	t.Helper()
	rg, up := rawRig(t, 1, always(okAnswer), more)
	if got := rg.statusOf(t, plainGet); got != "200" {
		t.Fatalf("got %s, want 200", got)
	}
	return rg, up
}

// upload sends head and then body again and again, until size bytes are sent, the
// client stops it, or the other side takes no more. It returns how to stop.
func (c *rawClient) upload(head, body string, size int) (stop func()) {
	var answered atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.WriteString(c, head); err != nil {
			return
		}
		for sent := 0; sent < size && !answered.Load(); sent += len(body) {
			if _, err := io.WriteString(c, body); err != nil {
				return
			}
		}
	}()
	return func() { answered.Store(true); <-done }
}

const piece64K = 64 << 10

var (
	rawPiece = strings.Repeat("x", piece64K)
	chunk64K = fmt.Sprintf("%x\r\n%s\r\n", piece64K, rawPiece)
)

// wantWholeRefusal reads a whole answer while its request is being sent, and a
// clean end of the connection behind it.
func (c *rawClient) wantWholeRefusal(status string, stop func()) {
	c.t.Helper()
	got := c.answer("POST")
	if !strings.HasPrefix(got, "HTTP/1.1 "+status+" ") || !strings.Contains(got, "\r\nConnection: close\r\n") || !strings.HasSuffix(got, "}") {
		c.t.Fatalf("got %q, want the whole %s and close", got, status)
	}
	stop()
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		c.t.Errorf("the connection was reset: %v", err)
	}
	c.wantClosed()
	c.Close()
}

func TestDeniedUploadOf10MiBReadsItsWholeAnswer(t *testing.T) {
	rg, up := spent(t, nil)
	heads := map[string]string{
		fmt.Sprintf("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", 10<<20): rawPiece,
		"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n":              chunk64K,
	}
	for head, body := range heads {
		for range 100 {
			c := rg.dial(t)
			c.wantWholeRefusal("429", c.upload(head, body, 10<<20))
		}
	}
	if got := len(up.recorded()); got != 1 {
		t.Errorf("the upstream got %d requests, want 1", got)
	}
}

func TestDeniedUploadThatIsSentWholeBeforeReadingReadsItsAnswer(t *testing.T) {
	rg, _ := spent(t, nil)
	for range 20 {
		c := rg.dial(t)
		c.send(fmt.Sprintf("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", 10<<20))
		for range (10 << 20) / piece64K {
			c.send(rawPiece)
		}
		c.wantWholeRefusal("429", func() {})
	}
}

func TestUploadOverTheCapReadsItsWhole413(t *testing.T) {
	rg, up := rawRig(t, 1000, always(okAnswer), func(c *Config) { c.Limits.BodyBytes = 1 << 20 })
	for range 100 {
		c := rg.dial(t)
		c.wantWholeRefusal("413", c.upload(fmt.Sprintf("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", 2<<20), rawPiece, 2<<20))
	}
	if got := up.connections(); got != 0 {
		t.Errorf("lengths over the cap made %d connections to the upstream, want none", got)
	}
	for range 100 {
		c := rg.dial(t)
		c.wantWholeRefusal("413", c.upload("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", chunk64K, 4<<20))
	}
	eventually(t, "the upstream's connections have ended", func() bool { return len(up.recorded()) == 100 })
	for _, text := range up.recorded() {
		if strings.HasSuffix(text, "\r\n"+lastPiece) || len(text) > 1<<20+wireOverhead {
			t.Errorf("the upstream got %d bytes that end in %q, want at most the cap and no end", len(text), text[len(text)-9:])
		}
	}
}

func TestBodyOfADeniedRequestIsNeverTheNextRequest(t *testing.T) {
	rg, up := rawRig(t, 1, always(okAnswer), func(c *Config) {
		c.Routes = []RouteConfig{
			{Name: "free", Match: MatchConfig{Path: []string{"/free"}}, Upstream: "api", Action: "bypass"},
			{Name: "all", Upstream: "api"},
		}
	})
	rg.statusOf(t, plainGet)
	body := strings.Repeat(smuggled, 27)
	text := post(fmt.Sprintf("Content-Length: %d\r\n", len(body)), body) + "GET /free HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, piece := range []int{len(text), 1} {
		c := rg.dial(t)
		c.offer(text, piece)
		for _, status := range []string{"429", "200"} {
			if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 "+status+" ") {
				t.Fatalf("in pieces of %d: got %q, want %s", piece, got, status)
			}
		}
	}
	for i, got := range up.recorded() {
		if i > 0 && !strings.HasPrefix(got, "GET /free ") {
			t.Errorf("the upstream got %q", got)
		}
	}
}

func TestAnswerDoesNotWaitForTheNextBody(t *testing.T) {
	rg, _ := rawRig(t, 9, always(okAnswer), nil)
	c := rg.dial(t)
	c.send(plainGet + post("Content-Length: 5\r\n", "ab"))
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Fatalf("got %q", got)
	}
	c.send("cde")
	if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Fatalf("got %q", got)
	}
}

func TestExpectationSpendsOnce(t *testing.T) {
	rg, up := rawRig(t, 2, always(okAnswer), nil)
	const head = "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n"
	c := rg.dial(t)
	c.send(head)
	want(t, "interim answer", c.answer("HEAD"), "HTTP/1.1 100 Continue\r\n\r\n")
	c.send("abcde")
	if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Fatalf("got %q, want 200", got)
	}
	c.send(head + "abcde" + plainGet) // the body is there: nothing to ask for
	for _, status := range []string{"200", "429"} {
		if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 "+status+" ") {
			t.Fatalf("the body at once: got %q, want %s", got, status)
		}
	}
	c.send(head)
	if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 429 ") {
		t.Fatalf("denied: got %q, want 429 and no 100", got)
	}
	c.wantClosed()
	eventually(t, "four decisions", func() bool { return rg.tally().decisions == 4 })
	if got := len(up.recorded()); got != 2 {
		t.Errorf("the upstream got %d requests, want 2", got)
	}
}

// slow makes every wait for a client short.
func slow(c *Config) {
	c.Limits.HeaderTimeout, c.Limits.BodyTimeout = 100*time.Millisecond, 100*time.Millisecond
}

func TestSlowHeadIs408HoweverItDrips(t *testing.T) {
	rg, up := rawRig(t, 9, always(okAnswer), slow)
	for _, text := range []string{"G", "GET /x HTTP/1.1\r\nHost: a\r\n", "GET /x HTTP/1.1\r\nHost: a\r\nX: y\r\n\r"} {
		c := rg.dial(t)
		c.send(text)
		c.want408("the request head did not arrive within 100ms")
	}
	c, began := rg.dial(t), time.Now()
	drip, ended := time.NewTicker(5*time.Millisecond), make(chan struct{})
	defer drip.Stop()
	go func() {
		defer close(ended)
		c.offer("GET /x HTTP/1.1\r\nX: ", 1<<10)
		for range drip.C {
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
		}
	}()
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 408 ") {
		t.Errorf("got %q, want 408", got)
	}
	<-ended // it is not read on for long
	if took := time.Since(began); took > 100*time.Millisecond+lingerTimeout+2*time.Second {
		t.Errorf("the connection lived %v", took)
	}
	if got := up.connections(); got != 0 {
		t.Errorf("%d connections to the upstream, want none", got)
	}
}

func (c *rawClient) want408(detail string) {
	c.t.Helper()
	if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, detail) {
		c.t.Errorf("got %q, want 408: %s", got, detail)
	}
	c.wantClosed()
}

func TestSlowBodyIs408AndNeverEndsAtTheUpstream(t *testing.T) {
	rg, up := rawRig(t, 9, always(okAnswer), slow)
	for _, text := range []string{
		post("Content-Length: 5\r\n", "abcd"),
		post("Content-Length: 100000\r\n", "abcd"),
		chunked("5\r\nabcd"),
		chunked("5\r\nabcde\r\n0\r\n"),
	} {
		c := rg.dial(t)
		c.send(text)
		c.want408("no more of the request body arrived within 100ms")
	}
	eventually(t, "the upstream's connections have ended", func() bool { return len(up.recorded()) == 3 })
	for _, text := range up.recorded() {
		if strings.HasSuffix(text, "\r\n"+lastPiece) {
			t.Errorf("the upstream got %q, want no end", text)
		}
	}
}

// TestBodyBelowTheLeastRateIs408 begins where a body has been waited for long
// enough for its rate to count.
func TestBodyBelowTheLeastRateIs408(t *testing.T) {
	p := gateProxy(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := (&rig{addr: l.Addr().String()}).dial(t)
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := newClientConn(p.server, raw)
	rate, p10 := int64(p.server.limits().MinBodyRate), make([]byte, 10)
	for size, want := range map[int64]string{
		rate:       "the request body arrives at less than 240 bytes per second",
		2*rate + 1: "<nil>",
	} {
		c.reader.begin(1000)
		c.reader.waited, c.reader.size = bodyGrace+2*time.Second-time.Millisecond, size
		if _, err := io.WriteString(client, "0123456789"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.reader.Read(p10); fmt.Sprint(err) != want {
			t.Errorf("%d bytes in 2 s: got %v, want %s", size, err, want)
		}
	}
}

func TestWhatBeginsNoRequestIsRefusedAtItsFirstByte(t *testing.T) {
	rg, _ := rawRig(t, 9, always(okAnswer), nil)
	for _, text := range []string{"\x16\x03\x01\x02\x00\x01", "\r", "\n", " ", "\x00", "\xff"} {
		c := rg.dial(t)
		c.send(text)
		if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "does not begin with a method") {
			t.Errorf("%q: got %q, want 400", text, got)
		}
		c.wantClosed()
	}
	if took := rg.lines(t)[0]["duration_ms"].(float64); took > 1000 {
		t.Errorf("it took %v ms", took)
	}
}

func TestProblemsNameTheLimitThatWasPassed(t *testing.T) {
	rg, _ := rawRig(t, 9, always(okAnswer), nil)
	for raw, detail := range map[string]string{
		headOf(16<<10 + 1):                                      "the request head is larger than 16384 bytes",
		get(strings.Repeat("X: y\r\n", 100)):                    "the request has more than 100 header fields",
		line("GET /" + strings.Repeat("x", 9000) + " HTTP/1.1"): "the request target is longer than 8192 bytes",
		post("Content-Length: 10485761\r\n", ""):                "the request body is larger than 10485760 bytes",
		chunked("a00001\r\n" + strings.Repeat("x", 10<<20+1)):   "the request body is larger than 10485760 bytes",
		line("GET /x HTTP/3.0"):                                 "only HTTP/1.1 and HTTP/1.0 are spoken here",
	} {
		c := rg.dial(t)
		c.offer(raw, 1<<20)
		if got := c.answer("GET"); !strings.Contains(got, `"detail":"`+detail) {
			t.Errorf("got %q, want %q", got, detail)
		}
	}
}

func TestLogLinesAreBoundedAndEscapedWhateverComes(t *testing.T) {
	rg, _ := rawRig(t, 9, always(okAnswer), nil)
	long := strings.Repeat("\xff\xe2\x80\xa8<&", 600)
	for _, raw := range []string{
		strings.Repeat("M", 5000) + " /" + long + " HTTP/1.1\r\nHost: a\r\nX-Request-Id: \"" + long + "\r\n\r\n",
		strings.Repeat("M", 5000) + " /" + long + " HTTP/1.1\r\nHost: a\r\nX-Request-Id: \"" + long + "\r\nContent-Length: x\r\n\r\n",
	} {
		before := len(rg.log.String())
		rg.statusOf(t, raw)
		eventually(t, "a line", func() bool { return len(rg.log.String()) > before })
		if line := rg.log.String()[before:]; strings.Count(line, "\n") != 1 || len(line) > 6*3*maxLogged+500 {
			t.Errorf("%d bytes of log: %s", len(line), line)
		}
	}
	if got := len(rg.lines(t)); got != 2 {
		t.Errorf("%d lines, want 2", got)
	}
}
