package limiter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// Limiter decides by the limits of a Config on the buckets of a Store. It is
// safe for concurrent use.
type Limiter struct {
	store  Store
	fleet  Fleet
	prefix string // of every key

	limits atomic.Pointer[Limits] // in force
	// known are the resources of limits, and those that were asked for besides:
	// maxSeen at most. The map is never changed, only replaced.
	known atomic.Pointer[map[string]known]
	// changing guards the replacement of limits, of known and of the rules in force,
	// and leaving.
	changing sync.Mutex
	leaving  []leaver // counts of resources that are known no more

	works    sync.Pool    // of *work
	unknown  counts       // of resources that are not known
	local    *MemoryStore // stands in for a store that fails
	owed     debts        // what was spent there
	troubled atomic.Int64 // when the store failed last, in nanoseconds of Unix time
	// Only settle, which one goroutine calls, uses these.
	settlements int64    // numbers the debits of what is owed
	unsettled   []*debit // those that failed
	offenders   *offenders
	decisions   outcomeSet
	sync        fleetSync
}

// work is what one decision needs for a moment. It is pooled, as what is given
// to a Store escapes to the heap.
type work struct {
	spend Spend
	buf   []byte // the keys' bytes
	part  []byte
	// substitute is a resource that is not remembered, or has an override's rules.
	substitute resource
}

// New makes a Limiter of a Config that Validate finds no problem in. It owns
// the store from here on. Without a store it only knows the rules.
func New(c Config, store Store) *Limiter {
	l := &Limiter{
		store:     store,
		prefix:    defaultKeyPrefix,
		offenders: newOffenders(),
	}
	if c.Redis != nil && c.Redis.KeyPrefix != "" {
		l.prefix = c.Redis.KeyPrefix
	}
	if store != nil {
		l.fleet = store.Fleet()
	}
	l.known.Store(&map[string]known{})
	n := newLimits(c)
	l.limits.Store(n)
	l.changing.Lock()
	l.enforceLocked(n, settingsAt{taken: time.Now()})
	l.changing.Unlock()
	l.works.New = func() any { return new(work) }
	l.decisions.init()
	l.local = NewMemoryStore()
	l.owed.init()
	l.sync.init()
	return l
}

// Decide spends req.Cost from all limits of the resource or from none, and
// fills d. A denial is no error. Where the store fails the resource's policy
// decides. It returns ErrKeyReused, or what is wrong with
// the store; then d is void, and none of the figures counts it.
//
// It takes no context: the store has a deadline of its own, and a client that
// goes away must not leave a decision half made.
func (l *Limiter) Decide(req *Request, d *Decision) error {
	w := l.works.Get().(*work)
	defer l.works.Put(w)
	res, o := l.rule(w, req)
	if res.counts == &l.unknown && l.mayMeet(req.Resource) {
		res.known = l.meet(string(req.Resource)) // res is w's own
	}
	if o != nil && o.verdict != askBuckets {
		d.prepare(req.Resource, res.rules)
		d.override(o.verdict, res.rules.smallest)
	} else if err := l.spend(w, res, req, d); err != nil {
		return err
	}
	d.waive(req)
	if d.Allowed {
		res.counts.allowed.Add(1)
		return nil
	}
	res.counts.denied.Add(1)
	l.offenders.add(req.User)
	return nil
}

// rule finds the resource that req asks for, with the rules that hold for its
// user and plan, and the user's override if there is one, which goes before the
// plan.
func (l *Limiter) rule(w *work, req *Request) (*resource, *override) {
	n := req.Limits
	if n == nil {
		n = l.Current()
	}
	f := n.inForce.Load()
	res := l.find(f, w, req.Resource)
	rules := res.of(req.Plan)
	o := f.override(req.User, req.Resource)
	if o != nil && o.verdict == askBuckets {
		rules = o.of(req.Plan)
	}
	if rules != res.rules {
		w.substitute = resource{known: res.known, rules: rules}
		res = &w.substitute
	}
	return res, o
}

// of are the rules for a plan.
func (r *resource) of(plan []byte) *rules {
	if len(plan) > 0 {
		if rules, ok := r.plans[string(plan)]; ok {
			return rules
		}
	}
	return r.rules
}

// spend decides by the buckets.
func (l *Limiter) spend(w *work, res *resource, req *Request, d *Decision) error {
	d.prepare(req.Resource, res.rules)
	l.fillKeys(w, res, req)
	w.spend.Cost, w.spend.IdempotencyTTL = req.Cost, res.rules.idempotencyTTL
	d.Never = req.Cost > res.rules.smallest
	if d.Never || req.Cost == 0 { // nothing is remembered where nothing is spent
		w.spend.IdempotencyKey = nil
	}
	w.spend.Leased = res.rules.leased && !d.Never
	switch err := l.store.Decide(context.Background(), &w.spend, d); {
	case errors.Is(err, ErrKeyReused):
		return ErrKeyReused
	case err != nil:
		return l.standIn(w, res, req, d, describe(err))
	}
	d.finish(req.Cost)
	return nil
}

// look reads the buckets. Nothing stands in for a store that fails.
func (l *Limiter) look(ctx context.Context, w *work, res *resource, req *Request, d *Decision) error {
	d.prepare(req.Resource, res.rules)
	l.fillKeys(w, res, req)
	w.spend.Cost, w.spend.IdempotencyKey, w.spend.Leased = 0, nil, false
	if err := l.store.Decide(ctx, &w.spend, d); err != nil {
		return describe(err)
	}
	d.finish(0)
	return nil
}

func describe(err error) error {
	if errors.Is(err, ErrKeyReused) {
		return ErrKeyReused
	}
	return fmt.Errorf("decide: %w", err)
}

// prepare makes d the question to the store, in the memory that d has. The
// resource's name is copied, as the request's bytes may not be kept.
func (d *Decision) prepare(name []byte, r *rules) {
	d.Allowed, d.Waived, d.Replayed, d.Never, d.Override, d.StandIn, d.StoreError = false, false, false, false, NoOverride, NoStandIn, nil
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

// waive allows what limits refused, if req is a shadow.
func (d *Decision) waive(req *Request) {
	if req.Shadow && !d.Allowed && d.Override != Blocked {
		d.Allowed, d.Waived = true, true
	}
}

// override makes d what an override says, without any bucket. capacity is what
// a user that spends nothing always has.
func (d *Decision) override(v verdict, capacity int64) {
	d.Limits, d.binding = d.Limits[:0], 0
	d.Allowed, d.Override, d.spared = v == exempt, Exempted, capacity
	if v == block {
		d.Override, d.spared = Blocked, 0
	}
}

// User returns the present state of a user's buckets: one Decision of cost 0
// for each resource that is configured or was seen, by name, with the limits of a
// plan, or without one for "". A limit that an override sets is in it, a verdict is
// not. It spends and counts nothing. The error says what is wrong with the store.
func (l *Limiter) User(ctx context.Context, user, plan []byte) ([]Decision, error) {
	names, err := l.resourceNames(ctx)
	if err != nil {
		return nil, err
	}
	states := make([]Decision, len(names))
	w := new(work)
	for i, name := range names {
		req := Request{User: user, Resource: []byte(name), Plan: plan}
		res, _ := l.rule(w, &req)
		if err := l.look(ctx, w, res, &req, &states[i]); err != nil {
			return nil, err
		}
	}
	return states, nil
}

// Explain fills d as Decide would now, but spends nothing, counts nothing and
// remembers nothing: the states of d.Limits are those before the decision, so are
// TokensLeft and the rest that follows from them, and an idempotency key is not
// looked at. Tokens that gateways hold by leases count as spent. Nothing stands in
// for a store that fails: the error says what is wrong with it.
func (l *Limiter) Explain(ctx context.Context, req *Request, d *Decision) error {
	w := new(work)
	res, o := l.rule(w, req)
	if o != nil && o.verdict != askBuckets {
		d.prepare(req.Resource, res.rules)
		d.override(o.verdict, res.rules.smallest)
		return nil
	}
	if err := l.look(ctx, w, res, req, d); err != nil {
		return err
	}
	d.Never = req.Cost > res.rules.smallest
	d.admit(req.Cost)
	d.finish(req.Cost)
	d.waive(req)
	return nil
}

// Capacity is the largest cost that can ever pass in a resource: the smallest
// capacity of its limits, shadows left out.
func (l *Limiter) Capacity(name []byte) int64 {
	n := l.Current()
	if res, ok := n.inForce.Load().resources[string(name)]; ok {
		return res.rules.smallest
	}
	return n.byDefault.smallest
}

// PlanCapacity is Capacity in the plan where it is largest, or without one.
func (l *Limiter) PlanCapacity(name []byte) int64 {
	largest := l.Capacity(name)
	if res, ok := l.Current().inForce.Load().resources[string(name)]; ok {
		for _, rules := range res.plans {
			largest = max(largest, rules.smallest)
		}
	}
	return largest
}

// Degraded says what of the store fails at the moment; nil if it works.
func (l *Limiter) Degraded() error { return l.store.Degraded() }

// StandsIn says whether anything is allowed, by default, while the store fails.
func (l *Limiter) StandsIn() bool { return l.Current().config.OnStoreError != StandInDeny }

// Probe makes a real decision in the store: nil if it works.
func (l *Limiter) Probe(ctx context.Context) error { return l.store.Probe(ctx) }

// ActiveKeys is the number of buckets that are not full, as far as this
// process knows.
func (l *Limiter) ActiveKeys() int { return l.store.ActiveKeys() }

// Close sends the last figures and closes the store. Decisions after it fail.
func (l *Limiter) Close() error {
	l.sync.end()
	return l.store.Close()
}

// Totals are the decisions of this process since its start. Errors are neither.
func (l *Limiter) Totals() (allowed, denied uint64) {
	l.changing.Lock()
	defer l.changing.Unlock()
	l.foldLocked()
	allowed, denied = l.unknown.allowed.Load(), l.unknown.denied.Load()
	for _, k := range *l.known.Load() {
		allowed += k.counts.allowed.Load()
		denied += k.counts.denied.Load()
	}
	return allowed, denied
}

// writeStandIn writes the series of what happens while the store fails.
func (l *Limiter) writeStandIn(w io.Writer) {
	degraded := uint64(0)
	if l.Degraded() != nil {
		degraded = 1
	}
	metrics.WriteGaugeUint64(w, "r8limiter_store_degraded", degraded)
	metrics.WriteGaugeUint64(w, "r8limiter_store_owed_buckets", uint64(l.owed.count.Load()))
	metrics.WriteCounterUint64(w, "r8limiter_store_owed_tokens_settled_total", l.owed.settled.Load())
	metrics.WriteCounterUint64(w, "r8limiter_store_owed_tokens_dropped_total", l.owed.dropped.Load())
}

// Headers says which fields the answers carry now.
func (l *Limiter) Headers() HeaderSet { return l.Current().headers }

// WriteMetrics writes the series of decisions and of the store in Prometheus
// text format.
func (l *Limiter) WriteMetrics(w io.Writer) {
	allowed, denied := l.Totals()
	metrics.WriteCounterUint64(w, `requests_total{result="allow"}`, allowed)
	metrics.WriteCounterUint64(w, `requests_total{result="deny"}`, denied)
	metrics.WriteGaugeUint64(w, "active_keys", uint64(l.ActiveKeys()))
	l.sync.writeMetrics(w, l)
	l.writeStandIn(w)
	l.decisions.series.WritePrometheus(w)
	l.store.WriteMetrics(w)
}
