package limiter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// lanes are the ways to Redis: one, or in a cluster one for each primary, which
// fails on its own.
type lanes struct {
	store  *RedisStore
	single *lane
	// unknown is for decisions whose primary can't be found out. It never sends.
	unknown *lane
	nodes   sync.Map // of *lane by address
}

func (ls *lanes) init(s *RedisStore) {
	ls.store = s
	ls.single = ls.lane("", s.send)
	ls.unknown = ls.lane("cluster", nil)
}

func (ls *lanes) lane(name string, send func(context.Context, *flight) error) *lane {
	return &lane{name: name, send: send, deadlines: newDeadlines(ls.store.timeout), failed: ls.failed}
}

// of is the lane to the Redis that has t's keys.
func (ls *lanes) of(ctx context.Context, t *ticket) (*lane, error) {
	if ls.store.cluster == nil {
		return ls.single, nil
	}
	if ctx.Done() == nil && ls.unknown.open.Load() {
		return nil, errBreakerOpen
	}
	limited, cancel := context.WithDeadline(ctx, t.deadline)
	defer cancel()
	node, err := ls.store.cluster.MasterForKey(limited, string(t.spend.firstKey()))
	if err != nil {
		ls.unknown.land1(t, err)
		return nil, err
	}
	t.node = node
	address := node.Options().Addr
	if l, ok := ls.nodes.Load(address); ok {
		return l.(*lane), nil
	}
	l, _ := ls.nodes.LoadOrStore(address, ls.lane(address, ls.store.sendNode))
	return l.(*lane), nil
}

// land1 notes the failure of one decision that no flight took.
func (l *lane) land1(t *ticket, err error) {
	l.mu.Lock()
	opened := l.breaker.note(err)
	if opened {
		l.open.Store(true)
	}
	l.mu.Unlock()
	if opened {
		l.failed(l, t.spend.firstKey(), err)
	}
}

// all calls f with every lane.
func (ls *lanes) all(f func(l *lane)) {
	f(ls.single)
	f(ls.unknown)
	ls.nodes.Range(func(_, l any) bool {
		f(l.(*lane))
		return true
	})
}

// failing is how many breakers are open.
func (ls *lanes) failing() (n int) {
	ls.all(func(l *lane) {
		if l.open.Load() {
			n++
		}
	})
	return n
}

// degraded says which Redis fails; nil if none.
func (ls *lanes) degraded() (err error) {
	ls.all(func(l *lane) {
		if l.open.Load() {
			err = errors.Join(err, fmt.Errorf("redis %s: %w", l.name, errBreakerOpen))
		}
	})
	return err
}

// Bounds of the pause between two probes of a Redis that fails, which doubles.
const (
	firstProbe = 100 * time.Millisecond
	lastProbe  = 500 * time.Millisecond
)

// failed probes in the background until the Redis of l works again. The key is
// one whose decision failed: in a cluster, probes go to its slot.
func (ls *lanes) failed(l *lane, key []byte, cause error) {
	s := ls.store
	s.metrics.opened.Inc()
	s.warn(l, cause)
	probe := s.probeKey(0)
	if s.cluster != nil {
		probe = append(append([]byte(nil), hashTag(key)...), "!probe"...)
		s.lookAround(s.ended)
	}
	since := time.Now()
	s.background.Go(func() {
		for pause := firstProbe; ; pause = min(2*pause, lastProbe) {
			jitter := time.Duration(rand.Int64N(int64(pause)/5*2)) - pause/5
			select {
			case <-s.ended.Done():
				return
			case <-time.After(pause + jitter):
			}
			if s.cluster != nil {
				s.lookAround(s.ended)
			}
			if err := s.probe(s.ended, probe); err == nil {
				break
			}
		}
		l.reopen()
		s.tellRecovered(l, time.Since(since))
	})
}

// lookPause is the least time between two looks at a cluster's nodes.
const lookPause = 200 * time.Millisecond

// lookAround has the cluster asked for its nodes, in the background: unless that
// was done a moment ago, which is the pause that go-redis itself makes after a
// look that succeeded. While nobody answers, each look dials all of them.
func (s *RedisStore) lookAround(ctx context.Context) {
	now, last := time.Now().UnixNano(), s.looked.Load()
	if now-last >= int64(lookPause) && s.looked.CompareAndSwap(last, now) {
		s.cluster.ReloadState(ctx)
	}
}

// warn tells the operator that decisions go by on_store_error from now on.
func (s *RedisStore) warn(l *lane, cause error) {
	if log := s.log.Load(); log != nil {
		log.Warn().Err(cause).Str("redis", l.name).Msg("Redis fails: until it works again, on_store_error decides. Check the server and limiter.redis")
	}
}

func (s *RedisStore) tellRecovered(l *lane, after time.Duration) {
	if log := s.log.Load(); log != nil {
		log.Info().Str("redis", l.name).Dur("after_ms", after).Msg("Redis works again")
	}
}

// hashTag is the part of a key up to the end of its hash tag, which every key of
// ours has.
func hashTag(key []byte) []byte {
	for i, c := range key {
		if c == '}' {
			return key[:i+1]
		}
	}
	return key
}

// firstKey is a key that the call of sp is routed by.
func (sp *Spend) firstKey() []byte {
	if len(sp.Keys) == 0 {
		return sp.IdempotencyKey
	}
	return sp.Keys[0]
}

// oneSlot says whether all keys have the same hash tag.
func oneSlot(sp *Spend) bool {
	tag := hashTag(sp.firstKey())
	for _, key := range sp.Keys {
		if string(hashTag(key)) != string(tag) {
			return false
		}
	}
	return len(sp.IdempotencyKey) == 0 || string(hashTag(sp.IdempotencyKey)) == string(tag)
}
