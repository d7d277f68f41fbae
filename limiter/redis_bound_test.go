package limiter

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// gateways opens n stores on one Redis, as n gateways would.
func gateways(t *testing.T, server *redisServer, n int) []*RedisStore {
	t.Helper()
	stores := make([]*RedisStore, n)
	for i := range stores {
		stores[i] = server.store(t)
	}
	return stores
}

// atEach runs work in n goroutines at each store.
func atEach(stores []*RedisStore, n int, work func(store *RedisStore)) {
	var group sync.WaitGroup
	for _, store := range stores {
		for range n {
			group.Go(func() { work(store) })
		}
	}
	group.Wait()
}

func TestThreeGatewaysAdmitExactlyTheBurst(t *testing.T) {
	stores := gateways(t, startRedis(t), 3)
	limit := slowLimit(500)
	var admitted, denied atomic.Int64
	atEach(stores, 64, func(store *RedisStore) {
		for range 5 {
			d, err := spendOne(store, "k", 1, limit)
			switch {
			case err != nil:
				t.Error(err)
			case d.Allowed:
				admitted.Add(1)
			default:
				denied.Add(1)
			}
		}
	})
	if admitted.Load() != 500 || denied.Load() != 3*64*5-500 {
		t.Errorf("admitted %d, denied %d; want 500, %d", admitted.Load(), denied.Load(), 3*64*5-500)
	}
}

// admission is a decision that was made somewhere between two moments.
type admission struct{ from, to time.Duration }

// saturate asks every store from n goroutines for a while and returns what was
// admitted.
func saturate(t *testing.T, stores []*RedisStore, limit *Limit, span time.Duration) []admission {
	var mu sync.Mutex
	var all []admission
	start := time.Now()
	atEach(stores, 64, func(store *RedisStore) {
		for time.Since(start) < span {
			from := time.Since(start)
			d, err := spendOne(store, "k", 1, limit)
			if err != nil {
				t.Error(err)
				return
			}
			if d.Allowed {
				mu.Lock()
				all = append(all, admission{from, time.Since(start)})
				mu.Unlock()
			}
		}
	})
	return all
}

func TestNoWindowAdmitsMoreThanCapacityAndRefill(t *testing.T) {
	const capacity, perSecond, span = 50, 200, 1500 * time.Millisecond
	limit := &Limit{Capacity: capacity, Rate: rate(fmt.Sprint(perSecond))}
	all := saturate(t, gateways(t, startRedis(t), 3), limit, span)
	slices.SortFunc(all, func(a, b admission) int { return int(a.to - b.to) })
	for _, first := range all {
		n := 0
		for _, a := range all { // every window that begins with first
			if a.from < first.from {
				continue
			}
			n++
			if most := capacity + perSecond*(a.to-first.from).Seconds(); float64(n) > most {
				t.Fatalf("%d admitted in %v, at most %.1f may be", n, a.to-first.from, most)
			}
		}
	}
	// A busy machine may leave the bucket full for a while.
	if least := capacity + perSecond*span.Seconds()/3; float64(len(all)) < least {
		t.Errorf("%d admitted in %v, want at least %.0f", len(all), span, least)
	}
}

func TestConcurrentDuplicatesSpendOnce(t *testing.T) {
	server := startRedis(t)
	sp := Spend{Cost: 1, Keys: [][]byte{[]byte("b")}, IdempotencyKey: []byte("i"), IdempotencyTTL: time.Minute}
	var first, replayed atomic.Int64
	atEach(gateways(t, server, 3), 20, func(store *RedisStore) {
		d := Decision{Limits: []LimitState{{Limit: slowLimit(10)}}}
		if err := store.Decide(context.Background(), &sp, &d); err != nil {
			t.Error(err)
		}
		if d.Replayed {
			replayed.Add(1)
		} else {
			first.Add(1)
		}
	})
	if first.Load() != 1 || replayed.Load() != 59 {
		t.Errorf("%d spent and %d were replayed, want 1 and 59", first.Load(), replayed.Load())
	}
	if d, _ := spendOne(server.store(t), "b", 0, slowLimit(10)); d.Limits[0].Level.Debt != 1 {
		t.Errorf("the debt is %d, want 1", d.Limits[0].Level.Debt)
	}
}
