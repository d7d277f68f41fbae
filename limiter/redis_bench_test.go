package limiter

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkRedisStore makes decisions on a redis-server that shares the
// machine with it.
func BenchmarkRedisStore(b *testing.B) {
	b.Run("one key", func(b *testing.B) { benchmarkRedis(b, 1, 1) })
	b.Run("many keys", func(b *testing.B) { benchmarkRedis(b, 1<<16, 1) })
	b.Run("three limits", func(b *testing.B) { benchmarkRedis(b, 1<<16, 3) })
}

func benchmarkRedis(b *testing.B, users, limits int) {
	store := startRedis(b).store(b)
	limit := &Limit{Name: "x", Capacity: MaxCapacity, Rate: rate("1000/s")}
	var turn atomic.Int64
	b.SetParallelism(16) // clients, by processor
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		d := Decision{Limits: make([]LimitState, limits)}
		sp := Spend{Cost: 1, Keys: make([][]byte, limits)}
		for i := range d.Limits {
			d.Limits[i].Limit = limit
		}
		for pb.Next() {
			user := turn.Add(7919) % int64(users)
			for i := range sp.Keys {
				sp.Keys[i] = fmt.Appendf(sp.Keys[i][:0], "r8:{%020d}:read:%d", user, i)
			}
			if err := store.Decide(context.Background(), &sp, &d); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
}

// BenchmarkRedisStoreMillion reports the memory of a million buckets, of users
// with ids of 20 bytes, as Redis counts it.
func BenchmarkRedisStoreMillion(b *testing.B) {
	for b.Loop() {
		server := startRedis(b)
		store := server.store(b)
		limit := &Limit{Name: "x", Capacity: MaxCapacity, Rate: rate("1/h")}
		before := server.usedMemory(b)
		var turn atomic.Int64
		var clients sync.WaitGroup
		for range 32 {
			clients.Go(func() {
				d := Decision{Limits: []LimitState{{Limit: limit}}}
				for user := turn.Add(1); user <= maxBuckets; user = turn.Add(1) {
					sp := Spend{Cost: 1, Keys: [][]byte{fmt.Appendf(nil, "r8:{%020d}:read", user)}}
					if err := store.Decide(context.Background(), &sp, &d); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		clients.Wait()
		b.ReportMetric(float64(server.usedMemory(b)-before)/maxBuckets, "bytes/bucket")
	}
}

// usedMemory is what Redis says that it has allocated, in bytes.
func (s *redisServer) usedMemory(t testing.TB) (bytes int64) {
	t.Helper()
	_, rest, _ := strings.Cut(s.do(t, "INFO", "memory").(string), "used_memory:")
	if _, err := fmt.Sscan(rest, &bytes); err != nil {
		t.Fatal(err)
	}
	return bytes
}
