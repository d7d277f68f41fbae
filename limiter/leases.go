package limiter

import (
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	leaseShards   = 64
	leaseShardMax = 64 // keys that a shard watches
	// demandWindow is over which time demand is measured, in microseconds.
	demandWindow = 100_000
	// leaseSweep is how often leases are looked at that nobody renews.
	leaseSweep = 100 * time.Millisecond
	// leaseForget is how long a key without demand is watched, in microseconds.
	leaseForget = 2_000_000
	// leaseLeast is how many times its cost a request's lease must be worth.
	leaseLeast = 4
)

// leases are tokens that this process has debited in advance from buckets with
// much demand, and spends without asking. A lease is never more than a share of
// what a bucket has left, so it gets smaller with the bucket: near empty each
// request is asked for on its own. What is not spent goes back before the lease
// ends; after a crash, or when the answer to a call is lost, it stays debited.
//
// Times are in microseconds since the start. Safe for concurrent use.
type leases struct {
	start  time.Time
	seed   maphash.Seed
	ttl    time.Duration
	share  int64 // thousandths of what is left
	shards [leaseShards]leaseShard

	granted, returned, lost atomic.Uint64 // tokens
	closed                  atomic.Bool   // no more leases
}

type leaseShard struct {
	mu   sync.Mutex // guards held
	held map[string]*lease
	_    [48]byte // neighbours don't share a cache line
}

// lease is what is held of the buckets of one Spend: every token is debited from
// each of them.
type lease struct {
	keys   [][]byte
	limits []*Limit

	mu       sync.Mutex // guards the rest
	id       int64      // 40 random bits; another after each return, see renameLocked
	tokens   int64      // that are left
	until    int64      // when they must not be spent any more, counted from when Redis was asked
	granted  int64      // tokens after the last grant,
	since    int64      // and when that was
	buckets  []Bucket   // the states when the last answer had come
	renewing bool       // a call is under way
	lost     bool       // an answer is missing: no renewals under this id
	gone     bool       // no longer in its shard: nothing is spent any more

	spent  int64   // tokens since windowStart
	window int64   // when the window began
	demand float64 // tokens a second
	used   int64   // when it was last asked for
}

// leaseTerms are what a call asks for a lease, and what it got.
type leaseTerms struct {
	id    int64
	held  int64 // tokens that are left of it at most
	want  int64 // tokens
	share int64 // thousandths of what is left
	ttl   time.Duration
	got   int64 // tokens
}

func newLeases(config LeaseConfig) *leases {
	c := &leases{start: time.Now(), seed: maphash.MakeSeed(), ttl: config.TTL, share: config.Share * 10}
	for i := range c.shards {
		c.shards[i].held = map[string]*lease{}
	}
	return c
}

func (c *leases) now() int64 { return c.at(time.Now()) }

// at is a moment in microseconds since the start.
func (c *leases) at(t time.Time) int64 { return t.Sub(c.start).Microseconds() }

// of returns the lease for sp, which may hold nothing yet; nil if there is no
// room to watch another key.
func (c *leases) of(sp *Spend, d *Decision) *lease {
	if c.closed.Load() {
		return nil
	}
	var room [256]byte
	name := sp.Keys[0]
	if len(sp.Keys) > 1 {
		name = room[:0]
		for _, key := range sp.Keys {
			name = append(append(name, key...), ' ')
		}
	}
	sh := &c.shards[maphash.Bytes(c.seed, name)%leaseShards]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	l, ok := sh.held[string(name)]
	if ok && l.fits(d) {
		return l
	}
	if ok || len(sh.held) >= leaseShardMax {
		return nil
	}
	l = newLease(sp, d, c.now())
	sh.held[string(name)] = l
	return l
}

func newLease(sp *Spend, d *Decision, now int64) *lease {
	l := &lease{window: now, used: now}
	l.renameLocked()
	for i, key := range sp.Keys {
		l.keys = append(l.keys, append([]byte(nil), key...))
		l.limits = append(l.limits, d.Limits[i].Limit)
	}
	l.buckets = make([]Bucket, len(l.keys))
	return l
}

// renameLocked gives l a new id. What is sent under the old one, but is late,
// then does nothing to what l holds from now on.
func (l *lease) renameLocked() { l.id, l.lost = rand.Int64N(1<<40), false }

// fits says whether l is under the limits of d: they may have been changed.
func (l *lease) fits(d *Decision) bool {
	if len(l.limits) != len(d.Limits) {
		return false
	}
	for i := range d.Limits {
		if l.limits[i] != d.Limits[i].Limit {
			return false
		}
	}
	return true
}

// use says what became of a request to a lease.
type use uint8

const (
	useCall  use = iota // ask the store
	useLease            // ask the store, and for a lease with it
	useDone             // spent
	useRenew            // spent, and it is time to renew
)

// spend spends cost from the lease if it can, and fills d. With useLease and
// useRenew, terms are those to ask for, and the caller calls renewed after.
func (c *leases) spend(l *lease, cost int64, d *Decision) (u use, terms leaseTerms) {
	now := c.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.measureLocked(cost, now)
	if now >= l.until && l.tokens > 0 {
		c.lost.Add(uint64(l.tokens))
		l.tokens = 0
	}
	if l.tokens == 0 && l.lost {
		l.renameLocked()
	}
	if l.granted > 0 && l.tokens*4 <= l.granted {
		l.hurryLocked(now)
	}
	terms = leaseTerms{id: l.id, share: c.share, ttl: c.ttl, want: int64(min(l.demand*c.ttl.Seconds()/4, MaxCapacity))}
	worth := terms.want >= leaseLeast*cost && !l.renewing && !l.lost
	if l.gone || l.tokens < cost && !worth {
		return useCall, terms
	}
	if l.tokens < cost {
		l.renewing, terms.held = true, l.tokens
		return useLease, terms
	}
	l.tokens -= cost
	l.fillLocked(d, now)
	if l.granted > 0 || !worth { // there is more than a quarter of it
		return useDone, terms
	}
	l.renewing, terms.held = true, l.tokens
	return useRenew, terms
}

// measureLocked takes a request into the demand.
func (l *lease) measureLocked(cost, now int64) {
	l.used = now
	l.spent += cost
	if passed := now - l.window; passed >= demandWindow {
		l.demand = (l.demand + float64(l.spent)*1e6/float64(passed)) / 2
		l.spent, l.window = 0, now
	}
}

// hurryLocked raises the demand to what the last grant met, if that went quickly.
func (l *lease) hurryLocked(now int64) {
	met := float64(l.granted-l.tokens) * 1e6 / float64(max(now-l.since, 1000))
	l.demand, l.granted = max(l.demand, met), 0
}

// leave says that the call which spend asked for is not made.
func (l *lease) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewing = false
}

// fillLocked makes d what the store would have said, so far as this process knows:
// what a bucket has left and what the lease has left of it.
func (l *lease) fillLocked(d *Decision, now int64) {
	d.Allowed, d.Replayed = true, false
	for i := range d.Limits {
		s := &d.Limits[i]
		level := l.buckets[i].Level(now, s.Rate)
		if level.Debt -= l.tokens; level.Debt <= 0 {
			level = Level{}
		}
		s.Level, s.Denied = level, false
	}
}

// renewed takes in the answer to a call that asked for terms at sent: d, or an
// error. A call that failed may have debited all the same. What nobody will spend
// any more is to be given back.
func (c *leases) renewed(l *lease, terms *leaseTerms, d *Decision, sent int64, err error) (back giveBack) {
	now := c.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewing = false
	if err != nil && kindOf(err) != kindUnsent {
		l.lost = true
	}
	if l.tokens > 0 && now >= l.until { // for Redis too, the old lease may have ended before the call
		c.lost.Add(uint64(l.tokens))
		l.tokens = 0
	}
	c.granted.Add(uint64(terms.got))
	l.tokens += terms.got
	if l.gone {
		return l.takeLocked()
	}
	if terms.got == 0 {
		return giveBack{}
	}
	l.granted, l.since, l.until = l.tokens, now, sent+terms.ttl.Microseconds()
	for i := range l.buckets {
		l.buckets[i] = d.Limits[i].Level.Bucket(now, d.Limits[i].Rate)
	}
	return giveBack{}
}

// giveBack is tokens that were taken out of a lease, and the id they have.
type giveBack struct {
	lease  *lease
	id     int64
	tokens int64
}

// takeLocked takes all out of l, to go back.
func (l *lease) takeLocked() giveBack {
	back := giveBack{l, l.id, l.tokens}
	l.tokens = 0
	l.renameLocked()
	return back
}

// sweep takes out of the leases what is to go back: what nobody spends, and what
// is about to end. It forgets keys without demand.
func (c *leases) sweep(give func(giveBack)) {
	now := c.now()
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		for name, l := range sh.held {
			back, drop := l.take(now, c.ttl.Microseconds())
			if drop {
				delete(sh.held, name)
			}
			give(back)
		}
		sh.mu.Unlock()
	}
}

// take is what sweep does with one lease.
func (l *lease) take(now, ttl int64) (back giveBack, drop bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.renewing {
		return giveBack{}, false
	}
	if idle := now - l.used; idle > leaseForget {
		l.gone, drop = true, true
	} else if idle < ttl/4 && now < l.until-ttl/4 {
		return giveBack{}, false
	}
	if l.tokens == 0 {
		return giveBack{}, drop
	}
	return l.takeLocked(), drop
}

// forget takes all out of the leases, to go back, and forgets the keys. What is
// being renewed goes back with the answer to that.
func (c *leases) forget(give func(giveBack)) {
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		for name, l := range sh.held {
			delete(sh.held, name)
			var back giveBack
			l.mu.Lock()
			if l.gone = true; !l.renewing {
				back = l.takeLocked()
			}
			l.mu.Unlock()
			give(back)
		}
		sh.mu.Unlock()
	}
}

// tokens are those that are held now.
func (c *leases) tokens() (n int64) {
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		for _, l := range sh.held {
			l.mu.Lock()
			n += l.tokens
			l.mu.Unlock()
		}
		sh.mu.Unlock()
	}
	return n
}
