package limiter

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const (
	denialShards   = 64
	denialShardMax = 1024
	// maxDenial is how long a denial is believed without asking, in microseconds.
	maxDenial = 1_000_000
	// briefDenial is the same where tokens that others hold may come back before
	// the bucket gains as many.
	briefDenial = 50_000
)

// denialCache remembers buckets that refused. What refused a cost refuses it, and
// any higher one, until the wait for it is over: nothing makes a bucket fuller
// than its rate does but what calls forget or drop, and leases and decisions in two
// slots of a cluster, whose tokens may come back. Until then, and for a second at most, or
// 50 ms where something may come back, such a decision is made here, exactly.
// Bounded; safe for concurrent use.
type denialCache struct {
	start  time.Time
	now    func() int64 // microseconds since the start
	seed   maphash.Seed
	size   atomic.Int64
	epoch  atomic.Uint64 // grows when all is forgotten
	asking int64         // microseconds that one caller has to ask again, while others still believe
	shards [denialShards]denialShard
}

type denialShard struct {
	mu     sync.Mutex // guards the rest
	known  map[string]*denial
	purged int64
	_      [40]byte // neighbours don't share a cache line
}

// denial is what an answer that refused said of one bucket. Times are in
// microseconds since the start.
type denial struct {
	// bucket is its state when the answer had come, thus never fuller than it is
	// for Redis: a client that waits as long as this says is not early.
	bucket Bucket
	cost   int64 // that was refused; 0: this limit was not the one
	over   int64 // when the wait for it is over, counted from when Redis was asked
	until  int64 // when to ask again
}

func newDenialCache(asking time.Duration) *denialCache {
	d := &denialCache{start: time.Now(), seed: maphash.MakeSeed(), asking: asking.Microseconds()}
	d.now = func() int64 { return d.at(time.Now()) }
	for i := range d.shards {
		d.shards[i].known = map[string]*denial{}
	}
	return d
}

// at is a moment in microseconds since the start.
func (c *denialCache) at(t time.Time) int64 { return t.Sub(c.start).Microseconds() }

func (c *denialCache) shard(key []byte) *denialShard {
	return &c.shards[maphash.Bytes(c.seed, key)%denialShards]
}

// answer decides sp if a bucket is known to refuse it, and fills d as the store
// would. Limits whose state is not known are marked. It allocates nothing.
func (c *denialCache) answer(sp *Spend, d *Decision) bool {
	if c.size.Load() == 0 || sp.Cost == 0 || len(sp.IdempotencyKey) > 0 {
		return false
	}
	now, denied := c.now(), false
	for i, key := range sp.Keys {
		s := &d.Limits[i]
		bucket, known, refuses := c.look(key, sp.Cost, now)
		s.Unknown = !known
		s.Level = bucket.Level(now, s.Rate)
		s.Denied = known && !s.Level.admits(sp.Cost, s.Capacity)
		denied = denied || refuses && s.Denied && !s.Shadow
	}
	if denied {
		d.Allowed, d.Replayed = false, false
		return true
	}
	for i := range d.Limits {
		d.Limits[i].Unknown = false
	}
	return false
}

// look finds what is known of a bucket, if anything is, and whether it refuses
// cost. When it is time to ask again though the wait is not over, one caller is
// told to ask.
func (c *denialCache) look(key []byte, cost, now int64) (b Bucket, known, refuses bool) {
	sh := c.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e, ok := sh.known[string(key)]
	switch {
	case !ok:
		return Bucket{}, false, false
	case now >= e.over:
		delete(sh.known, string(key))
		c.size.Add(-1)
		return Bucket{}, false, false
	case now >= e.until:
		e.until = now + c.asking
		return e.bucket, true, false
	}
	return e.bucket, true, e.cost > 0 && cost >= e.cost
}

// asked is when Redis was asked, in which epoch, and when it had answered. An answer is
// to be believed for so many microseconds at most.
type asked struct {
	epoch           uint64
	sent, now, long int64
}

// note remembers the answer d to sp. One that allowed only renews what is known.
func (c *denialCache) note(sp *Spend, d *Decision, a asked) {
	if sp.Cost == 0 || d.Replayed || d.Allowed && c.size.Load() == 0 {
		return
	}
	now, belief := a.now, a.long
	for i, key := range sp.Keys {
		s := &d.Limits[i]
		e := denial{bucket: s.Level.Bucket(now, s.Rate), until: now + maxDenial, over: now + maxDenial}
		if s.Denied && !s.Shadow {
			e.cost = sp.Cost
			e.over = a.sent + s.Level.Wait(sp.Cost, s.Capacity, s.Rate).Microseconds()
			if s.leasedOut {
				belief = briefDenial
			}
			e.until = min(e.over, now+belief)
		}
		c.put(key, e, now, !d.Allowed, a.epoch)
	}
}

// put stores what is known of a bucket; unless add, only if something is.
func (c *denialCache) put(key []byte, e denial, now int64, add bool, epoch uint64) {
	sh := c.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if c.epoch.Load() != epoch || e.over <= now {
		return
	}
	if old, ok := sh.known[string(key)]; ok {
		if add {
			*old = e
		} else {
			old.bucket = e.bucket
		}
		return
	}
	if !add {
		return
	}
	if len(sh.known) >= denialShardMax {
		c.makeRoomLocked(sh, now)
	}
	sh.known[string(key)] = &e
	c.size.Add(1)
}

// makeRoomLocked forgets what is over, though not each time, or else anything.
func (c *denialCache) makeRoomLocked(sh *denialShard, now int64) {
	if now-sh.purged > maxDenial/10 {
		c.purgeLocked(sh, now)
	}
	for key := range sh.known {
		if len(sh.known) < denialShardMax {
			break
		}
		delete(sh.known, key)
		c.size.Add(-1)
	}
}

func (c *denialCache) purgeLocked(sh *denialShard, now int64) {
	sh.purged = now
	for key, e := range sh.known {
		if now >= e.over {
			delete(sh.known, key)
			c.size.Add(-1)
		}
	}
}

// purge forgets what is over.
func (c *denialCache) purge() {
	if c.size.Load() == 0 {
		return
	}
	now := c.now()
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		c.purgeLocked(sh, now)
		sh.mu.Unlock()
	}
}

// drop forgets buckets.
func (c *denialCache) drop(keys [][]byte) {
	if c.size.Load() == 0 {
		return
	}
	for _, key := range keys {
		sh := c.shard(key)
		sh.mu.Lock()
		if _, ok := sh.known[string(key)]; ok {
			delete(sh.known, string(key))
			c.size.Add(-1)
		}
		sh.mu.Unlock()
	}
}

// forget forgets all, also what answers under way will say.
func (c *denialCache) forget() {
	c.epoch.Add(1)
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		c.size.Add(-int64(len(sh.known)))
		clear(sh.known)
		sh.mu.Unlock()
	}
}
