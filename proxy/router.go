package proxy

import (
	"bytes"
	"slices"
	"strings"
)

// router finds the first route that matches, in a time that does not grow with the
// number of routes: hosts, literal segments and exact values are looked up, not
// compared. It is built by add, for each route, and index.
type router struct {
	exact    map[string]*pathNode
	wildcard map[string]*pathNode // by what follows the star, ".example.com"
	any      *pathNode
	headers  []string // fields that some route's match reads
	queries  []string // parameters that some route's match reads
}

// pathNode is the place in the tree of patterns that some segments lead to.
type pathNode struct {
	literal map[string]*pathNode
	named   *pathNode
	here    wayIndex // of the ways whose pattern ends here
	rest    wayIndex // of those whose pattern ends here with /*
}

func newRouter() *router {
	return &router{exact: map[string]*pathNode{}, wildcard: map[string]*pathNode{}, any: &pathNode{}}
}

// add adds a route, whose place is behind all before it, under its hosts.
func (rt *router) add(r *route, hosts []string) {
	for _, m := range r.headers {
		if !slices.Contains(rt.headers, m.name) {
			rt.headers = append(rt.headers, m.name)
		}
	}
	for i := range r.queries {
		m := &r.queries[i]
		if m.index = slices.Index(rt.queries, m.name); m.index < 0 {
			m.index = len(rt.queries)
			rt.queries = append(rt.queries, m.name)
		}
	}
	for _, host := range hosts {
		root := rt.root(strings.ToLower(host))
		for _, w := range r.ways {
			root.add(w)
		}
	}
}

// root is the tree of the patterns for a host of the configuration.
func (rt *router) root(host string) *pathNode {
	switch {
	case host == "":
		return rt.any
	case strings.HasPrefix(host, "*."):
		return childOf(rt.wildcard, host[1:])
	}
	return childOf(rt.exact, host)
}

func childOf(nodes map[string]*pathNode, name string) *pathNode {
	if nodes[name] == nil {
		nodes[name] = &pathNode{}
	}
	return nodes[name]
}

func (n *pathNode) add(w *way) {
	for i, s := range w.path.segments {
		switch {
		case s != "" || w.path.isTrailingSlash(i):
			if n.literal == nil {
				n.literal = map[string]*pathNode{}
			}
			n = childOf(n.literal, s)
		default:
			if n.named == nil {
				n.named = &pathNode{}
			}
			n = n.named
		}
	}
	if w.path.rest {
		n.rest.ways = append(n.rest.ways, w)
		return
	}
	n.here.ways = append(n.here.ways, w)
}

// index makes the many ways of one node quick to choose from, once all were added.
func (rt *router) index() {
	x := newIndexer()
	rt.any.index(x)
	for _, roots := range []map[string]*pathNode{rt.exact, rt.wildcard} {
		for _, n := range roots {
			n.index(x)
		}
	}
}

func (n *pathNode) index(x *indexer) {
	x.index(&n.here)
	x.index(&n.rest)
	for _, next := range n.literal {
		next.index(x)
	}
	if n.named != nil {
		n.named.index(x)
	}
}

// checkMatched refuses a request in which what decides about routes is not clear,
// or would not reach the upstream; see request.header. The parameters that routes
// match by are decoded here, once.
func (rt *router) checkMatched(r *request) error {
	for _, name := range rt.headers {
		if _, err := r.header(name); err != nil {
			return err
		}
	}
	r.queries = r.queries[:0]
	for _, name := range rt.queries {
		start := len(r.scratch)
		var q queryValue
		var err error
		if r.scratch, q.there, err = r.findQuery(r.scratch, name); err != nil {
			return err
		}
		q.value = r.scratch[start:]
		r.queries = append(r.queries, q)
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

// match is the way to the first route in file order for r's method and fields, the
// roots of its host and these segments, or nil.
func match(r *request, segments [][]byte) (best *way) {
	for _, root := range r.roots {
		best = root.match(r, segments, best)
	}
	return best
}

func (n *pathNode) match(r *request, segments [][]byte, best *way) *way {
	if len(segments) == 0 {
		best = n.here.first(r, best)
		if len(r.path) > 0 && r.path[0] != '/' { // OPTIONS *
			best = n.rest.first(r, best)
		}
		return best
	}
	if !n.rest.isEmpty() {
		best = n.rest.first(r, best)
	}
	if next := n.literal[string(segments[0])]; next != nil {
		best = next.match(r, segments[1:], best)
	}
	if n.named != nil && len(segments[0]) > 0 {
		best = n.named.match(r, segments[1:], best)
	}
	return best
}
