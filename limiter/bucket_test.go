package limiter

import (
	"math/big"
	"math/rand/v2"
	"testing"
	"time"
)

// randomRate is any rate there can be, extremes included.
func randomRate(rnd *rand.Rand) Rate {
	for {
		n := 1 + rnd.Int64N(1<<rnd.IntN(28))
		p := 1 + rnd.Int64N(1<<rnd.IntN(52))
		if r, err := newRate(big.NewRat(n, p)); err == nil {
			return r
		}
	}
}

func TestLevelIsExactForAnyRateAndTime(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 5))
	for range 50_000 {
		r := randomRate(rnd)
		b := Bucket{Debt: 1 + rnd.Int64N(MaxCapacity), At: rnd.Int64N(1 << 51), Frac: rnd.Int64N(r.n)}
		now := b.At + rnd.Int64N(1<<rnd.IntN(51)) - rnd.Int64N(60_000_001)
		at := new(big.Rat).Add(new(big.Rat).SetInt64(b.At), big.NewRat(b.Frac, r.n))
		m := &modelBucket{debt: b.Debt, at: at, rate: ratOf(r)}
		progress := m.settle(now)
		got := b.Level(now, r)
		if got.Debt != m.debt || big.NewRat(got.Progress, r.p).Cmp(progress) != 0 {
			t.Fatalf("%+v at %d with %d/%d is %+v, want %d - %v", b, now, r.n, r.p, got, m.debt, progress)
		}
		stored := got.Bucket(now, r)
		if again := stored.Level(now, r); again != got {
			t.Fatalf("%+v is stored as %+v and read as %+v", got, stored, again)
		}
		if stored.Frac < 0 || stored.Frac >= r.n {
			t.Fatalf("%+v is stored with the fraction %d/%d", got, stored.Frac, r.n)
		}
	}
}

func TestWaitAndFullAreTheFirstMicrosecond(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 5))
	for range 50_000 {
		r := randomRate(rnd)
		capacity := 1 + rnd.Int64N(1<<rnd.IntN(30))
		b := Bucket{Debt: 1 + rnd.Int64N(capacity), At: 1 << 50, Frac: rnd.Int64N(r.n)}
		now := b.At + rnd.Int64N(1_000_000) - 1000
		l := b.Level(now, r)
		if l == (Level{}) {
			continue
		}
		if full := l.fullMicros(r); full < longest {
			if b.Level(now+full, r) != (Level{}) || b.Level(now+full-1, r) == (Level{}) {
				t.Fatalf("%+v with %d/%d is not full after exactly %d", b, r.n, r.p, full)
			}
		}
		cost := 1 + rnd.Int64N(capacity)
		wait := l.Wait(cost, capacity, r).Microseconds()
		if wait == 0 || wait == longest {
			continue
		}
		if !b.Level(now+wait, r).admits(cost, capacity) || b.Level(now+wait-1, r).admits(cost, capacity) {
			t.Fatalf("%+v with %d/%d and capacity %d admits %d not after exactly %d", b, r.n, r.p, capacity, cost, wait)
		}
	}
}

func TestZeroBucketIsFull(t *testing.T) {
	r := mustRate(t, "5/s")
	l := Bucket{}.Level(1<<50, r)
	if l != (Level{}) || l.Tokens(7, r) != 7 || l.Full(r) != 0 || l.Wait(7, 7, r) != 0 {
		t.Errorf("an absent bucket is %+v", l)
	}
	if b := (Level{}).Bucket(1<<50, r); b != (Bucket{}) {
		t.Errorf("a full bucket is stored as %+v", b)
	}
}

func TestTokensStayBetweenZeroAndCapacity(t *testing.T) {
	r := mustRate(t, "1/s")
	for _, test := range []struct {
		level    Level
		capacity int64
		want     float64
	}{
		{Level{}, 10, 10},
		{Level{3, 500_000}, 10, 7.5},
		{Level{3, -500_000}, 10, 7},
		{Level{10, 0}, 10, 0},
		{Level{12, 999_999}, 10, 0},
		{Level{1, 0}, MaxCapacity, MaxCapacity - 1},
	} {
		if got := test.level.Tokens(test.capacity, r); got != test.want {
			t.Errorf("%+v of %d has %v tokens, want %v", test.level, test.capacity, got, test.want)
		}
	}
}

func TestBucketOfTheFutureIsBroughtBackOnlyAfterAMinute(t *testing.T) {
	r := mustRate(t, "1/s")
	b := Bucket{Debt: 5, At: 1_000_000_000}
	if got, want := b.Level(b.At-60_000_000, r), (Level{5, -60_000_000}); got != want {
		t.Errorf("a minute ahead it is %+v, want %+v", got, want)
	}
	if got, want := b.Level(b.At-60_000_001, r), (Level{5, 0}); got != want {
		t.Errorf("more than a minute ahead it is %+v, want %+v", got, want)
	}
}

func TestFractionOfAnotherRateIsRoundedUp(t *testing.T) {
	r := mustRate(t, "1/s")
	b := Bucket{Debt: 5, At: 1000, Frac: 77}
	if got, want := b.Level(1001, r), (Level{5, 0}); got != want {
		t.Errorf("it is %+v, want %+v", got, want)
	}
}

func TestTimesAreBounded(t *testing.T) {
	r := perThirtyDays(t)
	l := Level{Debt: MaxCapacity, Progress: -1}
	const most = (1 << 53) * time.Microsecond
	if got := l.Full(r); got != most {
		t.Errorf("full after %v, want %v", got, most)
	}
	if got := l.Wait(MaxCost, MaxCapacity, r); got != most {
		t.Errorf("wait is %v, want %v", got, most)
	}
	if got := (Level{Debt: 1}).Full(r); got != 30*24*time.Hour {
		t.Errorf("a token takes %v, want 30 days", got)
	}
}

// TestBucketSpendsAsTheMemoryStoreDoes also steps the clock back, which a store must
// bear.
func TestBucketSpendsAsTheMemoryStoreDoes(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 7))
		now := int64(1 << 40)
		store := NewMemoryStoreAt(func() int64 { return now })
		l := Limit{Capacity: pick(random, sequenceCapacities), Rate: randomRate(random)}
		var b Bucket
		for i := range 200 {
			now += pick(random, []int64{0, 1, 1000, l.Rate.p / l.Rate.n, 1_000_000, -1, -61_000_000})
			if i%50 == 49 { // another limit on a live bucket
				l = Limit{Capacity: pick(random, sequenceCapacities), Rate: randomRate(random)}
			}
			cost := pick(random, []int64{0, 1, 1, l.Capacity, min(l.Capacity+1, MaxCost), 1 + random.Int64N(l.Capacity)})
			d, err := spendOne(store, "k", cost, &l)
			if allowed := b.Spend(now, cost, &l); err != nil || allowed != d.Allowed || b.Level(now, l.Rate) != d.Limits[0].Level {
				t.Fatalf("seed %d, step %d: cost %d allowed %v at %+v, by the store %v at %+v, %v", seed, i, cost, allowed, b.Level(now, l.Rate), d.Allowed, d.Limits[0].Level, err)
			}
		}
	}
}
