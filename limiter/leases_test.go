package limiter

import (
	"context"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// leaseSpend asks store for cost tokens of a bucket that may be leased.
func leaseSpend(t testing.TB, store *RedisStore, key string, cost int64, l *Limit) *Decision {
	t.Helper()
	d := &Decision{Limits: []LimitState{{Limit: l}}}
	if err := store.Decide(context.Background(), &Spend{Cost: cost, Keys: [][]byte{[]byte(key)}, Leased: true}, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// Wait waits for what runs.
func (b *background) Wait() { b.running.Wait() }

// run does what the store does in the background, until the test ends.
func (s *RedisStore) run(t testing.TB) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx, zerolog.Nop())
	}()
	t.Cleanup(func() { stop(); <-ended })
}

// heat asks until the store holds a lease, and returns how many tokens were spent.
func heat(t testing.TB, store *RedisStore, key string, l *Limit) (spent int64) {
	t.Helper()
	eventually(t, "a lease", func() bool {
		if leaseSpend(t, store, key, 1, l).Allowed {
			spent++
		}
		return store.leases.tokens() > 0
	})
	return spent
}

// debtOf is what Redis has on a bucket.
func debtOf(t testing.TB, store *RedisStore, key string, l *Limit) int64 {
	t.Helper()
	d, err := spendOne(store, key, 0, l)
	if err != nil {
		t.Fatal(err)
	}
	return d.Limits[0].Level.Debt
}

func TestLeaseSparesCallsAndCountsEachToken(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	limit := slowLimit(1_000_000)
	spent := heat(t, store, "k", limit)
	before := server.scripts(t)
	const more = 20_000
	for range more {
		if leaseSpend(t, store, "k", 1, limit).Allowed {
			spent++
		}
	}
	store.background.Wait()
	if calls := server.scripts(t) - before; calls > more/50 {
		t.Errorf("%d calls for %d requests", calls, more)
	}
	if got, want := debtOf(t, store, "k", limit), spent+store.leases.tokens(); got != want {
		t.Errorf("Redis has a debt of %d, and %d were spent and are held", got, want)
	}
	// Closing gives back what is left.
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if got := debtOf(t, server.store(t), "k", limit); got != spent {
		t.Errorf("after the end the debt is %d, want %d", got, spent)
	}
}

func TestUnspentLeaseGoesBack(t *testing.T) {
	server := startRedis(t)
	store, other := server.store(t), server.store(t)
	store.run(t)
	limit := slowLimit(1_000_000)
	spent := heat(t, store, "k", limit)
	eventually(t, "the lease is given back", func() bool { return debtOf(t, other, "k", limit) == spent })
	store.background.Wait()
	if n := store.leases.returned.Load() + store.leases.lost.Load(); store.leases.tokens() != 0 || n == 0 {
		t.Errorf("%d tokens are held, %d are back", store.leases.tokens(), n)
	}
	eventually(t, "the key is forgotten", func() bool {
		n := 0
		for i := range store.leases.shards {
			n += len(store.leases.shards[i].names())
		}
		return n == 0
	})
}

func (s *leaseShard) names() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sortedKeys(s.held)
}

func TestLeaseIsASmallerShareOfASmallerBucket(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	limit := slowLimit(1000)
	for debtOf(t, store, "k", limit) < 1000 {
		before := debtOf(t, store, "k", limit) - store.leases.tokens()
		leaseSpend(t, store, "k", 1, limit)
		store.background.Wait()
		if held, left := store.leases.tokens(), 1000-before; held > left*20/100 {
			t.Fatalf("a lease of %d where %d were left", held, left)
		}
	}
	if held := store.leases.tokens(); held > 2 {
		t.Errorf("%d tokens are held of an empty bucket", held)
	}
}

// TestBucketRefillsNoFurtherThanItsLeasesLeaveRoom is why no window admits more
// than capacity and refill: on a clock that the test moves.
func TestBucketRefillsNoFurtherThanItsLeasesLeaveRoom(t *testing.T) {
	server := startRedis(t)
	store, other := server.clockedStore(t), server.clockedStore(t)
	now := int64(firstDay)
	server.setClock(t, now)
	// Redis ends keys by its own clock, when they would be full: not amid the test.
	limit := &Limit{Name: "x", Capacity: 1000, Rate: rate("2500/s")}
	heat(t, store, "k", limit)
	held := store.leases.tokens()
	now += 500_000 // the bucket would be full, and more
	server.setClock(t, now)
	if got := debtOf(t, other, "k", limit); got < held {
		t.Errorf("the debt is %d though a lease holds %d", got, held)
	}
	other.Forget()
	if d, err := spendAsked(other, "k", 1000-held+1, limit); err != nil || d.Allowed {
		t.Errorf("%d of 1000 are leased, and %d more are admitted: %v", held, 1000-held+1, err)
	}
	if d, err := spendAsked(other, "k", 1000-held, limit); err != nil || !d.Allowed {
		t.Errorf("%d of 1000 are leased, and %d are not admitted: %v", held, 1000-held, err)
	}
	// When it has ended, all refills; and what comes back then is too late.
	now += 2_000_000
	server.setClock(t, now)
	if got := debtOf(t, other, "k", limit); got != 0 {
		t.Errorf("the debt is %d after the lease has ended", got)
	}
	if d, err := spendAsked(other, "k", 1000, limit); err != nil || !d.Allowed {
		t.Errorf("a full bucket does not admit its capacity: %v", err)
	}
	store.leases.forget(store.giveBackLater)
	store.background.Wait()
	if got := debtOf(t, other, "k", limit); got != 1000 {
		t.Errorf("a lease that had ended was given back: the debt is %d", got)
	}
}

// spendAsked is spendOne without what the store remembers.
func spendAsked(store *RedisStore, key string, cost int64, l *Limit) (Decision, error) {
	store.Forget()
	return spendOne(store, key, cost, l)
}

func TestCrashLosesTheLeaseAtMost(t *testing.T) {
	server := startRedis(t)
	crashed, other := server.store(t), server.store(t)
	limit := slowLimit(10_000)
	spent := heat(t, crashed, "k", limit)
	lost := crashed.leases.tokens() // nobody gives them back
	eventually(t, "the lease has ended", func() bool {
		value := server.do(t, "GET", "k").(string)
		spendOne(other, "k", 1, limit)
		spent++
		return len(value) <= 15
	})
	if got := debtOf(t, other, "k", limit); got > spent+lost {
		t.Errorf("the debt is %d; %d were spent and %d were leased", got, spent, lost)
	}
}

func TestResetDropsTheLease(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	limit := slowLimit(1000)
	heat(t, store, "k", limit)
	if err := store.Reset(t.Context(), [][]byte{[]byte("k")}); err != nil {
		t.Fatal(err)
	}
	store.background.Wait()
	if held, debt := store.leases.tokens(), debtOf(t, store, "k", limit); held != 0 || debt != 0 {
		t.Errorf("%d tokens are held, the debt is %d", held, debt)
	}
}

func TestLeaseOfSeveralLimitsIsDebitedFromAll(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	wide, narrow := keyedLimit{"a", slowLimit(100_000)}, keyedLimit{"b", slowLimit(10_000)}
	allowed := int64(0)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		sp, d := question(1, "", []keyedLimit{wide, narrow})
		sp.Leased = true
		if err := store.Decide(context.Background(), sp, d); err != nil {
			t.Fatal(err)
		}
		if d.Allowed {
			allowed++
		} else if store.leases.tokens() == 0 {
			break
		}
	}
	store.background.Wait()
	a, b := debtOf(t, store, "a", wide.limit), debtOf(t, store, "b", narrow.limit)
	if want := allowed + store.leases.tokens(); a != want || b != want || want != 10_000 {
		t.Errorf("debts of %d and %d, %d allowed, %d held", a, b, allowed, store.leases.tokens())
	}
	if store.leases.granted.Load() == 0 {
		t.Error("there was no lease: nothing was tested")
	}
}

func TestChangedLimitEndsTheLease(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	limit := slowLimit(1000)
	spent := heat(t, store, "k", limit)
	store.Forget() // as each change of the settings does
	store.background.Wait()
	smaller := slowLimit(spent + 1)
	if d := leaseSpend(t, store, "k", 1, smaller); !d.Allowed {
		t.Error("the last token is not there")
	}
	if d := leaseSpend(t, store, "k", 1, smaller); d.Allowed {
		t.Error("a token of the old limit is spent")
	}
}
