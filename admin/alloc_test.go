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
		g := newGateway(t, setup{config: Config{AllowToken: allowTokenFor(name)}})
		ctx := parsed(t, raw)
		if answerAgain(g, ctx); ctx.Response.StatusCode() != fasthttp.StatusOK {
			t.Fatalf("%s: got %s", name, &ctx.Response)
		}
		// The log grows in memory here; what that takes is not the server's.
		g.log.b.Grow(1 << 20)
		if n := testing.AllocsPerRun(200, func() { answerAgain(g, ctx) }); n > 0 {
			t.Errorf("%s: got %v allocations, want none", name, n)
		}
	}
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
