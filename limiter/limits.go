package limiter

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// Limits are what one Config says, as it runs. A Limiter goes by one of them at
// a time and swaps it for another as a whole, so that nobody sees half a
// configuration; who decides what to ask by the same configuration pins its
// Limits to the request (Request.Limits). Safe for concurrent use.
type Limits struct {
	config    Config
	headers   HeaderSet
	byDefault *rules
	// inForce are the rules. They are never changed, only replaced, under
	// Limiter.changing.
	inForce atomic.Pointer[inForce]
}

// HeaderSet says which fields the answers carry.
type HeaderSet struct{ Draft, Legacy bool }

func newLimits(c Config) *Limits {
	return &Limits{
		config:    c,
		byDefault: newRules(&c.Default, "", &c, &c.Default),
		headers: HeaderSet{
			Draft:  slices.Contains(c.Headers, "draft"),
			Legacy: slices.Contains(c.Headers, "legacy"),
		},
	}
}

// Headers says which fields the answers carry.
func (n *Limits) Headers() HeaderSet { return n.headers }

// Current are the limits in force.
func (l *Limiter) Current() *Limits { return l.limits.Load() }

// Prepare makes the limits of c, which Validate finds no problem in, with what
// operators changed and with the counters of resources that are known. It has no
// effect: decisions can be asked of them, but only Commit puts them in force. Of
// c, Redis is not looked at; it stays what New was given.
func (l *Limiter) Prepare(c Config) *Limits {
	n := newLimits(c)
	n.inForce.Store(n.build(l.Current().inForce.Load().settingsAt, *l.known.Load(), nil))
	return n
}

// Commit puts limits that Prepare made in force. It can't fail and does not wait
// for the store.
//
// Buckets stay as they are: a new capacity or rate holds for them at once and
// refills none, since a bucket is what is missing from a full one. So over any
// interval of t seconds no more is admitted than capacity + refill_rate*t, with the
// largest capacity and the fastest rate that a decision in it, or the return of a
// lease, went by. Where these rates differ it may be more by what the fastest brings
// while the slowest brings one token: half a token is kept as the time that it
// took. Leases and what is believed of buckets are given up: they are of the old
// limits.
//
// Resources that the file names no more go on by its default if they were asked
// for. Those that find no room are counted together, as any beyond maxSeen.
func (l *Limiter) Commit(n *Limits) {
	l.changing.Lock()
	// Operators may have changed something since Prepare.
	l.enforceLocked(n, l.Current().inForce.Load().settingsAt)
	l.limits.Store(n)
	l.changing.Unlock()
	l.store.Forget()
	l.decisions.keep(n.labels())
}

// settingsAt are settings as they were at a moment.
type settingsAt struct {
	settings Settings
	taken    time.Time // when they were read: an override's Left counts from here
}

// enforceLocked makes the rules of n anew, by s, and lists the resources that are
// in them.
func (l *Limiter) enforceLocked(n *Limits, s settingsAt) {
	before := n.inForce.Load()
	f := n.build(s, *l.known.Load(), before)
	n.inForce.Store(f)
	l.enlistLocked(f, before)
}

// labels are all that metrics call a limit of n.
func (n *Limits) labels() map[string]bool {
	labels := map[string]bool{"": true, defaultLabel: true}
	add := func(r *rules) {
		for i := range r.limits {
			labels[r.limits[i].label()] = true
		}
	}
	add(n.byDefault)
	f := n.inForce.Load()
	for _, res := range f.resources {
		add(res.rules)
		for _, r := range res.plans {
			add(r)
		}
	}
	for _, overrides := range f.overrides {
		for i := range overrides {
			if r := overrides[i].rules; r != nil {
				add(r)
			}
		}
	}
	return labels
}

// known is what stays of a resource whatever its limits are.
type known struct {
	part   []byte // the name as it stands in keys
	counts *counts
}

func newKnown(name string) known { return known{appendPart(nil, name), new(counts)} }

// enlistLocked makes the list of resources that are known: those of f, which
// are in force, and those that were asked for, while there is room. before is
// what f replaces; nil for nothing.
func (l *Limiter) enlistLocked(f, before *inForce) {
	all := make(map[string]known, len(f.resources))
	for name, res := range f.resources {
		all[name] = res.known
	}
	room := maxSeen
	for name, k := range *l.known.Load() {
		switch _, named := all[name]; {
		case named:
		case room > 0 && len(name) <= maxSeenName && k.counts.any():
			all[name] = k
			room--
		default:
			l.leaveLocked(k.counts)
		}
	}
	if before != nil { // its resources may have become known by another way, after Prepare
		for name, res := range before.resources {
			if k, ok := all[name]; ok && k.counts != res.counts {
				l.leaveLocked(res.counts)
			}
		}
	}
	l.known.Store(&all)
	l.foldLocked()
}

// leavingTime is how long decisions may still be under way for a resource that
// is known no more, and are counted.
const leavingTime = time.Minute

// leaver are counts of a resource that is known no more.
type leaver struct {
	counts *counts
	since  time.Time
}

// leaveLocked takes the counts of a resource that is known no more: what they
// hold, and will hold by decisions under way, counts as of no resource.
func (l *Limiter) leaveLocked(c *counts) {
	l.leaving = append(l.leaving, leaver{c, time.Now()})
}

// foldLocked counts what has left as of no resource. It remembers maxSeen of
// those that left, for leavingTime.
func (l *Limiter) foldLocked() {
	over := len(l.leaving) - maxSeen // they are in the order in which they left
	for i, each := range l.leaving {
		l.unknown.take(each.counts)
		if time.Since(each.since) > leavingTime {
			over = max(over, i+1)
		}
	}
	l.leaving = slices.Delete(l.leaving, 0, max(over, 0))
}

// mayMeet says whether there is room to remember one more resource, of that name.
func (l *Limiter) mayMeet(name []byte) bool {
	return len(name) <= maxSeenName && len(*l.known.Load()) < maxSeen+len(l.Current().inForce.Load().resources)
}

// meet remembers a resource that was asked for, if there is room. The list is
// copied, which costs more with each, but there are at most maxSeen that no
// configuration names.
func (l *Limiter) meet(name string) known {
	l.changing.Lock()
	defer l.changing.Unlock()
	all := *l.known.Load()
	if k, ok := all[name]; ok {
		return k
	}
	k := newKnown(name)
	if !l.mayMeet([]byte(name)) {
		k.counts = &l.unknown
		return k
	}
	all = maps.Clone(all)
	all[name] = k
	l.known.Store(&all)
	return k
}
