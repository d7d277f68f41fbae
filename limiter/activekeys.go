package limiter

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/axiomhq/hyperloglog"
	"github.com/cespare/xxhash/v2"
)

const (
	activeShards   = 64
	activeShardMax = 1 << 20 / activeShards
	// activeSweepEvery is how often a shard that is full looks for room.
	activeSweepEvery = time.Second
)

// activeKeys counts the buckets that are not full, from what decisions found.
// It keeps a hash and a moment for each, in shards with a lock each, and no
// more than a million: beyond that it counts a million. The hash is the same in
// every process, so that sketches can be merged; who makes keys collide hides
// them from a statistic, no more.
type activeKeys struct {
	start  time.Time
	found  atomic.Int64 // what the last sketch or count found
	shards [activeShards]activeShard
}

type activeShard struct {
	mu     sync.Mutex // guards the rest
	fullAt map[uint64]time.Duration
	swept  time.Duration
	_      [40]byte // to the size of a cache line: neighbours don't share one
}

func newActiveKeys() *activeKeys {
	a := &activeKeys{start: time.Now()}
	for i := range a.shards {
		a.shards[i].fullAt = map[uint64]time.Duration{}
	}
	return a
}

// set notes that the bucket of key will be full so long after a moment; 0 if it is
// full.
func (a *activeKeys) set(key []byte, full time.Duration, at time.Time) {
	now := at.Sub(a.start)
	h := xxhash.Sum64(key)
	s := &a.shards[h%activeShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if full <= 0 {
		delete(s.fullAt, h)
		return
	}
	if len(s.fullAt) >= activeShardMax && !s.makeRoomLocked(h, now) {
		return
	}
	s.fullAt[h] = now + full
}

// makeRoomLocked says whether h fits into a shard that is full.
func (s *activeShard) makeRoomLocked(h uint64, now time.Duration) bool {
	if _, known := s.fullAt[h]; known {
		return true
	}
	if now-s.swept < activeSweepEvery {
		return false
	}
	s.sweepLocked(now)
	return len(s.fullAt) < activeShardMax
}

// sweepLocked forgets the buckets that have become full.
func (s *activeShard) sweepLocked(now time.Duration) {
	s.swept = now
	for h, at := range s.fullAt {
		if at <= now {
			delete(s.fullAt, h)
		}
	}
}

// count walks all shards, one lock at a time: it is for metrics.
func (a *activeKeys) count() int {
	n := 0
	a.walk(func(s *activeShard) { n += len(s.fullAt) })
	a.found.Store(int64(n))
	return n
}

// size is about what count would return, without a walk.
func (a *activeKeys) size() int { return int(a.found.Load()) }

// sketch is the set of these keys, for an estimate of how many all gateways
// have: with 2^16 registers its standard error is 0.4 %.
func (a *activeKeys) sketch() *hyperloglog.Sketch {
	all, n := hyperloglog.New16(), 0
	if a.size() > 5000 { // collecting few is for few
		all = hyperloglog.New16NoSparse()
	}
	a.walk(func(s *activeShard) {
		n += len(s.fullAt)
		for h := range s.fullAt {
			all.InsertHash(h)
		}
	})
	a.found.Store(int64(n))
	return all
}

// walk calls f with each shard, swept and locked.
func (a *activeKeys) walk(f func(*activeShard)) {
	for i := range a.shards {
		s := &a.shards[i]
		s.mu.Lock()
		s.sweepLocked(time.Since(a.start))
		f(s)
		s.mu.Unlock()
	}
}
