package limiter

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

// configOf reads a configuration that is known to be right.
func configOf(t testing.TB, text string) Config {
	t.Helper()
	c := DefaultConfig()
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	c.Validate(func(path, problem string) { t.Errorf("%s: %s", path, problem) })
	return c
}

// reload puts another configuration in force.
func (l *Limiter) reload(t testing.TB, text string) {
	t.Helper()
	l.Commit(l.Prepare(configOf(t, text)))
}

const before = `
default: {capacity: 3, refill_rate: 1/h}
resources:
  read: {capacity: 10, refill_rate: 1/h}
  gone: {capacity: 20, refill_rate: 1/h}
  never: {capacity: 20, refill_rate: 1/h}
`

const after = `
default: {capacity: 5, refill_rate: 1/h}
resources:
  read: {capacity: 8, refill_rate: 2/h}
  new: {capacity: 7, refill_rate: 1/h}
plans:
  gold: {read: {capacity: 30, refill_rate: 1/h}}
idempotency_ttl: 2s
on_store_error: allow
replicas: 4
headers: [legacy]
`

func TestPreparedLimitsHaveNoEffectUntilCommitted(t *testing.T) {
	l := newTestedLimiter(t, before)
	l.ask(t, "a", "read", 4)
	now, known := l.Current(), len(*l.known.Load())
	n := l.Prepare(configOf(t, after))
	for name, want := range map[string]int64{"read": 10, "new": 3, "gone": 20} {
		if d := l.ask(t, "a", name, 0); d.Limits[0].Capacity != want {
			t.Errorf("%s: capacity %d, want %d", name, d.Limits[0].Capacity, want)
		}
	}
	if l.Current() != now || len(*l.known.Load()) != known+1 || !l.Headers().Draft || !l.StandsIn() {
		t.Error("preparing has changed something")
	}
	// Who was matched by the new configuration is decided by it, on the same buckets.
	var d Decision
	req := Request{User: []byte("a"), Resource: []byte("read"), Cost: 1, Limits: n}
	if err := l.Decide(&req, &d); err != nil || d.Limits[0].Capacity != 8 || d.TokensLeft() != 3 {
		t.Errorf("got %+v, %v", d.Limits[0], err)
	}
	req.Resource = []byte("new")
	if err := l.Decide(&req, &d); err != nil || d.Limits[0].Capacity != 7 {
		t.Errorf("got %+v, %v", d.Limits[0], err)
	}
	l.Commit(n)
	if allowed, denied := l.Totals(); allowed != 6 || denied != 0 {
		t.Errorf("totals are %d and %d, want 6 and 0: what was decided before the commit counts", allowed, denied)
	}
}

func TestCommitChangesAllButTheBuckets(t *testing.T) {
	l := newTestedLimiter(t, before)
	for _, resource := range []string{"read", "gone", "met"} {
		l.ask(t, "a", resource, 2)
	}
	old := l.Current()
	l.reload(t, after)
	for _, test := range []struct {
		plan, resource string
		capacity       int64
		left           float64
	}{{"", "read", 8, 6}, {"gold", "read", 30, 28}, {"", "gone", 5, 3}, {"", "met", 5, 3}, {"", "new", 7, 7}, {"", "never", 5, 5}} {
		d := l.askPlan(t, test.plan, "a", test.resource, 0)
		if d.Limits[0].Capacity != test.capacity || d.TokensLeft() != test.left {
			t.Errorf("%+v: got capacity %d, %v left", test, d.Limits[0].Capacity, d.TokensLeft())
		}
	}
	if l.Headers() != (HeaderSet{Legacy: true}) || old.Headers() != (HeaderSet{Draft: true}) || !l.StandsIn() {
		t.Errorf("headers %+v, before %+v", l.Headers(), old.Headers())
	}
	once := Request{User: []byte("b"), Resource: []byte("read"), Cost: 1, IdempotencyKey: []byte("k")}
	var d Decision
	for i, after := range []time.Duration{0, time.Second, time.Second} {
		l.store.advance(after)
		if err := l.Decide(&once, &d); err != nil || d.Replayed != (i == 1) {
			t.Errorf("%d: replayed %v, %v", i, d.Replayed, err)
		}
	}
	// A request that was matched before is decided as it was matched.
	req := Request{User: []byte("a"), Resource: []byte("gone"), Limits: old}
	if err := l.Decide(&req, &d); err != nil || d.Limits[0].Capacity != 20 || int(d.TokensLeft()) != 18 {
		t.Errorf("by the old limits: got %+v, %v", d.Limits[0], err)
	}
}

func TestPolicyAndReplicasAreReloaded(t *testing.T) {
	store := &downStore{NewMemoryStore(), true}
	l := limiterOf(t, "on_store_error: deny", store)
	if _, err := l.ask("a", "r", 1); !errors.Is(err, errDown) {
		t.Errorf("got %v", err)
	}
	l.reload(t, "on_store_error: allow")
	if d, err := l.ask("a", "r", 1); err != nil || d.StandIn != AllowedUnasked {
		t.Errorf("got %+v, %v", d, err)
	}
	l.reload(t, "replicas: 5")
	if d, err := l.ask("a", "r", 1); err != nil || d.StandIn != LocalBucket || d.Limits[0].Capacity != 2 || d.TokensLeft() != 1 {
		t.Errorf("got %+v, %v", d, err)
	}
	l.reload(t, "replicas: 2")
	if d, err := l.ask("a", "r", 1); err != nil || d.Limits[0].Capacity != 5 || int(d.TokensLeft()) != 3 {
		t.Errorf("the local bucket: got %+v, %v, want what was spent there to stay spent", d, err)
	}
}

func TestCountersOutliveReloads(t *testing.T) {
	l := newTestedLimiter(t, before)
	for _, resource := range []string{"read", "gone", "met"} {
		for range 2 {
			l.ask(t, "a", resource, 3)
		}
	}
	l.Outcomes("kept").Count(l.ask(t, "b", "read", 1), nil)
	l.reload(t, after)
	l.ask(t, "a", "gone", 1)
	states, err := l.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range states {
		got = append(got, fmt.Sprint(s.Name, " ", s.Source, " ", s.Limits[0].Capacity, " ", s.Allowed, " ", s.Denied))
	}
	want := []string{"gone default 5 2 1", "met default 5 1 1", "new config 7 0 0", "read config 8 3 0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	l.reload(t, before)
	l.ask(t, "a", "gone", 1)
	if gone, err := l.Resource(t.Context(), "gone"); err != nil || gone.Source != FromConfig || gone.Allowed != 3 {
		t.Errorf("a resource that is back: got %+v, %v", gone, err)
	}
	if allowed, denied := l.Totals(); allowed != 7 || denied != 2 {
		t.Errorf("totals are %d and %d, want 7 and 2", allowed, denied)
	}
	l.wantSeries(t, "decisions_total", `r8limiter_decisions_total{route="kept",limit="read",outcome="allow",reason="tokens"} 1`)
}

func TestWhatOperatorsChangedOutlivesReloads(t *testing.T) {
	slow := rate("1/h")
	l := newTestedLimiter(t, before)
	set := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	set(l.SetLimits(t.Context(), "read", ResourceConfig{Capacity: 100, RefillRate: slow}, operator))
	n := l.Prepare(configOf(t, after))
	// Between the two, an operator is as fast as it takes.
	set(l.SetLimits(t.Context(), "new", ResourceConfig{Capacity: 101, RefillRate: slow}, operator))
	set(l.SetOverride(t.Context(), Override{User: "bad", Block: true, Left: time.Hour}, operator))
	set(l.DropLimits(t.Context(), "read", operator))
	l.Commit(n)
	for name, want := range map[string]int64{"read": 8, "new": 101, "gone": 5} {
		if got := l.Capacity([]byte(name)); got != want {
			t.Errorf("%s: capacity %d, want %d", name, got, want)
		}
	}
	if all := l.Overrides("bad"); len(all) != 1 || all[0].Left > time.Hour || all[0].Left < time.Hour-time.Minute {
		t.Errorf("overrides are %+v", all)
	}
	if d := l.ask(t, "bad", "read", 1); d.Override != Blocked {
		t.Errorf("got %+v", d)
	}
	set(l.SetLimits(t.Context(), "read", ResourceConfig{Capacity: 102, RefillRate: slow}, operator))
	if got := l.Capacity([]byte("read")); got != 102 {
		t.Errorf("after the reload an operator sets 102, and %d is in force", got)
	}
}

// reloads puts a configuration with other names in force n times, asks for its
// resources, and returns how often.
func (l *Limiter) reloads(t *testing.T, first, n int) (asked uint64) {
	t.Helper()
	slow := rate("1/h")
	for i := first; i < first+n; i++ {
		c := DefaultConfig()
		c.Resources, c.Plans = map[string]ResourceConfig{}, map[string]map[string]ResourceConfig{}
		route := l.Outcomes(fmt.Sprint("route", i))
		for k := range 5 {
			c.Resources[fmt.Sprint("resource", i, ".", k)] = ResourceConfig{Capacity: 1, RefillRate: slow}
		}
		c.Plans[fmt.Sprint("plan", i)] = map[string]ResourceConfig{fmt.Sprint("only", i): {Capacity: 1, RefillRate: slow}}
		l.Commit(l.Prepare(c))
		for name := range c.Resources {
			d, err := l.ask("a", name, 1)
			route.Count(d, err)
			l.Outcomes("kept").Count(d, err)
			asked++
		}
		l.DropOutcomes(fmt.Sprint("route", i))
		route.Count(&Decision{}, errDown) // a request that is still under way
	}
	return asked
}

func TestReloadsWithEverNewNamesStayInBoundedMemory(t *testing.T) {
	store := NewMemoryStore()
	l := New(configOf(t, before), store)
	heap := func() uint64 {
		store.buckets, store.records = table{}, table{} // buckets are no matter of reloads
		store.buckets.init(maxBuckets)
		store.records.init(maxBuckets)
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	asked := l.reloads(t, 0, 400)
	if _, err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := heap()
	asked += l.reloads(t, 400, 1000)
	if _, err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if grown := int64(heap()) - int64(first); grown > 200_000 {
		t.Errorf("1000 reloads took %d bytes of memory", grown)
	}
	if n := len(*l.known.Load()); n > maxSeen+6 {
		t.Errorf("%d resources are known, want at most %d", n, maxSeen+6)
	}
	if len(l.leaving) > maxSeen {
		t.Errorf("%d resources are leaving, want at most %d", len(l.leaving), maxSeen)
	}
	// Those of the last configuration alone, all of one route.
	if n := len(l.decisions.series.ListMetricNames()); n > 6 || len(l.decisions.routes) != 1 {
		t.Errorf("%d series and %d routes are left", n, len(l.decisions.routes))
	}
	allowed, denied := l.Totals()
	totals, err := l.fleet.Totals(t.Context())
	if err != nil || allowed+denied != asked || totals.Allowed+totals.Denied != asked {
		t.Errorf("%d decisions are counted, %d in the fleet, want %d; %v", allowed+denied, totals.Allowed+totals.Denied, asked, err)
	}
}

func TestReloadsUnderLoadLoseNoCountAndNoSetting(t *testing.T) {
	for name, store := range map[string]Store{"memory": NewMemoryStore(), "redis": startRedis(t).store(t)} {
		t.Run(name, func(t *testing.T) {
			l := startGateway(t, configOf(t, before), store)
			var done atomic.Bool
			var asked atomic.Uint64
			var group sync.WaitGroup
			for i := range 4 {
				group.Go(func() {
					for k := 0; !done.Load(); k++ {
						if _, err := l.ask(fmt.Sprint("user", i), fmt.Sprint([]string{"read", "gone", "new", "met"}[k%4], k%3*i), 1); err != nil {
							t.Error(err)
							return
						}
						asked.Add(1)
					}
				})
			}
			group.Go(func() {
				for i := range 20 {
					c := ResourceConfig{Capacity: int64(100 + i), RefillRate: rate("1/h")}
					if err := l.SetLimits(t.Context(), "read0", c, operator); err != nil {
						t.Error(err)
					}
				}
			})
			for i := range 200 {
				l.reload(t, []string{before, after}[i%2])
			}
			done.Store(true)
			group.Wait()
			if got := l.Capacity([]byte("read0")); got != 119 {
				t.Errorf("capacity is %d, want what was set last", got)
			}
			totals, _, err := l.Stats(t.Context(), lastHour, 1)
			if allowed, denied := l.Totals(); err != nil || allowed+denied != asked.Load() || totals.Allowed+totals.Denied != asked.Load() {
				t.Errorf("%d decisions are counted, %d in the fleet, want %d; %v", allowed+denied, totals.Allowed+totals.Denied, asked.Load(), err)
			}
		})
	}
}

func TestLeasesAreGivenBackAtAReload(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	l := startGateway(t, configOf(t, "resources: {read: {capacity: 1000000, refill_rate: 1/h, precision: leased}}"), store)
	spent := int64(0)
	spend := func() {
		t.Helper()
		d, err := l.ask("a", "read", 1)
		if err != nil || !d.Allowed {
			t.Fatalf("got %+v, %v", d, err)
		}
		spent++
	}
	eventually(t, "a lease", func() bool { spend(); return store.leases.tokens() > 0 })
	old := l.Current()
	l.reload(t, "resources: {read: {capacity: 2000000, refill_rate: 1/h, precision: leased}}")
	look := func(key string) int64 { return debtOf(t, server.store(t), key, slowLimit(1)) }
	eventually(t, "what was held is back", func() bool { return store.leases.tokens() == 0 && look("r8:{a}:read") == spent })
	eventually(t, "a lease under the new limit", func() bool { spend(); return store.leases.tokens() > 0 })
	// A request that was matched before the reload is decided without the lease.
	d := Decision{}
	if err := l.Decide(&Request{User: []byte("a"), Resource: []byte("read"), Cost: 1, Limits: old}, &d); err != nil || d.Limits[0].Capacity != 1_000_000 {
		t.Errorf("got %+v, %v", d, err)
	}
}

func TestDroppedOutcomesAreGoneAndBeginAnew(t *testing.T) {
	l := newTestedLimiter(t, before)
	d := l.ask(t, "a", "read", 1)
	dropped := l.Outcomes("a")
	dropped.Count(d, nil)
	l.Outcomes("b").Count(d, nil)
	l.DropOutcomes("a")
	l.DropOutcomes("unheard of")
	dropped.Count(d, nil)
	dropped.Count(d, errDown)
	const b = `r8limiter_decisions_total{route="b",limit="read",outcome="allow",reason="tokens"} 1`
	l.wantSeries(t, "decisions_total", b)
	l.Outcomes("a").Count(d, nil)
	l.wantSeries(t, "decisions_total", strings.Replace(b, `"b"`, `"a"`, 1), b)
}
