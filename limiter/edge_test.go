package limiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/r8limiter/r8limiter/limiter/redistest"
	"github.com/r8limiter/r8limiter/lua"
)

// The debt does not refill below what a lease holds as long as that lasts, and
// has not done so when it is first looked at afterwards: tokens that were spent at
// the last moment are missing then. On real clocks; no sweep takes the lease before.
func TestTokensSpentLateInALeaseAreNotRefilledBefore(t *testing.T) {
	server := startRedis(t)
	store, other := server.store(t), server.store(t)
	const capacity = 10_000
	warm := &Limit{Name: "x", Capacity: capacity, Rate: rate("1250/s")}
	start := time.Now()
	spend := func(s *RedisStore, cost int64, leased bool) bool {
		d := &Decision{Limits: []LimitState{{Limit: warm}}}
		if err := s.Decide(context.Background(), &Spend{Cost: cost, Keys: [][]byte{[]byte("k")}, Leased: leased}, d); err != nil {
			t.Fatal(err)
		}
		return d.Allowed
	}
	// Demand until there is a lease, at a client's pace. It must be worth more than
	// what refills in the 300 ms that the window takes, or nothing is shown.
	for store.leases.tokens() == 0 {
		spend(store, 10, true)
		time.Sleep(time.Millisecond)
	}
	got := time.Now()
	l := store.onlyLease(t)
	for time.Since(got) < 700*time.Millisecond { // little demand, so that it is no idle one
		time.Sleep(100 * time.Millisecond)
		spend(store, 1, true)
	}
	held := store.leases.tokens()
	byLease := store.metrics.byLease.Get()
	first := time.Since(start)
	if !spend(store, held, true) || store.metrics.byLease.Get() != byLease+1 {
		t.Fatalf("the lease of %d was not spent", held)
	}
	for l.until > store.leases.now()-5_000 { // it has ended for Redis too
		time.Sleep(time.Millisecond)
	}
	if !spend(other, capacity, false) {
		return
	}
	span := time.Since(start) - first
	if n, most := float64(held+capacity), capacity+1250*span.Seconds(); n > most {
		t.Errorf("%.0f admitted in %v, at most %.0f may be", n, span, most)
	}
}

// The same in Redis alone, on a clock that the test moves.
func TestDebtOfALeaseThatHasEndedIsThere(t *testing.T) {
	server := startRedis(t)
	store, other := server.clockedStore(t), server.clockedStore(t)
	now := int64(firstDay)
	server.setClock(t, now)
	limit := &Limit{Name: "x", Capacity: 1000, Rate: rate("1000/s")}
	d := &Decision{Limits: []LimitState{{Limit: limit}}}
	tk := takeTicket(&Spend{Keys: [][]byte{[]byte("k")}}, d, time.Now().Add(time.Second))
	tk.flags, tk.lease = flagLease, leaseTerms{id: 7, want: 500, share: 500, ttl: time.Second}
	if err := store.ask(context.Background(), tk); err != nil || tk.lease.got != 500 {
		t.Fatal(err, tk.lease.got)
	}
	server.setClock(t, now+1_003_000) // the holder may have spent 500 four ms ago
	if got := debtOf(t, other, "k", limit); got < 490 {
		t.Errorf("the debt is %d: in 4 ms 1500 are admitted, at most 1004 may be", got)
	}
}

// A sweep takes a lease's tokens; before their return is run, the next request
// gets new ones. The return must not remove the record of these.
func TestLateReturnLeavesTheNextLease(t *testing.T) {
	server := startRedis(t)
	store, other := server.clockedStore(t), server.clockedStore(t)
	now := int64(firstDay)
	server.setClock(t, now)
	limit := &Limit{Name: "x", Capacity: 1000, Rate: rate("1000000/s")}
	heat(t, store, "k", limit)
	l := store.onlyLease(t)
	// As sweep does it, but the goroutine that gives back gets its turn late.
	back, _ := l.take(store.leases.now()+990_000, 1_000_000)
	if back.tokens == 0 {
		t.Fatal("nothing to give back")
	}
	for store.leases.tokens() == 0 { // requests go on
		leaseSpend(t, store, "k", 1, limit)
	}
	store.giveBack(back)
	held := store.leases.tokens()
	value, _ := server.do(t, "GET", "k").(string)
	if held > 0 && len(value) <= 15 {
		t.Errorf("the gateway holds %d tokens, of which Redis knows nothing", held)
	}
	now += 100_000 // far from the lease's end
	server.setClock(t, now)
	if d, err := spendAsked(other, "k", 1000, limit); err != nil || d.Allowed {
		t.Errorf("the whole capacity is admitted while a lease of %d can be spent (%v)", held, err)
	}
}

// A renewal whose answer was lost may run late, after others: its id is not used again.
func TestLeaseWhoseAnswerWasLostIsNotRenewed(t *testing.T) {
	store := startRedis(t).store(t)
	limit := slowLimit(1_000_000)
	heat(t, store, "k", limit)
	l := store.onlyLease(t)
	id := l.id
	store.leases.renewed(l, &leaseTerms{id: id}, &Decision{}, 0, os.ErrDeadlineExceeded)
	d := l.decision()
	for l.tokens > 0 {
		if u, _ := store.leases.spend(l, 1, &d); u != useDone {
			t.Fatalf("what is left of it is not spent: %v", u)
		}
	}
	if u, terms := store.leases.spend(l, 1, &d); u != useLease || terms.id == id || terms.held != 0 {
		t.Errorf("got use %v and terms %+v, want a new lease", u, terms)
	}
}

// onlyLease is the one lease that the store holds.
func (s *RedisStore) onlyLease(t testing.TB) (only *lease) {
	t.Helper()
	for i := range s.leases.shards {
		for _, l := range s.leases.shards[i].held {
			only = l
		}
	}
	if only == nil {
		t.Fatal("there is no lease")
	}
	return only
}

// After a change of settings while a lease is being renewed, what was held and
// what was got go back together.
func TestForgetDuringARenewalGivesAllBack(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	limit := slowLimit(1_000_000)
	spent := heat(t, store, "k", limit)
	l := store.onlyLease(t)
	l.mu.Lock()
	l.renewing = true
	terms := leaseTerms{id: l.id, held: l.tokens, want: 1000, share: 200, ttl: time.Second}
	l.mu.Unlock()
	// The call is under way, and Redis has run it.
	d := l.decision()
	sp := Spend{Keys: l.keys}
	tk := takeTicket(&sp, &d, time.Now().Add(time.Second))
	tk.flags, tk.lease = flagLease, terms
	sent := store.leases.now()
	if err := store.ask(context.Background(), tk); err != nil || tk.lease.got == 0 {
		t.Fatal(err, tk.lease.got)
	}
	store.Forget() // the answer is not taken in yet
	store.background.Wait()
	store.giveBackLater(store.leases.renewed(l, &tk.lease, &d, sent, nil))
	store.background.Wait()
	if got := debtOf(t, store, "k", limit); got != spent {
		t.Errorf("the debt is %d where %d were spent; %d count as returned", got, spent, store.leases.returned.Load())
	}
}

// What is given back makes a bucket fuller than its rate does: another gateway must
// not believe a denial for long while leases are out.
func TestDenialEndsSoonAfterLeasedTokensComeBack(t *testing.T) {
	server := startRedis(t)
	store, other := server.store(t), server.store(t)
	limit := slowLimit(100_000)
	heat(t, store, "k", limit)
	debt := debtOf(t, other, "k", limit)
	if d := leaseSpend(t, other, "k", 100_000-debt+1, limit); d.Allowed {
		t.Fatal("allowed")
	}
	store.Forget() // gives the lease back
	store.background.Wait()
	if now := debtOf(t, other, "k", limit); now >= debt {
		t.Fatalf("nothing came back: %d, %d", debt, now)
	}
	within(t, time.Second/2, "the tokens are allowed, not after a second", func() bool {
		return leaseSpend(t, other, "k", 100_000-debt+1, limit).Allowed
	})
}

// In a cluster the shared limit is asked first: a decision that was made is
// replayed all the same when that refuses, and another cost is told apart.
func TestReplayStandsWhereTheSharedLimitIsEmpty(t *testing.T) {
	store := clusterStore(t, redistest.StartCluster(t, 3, 0))
	limits := newTwoSlots(5, 2)
	if d, err := limits.ask(t, store, "ann", "key", 2); err != nil || !d.Allowed {
		t.Fatalf("got %+v, %v", d, err)
	}
	if d, err := limits.ask(t, store, "ann", "key", 2); err != nil || !d.Allowed || !d.Replayed {
		t.Errorf("allowed %v, replayed %v, %v: want a replay", d.Allowed, d.Replayed, err)
	}
	if _, err := limits.ask(t, store, "ann", "key", 1); !errors.Is(err, ErrKeyReused) {
		t.Errorf("got %v, want ErrKeyReused", err)
	}
}

// A gateway that gives back forgets what it remembers of the bucket.
func TestRefundedTokensAreNotDeniedFromMemory(t *testing.T) {
	store := clusterStore(t, redistest.StartCluster(t, 3, 0))
	limits := newTwoSlots(3, 5)
	shared := &part{spend: Spend{Cost: 5, Keys: [][]byte{[]byte("r8:{:search}:everyone")}}, decision: Decision{Limits: []LimitState{{Limit: limits.shared}}}}
	// ann's decision has spent the shared part, and her own will refuse.
	if err := store.Decide(context.Background(), &shared.spend, &shared.decision); err != nil || !shared.decision.Allowed {
		t.Fatal(err)
	}
	if d, err := limits.ask(t, store, "bob", "", 1); err != nil || d.Allowed {
		t.Fatalf("got %+v, %v", d, err)
	}
	store.refund(shared, 5)
	limits.wantDebts(t, store, "bob", 0, 0)
	if d, err := limits.ask(t, store, "bob", "", 1); err != nil || !d.Allowed {
		t.Errorf("denied from memory though all tokens are back: %v, %v", d.Allowed, err)
	}
}

// The call is run, its answer is late, and a local bucket allows the request: its
// cost is not debited a second time.
func TestTimedOutSpendIsDebitedOnce(t *testing.T) {
	server := redistest.Start(t)
	l := startLimiter(t, `default: {capacity: 10, refill_rate: 1/h}`, server)
	if _, err := l.ask("bob", "r", 1); err != nil { // connected
		t.Fatal(err)
	}
	server.Pause()
	d, err := l.ask("ann", "r", 1)
	server.Resume()
	if err != nil || !d.Allowed || d.StandIn != LocalBucket {
		t.Fatalf("got %+v, %v", d, err)
	}
	if n := l.owed.count.Load(); n != 0 {
		t.Errorf("%d buckets owe what Redis may have debited", n)
	}
	eventually(t, "Redis decides", func() bool {
		d, err := l.ask("bob", "r", 1)
		return err == nil && d.StandIn == NoStandIn
	})
	l.store.Forget()
	req := Request{User: []byte("ann"), Resource: []byte("r")}
	if err := l.Decide(&req, d); err != nil || d.Limits[0].Level.Debt != 1 {
		t.Errorf("one request of cost 1 was allowed, and %d tokens are debited (%v)", d.Limits[0].Level.Debt, err)
	}
}

// A flight ends at the deadline of its oldest decision: 100 that have much more time
// leave on another.
func TestOldDecisionTakesNoFreshOnesAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestedLane(50*time.Millisecond, func(n int) time.Duration {
			if n <= maxFlights {
				return 49 * time.Millisecond // Redis stands still
			}
			return 2 * time.Millisecond // and works again
		})
		var group sync.WaitGroup
		for range maxFlights { // take all flights at once
			group.Go(func() { l.send(context.Background(), &flight{}) })
		}
		l.flying = maxFlights
		group.Go(func() { l.ask(50 * time.Millisecond) }) // it will lead
		time.Sleep(20 * time.Millisecond)
		var mu sync.Mutex
		failed := 0
		for range 100 {
			group.Go(func() {
				if err, took := l.ask(50 * time.Millisecond); err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed++
					if failed == 1 {
						t.Logf("failed after %v: %v", took, err)
					}
				}
			})
		}
		time.Sleep(29 * time.Millisecond)
		for range maxFlights {
			wakeAll(l.land(&flight{}, nil))
		}
		group.Wait()
		if failed > 0 {
			t.Errorf("%d decisions failed that had 20 ms left, for an answer that takes 2 ms", failed)
		}
	})
}

// When Redis' clock goes back by an hour, the tokens of a lease are not gone for
// that hour.
func TestLeaseInTheFutureIsForgotten(t *testing.T) {
	server := startRedis(t)
	crashed, other := server.clockedStore(t), server.clockedStore(t)
	now := int64(firstDay)
	server.setClock(t, now)
	limit := &Limit{Name: "x", Capacity: 1000, Rate: rate("1000000/s")}
	heat(t, crashed, "k", limit)
	now -= 3_600_000_000
	server.setClock(t, now)
	spendAsked(other, "k", 1, limit) // brings it back
	now += 60_000_000                // a minute later
	server.setClock(t, now)
	if got := debtOf(t, other, "k", limit); got > 0 {
		t.Errorf("the debt of a lease of a second is still %d a minute later", got)
	}
}

// An attack with a cost above the capacity is denied from memory, too.
func TestCostThatNeverPassesDoesNotReachRedis(t *testing.T) {
	server := redistest.Start(t)
	l := startLimiter(t, `default: {capacity: 10, refill_rate: 1/h}`, server)
	l.ask("ann", "r", 1)
	before := l.store.(*RedisStore).metrics.byCall.Get()
	for range 100 {
		if d, err := l.ask("ann", "r", 11); err != nil || d.Allowed {
			t.Fatal(err)
		}
	}
	if n := l.store.(*RedisStore).metrics.byCall.Get() - before; n > 2 {
		t.Errorf("%d calls for 100 denials of one key", n)
	}
}

// Three failures to find a primary are not three in a row when others succeed between.
func TestFailuresFarApartOpenNoBreaker(t *testing.T) {
	store := clusterStore(t, redistest.StartCluster(t, 3, 0))
	limit := slowLimit(1_000_000)
	for i := range 3 {
		tk := takeTicket(&Spend{Keys: [][]byte{[]byte("r8:{a}:r")}}, &Decision{}, time.Now())
		store.lanes.unknown.note(tk, os.ErrDeadlineExceeded) // once a week
		tk.release()
		for j := range 50 { // and all is well between
			if _, err := spendOne(store, fmt.Sprintf("r8:{u%d}:r", j), 1, limit); err != nil {
				t.Fatalf("after %d failures, all slots fail: %v", i+1, err)
			}
		}
	}
}

// Decisions may start goroutines while Close waits for them: for the race detector.
func TestCloseDuringDecisions(t *testing.T) {
	server := startRedis(t)
	for range 20 {
		store := openRedis(t, RedisConfig{URL: "unix://" + server.socket, Timeout: time.Second}, lua.Decide)
		limit := &Limit{Name: "x", Capacity: 1_000_000, Rate: rate("1000000/s")}
		var group sync.WaitGroup
		stop := make(chan struct{})
		for range 4 {
			group.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					d := &Decision{Limits: []LimitState{{Limit: limit}}}
					store.Decide(context.Background(), &Spend{Cost: 50, Keys: [][]byte{[]byte("k")}, Leased: true}, d)
				}
			})
		}
		time.Sleep(250 * time.Millisecond)
		store.Close()
		if held := store.leases.tokens(); held > 0 {
			t.Errorf("%d tokens are held after the end", held)
		}
		close(stop)
		group.Wait()
	}
}
