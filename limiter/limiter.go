package limiter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Limiter decides by the limits of a Config on the buckets of a Store. It is
// safe for concurrent use.
type Limiter struct {
	store     Store
	prefix    string // of every key
	ttl       time.Duration
	headers   HeaderSet
	byDefault *rules

	// known are the resources configured and seen. The map is never changed,
	// only replaced by a longer one, under discovery.
	known     atomic.Pointer[map[string]*resource]
	discovery sync.Mutex
	maxKnown  int

	works     sync.Pool // of *work
	allowed   paddedCounter
	denied    paddedCounter
	decisions outcomeSet
}

// HeaderSet says which fields the answers carry.
type HeaderSet struct{ Draft, Legacy bool }

// paddedCounter has a cache line of its own.
type paddedCounter struct {
	atomic.Uint64
	_ [56]byte
}

// work is what one decision needs for a moment.
type work struct {
	spend   Spend
	buf     []byte // the keys' bytes
	part    []byte
	unknown resource
}

// New makes a Limiter of a Config that Validate finds no problem in. It owns
// the store from here on.
func New(c Config, store Store) *Limiter {
	l := &Limiter{
		store:     store,
		prefix:    "r8",
		ttl:       c.IdempotencyTTL,
		byDefault: newRules(&c.Default, ""),
		maxKnown:  maxSeen + len(c.Resources),
		headers: HeaderSet{
			Draft:  slices.Contains(c.Headers, "draft"),
			Legacy: slices.Contains(c.Headers, "legacy"),
		},
	}
	if c.Redis != nil && c.Redis.KeyPrefix != "" {
		l.prefix = c.Redis.KeyPrefix
	}
	known := configured(&c)
	l.known.Store(&known)
	l.works.New = func() any { return new(work) }
	l.decisions.init()
	return l
}

// Decide spends req.Cost from all limits of the resource or from none, and
// fills d. A denial is no error. It returns ErrKeyReused, or what is wrong with
// the store; then d is void.
func (l *Limiter) Decide(req *Request, d *Decision) error {
	if err := l.decide(context.Background(), req, d); err != nil {
		return err
	}
	if d.Allowed {
		l.allowed.Add(1)
	} else {
		l.denied.Add(1)
	}
	return nil
}

// decide is Decide without counting.
func (l *Limiter) decide(ctx context.Context, req *Request, d *Decision) error {
	w := l.works.Get().(*work)
	defer l.works.Put(w)
	res := l.find(w, req.Resource)
	d.prepare(req.Resource, res.rules)
	l.fillKeys(w, res, req)
	w.spend.Cost, w.spend.IdempotencyTTL = req.Cost, l.ttl
	d.Never = req.Cost > res.rules.smallest
	if d.Never { // nothing can be spent, the levels are still of interest
		w.spend.Cost, w.spend.IdempotencyKey = 0, nil
	}
	if err := l.store.Decide(ctx, &w.spend, d); err != nil {
		return describe(err)
	}
	d.finish(req.Cost)
	return nil
}

func describe(err error) error {
	if errors.Is(err, ErrKeyReused) {
		return ErrKeyReused
	}
	return fmt.Errorf("decide: %w", err)
}

// prepare makes d the question to the store.
func (d *Decision) prepare(name []byte, r *rules) {
	d.Allowed, d.Replayed, d.Never = false, false, false
	d.resource = append(d.resource[:0], name...)
	d.Limits = d.Limits[:0]
	for i := range r.limits {
		d.Limits = append(d.Limits, LimitState{Limit: &r.limits[i]})
	}
}

// finish adds to the store's answer what follows from it.
func (d *Decision) finish(cost int64) {
	if d.Never {
		d.Allowed = false
	}
	for i := range d.Limits {
		s := &d.Limits[i]
		if d.Never {
			s.Denied = cost > s.Capacity
		} else if s.Denied {
			s.Wait = s.Level.Wait(cost, s.Capacity, s.Rate)
		}
	}
	d.bind()
}

// User returns the present state of a user's buckets: one Decision of cost 0
// for each resource that is configured or was seen, by name. It spends and
// counts nothing. The error says what is wrong with the store.
func (l *Limiter) User(user []byte) ([]Decision, error) {
	known := *l.known.Load()
	states := make([]Decision, len(known))
	for i, name := range sortedKeys(known) {
		req := Request{User: user, Resource: []byte(name)}
		if err := l.decide(context.Background(), &req, &states[i]); err != nil {
			return nil, err
		}
	}
	return states, nil
}

// Capacity is the largest cost that can ever pass in a resource: the smallest
// capacity of its limits, shadows left out.
func (l *Limiter) Capacity(name []byte) int64 {
	if res, ok := (*l.known.Load())[string(name)]; ok {
		return res.rules.smallest
	}
	return l.byDefault.smallest
}

// Probe makes a real decision in the store: nil if it works.
func (l *Limiter) Probe(ctx context.Context) error { return l.store.Probe(ctx) }

// ActiveKeys is the number of buckets that are not full, as far as this
// process knows.
func (l *Limiter) ActiveKeys() int { return l.store.ActiveKeys() }

// Close closes the store. Decisions after it fail.
func (l *Limiter) Close() error { return l.store.Close() }

// Totals are the decisions since the start. Errors are neither.
func (l *Limiter) Totals() (allowed, denied uint64) {
	return l.allowed.Load(), l.denied.Load()
}

// Headers says which fields the answers carry.
func (l *Limiter) Headers() HeaderSet { return l.headers }

// WriteMetrics writes the series of decisions and of the store in Prometheus
// text format.
func (l *Limiter) WriteMetrics(w io.Writer) {
	allowed, denied := l.Totals()
	metrics.WriteCounterUint64(w, `requests_total{result="allow"}`, allowed)
	metrics.WriteCounterUint64(w, `requests_total{result="deny"}`, denied)
	metrics.WriteGaugeUint64(w, "active_keys", uint64(l.ActiveKeys()))
	l.decisions.series.WritePrometheus(w)
	l.store.WriteMetrics(w)
}
