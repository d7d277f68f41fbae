package limiter

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter/redistest"
	"github.com/r8limiter/r8limiter/lua"
)

var errDown = errors.New("down")

// downStore is a store that fails while down is set.
type downStore struct {
	*MemoryStore
	down bool
}

func (s *downStore) Decide(ctx context.Context, sp *Spend, d *Decision) error {
	if s.down {
		return errDown
	}
	return s.MemoryStore.Decide(ctx, sp, d)
}

// limiterOf is a limiter of a configuration in YAML on a store.
func limiterOf(t *testing.T, text string, store Store) *Limiter {
	t.Helper()
	l := New(newTestedLimiter(t, text).Current().config, store)
	t.Cleanup(func() { l.Close() })
	return l
}

// ask decides for a user.
func (l *Limiter) ask(user, resource string, cost int64) (*Decision, error) {
	d := new(Decision)
	return d, l.Decide(&Request{User: []byte(user), Resource: []byte(resource), Cost: cost}, d)
}

const policiesConfig = `
default: {capacity: 4, refill_rate: 1/h}
resources:
  open: {capacity: 4, refill_rate: 1/h, on_store_error: allow}
  shut: {capacity: 4, refill_rate: 1/h, on_store_error: deny}
  several: {limits: [{name: a, capacity: 8, refill_rate: 8/h}, {name: b, per: resource, capacity: 4, refill_rate: 1/h}], on_store_error: local}
replicas: 2
`

func TestEachResourceHasItsPolicy(t *testing.T) {
	l := limiterOf(t, policiesConfig, &downStore{NewMemoryStore(), true})
	type outcome struct {
		Allowed bool
		StandIn string
		Left    float64
		Err     error
	}
	got := func(resource string, cost int64) outcome {
		d, err := l.ask("ann", resource, cost)
		if err != nil {
			return outcome{Err: errors.Unwrap(err)}
		}
		return outcome{d.Allowed, d.StandIn.String(), d.TokensLeft(), nil}
	}
	for i, test := range []struct {
		resource string
		cost     int64
		want     outcome
	}{
		{"default", 1, outcome{true, "local", 1, nil}}, // half of 4 is 2
		{"default", 1, outcome{true, "local", 0, nil}},
		{"default", 1, outcome{false, "local", 0, nil}},
		{"open", 4, outcome{true, "allow", 4, nil}},
		{"open", 4, outcome{true, "allow", 4, nil}},
		{"open", 5, outcome{false, "allow", 4, nil}}, // it could never pass
		{"shut", 1, outcome{Err: errDown}},
		{"several", 2, outcome{true, "local", 0, nil}},
		{"several", 1, outcome{false, "local", 0, nil}},
	} {
		if diff := cmp.Diff(test.want, got(test.resource, test.cost), cmp.Comparer(func(a, b error) bool { return a == b }),
			cmp.Comparer(func(a, b float64) bool { return a-b < 0.01 && b-a < 0.01 })); diff != "" {
			t.Errorf("%d: %s (-want +got):\n%s", i, test.resource, diff)
		}
	}
	if allowed, denied := l.Totals(); allowed != 5 || denied != 3 {
		t.Errorf("%d allowed and %d denied are counted, want 5 and 3", allowed, denied)
	}
}

func TestLocalShareIsWhatAnswersTell(t *testing.T) {
	l := limiterOf(t, policiesConfig, &downStore{NewMemoryStore(), true})
	d, err := l.ask("ann", "several", 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(d.AppendPolicy(nil)), `"a";q=4;w=3600,"b";q=2;w=14400`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestCostAboveTheShareWaits(t *testing.T) {
	l := limiterOf(t, policiesConfig, &downStore{NewMemoryStore(), true})
	d, err := l.ask("ann", "default", 3)
	if err != nil || d.Allowed || d.Never || d.RetryAfter() <= 0 {
		t.Errorf("allowed %v, never %v, retry after %v, %v: want a denial for now", d.Allowed, d.Never, d.RetryAfter(), err)
	}
}

func TestSharesAreRoundedDown(t *testing.T) {
	for _, test := range []struct {
		capacity int64
		rate     string
		by       int64
		want     string
	}{
		{10, "5/s", 1, "10 5/s"}, {10, "5/s", 4, "2 1.25/s"}, {10, "5/s", 100, "1 0.05/s"},
		{10, "1/m", 7, "1 0.00238095/s"}, {MaxCapacity, "1000000/s", 3, "333333333 333333/s"},
		{5, "0.034/d", 10, "1 3.85802e-07/s"}, {5, "12345678/d", 9999, "1 0.0142904/s"},
	} {
		l := Limit{Capacity: test.capacity, Rate: rate(test.rate)}
		s := l.share(test.by)
		if got := fmt.Sprint(s.Capacity, " ", s.Rate); got != test.want {
			t.Errorf("%d %s by %d: got %s, want %s", test.capacity, test.rate, test.by, got, test.want)
		}
		if s.Rate.PerSecond()*float64(test.by) > l.Rate.PerSecond()*1.000001 && s.Rate.p != slowest {
			t.Errorf("%s by %d: %d shares of %s are more", test.rate, test.by, test.by, s.Rate)
		}
	}
}

// startLimiter is a limiter on a Redis that may go away.
func startLimiter(t *testing.T, text string, server *redistest.Server) *Limiter {
	t.Helper()
	store := openRedis(t, RedisConfig{URL: server.URL(), Timeout: 250 * time.Millisecond}, lua.Decide)
	l := limiterOf(t, text, store)
	if err := l.Start(t.Context(), zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestWhatWasSpentLocallyIsDebitedAfterwards(t *testing.T) {
	server := redistest.Start(t)
	l := startLimiter(t, `default: {capacity: 10, refill_rate: 1/h}`, server)
	if d, err := l.ask("ann", "r", 1); err != nil || d.StandIn != NoStandIn {
		t.Fatalf("got %+v, %v", d, err)
	}
	server.Kill()
	eventually(t, "decisions are local", func() bool {
		d, err := l.ask("ann", "r", 3)
		return err == nil && d.StandIn == LocalBucket
	})
	for range 3 { // three each, of ten: the rest of a local bucket
		if d, err := l.ask("bob", "r", 3); err != nil || !d.Allowed || d.StandIn != LocalBucket {
			t.Fatalf("got %+v, %v", d, err)
		}
	}
	if err := l.Degraded(); err == nil {
		eventually(t, "the store is known to fail", func() bool { l.ask("eve", "r", 1); return l.Degraded() != nil })
	}
	server.Restart(t) // empty
	eventually(t, "Redis decides", func() bool {
		d, err := l.ask("cid", "r", 1)
		return err == nil && d.StandIn == NoStandIn
	})
	eventually(t, "all is settled", func() bool { return l.owed.count.Load() == 0 && l.owed.settled.Load() >= 12 })
	for user, want := range map[string]int64{"bob": 9, "ann": 3} {
		d := &Decision{}
		eventually(t, user+"'s debt is there", func() bool {
			l.seen(t, user, d)
			return d.Limits[0].Level.Debt == want
		})
	}
	if n := l.owed.dropped.Load(); n != 0 {
		t.Errorf("%d tokens were not debited", n)
	}
}

// seen looks at a user's bucket in the store.
func (l *Limiter) seen(t testing.TB, user string, d *Decision) {
	t.Helper()
	req := Request{User: []byte(user), Resource: []byte("r")}
	if err := l.Decide(&req, d); err != nil || d.StandIn != NoStandIn {
		t.Fatalf("got %+v, %v", d, err)
	}
}

func TestDebitThatIsSentTwiceIsMadeOnce(t *testing.T) {
	server := redistest.Start(t)
	store := openRedis(t, RedisConfig{URL: server.URL(), Timeout: 5 * time.Second}, lua.Decide)
	limit := slowLimit(10)
	sp := Spend{
		Cost: 4, Keys: [][]byte{[]byte("r8:{a}:r")}, Owed: true,
		IdempotencyKey: []byte("r8:{a}!owed:g:1"), IdempotencyTTL: time.Minute,
	}
	for range 3 {
		d := Decision{Limits: []LimitState{{Limit: limit}}}
		if err := store.Decide(context.Background(), &sp, &d); err != nil || d.Limits[0].Level.Debt != 4 {
			t.Errorf("got a debt of %d, %v; want 4", d.Limits[0].Level.Debt, err)
		}
	}
	// More than the bucket has left: it is empty then, not below.
	sp.Cost, sp.IdempotencyKey = 9, []byte("r8:{a}!owed:g:2")
	d := Decision{Limits: []LimitState{{Limit: limit}}}
	if err := store.Decide(context.Background(), &sp, &d); err != nil || d.Limits[0].Level.Debt != 10 {
		t.Errorf("got a debt of %d, %v; want 10", d.Limits[0].Level.Debt, err)
	}
}

func TestDebtsAreBounded(t *testing.T) {
	var o debts
	o.init()
	limits := []Limit{*slowLimit(10)}
	d := Decision{Limits: []LimitState{{Limit: &limits[0]}}}
	for i := range 2 * debtShards * debtShardMax {
		o.add(&Spend{Cost: 1, Keys: [][]byte{fmt.Append(nil, i)}}, &d, limits)
	}
	n, dropped := o.count.Load(), int64(o.dropped.Load())
	if n > debtShards*debtShardMax || n+dropped != 2*debtShards*debtShardMax {
		t.Errorf("%d are kept and %d dropped", n, dropped)
	}
	if got := len(o.take(100)); got != 100 || o.count.Load() != n {
		t.Errorf("took %d, %d are left of %d", got, o.count.Load(), n)
	}
}
