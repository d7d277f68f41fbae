package limiter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
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
	if client, ok := s.client.(*redis.Client); ok {
		ls.single.name = nodeName(client)
	}
	ls.unknown = ls.lane("cluster", nil)
}

func (ls *lanes) lane(name string, send func(context.Context, *flight) error) *lane {
	return &lane{name: name, send: send, deadlines: newDeadlines(ls.store.timeout), spread: ls.store.timeout / 4, failed: ls.failed}
}

// of is the lane to the Redis that has t's keys.
func (ls *lanes) of(ctx context.Context, t *ticket) (*lane, error) {
	if ls.store.cluster == nil {
		return ls.single, nil
	}
	if ctx.Done() == nil && ls.unknown.open.Load() {
		return nil, ls.unknown.closed()
	}
	limited, cancel := context.WithDeadline(ctx, t.deadline)
	defer cancel()
	node, err := ls.store.cluster.MasterForKey(limited, string(t.spend.firstKey()))
	if err != nil {
		ls.unknown.note(t, err)
		return nil, err
	}
	if ls.unknown.failures.Load() {
		ls.unknown.note(t, nil)
	}
	t.node = node
	address := node.Options().Addr
	if l, ok := ls.nodes.Load(address); ok {
		return l.(*lane), nil
	}
	l, _ := ls.nodes.LoadOrStore(address, ls.lane(address, ls.store.sendNode))
	return l.(*lane), nil
}

// note notes how one decision ended that no flight took.
func (l *lane) note(t *ticket, err error) {
	l.mu.Lock()
	opened := l.breaker.note(err)
	l.failures.Store(l.breaker.history != 0)
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
			err = errors.Join(err, fmt.Errorf("redis %s: %w", l.name, l.closed()))
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
	probe := s.probeKey(0)
	if s.cluster != nil {
		probe = append(append([]byte(nil), hashTag(key)...), "!probe"...)
		s.lookAround(s.ended)
	}
	o := outage{lane: l, since: time.Now()}
	o.found(s.log.Load(), cause)
	s.background.Go(func() {
		if s.probeUntilWell(probe, &o) {
			l.reopen()
			o.over(s.log.Load())
		}
	})
}

// probeUntilWell probes until that works, or until the store is closed.
func (s *RedisStore) probeUntilWell(key []byte, o *outage) bool {
	for pause := firstProbe; ; pause = min(2*pause, lastProbe) {
		jitter := time.Duration(rand.Int64N(int64(pause)/5*2)) - pause/5
		select {
		case <-s.ended.Done():
			return false
		case <-time.After(pause + jitter):
		}
		if s.cluster != nil {
			s.lookAround(s.ended)
		}
		err := s.probe(s.ended, key)
		if err == nil {
			return true
		}
		o.found(s.log.Load(), err)
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
