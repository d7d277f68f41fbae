package proxy

import (
	"bytes"
	"math"
)

// reading is one way to understand a path. Servers differ in these points, so
// a path that routes differently under two readings is refused: what we match
// would not be what the upstream serves.
//
// A reading is that of one server. It goes: cut raw parameters, decode and
// split, cut decoded parameters, merge slashes, resolve dots (or these two the
// other way round). Not among the points are a second decoding (%252F is %2F
// to everybody but a server that is set up wrong), letter case, a trailing
// slash (/a and /a/ are two paths), overlong UTF-8 (%C0%AF), and chains of
// servers that each rewrite the path in a way of their own.
type reading uint8

// The points in which readings differ. The zero reading is the one we match
// on: every escape decoded, an encoded slash inside its segment, parameters
// part of their segment.
const (
	slashSplits     reading = 1 << iota // %2F separates segments
	backslashSplits                     // %5C separates segments
	mergeSlashes                        // empty segments are dropped
	resolveDots                         // . and .. are resolved
	dotsFirst                           // ... before the empty segments are dropped, which .. takes for segments; with both only
	dotStaysEncoded                     // %2E is no dot
	cutRaw                              // from ; to the next raw slash is a parameter, cut before anything is decoded (Tomcat)
	cutDecoded                          // from ; or %3B to the end of its segment is a parameter, cut after decoding; never with cutRaw
)

// possible says whether a server may read that way: some points exclude, or
// make sense only with, others.
func (as reading) possible() bool {
	const both, either = mergeSlashes | resolveDots, cutRaw | cutDecoded
	return (as&dotsFirst == 0 || as&both == both) && as&either != either
}

// splits says whether a separator ends a segment; by is the point that is
// about it, 0 for a raw slash.
func (as reading) splits(by reading) bool { return by == 0 || as&by != 0 }

// maxPathParts bounds what an ambiguous path may cost: with at most 120 readings
// of 64 parts, resolve stays under 100 µs. Clear paths may have any number.
const maxPathParts = 64

var (
	errAmbiguousPath  = badRequest("the path can be read in several ways (encoded slashes or dots, empty or dot segments, parameters behind a semicolon) that match different routes")
	errLongAmbiguous  = badRequest("the path can be read in several ways and has more than 64 segments")
	errBackslash      = badRequest("the path holds a backslash")
	errPathEscape     = badRequest("the path holds a percent sign without two hex digits")
	errNUL            = badRequest("the path holds an encoded NUL")
	errBareParameters = badRequest("the path holds a segment that is empty or dots but for its parameters, as in /..;/")
)

// pathMarks are the bytes of a raw path that may make it ambiguous; a slash
// and a dot do so only behind a slash.
var pathMarks = [256]bool{'/': true, '.': true, '%': true, ';': true, '\\': true}

// isPlain says of nearly every path that there is one reading of it.
func isPlain(path []byte) bool {
	before := byte(0)
	for _, c := range path {
		if pathMarks[c] && (before == '/' || c != '/' && c != '.') {
			return false
		}
		before = c
	}
	return true
}

// readings says in which points a raw path can be read in more than one way. err is for paths that no reading can save.
func readings(path []byte) (points reading, escaped bool, err error) {
	bare := false // this segment begins with a semicolon, so it must be the last
	for i := 0; i < len(path); i++ {
		c, wide := path[i], 1
		if !pathMarks[c] {
			continue
		}
		if c == '%' {
			var ok bool
			if c, ok = unhex(path[i:]); !ok {
				return 0, false, errPathEscape
			}
			escaped, wide = true, 3
		}
		switch {
		case c == 0:
			return 0, false, errNUL
		case c == '\\' && wide == 1:
			return 0, false, errBackslash
		case c == '/' || c == '\\':
			opening, err := segmentOpening(path[i+wide:])
			if err != nil || bare {
				return 0, false, errBareParameters
			}
			points |= separatedBy(c, wide) | opening
			bare = startsWith(path[i+wide:], ';')
		case c == '.' && wide > 1:
			points |= dotStaysEncoded
		case c == ';' && wide == 1:
			points |= cutRaw
		case c == ';':
			points |= cutDecoded
		}
		i += wide - 1
	}
	return points.completed(), escaped, nil
}

// completed adds the points that other points bring with them.
func (as reading) completed() reading {
	if as&mergeSlashes != 0 && as&resolveDots != 0 {
		as |= dotsFirst
	}
	if as&cutRaw != 0 && as&(slashSplits|backslashSplits) != 0 {
		as |= cutDecoded // a parameter may hold %2F, or end there
	}
	return as
}

// separatedBy is the point that decides about the separator c; 0 for a raw slash.
func separatedBy(c byte, wide int) reading {
	switch {
	case wide == 1:
		return 0
	case c == '/':
		return slashSplits
	}
	return backslashSplits
}

// segmentOpening says which points the segment at the start of s brings up: it may
// be empty or dots. That it is so only without its parameters is an error:
// no client means that, and Java servers resolve /..;/ after their proxies did not.
func segmentOpening(s []byte) (reading, error) {
	dots := 0
	for dots < 3 && startsWith(s, '.') {
		s = s[width(s):]
		dots++
	}
	separated := startsWith(s, '/') || startsWith(s, '\\')
	switch {
	case dots == 0 && separated:
		return mergeSlashes, nil
	case dots == 1 || dots == 2:
		if startsWith(s, ';') {
			return 0, errBareParameters
		}
		if separated || len(s) == 0 {
			return resolveDots, nil
		}
	}
	return 0, nil
}

// startsWith says whether s begins with c, raw or encoded.
func startsWith(s []byte, c byte) bool {
	if len(s) == 0 || s[0] != '%' {
		return len(s) > 0 && s[0] == c
	}
	decoded, ok := unhex(s)
	return ok && decoded == c
}

// width is how many bytes of s the first character takes up, encoded or not.
func width(s []byte) int {
	if s[0] == '%' {
		return 3
	}
	return 1
}

// splitPlain cuts a path without escapes at its slashes.
func splitPlain(segments [][]byte, path []byte) [][]byte {
	rest := path[1:]
	for {
		slash := bytes.IndexByte(rest, '/')
		if slash < 0 {
			return append(segments, rest)
		}
		segments = append(segments, rest[:slash])
		rest = rest[slash+1:]
	}
}

// splitDecoded cuts a path at its slashes and decodes the segments, which lie
// in memory appended to scratch.
func splitDecoded(segments [][]byte, scratch, path []byte) ([][]byte, []byte) {
	start := len(scratch)
	for i := 1; i < len(path); i++ {
		switch c := path[i]; c {
		case '/':
			segments = append(segments, scratch[start:])
			start = len(scratch)
		case '%':
			decoded, _ := unhex(path[i:])
			scratch = append(scratch, decoded)
			i += 2
		default:
			scratch = append(scratch, c)
		}
	}
	return append(segments, scratch[start:]), scratch
}

// pathPart is what lies between two separators of any kind. Neighbours lie in
// the same text with their separator between them, so that a reading which
// does not split there joins them without a copy.
type pathPart struct {
	by         reading // the point that decides about the separator before it
	start, end int
	rawCut     int // its first raw semicolon, or end
	cut        int // its first semicolon of either kind, or end
}

// pathParts is a path cut at everything that may be a separator.
type pathParts struct {
	text []byte
	list [maxPathParts]pathPart
	n    int
}

// cutInto decodes and cuts a path, %2E only if dots are set. The text lies in
// memory appended to scratch. False: there are more than maxPathParts.
func (ps *pathParts) cutInto(scratch, path []byte, dots bool) ([]byte, bool) {
	from := len(scratch)
	ps.open(0, 0)
	for i := 1; i < len(path); i++ {
		c, wide := path[i], 1
		if c == '%' {
			c, _ = unhex(path[i:])
			wide = 3
		}
		at := len(scratch) - from
		switch {
		case c == '.' && wide > 1 && !dots:
			scratch = append(scratch, path[i:i+wide]...)
		default:
			scratch = append(scratch, c)
		}
		p := &ps.list[ps.n-1]
		switch {
		case c == '/', c == '\\':
			p.close(at)
			if !ps.open(separatedBy(c, wide), at+1) {
				return scratch, false
			}
		case c == ';':
			p.cut = min(p.cut, at)
			if wide == 1 {
				p.rawCut = min(p.rawCut, at)
			}
		}
		i += wide - 1
	}
	ps.text = scratch[from:]
	ps.list[ps.n-1].close(len(ps.text))
	return scratch, true
}

// noCut stands for no semicolon until the part is closed.
const noCut = math.MaxInt

func (ps *pathParts) open(by reading, start int) bool {
	if ps.n == maxPathParts {
		return false
	}
	ps.list[ps.n] = pathPart{by: by, start: start, rawCut: noCut, cut: noCut}
	ps.n++
	return true
}

func (p *pathPart) close(end int) {
	p.end, p.rawCut, p.cut = end, min(p.rawCut, end), min(p.cut, end)
}

// segmentsAs appends the segments under one reading.
func (ps *pathParts) segmentsAs(segments [][]byte, as reading) [][]byte {
	start, end, done := 0, 0, false // of the segment; done: cut, the rest of it is not wanted
	for i := range ps.list[:ps.n] {
		p := &ps.list[i]
		// A parameter that is cut before decoding goes on to the next raw slash.
		if done && as&cutRaw != 0 && p.by != 0 {
			continue
		}
		if i > 0 && as.splits(p.by) {
			segments = endSegment(segments, ps.text[start:end], as)
			start, done = p.start, false
		}
		if done {
			continue
		}
		switch {
		case as&cutRaw != 0:
			end = p.rawCut
		case as&cutDecoded != 0:
			end = p.cut
		default:
			end = p.end
		}
		done = end < p.end
	}
	segments = endPath(segments, ps.text[start:end], as)
	if as&dotsFirst != 0 {
		segments = withoutEmpty(segments)
	}
	return segments
}

// endSegment adds a segment that a separator follows.
func endSegment(segments [][]byte, s []byte, as reading) [][]byte {
	switch {
	case len(s) == 0 && as&mergeSlashes != 0 && as&dotsFirst == 0:
		return segments
	case as&resolveDots == 0 || !isDotSegment(s):
		return append(segments, s)
	case len(s) == 2 && len(segments) > 0:
		return segments[:len(segments)-1]
	}
	return segments
}

// endPath adds the last segment; behind dots that are resolved it is empty.
func endPath(segments [][]byte, s []byte, as reading) [][]byte {
	if as&resolveDots != 0 && isDotSegment(s) {
		return append(endSegment(segments, s, as), nil)
	}
	return append(segments, s)
}

// isDotSegment says whether s is . or ..
func isDotSegment(s []byte) bool {
	return len(s) > 0 && len(s) <= 2 && s[0] == '.' && s[len(s)-1] == '.'
}

// withoutEmpty drops the empty segments, in place, but not the last.
func withoutEmpty(segments [][]byte) [][]byte {
	kept := segments[:0]
	for i, s := range segments {
		if len(s) > 0 || i == len(segments)-1 {
			kept = append(kept, s)
		}
	}
	return kept
}

// resolve finds the route of r: the one that every reading of the path leads to,
// with the same values for the segments that the route names. nil: no route.
func (rt *router) resolve(r *request) (*route, error) {
	err := rt.findWay(r)
	if r.way == nil || err != nil {
		return nil, err
	}
	return r.way.route, nil
}

// findWay sets r.way, nil for no route, and the segments that it names.
func (rt *router) findWay(r *request) error {
	r.segments, r.way = r.segments[:0], nil
	rt.findRoots(r)
	if r.path[0] != '/' { // OPTIONS *
		r.way = match(r, nil)
		return nil
	}
	if isPlain(r.path) {
		r.segments = splitPlain(r.segments, r.path)
		r.way = match(r, r.segments)
		return nil
	}
	points, escaped, err := readings(r.path)
	if err != nil {
		return err
	}
	if !escaped {
		r.segments = splitPlain(r.segments, r.path)
	} else {
		r.segments, r.scratch = splitDecoded(r.segments, r.scratch, r.path)
	}
	r.way = match(r, r.segments)
	if points == 0 {
		return nil
	}
	return rt.checkUnanimous(r, points)
}

// checkUnanimous refuses r unless every combination of the points leads where r.way does.
func (rt *router) checkUnanimous(r *request, points reading) error {
	var dotted, encoded pathParts
	var ok bool
	if r.scratch, ok = dotted.cutInto(r.scratch, r.path, true); !ok {
		return errLongAmbiguous
	}
	if points&dotStaysEncoded != 0 {
		r.scratch, _ = encoded.cutInto(r.scratch, r.path, false)
	}
	var memory [maxPathParts + 1][]byte
	for as := points; as != 0; as = (as - 1) & points {
		if !as.possible() {
			continue
		}
		ps := &dotted
		if as&dotStaysEncoded != 0 {
			ps = &encoded
		}
		segments := ps.segmentsAs(memory[:0], as)
		if !r.way.isSame(r.segments, match(r, segments), segments) {
			return errAmbiguousPath
		}
	}
	return nil
}

// isSame says whether another way leads to the same route, with the same values for
// the segments that it names.
func (w *way) isSame(segments [][]byte, other *way, otherSegments [][]byte) bool {
	if w == nil || other == nil {
		return w == other
	}
	if w.route != other.route {
		return false
	}
	for i, at := range w.at {
		if !bytes.Equal(segments[at], otherSegments[other.at[i]]) {
			return false
		}
	}
	return true
}
