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
	// idempotencyTTL is how long an allowed decision is remembered under its key.
	idempotencyTTL time.Duration
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
	known
	rules  *rules
	plans  map[string]*rules // instead of rules, by the plan's name
	source Source
}

// counts are the decisions about a resource since this process started.
type counts struct {
	allowed, denied atomic.Uint64
	// What of them the fleet was sent. Limiter.changing guards these.
	allowedSent, deniedSent uint64
	_                       [32]byte // neighbours don't share a cache line
}

// any says whether anything was counted.
func (c *counts) any() bool { return c.allowed.Load()+c.denied.Load() > 0 }

// take moves to c what from has counted. Limiter.changing is held.
func (c *counts) take(from *counts) {
	c.allowed.Add(from.allowed.Swap(0))
	c.denied.Add(from.denied.Swap(0))
	c.allowedSent += from.allowedSent
	c.deniedSent += from.deniedSent
	from.allowedSent, from.deniedSent = 0, 0
}

// appendUnsent appends what c has counted since it was sent last, if anything.
// Limiter.changing is held.
func (c *counts) appendUnsent(to []ResourceFigures, name string) []ResourceFigures {
	allowed, denied := c.allowed.Load(), c.denied.Load()
	f := ResourceFigures{Name: name, Allowed: allowed - c.allowedSent, Denied: denied - c.deniedSent}
	if f.Allowed+f.Denied == 0 {
		return to
	}
	c.allowedSent, c.deniedSent = allowed, denied
	return append(to, f)
}

// newRules builds the rules of c; name is what a single limit is called. Only
// limits from a list have a part of their own in the key.
//
// How the store is used is the file's to say: common for all resources, and base
// for this one.
func newRules(c *ResourceConfig, name string, common *Config, base *ResourceConfig) *rules {
	r := &rules{smallest: MaxCapacity, policy: common.OnStoreError, leased: base.Precision == leased, idempotencyTTL: common.IdempotencyTTL}
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

// inForce are the rules of a Limits: the file's, with what operators changed in
// place of it. It is never changed, only replaced as a whole.
type inForce struct {
	settingsAt                       // what it was made from, besides the file
	byDefault  *rules                // of what is not in resources
	resources  map[string]*resource  // that the file or an operator names
	overrides  map[string][]override // by user
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
	rules    *rules            // instead of the resource's, where verdict is askBuckets
	plans    map[string]*rules // the same for requests of a plan, by its name
	until    time.Time         // zero for good
}

// build makes the rules of n and s. Counters are those of resources that are
// known, or else those in before, which may be nil.
func (n *Limits) build(s settingsAt, all map[string]known, before *inForce) *inForce {
	f := &inForce{settingsAt: s, byDefault: n.byDefault, resources: map[string]*resource{}}
	c := &n.config
	add := func(name string, r *rules, source Source) {
		k, ok := all[name]
		if !ok && before != nil && before.resources[name] != nil {
			k, ok = before.resources[name].known, true
		}
		if !ok {
			k = newKnown(name)
		}
		f.resources[name] = &resource{known: k, rules: r, source: source}
	}
	for name, rc := range c.Resources {
		add(name, newRules(&rc, name, c, &rc), FromConfig)
	}
	for name, rc := range s.settings.Resources {
		add(name, newRules(&rc, name, c, c.resource(name)), FromPersisted)
	}
	for plan, resources := range c.Plans {
		for name, rc := range resources {
			if f.resources[name] == nil {
				add(name, n.byDefault, FromDefault)
			}
			f.resources[name].addPlan(plan, newRules(&rc, name, c, c.resource(name).under(&rc)))
		}
	}
	f.addOverrides(c)
	return f
}

func (f *inForce) addOverrides(c *Config) {
	if len(f.settings.Overrides) > 0 {
		f.overrides = map[string][]override{}
	}
	for i := range f.settings.Overrides {
		o := &f.settings.Overrides[i]
		base, ok := f.resources[o.Resource]
		if !ok {
			base = &resource{rules: f.byDefault}
		}
		f.overrides[o.User] = append(f.overrides[o.User], o.running(f.taken, c, base))
	}
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

// running is o as it runs. Its limit stands for those that are the user's own; what
// users share and what is only a shadow stays, of the resource or of the plan.
func (o *Override) running(now time.Time, common *Config, base *resource) override {
	r := override{resource: o.Resource}
	switch {
	case o.Exempt:
		r.verdict = exempt
	case o.Block:
		r.verdict = block
	default:
		r.rules, r.plans = o.rules(common, base.rules), map[string]*rules{}
		for plan, limits := range base.plans {
			r.plans[plan] = o.rules(common, limits)
		}
	}
	if o.Left != 0 {
		r.until = now.Add(o.Left)
	}
	return r
}

// rules are o's limit with those of base that it leaves in force.
func (o *Override) rules(common *Config, base *rules) *rules {
	c := o.config()
	r := newRules(&c, o.Resource, common, common.resource(o.Resource))
	for i, l := range base.limits {
		if l.Scope == PerResource || l.Shadow {
			r.add(l, base.suffixes[i], common.Replicas)
			r.leased = r.leased && !l.Shadow
		}
	}
	return r
}

// of are the rules for a plan.
func (o *override) of(plan []byte) *rules {
	if limits, ok := o.plans[string(plan)]; ok {
		return limits
	}
	return o.rules
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

// find returns the resource of that name by the rules f. One that they do not name
// is built in w; its counts are l.unknown if it is not known. Lock-free.
func (l *Limiter) find(f *inForce, w *work, name []byte) *resource {
	if res, ok := f.resources[string(name)]; ok {
		return res
	}
	k, ok := (*l.known.Load())[string(name)]
	if !ok {
		w.part = appendPart(w.part[:0], name)
		k = known{w.part, &l.unknown}
	}
	w.substitute = resource{known: k, rules: f.byDefault, source: FromDefault}
	return &w.substitute
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
