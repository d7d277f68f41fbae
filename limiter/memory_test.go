package limiter

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// openMemory returns a memory store on a clock that starts at an hour.
func openMemory(t *testing.T) testedStore {
	t.Helper()
	m := NewMemoryStore()
	var clock atomic.Int64
	clock.Store(time.Hour.Microseconds())
	m.now = clock.Load
	return testedStore{
		Store:   m,
		now:     clock.Load,
		advance: func(d time.Duration) { clock.Add(d.Microseconds()) },
	}
}

func TestMemoryStore(t *testing.T) { testStore(t, openMemory) }

// small returns a memory store with room for so many buckets and records.
func small(t *testing.T, most int64) (testedStore, *MemoryStore) {
	t.Helper()
	store := openMemory(t)
	m := store.Store.(*MemoryStore)
	m.buckets.max, m.records.max = most, most
	return store, m
}

// debts are the debts of limits, in order.
func (s testedStore) debts(t *testing.T, limits []keyedLimit) (debts []int64) {
	t.Helper()
	for _, l := range limits {
		debts = append(debts, s.decide(t, 0, l).Limits[0].Level.Debt)
	}
	return debts
}

func TestFullBucketsAreForgottenBeforeAnyDebtor(t *testing.T) {
	store, m := small(t, 1000)
	var debtors []keyedLimit
	for i := range 500 {
		debtors = append(debtors, limitOf(t, fmt.Sprint("debtor", i), 10, "1/h"))
		store.wantAllowed(t, true, 10, debtors[i])
		store.wantAllowed(t, true, 1, limitOf(t, fmt.Sprint("quick", i), 10, "1/s"))
	}
	store.advance(time.Second) // the quick ones are full
	for i := range 500 {
		store.wantAllowed(t, true, 1, limitOf(t, fmt.Sprint("new", i), 10, "1/h"))
	}
	for i, debt := range store.debts(t, debtors) {
		if debt != 10 {
			t.Fatalf("debtor %d owes %d, want 10", i, debt)
		}
	}
	if n := m.overflow.Load(); n != 0 {
		t.Errorf("%d debtors forgotten, want none", n)
	}
	if n := m.buckets.size.Load(); n != 1000 {
		t.Errorf("%d buckets, want 1000", n)
	}
}

func TestOfDebtorsTheNearestToFullIsForgotten(t *testing.T) {
	store, m := small(t, 100)
	var debtors []keyedLimit
	for i := range 100 {
		debtors = append(debtors, limitOf(t, fmt.Sprint("debtor", i), 1000, "1/s"))
		store.wantAllowed(t, true, int64(100+i), debtors[i])
	}
	store.wantAllowed(t, true, 100, debtors[0]) // 0 owes most now, its place in the heap is stale
	for i := range 30 {
		store.wantAllowed(t, true, 500, limitOf(t, fmt.Sprint("new", i), 1000, "1/s"))
	}
	for i, debt := range store.debts(t, debtors) {
		want := int64(100 + i)
		if i == 0 {
			want = 200
		} else if i <= 30 {
			want = 0
		}
		if debt != want {
			t.Errorf("debtor %d owes %d, want %d", i, debt, want)
		}
	}
	if n := m.overflow.Load(); n != 30 {
		t.Errorf("overflow counted %d, want 30", n)
	}
}

func TestKeyExplosionIsBoundedAndRefusesNothing(t *testing.T) {
	store, m := small(t, 500)
	hour := limitOf(t, "", 5, "1/h")
	together(4, func(g int) bool {
		for i := range 5000 {
			hour := hour
			hour.key = fmt.Sprint("flood", g, i)
			if d, err := store.ask(t, fmt.Sprint("idempotency:", g, i), 1, hour); err != nil || !d.Allowed {
				t.Errorf("allowed %v, error %v", d.Allowed, err)
			}
			if n := m.buckets.size.Load(); n > 504 {
				t.Errorf("%d buckets, want at most 500 and those being added", n)
			}
		}
		return true
	})
	if n := store.ActiveKeys(); n != 500 {
		t.Errorf("%d active keys, want 500", n)
	}
	if n := m.records.sweep(store.now()); n != 500 {
		t.Errorf("%d idempotency keys, want 500", n)
	}
	if n := m.overflow.Load(); n != 19_500 {
		t.Errorf("overflow counted %d, want 19500", n)
	}
	var text strings.Builder
	m.WriteMetrics(&text)
	for _, want := range []string{"r8limiter_store_overflow_total 19500", "r8limiter_store_idempotency_overflow_total 19500"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("metrics lack %q:\n%s", want, &text)
		}
	}
}

func TestOneRoomForTwoLimitsStillDecides(t *testing.T) {
	store, m := small(t, 1)
	store.wantAllowed(t, true, 1, limitOf(t, "a", 5, "1/h"), limitOf(t, "b", 5, "1/h"))
	if n := m.buckets.size.Load(); n != 1 {
		t.Fatalf("%d buckets, want 1", n)
	}
}

func TestInsertionsForgetFullBuckets(t *testing.T) {
	store, m := small(t, maxBuckets)
	for i := range 50_000 {
		store.wantAllowed(t, true, 1, limitOf(t, fmt.Sprint("user", i), 10, "1/s"))
		store.advance(time.Millisecond)
	}
	// A thousand are not full; every insertion looks into one shard only, so
	// that as many again wait to be looked at.
	if n := m.buckets.size.Load(); n > 3000 {
		t.Errorf("%d buckets are kept, want about 1000", n)
	}
	if n := store.ActiveKeys(); n != 1000 && n != 999 {
		t.Errorf("%d active keys, want 1000", n)
	}
	store.advance(time.Second)
	if n := store.ActiveKeys(); n != 0 {
		t.Errorf("%d active keys, want 0", n)
	}
	if n := m.buckets.size.Load(); n != 0 {
		t.Errorf("%d buckets are kept, want 0", n)
	}
}

func TestMemoryStoreClockIsMonotonic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := testedStore{Store: NewMemoryStore()}
		l := limitOf(t, "a", 1, "1/m")
		store.wantAllowed(t, true, 1, l)
		time.Sleep(time.Minute - time.Microsecond)
		store.wantAllowed(t, false, 1, l)
		time.Sleep(time.Microsecond)
		store.wantAllowed(t, true, 1, l)
	})
}

func TestClosedMemoryStoreDecidesNothing(t *testing.T) {
	store := openMemory(t)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.ask(t, "", 1, limitOf(t, "a", 1, "1/s")); err == nil {
		t.Error("a closed store decides")
	}
	if err := store.Probe(t.Context()); err == nil {
		t.Error("the probe of a closed store is fine")
	}
}

func TestKeysAreCopied(t *testing.T) {
	store := openMemory(t)
	l := limitOf(t, "aaaa", 5, "1/h")
	spend, d := question(2, "", []keyedLimit{l})
	if err := store.Decide(t.Context(), spend, d); err != nil {
		t.Fatal(err)
	}
	copy(spend.Keys[0], "bbbb")
	store.wantDebt(t, 2, l)
	store.wantDebt(t, 0, limitOf(t, "bbbb", 5, "1/h"))
}

func TestBucketTakesAtMost128Bytes(t *testing.T) {
	const users = 200_000
	if got := bytesPerBucket(t, users); got > 128 {
		t.Errorf("%.1f bytes a bucket besides its key, want at most 128", got)
	}
}

// bytesPerBucket fills a store and returns what a bucket takes besides the
// bytes of its key.
func bytesPerBucket(t testing.TB, users int) float64 {
	t.Helper()
	limit := &Limit{Capacity: 10, Rate: mustRate(t, "1/h")}
	key := make([]byte, 0, 64)
	spend, d := &Spend{Cost: 1, Keys: [][]byte{nil}}, &Decision{Limits: []LimitState{{Limit: limit}}}
	before := heapInUse()
	m := NewMemoryStore()
	var keys int
	for i := range users {
		key = strconv.AppendInt(append(key[:0], "r8:{user"...), int64(i), 10)
		key = append(key, "}:search"...)
		keys += len(key)
		spend.Keys[0] = key
		if err := m.Decide(t.Context(), spend, d); err != nil || !d.Allowed {
			t.Fatalf("allowed %v, error %v", d.Allowed, err)
		}
	}
	used := heapInUse() - before
	if n := m.ActiveKeys(); n != users {
		t.Fatalf("%d active keys, want %d", n, users)
	}
	return float64(used-int64(keys)) / float64(users)
}

func heapInUse() int64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

func TestStoreOnAnotherClockGoesByIt(t *testing.T) {
	now := int64(0)
	l := New(configOf(t, "default: {capacity: 2, refill_rate: 1/h}\nidempotency_ttl: 60s"), NewMemoryStoreAt(func() int64 { return now }))
	key := Request{User: []byte("b"), Resource: []byte("r"), Cost: 1, IdempotencyKey: []byte("k")}
	for i, step := range []struct {
		at, cost          int64
		allowed, replayed bool
	}{
		{0, 2, true, false}, {0, 1, false, true}, {3_599_999_999, 1, false, false}, {3_600_000_000, 1, true, true},
		{3_600_000_000, 1, false, true}, {3_659_000_000, 1, false, true}, {10_000_000_000_000, 2, true, false},
	} {
		now = step.at
		d, err := l.ask("a", "r", step.cost)
		if err != nil || d.Allowed != step.allowed {
			t.Errorf("%d: allowed %v, %v", i, d.Allowed, err)
		}
		if err := l.Decide(&key, d); err != nil || i > 0 && d.Replayed != step.replayed {
			t.Errorf("%d: replayed %v, %v, want %v", i, d.Replayed, err, step.replayed)
		}
	}
}
