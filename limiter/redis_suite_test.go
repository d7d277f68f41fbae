package limiter

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/lua"
)

// openRedisSuite opens a store on server, emptied, with a clock that starts on
// the first day. As that clock stands still, buckets don't expire; idempotency
// records do.
func openRedisSuite(t *testing.T, server *redisServer) testedStore {
	t.Helper()
	server.do(t, "FLUSHALL")
	script := withClock(t, lua.Decide)
	script = replaceOnce(t, script, "call('SET', key, value .. leases, 'PX', math.max(life(debt, progress, n, p) + keep, 1))", "call('SET', key, value)")
	store := openRedis(t, RedisConfig{URL: "unix://" + server.socket, Timeout: 5 * time.Second}, script)
	c := standingClock{server: server, redis: firstDay}
	server.setClock(t, firstDay)
	return testedStore{
		Store:   forgetful{store},
		now:     func() int64 { return c.skipped + c.redis },
		advance: func(d time.Duration) { c.advance(t, d.Microseconds()) },
	}
}

// forgetful asks Redis each time: the suite moves the clock and changes limits
// behind the store's back.
type forgetful struct{ *RedisStore }

func (s forgetful) Decide(ctx context.Context, sp *Spend, d *Decision) error {
	s.Forget()
	return s.RedisStore.Decide(ctx, sp, d)
}

const (
	firstDay = 86_400_000_000
	// lastDay is when doubles stop to be exact microseconds, in the year 2255.
	lastDay = 1 << 53
)

// standingClock is a clock that only the test moves. Redis sees it without
// what was skipped: centuries would lead beyond lastDay.
type standingClock struct {
	server         *redisServer
	redis, skipped int64 // microseconds
}

func (c *standingClock) advance(t *testing.T, by int64) {
	t.Helper()
	if c.redis+by >= lastDay {
		skip := c.redis - firstDay
		c.server.moveBuckets(t, skip)
		c.redis, c.skipped = firstDay, c.skipped+skip
	}
	c.redis += by
	c.server.setClock(t, c.redis)
}

// moveBuckets makes all buckets older, so far as that goes.
func (s *redisServer) moveBuckets(t *testing.T, by int64) {
	t.Helper()
	for _, key := range s.do(t, "KEYS", "exact*").([]any) {
		value := []byte(s.do(t, "GET", key).(string))
		at := binary.BigEndian.Uint64(value[3:11]) << 8 >> 8
		at = uint64(max(0, int64(at)-by))
		copy(value[4:], binary.BigEndian.AppendUint64(nil, at)[1:])
		s.do(t, "SET", key, value)
	}
}

func TestRedisStore(t *testing.T) {
	server := startRedis(t)
	testStore(t, func(t *testing.T) testedStore { return openRedisSuite(t, server) })
}

// TestSlowerRateRefillsNothing makes a rate slower on a live bucket: the time to
// live that the old rate gave it must not end the debt.
func TestSlowerRateRefillsNothing(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	fast := &Limit{Capacity: 100, Rate: rate("500/s")}
	slow := &Limit{Capacity: 100, Rate: rate("1/h")}
	if d, err := spendOne(store, "k", 100, fast); err != nil || !d.Allowed {
		t.Fatalf("got %+v, %v", d, err)
	}
	if d, err := spendOne(store, "k", 100, slow); err != nil || d.Allowed {
		t.Fatalf("got %+v, %v", d, err)
	}
	if ms := server.do(t, "PTTL", "k").(int64); ms < 60_000 {
		t.Errorf("the bucket lives for %d ms, though it takes hours to fill", ms)
	}
	// A faster rate shortens it with the next charge only; a refusal never does.
	if _, err := spendOne(store, "k", 100, &Limit{Capacity: 100, Rate: rate("1/s")}); err != nil {
		t.Fatal(err)
	}
	if ms := server.do(t, "PTTL", "k").(int64); ms < 600_000 {
		t.Errorf("a refusal has shortened the life to %d ms", ms)
	}
}
