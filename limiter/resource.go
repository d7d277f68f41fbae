package limiter

import (
	"maps"
	"slices"
)

// maxSeen is how many resources that no configuration names are remembered.
// Those beyond it are limited all the same.
const maxSeen = 1000

// rules are the limits of a resource as they run.
type rules struct {
	limits   []Limit
	suffixes []string // what each adds to its key
	smallest int64    // capacity of those that decide
}

// resource is a resource by name.
type resource struct {
	name  string
	part  []byte // the name as it stands in keys
	rules *rules
}

// newRules builds the rules of c; name is what a single limit is called.
func newRules(c *ResourceConfig, name string) *rules {
	r := &rules{limits: c.limits(name), smallest: MaxCapacity}
	for i := range r.limits {
		l := &r.limits[i]
		suffix := ""
		if len(c.Limits) > 0 {
			suffix = string(appendPart([]byte(":"), l.Name))
		}
		r.suffixes = append(r.suffixes, suffix)
		if !l.Shadow {
			r.smallest = min(r.smallest, l.Capacity)
		}
	}
	return r
}

func newResource(name string, r *rules) *resource {
	return &resource{name: name, part: appendPart(nil, name), rules: r}
}

// configured are the resources that c names.
func configured(c *Config) map[string]*resource {
	known := make(map[string]*resource, len(c.Resources))
	for name, rc := range c.Resources {
		known[name] = newResource(name, newRules(&rc, name))
	}
	return known
}

// find returns the resource of that name. One that is new is remembered while
// there is room, else it is built in w. Lock-free for those that are known.
func (l *Limiter) find(w *work, name []byte) *resource {
	known := *l.known.Load()
	if res, ok := known[string(name)]; ok {
		return res
	}
	if len(known) < l.maxKnown {
		return l.discover(string(name))
	}
	w.part = appendPart(w.part[:0], name)
	w.unknown = resource{part: w.part, rules: l.byDefault}
	return &w.unknown
}

// discover adds a resource to a copy of those known.
func (l *Limiter) discover(name string) *resource {
	l.discovery.Lock()
	defer l.discovery.Unlock()
	known := *l.known.Load()
	if res, ok := known[name]; ok {
		return res
	}
	res := newResource(name, l.byDefault)
	if len(known) < l.maxKnown {
		known = maps.Clone(known)
		known[name] = res
		l.known.Store(&known)
	}
	return res
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
