package limiter

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// testedStore is a store with a clock that only the test moves. What the store
// expires by itself must not vanish while that clock stands still.
type testedStore struct {
	Store
	now     func() int64        // the store's clock, in microseconds
	advance func(time.Duration) // moves it, also back
}

// keyedLimit is a limit and the key of its bucket.
type keyedLimit struct {
	key   string
	limit *Limit
}

// testStore is what every store must do. Keys of one decision share the hash
// tag that open's Redis may need: none, as a single server serves them all.
func testStore(t *testing.T, open func(t *testing.T) testedStore) {
	for name, test := range map[string]func(*testing.T, testedStore){
		"RandomSequencesEqualTheModel":      testSequences,
		"OneDenyingLimitChargesNone":        testAllOrNone,
		"ShadowDecidesNothing":              testShadow,
		"SharedLimitHoldsForAllUsers":       testPerResource,
		"ExactWaitAdmits":                   testExactWait,
		"ClockStepsBackAddsNothing":         testClockBack,
		"FarFutureIsBroughtBackOnDenial":    testFarFuture,
		"ChangedCapacityKeepsDebt":          testChangedCapacity,
		"ChangedRateKeepsDebt":              testChangedRate,
		"CostZeroSpendsNothing":             testCostZero,
		"SameKeyTwiceIsOneBucket":           testSameKeyTwice,
		"ReplaySpendsNothing":               testReplay,
		"OtherCostUnderTheKeyIsRefused":     testKeyReused,
		"DenialIsNotRemembered":             testDenialForgotten,
		"IdempotencyKeyExpires":             testKeyExpires,
		"ConcurrentDuplicatesSpendOnce":     testConcurrentDuplicates,
		"ConcurrentSpendersAdmitCapacity":   testConcurrentSpenders,
		"ConcurrentOverlappingLimitsFinish": testOverlappingLimits,
		"ProbeWorks":                        testProbe,
	} {
		t.Run(name, func(t *testing.T) {
			store := open(t)
			t.Cleanup(func() { store.Close() })
			test(t, store)
		})
	}
}

func mustRate(t testing.TB, s string) Rate {
	t.Helper()
	r, err := ParseRate(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// perThirtyDays is the slowest rate there is; no decimal writes it.
func perThirtyDays(t testing.TB) Rate {
	t.Helper()
	r, err := newRate(big.NewRat(1, slowest))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func limitOf(t testing.TB, key string, capacity int64, rate string) keyedLimit {
	t.Helper()
	return keyedLimit{key, &Limit{Name: key, Capacity: capacity, Rate: mustRate(t, rate)}}
}

// question makes what a Limiter would ask the store.
func question(cost int64, idempotency string, limits []keyedLimit) (*Spend, *Decision) {
	s, d := &Spend{Cost: cost, IdempotencyKey: []byte(idempotency), IdempotencyTTL: time.Minute}, &Decision{}
	for _, l := range limits {
		s.Keys = append(s.Keys, []byte(l.key))
		d.Limits = append(d.Limits, LimitState{Limit: l.limit})
	}
	return s, d
}

// ask decides under an idempotency key, or none if it is empty.
func (s testedStore) ask(t testing.TB, idempotency string, cost int64, limits ...keyedLimit) (*Decision, error) {
	t.Helper()
	spend, d := question(cost, idempotency, limits)
	err := s.Decide(context.Background(), spend, d)
	return d, err
}

func (s testedStore) decide(t testing.TB, cost int64, limits ...keyedLimit) *Decision {
	t.Helper()
	d, err := s.ask(t, "", cost, limits...)
	if err != nil {
		t.Fatalf("decide: %v", err)
	}
	return d
}

func (s testedStore) wantAllowed(t testing.TB, want bool, cost int64, limits ...keyedLimit) *Decision {
	t.Helper()
	d := s.decide(t, cost, limits...)
	if d.Allowed != want {
		t.Fatalf("cost %d allowed %v, want %v; levels %+v", cost, d.Allowed, want, d.Limits)
	}
	return d
}

func (s testedStore) wantDebt(t testing.TB, want int64, l keyedLimit) {
	t.Helper()
	if got := s.decide(t, 0, l).Limits[0].Level.Debt; got != want {
		t.Fatalf("debt of %s is %d, want %d", l.key, got, want)
	}
}

func testSequences(t *testing.T, store testedStore) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newSequence(t, store, seed)
			for i := range s.limits {
				s.limits[i].key += fmt.Sprint(seed)
			}
			for i := range 400 {
				s.step(i)
			}
		})
	}
}

func testAllOrNone(t *testing.T, store testedStore) {
	wide, narrow := limitOf(t, "wide", 10, "1/s"), limitOf(t, "narrow", 2, "1/s")
	store.wantAllowed(t, true, 2, wide, narrow)
	for range 3 {
		d := store.wantAllowed(t, false, 1, wide, narrow)
		if d.Limits[0].Denied || !d.Limits[1].Denied {
			t.Fatalf("denied by %v and %v, want by the second only", d.Limits[0].Denied, d.Limits[1].Denied)
		}
	}
	store.wantAllowed(t, false, 1, narrow, wide)
	store.wantDebt(t, 2, wide)
	store.wantDebt(t, 2, narrow)
}

func testShadow(t *testing.T, store testedStore) {
	real, shadow := limitOf(t, "real", 3, "1/h"), limitOf(t, "shadow", 1, "1/h")
	shadow.limit.Shadow = true
	store.wantAllowed(t, true, 1, real, shadow)
	d := store.wantAllowed(t, true, 1, real, shadow)
	if !d.Limits[1].Denied {
		t.Fatal("an exhausted shadow does not say that it would refuse")
	}
	store.wantDebt(t, 2, real)
	store.wantDebt(t, 1, shadow) // it refused, so it was not charged
	store.wantAllowed(t, true, 1, real)
	fresh := limitOf(t, "fresh shadow", 5, "1/h")
	fresh.limit.Shadow = true
	store.wantAllowed(t, false, 1, real, fresh)
	store.wantDebt(t, 0, fresh) // the decision was a denial
}

func testPerResource(t *testing.T, store testedStore) {
	everyone := limitOf(t, "{r:search}:everyone", 3, "1/h")
	everyone.limit.Scope = PerResource
	a, b := limitOf(t, "{u:a}:search", 2, "1/h"), limitOf(t, "{u:b}:search", 2, "1/h")
	store.wantAllowed(t, true, 2, a, everyone)
	store.wantAllowed(t, true, 1, b, everyone)
	store.wantAllowed(t, false, 1, b, everyone)
	store.wantDebt(t, 1, b)
}

func testExactWait(t *testing.T, store testedStore) {
	rates := map[string]Rate{"1/30d": perThirtyDays(t)}
	for _, rate := range []string{"1000000/s", "999999/s", "5/s", "0.7/s", "3/m", "7/h", "12345678/d", "0.0334/d"} {
		rates[rate] = mustRate(t, rate)
	}
	for name, rate := range rates {
		for _, capacity := range []int64{1, 7, MaxCapacity} {
			t.Run(fmt.Sprint(name, capacity), func(t *testing.T) {
				l := keyedLimit{fmt.Sprint("exact", name, capacity), &Limit{Capacity: capacity, Rate: rate}}
				store.wantAllowed(t, true, capacity, l)
				waitExactly(t, store, l, 1)
				// Half the capacity, or what a century brings.
				century := int64(rate.PerSecond() * 100 * 365 * 86_400)
				waitExactly(t, store, l, max(1, min(capacity/2, century)))
			})
		}
	}
}

// waitExactly comes a millisecond early, a microsecond early, and on time.
func waitExactly(t *testing.T, store testedStore, l keyedLimit, cost int64) {
	t.Helper()
	d := store.wantAllowed(t, false, cost, l)
	wait := d.Limits[0].Level.Wait(cost, l.limit.Capacity, l.limit.Rate)
	early := min(time.Millisecond, wait)
	store.advance(wait - early)
	store.wantAllowed(t, false, cost, l)
	store.advance(early - time.Microsecond)
	store.wantAllowed(t, false, cost, l)
	store.advance(time.Microsecond)
	store.wantAllowed(t, true, cost, l)
}

func testClockBack(t *testing.T, store testedStore) {
	l := limitOf(t, "back", 10, "1/s")
	store.wantAllowed(t, true, 10, l)
	for range 5 {
		store.advance(-10 * time.Second)
		store.wantAllowed(t, false, 1, l)
		store.advance(10 * time.Second)
		store.wantAllowed(t, false, 1, l)
	}
	store.advance(-10 * time.Second)
	d := store.wantAllowed(t, false, 1, l)
	if got, want := d.Limits[0].Level.Wait(1, 10, l.limit.Rate), 11*time.Second; got != want {
		t.Fatalf("wait is %v, want %v: the lag counts", got, want)
	}
	store.advance(11 * time.Second)
	store.wantAllowed(t, true, 1, l)
	store.wantAllowed(t, false, 1, l)
}

func testFarFuture(t *testing.T, store testedStore) {
	l := limitOf(t, "future", 10, "1/m")
	store.wantAllowed(t, true, 10, l)
	store.advance(-time.Hour)
	store.wantAllowed(t, false, 1, l)
	store.advance(time.Minute)
	store.wantAllowed(t, true, 1, l) // a minute after the denial, not an hour
	store.wantAllowed(t, false, 1, l)
	store.advance(-time.Hour)
	store.decide(t, 0, l) // a look brings back, too
	store.advance(time.Minute)
	store.wantAllowed(t, true, 1, l)
}

func testChangedCapacity(t *testing.T, store testedStore) {
	l := limitOf(t, "capacity", 10, "1/s")
	store.wantAllowed(t, true, 8, l)
	l.limit.Capacity = 5
	store.wantDebt(t, 8, l)
	d := store.wantAllowed(t, false, 1, l)
	if got := d.Limits[0].Level.Tokens(5, l.limit.Rate); got != 0 {
		t.Fatalf("%v tokens left, want 0", got)
	}
	if got, want := d.Limits[0].Level.Wait(1, 5, l.limit.Rate), 4*time.Second; got != want {
		t.Fatalf("wait is %v, want %v", got, want)
	}
	l.limit.Capacity = 20
	store.wantDebt(t, 8, l)
	store.wantAllowed(t, true, 12, l)
	store.wantAllowed(t, false, 1, l)
}

func testChangedRate(t *testing.T, store testedStore) {
	l := limitOf(t, "rate", 10, "33.333333/s")
	store.wantAllowed(t, true, 10, l)
	store.advance(47 * time.Millisecond)
	store.wantAllowed(t, true, 1, l)
	l.limit = &Limit{Capacity: 10, Rate: mustRate(t, "1/m")}
	store.wantDebt(t, 10, l)
	d := store.wantAllowed(t, false, 1, l)
	// What was gained of the next token is kept as time: 17 ms of it at most.
	wait := d.Limits[0].Level.Wait(1, 10, l.limit.Rate)
	if wait > time.Minute || wait < time.Minute-20*time.Millisecond {
		t.Fatalf("wait is %v, want about a minute", wait)
	}
	store.advance(wait - time.Microsecond)
	store.wantAllowed(t, false, 1, l)
	store.advance(time.Microsecond)
	store.wantAllowed(t, true, 1, l)
}

func testCostZero(t *testing.T, store testedStore) {
	l := limitOf(t, "zero", 1, "1/h")
	for range 10 {
		store.wantAllowed(t, true, 0, l)
	}
	if n := store.ActiveKeys(); n != 0 {
		t.Fatalf("%d active keys after looking, want 0", n)
	}
	store.wantAllowed(t, true, 1, l)
	store.wantAllowed(t, true, 0, l)
	store.wantDebt(t, 1, l)
	if n := store.ActiveKeys(); n != 1 {
		t.Fatalf("%d active keys, want 1", n)
	}
}

func testSameKeyTwice(t *testing.T, store testedStore) {
	l, other := limitOf(t, "same", 5, "1/h"), limitOf(t, "other", 5, "1/h")
	store.wantAllowed(t, true, 2, l, other, l)
	store.wantDebt(t, 2, l)
	store.wantAllowed(t, true, 3, l, l)
	store.wantDebt(t, 5, l)
	d := store.wantAllowed(t, false, 1, l, l)
	if !d.Limits[0].Denied || !d.Limits[1].Denied {
		t.Fatal("one of two equal limits does not say that it refused")
	}
}

func testReplay(t *testing.T, store testedStore) {
	l := limitOf(t, "replay", 3, "1/h")
	for i := range 5 {
		d, err := store.ask(t, "idempotency:1", 2, l)
		if err != nil {
			t.Fatal(err)
		}
		if !d.Allowed || d.Replayed != (i > 0) {
			t.Fatalf("time %d: allowed %v, replayed %v", i, d.Allowed, d.Replayed)
		}
		if got := d.Limits[0].Level.Debt; got != 2 {
			t.Fatalf("time %d: debt %d, want 2", i, got)
		}
	}
	for i := range 2 { // cost 0 is remembered, too
		d, err := store.ask(t, "idempotency:0", 0, l)
		if err != nil || d.Replayed != (i > 0) {
			t.Fatalf("cost 0, time %d: replayed %v, error %v", i, d.Replayed, err)
		}
	}
	store.wantDebt(t, 2, l)
}

func testKeyReused(t *testing.T, store testedStore) {
	l := limitOf(t, "reused", 10, "1/h")
	if _, err := store.ask(t, "idempotency:1", 2, l); err != nil {
		t.Fatal(err)
	}
	for _, cost := range []int64{0, 1, 3} {
		if _, err := store.ask(t, "idempotency:1", cost, l); !errors.Is(err, ErrKeyReused) {
			t.Fatalf("cost %d: error %v, want ErrKeyReused", cost, err)
		}
	}
	store.wantDebt(t, 2, l)
}

func testDenialForgotten(t *testing.T, store testedStore) {
	l := limitOf(t, "denial", 1, "1/s")
	store.wantAllowed(t, true, 1, l)
	d, err := store.ask(t, "idempotency:1", 1, l)
	if err != nil || d.Allowed || d.Replayed {
		t.Fatalf("allowed %v, replayed %v, error %v; want a denial", d.Allowed, d.Replayed, err)
	}
	store.advance(time.Second)
	d, err = store.ask(t, "idempotency:1", 1, l)
	if err != nil || !d.Allowed || d.Replayed {
		t.Fatalf("allowed %v, replayed %v, error %v; want a fresh decision", d.Allowed, d.Replayed, err)
	}
}

func testKeyExpires(t *testing.T, store testedStore) {
	l := limitOf(t, "expires", 10, "1/h")
	again := func() bool {
		spend, d := question(1, "idempotency:1", []keyedLimit{l})
		spend.IdempotencyTTL = 200 * time.Millisecond
		if err := store.Decide(context.Background(), spend, d); err != nil {
			t.Fatal(err)
		}
		return d.Replayed
	}
	if again() || !again() {
		t.Fatal("the second decision must be a replay, and only that")
	}
	store.advance(200 * time.Millisecond)
	deadline := time.Now().Add(10 * time.Second)
	for again() { // a store may expire by a clock of its own
		if time.Now().After(deadline) {
			t.Fatal("still replayed long after the time to live")
		}
	}
	store.wantDebt(t, 2, l)
}

// together runs f in n goroutines and returns how often it was true.
func together(n int, f func(i int) bool) int64 {
	var count atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if f(i) {
				count.Add(1)
			}
		})
	}
	wg.Wait()
	return count.Load()
}

func testConcurrentDuplicates(t *testing.T, store testedStore) {
	l := limitOf(t, "duplicates", 100, "1/h")
	fresh := together(64, func(int) bool {
		d, err := store.ask(t, "idempotency:1", 3, l)
		if err != nil || !d.Allowed {
			t.Errorf("allowed %v, error %v", d.Allowed, err)
		}
		return !d.Replayed
	})
	if fresh != 1 {
		t.Errorf("%d of 64 duplicates were decided afresh, want 1", fresh)
	}
	store.wantDebt(t, 3, l)
}

func testConcurrentSpenders(t *testing.T, store testedStore) {
	a, b := limitOf(t, "spenders", 40, "1/h"), limitOf(t, "spenders too", 1000, "1/h")
	admitted := together(64, func(int) (any bool) {
		for range 4 {
			d, err := store.ask(t, "", 1, a, b)
			if err != nil {
				t.Error(err)
			}
			if d.Allowed {
				return true
			}
		}
		return false
	})
	if admitted != 40 {
		t.Errorf("%d admitted, want exactly 40", admitted)
	}
	store.wantDebt(t, 40, a)
	store.wantDebt(t, 40, b)
}

func testOverlappingLimits(t *testing.T, store testedStore) {
	var limits []keyedLimit
	for i := range 6 {
		limits = append(limits, limitOf(t, fmt.Sprint("overlap", i), 10_000, "1/h"))
	}
	const each = 100
	together(8, func(g int) bool {
		for i := range each {
			a, b, c := (g+i)%6, (g+3*i+1)%6, (g+5*i+2)%6
			if d, err := store.ask(t, "", 1, limits[a], limits[b], limits[c]); err != nil || !d.Allowed {
				t.Errorf("allowed %v, error %v", d.Allowed, err)
			}
		}
		return true
	})
	var total int64
	for _, l := range limits {
		total += store.decide(t, 0, l).Limits[0].Level.Debt
	}
	if want := distinctCharges(8, each); total != want {
		t.Errorf("%d tokens spent, want %d", total, want)
	}
}

// distinctCharges counts the buckets that testOverlappingLimits charges.
func distinctCharges(goroutines, each int) (charges int64) {
	for g := range goroutines {
		for i := range each {
			charges += int64(len(map[int]bool{(g + i) % 6: true, (g + 3*i + 1) % 6: true, (g + 5*i + 2) % 6: true}))
		}
	}
	return charges
}

func testProbe(t *testing.T, store testedStore) {
	for range 3 {
		if err := store.Probe(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}
