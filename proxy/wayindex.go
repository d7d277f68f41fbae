package proxy

import (
	"math"
	"net/netip"
	"slices"
	"strings"
)

// wayIndex holds the ways that end at one node of the tree of paths, so that a request
// looks at those only which what it has can choose. Whether one of them takes the
// request is still for its route to say: the index leaves out, and decides nothing.
//
// A way is kept under one thing that it wants exactly, the one that few others want: a
// method, a network, the value of a header field or of a query parameter. What is kept
// under the same value and is still many is an index in its turn, by something else. So
// there are as many entries as ways, times the networks and the methods of each at most.
type wayIndex struct {
	tables []wayTable
	ways   []*way // which no table holds, in file order
}

// maxListed is how many ways are looked through rather than looked up. With 8 the last of
// 32 times 32 routes, told apart by two fields, took twice the time.
const maxListed = 4

// wayTable finds ways by one criterion.
type wayTable struct {
	criterion
	order   int // of the first way
	lengths []networkLength
	byValue map[string]wayIndex
}

// criterion is what ways can be told apart by.
type criterion struct {
	by    matcher
	name  string // of a header field, in lower case, or of a parameter
	index int    // of a parameter: in router.queries
}

// demand is what a way wants of a criterion: one of the values.
type demand struct {
	criterion
	values []string
}

// networkLength is a length that networks in a table have.
type networkLength struct{ width, bits int } // width: of an address, in bits

// isEmpty is true at most nodes.
func (ix *wayIndex) isEmpty() bool { return len(ix.ways) == 0 && len(ix.tables) == 0 }

// first is the first of the ways whose route accepts r, if it stands before best. The
// tables take the same time however many ways they hold, so they go first: what they find
// spares a look at the ways behind it. Those in no table are looked through one by one.
// They are few, or they want what no value leads to: a prefix, a regular expression, or
// that something is there.
func (ix *wayIndex) first(r *request, best *way) *way {
	for i := range ix.tables {
		if t := &ix.tables[i]; best == nil || t.order < best.order {
			best = t.first(r, best)
		}
	}
	for _, candidate := range ix.ways {
		if best != nil && candidate.order > best.order {
			return best
		}
		if candidate.route.accepts(r) {
			return candidate
		}
	}
	return best
}

// first is wayIndex.first for the ways whose value is r's.
func (t *wayTable) first(r *request, best *way) *way {
	switch t.by {
	case methodMatcher:
		return t.firstUnder(r.method, r, best)
	case clientMatcher:
		return t.firstAround(r.client, r, best)
	case headerMatcher:
		for i := range r.fields {
			if equalFold(r.fields[i].name, t.name) {
				best = t.firstUnder(r.fields[i].value, r, best)
			}
		}
	case queryMatcher:
		if q := &r.queries[t.index]; q.there {
			return t.firstUnder(q.value, r, best)
		}
	}
	return best
}

func (t *wayTable) firstUnder(value []byte, r *request, best *way) *way {
	if ix, ok := t.byValue[string(value)]; ok {
		return ix.first(r, best)
	}
	return best
}

// firstAround asks once for each length that the networks have.
func (t *wayTable) firstAround(addr netip.Addr, r *request, best *way) *way {
	var memory [maxNetworkBytes]byte
	for _, l := range t.lengths {
		if l.width != addr.BitLen() {
			continue
		}
		if network, err := addr.Prefix(l.bits); err == nil {
			best = t.firstUnder(appendNetwork(memory[:0], network), r, best)
		}
	}
	return best
}

// maxNetworkBytes is what appendNetwork appends at most.
const maxNetworkBytes = 16 + 1

// appendNetwork appends what networks are found by: 5 bytes or 17.
func appendNetwork(dst []byte, p netip.Prefix) []byte {
	dst, _ = p.AppendBinary(dst) // never fails
	return dst
}

// demands are the criteria by which w can be told from others. Prefixes, regular
// expressions and what need but be there are none: no value leads to them.
func (w *way) demands() (all []demand) {
	rt := w.route
	for i := range rt.headers {
		if m := &rt.headers[i]; m.isExact() {
			all = append(all, demand{criterion{by: headerMatcher, name: strings.ToLower(m.name)}, []string{m.Exact}})
		}
	}
	for i := range rt.queries {
		if m := &rt.queries[i]; m.isExact() {
			all = append(all, demand{criterion{by: queryMatcher, name: m.name, index: m.index}, []string{m.Exact}})
		}
	}
	if len(rt.clients) > 0 {
		all = append(all, demand{criterion{by: clientMatcher}, networkValues(rt.clients)})
	}
	if len(rt.methods) > 0 {
		all = append(all, demand{criterion{by: methodMatcher}, rt.methods})
	}
	return all
}

func networkValues(networks []Prefix) (values []string) {
	for _, p := range networks {
		values = append(values, string(appendNetwork(nil, p.Masked())))
	}
	return values
}

// isExact says whether one value only is accepted.
func (m *valueMatch) isExact() bool { return !m.Present && m.whole == nil && m.Prefix == "" }

// indexer turns lists of ways into indexes. It keeps what the routes want, for one
// route stands at as many nodes as it has hosts and paths.
type indexer struct {
	known map[*route][]demand
	built map[*way]builtIndex // by the first way
}

// builtIndex is the index of a list. Hosts that the same routes are for share it.
type builtIndex struct {
	ways  []*way
	index wayIndex
}

func newIndexer() *indexer {
	return &indexer{known: map[*route][]demand{}, built: map[*way]builtIndex{}}
}

func (x *indexer) demands(w *way) []demand {
	all, ok := x.known[w.route]
	if !ok {
		all = w.demands()
		x.known[w.route] = all
	}
	return all
}

// index makes an index of the list that ix is yet.
func (x *indexer) index(ix *wayIndex) {
	ways := ix.ways
	if len(ways) <= maxListed {
		return
	}
	if b := x.built[ways[0]]; slices.Equal(b.ways, ways) {
		*ix = b.index
		return
	}
	x.split(ix, nil)
	x.built[ways[0]] = builtIndex{ways, *ix}
}

// split moves the ways of ix that can be looked up to tables. used are the criteria by
// which they were chosen before, and which tell them apart no more.
func (x *indexer) split(ix *wayIndex, used []criterion) {
	c := x.count(ix.ways, used)
	var tables []criterion // in the order of their first ways
	byCriterion := map[criterion][]*way{}
	var rest []*way
	for _, w := range ix.ways {
		by := c.rarest(x.demands(w), used)
		if by.by == noMatcher {
			rest = append(rest, w)
			continue
		}
		if byCriterion[by] == nil {
			tables = append(tables, by)
		}
		byCriterion[by] = append(byCriterion[by], w)
	}
	ix.ways = rest
	for _, by := range tables {
		t := wayTable{criterion: by, order: byCriterion[by][0].order, byValue: make(map[string]wayIndex, len(c.values[by]))}
		x.fill(&t, byCriterion[by], append(slices.Clip(used), by))
		ix.tables = append(ix.tables, t)
	}
}

// fill puts the ways under their values.
func (x *indexer) fill(t *wayTable, ways []*way, used []criterion) {
	for _, w := range ways {
		for _, v := range valuesOf(x.demands(w), t.criterion) {
			ix := t.byValue[v]
			ix.ways = append(ix.ways, w)
			t.byValue[v] = ix
		}
		if t.by == clientMatcher {
			t.addLengths(w.route.clients)
		}
	}
	for v, ix := range t.byValue {
		if len(ix.ways) > maxListed {
			x.split(&ix, used)
			t.byValue[v] = ix
		}
	}
}

func (t *wayTable) addLengths(networks []Prefix) {
	for _, p := range networks {
		if l := (networkLength{p.Addr().BitLen(), p.Bits()}); !slices.Contains(t.lengths, l) {
			t.lengths = append(t.lengths, l)
		}
	}
}

func valuesOf(demands []demand, by criterion) (values []string) {
	for i := range demands {
		if demands[i].criterion == by {
			values = append(values, demands[i].values...)
		}
	}
	return values
}

// counts say how many of some ways have a criterion, and how many want which value.
type counts struct {
	holders map[criterion]int
	values  map[criterion]map[string]int
}

func (x *indexer) count(ways []*way, used []criterion) *counts {
	c := &counts{holders: map[criterion]int{}, values: map[criterion]map[string]int{}}
	for _, w := range ways {
		for _, d := range x.demands(w) {
			if slices.Contains(used, d.criterion) {
				continue
			}
			c.holders[d.criterion]++
			values := c.values[d.criterion]
			if values == nil {
				values = map[string]int{}
				c.values[d.criterion] = values
			}
			for _, v := range d.values {
				values[v]++
			}
		}
	}
	return c
}

// rarest is the criterion of demands under which the fewest ways are found together; of
// those that leave but a list, the one that most ways have, so that there are few tables.
// A criterion of few ways is none: to look up a field for each of many names takes longer
// than to look through the ways. The zero value: there is none left.
func (c *counts) rarest(demands []demand, used []criterion) (best criterion) {
	fewest := math.MaxInt
	for i := range demands {
		d := &demands[i]
		if slices.Contains(used, d.criterion) || c.holders[d.criterion] <= maxListed {
			continue
		}
		n := maxListed
		for _, v := range d.values {
			n = max(n, c.values[d.criterion][v])
		}
		if n < fewest || n == fewest && c.holders[d.criterion] > c.holders[best] {
			best, fewest = d.criterion, n
		}
	}
	return best
}
