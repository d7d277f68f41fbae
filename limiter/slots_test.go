package limiter

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter/redistest"
	"github.com/r8limiter/r8limiter/lua"
)

// twoSlots are a user's limit and one that all share, as a Limiter asks for them.
type twoSlots struct{ own, shared *Limit }

func newTwoSlots(own, shared int64) twoSlots {
	s := twoSlots{slowLimit(own), slowLimit(shared)}
	s.shared.Scope = PerResource
	return s
}

// ask decides for a user, under an idempotency key if one is given.
func (s twoSlots) ask(t testing.TB, store *RedisStore, user, idempotency string, cost int64) (*Decision, error) {
	t.Helper()
	d := &Decision{Limits: []LimitState{{Limit: s.own}, {Limit: s.shared}}}
	sp := &Spend{Cost: cost, Keys: [][]byte{fmt.Appendf(nil, "r8:{%s}:search:own", user), []byte("r8:{:search}:everyone")}}
	if idempotency != "" {
		sp.IdempotencyKey, sp.IdempotencyTTL = fmt.Appendf(nil, "r8:{%s}!search:%s", user, idempotency), time.Minute
	}
	return d, store.Decide(context.Background(), sp, d)
}

// debts are what Redis has, when refunds have been made.
func (s twoSlots) debts(t testing.TB, store *RedisStore, user string) (own, shared int64) {
	t.Helper()
	store.background.Wait()
	d, err := s.ask(t, store, user, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return d.Limits[0].Level.Debt, d.Limits[1].Level.Debt
}

func (s twoSlots) wantDebts(t testing.TB, store *RedisStore, user string, own, shared int64) {
	t.Helper()
	if a, b := s.debts(t, store, user); a != own || b != shared {
		t.Errorf("%s has a debt of %d, all of %d: want %d and %d", user, a, b, own, shared)
	}
}

func clusterStore(t *testing.T, c *redistest.Cluster) *RedisStore {
	t.Helper()
	return openRedis(t, RedisConfig{Mode: "cluster", Addrs: c.Addrs(), Timeout: 5 * time.Second}, lua.Decide)
}

func TestLimitsInTwoSlots(t *testing.T) {
	cluster := redistest.StartCluster(t, 3, 0)
	store := clusterStore(t, cluster)
	for name, test := range map[string]func(*testing.T, *RedisStore){
		"AreChargedBothOrNone": testBothOrNone, "AskFirstWhatRefusedLast": testOrder,
		"AreReplayed": testReplayInTwoSlots, "HoldUnderLoad": testTwoSlotsUnderLoad,
	} {
		t.Run(name, func(t *testing.T) {
			store.Forget()
			for i := range cluster.Nodes() {
				cluster.Node(i).Do(t, "FLUSHALL")
			}
			test(t, store)
		})
	}
}

func testBothOrNone(t *testing.T, store *RedisStore) {
	limits := newTwoSlots(3, 5)
	if d, err := limits.ask(t, store, "ann", "", 3); err != nil || !d.Allowed || d.Limits[0].Level.Debt != 3 || d.Limits[1].Level.Debt != 3 {
		t.Fatalf("got %+v, %v", d, err)
	}
	if d, err := limits.ask(t, store, "ann", "", 1); err != nil || d.Allowed || !d.Limits[0].Denied || d.Limits[1].Denied {
		t.Errorf("got %+v, %v; want ann's own limit to refuse", d, err)
	}
	limits.wantDebts(t, store, "ann", 3, 3)
	if d, err := limits.ask(t, store, "bob", "", 3); err != nil || d.Allowed || d.Limits[0].Denied || !d.Limits[1].Denied {
		t.Errorf("got %+v, %v; want the shared limit to refuse", d, err)
	}
	limits.wantDebts(t, store, "bob", 0, 3)
	if d, err := limits.ask(t, store, "bob", "", 2); err != nil || !d.Allowed {
		t.Errorf("got %+v, %v", d, err)
	}
	limits.wantDebts(t, store, "bob", 2, 5)
}

// testOrder counts what had to be given back: nothing where the part that refuses
// is asked first.
func testOrder(t *testing.T, store *RedisStore) {
	limits := newTwoSlots(1, 1000)
	if _, err := limits.ask(t, store, "ann", "", 1); err != nil {
		t.Fatal(err)
	}
	order := store.order.of([]byte("r8:{:search}:everyone"))
	order.Store(false)
	for i := range 3 {
		store.Forget()
		if d, err := limits.ask(t, store, "ann", "", 1); err != nil || d.Allowed {
			t.Errorf("got %+v, %v", d, err)
		}
		if !order.Load() {
			t.Errorf("after denial %d the user's part is not first", i)
		}
	}
	limits.wantDebts(t, store, "ann", 1, 1)
}

func testReplayInTwoSlots(t *testing.T, store *RedisStore) {
	limits := newTwoSlots(5, 5)
	for i := range 3 {
		d, err := limits.ask(t, store, "ann", "key", 2)
		if err != nil || !d.Allowed || d.Replayed != (i > 0) {
			t.Errorf("%d: got %+v, %v", i, d, err)
		}
		limits.wantDebts(t, store, "ann", 2, 2)
	}
	if _, err := limits.ask(t, store, "ann", "key", 3); err != ErrKeyReused {
		t.Errorf("another cost: got %v", err)
	}
	limits.wantDebts(t, store, "ann", 2, 2)
	// A denial is not remembered, and leaves no record.
	if d, err := limits.ask(t, store, "ann", "other", 4); err != nil || d.Allowed {
		t.Errorf("got %+v, %v", d, err)
	}
	if d, err := limits.ask(t, store, "ann", "other", 3); err != nil || !d.Allowed || d.Replayed {
		t.Errorf("got %+v, %v", d, err)
	}
	limits.wantDebts(t, store, "ann", 5, 5)
}

func testTwoSlotsUnderLoad(t *testing.T, store *RedisStore) {
	limits := newTwoSlots(40, 500) // 20 users could have 800
	var admitted [20]atomic.Int64
	var clients sync.WaitGroup
	for user := range admitted {
		for range 4 {
			clients.Go(func() {
				for range 30 {
					d, err := limits.ask(t, store, fmt.Sprint("user", user), "", 1)
					if err != nil {
						t.Error(err)
					} else if d.Allowed {
						admitted[user].Add(1)
					}
				}
			})
		}
	}
	clients.Wait()
	sum := int64(0)
	for user := range admitted {
		n := admitted[user].Load()
		if own, _ := limits.debts(t, store, fmt.Sprint("user", user)); own != n || n > 40 {
			t.Errorf("user %d: %d admitted, a debt of %d", user, n, own)
		}
		sum += n
	}
	if _, shared := limits.debts(t, store, "user0"); shared != sum || sum > 500 || sum < 480 {
		t.Errorf("%d admitted, a debt of %d; want nearly 500", sum, shared)
	}
	if n := store.metrics.refundsLost.Get(); n != 0 {
		t.Errorf("%d refunds were lost", n)
	}
}
