package proxy

import (
	"fmt"
	"slices"
	"strings"
)

// warnOfOpenRoots reports /x/* of a route that blocks where a later one takes /x,
// which is not of that pattern. It errs to the side of saying nothing: the later
// route alone takes every request to /x with some method that the earlier ones leave.
func (c *Config) warnOfOpenRoots(warn func(path, text string)) {
	all := &takers{}
	for i := range c.Routes {
		if all.addAll(i, &c.Routes[i]) != nil {
			return // reported as an error
		}
	}
	for i := range c.Routes {
		rt := &c.Routes[i]
		if actions[rt.Action] != blockAction {
			continue
		}
		for p, text := range rt.Match.Path {
			root, found := strings.CutSuffix(text, "/*")
			if !found || root == "" {
				continue
			}
			if by := all.takerOfRoot(i, rt, root); by != nil {
				warn(fmt.Sprintf("routes[%d]%s", i, elementOf(".match.path", rt.Match.Path, p)),
					fmt.Sprintf("%s is not of %s, so that route %s takes it; write both, as in path: [%q, %q]", root, text, by.Name, root, text))
			}
		}
	}
}

// addAll adds all ways to rt, which is route i.
func (n *takers) addAll(i int, rt *RouteConfig) error {
	for _, text := range rt.Match.paths() {
		path, err := parsePath(text)
		if err != nil {
			return err
		}
		for _, host := range rt.Match.hosts() {
			n.add(&path, taker{i, rt, host})
		}
	}
	return nil
}

// takerOfRoot is the route that takes what rt, which is route i, would if it had the
// path root; nil if that is one before, one that blocks, or one that names the root
// and so means it.
func (n *takers) takerOfRoot(i int, rt *RouteConfig, root string) *RouteConfig {
	path, err := parsePath(root)
	if err != nil {
		return nil
	}
	for _, host := range rt.Match.hosts() {
		for _, method := range rt.Match.anyMethods() {
			takes := func(c taker) bool { return c.takes(rt, host, method) }
			by := n.first(&matchWay{host: host, path: path}, 0, takes)
			if by != nil && by.at > i && actions[by.route.Action] != blockAction && !slices.Contains(by.route.Match.Path, root) {
				return by.route
			}
		}
	}
	return nil
}

// first is the one of all that take which stands first in the file. Its paths match
// whatever the way's does from segment at on, which has no rest.
func (n *takers) first(w *matchWay, at int, takes func(taker) bool) (best *taker) {
	if n == nil {
		return nil
	}
	if at == len(w.path.segments) {
		return firstOf(n.here, takes)
	}
	best = firstOf(n.rest, takes)
	s, named := w.path.segments[at], w.path.isNamed(at)
	if !named {
		best = firstOfTwo(best, n.literal[s].first(w, at+1, takes))
	}
	if named || s != "" { // a name stands for no empty segment
		best = firstOfTwo(best, n.named.first(w, at+1, takes))
	}
	return best
}

// firstOf is the first that takes; nil for none.
func firstOf(all []taker, takes func(taker) bool) *taker {
	if i := slices.IndexFunc(all, takes); i >= 0 {
		return &all[i]
	}
	return nil
}

// firstOfTwo is the one that stands first in the file; either may be nil.
func firstOfTwo(a, b *taker) *taker {
	if a == nil || b != nil && b.at < a.at {
		return b
	}
	return a
}
