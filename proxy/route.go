package proxy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// action is what a route does with a request.
type action uint8

const (
	limitAction action = iota
	bypassAction
	blockAction
)

var actions = map[string]action{"": limitAction, "limit": limitAction, "bypass": bypassAction, "block": blockAction}

// route is a RouteConfig as it runs. It is immutable.
type route struct {
	index    int
	name     string
	path     pathPattern
	methods  []string
	headers  []headerMatch
	userID   []Template
	resource Template
	cost     Template
	action   action
	upstream *upstream
	metrics  *routeMetrics
	reads    reads
}

type headerMatch struct {
	name  string
	value string
	any   bool
}

// accepts says whether r, whose host and path match, is for this route.
func (rt *route) accepts(r *request) bool {
	if len(rt.methods) > 0 && !slices.ContainsFunc(rt.methods, func(m string) bool { return m == string(r.method) }) {
		return false
	}
	for i := range rt.headers {
		if !rt.headers[i].accepts(r.fields) {
			return false
		}
	}
	return true
}

// accepts says whether one of the fields of that name matches.
func (h *headerMatch) accepts(fields []field) bool {
	for i := range fields {
		if equalFold(fields[i].name, h.name) && (h.any || string(fields[i].value) == h.value) {
			return true
		}
	}
	return false
}

// pathPattern is match.path: literal segments, {name}, and /* at the end.
type pathPattern struct {
	segments []string // "" stands for a named one
	params   map[string]int
	rest     bool
}

// parsePath reads a pattern; "" matches any path.
func parsePath(pattern string) (pathPattern, error) {
	p := pathPattern{params: map[string]int{}}
	if pattern == "" {
		p.rest = true
		return p, nil
	}
	if pattern[0] != '/' {
		return p, fmt.Errorf("%q does not begin with a slash", pattern)
	}
	parts := strings.Split(pattern[1:], "/")
	for i, s := range parts {
		last := i == len(parts)-1
		switch {
		case s == "*" && last:
			p.rest = true
			return p, nil
		case strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}") && len(s) > 2:
			name := s[1 : len(s)-1]
			if _, twice := p.params[name]; twice || !isToken([]byte(name)) {
				return p, fmt.Errorf("segment %s is there twice, or is no proper name", s)
			}
			p.params[name] = i
			p.segments = append(p.segments, "")
		case s == "" && !last, s == ".", s == "..", strings.ContainsAny(s, "*{}\\?#;"):
			return p, fmt.Errorf("segment %q can't match: a segment is literal text, {name}, or * as the last one", s)
		case holdsEscape(s):
			return p, fmt.Errorf("segment %q can't match: paths are matched decoded, so write the character itself", s)
		default:
			p.segments = append(p.segments, s)
		}
	}
	return p, nil
}

// holdsEscape says whether s holds %XX.
func holdsEscape(s string) bool {
	for i := range len(s) {
		if _, ok := unhex([]byte(s[i:])); ok && s[i] == '%' {
			return true
		}
	}
	return false
}

// router finds the first route that matches, in a time that does not grow
// with the number of routes: hosts and literal segments are looked up, not compared.
type router struct {
	exact    map[string]*pathNode
	wildcard map[string]*pathNode // by what follows the star, ".example.com"
	any      *pathNode
	matched  []string // header fields that some route's match reads
}

// pathNode is the place in the tree of patterns that some segments lead to.
type pathNode struct {
	literal map[string]*pathNode
	named   *pathNode
	here    []*route // whose pattern ends here, in file order
	rest    []*route // whose pattern ends here with /*
}

func newRouter() *router {
	return &router{exact: map[string]*pathNode{}, wildcard: map[string]*pathNode{}, any: &pathNode{}}
}

func (rt *router) add(r *route, host string) {
	for _, h := range r.headers {
		if !slices.Contains(rt.matched, h.name) {
			rt.matched = append(rt.matched, h.name)
		}
	}
	host = strings.ToLower(host)
	root := rt.any
	switch {
	case strings.HasPrefix(host, "*."):
		root = rootOf(rt.wildcard, host[1:])
	case host != "":
		root = rootOf(rt.exact, host)
	}
	root.add(r)
}

func rootOf(roots map[string]*pathNode, host string) *pathNode {
	if roots[host] == nil {
		roots[host] = &pathNode{}
	}
	return roots[host]
}

func (n *pathNode) add(r *route) {
	for i, s := range r.path.segments {
		switch {
		case s != "" || r.path.isTrailingSlash(i):
			if n.literal == nil {
				n.literal = map[string]*pathNode{}
			}
			n = rootOf(n.literal, s)
		default:
			if n.named == nil {
				n.named = &pathNode{}
			}
			n = n.named
		}
	}
	if r.path.rest {
		n.rest = append(n.rest, r)
		return
	}
	n.here = append(n.here, r)
}

// isTrailingSlash says whether segment i is the empty one behind a last slash
// and not a named one.
func (p *pathPattern) isTrailingSlash(i int) bool {
	if p.segments[i] != "" {
		return false
	}
	for _, named := range p.params {
		if named == i {
			return false
		}
	}
	return true
}

// checkMatched refuses a request in which a field that decides about routes is
// not clear, or would not reach the upstream; see request.header.
func (rt *router) checkMatched(r *request) error {
	for _, name := range rt.matched {
		if _, err := r.header(name); err != nil {
			return err
		}
	}
	return nil
}

// findRoots looks up, once for a request, the trees of patterns for its host.
func (rt *router) findRoots(r *request) {
	r.roots = append(r.roots[:0], rt.any)
	if n := rt.exact[string(r.host)]; n != nil {
		r.roots = append(r.roots, n)
	}
	if len(rt.wildcard) == 0 {
		return
	}
	for host := r.host; ; {
		dot := bytes.IndexByte(host, '.')
		if dot < 0 {
			return
		}
		if n := rt.wildcard[string(host[dot:])]; n != nil && dot > 0 {
			r.roots = append(r.roots, n)
		}
		host = host[dot+1:]
	}
}

// match is the first route in file order for r's method and fields, the roots of
// its host and these segments, or nil.
func match(r *request, segments [][]byte) (best *route) {
	for _, root := range r.roots {
		best = root.match(r, segments, best)
	}
	return best
}

func (n *pathNode) match(r *request, segments [][]byte, best *route) *route {
	if len(segments) == 0 {
		best = first(n.here, r, best)
		if len(r.path) > 0 && r.path[0] != '/' { // OPTIONS *
			best = first(n.rest, r, best)
		}
		return best
	}
	best = first(n.rest, r, best)
	if next := n.literal[string(segments[0])]; next != nil {
		best = next.match(r, segments[1:], best)
	}
	if n.named != nil && len(segments[0]) > 0 {
		best = n.named.match(r, segments[1:], best)
	}
	return best
}

// first is the first of routes that accepts r, if it stands before best.
func first(routes []*route, r *request, best *route) *route {
	for _, candidate := range routes {
		if best != nil && candidate.index > best.index {
			return best
		}
		if candidate.accepts(r) {
			return candidate
		}
	}
	return best
}
