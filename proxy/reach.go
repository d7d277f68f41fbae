package proxy

import (
	"fmt"
	"slices"
	"strings"
)

// This file finds routes that no request reaches, as earlier ones take all that they
// match. It errs to one side: what it names is unreachable, but it does not see that
// a regular expression matches all that another does.

// warnOfUnreachable reports routes, and hosts and paths of routes, whose requests
// earlier routes take.
func (c *Config) warnOfUnreachable(warn func(path, text string)) {
	earlier := &takers{}
	for i := range c.Routes {
		rt := &c.Routes[i]
		ways, err := earlier.waysOf(rt)
		if err != nil {
			return // reported as an error
		}
		ways.warn(rt, func(key, text string) { warn(fmt.Sprintf("routes[%d]%s", i, key), text) })
		for _, w := range ways {
			earlier.add(&w.path, taker{i, rt, w.host})
		}
	}
}

// matchWay is one host and one path of a route.
type matchWay struct {
	host        string // "" for any
	path        pathPattern
	hostAt      int // the indexes in the match
	pathAt      int
	takenBefore []string // the earlier routes that take its requests; empty: some are left
}

type matchWays []matchWay

// waysOf are the ways to rt; n has those to the routes before.
func (n *takers) waysOf(rt *RouteConfig) (all matchWays, err error) {
	for h, host := range rt.Match.hosts() {
		for p, text := range rt.Match.paths() {
			w := matchWay{host: host, hostAt: h, pathAt: p}
			if w.path, err = parsePath(text); err != nil {
				return nil, err
			}
			w.takenBefore = n.names(rt, &w)
			all = append(all, w)
		}
	}
	return all, nil
}

// warn reports the whole route, else each host and path to which no way is left.
func (ws matchWays) warn(rt *RouteConfig, warn func(key, text string)) {
	if by := ws.takers(func(matchWay) bool { return true }); by != "" {
		warn("", "no request reaches this route: "+by+" all that it matches; move this one up, or take it out")
		return
	}
	for i, host := range rt.Match.Host {
		if by := ws.takers(func(w matchWay) bool { return w.hostAt == i }); by != "" {
			warn(fmt.Sprintf(".match.host[%d]", i), fmt.Sprintf("no request of host %s reaches this route: %s them; move this one up, or take the host out", host, by))
		}
	}
	for i, path := range rt.Match.Path {
		if by := ws.takers(func(w matchWay) bool { return w.pathAt == i }); by != "" {
			warn(fmt.Sprintf(".match.path[%d]", i), fmt.Sprintf("no request of path %s reaches this route: %s them; move this one up, or take the path out", path, by))
		}
	}
}

// takers says who takes the requests of all those ways; "" if some are left.
func (ws matchWays) takers(of func(matchWay) bool) string {
	var names []string
	for _, w := range ws {
		if !of(w) {
			continue
		}
		if len(w.takenBefore) == 0 {
			return ""
		}
		names = append(names, w.takenBefore...)
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 1 {
		return "route " + names[0] + " before it takes"
	}
	return "routes " + strings.Join(names, ", ") + " before it take"
}

// taker is one host of a route, found by one of its paths.
type taker struct {
	at    int // of the route in the file
	route *RouteConfig
	host  string // "" for any
}

// takers are those of some routes by their paths, as a tree of segments.
type takers struct {
	literal map[string]*takers
	named   *takers
	here    []taker // whose path ends here, in file order
	rest    []taker // whose path ends here with /*
}

func (n *takers) add(path *pathPattern, c taker) {
	for i, s := range path.segments {
		if path.isNamed(i) {
			if n.named == nil {
				n.named = &takers{}
			}
			n = n.named
			continue
		}
		if n.literal == nil {
			n.literal = map[string]*takers{}
		}
		if n.literal[s] == nil {
			n.literal[s] = &takers{}
		}
		n = n.literal[s]
	}
	if path.rest {
		n.rest = append(n.rest, c)
		return
	}
	n.here = append(n.here, c)
}

// isNamed says whether segment i is {name}.
func (p *pathPattern) isNamed(i int) bool { return p.segments[i] == "" && !p.isTrailingSlash(i) }

// names are those of the routes that take all requests of a way to rt: one for
// each of its methods. nil: some are left.
func (n *takers) names(rt *RouteConfig, w *matchWay) (names []string) {
	for _, method := range rt.Match.anyMethods() {
		found := n.find(w, 0, func(c taker) bool { return c.takes(rt, w.host, method) })
		if found == nil {
			return nil
		}
		names = append(names, found.Name)
	}
	return names
}

// anyMethods are those of the match; "" stands for any.
func (m *MatchConfig) anyMethods() []string {
	if len(m.Methods) == 0 {
		return []string{""}
	}
	return m.Methods
}

// find is a route that takes; its paths match whatever the way's does from segment at on.
func (n *takers) find(w *matchWay, at int, takes func(taker) bool) *RouteConfig {
	end := at == len(w.path.segments)
	found := n.rest
	if end && !w.path.rest {
		found = n.here
	}
	if i := slices.IndexFunc(found, takes); i >= 0 {
		return found[i].route
	}
	if end {
		return nil
	}
	s, named := w.path.segments[at], w.path.isNamed(at)
	if next := n.literal[s]; next != nil && !named {
		if found := next.find(w, at+1, takes); found != nil {
			return found
		}
	}
	if n.named == nil || s == "" && !named { // a name stands for no empty segment
		return nil
	}
	return n.named.find(w, at+1, takes)
}

// takes says whether c's route takes every request with this host ("*." for
// those below) and method ("" for any) that rt matches.
func (c taker) takes(rt *RouteConfig, host, method string) bool {
	by, of := &c.route.Match, &rt.Match
	return takesHost(c.host, host) &&
		(len(by.Methods) == 0 || slices.Contains(by.Methods, method)) &&
		takesClients(by.ClientIP, of.ClientIP) &&
		takesValues(by.Headers, of.Headers, strings.EqualFold) &&
		takesValues(by.Query, of.Query, func(a, b string) bool { return a == b })
}

// takesHost says whether the pattern by matches all that host does.
func takesHost(by, host string) bool {
	if by == "" || strings.EqualFold(by, host) {
		return true
	}
	suffix, ok := strings.CutPrefix(strings.ToLower(by), "*")
	return ok && strings.HasSuffix(strings.TrimPrefix(strings.ToLower(host), "*"), suffix)
}

// takesClients says whether each network of clients lies in one of by.
func takesClients(by, clients []Prefix) bool {
	isIn := func(p Prefix) bool {
		return slices.ContainsFunc(by, func(b Prefix) bool { return b.Bits() <= p.Bits() && b.Contains(p.Addr()) })
	}
	isOut := func(p Prefix) bool { return !isIn(p) }
	return len(by) == 0 || len(clients) > 0 && !slices.ContainsFunc(clients, isOut)
}

// takesValues says whether whatever values wants, by wants too, or less.
func takesValues(by, values map[string]ValueMatch, same func(a, b string) bool) bool {
	for name, wanted := range by {
		isWanted := func(own string) bool {
			m := values[own]
			return same(own, name) && m.implies(&wanted)
		}
		if !slices.ContainsFunc(sortedKeys(values), isWanted) {
			return false
		}
	}
	return true
}

// implies says whether every value that m accepts is one that w accepts.
func (m *ValueMatch) implies(w *ValueMatch) bool {
	exact := !m.Present && m.Prefix == "" && m.Regexp == ""
	switch {
	case w.Present:
		return true
	case w.Regexp != "":
		whole, err := compileWhole(w.Regexp)
		return m.Regexp == w.Regexp || exact && err == nil && whole.MatchString(m.Exact)
	case w.Prefix != "":
		return exact && strings.HasPrefix(m.Exact, w.Prefix) || strings.HasPrefix(m.Prefix, w.Prefix)
	}
	return exact && m.Exact == w.Exact
}
