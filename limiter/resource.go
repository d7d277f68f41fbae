package limiter

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// maxSeen is how many resources that no configuration names are remembered.
// Those beyond it are limited all the same.
const maxSeen = 1000

// maxSeenName is how long such a name may be, in bytes: clients choose it where a
// route's template or a caller of /allow does.
const maxSeenName = 128

// rules are the limits of a resource as they run. All resources that no
// configuration names share one.
type rules struct {
	limits   []Limit
	suffixes []string // what each adds to its key
	smallest int64    // capacity of those that decide
	local    []Limit  // this gateway's share of each, for when the store fails
	policy   Policy   // what decides then
	leased   bool     // the store may keep tokens in advance
}

// Source says where the limits of a resource come from.
type Source string

// The sources: the file, an operator's change on the running gateways, or the
// file's default for whatever it does not name.
const (
	FromConfig    Source = "config"
	FromPersisted Source = "persisted"
	FromDefault   Source = "default"
)

// resource is one that decisions ask for.
type resource struct {
	part   []byte // the name as it stands in keys
	rules  *rules
	plans  map[string]*rules // instead of rules, by the plan's name
	source Source
	counts *counts
}

// counts are the decisions about a resource since this process started.
type counts struct {
	allowed, denied atomic.Uint64
	_               [48]byte // neighbours don't share a cache line
}

// newRules builds the rules of c; name is what a single limit is called. Only
// limits from a list have a part of their own in the key.
//
// How the store is used is the file's to say: common for all resources, and base
// for this one.
func newRules(c *ResourceConfig, name string, common *Config, base *ResourceConfig) *rules {
	r := &rules{smallest: MaxCapacity, policy: common.OnStoreError, leased: base.Precision == leased}
	if base.OnStoreError != "" {
		r.policy = base.OnStoreError
	}
	for _, l := range c.limits(name) {
		suffix := ""
		// One that is named after the resource is the same in a list as alone.
		if len(c.Limits) > 0 && (l.Name != name || l.Scope != PerUser) {
			suffix = string(appendPart([]byte(":"), l.Name))
		}
		r.add(l, suffix, common.Replicas)
		r.leased = r.leased && !l.Shadow // a persisted one may be a shadow
	}
	return r
}

func (r *rules) add(l Limit, suffix string, gateways int64) {
	r.limits = append(r.limits, l)
	r.local = append(r.local, l.share(gateways))
	r.suffixes = append(r.suffixes, suffix)
	if !l.Shadow {
		r.smallest = min(r.smallest, l.Capacity)
	}
}

// inForce are the rules that decisions go by: the file's, with what operators
// changed in place of it. It is never changed, only replaced as a whole.
type inForce struct {
	version   int64 // of the settings
	resources map[string]*resource
	overrides map[string][]override // by user
	settings  Settings              // what it was made from
	taken     time.Time             // when they were read: an override's Left counts from here
}

// verdict is what an override says whatever the buckets hold.
type verdict uint8

const (
	askBuckets verdict = iota
	exempt
	block
)

// override is an Override as it runs.
type override struct {
	resource string // "" for all
	verdict  verdict
	rules    *rules    // instead of the resource's, where verdict is askBuckets
	until    time.Time // zero for good
}

// build makes the rules of c and s. Counters of resources that old has go on,
// and so do the resources that nobody configured but were asked for.
func build(c *Config, byDefault *rules, s Settings, old *inForce) *inForce {
	f := &inForce{version: s.Version, settings: s, taken: time.Now(), resources: map[string]*resource{}}
	for name, res := range old.resources {
		if res.counts.allowed.Load()+res.counts.denied.Load() > 0 { // only persisted once, it is forgotten
			f.add(name, byDefault, FromDefault, old)
		}
	}
	for name, rc := range c.Resources {
		f.add(name, newRules(&rc, name, c, &rc), FromConfig, old)
	}
	for name, rc := range s.Resources {
		f.add(name, newRules(&rc, name, c, c.resource(name)), FromPersisted, old)
	}
	for plan, resources := range c.Plans {
		for name, rc := range resources {
			if f.resources[name] == nil {
				f.add(name, byDefault, FromDefault, old)
			}
			f.resources[name].addPlan(plan, newRules(&rc, name, c, c.resource(name).under(&rc)))
		}
	}
	if len(s.Overrides) > 0 {
		f.overrides = map[string][]override{}
	}
	for i := range s.Overrides {
		o := &s.Overrides[i]
		base := byDefault
		if res, ok := f.resources[o.Resource]; ok {
			base = res.rules
		}
		f.overrides[o.User] = append(f.overrides[o.User], o.running(f.taken, c, base))
	}
	return f
}

// named are the resources that c names, in whatever place.
func (c *Config) named() map[string]bool {
	names := map[string]bool{}
	for name := range c.Resources {
		names[name] = true
	}
	for _, resources := range c.Plans {
		for name := range resources {
			names[name] = true
		}
	}
	return names
}

// resource is what the file says of a resource.
func (c *Config) resource(name string) *ResourceConfig {
	if rc, ok := c.Resources[name]; ok {
		return &rc
	}
	return &c.Default
}

// under is what c, the file's word on a resource, says of the store for those of a
// plan, which may say otherwise.
func (c *ResourceConfig) under(plan *ResourceConfig) *ResourceConfig {
	return &ResourceConfig{
		Precision:    cmp.Or(plan.Precision, c.Precision),
		OnStoreError: cmp.Or(plan.OnStoreError, c.OnStoreError),
	}
}

func (r *resource) addPlan(plan string, limits *rules) {
	if r.plans == nil {
		r.plans = map[string]*rules{}
	}
	r.plans[plan] = limits
}

func (f *inForce) add(name string, r *rules, source Source, old *inForce) {
	res := &resource{part: appendPart(nil, name), rules: r, source: source}
	if before, ok := old.resources[name]; ok {
		res.counts = before.counts
	} else {
		res.counts = new(counts)
	}
	f.resources[name] = res
}

// running is o as it runs. Its limit stands for those that are the user's own; what
// users share and what is only a shadow stays.
func (o *Override) running(now time.Time, common *Config, base *rules) override {
	r := override{resource: o.Resource}
	switch {
	case o.Exempt:
		r.verdict = exempt
	case o.Block:
		r.verdict = block
	default:
		c := o.config()
		r.rules = newRules(&c, o.Resource, common, common.resource(o.Resource))
		for i, l := range base.limits {
			if l.Scope == PerResource || l.Shadow {
				r.rules.add(l, base.suffixes[i], common.Replicas)
				r.rules.leased = r.rules.leased && !l.Shadow
			}
		}
	}
	if o.Left != 0 {
		r.until = now.Add(o.Left)
	}
	return r
}

// override is the one in force for a user and a resource, or nil. One for the
// resource goes before one for all.
func (f *inForce) override(user, resource []byte) *override {
	if len(f.overrides) == 0 {
		return nil
	}
	var found *override
	all := f.overrides[string(user)]
	for i := range all {
		o := &all[i]
		if o.resource != "" && o.resource != string(resource) || o.resource == "" && found != nil {
			continue
		}
		if o.until.IsZero() || time.Now().Before(o.until) {
			found = o
		}
	}
	return found
}

// find returns the resource of that name. One that is new is remembered while
// there is room, else it is built in w. Lock-free for those that are known.
func (l *Limiter) find(f *inForce, w *work, name []byte) *resource {
	if res, ok := f.resources[string(name)]; ok {
		return res
	}
	if len(f.resources) < l.maxKnown && len(name) <= maxSeenName {
		return l.discover(string(name))
	}
	w.part = appendPart(w.part[:0], name)
	w.substitute = resource{part: w.part, rules: l.byDefault, counts: &l.unknown}
	return &w.substitute
}

// discover adds a resource to a copy of those known. A copy costs more with
// each, but there are at most maxSeen of them in the life of a process.
func (l *Limiter) discover(name string) *resource {
	l.changing.Lock()
	defer l.changing.Unlock()
	f := *l.inForce.Load()
	if res, ok := f.resources[name]; ok {
		return res
	}
	res := &resource{part: appendPart(nil, name), rules: l.byDefault, source: FromDefault, counts: new(counts)}
	if len(f.resources) < l.maxKnown {
		f.resources = maps.Clone(f.resources)
		f.resources[name] = res
		l.inForce.Store(&f)
	}
	return res
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
