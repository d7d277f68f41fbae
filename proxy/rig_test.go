package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
)

// rig is a proxy on a real listener in front of a recording upstream.
type rig struct {
	addr string
	up   *recorder
	p    *Proxy
	log  *logBuffer
}

// recorder is an upstream that keeps every request's bytes and sends scripted answers.
type recorder struct {
	addr     string
	requests chan string
}

func newRecorder(t *testing.T, answer string) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	rec := &recorder{addr: l.Addr().String(), requests: make(chan string, 100)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go rec.serve(c, answer)
		}
	}()
	return rec
}

func (rec *recorder) serve(c net.Conn, answer string) {
	defer c.Close()
	br := bufio.NewReader(c)
	for {
		var text strings.Builder
		req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(headReader{br}, &text)))
		if err != nil {
			return
		}
		head := text.String()
		length := req.ContentLength
		body := ""
		switch {
		case length > 0:
			b := make([]byte, length)
			if _, err := io.ReadFull(br, b); err != nil {
				return
			}
			body = string(b)
		case strings.Contains(head, "Transfer-Encoding: chunked"):
			for !strings.HasSuffix(body, "0\r\n\r\n") {
				line, err := br.ReadString('\n')
				if err != nil {
					return
				}
				body += line
			}
		}
		rec.requests <- head + body
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

// headReader gives one byte at a time and ends behind a head.
type headReader struct{ r *bufio.Reader }

func (h headReader) Read(p []byte) (int, error) { return h.r.Read(p[:1]) }

const okAnswer = "HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 10:00:00 GMT\r\nSet-Cookie: a=1\r\nSet-Cookie: a=2\r\nContent-Length: 2\r\n\r\nhi"

func newLimiter(t testing.TB, capacity int64) *limiter.Limiter {
	t.Helper()
	c := limiter.DefaultConfig()
	rate, err := limiter.ParseRate("1/h")
	if err != nil {
		t.Fatal(err)
	}
	c.Default.Capacity, c.Default.RefillRate = capacity, rate
	return limiter.New(c, limiter.NewMemoryStore())
}

func newRig(t *testing.T, capacity int64, answer string) *rig {
	t.Helper()
	up := newRecorder(t, answer)
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://" + up.addr}}}
	c.Routes = []RouteConfig{
		{Name: "blocked", Match: MatchConfig{Path: []string{"/internal/*"}}, Action: "block"},
		{Name: "free", Match: MatchConfig{Path: []string{"/free"}}, Upstream: "api", Action: "bypass"},
		{Name: "all", Match: MatchConfig{Path: []string{"/v1/*"}}, Upstream: "api", UserID: []Template{template(t, "{header.X-User-Id}")}},
	}
	return startRig(t, c, up, newLimiter(t, capacity))
}

func startRig(t *testing.T, c Config, up *recorder, lim *limiter.Limiter) *rig {
	t.Helper()
	return startRigOver(t, c, up, Options{Limiter: lim})
}

// startRigOver is startRig with other options; the log is the rig's.
func startRigOver(t *testing.T, c Config, up *recorder, o Options) *rig {
	t.Helper()
	lim := o.Limiter
	c.Validate(func(name string) int64 { return lim.Capacity([]byte(name)) }, func(path, problem string) { t.Fatalf("configuration: %s: %s", path, problem) })
	log := new(logBuffer)
	o.Log = zerolog.New(log)
	p, err := New(c, o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return &rig{addr: l.Addr().String(), up: up, p: p, log: log}
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(line)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// forget drops the lines so far.
func (l *logBuffer) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

func template(t *testing.T, text string) Template {
	t.Helper()
	tpl, err := ParseTemplate(text)
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

// rawClient sends raw bytes.
type rawClient struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (rg *rig) dial(t *testing.T) *rawClient {
	t.Helper()
	c, err := net.Dial("tcp", rg.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &rawClient{t: t, Conn: c, r: bufio.NewReader(c)}
}

func (c *rawClient) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// answer reads one answer as bytes: its head, and a body of length or chunks.
func (c *rawClient) answer(method string) string {
	c.t.Helper()
	var text strings.Builder
	length, chunked := 0, false
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("read head: %v after %q", err, text.String())
		}
		text.WriteString(line)
		if _, err := fmt.Sscanf(line, "Content-Length: %d", &length); err == nil {
			continue
		}
		chunked = chunked || line == "Transfer-Encoding: chunked\r\n"
		if line == "\r\n" {
			break
		}
	}
	if method == "HEAD" {
		return text.String()
	}
	if chunked {
		for !strings.HasSuffix(text.String(), "0\r\n\r\n") {
			line, err := c.r.ReadString('\n')
			if err != nil {
				c.t.Fatalf("read chunks: %v after %q", err, text.String())
			}
			text.WriteString(line)
		}
		return text.String()
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.r, body); err != nil {
		c.t.Fatalf("read body: %v", err)
	}
	return text.String() + string(body)
}

func (c *rawClient) wantClosed() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.t.Errorf("connection: got %q, %v, want a clean end", rest, err)
	}
}

func (rec *recorder) wantNothing(t *testing.T) {
	t.Helper()
	select {
	case got := <-rec.requests:
		t.Errorf("upstream got %q, want nothing", got)
	default:
	}
}

var volatile = regexp.MustCompile(`(Date: )[^\r]*GMT|(X-Request-Id: )[0-9a-f]{32}`)

// steady masks what differs from run to run.
func steady(text string) string { return volatile.ReplaceAllString(text, "$1$2*") }

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
	}
}

func listenLoopback(tb testing.TB) net.Listener {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l
}
