package limiter

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"
)

// benchDecide asks a store for single limits, user i of users at a time.
func benchDecide(b *testing.B, store Store, users int) {
	limit := &Limit{Capacity: MaxCapacity, Rate: mustRate(b, "1/s")}
	keys := make([][]byte, users)
	for i := range keys {
		keys[i] = []byte("r8:{user" + strconv.Itoa(i) + "}:search")
	}
	for _, key := range keys {
		spend, d := question(1, "", []keyedLimit{{string(key), limit}})
		if err := store.Decide(context.Background(), spend, d); err != nil {
			b.Fatal(err)
		}
	}
	var seed atomic.Uint64
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rnd := rand.New(rand.NewPCG(seed.Add(1), 0))
		spend, d := &Spend{Cost: 1, Keys: [][]byte{nil}}, &Decision{Limits: []LimitState{{Limit: limit}}}
		for pb.Next() {
			spend.Keys[0] = keys[rnd.IntN(users)]
			if err := store.Decide(context.Background(), spend, d); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
}

// BenchmarkMemoryStore is one decision of one limit; run it with -cpu 1,2.
func BenchmarkMemoryStore(b *testing.B) {
	for _, users := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprint("users=", users), func(b *testing.B) { benchDecide(b, NewMemoryStore(), users) })
	}
}

// BenchmarkMemoryStoreFlood is every decision on a new key with the store full
// of debtors.
func BenchmarkMemoryStoreFlood(b *testing.B) {
	store := NewMemoryStore()
	store.buckets.max = 100_000
	limit := &Limit{Capacity: 10, Rate: mustRate(b, "1/h")}
	var next atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		spend, d := &Spend{Cost: 1, Keys: [][]byte{nil}}, &Decision{Limits: []LimitState{{Limit: limit}}}
		for pb.Next() {
			spend.Keys[0] = strconv.AppendInt(spend.Keys[0][:0], next.Add(1), 10)
			if err := store.Decide(context.Background(), spend, d); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkMemoryStoreMillion reports the memory of a million buckets.
func BenchmarkMemoryStoreMillion(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(bytesPerBucket(b, maxBuckets), "bytes/bucket")
	}
}

// BenchmarkLimiter is a whole decision, with keys built, outcome counted and
// fields written.
func BenchmarkLimiter(b *testing.B) {
	c := DefaultConfig()
	rate := mustRate(b, "1/s")
	c.Resources = map[string]ResourceConfig{
		"one": {Capacity: MaxCapacity, RefillRate: rate},
		"three": {Limits: []LimitConfig{
			{Name: "burst", Capacity: MaxCapacity, RefillRate: rate},
			{Name: "daily", Capacity: MaxCapacity, RefillRate: rate},
			{Name: "everyone", Per: "resource", Capacity: MaxCapacity, RefillRate: rate},
		}},
	}
	for _, resource := range []string{"one", "three"} {
		b.Run("limits="+resource, func(b *testing.B) {
			l := New(c, NewMemoryStore())
			outcomes := l.Outcomes("route")
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				req, d := &Request{User: []byte("user-1234"), Resource: []byte(resource), Cost: 1}, &Decision{}
				field := make([]byte, 0, 256)
				for pb.Next() {
					err := l.Decide(req, d)
					outcomes.Count(d, err)
					field = d.AppendPolicy(d.AppendRateLimit(field[:0]))
				}
			})
		})
	}
}

// BenchmarkLevel is the arithmetic alone: read, spend, store, time to full.
func BenchmarkLevel(b *testing.B) {
	r := mustRate(b, "33.333333/s")
	bucket, now := Bucket{Debt: 500, At: 1}, int64(1000)
	for b.Loop() {
		level := bucket.Level(now, r)
		level.Debt++
		bucket = level.Bucket(now, r)
		now += min(20_000, level.fullMicros(r))
	}
}

// BenchmarkReplay is a decision about the past by one goroutine: a clock that the
// caller moves, and many users, as a simulation has.
func BenchmarkReplay(b *testing.B) {
	c := DefaultConfig()
	c.Resources = map[string]ResourceConfig{"read": {Capacity: 100, RefillRate: mustRate(b, "1/s")}}
	for _, users := range []int{100, 100_000} {
		b.Run(fmt.Sprint("users=", users), func(b *testing.B) {
			now := int64(0)
			l := New(c, NewMemoryStoreAt(func() int64 { return now }))
			names := make([][]byte, users)
			for i := range names {
				names[i] = fmt.Appendf(nil, "user-%d", i)
			}
			req, d := &Request{Resource: []byte("read"), Cost: 1}, &Decision{}
			random := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				now += 1000
				req.User = names[random.IntN(users)]
				if err := l.Decide(req, d); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
