//go:build !race

// The race detector makes sync.Pool lose what it holds, on purpose.

package limiter

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestDecidingOnKnownBucketsAllocatesNothing(t *testing.T) {
	l := newTestedLimiter(t, `
resources:
  search:
    limits:
      - {name: burst, capacity: 1000000000, refill_rate: 1/s}
      - {name: everyone, per: resource, capacity: 1000000000, refill_rate: 1/s}
      - {name: shadow, shadow: true, capacity: 1, refill_rate: 1/s}
plans:
  gold: {search: {capacity: 1000000000, refill_rate: 1/s}}`)
	long := strings.Repeat("long and hostile {u:} ", 10)
	outcomes := l.Outcomes("route")
	d, field := &Decision{}, make([]byte, 0, 1024)
	first := Request{User: []byte("a"), Resource: []byte("search"), Cost: 1, IdempotencyKey: []byte("k")}
	if err := l.Decide(&first, d); err != nil {
		t.Fatal(err)
	}
	for name, req := range map[string]Request{
		"allowed":          {User: []byte("a"), Resource: []byte("search"), Cost: 1},
		"long user":        {User: []byte(long), Resource: []byte("search"), Cost: 1},
		"plan":             {User: []byte("a"), Resource: []byte("search"), Plan: []byte("gold"), Cost: 1},
		"unknown plan":     {User: []byte("a"), Resource: []byte("search"), Plan: []byte(long), Cost: 1},
		"shadow, waived":   {User: []byte("a"), Resource: []byte("unconfigured"), Cost: 10, Shadow: true},
		"denied":           {User: []byte("a"), Resource: []byte("unconfigured"), Cost: 10},
		"never":            {User: []byte("a"), Resource: []byte("unconfigured"), Cost: 11},
		"look":             {User: []byte("a"), Resource: []byte("search"), Cost: 0},
		"idempotency key":  {User: []byte("a"), Resource: []byte("search"), Cost: 1, IdempotencyKey: []byte("k")},
		"reused, an error": {User: []byte("a"), Resource: []byte("search"), Cost: 2, IdempotencyKey: []byte("k")},
	} {
		t.Run(name, func(t *testing.T) {
			allocations := testing.AllocsPerRun(200, func() {
				err := l.Decide(&req, d)
				outcomes.Count(d, err)
				if err == nil {
					field = d.AppendPolicy(d.AppendRateLimit(field[:0]))
				}
			})
			if allocations != 0 {
				t.Errorf("%v allocations, want none", allocations)
			}
		})
	}
}

func TestPercentAllocatesNothing(t *testing.T) {
	p, user := percent(t, "5%"), []byte("user-1234")
	if n := testing.AllocsPerRun(200, func() { p.Includes("items", user) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestDecidingWithoutACallAllocatesNothing(t *testing.T) {
	store := startRedis(t).store(t)
	for name, way := range map[string]struct {
		limit   *Limit
		leased  bool
		allowed bool
	}{"lease": {slowLimit(MaxCapacity), true, true}, "denial": {slowLimit(1), false, false}} {
		t.Run(name, func(t *testing.T) {
			sp := Spend{Cost: 1, Keys: [][]byte{[]byte("r8:{" + name + "}:read")}, Leased: way.leased}
			d := Decision{Limits: []LimitState{{Limit: way.limit}}}
			decide := func() {
				if err := store.Decide(context.Background(), &sp, &d); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				decide()
			}
			if way.leased {
				for end := time.Now().Add(10 * time.Second); store.leases.tokens() < 5000 && time.Now().Before(end); {
					decide()
				}
			}
			store.background.Wait()
			calls := store.metrics.byCall.Get()
			allocations := testing.AllocsPerRun(500, decide)
			if store.metrics.byCall.Get() != calls || d.Allowed != way.allowed {
				t.Fatalf("there was a call, or allowed is %v", d.Allowed)
			}
			if allocations != 0 {
				t.Errorf("%v allocations, want none", allocations)
			}
		})
	}
}

func TestDecisionInRedisAllocatesLittle(t *testing.T) {
	store := startRedis(t).store(t)
	limit := slowLimit(MaxCapacity)
	d := Decision{Limits: []LimitState{{Limit: limit}}}
	sp := Spend{Cost: 1, Keys: [][]byte{[]byte("k")}}
	n := testing.AllocsPerRun(1000, func() {
		if err := store.Decide(context.Background(), &sp, &d); err != nil {
			t.Error(err)
		}
	})
	// 3 are go-redis's look at the connection, 1 the answer, 1 the command, the
	// others a deadline now and then.
	if n > 8 {
		t.Errorf("%v allocations, want at most 8", n)
	}
}
