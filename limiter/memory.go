package limiter

import (
	"context"
	"errors"
	"hash/maphash"
	"io"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/rs/zerolog"
)

// maxBuckets is how many buckets a MemoryStore keeps, and how many
// idempotency keys.
const maxBuckets = 1_000_000

var errClosed = errors.New("the memory store is closed")

// MemoryStore keeps buckets in the memory of this process, on its monotonic
// clock or another (NewMemoryStoreAt). It holds at most a million buckets that are not full; then it forgets
// the one that is nearest to full for each new one, and counts it: whoever
// floods it with keys pays for each, and the largest debts stay longest.
// Deciding on buckets that exist allocates nothing.
//
// A bucket takes about 80 bytes besides its key. A Go map of pointers took
// twice that, and could not say which bucket to forget. There is no goroutine
// that cleans up: insertions look at a few due buckets, and ActiveKeys, which
// metrics ask for, at all that are due.
type MemoryStore struct {
	now     func() int64 // microseconds
	seed    maphash.Seed
	buckets table
	// records are the idempotency keys: Debt is the cost, full is expired. A
	// decision locks its record before its buckets.
	records table
	fleet   *memoryFleet
	closed  atomic.Bool

	overflow       atomic.Uint64 // buckets forgotten with a debt
	recordOverflow atomic.Uint64 // idempotency keys forgotten before their time
}

// NewMemoryStore returns an empty store.
func NewMemoryStore() *MemoryStore {
	start := time.Now()
	return NewMemoryStoreAt(func() int64 { return time.Since(start).Microseconds() })
}

// NewMemoryStoreAt returns an empty store on a clock of the caller's, so that the
// past can be decided about. It tells microseconds, never goes backwards, and is
// called with locks held, by many at a time if the store is used by many. What
// operators change and the figures of a fleet go by the time of day all the same.
func NewMemoryStoreAt(now func() int64) *MemoryStore {
	m := &MemoryStore{now: now, seed: maphash.MakeSeed()}
	m.buckets.init(maxBuckets)
	m.records.init(maxBuckets)
	m.fleet = newMemoryFleet(m.ActiveKeys)
	return m
}

// place is where the bucket of one key is.
type place struct {
	hash  uint64
	entry int32 // index in its shard, or none
	moved bool  // brought back from the future, thus to be written
}

// Decide implements Store. It never fails while the store is open.
func (m *MemoryStore) Decide(_ context.Context, s *Spend, d *Decision) error {
	if m.closed.Load() {
		return errClosed
	}
	if len(s.IdempotencyKey) > 0 {
		return m.decideOnce(s, d)
	}
	m.spend(s, d)
	return nil
}

// decideOnce decides under the lock of the idempotency key, so that of
// concurrent duplicates one spends.
func (m *MemoryStore) decideOnce(s *Spend, d *Decision) error {
	hash := maphash.Bytes(m.seed, s.IdempotencyKey)
	inserted, err := m.replayOrSpend(hash, s, d)
	if inserted {
		m.recordOverflow.Add(m.records.shrink(m.now))
	}
	return err
}

// replayOrSpend replays what the record says, or decides and remembers that it
// allowed. It says whether a record is new.
func (m *MemoryStore) replayOrSpend(hash uint64, s *Spend, d *Decision) (inserted bool, err error) {
	sh := m.records.shard(hash)
	sh.mu.Lock()
	defer m.records.unlock(sh)
	now := m.now()
	if i := sh.find(hash, s.IdempotencyKey); i != none && sh.entries[i].full > now {
		if sh.entries[i].bucket.Debt != s.Cost {
			return false, ErrKeyReused
		}
		m.replay(s, d)
		return false, nil
	}
	m.spend(s, d)
	if !d.Allowed {
		return false, nil
	}
	i, inserted := m.records.put(sh, hash, s.IdempotencyKey)
	sh.set(i, Bucket{Debt: s.Cost}, now+max(1, s.IdempotencyTTL.Microseconds()))
	sh.expire(now, expireSteps)
	return inserted, nil
}

// replay allows without spending and shows the present state. The record's
// lock is still held, so that nobody else decides under the key meanwhile.
func (m *MemoryStore) replay(s *Spend, d *Decision) {
	look := Spend{Keys: s.Keys}
	m.spend(&look, d)
	d.Allowed, d.Replayed = true, true
	for i := range d.Limits {
		d.Limits[i].Denied = false
	}
}

// spend is a decision without idempotency key: all shards are locked, all
// buckets are read, and only then is any written. The clock is read under the
// locks, so that of two decisions on a bucket the later one sees the later time.
func (m *MemoryStore) spend(s *Spend, d *Decision) {
	var room [maxLimits]place // on the stack; more limits than that allocate
	places, set := room[:0], shardSet{}
	for _, key := range s.Keys {
		hash := maphash.Bytes(m.seed, key)
		places = append(places, place{hash: hash})
		set.add(hash)
	}
	m.buckets.lock(&set)
	now := m.now()
	m.read(s, d, places, now)
	d.admit(s.Cost)
	inserted := m.write(s, d, places, now)
	if inserted {
		m.buckets.expire(&set, now)
	}
	m.buckets.unlockAll(&set)
	if inserted {
		m.overflow.Add(m.buckets.shrink(m.now))
	}
}

// read finds the buckets and sets d's levels.
func (m *MemoryStore) read(s *Spend, d *Decision, places []place, now int64) {
	for i, key := range s.Keys {
		p := &places[i]
		sh := m.buckets.shard(p.hash)
		p.entry = sh.find(p.hash, key)
		d.Limits[i].Level = Level{}
		if p.entry != none {
			b := sh.entries[p.entry].bucket
			d.Limits[i].Level = b.Level(now, d.Limits[i].Rate)
			p.moved = b.Debt > 0 && b.ahead(now)
		}
	}
}

// admit decides on the levels that were read: every limit but the shadows must
// have the cost.
func (d *Decision) admit(cost int64) {
	d.Allowed, d.Replayed = true, false
	for i := range d.Limits {
		s := &d.Limits[i]
		s.Denied = !s.Level.admits(cost, s.Capacity)
		if s.Denied && !s.Shadow {
			d.Allowed = false
		}
	}
}

// write charges the limits and stores their buckets, and those that were
// brought back from the future in any case. A key that occurs twice is written
// twice with the same bucket, as both were read before. It says whether a
// bucket is new, which is when room may have to be made.
func (m *MemoryStore) write(s *Spend, d *Decision, places []place, now int64) (inserted bool) {
	for i := range places {
		p, state := &places[i], &d.Limits[i]
		charged := d.Allowed && !state.Denied && s.Cost > 0
		if charged {
			state.Level.Debt += s.Cost
		}
		if !charged && !p.moved {
			continue
		}
		sh := m.buckets.shard(p.hash)
		if p.entry == none {
			var added bool
			p.entry, added = m.buckets.put(sh, p.hash, s.Keys[i])
			inserted = inserted || added
		}
		full := now + state.Level.fullMicros(state.Rate)
		sh.set(p.entry, state.Level.Bucket(now, state.Rate), full)
	}
	return inserted
}

// Reset implements Store.
func (m *MemoryStore) Reset(_ context.Context, keys [][]byte) error {
	for _, key := range keys {
		hash := maphash.Bytes(m.seed, key)
		sh := m.buckets.shard(hash)
		sh.mu.Lock()
		if i := sh.find(hash, key); i != none {
			sh.remove(i)
		}
		m.buckets.unlock(sh)
	}
	return nil
}

// Forget implements Store: nothing is remembered but the buckets.
func (m *MemoryStore) Forget() {}

// Run implements Store.
func (m *MemoryStore) Run(context.Context, zerolog.Logger) {}

// Degraded implements Store.
func (m *MemoryStore) Degraded() error { return nil }

// Fleet implements Store.
func (m *MemoryStore) Fleet() Fleet { return m.fleet }

// Probe implements Store. Memory always works until it is closed.
func (m *MemoryStore) Probe(ctx context.Context) error {
	if m.closed.Load() {
		return errClosed
	}
	return ctx.Err()
}

// ActiveKeys implements Store: it counts, and forgets what is full or expired.
func (m *MemoryStore) ActiveKeys() int {
	now := m.now()
	m.records.sweep(now)
	return m.buckets.sweep(now)
}

// WriteMetrics implements Store.
func (m *MemoryStore) WriteMetrics(w io.Writer) {
	metrics.WriteCounterUint64(w, "r8limiter_store_overflow_total", m.overflow.Load())
	metrics.WriteCounterUint64(w, "r8limiter_store_idempotency_overflow_total", m.recordOverflow.Load())
}

// Close implements Store.
func (m *MemoryStore) Close() error {
	m.closed.Store(true)
	return nil
}
