package limiter

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// BenchmarkStoreWays compares the ways to a decision, with 64 requests in flight,
// in interleaved rounds of half a second: one call for each request, go-redis'
// AutoPipeline of such calls, calls that requests share, a lease, and a denial that
// is known. It logs the medians.
//
//	go test -run xxx -bench StoreWays -benchtime 9x ./limiter
func BenchmarkStoreWays(b *testing.B) {
	server := startRedis(b)
	ways := []storeWay{
		{name: "memory", store: NewMemoryStore()},
		{name: "one call each", store: server.store(b), alone: true},
		{name: "autopipeline", store: server.store(b), pipelined: true},
		{name: "coalesced", store: server.store(b)},
		{name: "leased", store: server.store(b), hot: true, leased: true},
		{name: "denied", store: server.store(b), hot: true, capacity: 1},
	}
	for i := range ways {
		if ways[i].pipelined {
			client := ways[i].store.(*RedisStore).client.(*redis.Client)
			pipeline, err := client.AutoPipelineWithOptions(&redis.AutoPipelineOptions{MaxQueuedCommands: maxWaiting})
			if err != nil {
				b.Fatal(err)
			}
			ways[i].pipeline = pipeline
			defer pipeline.Close()
		}
	}
	for b.Loop() {
		for i := range ways {
			ways[i].round(server)
		}
	}
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-14s %12s %14s %12s %12s\n", "way", "decisions/s", "gateway us", "redis us", "calls each")
	for _, w := range ways {
		fmt.Fprintf(&table, "%-14s %12.0f %14.2f %12.2f %12.4f\n", w.name, median(w.rate), median(w.own), median(w.redis), median(w.calls))
	}
	b.Log(table.String())
}

// storeWay is a way to a decision and what its rounds took: decisions a second,
// and microseconds of processor and calls of the script for each.
type storeWay struct {
	name  string
	store Store
	alone bool // one call for each decision, with nothing shared
	// pipelined is one call for each decision, sent by AutoPipeline.
	pipelined bool
	pipeline  *redis.AutoPipeliner
	hot       bool // one key
	leased    bool
	capacity  int64

	rate, own, redis, calls []float64
}

func (w *storeWay) round(server *redisServer) {
	const span = 500 * time.Millisecond
	limit := &Limit{Name: "x", Capacity: max(w.capacity, 1), Rate: rate("0.04/d")}
	if w.capacity == 0 {
		limit.Capacity, limit.Rate = MaxCapacity, rate("1000000/s")
	}
	if w.leased { // until the demand is known
		w.run(limit, 300*time.Millisecond)
	}
	t := &quietTB{}
	ran, own, redis, start := server.scripts(t), ownCPU(), server.cpu(t), time.Now()
	n := w.run(limit, span)
	took := time.Since(start)
	each := func(d time.Duration) float64 { return d.Seconds() * 1e6 / float64(n) }
	w.rate = append(w.rate, float64(n)/took.Seconds())
	w.own = append(w.own, each(ownCPU()-own))
	w.redis = append(w.redis, each(server.cpu(t)-redis))
	w.calls = append(w.calls, float64(server.scripts(t)-ran)/float64(n))
	if s, ok := w.store.(*RedisStore); ok {
		s.leases.sweep(s.giveBackLater)
	}
}

// quietTB is a test that can't fail: what is asked of Redis between rounds.
type quietTB struct{ testing.TB }

func (*quietTB) Helper()                   {}
func (*quietTB) Fatal(args ...any)         { panic(fmt.Sprint(args...)) }
func (*quietTB) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

// run asks from 64 goroutines and returns how many decisions were made.
func (w *storeWay) run(limit *Limit, span time.Duration) int64 {
	var done atomic.Int64
	var clients sync.WaitGroup
	end := time.Now().Add(span)
	for client := range 64 {
		clients.Go(func() {
			d := Decision{Limits: []LimitState{{Limit: limit}}}
			sp := Spend{Cost: 1, Keys: [][]byte{[]byte("r8:{hot}:read")}, Leased: w.leased}
			n := int64(0)
			for ; time.Now().Before(end); n++ {
				if !w.hot {
					sp.Keys[0] = fmt.Appendf(sp.Keys[0][:0], "r8:{%020d}:read", (n*64+int64(client))%1000)
				}
				if err := w.decide(&sp, &d); err != nil {
					panic(err)
				}
			}
			done.Add(n)
		})
	}
	clients.Wait()
	return done.Load()
}

func (w *storeWay) decide(sp *Spend, d *Decision) error {
	s, ok := w.store.(*RedisStore)
	if w.pipelined {
		return w.decidePipelined(s, sp, d)
	}
	if !ok || !w.alone {
		return w.store.Decide(context.Background(), sp, d)
	}
	t := takeTicket(sp, d, time.Now().Add(s.timeout))
	defer t.release()
	f := flights.Get().(*flight)
	f.tickets = append(f.tickets, t)
	defer f.release()
	return s.send(s.lanes.single.deadlines.until(t.deadline), f)
}

// decidePipelined sends one call by AutoPipeline, with a bounded queue and never twice.
func (w *storeWay) decidePipelined(s *RedisStore, sp *Spend, d *Decision) error {
	c := call{}
	t := takeTicket(sp, d, time.Now().Add(s.timeout))
	defer t.release()
	c.add(t)
	c.build(s.byName)
	err := w.pipeline.Process(context.Background(), &c)
	if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		c.build(s.byText)
		err = w.pipeline.Process(context.Background(), &c)
	}
	if err != nil {
		return err
	}
	c.read()
	return t.err
}

func median(all []float64) float64 {
	all = slices.Clone(all)
	slices.Sort(all)
	return all[len(all)/2]
}

// ownCPU is what this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpu is what Redis has used.
func (s *redisServer) cpu(t testing.TB) time.Duration {
	t.Helper()
	info := s.do(t, "INFO", "cpu").(string)
	var sum float64
	for line := range strings.Lines(info) {
		var seconds float64
		for _, field := range []string{"used_cpu_sys:", "used_cpu_user:"} {
			if rest, ok := strings.CutPrefix(line, field); ok {
				if _, err := fmt.Sscan(rest, &seconds); err != nil {
					t.Fatal(err)
				}
				sum += seconds
			}
		}
	}
	return time.Duration(sum * float64(time.Second))
}

// scripts is how often Redis ran a script.
func (s *redisServer) scripts(t testing.TB) int64 {
	t.Helper()
	calls := s.calls(t)
	return calls["evalsha"] + calls["eval"]
}
