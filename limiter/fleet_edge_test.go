package limiter

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func TestVersionsNeverComeTwice(t *testing.T) {
	server := startRedis(t)
	a, b := startGateway(t, fleetConfig(), server.store(t)), startGateway(t, fleetConfig(), server.store(t))
	block := func(user string) {
		t.Helper()
		if err := a.SetOverride(t.Context(), Override{User: user, Block: true}, operator); err != nil {
			t.Fatal(err)
		}
	}
	block("first")
	eventually(t, "both have it", func() bool { return len(b.Overrides("first")) == 1 })
	b.sync.mu.Lock() // it takes in nothing meanwhile
	server.do(t, "FLUSHALL")
	block("second")
	b.sync.mu.Unlock()
	within(t, 2*time.Second, "the other gateway notices that all is new", func() bool {
		return len(b.Overrides("second")) == 1 && len(b.Overrides("first")) == 0
	})
}

func TestLastFiguresAreSentAtTheEnd(t *testing.T) {
	server := startRedis(t)
	a := New(fleetConfig(), server.store(t))
	if err := a.Start(t.Context(), zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	const users = 2000
	for i := range users {
		a.offenders.add(fmt.Appendf(nil, "user%d", i))
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b := startGateway(t, fleetConfig(), server.store(t))
	got, err := b.fleet.Offenders(t.Context(), lastHour, 2*users)
	if err != nil || len(got) != users {
		t.Errorf("%d of %d offenders were sent, %v", len(got), users, err)
	}
}

func TestSteadyOffenderIsNotCrowdedOut(t *testing.T) {
	for name, store := range map[string]func() Store{
		"memory": func() Store { return NewMemoryStore() },
		"redis":  func() Store { return startRedis(t).store(t) },
	} {
		t.Run(name, func(t *testing.T) {
			l := New(fleetConfig(), store())
			t.Cleanup(func() { l.Close() })
			for i := range 1200 {
				for range 10 {
					l.offenders.add(fmt.Appendf(nil, "user%d", i))
				}
			}
			for range 25 {
				l.offenders.add([]byte("steady"))
				if _, err := l.flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			w := Window{24 * time.Hour, Bucketings[2]}
			if got, err := l.Offenders(t.Context(), w, 1); err != nil || len(got) != 1 || got[0] != (Offender{"steady", 25}) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestOverrideKeepsWhatUsersShare(t *testing.T) {
	c := fleetConfig()
	slow := rate("0.034/d")
	c.Resources["search"] = ResourceConfig{Limits: []LimitConfig{
		{Name: "own", Capacity: 4, RefillRate: slow},
		{Name: "all", Per: "resource", Capacity: 20, RefillRate: slow},
		{Name: "next", Shadow: true, Capacity: 1, RefillRate: slow},
	}}
	l := startGateway(t, c, NewMemoryStore())
	if err := l.SetOverride(t.Context(), Override{User: "big", Resource: "search", Capacity: 1000, RefillRate: slow}, operator); err != nil {
		t.Fatal(err)
	}
	if got := spendOf(t, l, "big", "search", 30); got != 20 {
		t.Errorf("%d allowed, want the 20 that all users share", got)
	}
	if got := spendOf(t, l, "ann", "search", 1); got != 0 {
		t.Error("what big spent was not taken from what users share")
	}
	if got := l.Capacity([]byte("search")); got != 4 {
		t.Errorf("capacity %d for the others, want 4", got)
	}
}

func TestLimitNamedAfterItsResourceIsTheSameInBothForms(t *testing.T) {
	slow := rate("0.034/d")
	l := startGateway(t, fleetConfig(), NewMemoryStore())
	spendOf(t, l, "ann", "read", 5)
	list := ResourceConfig{Limits: []LimitConfig{{Name: "read", Capacity: 5, RefillRate: slow}, {Name: "other", Capacity: 9, RefillRate: slow}}}
	if err := l.SetLimits(t.Context(), "read", list, operator); err != nil {
		t.Fatal(err)
	}
	if got := spendOf(t, l, "ann", "read", 1); got != 0 {
		t.Error("another form of the same limit has refilled it")
	}
}

func TestLongResourceNamesAreLimitedButNotKept(t *testing.T) {
	server := startRedis(t)
	l := startGateway(t, fleetConfig(), server.store(t))
	long := strings.Repeat("r", 12_000)
	if got := spendOf(t, l, "ann", long, 9); got != 3 {
		t.Errorf("%d allowed, want 3", got)
	}
	for i := range maxSeen + 300 {
		spendOf(t, l, "ann", fmt.Sprint("resource", i), 1)
	}
	totals, _, err := l.Stats(t.Context(), lastHour, 1)
	if err != nil || totals.Allowed != 3+maxSeen+300 {
		t.Errorf("got %+v, %v", totals, err)
	}
	if size := server.memoryOf(t, "r8:{!fleet}:*"); size > 1<<20 {
		t.Errorf("the names take %d bytes in Redis", size)
	}
}

func TestPersistedNamesThatNobodyUsedAreForgotten(t *testing.T) {
	l := startGateway(t, fleetConfig(), NewMemoryStore())
	c := ResourceConfig{Capacity: 1, RefillRate: rate("1/s")}
	for i := range 50 {
		name := fmt.Sprint("resource", i)
		if err := errors.Join(l.SetLimits(t.Context(), name, c, operator), l.DropLimits(t.Context(), name, operator)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(*l.known.Load()); n != 1 {
		t.Errorf("%d resources are known, want only the file's", n)
	}
}
