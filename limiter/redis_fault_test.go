package limiter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/r8limiter/r8limiter/lua"
)

func TestForgottenScriptIsSentAgainInTheSameRequest(t *testing.T) {
	server := startRedis(t)
	stores := gateways(t, server, 2)
	stop := make(chan struct{})
	var flusher sync.WaitGroup
	flusher.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				server.admin.ScriptFlush(context.Background())
			}
		}
	})
	const clients, each = 8, 200
	atEach(stores, clients, func(store *RedisStore) {
		for range each {
			if d, err := spendOne(store, "k", 1, slowLimit(MaxCapacity)); err != nil || !d.Allowed {
				t.Errorf("allowed %v, error %v", d.Allowed, err)
			}
		}
	})
	close(stop)
	flusher.Wait()
	d, err := spendOne(stores[0], "k", 0, slowLimit(MaxCapacity))
	if err != nil || d.Limits[0].Level.Debt != 2*clients*each {
		t.Errorf("%d tokens were spent on %d requests, error %v", d.Limits[0].Level.Debt, 2*clients*each, err)
	}
	if n := stores[0].metrics.noScript.Get(); n < 2 {
		t.Errorf("the script was forgotten %d times: nothing was tested", n)
	}
}

// relay passes bytes between a store and Redis, and after some bytes of
// answers does with the connection what cut says.
type relay struct {
	listener net.Listener
	target   string
	budget   func() int64   // bytes of answers that a connection passes
	cut      func(net.Conn) // then; it may block
	group    sync.WaitGroup
}

func startRelay(t *testing.T, target string, budget func() int64, cut func(net.Conn)) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l, target: target, budget: budget, cut: cut}
	r.group.Go(r.accept)
	t.Cleanup(func() {
		l.Close()
		r.group.Wait()
	})
	return r
}

func (r *relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.group.Go(func() { r.serve(client) })
	}
}

func (r *relay) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", r.target)
	if err != nil {
		return
	}
	defer server.Close()
	r.group.Go(func() {
		io.Copy(server, client)
		server.Close()
	})
	if n, _ := io.CopyN(client, server, r.budget()); n > 0 {
		r.cut(client)
	}
}

// checkLostAnswers makes requests, each on a key of its own, through a relay
// that loses answers, and sees that none spent twice.
func checkLostAnswers(t *testing.T, timeout time.Duration, cut func(net.Conn)) {
	t.Helper()
	server := startRedis(t)
	var turn atomic.Int64
	// The first answers of a connection are those of its greeting. 0 to 199
	// bytes more end before, in and after an answer.
	r := startRelay(t, server.socket, func() int64 { return 150 + turn.Add(37)%200 }, cut)
	store := openRedis(t, RedisConfig{URL: "redis://" + r.listener.Addr().String(), Timeout: timeout}, lua.Decide)
	const requests = 150
	answered, failed := 0, 0
	for i := range requests {
		if _, err := spendOne(store, fmt.Sprint("k", i), 1, slowLimit(10)); err != nil {
			failed++
		} else {
			answered++
		}
	}
	spends := checkSpends(t, server, requests)
	t.Logf("%d requests, %d answered, %d spends", requests, answered, spends)
	if spends < answered || failed == 0 {
		t.Errorf("%d answered, %d failed, %d spends", answered, failed, spends)
	}
	if spends == answered {
		t.Errorf("no request spent whose answer was lost: nothing was tested")
	}
}

// checkSpends counts the tokens spent on the keys k0 and on, at most one each.
func checkSpends(t *testing.T, server *redisServer, keys int) (spends int) {
	t.Helper()
	direct := server.store(t)
	for i := range keys {
		d, err := spendOne(direct, fmt.Sprint("k", i), 0, slowLimit(10))
		if err != nil {
			t.Fatal(err)
		}
		debt := d.Limits[0].Level.Debt
		if debt > 1 {
			t.Errorf("request %d spent %d times", i, debt)
		}
		spends += int(debt)
	}
	return spends
}

func TestAnswerCutOffNeverSpendsTwice(t *testing.T) {
	checkLostAnswers(t, 5*time.Second, func(c net.Conn) {
		c.(*net.TCPConn).SetLinger(0) // a reset
	})
}

func TestAnswerHeldBackNeverSpendsTwice(t *testing.T) {
	checkLostAnswers(t, 40*time.Millisecond, func(c net.Conn) {
		io.Copy(io.Discard, c) // until the store gives up
	})
}

func TestPausedRedisFailsWithinTheTimeout(t *testing.T) {
	server := startRedis(t)
	const timeout = 100 * time.Millisecond
	store := openRedis(t, RedisConfig{URL: "unix://" + server.socket, Timeout: timeout}, lua.Decide)
	eventually(t, "a first decision", func() bool {
		_, err := spendOne(store, "k", 1, slowLimit(1000))
		return err == nil
	})
	server.signal(t, syscall.SIGSTOP)
	t.Cleanup(func() { server.signal(t, syscall.SIGCONT) })
	atEach([]*RedisStore{store}, 100, func(store *RedisStore) { // more than there are connections
		start := time.Now()
		_, err := spendOne(store, "k", 1, slowLimit(1000))
		if took := time.Since(start); err == nil || kindOf(err) != kindTimeout && kindOf(err) != kindUnsent || took > 2*timeout {
			t.Errorf("took %v, error %v; want a time-out after %v", took, err, timeout)
		}
	})
	if n := store.metrics.errors[kindTimeout].Get() + store.metrics.errors[kindUnsent].Get(); n < 100 {
		t.Errorf("counted %d errors, want at least 100", n)
	}
	server.signal(t, syscall.SIGCONT)
	eventually(t, "decisions work again", func() bool {
		_, err := spendOne(store, "k", 1, slowLimit(1000))
		return err == nil
	})
}

func TestCallersDeadlineIsKept(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	server.do(t, "CLIENT", "PAUSE", 10_000)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	start := time.Now()
	d := Decision{Limits: []LimitState{{Limit: slowLimit(1)}}}
	err := store.Decide(ctx, &Spend{Cost: 1, Keys: [][]byte{[]byte("k")}}, &d)
	if took := time.Since(start); err == nil || took > time.Second {
		t.Errorf("took %v, error %v", took, err)
	}
}

func TestDeadRedisFailsAtOnceAndIsFoundAgain(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	if err := store.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.kill()
	start := time.Now()
	for range 50 {
		if _, err := spendOne(store, "k", 1, slowLimit(1)); err == nil || kindOf(err) != kindConnection && kindOf(err) != kindUnsent {
			t.Errorf("got error %v, want one of the connection, or none asked", err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("50 decisions on a dead Redis took %v", took)
	}
	server.start(t)
	eventually(t, "decisions work again", func() bool {
		d, err := spendOne(store, "k", 1, slowLimit(1))
		return err == nil && d.Allowed
	})
}

func TestRedisThatCannotWriteChargesNothing(t *testing.T) {
	limits := []LimitState{{Limit: slowLimit(10)}, {Limit: slowLimit(10)}}
	keys := [][]byte{[]byte("a"), []byte("b")}
	tests := map[string]struct{ breakIt, mend []any }{
		"out of memory": {[]any{"CONFIG", "SET", "maxmemory", "1mb"}, []any{"CONFIG", "SET", "maxmemory", "0"}},
		"a replica":     {[]any{"REPLICAOF", "127.0.0.1", "1"}, []any{"REPLICAOF", "NO", "ONE"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server := startRedis(t)
			store := server.store(t)
			decide := func(cost int64) (Decision, error) {
				d := Decision{Limits: append([]LimitState(nil), limits...)}
				err := store.Decide(t.Context(), &Spend{Cost: cost, Keys: keys, IdempotencyTTL: time.Minute}, &d)
				return d, err
			}
			if _, err := decide(2); err != nil {
				t.Fatal(err)
			}
			server.do(t, test.breakIt...)
			if _, err := decide(1); err == nil || kindOf(err) != kindOther {
				t.Errorf("got error %v, want a refusal", err)
			}
			if err := store.Probe(t.Context()); err == nil {
				t.Error("the probe found nothing")
			}
			server.do(t, test.mend...)
			d, err := decide(0)
			if err != nil || d.Limits[0].Level.Debt != 2 || d.Limits[1].Level.Debt != 2 {
				t.Errorf("afterwards %+v, error %v; want debts of 2", d.Limits, err)
			}
		})
	}
}

func TestStoreRunsNoCommandThatWalksKeys(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	server.do(t, "CONFIG", "RESETSTAT")
	sp := Spend{Cost: 1, Keys: [][]byte{[]byte("a"), []byte("b")}, IdempotencyKey: []byte("i"), IdempotencyTTL: time.Minute}
	d := Decision{Limits: []LimitState{{Limit: slowLimit(1)}, {Limit: slowLimit(1)}}}
	if err := errors.Join(store.Decide(t.Context(), &sp, &d), store.Probe(t.Context())); err != nil {
		t.Fatal(err)
	}
	store.ActiveKeys()
	store.WriteMetrics(io.Discard)
	got := server.calls(t)
	delete(got, "config|resetstat")
	want := map[string]int64{"hello": 1, "evalsha": 2, "eval": 1, "time": 2, "get": 4, "set": 4}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commands (-want +got)\n%s", diff)
	}
}

func TestStoreWritesItsMetrics(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	if err := store.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := store.ActiveKeys(); n != 0 {
		t.Errorf("a probe counts as %d active keys", n)
	}
	for range 3 { // allowed, denied, known to be denied
		if _, err := spendOne(store, "k", 1, slowLimit(1)); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	store.WriteMetrics(&b)
	for _, line := range []string{
		`r8limiter_store_latency_seconds_count 2`, `r8limiter_store_noscript_total 1`,
		`r8limiter_store_decisions_total{by="call"} 2`, `r8limiter_store_decisions_total{by="denial"} 1`,
		`r8limiter_store_decisions_total{by="lease"} 0`, `r8limiter_store_breaker_open 0`, `r8limiter_store_breaker_opened_total 0`,
		`r8limiter_lease_tokens 0`, `r8limiter_lease_tokens_total{event="granted"} 0`, `r8limiter_store_refunds_lost_total 0`,
		`r8limiter_store_errors_total{kind="timeout"} 0`, `r8limiter_store_errors_total{kind="connection"} 0`,
		`r8limiter_store_errors_total{kind="script"} 0`, `r8limiter_store_errors_total{kind="other"} 0`,
		`r8limiter_store_connections{state="idle"} 1`, `r8limiter_store_connections{state="used"} 0`,
	} {
		if !strings.Contains(b.String(), line+"\n") {
			t.Errorf("lacks %s in\n%s", line, b.String())
		}
	}
}
