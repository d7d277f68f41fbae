//go:build !race

package main

import (
	"net/netip"
	"testing"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/admin"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// describedJudge is a judge of two routes, and a request that the second is for.
func describedJudge(t testing.TB) (admin.Judge, *admin.Described) {
	t.Helper()
	g := &gateway{limiter: limiter.New(limiter.DefaultConfig(), limiter.NewMemoryStore()), log: zerolog.Nop()}
	t.Cleanup(func() { _ = g.limiter.Close() })
	user, err := proxy.ParseTemplate("{header.X-User-Id|lower}")
	if err != nil {
		t.Fatal(err)
	}
	c := defaultConfig()
	c.Proxy.Routes = []proxy.RouteConfig{
		{Name: "private", Match: proxy.MatchConfig{Path: []string{"/private/*"}}, Action: "block"},
		{Name: "items", Match: proxy.MatchConfig{Path: []string{"/items/{id}"}}, UserID: []proxy.Template{user}},
	}
	if err := g.buildProxy(&c); err != nil {
		t.Fatal(err)
	}
	return g.newJudge(), &admin.Described{
		Method: []byte("GET"), Target: []byte("/items/1?q"), Host: []byte("api.example.com"), Peer: netip.MustParseAddr("127.0.0.1"),
		Fields: []admin.Field{{Name: []byte("X-User-Id"), Value: []byte("Ann")}, {Name: []byte("X-Forwarded-For"), Value: []byte("192.0.2.1")}},
	}
}

func TestCheckJudgeAllocatesNothingButAnAddress(t *testing.T) {
	judge, described := describedJudge(t)
	var v admin.Verdict
	if judge(described, &v); v.Refused != nil || v.Route != "items" || string(v.Ask.User) != "ann" || v.Outcomes == nil {
		t.Fatalf("got %+v", v)
	}
	if n := testing.AllocsPerRun(200, func() { judge(described, &v) }); n > 1 { // the address in X-Forwarded-For is parsed as a string
		t.Errorf("got %v allocations, want 1", n)
	}
}

func BenchmarkCheckJudge(b *testing.B) {
	judge, described := describedJudge(b)
	var v admin.Verdict
	b.ReportAllocs()
	for b.Loop() {
		judge(described, &v)
	}
}
