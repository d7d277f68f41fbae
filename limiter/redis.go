package limiter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/r8limiter/r8limiter/lua"
)

// RedisStore keeps buckets in Redis 7.0 or later: all gateways on the same
// Redis share them. A decision is one EVALSHA of lua/decide.lua, sent once.
// When Redis does not know the script (it restarted, or a replica took over)
// the same decision sends its text once. Nothing else is ever sent again.
//
// A decision whose answer is lost may have spent: an error never means that
// nothing was charged, only that not more than once.
type RedisStore struct {
	client  redis.UniversalClient
	script  string // text of the script
	sha     string // SHA-1 of it, in hex
	timeout time.Duration
	probe   []byte // key of the bucket that Probe spends from
	calls   callPool
	shared  atomic.Pointer[sharedDeadline]
	active  *activeKeys
	fleet   *redisFleet
	metrics *redisMetrics
}

// NewRedisStore returns a store on the Redis that c names. It does not dial:
// a Redis that is down is found by the first decision.
func NewRedisStore(c RedisConfig) (*RedisStore, error) {
	return newRedisStore(c, lua.Decide)
}

// newRedisStore takes the script's text, so that a test can give it a clock.
func newRedisStore(c RedisConfig, script string) (*RedisStore, error) {
	client, err := c.client(c.timeout(), 10*runtime.GOMAXPROCS(0))
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	quiet()
	active := newActiveKeys()
	fleet, err := newRedisFleet(c, active)
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	return &RedisStore{
		client:  client,
		script:  script,
		sha:     redis.NewScript(script).Hash(),
		timeout: c.timeout(),
		probe:   []byte(c.keyPrefix() + ":{probe}"),
		active:  active,
		fleet:   fleet,
		metrics: newRedisMetrics(client),
	}, nil
}

// quiet stops go-redis from writing to standard error: it has one logger for
// the process, and repeats there what it returns.
var quiet = sync.OnceFunc(func() { redis.SetLogger(silence{}) })

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// Decide is Store's. It returns within RedisConfig.Timeout, or earlier if ctx
// ends. Errors are go-redis's, wrapped, or ErrKeyReused.
func (s *RedisStore) Decide(ctx context.Context, sp *Spend, d *Decision) error {
	if err := s.decide(ctx, sp, d); err != nil {
		return err
	}
	for i := range d.Limits {
		l := &d.Limits[i]
		s.active.set(sp.Keys[i], l.Level.Full(l.Rate))
	}
	return nil
}

func (s *RedisStore) decide(ctx context.Context, sp *Spend, d *Decision) error {
	start := time.Now()
	ctx, cancel := s.within(ctx, start)
	defer cancel()
	c := s.calls.take(s.sha, sp, d.Limits)
	answer, err := s.run(ctx, c)
	s.metrics.latency.UpdateDuration(start)
	if err == nil {
		s.calls.release(c)
		err = readAnswer(answer, d)
	}
	if err != nil && !errors.Is(err, ErrKeyReused) {
		s.metrics.countError(err)
		return explain(err)
	}
	return err
}

// run sends c, by the script's text if Redis does not know the script.
func (s *RedisStore) run(ctx context.Context, c *call) (string, error) {
	err := s.client.Process(ctx, c)
	if err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		s.metrics.noScript.Inc()
		c = c.withText(s.script)
		err = s.client.Process(ctx, c)
	}
	return c.Val(), err
}

// sharedDeadline is the context of all decisions that start within a moment:
// with thousands a second, one each would cost more than the rest of the call.
type sharedDeadline struct {
	ctx    context.Context
	cancel context.CancelFunc
	until  time.Time // decisions that start later take a new one
}

// within is ctx with the time-out of one decision. The deadlines of decisions
// that can't be cancelled are shared, and so up to 1/50 of the time-out early;
// they free themselves when they pass.
func (s *RedisStore) within(ctx context.Context, now time.Time) (context.Context, context.CancelFunc) {
	if ctx.Done() != nil {
		return context.WithTimeout(ctx, s.timeout)
	}
	if d := s.shared.Load(); d != nil && now.Before(d.until) {
		return d.ctx, noCancel
	}
	slack := min(s.timeout/50, time.Millisecond)
	d := &sharedDeadline{until: now.Add(slack)}
	d.ctx, d.cancel = context.WithDeadline(context.Background(), now.Add(s.timeout))
	s.shared.Store(d)
	return d.ctx, noCancel
}

func noCancel() {}

// Reset is Store's: no key is a full bucket. The keys are one user's, thus in
// one slot of a cluster.
func (s *RedisStore) Reset(ctx context.Context, keys [][]byte) error {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = string(key)
		s.active.set(key, 0)
	}
	if len(names) == 0 {
		return nil
	}
	if err := s.fleet.client.Unlink(ctx, names...).Err(); err != nil {
		return explain(err)
	}
	return nil
}

// Fleet is Store's.
func (s *RedisStore) Fleet() Fleet { return s.fleet }

// Probe is Store's: the real script spends a token that is back after a
// microsecond. So it finds also a Redis that answers but can't write: a
// replica, or one that is out of memory or disk.
func (s *RedisStore) Probe(ctx context.Context) error {
	limit := Limit{Name: "probe", Capacity: MaxCapacity, Rate: Rate{n: 1, p: 1, text: "1000000/s"}}
	d := Decision{Limits: []LimitState{{Limit: &limit}}}
	sp := Spend{Cost: 1, Keys: [][]byte{s.probe}}
	if err := s.decide(ctx, &sp, &d); err != nil {
		return err
	}
	if !d.Allowed {
		return fmt.Errorf("decide in redis: the bucket %s is empty", s.probe)
	}
	return nil
}

// ActiveKeys is Store's. It knows the buckets that this process decided about,
// up to a million of them.
func (s *RedisStore) ActiveKeys() int { return s.active.count() }

// WriteMetrics is Store's.
func (s *RedisStore) WriteMetrics(w io.Writer) { s.metrics.set.WritePrometheus(w) }

// Close closes the connections. Decisions under way fail.
func (s *RedisStore) Close() error {
	if d := s.shared.Load(); d != nil {
		d.cancel()
	}
	if err := errors.Join(s.client.Close(), s.fleet.close()); err != nil {
		return fmt.Errorf("close redis: %w", err)
	}
	return nil
}
