package simulate

import (
	"github.com/r8limiter/r8limiter/limiter"
)

// maxSets is how many resources that no configuration names are told apart.
const maxSets = 1000

// limitSets are the limits that were asked for, by resource and plan.
type limitSets struct {
	plans      map[string]map[string]limiter.ResourceConfig
	most       int
	byResource map[string][]*limitSet
	// others are those of resources beyond most, with one set for all that have the
	// same limits.
	others []*limitSet
	all    []*limitSet
	limits uint32 // of all sets
}

// limitSet are the limits that hold for a resource and a plan, and what they did.
type limitSet struct {
	resource, plan string
	number         int
	base           uint32 // the number of its first limit, among those of all sets
	rules          []limiter.LimitState
	limits         []limitCount
	requests       uint64
	least, most    int64 // cost of requests; those of cost 0 left out
	// resources are those of a set of others; nil for a set of one resource.
	resources *names
}

// limitCount is what one limit did.
type limitCount struct {
	name    string
	refused uint64 // it had not enough, whatever came of it
	bound   uint64 // it is the one that a denial named
	shadow  uint64 // it would have refused, but decides nothing
}

func (s *limitSets) init(c *limiter.Config) {
	s.plans, s.most = c.Plans, maxSets+len(c.Resources)
	s.byResource = map[string][]*limitSet{}
}

// find is the set of a decision; nil if it has no limits.
func (s *limitSets) find(ask *limiter.Request, d *limiter.Decision) *limitSet {
	if len(d.Limits) == 0 {
		return nil
	}
	known, ok := s.byResource[string(ask.Resource)]
	if !ok && len(s.byResource) >= s.most {
		known = s.others
	}
	for _, set := range known {
		if set.isOf(d) {
			return set
		}
	}
	return s.add(ask, d, !ok && len(s.byResource) >= s.most)
}

func (s *limitSets) add(ask *limiter.Request, d *limiter.Decision, other bool) *limitSet {
	set := &limitSet{
		resource: string(ask.Resource), number: len(s.all), base: s.limits,
		rules:  append([]limiter.LimitState(nil), d.Limits...),
		limits: make([]limitCount, len(d.Limits)),
	}
	if _, own := s.plans[string(ask.Plan)][set.resource]; own {
		set.plan = string(ask.Plan)
	}
	for i := range d.Limits {
		set.limits[i].name = string(d.AppendLimitName(nil, &d.Limits[i]))
	}
	s.all = append(s.all, set)
	s.limits += uint32(len(d.Limits))
	if !other {
		s.byResource[set.resource] = append(s.byResource[set.resource], set)
		return set
	}
	set.resource, set.resources = otherResources, newNames()
	for i := range d.Limits {
		if d.Limits[i].Name == "" {
			set.limits[i].name = otherResources
		}
	}
	s.others = append(s.others, set)
	return set
}

// otherResources is what resources are called that are not told apart.
const otherResources = "(others)"

// isOf says whether the limits of d are those of the set.
func (set *limitSet) isOf(d *limiter.Decision) bool {
	if len(d.Limits) != len(set.rules) {
		return false
	}
	for i := range d.Limits {
		if d.Limits[i].Limit != set.rules[i].Limit {
			return false
		}
	}
	return true
}

// count takes in what the limits said.
func (set *limitSet) count(ask *limiter.Request, d *limiter.Decision) {
	set.requests++
	if ask.Cost > 0 {
		set.most = max(set.most, ask.Cost)
		if set.least == 0 || ask.Cost < set.least {
			set.least = ask.Cost
		}
	}
	for i := range d.Limits {
		if !d.Limits[i].Denied {
			continue
		}
		set.limits[i].refused++
		if d.Limits[i].Shadow || d.Allowed {
			set.limits[i].shadow++
		}
	}
	if !d.Allowed {
		set.limits[set.binding(d)].bound++
	}
}

// binding is the index of the limit that a denial names.
func (set *limitSet) binding(d *limiter.Decision) int {
	binding := d.Binding()
	for i := range d.Limits {
		if &d.Limits[i] == binding {
			return i
		}
	}
	return 0
}

// anyDenied says whether a limit would have refused.
func (set *limitSet) anyDenied(d *limiter.Decision) bool {
	for i := range d.Limits {
		if d.Limits[i].Denied {
			return true
		}
	}
	return false
}

// resourceNumber tells resources apart that have buckets of their own in one set.
func (set *limitSet) resourceNumber(resource []byte) uint32 {
	if set.resources == nil {
		return 0
	}
	number, _ := set.resources.number(resource)
	return number
}
