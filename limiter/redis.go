package limiter

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/lua"
)

// RedisStore keeps buckets in Redis 7.0 or later: all gateways on the same
// Redis share them. Decisions are made by lua/decide.lua, those that come at
// the same time in one call (see lane), and each is sent once. When Redis does
// not know the script (it restarted, or a replica took over) the same call
// sends its text once. Nothing else is ever sent again but what Redis refused
// before it ran anything.
//
// A decision whose answer is lost may have spent: an error never means that
// nothing was charged, only that not more than once.
//
// Three kinds of decisions are made without a call, and are exact all the same:
// those of a bucket that refused a moment ago (see denialCache), those that a lease
// pays for (see leases), and none at all while Redis is failing (see breaker).
type RedisStore struct {
	client  redis.UniversalClient
	cluster *redis.ClusterClient // client, if it is one; else nil
	byName  []any                // begin a call: evalsha and the script's SHA-1,
	byText  []any                // or eval and the script
	timeout time.Duration
	prefix  string // of every key, without the colon
	lanes   lanes
	looked  atomic.Int64 // when the cluster's nodes were last asked for, in ns since 1970
	order   slotOrder
	denials *denialCache
	leases  *leases
	// returning holds a token for each lease that is being given back.
	returning chan struct{}
	active    *activeKeys
	fleet     *redisFleet
	metrics   *redisMetrics

	condition *redisCondition

	log        atomic.Pointer[zerolog.Logger] // nil until Run
	background background
	ended      context.Context // done when the store is closed
	end        context.CancelFunc
}

// connections is how many connections to one Redis decisions may take: one for
// each flight, and some for what asks alone. go-redis also counts failed dials by it: after
// so many it dials only once a second.
const connections = 64

// NewRedisStore returns a store on the Redis that c names. It does not dial:
// a Redis that is down is found by the first decision.
func NewRedisStore(c RedisConfig) (*RedisStore, error) {
	return newRedisStore(c, lua.Decide)
}

// newRedisStore takes the script's text, so that a test can give it a clock.
func newRedisStore(c RedisConfig, script string) (*RedisStore, error) {
	quiet()
	client, err := c.client(c.timeout(), connections)
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	active := newActiveKeys()
	fleet, err := newRedisFleet(c, active)
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	s := &RedisStore{
		client:  client,
		byName:  []any{"evalsha", redis.NewScript(script).Hash()},
		byText:  []any{"eval", script},
		timeout: c.timeout(),
		prefix:  c.keyPrefix(),
		denials: newDenialCache(c.timeout()),
		leases:  newLeases(c.Leases.orDefault()),
		active:  active,

		returning: make(chan struct{}, returnsAtOnce),
		fleet:     fleet,
	}
	s.cluster, _ = client.(*redis.ClusterClient)
	s.order.seed = maphash.MakeSeed()
	s.lanes.init(s)
	s.metrics = newRedisMetrics(s)
	s.condition = newRedisCondition(fleet.client, s.metrics.set)
	s.ended, s.end = context.WithCancel(context.Background())
	return s, nil
}

// quiet stops go-redis from writing to standard error: it has one logger for
// the process, and repeats there what it returns.
var quiet = sync.OnceFunc(func() { redis.SetLogger(silence{}) })

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// Decide is Store's. It returns within RedisConfig.Timeout, or earlier if ctx
// ends. Errors are go-redis's, wrapped, or ErrKeyReused.
func (s *RedisStore) Decide(ctx context.Context, sp *Spend, d *Decision) error {
	l, terms, done := s.spendLease(sp, d)
	if done {
		s.metrics.byLease.Inc()
		return nil
	}
	if s.denials.answer(sp, d) {
		if l != nil {
			l.leave()
		}
		s.metrics.byDenial.Inc()
		return nil
	}
	return s.decide(ctx, sp, d, l, &terms)
}

// decide asks Redis, for a lease too if l is one. It reads the clock twice, for
// that is not free.
func (s *RedisStore) decide(ctx context.Context, sp *Spend, d *Decision, l *lease, terms *leaseTerms) error {
	epoch, start := s.denials.epoch.Load(), time.Now()
	t := takeTicket(sp, d, start.Add(s.timeout))
	defer t.release()
	switch {
	case l != nil:
		t.flags, t.lease = flagLease, *terms
	case sp.Owed:
		t.flags = flagOwed
	}
	err := s.ask(ctx, t)
	end := time.Now()
	if err == nil || kindOf(err) != kindUnsent { // those would show a dead Redis as a quick one
		s.metrics.latency.Update(end.Sub(start).Seconds())
	}
	if l != nil {
		s.giveBackLater(s.leases.renewed(l, &t.lease, d, s.leases.at(start), err))
	}
	if err != nil {
		return s.trouble(err)
	}
	s.metrics.byCall.Inc()
	s.denials.note(sp, d, asked{epoch, s.denials.at(start), s.denials.at(end), s.belief(sp)})
	s.noteActive(sp, d, end)
	return nil
}

// belief is how long a denial of sp may be believed, in microseconds. What a
// decision in two slots has spent may be given back at any moment.
func (s *RedisStore) belief(sp *Spend) int64 {
	if s.cluster != nil && !oneSlot(sp) {
		return briefDenial
	}
	return maxDenial
}

// noteActive notes when the buckets of an answer will be full.
func (s *RedisStore) noteActive(sp *Spend, d *Decision, now time.Time) {
	for i := range d.Limits {
		s.active.set(sp.Keys[i], d.Limits[i].Level.Full(d.Limits[i].Rate), now)
	}
}

// trouble counts an error that is one of the store.
func (s *RedisStore) trouble(err error) error {
	if errors.Is(err, ErrKeyReused) {
		return err
	}
	kind := kindOf(err)
	s.metrics.errors[kind].Inc()
	s.tellOnce(kind, err)
	return explain(err)
}

// tellOnce tells of decisions that failed, each kind of error from time to time:
// few of them open no breaker, and are an operator's matter all the same.
func (s *RedisStore) tellOnce(kind errorKind, cause error) {
	log, now := s.log.Load(), time.Now().UnixNano()
	last := s.metrics.told[kind].Load()
	if log == nil || kind == kindUnsent || now-last < int64(tellAgain) || !s.metrics.told[kind].CompareAndSwap(last, now) {
		return
	}
	log.Warn().Err(cause).Stringer("kind", kind).Msg("a decision in Redis failed, and on_store_error decided; others of this kind are only counted for a minute")
}

// ask makes the decision of t in Redis: with others at the same time, or alone
// if ctx can end.
func (s *RedisStore) ask(ctx context.Context, t *ticket) error {
	if s.cluster != nil && !oneSlot(t.spend) {
		return s.askSlots(ctx, t)
	}
	lane, err := s.lanes.of(ctx, t)
	if err != nil {
		return err
	}
	if ctx.Done() == nil {
		return lane.do(t)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if err := lane.send(ctx, &flight{tickets: []*ticket{t}}); err != nil {
		return err
	}
	return t.err
}

// send sends a flight to the one Redis there is. The error is that of all its
// tickets, which have it too.
func (s *RedisStore) send(ctx context.Context, f *flight) error {
	f.calls = extend(f.calls, 1)
	c := &f.calls[0]
	for _, t := range f.tickets {
		c.add(t)
	}
	c.build(s.byName)
	err := s.client.Process(ctx, c)
	if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		s.metrics.noScript.Inc()
		c.build(s.byText)
		err = s.client.Process(ctx, c)
	}
	if err != nil {
		c.fail(err)
		return err
	}
	c.read()
	return nil
}

// extend makes calls n long, in the memory that it has.
func extend(calls []call, n int) []call {
	for cap(calls) < n {
		calls = append(calls[:cap(calls)], call{})
	}
	return calls[:n]
}

// Forget is Store's.
func (s *RedisStore) Forget() {
	s.denials.forget()
	s.leases.forget(s.giveBackLater)
}

// Run is Store's.
func (s *RedisStore) Run(ctx context.Context, log zerolog.Logger) {
	s.log.Store(&log)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { s.condition.watch(ctx, log) })
	sweep := time.NewTicker(leaseSweep)
	defer sweep.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			s.leases.sweep(s.giveBackLater)
			if turn%10 == 0 {
				s.denials.purge()
			}
		}
	}
}

// Reset is Store's: no key is a full bucket. The keys are one user's, thus in
// one slot of a cluster.
func (s *RedisStore) Reset(ctx context.Context, keys [][]byte) error {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = string(key)
		s.active.set(key, 0, time.Now())
	}
	if len(names) == 0 {
		return nil
	}
	if err := s.fleet.client.Unlink(ctx, names...).Err(); err != nil {
		return explain(err)
	}
	s.Forget()
	return nil
}

// Fleet is Store's.
func (s *RedisStore) Fleet() Fleet { return s.fleet }

// Probe is Store's: the real script spends a token that is back after a
// microsecond. So it finds also a Redis that answers but can't write: a
// replica, or one that is out of memory or disk. Of a cluster one primary that works
// is enough: users of the others must not cost all users the gateway.
func (s *RedisStore) Probe(ctx context.Context) error {
	err := s.probe(ctx, s.probeKey(0))
	for i := 1; err != nil && s.cluster != nil && i < 8 && ctx.Err() == nil; i++ {
		err = s.probe(ctx, s.probeKey(i))
	}
	return err
}

// probeKey is the key of a bucket for probes; i are keys in different slots.
func (s *RedisStore) probeKey(i int) []byte {
	if i == 0 {
		return []byte(s.prefix + ":{!probe}")
	}
	return fmt.Appendf(nil, "%s:{!probe%d}", s.prefix, i)
}

func (s *RedisStore) probe(ctx context.Context, key []byte) error {
	limit := Limit{Name: "probe", Capacity: MaxCapacity, Rate: Rate{n: 1, p: 1, text: "1000000/s"}}
	d := Decision{Limits: []LimitState{{Limit: &limit}}}
	sp := Spend{Cost: 1, Keys: [][]byte{key}}
	t := takeTicket(&sp, &d, time.Now().Add(s.timeout))
	defer t.release()
	ctx, cancel := context.WithCancel(ctx) // so that it is asked alone
	defer cancel()
	if err := s.ask(ctx, t); err != nil {
		return explain(err) // it is no decision, and does not count as one
	}
	if !d.Allowed {
		return fmt.Errorf("decide in redis: the bucket %s is empty", key)
	}
	return nil
}

// ActiveKeys is Store's. It knows the buckets that this process decided about,
// up to a million of them.
func (s *RedisStore) ActiveKeys() int { return s.active.count() }

// Degraded is Store's.
func (s *RedisStore) Degraded() error { return s.lanes.degraded() }

// WriteMetrics is Store's.
func (s *RedisStore) WriteMetrics(w io.Writer) {
	s.metrics.set.WritePrometheus(w)
	for event, n := range map[string]uint64{
		"granted": s.leases.granted.Load(), "returned": s.leases.returned.Load(), "lost": s.leases.lost.Load(),
	} {
		metrics.WriteCounterUint64(w, `r8limiter_lease_tokens_total{event="`+event+`"}`, n)
	}
}

// Close gives the leases back and closes the connections. Decisions under way
// fail.
func (s *RedisStore) Close() error {
	s.leases.closed.Store(true)
	s.leases.forget(s.giveBackLater)
	s.end()
	s.background.end()
	if err := errors.Join(s.client.Close(), s.fleet.close()); err != nil {
		return fmt.Errorf("close redis: %w", err)
	}
	return nil
}
