package proxy

import (
	"fmt"
	"slices"

	"github.com/r8limiter/r8limiter/limiter"
)

// action is what a route does with a request.
type action uint8

const (
	limitAction action = iota
	bypassAction
	blockAction
)

var actions = map[string]action{"": limitAction, "limit": limitAction, "bypass": bypassAction, "block": blockAction}

// route is a RouteConfig as it runs. It is immutable once its Rules are in use.
type route struct {
	index    int
	name     string
	ways     []*way   // one for each path
	names    []string // of the path segments that all of them name
	methods  []string
	clients  []Prefix
	headers  []valueMatch
	queries  []valueMatch
	userID   []Template
	resource Template
	plan     Template
	cost     Template
	reads    reads
	action   action
	shadow   bool            // denials are counted and logged, and the request goes on
	enforce  limiter.Percent // of the users; the others are in the shadow

	// What forwards and counts; nil in Rules that only judge.
	upstream *upstream
	metrics  *routeMetrics
}

// way is one path of a route: routes with several are found by each.
type way struct {
	route *route
	path  pathPattern
	order int   // of all ways of all routes: the first that matches wins
	at    []int // by the index in route.names: the segment of that name
}

// place is where a route stands: its index, and the order of its first way.
type place struct{ index, order int }

// newRoute compiles c. claims are those that any route reads.
func newRoute(at place, c *RouteConfig, claims []string) (*route, error) {
	rt := &route{
		index: at.index, name: c.Name, methods: c.Match.Methods, clients: c.Match.ClientIP,
		userID: slices.Clone(c.UserID), resource: c.Resource, plan: c.Plan, cost: c.Cost,
		action: actions[c.Action], shadow: c.Shadow, enforce: c.Enforce,
	}
	var err error
	if rt.headers, err = newValueMatches(c.Match.Headers); err != nil {
		return nil, err
	}
	if rt.queries, err = newValueMatches(c.Match.Query); err != nil {
		return nil, err
	}
	if err := rt.addWays(c.Match.paths(), at.order); err != nil {
		return nil, err
	}
	return rt, rt.eachTemplate(func(_ string, t *Template) error {
		if err := t.bindPath(rt.names); err != nil {
			return err
		}
		t.bindClaims(claims)
		rt.reads.note(t)
		return nil
	})
}

// addWays parses the paths; the names are those that all of them have.
func (rt *route) addWays(paths []string, first int) error {
	for i, text := range paths {
		path, err := parsePath(text)
		if err != nil {
			return err
		}
		rt.ways = append(rt.ways, &way{route: rt, path: path, order: first + i})
	}
	for _, name := range sortedKeys(rt.ways[0].path.params) {
		isMissing := func(w *way) bool { _, ok := w.path.params[name]; return !ok }
		if !slices.ContainsFunc(rt.ways, isMissing) {
			rt.names = append(rt.names, name)
		}
	}
	for _, w := range rt.ways {
		for _, name := range rt.names {
			w.at = append(w.at, w.path.params[name])
		}
	}
	return nil
}

// paths are those of the match; "" stands for any.
func (m *MatchConfig) paths() []string {
	if len(m.Path) == 0 {
		return []string{""}
	}
	return m.Path
}

// hosts are those of the match; "" stands for any.
func (m *MatchConfig) hosts() []string {
	if len(m.Host) == 0 {
		return []string{""}
	}
	return m.Host
}

// eachTemplate calls f for each template of rt, with its key below the route, until
// one fails.
func (rt *route) eachTemplate(f func(key string, t *Template) error) error {
	for i := range rt.userID {
		if err := f(fmt.Sprintf(".user_id[%d]", i), &rt.userID[i]); err != nil {
			return err
		}
	}
	for _, each := range []struct {
		key string
		t   *Template
	}{{".resource", &rt.resource}, {".plan", &rt.plan}, {".cost", &rt.cost}} {
		if err := f(each.key, each.t); err != nil {
			return err
		}
	}
	return nil
}

// matcher is a key of match.
type matcher uint8

const (
	noMatcher matcher = iota
	methodMatcher
	clientMatcher
	headerMatcher
	queryMatcher
)

// accepts says whether r, whose host and path match, is for this route.
func (rt *route) accepts(r *request) bool {
	by, _ := rt.refuses(r)
	return by == noMatcher
}

// refuses is the first matcher by which r, whose host and path match, is not for
// this route, with its index in rt.headers or rt.queries.
func (rt *route) refuses(r *request) (by matcher, index int) {
	if len(rt.methods) > 0 && !slices.ContainsFunc(rt.methods, func(m string) bool { return m == string(r.method) }) {
		return methodMatcher, 0
	}
	if len(rt.clients) > 0 && !contains(rt.clients, r.client) {
		return clientMatcher, 0
	}
	for i := range rt.headers {
		if m := &rt.headers[i]; !m.acceptsHeader(r) {
			return headerMatcher, i
		}
	}
	for i := range rt.queries {
		if m := &rt.queries[i]; !m.acceptsQuery(r) {
			return queryMatcher, i
		}
	}
	return noMatcher, 0
}
