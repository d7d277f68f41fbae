package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/rs/zerolog"
	"github.com/valyala/fasthttp"
)

// gateway is a control listener on a port of its own.
type gateway struct {
	*Server
	addr string
	log  *syncBuffer
	// strangers makes every request come from an address of its own.
	strangers bool
	peers     atomic.Uint32
}

// setup is what a test's gateway differs in from the default.
type setup struct {
	config      Config
	limits      limiter.Config
	store       limiter.Store
	logRequests string
	metrics     []func(io.Writer)
	shown       any // Deps.Config
	upstreams   func() []Upstream
	explain     func(context.Context, *Question) (Explained, error)
	reload      func() Reloaded
}

// judgeByPath stands where routes are otherwise: the path says what they would. The
// user is who X-User-Id names, else X-Forwarded-For, else whoever asks.
func judgeByPath(l *limiter.Limiter) Judge {
	outcomes, resource := l.Outcomes("items"), []byte("items")
	return func(d *Described, v *Verdict) {
		*v = Verdict{Route: "items", Outcomes: outcomes, Client: describedClient}
		refuse := func(status int) { v.Refused, v.Status = errors.New("refused"), status }
		path, _, _ := bytes.Cut(d.Target, []byte("?"))
		switch {
		case string(d.Method) == "CONNECT":
			refuse(405)
		case string(path) == "/odd":
			refuse(400)
		case string(path) == "/login":
			refuse(401)
			v.Challenge = "Bearer"
		case string(path) == "/blocked":
			refuse(403)
		case string(path) == "/nowhere":
			refuse(404)
		case string(path) == "/free":
		default:
			v.Charged = true
			v.Ask = limiter.Request{User: userOf(d), Resource: resource, Cost: 1}
			if string(path) == "/gold" {
				v.Ask.Plan = []byte("gold")
			}
			if cost, ok := bytes.CutPrefix(path, []byte("/cost/")); ok {
				v.Ask.Cost, _ = parseCost(cost)
			}
		}
	}
}

// describedClient is whom judgeByPath takes for the client.
var describedClient = netip.MustParseAddr("192.0.2.9")

var asker = []byte("asker")

func userOf(d *Described) []byte {
	for _, name := range []string{"X-User-Id", "X-Forwarded-For"} {
		for i := range d.Fields {
			if equalFold(d.Fields[i].Name, name) {
				return d.Fields[i].Value
			}
		}
	}
	return asker
}

// frozen are limits that gain nothing a test could see: 1 token in 30 days.
func frozen(t testing.TB, capacity int64) limiter.Config {
	t.Helper()
	c := limiter.DefaultConfig()
	c.Default = limiter.ResourceConfig{Capacity: capacity, RefillRate: rate(t, "0.034/d")}
	return c
}

func rate(t testing.TB, text string) limiter.Rate {
	t.Helper()
	r, err := limiter.ParseRate(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newGateway(t testing.TB, s setup) *gateway {
	t.Helper()
	if s.limits.Default.Capacity == 0 {
		s.limits = frozen(t, 10)
	}
	if s.store == nil {
		s.store = limiter.NewMemoryStore()
	}
	l := limiter.New(s.limits, s.store)
	t.Cleanup(func() { _ = l.Close() })
	log := new(syncBuffer)
	return &gateway{
		Server: New(s.config, Deps{Limiter: l, Log: zerolog.New(log), LogRequests: s.logRequests, Metrics: s.metrics, Upstreams: s.upstreams, Explain: s.explain, Config: s.shown, Reload: s.reload, NewJudge: func() Judge { return judgeByPath(l) }, Version: "1.2.3"}),
		log:    log,
	}
}

// start serves on the loopback interface until the test ends.
func start(t *testing.T, s setup) *gateway {
	t.Helper()
	g := newGateway(t, s)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := g.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return g
}

// send writes raw bytes to a new connection and returns everything that comes
// back until the server closes it, without Date.
func (g *gateway) send(t *testing.T, raw string) string {
	t.Helper()
	dialer := net.Dialer{}
	if g.strangers {
		n := g.peers.Add(1)
		dialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 1, byte(n>>8), byte(n))}
	}
	c, err := dialer.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return talk(t, c, raw)
}

func talk(t *testing.T, c net.Conn, raw string) string {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(8 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(c, raw) }()
	answer, err := io.ReadAll(c)
	// A reset follows where the server left some of the request unread.
	if err != nil && len(answer) == 0 {
		t.Fatalf("read the answer to %.80q: %v", raw, err)
	}
	return dateLine.ReplaceAllString(string(answer), "")
}

var dateLine = regexp.MustCompile(`(?m)^Date: .*\r\n`)

// request is a request that asks for the connection to be closed.
func request(method, target string, fields ...string) string {
	return method + " " + target + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + strings.Join(append(fields, ""), "\r\n") + "\r\n"
}

// do sends request and returns the status and the body.
func (g *gateway) do(t *testing.T, method, target string, fields ...string) (status, body string) {
	t.Helper()
	answer := g.send(t, request(method, target, fields...))
	head, body, ok := strings.Cut(answer, "\r\n\r\n")
	if !ok || len(head) < 12 {
		t.Fatalf("%s %s: got %q", method, target, answer)
	}
	return head[9:12], body
}

// field is the value of a header field in a whole answer, "" if absent.
func field(answer, name string) string {
	head, _, _ := strings.Cut(answer, "\r\n\r\n")
	for line := range strings.SplitSeq(head, "\r\n") {
		if value, ok := strings.CutPrefix(line, name+": "); ok {
			return value
		}
	}
	return ""
}

// eventually polls until ok, at most for five seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen: " + what)
		}
	}
}

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// brokenStore is a store that is down.
type brokenStore struct{ *limiter.MemoryStore }

var errDown = errors.New("dial tcp 192.0.2.1:6379: connection refused")

func (brokenStore) Decide(context.Context, *limiter.Spend, *limiter.Decision) error { return errDown }
func (brokenStore) Probe(context.Context) error                                     { return errDown }

// newExchange is an exchange that no server is behind.
func newExchange() *exchange {
	return &exchange{ctx: new(fasthttp.RequestCtx)}
}
