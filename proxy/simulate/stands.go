package simulate

import (
	"regexp"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// stands says for one route what a log's own word goes before: the values that the
// route would read from something that the log lacks, as the header fields that
// r8limiter's own log has not.
type stands struct{ user, resource, plan, cost bool }

// apply puts the log's word in place.
func (s stands) apply(l *line, ask *limiter.Request, route *proxy.RouteConfig) {
	if s.user && len(l.user) > 0 {
		ask.User = l.user
		ask.Shadow = route.Shadow || !route.Enforce.Includes(route.Name, ask.User)
	}
	if s.resource && len(l.resource) > 0 {
		ask.Resource = l.resource
	}
	if s.plan && len(l.plan) > 0 {
		ask.Plan = l.plan
	}
	if s.cost && l.cost >= 0 {
		ask.Cost = l.cost
	}
}

// standsFor is what stands for each route, in the format of s; nil for nothing.
func (e *engine) standsFor(s *source) []stands {
	if all, ok := e.stands[s.format.name]; ok {
		return all
	}
	lacks := func(t proxy.Template) bool {
		for _, m := range placeholder.FindAllStringSubmatch(t.String(), -1) {
			if !s.format.has(&e.o.Fields, m[1]) {
				return true
			}
		}
		return false
	}
	var all []stands
	anything := false
	for i := range e.o.Proxy.Routes {
		c := &e.o.Proxy.Routes[i]
		each := stands{resource: lacks(c.Resource), plan: lacks(c.Plan), cost: lacks(c.Cost)}
		// A later template of a user is only a substitute for the first.
		each.user = len(c.UserID) > 0 && lacks(c.UserID[0])
		anything = anything || each != stands{}
		all = append(all, each)
	}
	if !anything {
		all = nil
	}
	e.stands[s.format.name] = all
	return all
}

// placeholder finds the source in {header.X-User-Id|lower}.
var placeholder = regexp.MustCompile(`\{([^{}|]+)`)
