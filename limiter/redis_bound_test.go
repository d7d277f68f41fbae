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

// load is how clients ask: so many at each gateway, with a pause after what was
// admitted. After a denial they pause for a millisecond.
type load struct {
	clients int
	pause   time.Duration
	span    time.Duration
}

// saturate asks every store for more than the limit allows, and returns what was
// admitted.
func (c load) saturate(t *testing.T, stores []*RedisStore, sp Spend, limit *Limit) []admission {
	var mu sync.Mutex
	var all []admission
	start := time.Now()
	atEach(stores, c.clients, func(store *RedisStore) {
		d := Decision{Limits: []LimitState{{Limit: limit}}}
		for time.Since(start) < c.span {
			from := time.Since(start)
			if err := store.Decide(context.Background(), &sp, &d); err != nil {
				t.Error(err)
				return
			}
			if !d.Allowed {
				time.Sleep(time.Millisecond)
				continue
			}
			mu.Lock()
			all = append(all, admission{from, time.Since(start)})
			mu.Unlock()
			time.Sleep(c.pause)
		}
	})
	slices.SortFunc(all, func(a, b admission) int { return int(a.from - b.from) })
	return all
}

// checkWindows fails if any window admitted more than capacity and refill. Those
// that begin and end with an admission are the fullest.
func checkWindows(t *testing.T, all []admission, capacity, perSecond float64) {
	t.Helper()
	ends := slices.Clone(all)
	slices.SortFunc(ends, func(a, b admission) int { return int(a.to - b.to) })
	for _, first := range all {
		n := 0
		for _, a := range ends {
			if a.from < first.from {
				continue
			}
			n++
			if most := capacity + perSecond*(a.to-first.from).Seconds(); float64(n) > most {
				t.Fatalf("%d admitted in %v, at most %.1f may be", n, a.to-first.from, most)
			}
		}
	}
}

// shareOfBound is how much of what may be admitted was, from the first admission
// until the last one began: when it was made within its time, only Redis knows.
func shareOfBound(all []admission, held, perSecond float64) float64 {
	span := all[len(all)-1].from - all[0].from
	return float64(len(all)) / (held + perSecond*span.Seconds())
}

// shareOfTokens is how much of what came into the bucket, which held some at a time
// since, was admitted, or is there still: a machine that stands still at the end leaves
// tokens, and loses none.
func shareOfTokens(t *testing.T, admitted int, held float64, since time.Time, store *RedisStore, limit *Limit) float64 {
	t.Helper()
	d := Decision{Limits: []LimitState{{Limit: limit}}}
	if err := store.Decide(context.Background(), &Spend{Keys: [][]byte{[]byte("k")}}, &d); err != nil {
		t.Fatal(err)
	}
	came := held + limit.Rate.PerSecond()*time.Since(since).Seconds()
	return (float64(admitted) + d.Limits[0].tokens()) / came
}

// TestNoWindowAdmitsMoreThanCapacityAndRefill also sees that what may be
// admitted is.
func TestNoWindowAdmitsMoreThanCapacityAndRefill(t *testing.T) {
	// The bucket is half empty at first: full, it would lose what comes while a busy
	// machine lets nobody ask.
	const capacity, held, perSecond, span = 200, 100, 100, 2 * time.Second
	limit := &Limit{Capacity: capacity, Rate: rate(fmt.Sprint(perSecond))}
	for _, leased := range []bool{false, true} {
		for _, n := range []int{1, 2, 4, 8} {
			t.Run(fmt.Sprintf("%d gateways leased %v", n, leased), func(t *testing.T) {
				stores := gateways(t, startRedis(t), n)
				for _, store := range stores {
					store.run(t)
				}
				if d, err := spendOne(stores[0], "k", capacity-held, limit); err != nil || !d.Allowed {
					t.Fatalf("got %+v, %v", d, err)
				}
				sp := Spend{Cost: 1, Keys: [][]byte{[]byte("k")}, Leased: leased}
				began := time.Now()
				all := load{64, 0, span}.saturate(t, stores, sp, limit)
				checkWindows(t, all, capacity, perSecond)
				share, least := shareOfBound(all, held, perSecond), 0.97
				if !leased {
					share, least = shareOfTokens(t, len(all), held, began, stores[0], limit), 0.99
				}
				t.Logf("%d admitted, %.4f of the bound", len(all), share)
				if share < least {
					t.Errorf("%d admitted, %.4f of what may be; want at least %.2f", len(all), share, least)
				}
			})
		}
	}
}

// TestLeasesOfALargeBucketKeepTheBound has the bucket be far from empty, where
// leases are large, and then empty it.
func TestLeasesOfALargeBucketKeepTheBound(t *testing.T) {
	const capacity, perSecond, span = 3000, 1000, 2 * time.Second
	limit := &Limit{Capacity: capacity, Rate: rate(fmt.Sprint(perSecond))}
	stores := gateways(t, startRedis(t), 4)
	for _, store := range stores {
		store.run(t)
	}
	sp := Spend{Cost: 1, Keys: [][]byte{[]byte("k")}, Leased: true}
	all := load{8, 5 * time.Millisecond, span}.saturate(t, stores, sp, limit)
	checkWindows(t, all, capacity, perSecond)
	granted := uint64(0)
	for _, store := range stores {
		granted += store.leases.granted.Load()
	}
	t.Logf("%d admitted, %d by lease", len(all), granted)
	if granted == 0 {
		t.Error("there was no lease: nothing was tested")
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
