package limiter

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// testedDenials are a cache, the bucket that it is about as Redis would have it,
// and how often that was asked.
type testedDenials struct {
	*denialCache
	t      *testing.T
	truth  *MemoryStore
	asked  int
	travel time.Duration // to Redis, and back
}

func newTestedDenials(t *testing.T) *testedDenials {
	return &testedDenials{denialCache: newDenialCache(50 * time.Millisecond), t: t, truth: NewMemoryStore(), travel: time.Millisecond}
}

// decide is what RedisStore does: it asks what the cache can't answer.
func (c *testedDenials) decide(cost int64, limits ...keyedLimit) *Decision {
	c.t.Helper()
	sp, d := question(cost, "", limits)
	if c.answer(sp, d) {
		return d
	}
	epoch, sent := c.epoch.Load(), c.now()
	time.Sleep(c.travel)
	if err := c.truth.Decide(c.t.Context(), sp, d); err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(c.travel)
	c.asked++
	c.note(sp, d, asked{epoch, sent, c.now(), maxDenial})
	return d
}

func (c *testedDenials) want(allowed bool, asked int, cost int64, limits ...keyedLimit) *Decision {
	c.t.Helper()
	d := c.decide(cost, limits...)
	if d.Allowed != allowed || c.asked != asked {
		c.t.Errorf("at %v: allowed %v after %d calls, want %v after %d", c.now(), d.Allowed, c.asked, allowed, asked)
	}
	return d
}

func TestDenialIsKnownUntilItsWaitIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newTestedDenials(t), limitOf(t, "k", 10, "5/s") // a token each 200 ms
		c.want(true, 1, 10, l)
		c.want(false, 2, 1, l) // asked at 2 ms, known at 4
		for range 19 {         // until 194 ms
			d := c.want(false, 2, 1, l)
			if wait := d.Limits[0].Level.Wait(1, 10, l.limit.Rate); wait > 200*time.Millisecond || wait < 5*time.Millisecond {
				t.Errorf("the wait is %v", wait)
			}
			time.Sleep(10 * time.Millisecond)
		}
		// The token is there at 201 ms. Whoever waited as long as they were told
		// comes later, and is asked for.
		time.Sleep(8 * time.Millisecond)
		c.want(true, 3, 1, l)
	})
}

// TestKnownDenialTellsAWaitThatIsLongEnough has a client wait what it is told.
func TestKnownDenialTellsAWaitThatIsLongEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newTestedDenials(t), limitOf(t, "k", 10, "1/s")
		c.want(true, 1, 10, l)
		for i := range 20 {
			c.decide(1, l)
			d := c.decide(1, l)
			if d.Allowed {
				t.Fatal("nobody waited")
			}
			time.Sleep(d.Limits[0].Level.Wait(1, 10, l.limit.Rate))
			if d := c.decide(1, l); !d.Allowed {
				t.Errorf("round %d: denied after the wait", i)
			}
		}
	})
}

func TestKnownDenialLetsALowerCostAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newTestedDenials(t), limitOf(t, "k", 10, "1/h")
		c.want(true, 1, 6, l)
		c.want(false, 2, 5, l)
		c.want(false, 2, 5, l)
		c.want(false, 2, 9, l) // a higher one is no less denied
		c.want(true, 3, 3, l)
		c.want(false, 3, 5, l)
		if d := c.decide(5, l); d.Limits[0].Level.Debt != 9 {
			t.Errorf("the debt that is told is %d, want 9: the last answer counts", d.Limits[0].Level.Debt)
		}
		c.want(false, 4, 2, l)
		c.want(true, 5, 1, l)
	})
}

func TestKnownDenialIsAskedForOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newTestedDenials(t), limitOf(t, "k", 1, "1/h")
		c.want(true, 1, 1, l)
		for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(time.Millisecond) {
			if c.decide(1, l).Allowed {
				t.Fatal("allowed")
			}
		}
		if c.asked > 11 || c.asked < 10 {
			t.Errorf("asked %d times in 10 seconds", c.asked)
		}
	})
}

func TestKnownDenialIsAskedForByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newTestedDenials(t), limitOf(t, "k", 1, "1/h")
		c.want(true, 1, 1, l)
		c.want(false, 2, 1, l)
		time.Sleep(time.Second)
		sp, d := question(1, "", []keyedLimit{l})
		if c.answer(sp, d) {
			t.Error("nobody asks after a second")
		}
		for range 10 {
			if !c.answer(sp, d) || d.Allowed {
				t.Error("a second one asks")
			}
		}
	})
}

func TestSharedDenialMarksWhatIsNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, everyone := newTestedDenials(t), limitOf(t, "everyone", 2, "1/h")
		ann, bob := limitOf(t, "ann", 10, "1/h"), limitOf(t, "bob", 10, "1/h")
		c.want(true, 1, 2, ann, everyone)
		c.want(false, 2, 1, ann, everyone)
		d := c.want(false, 2, 1, ann, everyone)
		if d.Limits[0].Unknown || d.Limits[0].Level.Debt != 2 || d.Limits[0].Denied || !d.Limits[1].Denied {
			t.Errorf("got %+v", d.Limits)
		}
		d = c.want(false, 2, 1, bob, everyone)
		if !d.Limits[0].Unknown || d.Limits[1].Unknown || !d.Limits[1].Denied {
			t.Errorf("got %+v", d.Limits)
		}
		if got, want := string(d.AppendRateLimit(nil)), `"everyone";r=0;t=3600`; got != want {
			t.Errorf("got RateLimit %s, want %s", got, want)
		}
		if d := c.want(true, 3, 1, bob); d.Limits[0].Unknown {
			t.Error("what was asked is unknown")
		}
	})
}

func TestForgottenDenialIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newTestedDenials(t), limitOf(t, "k", 1, "1/h")
		c.want(true, 1, 1, l)
		c.want(false, 2, 1, l)
		c.forget()
		if c.size.Load() != 0 {
			t.Errorf("%d are known", c.size.Load())
		}
		c.want(false, 3, 1, l)
		// An answer that is under way when all is forgotten says nothing.
		time.Sleep(2 * time.Second)
		time.AfterFunc(c.travel, c.forget)
		c.want(false, 4, 1, l)
		c.want(false, 5, 1, l)
	})
}

func TestShadowAndIdempotencyKeyAreAlwaysAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l, shadow := newTestedDenials(t), limitOf(t, "k", 5, "1/h"), limitOf(t, "shadow", 1, "1/h")
		shadow.limit.Shadow = true
		c.want(true, 1, 1, l, shadow)
		c.want(true, 2, 1, l, shadow)
		c.want(true, 3, 3, l, shadow)
		c.want(false, 4, 1, l, shadow)
		sp, d := question(1, "key", []keyedLimit{l})
		if c.answer(sp, d) {
			t.Error("a replay would be missed")
		}
		sp, d = question(0, "", []keyedLimit{l})
		if c.answer(sp, d) {
			t.Error("a look is answered")
		}
	})
}

func TestDenialsAreBounded(t *testing.T) {
	c := newDenialCache(time.Second)
	limit := limitOf(t, "", 1, "1/h")
	for i := range 3 * denialShards * denialShardMax {
		limit.key = fmt.Sprint(i)
		sp, d := question(1, "", []keyedLimit{limit})
		d.Limits[0].Level, d.Limits[0].Denied = Level{Debt: 1}, true
		c.note(sp, d, asked{0, c.now(), c.now(), maxDenial})
	}
	if n := c.size.Load(); n > denialShards*denialShardMax || n < denialShards*denialShardMax/2 {
		t.Errorf("%d are known", n)
	}
	c.now = func() int64 { return 2 * 3_600_000_000 }
	c.purge()
	if n := c.size.Load(); n != 0 {
		t.Errorf("%d are known when all is over", n)
	}
}

// TestAttackOnOneKeyDoesNotReachRedis counts calls in a real Redis.
func TestAttackOnOneKeyDoesNotReachRedis(t *testing.T) {
	server := startRedis(t)
	stores := gateways(t, server, 2)
	if d, err := spendOne(stores[0], "k", 5, slowLimit(5)); err != nil || !d.Allowed {
		t.Fatalf("got %+v, %v", d, err)
	}
	const span = 2500 * time.Millisecond
	before, start := server.scripts(t), time.Now()
	var answered atomic.Int64
	atEach(stores, 16, func(store *RedisStore) {
		for time.Since(start) < span {
			d, err := spendOne(store, "k", 1, slowLimit(5))
			if err != nil || d.Allowed {
				t.Errorf("got %+v, %v", d, err)
				return
			}
			answered.Add(1)
			time.Sleep(100 * time.Microsecond) // a client's pace
		}
	})
	// The first moment's requests ask together, in a call or two of each gateway.
	calls := server.scripts(t) - before
	t.Logf("%d denials, %d calls", answered.Load(), calls)
	if calls > 2*(2+3) || answered.Load() < 1000 {
		t.Errorf("%d calls for %d denials of 2 gateways in %v", calls, answered.Load(), span)
	}
}
