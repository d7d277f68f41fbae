package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/textproto"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// taken is a request that was let in.
type taken struct {
	Method, Target, Host string
	Fields               http.Header
	Length               int64
	Body                 string
	Behind               int // bytes after it
}

// gateProxy is a proxy with one route, to let requests in by.
func gateProxy(tb testing.TB) *Proxy {
	tb.Helper()
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"echo": {Targets: []string{echoTarget}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "echo"}}
	p, err := New(c, Options{Limiter: newLimiter(tb, 1), Log: zerolog.Nop()})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// gateTakes is what p takes of raw, arriving in pieces of size bytes: its
// requests up to the first that is refused or not complete.
func gateTakes(p *Proxy, raw []byte, size int) (all []taken) {
	wire := &bytesConn{rest: bytes.Clone(raw), size: size}
	c := newClientConn(p.server, wire)
	for c.readHead() == nil {
		x := &exchange{proxy: p, rules: p.rules.Load(), client: c}
		if x.receive() != nil || p.rules.Load().router.checkMatched(&x.request) != nil {
			return all
		}
		if _, err := p.rules.Load().router.resolve(&x.request); err != nil {
			return all
		}
		r := &x.request
		this := taken{Method: string(r.method), Target: string(r.target), Host: string(r.hostport), Fields: http.Header{}, Length: r.length}
		for _, f := range r.fields {
			name := textproto.CanonicalMIMEHeaderKey(string(f.name))
			this.Fields[name] = append(this.Fields[name], string(f.value))
		}
		body, err := io.ReadAll(c.body())
		if err != nil {
			return all
		}
		this.Body, this.Behind = string(body), c.end-c.read+len(wire.rest)
		all = append(all, this)
	}
	return all
}

// netHTTPTakes is the next request that net/http takes, in the same form.
func netHTTPTakes(br *bufio.Reader, behind *bytes.Reader) (taken, error) {
	req, err := http.ReadRequest(br)
	if err != nil {
		return taken{}, err
	}
	body, err := io.ReadAll(req.Body)
	this := taken{
		Method: req.Method, Target: req.RequestURI, Host: req.Host, Fields: req.Header,
		Length: req.ContentLength, Body: string(body), Behind: br.Buffered() + behind.Len(),
	}
	if _, rest, ok := strings.Cut(this.Target, "://"); ok && this.Target[0] != '/' {
		this.Target = rest[strings.IndexByte(rest, '/'):]
	}
	return this, err
}

// asNetHTTP changes the fields to what net/http makes of them.
func (a *taken) asNetHTTP() {
	delete(a.Fields, "Host")
	delete(a.Fields, "Transfer-Encoding")
	if a.Length < 0 {
		delete(a.Fields, "Trailer")
	}
	if p := a.Fields["Pragma"]; len(p) > 0 && p[0] == "no-cache" && a.Fields["Cache-Control"] == nil {
		a.Fields["Cache-Control"] = []string{"no-cache"}
	}
}

// FuzzGateAgainstNetHTTP: what we take doesn't depend on how it arrives; and
// net/http takes it too, with the same meaning, and sees the next request begin at
// the same byte.
func FuzzGateAgainstNetHTTP(f *testing.F) {
	for i := range gateCases {
		if raw := gateCases[i].raw; len(raw) < 4<<10 {
			f.Add([]byte(raw+smuggled), 1+i%40)
			f.Add([]byte(sized+raw), 1<<16)
		}
	}
	p := gateProxy(f)
	f.Fuzz(func(t *testing.T, raw []byte, size int) {
		all := gateTakes(p, raw, 1<<20)
		if diff := cmp.Diff(all, gateTakes(p, raw, max(1, min(size, 1<<16)))); diff != "" {
			t.Fatalf("in reads of %d bytes (-whole +cut):\n%s", size, diff)
		}
		behind := bytes.NewReader(raw)
		br := bufio.NewReaderSize(behind, 1<<16) // net/http finds the end of trailers in its buffer only
		for i := range all {
			got := &all[i]
			got.asNetHTTP()
			want, err := netHTTPTakes(br, behind)
			if err != nil {
				t.Fatalf("we take %+v, net/http says %v", *got, err)
			}
			if strings.EqualFold(got.Host, want.Host) {
				got.Host = want.Host // an absolute target may write it in another case
			}
			if diff := cmp.Diff(want, *got); diff != "" {
				t.Fatalf("request %d (-net/http +ours):\n%s", i, diff)
			}
		}
	})
}

// FuzzResponseAgainstNetHTTP: net/http takes every answer that we take, with
// the same status, length and body.
func FuzzResponseAgainstNetHTTP(f *testing.F) {
	for _, raw := range []string{
		okAnswer,
		"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + okAnswer,
		"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n3;x\r\nabc\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.0 302 Found\r\nLocation: /\r\n\r\nuntil the end",
		"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		f.Add([]byte(raw), false)
		f.Add([]byte(raw), true)
	}
	f.Fuzz(func(t *testing.T, raw []byte, isHead bool) {
		got := answerOf(string(raw), 1<<20, isHead)
		if got.Err != "" {
			return
		}
		method := http.MethodGet
		if isHead {
			method = http.MethodHead
		}
		want, _, err := netHTTPAnswer(raw, method)
		if err != nil {
			t.Fatalf("we take %+v, net/http says %v", got, err)
		}
		if got.Status != want.Status || got.Length != want.Length || got.Body != want.Body {
			t.Fatalf("got %+v, net/http got %+v", got, want)
		}
	})
}
