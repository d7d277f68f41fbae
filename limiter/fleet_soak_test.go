package limiter

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// soakUsers is how many random users ask: few in every run, a million with
// SOAK_USERS=1000000 (`make soak`).
func soakUsers(t testing.TB) int {
	text, ok := os.LookupEnv("SOAK_USERS")
	if !ok {
		return 20_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestStatisticsStaySmall lets each of many users be allowed once and denied
// once, and looks at what the statistics take, here and in Redis.
func TestStatisticsStaySmall(t *testing.T) {
	users := soakUsers(t)
	server := startRedis(t)
	l := startGateway(t, fleetConfig(), server.store(t))
	before := heap()
	start := time.Now()
	var running sync.WaitGroup
	for part := range 16 {
		running.Go(func() {
			var d Decision
			for i := part; i < users; i += 16 {
				user := fmt.Appendf(nil, "user-%016x", uint64(i)*0x9e3779b97f4a7c15)
				for _, cost := range []int64{1, 6} { // 6 is more than the capacity
					if err := l.Decide(&Request{User: user, Resource: []byte("read"), Cost: cost}, &d); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	running.Wait()
	took := time.Since(start)
	totals, offenders, err := l.Stats(t.Context(), lastHour, MaxOffenders)
	if err != nil || totals.Allowed != uint64(users) || totals.Denied != uint64(users) || len(offenders) != MaxOffenders {
		t.Errorf("got %+v, %d offenders, %v", totals, len(offenders), err)
	}
	grown, inRedis := heap()-before, server.memoryOf(t, "r8:{!fleet}:*")
	t.Logf("%d users in %v: %d bytes more on the heap, %d bytes of statistics in Redis", users, took, grown, inRedis)
	if limit := int64(16<<20 + 64*users); grown > limit {
		t.Errorf("the heap grew by %d bytes, want at most %d", grown, limit)
	}
	if inRedis > 10<<20 {
		t.Errorf("the statistics take %d bytes in Redis", inRedis)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// memoryOf is what the keys of a pattern take in Redis, in bytes.
func (s *redisServer) memoryOf(t testing.TB, pattern string) (sum int64) {
	t.Helper()
	for _, key := range s.do(t, "KEYS", pattern).([]any) {
		n, _ := s.do(t, "MEMORY", "USAGE", key, "SAMPLES", "0").(int64)
		sum += n
	}
	return sum
}

// BenchmarkDecideBesideStatistics shows that no decision is slower for the
// statistics, by the median of rounds that take turns: one gateway keeps up with its fleet
// and one does not, both with new users all the time.
func BenchmarkDecideBesideStatistics(b *testing.B) {
	server := startRedis(b)
	alone := New(fleetConfig(), server.store(b))
	b.Cleanup(func() { alone.Close() })
	member := New(fleetConfig(), server.store(b))
	if err := member.Start(b.Context(), zerolog.Nop()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { member.Close() })
	var p99s [2][]float64
	for round := 0; b.Loop(); round++ {
		for i, l := range []*Limiter{alone, member} {
			took := decideFor(b, l, time.Second, fmt.Sprintf("%d-%d-", i, round))
			slices.Sort(took)
			p99s[i] = append(p99s[i], float64(took[len(took)*99/100].Microseconds()))
		}
	}
	median := func(all []float64) float64 {
		slices.Sort(all)
		return all[len(all)/2]
	}
	b.ReportMetric(median(p99s[0]), "p99-alone-µs")
	b.ReportMetric(median(p99s[1]), "p99-member-µs")
	b.ReportMetric(median(p99s[1])/median(p99s[0]), "p99-ratio")
}

// decideFor decides with 8 callers for a while, each decision about a new user,
// every other one denied.
func decideFor(b *testing.B, l *Limiter, long time.Duration, prefix string) []time.Duration {
	var mu sync.Mutex
	var all []time.Duration
	var running sync.WaitGroup
	for part := range 8 {
		running.Go(func() {
			var d Decision
			var took []time.Duration
			for i, end := 0, time.Now().Add(long); time.Now().Before(end); i++ {
				user := fmt.Appendf(nil, "%s%d-%d", prefix, part, i)
				start := time.Now()
				if err := l.Decide(&Request{User: user, Resource: []byte("read"), Cost: int64(1 + i%2*5)}, &d); err != nil {
					b.Error(err)
				}
				took = append(took, time.Since(start))
			}
			mu.Lock()
			all = append(all, took...)
			mu.Unlock()
		})
	}
	running.Wait()
	return all
}
