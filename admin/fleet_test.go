package admin

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/limiter/redistest"
	"github.com/rs/zerolog"
)

// pair are two gateways on one redis-server.
type pair struct {
	server *redistest.Server
	a, b   *gateway
}

// openRedis opens a store on server with a time-out that a busy machine keeps.
func openRedis(t testing.TB, server *redistest.Server) limiter.Store {
	t.Helper()
	store, err := limiter.NewRedisStore(limiter.RedisConfig{URL: "unix://" + server.Socket(), Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// startPair starts both as the program does, with one resource in their file.
func startPair(t *testing.T, server *redistest.Server) *pair {
	t.Helper()
	p := &pair{server: server}
	for _, g := range []**gateway{&p.a, &p.b} {
		limits := frozen(t, 10)
		limits.Resources = map[string]limiter.ResourceConfig{"read": {Capacity: 5, RefillRate: rate(t, "0.034/d")}}
		*g = start(t, setup{limits: limits, store: openRedis(t, server)})
		if err := (*g).Limiter.Start(t.Context(), zerolog.Nop()); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// restart ends both and starts two others.
func (p *pair) restart(t *testing.T) *pair {
	t.Helper()
	for _, g := range []*gateway{p.a, p.b} {
		if err := g.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := g.Limiter.Close(); err != nil {
			t.Error(err)
		}
	}
	return startPair(t, p.server)
}

// inForce asks until the answer is the one wanted, for a second at most.
func (g *gateway) inForce(t *testing.T, method, target, want string) {
	t.Helper()
	got := ""
	for deadline := time.Now().Add(time.Second); got != want; time.Sleep(5 * time.Millisecond) {
		if got = g.says(t, method, target, ""); got != want && time.Now().After(deadline) {
			t.Errorf("%s %s: after a second\n got %s\nwant %s", method, target, got, want)
			return
		}
	}
}

func left(tokens string) string {
	return `200 {"allowed": true, "retry_after": 0.0, "tokens_left": ` + tokens + `}`
}

func TestChangesOfOneGatewayHoldOnTheOtherAndAfterARestart(t *testing.T) {
	p := startPair(t, redistest.Start(t))
	for _, s := range []step{
		{"POST", "/allow?user_id=ann&resource=read&cost=5", "", left("0.0")},
		{"PUT", "/admin/resources/read", `{"capacity":7,"refill_rate":"0.034/d"}`, ""},
		{"PUT", "/admin/user/big/override", `{"resource":"read","capacity":20,"refill_rate":"0.034/d","reason":"load test"}`, ""},
		{"PUT", "/admin/user/vip/override", `{"exempt":true}`, ""},
		{"PUT", "/admin/user/bad/override", `{"block":true,"ttl":"1h","reason":"abuse"}`, ""},
	} {
		p.a.walk(t, []step{s})
	}
	holds := func(p *pair) {
		t.Helper()
		for _, g := range []*gateway{p.b, p.a} {
			g.inForce(t, "POST", "/allow?user_id=ann&resource=read&cost=0", left("2.0"))
			g.inForce(t, "POST", "/allow?user_id=big&resource=read&cost=0", left("20.0"))
			g.inForce(t, "POST", "/allow?user_id=vip&resource=read&cost=99", left("7.0"))
			g.inForce(t, "POST", "/allow?user_id=bad&resource=read", barred)
		}
	}
	holds(p)
	p = p.restart(t)
	holds(p)
	p.b.walk(t, []step{{"POST", "/admin/user/ann/reset?resource=read", "", `200 {"user_id":"ann","reset":["read"]}`}})
	p.a.inForce(t, "POST", "/allow?user_id=ann&resource=read&cost=0", left("7.0"))
	p.b.walk(t, []step{
		{"DELETE", "/admin/user/bad/override", "", `200 {"overrides":[]}`},
		{"DELETE", "/admin/resources/read", "", ""},
	})
	p.a.inForce(t, "POST", "/allow?user_id=bad&resource=read&cost=0", left("5.0"))
	p.a.inForce(t, "POST", "/allow?user_id=ann&resource=read&cost=0", left("5.0"))
	p = p.restart(t)
	p.a.inForce(t, "POST", "/allow?user_id=bad&resource=read&cost=0", left("5.0"))
	want := []string{"limits.drop  read", "override.drop bad ", "user.reset ann read", "override.set bad ", "override.set vip ", "override.set big read", "limits.set  read"}
	if diff := cmp.Diff(want, p.b.trail(t)); diff != "" {
		t.Errorf("audit trail (-want +got):\n%s", diff)
	}
}

// read decodes what a GET answers.
func read[T any](t *testing.T, g *gateway, target string) (v T) {
	t.Helper()
	status, body := g.do(t, "GET", target)
	if err := json.Unmarshal([]byte(body), &v); err != nil || status != "200" {
		t.Fatalf("%s: got %s %s", target, status, body)
	}
	return v
}

// trail is the audit trail in short: action, user and resource.
func (g *gateway) trail(t *testing.T) (short []string) {
	t.Helper()
	for _, e := range read[struct{ Audit []limiter.AuditEntry }](t, g, "/admin/audit").Audit {
		short = append(short, e.Action+" "+e.User+" "+e.Resource)
		if e.By.ClientIP != "127.0.0.1" || e.By.RequestID == "" || e.Gateway == "" || time.Since(e.Time) > time.Minute {
			t.Errorf("got entry %+v", e)
		}
	}
	return short
}

func TestFiguresOfBothGatewaysAddUp(t *testing.T) {
	p := startPair(t, redistest.Start(t))
	const users = 40
	var clients sync.WaitGroup
	for n := range users {
		clients.Go(func() {
			for i := range 5 + n { // 5 are allowed, n are denied
				[]*gateway{p.a, p.b}[i%2].do(t, "POST", fmt.Sprintf("/allow?resource=read&user_id=u%02d", n))
			}
		})
	}
	clients.Wait()
	denied := uint64(users * (users - 1) / 2)
	want := stats{AllowedTotal: 5 * users, DeniedTotal: denied, ActiveKeys: users}
	for n := range 10 {
		want.TopOffenders = append(want.TopOffenders, offender{fmt.Sprintf("u%02d", users-1-n), uint64(users - 1 - n)})
	}
	for _, g := range []*gateway{p.a, p.b} {
		var got stats
		for deadline := time.Now().Add(5 * time.Second); !cmp.Equal(want, got) && time.Now().Before(deadline); {
			got = read[stats](t, g, "/admin/stats") // the other flushes every 800 ms
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("/admin/stats (-want +got):\n%s", diff)
		}
		for _, query := range []string{"window=15m", "window=7d&bucket=hour", "window=7d&bucket=day"} {
			if diff := cmp.Diff(want.TopOffenders, read[topOffenders](t, g, "/admin/top_offenders?"+query).TopOffenders); diff != "" {
				t.Errorf("%s (-want +got):\n%s", query, diff)
			}
		}
		resources := g.says(t, "GET", "/admin/resources", "")
		if figures := fmt.Sprintf(`"allowed":%d,"denied":%d,`, 5*users, denied); !strings.Contains(resources, figures) {
			t.Errorf("/admin/resources: got %s, want %s", resources, figures)
		}
	}
	p = p.restart(t)
	if got := read[stats](t, p.a, "/admin/stats"); got.AllowedTotal != want.AllowedTotal || got.DeniedTotal != want.DeniedTotal {
		t.Errorf("after a restart: got %+v, want the totals of before", got)
	}
}

func TestBothFormsOfALimitReachTheOtherGateway(t *testing.T) {
	p := startPair(t, redistest.Start(t))
	p.a.says(t, "PUT", "/admin/resources/new%2Fone", `{"limits":[{"name":"own","capacity":3,"refill_rate":"0.034/d"},{"name":"all","per":"resource","capacity":4,"refill_rate":"0.034/d"}]}`)
	p.b.inForce(t, "POST", "/allow?user_id=a&resource=new/one&cost=0", left("3.0"))
	p.b.walk(t, []step{
		{"POST", "/allow?user_id=a&resource=new/one&cost=3", "", left("0.0")},
		{"POST", "/allow?user_id=b&resource=new/one&cost=1", "", left("0.0")},
	})
	if got := p.a.says(t, "POST", "/allow?user_id=c&resource=new/one", ""); got[:3] != "429" {
		t.Errorf("got %s, want that all together have spent all", got)
	}
	p.b.walk(t, []step{{"DELETE", "/admin/resources/new%2Fone", "", ""}})
	p.a.inForce(t, "POST", "/allow?user_id=c&resource=new/one&cost=0", left("10.0"))
}
