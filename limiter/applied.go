package limiter

import "slices"

// Of Applied.Source, besides the sources of a resource.
const (
	FromPlan     Source = "plan"
	FromOverride Source = "override"
)

// Applied is what holds for a request, whatever the buckets hold.
type Applied struct {
	// Limits are those that are asked, as an operator named them; Name is never "".
	Limits []Limit
	Source Source
	// PlanKnown says that the configuration has the request's plan.
	PlanKnown bool
	// OnStoreError is what decides when the store fails.
	OnStoreError Policy
}

// Applied says which limits decide about req and where they come from. It asks no
// store, and leaves no trace.
func (l *Limiter) Applied(req *Request) Applied {
	n := req.Limits
	if n == nil {
		n = l.Current()
	}
	f := n.inForce.Load()
	res := l.find(f, new(work), req.Resource)
	rules, source := res.rules, res.source
	if planned := res.of(req.Plan); planned != rules {
		rules, source = planned, FromPlan
	}
	if o := f.override(req.User, req.Resource); o != nil && o.verdict == askBuckets {
		rules, source = o.of(req.Plan), FromOverride
	}
	_, known := n.config.Plans[string(req.Plan)]
	a := Applied{Limits: slices.Clone(rules.limits), Source: source, PlanKnown: known, OnStoreError: rules.policy}
	for i := range a.Limits {
		if a.Limits[i].Name == "" {
			a.Limits[i].Name = string(req.Resource)
		}
	}
	return a
}
