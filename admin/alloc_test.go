//go:build !race

// The race detector makes sync.Pool forget things on purpose, so that nothing
// is without allocations under it.

package admin

import (
	"bufio"
	"net"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"
)

// parsed is a request as fasthttp hands it over.
func parsed(t testing.TB, raw string) *fasthttp.RequestCtx {
	t.Helper()
	var r fasthttp.Request
	if err := r.Read(bufio.NewReader(strings.NewReader(raw))); err != nil {
		t.Fatal(err)
	}
	ctx := new(fasthttp.RequestCtx)
	ctx.Init(&r, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, nil)
	return ctx
}

// answerAgain is what the server does with ctx for each request.
func answerAgain(g *gateway, ctx *fasthttp.RequestCtx) {
	ctx.Response.Reset()
	g.handle(ctx)
}

func TestAllowAllocatesNothing(t *testing.T) {
	for name, raw := range map[string]string{
		"allowed": request("POST", "/allow?user_id=alice%40example.com&cost=0&resource=read"),
		"denied":  request("POST", "/allow?user_id=bob&cost=10"),
		"guarded": request("POST", "/allow?user_id=alice", "Authorization: Bearer "+allowToken),
	} {
		wantNoAllocations(t, name, raw)
	}
}

// wantNoAllocations answers a request again and again; it is one that gets 200 at first.
func wantNoAllocations(t *testing.T, name, raw string) {
	t.Helper()
	g := newGateway(t, setup{config: Config{AllowToken: allowTokenFor(name)}})
	ctx := parsed(t, raw)
	if answerAgain(g, ctx); ctx.Response.StatusCode() != fasthttp.StatusOK {
		t.Fatalf("%s: got %s", name, &ctx.Response)
	}
	// The log grows in memory here; what that takes is not the server's.
	g.log.b.Grow(1 << 20)
	if n := leastAllocations(func() { answerAgain(g, ctx) }); n > 0 {
		t.Errorf("%s: got %v allocations, want none", name, n)
	}
}

// leastAllocations is what f allocates, of three counts the least: all of the process is
// counted, and servers of earlier tests may still be ending.
func leastAllocations(f func()) float64 {
	n := testing.AllocsPerRun(200, f)
	for range 2 {
		n = min(n, testing.AllocsPerRun(200, f))
	}
	return n
}

func allowTokenFor(name string) string {
	if name == "guarded" {
		return allowToken
	}
	return ""
}

func BenchmarkAllow(b *testing.B) {
	g := newGateway(b, setup{logRequests: "none"})
	ctx := parsed(b, request("POST", "/allow?user_id=alice&cost=0"))
	b.ReportAllocs()
	for b.Loop() {
		answerAgain(g, ctx)
	}
}

func TestGroupingAScrapeAllocatesNothing(t *testing.T) {
	g := newGateway(t, setup{})
	e := new(exposition)
	g.Limiter.WriteMetrics(&e.raw)
	g.set.WritePrometheus(&e.raw)
	e.text()
	if n := testing.AllocsPerRun(100, func() { e.text() }); n > 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func TestCheckAllocatesNothing(t *testing.T) {
	for name, raw := range map[string]string{
		"allowed": request("GET", "/check?deny_status=403", "X-Forwarded-Method: POST", "X-Forwarded-Proto: https", "X-Forwarded-Host: api.example.com",
			"X-Forwarded-Uri: /cost/0?q=1", "X-Forwarded-For: 192.0.2.1", "User-Agent: curl/8.5.0", "X-User-Id: alice"),
		"of Envoy": request("POST", "/check/cost/0?q=1", "X-Forwarded-For: 192.0.2.1", "Authorization: Bearer of-the-client"),
		"passed":   request("GET", "/check/free", "X-Forwarded-For: 192.0.2.1"),
		"denied":   request("GET", "/check?deny_status=403", "X-Original-URI: /cost/10", "X-User-Id: bob"),
		"guarded":  request("GET", "/check/cost/0", "X-R8limiter-Token: "+allowToken),
	} {
		wantNoAllocations(t, name, raw)
	}
}

func BenchmarkCheck(b *testing.B) {
	g := newGateway(b, setup{logRequests: "none"})
	ctx := parsed(b, request("GET", "/check?deny_status=403", "X-Forwarded-Method: POST", "X-Forwarded-Host: api.example.com", "X-Forwarded-Uri: /cost/0",
		"X-Forwarded-For: 192.0.2.1", "User-Agent: curl/8.5.0", "Accept: */*", "X-User-Id: alice"))
	b.ReportAllocs()
	for b.Loop() {
		answerAgain(g, ctx)
	}
}
