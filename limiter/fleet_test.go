package limiter

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// fleetConfig has buckets that gain nothing a test could see.
func fleetConfig() Config {
	c := DefaultConfig()
	slow := rate("0.034/d")
	c.Default = ResourceConfig{Capacity: 3, RefillRate: slow}
	c.Resources = map[string]ResourceConfig{"read": {Capacity: 5, RefillRate: slow}}
	return c
}

// testedFleet starts gateways of one fleet. A fleet in memory has only one.
type testedFleet struct {
	start  func(t *testing.T) *Limiter
	shared bool
}

// both are two gateways, which are the same where nothing is shared.
func (f testedFleet) both(t *testing.T) (a, b *Limiter) {
	a = f.start(t)
	if !f.shared {
		return a, a
	}
	return a, f.start(t)
}

func startGateway(t *testing.T, c Config, store Store) *Limiter {
	t.Helper()
	l := New(c, store)
	if err := l.Start(t.Context(), zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestFleet is what every fleet must do.
func TestFleet(t *testing.T) {
	for name, test := range map[string]func(*testing.T, testedFleet){
		"FiguresAddUpOverAllGateways":           testFiguresAddUp,
		"PersistedLimitIsInForceAtOnce":         testPersistedLimit,
		"OverridesAreInForceAtOnce":             testOverrides,
		"OverrideEndsWithItsTime":               testOverrideEnds,
		"ResetRefillsOneUser":                   testReset,
		"AuditTrailIsBoundedNewestFirst":        testAudit,
		"OverridesAreBounded":                   testTooManyOverrides,
		"HostileNamesAreKeptAsTheyAre":          testHostileNames,
		"TopTenOfAZipfLawIsRight":               testZipf,
		"ActiveKeysAreRightWithinTwoInAHundred": testActiveKeys,
		"DroppingNothingIsSaid":                 testDropNothing,
	} {
		t.Run("memory/"+name, func(t *testing.T) {
			test(t, testedFleet{start: func(t *testing.T) *Limiter {
				return startGateway(t, fleetConfig(), NewMemoryStore())
			}})
		})
		t.Run("redis/"+name, func(t *testing.T) {
			server := startRedis(t)
			test(t, testedFleet{shared: true, start: func(t *testing.T) *Limiter {
				return startGateway(t, fleetConfig(), server.store(t))
			}})
		})
	}
}

var (
	lastHour = Window{time.Hour, Bucketings[0]}
	operator = Actor{ClientIP: "192.0.2.1", Auth: "token", RequestID: "r1"}
)

// spendOf asks for n decisions of cost 1 and returns how many were allowed.
func spendOf(t *testing.T, l *Limiter, user, resource string, n int) (allowed int) {
	t.Helper()
	var d Decision
	for range n {
		if err := l.Decide(&Request{User: []byte(user), Resource: []byte(resource), Cost: 1}, &d); err != nil {
			t.Fatal(err)
		}
		if d.Allowed {
			allowed++
		}
	}
	return allowed
}

func testFiguresAddUp(t *testing.T, f testedFleet) {
	a, b := f.both(t)
	spendOf(t, a, "ann", "read", 8)  // 5 allowed, 3 denied
	spendOf(t, b, "ann", "read", 2)  // 2 denied
	spendOf(t, b, "bob", "other", 4) // 3 allowed, 1 denied
	spendOf(t, a, "eve", "read", 1)
	var totals Totals
	var offenders []Offender
	eventually(t, "both gateways have flushed", func() bool {
		var err error
		totals, offenders, err = a.Stats(t.Context(), lastHour, 10)
		return err == nil && totals.Allowed+totals.Denied == 15 && totals.ActiveKeys == 3 && len(offenders) == 2 && offenders[0].Denies == 5
	})
	if diff := cmp.Diff(Totals{Allowed: 9, Denied: 6, ActiveKeys: 3}, totals); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Offender{{"ann", 5}, {"bob", 1}}, offenders); diff != "" {
		t.Error(diff)
	}
	for _, w := range []Window{{15 * time.Minute, Bucketings[0]}, {7 * 24 * time.Hour, Bucketings[1]}, {24 * time.Hour, Bucketings[2]}} {
		if got, err := b.Offenders(t.Context(), w, 1); err != nil || len(got) != 1 || got[0] != (Offender{"ann", 5}) {
			t.Errorf("%s: got %v, %v", w.Bucket.Name, got, err)
		}
	}
	resources, err := b.Resources(t.Context())
	if err != nil || len(resources) != 2 {
		t.Fatalf("got %v, %v", resources, err)
	}
	other, read := resources[0], resources[1]
	if other.Name != "other" || other.Source != FromDefault || other.Allowed != 3 || other.Denied != 1 || time.Since(other.LastSeen) > time.Minute {
		t.Errorf("got %+v", other)
	}
	if read.Name != "read" || read.Source != FromConfig || read.Allowed != 6 || read.Denied != 5 || read.Limits[0].Capacity != 5 {
		t.Errorf("got %+v", read)
	}
}

func testPersistedLimit(t *testing.T, f testedFleet) {
	a, b := f.both(t)
	spendOf(t, a, "ann", "read", 5)
	wider := ResourceConfig{Capacity: 7, RefillRate: rate("0.034/d")}
	if err := a.SetLimits(t.Context(), "read", wider, operator); err != nil {
		t.Fatal(err)
	}
	if got := spendOf(t, a, "ann", "read", 1); got != 1 {
		t.Error("the new capacity is not in force where it was set")
	}
	within(t, time.Second, "the other gateway has it", func() bool { return b.Capacity([]byte("read")) == 7 })
	if got := spendOf(t, b, "ann", "read", 3); got != 1 { // the debt was kept
		t.Errorf("%d of 3 allowed, want 1", got)
	}
	if f.shared {
		c := f.start(t)
		if got := c.Capacity([]byte("read")); got != 7 {
			t.Errorf("a gateway started later has %d", got)
		}
	}
	if err := b.DropLimits(t.Context(), "read", operator); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "the file's limit is back", func() bool { return a.Capacity([]byte("read")) == 5 })
}

func testOverrides(t *testing.T, f testedFleet) {
	a, b := f.both(t)
	set := func(o Override) {
		t.Helper()
		if err := o.Validate(); err != nil {
			t.Fatal(err)
		}
		if err := a.SetOverride(t.Context(), o, operator); err != nil {
			t.Fatal(err)
		}
	}
	set(Override{User: "vip", Exempt: true, Reason: "contract 7"})
	set(Override{User: "bad", Block: true})
	set(Override{User: "big", Resource: "read", Capacity: 9, RefillRate: rate("0.034/d")})
	set(Override{User: "bad", Resource: "other", Capacity: 1, RefillRate: rate("0.034/d")})
	within(t, time.Second, "the other gateway has them", func() bool { return len(b.Overrides("")) == 4 })
	for _, test := range []struct {
		user, resource string
		want           int
	}{{"vip", "read", 20}, {"bad", "read", 0}, {"big", "read", 9}, {"big", "other", 3}, {"bad", "other", 1}, {"ann", "read", 5}} {
		if got := spendOf(t, b, test.user, test.resource, 20); got != test.want {
			t.Errorf("%s, %s: %d allowed, want %d", test.user, test.resource, got, test.want)
		}
	}
	var d Decision
	if err := b.Decide(&Request{User: []byte("vip"), Resource: []byte("read"), Cost: 1}, &d); err != nil || d.Override != Exempted || d.TokensLeft() != 5 || d.Binding() != nil {
		t.Errorf("exempt: got %+v, %v", d, err)
	}
	if err := b.DropOverrides(t.Context(), "bad", "", operator); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "the block is gone", func() bool { return len(a.Overrides("bad")) == 0 })
	if got := spendOf(t, a, "bad", "read", 9); got != 5 {
		t.Errorf("%d allowed after the block, want 5", got)
	}
	entries, err := a.Audit(t.Context(), 2)
	if err != nil || len(entries) != 2 || entries[0].Action != "override.drop" || entries[0].User != "bad" || entries[0].By != operator {
		t.Errorf("got %+v, %v", entries, err)
	}
}

func testOverrideEnds(t *testing.T, f testedFleet) {
	a, b := f.both(t)
	if err := a.SetOverride(t.Context(), Override{User: "bad", Block: true, Left: time.Second}, operator); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "it is in force", func() bool { return len(b.Overrides("bad")) == 1 })
	if left := b.Overrides("bad")[0].Left; left <= 0 || left > time.Second {
		t.Errorf("%v left", left)
	}
	within(t, 3*time.Second, "it is over", func() bool { return spendOf(t, b, "bad", "read", 1) == 1 })
	if left := b.Overrides("bad"); len(left) != 0 {
		t.Errorf("got %v", left)
	}
}

func testReset(t *testing.T, f testedFleet) {
	a, b := f.both(t)
	shared := ResourceConfig{Limits: []LimitConfig{
		{Name: "own", Capacity: 2, RefillRate: rate("0.034/d")},
		{Name: "all", Per: "resource", Capacity: 100, RefillRate: rate("0.034/d")},
	}}
	if err := a.SetLimits(t.Context(), "search", shared, operator); err != nil {
		t.Fatal(err)
	}
	within(t, time.Second, "both have it", func() bool { return b.Capacity([]byte("search")) == 2 })
	for _, user := range []string{"ann", "bob"} {
		spendOf(t, a, user, "search", 2)
		spendOf(t, a, user, "read", 5)
		spendOf(t, a, user, "unheard of", 3)
	}
	eventually(t, "the resource is known in the fleet", func() bool {
		names, err := b.resourceNames(t.Context())
		return err == nil && len(names) == 3
	})
	names, err := b.Reset(t.Context(), "ann", "", operator)
	if diff := cmp.Diff([]string{"read", "search", "unheard of"}, names); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
	got := 0
	within(t, time.Second, "the other gateway allows as much as fits into the buckets", func() bool {
		got += spendOf(t, a, "ann", "search", 3) + spendOf(t, a, "ann", "read", 6) + spendOf(t, a, "ann", "unheard of", 4)
		return got >= 10
	})
	if got != 10 {
		t.Errorf("%d allowed after the reset, want 10", got)
	}
	if got := spendOf(t, a, "bob", "search", 1) + spendOf(t, a, "bob", "read", 1); got != 0 {
		t.Error("another user was reset")
	}
	if _, err := b.Reset(t.Context(), "bob", "read", operator); err != nil {
		t.Fatal(err)
	}
	read, search := 0, 0
	within(t, time.Second, "the other gateway hears of it", func() bool {
		read, search = read+spendOf(t, a, "bob", "read", 6), search+spendOf(t, a, "bob", "search", 1)
		return read > 0
	})
	if read != 5 || search != 0 {
		t.Errorf("%d and %d allowed, want 5 and 0", read, search)
	}
	states, err := a.User(t.Context(), []byte("bob"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range states {
		for _, s := range states[i].Limits {
			if s.Name == "all" && s.Level.Debt != 6 {
				t.Errorf("the shared bucket has a debt of %d, want 6", s.Level.Debt)
			}
		}
	}
}

func testAudit(t *testing.T, f testedFleet) {
	a, b := f.both(t)
	for i := range MaxAudit + 5 {
		e := AuditEntry{Action: "user.reset", User: fmt.Sprint("user", i), By: operator}
		if err := a.fleet.Change(t.Context(), Change{Entry: e}); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := b.Audit(t.Context(), 2*MaxAudit)
	if err != nil || len(entries) != MaxAudit {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if e := entries[0]; e.User != fmt.Sprint("user", MaxAudit+4) || time.Since(e.Time).Abs() > time.Minute {
		t.Errorf("the newest is %+v", e)
	}
	if v, err := b.fleet.Version(t.Context()); err != nil || v == 0 {
		t.Errorf("version %d, %v: a reset is to be heard of", v, err)
	}
}

func testTooManyOverrides(t *testing.T, f testedFleet) {
	a := f.start(t)
	set := func(user string) error {
		return a.fleet.Change(t.Context(), Change{SetOverride: &Override{User: user, Block: true}})
	}
	for i := range MaxOverrides {
		if err := set(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := a.fleet.Version(t.Context())
	if err := set("one more"); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v, want ErrTooMany", err)
	}
	if err := set("7"); err != nil {
		t.Errorf("one that is there can't be set again: %v", err)
	}
	if after, _ := a.fleet.Version(t.Context()); after <= before {
		t.Errorf("version %d, then %d: what was refused changed something", before, after)
	}
}

func testHostileNames(t *testing.T, f testedFleet) {
	a, b := f.both(t)
	names := []string{"a b", "a%20b", "\r\n", "\x00", "*", "{x}", "a:b", "\u00e9", strings.Repeat("u", 400), strings.Repeat("u", 401)}
	for i, name := range names {
		if err := a.SetOverride(t.Context(), Override{User: name, Resource: name, Capacity: int64(i + 1), RefillRate: rate("0.034/d")}, operator); err != nil {
			t.Fatal(err)
		}
		if err := a.SetLimits(t.Context(), name, ResourceConfig{Capacity: int64(100 + i), RefillRate: rate("1/s")}, operator); err != nil {
			t.Fatal(err)
		}
	}
	within(t, 2*time.Second, "the other gateway has all", func() bool { return len(b.Overrides("")) == len(names) })
	for i, name := range names {
		if got := spendOf(t, b, name, name, len(names)+2); got != i+1 {
			t.Errorf("%.10q: %d allowed, want %d", name, got, i+1)
		}
		if got := b.Capacity([]byte(name)); got != int64(100+i) {
			t.Errorf("%.10q: capacity %d, want %d", name, got, 100+i)
		}
	}
}

func testDropNothing(t *testing.T, f testedFleet) {
	a := f.start(t)
	if err := a.DropLimits(t.Context(), "read", operator); !errors.Is(err, ErrNothing) {
		t.Errorf("got %v", err)
	}
	if err := a.DropOverrides(t.Context(), "ann", "", operator); !errors.Is(err, ErrNothing) {
		t.Errorf("got %v", err)
	}
	if entries, err := a.Audit(t.Context(), 9); err != nil || len(entries) != 0 {
		t.Errorf("got %v, %v", entries, err)
	}
}

// testZipf denies users by Zipf's law, twice as fast as a flush can send.
func testZipf(t *testing.T, f testedFleet) {
	a, b := f.both(t)
	z := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, 99_999)
	want := denials{}
	for i := range 200_000 {
		user := fmt.Sprint("user", z.Uint64())
		want[user]++
		each := a
		if i%2 == 1 {
			each = b
		}
		each.offenders.add([]byte(user))
	}
	top := want.list()[:10]
	var got []Offender
	eventually(t, "both have flushed", func() bool {
		var err error
		got, err = b.Offenders(t.Context(), lastHour, 10)
		return err == nil && len(got) == 10 && got[0].Denies >= top[0].Denies*99/100
	})
	for i := range top {
		if got[i].User != top[i].User || float64(got[i].Denies) > float64(top[i].Denies) || float64(got[i].Denies) < 0.95*float64(top[i].Denies) {
			t.Errorf("place %d: got %v, want %v", i+1, got[i], top[i])
		}
	}
}

func testActiveKeys(t *testing.T, f testedFleet) {
	a, b := f.both(t)
	const users = 30_000
	for i := range users * 2 / 3 {
		spendOf(t, a, fmt.Sprint("user", i), "read", 1)
		spendOf(t, b, fmt.Sprint("user", i+users/3), "read", 1)
	}
	eventually(t, "the sketches are in", func() bool {
		totals, err := a.fleet.Totals(t.Context())
		return err == nil && math.Abs(float64(totals.ActiveKeys)/users-1) < 0.02
	})
}

func TestFleetSurvivesItsRedis(t *testing.T) {
	server := startRedis(t)
	l := startGateway(t, fleetConfig(), server.store(t))
	if err := l.SetOverride(t.Context(), Override{User: "bad", Block: true}, operator); err != nil {
		t.Fatal(err)
	}
	server.kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, _, err := l.Stats(ctx, lastHour, 10); err == nil {
		t.Error("figures came from a Redis that is down")
	}
	if got := l.Overrides("bad"); len(got) != 1 {
		t.Error("the override was forgotten while Redis was down")
	}
	server.start(t) // empty
	eventually(t, "what Redis lost is no longer in force", func() bool { return len(l.Overrides("bad")) == 0 })
	if _, _, err := l.Stats(t.Context(), lastHour, 10); err != nil {
		t.Error(err)
	}
}

func TestGatewayStartsWithoutItsRedis(t *testing.T) {
	server := startRedis(t)
	first := startGateway(t, fleetConfig(), server.store(t))
	if err := first.SetLimits(t.Context(), "read", ResourceConfig{Capacity: 9, RefillRate: rate("1/s")}, operator); err != nil {
		t.Fatal(err)
	}
	store := server.store(t)
	server.do(t, "CLIENT", "PAUSE", "500", "ALL")
	l := New(fleetConfig(), store)
	t.Cleanup(func() { l.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Start(ctx, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "read persisted limits and overrides") {
		t.Errorf("got %v", err)
	}
	eventually(t, "it takes them in later", func() bool { return l.Capacity([]byte("read")) == 9 })
}

func TestOffendersAreBounded(t *testing.T) {
	o := newOffenders()
	for i := range 1_000_000 {
		o.add(fmt.Appendf(nil, "user%d", i))
		if i%10 == 0 {
			o.add([]byte("heavy"))
		}
	}
	kept := 0
	for i := range o.shards {
		kept += len(o.shards[i].denies)
	}
	if kept > offenderShards*offendersPerShard {
		t.Errorf("%d users are kept", kept)
	}
	if o.dropped.Load() == 0 {
		t.Error("nothing was counted as dropped")
	}
	if got := o.take(1); len(got) != 1 || got[0].User != "heavy" || got[0].Denies > 100_000 || got[0].Denies < 95_000 {
		t.Errorf("got %v, want heavy with almost 100000", got)
	}
}

func TestOffenderNamesAreShort(t *testing.T) {
	long := strings.Repeat("\u00e9", 4000)
	o := newOffenders()
	o.add([]byte(long))
	o.add([]byte(long + "x"))
	got := o.take(10)
	if len(got) != 2 || len(got[0].User) > maxOffenderName || !strings.HasPrefix(got[0].User, long[:100]) {
		t.Errorf("got %v", got)
	}
}

func TestWindowCoversItsSpan(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)
	for _, test := range []struct {
		span   time.Duration
		bucket int
		want   int64
	}{{time.Minute, 0, 2}, {15 * time.Minute, 0, 16}, {time.Hour, 1, 2}, {24 * time.Hour, 2, 2}, {30 * time.Second, 0, 1}} {
		first, last := Window{test.span, Bucketings[test.bucket]}.indexes(at)
		if got := last - first + 1; got != test.want {
			t.Errorf("%v in buckets of %s: %d, want %d", test.span, Bucketings[test.bucket].Name, got, test.want)
		}
	}
}

// within fails if ok is not true in time, like eventually with a bound of its own.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	start := time.Now()
	eventually(t, what, ok)
	if took := time.Since(start); took > limit {
		t.Errorf("%s only after %v", what, took)
	}
}
