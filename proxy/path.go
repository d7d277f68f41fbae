package proxy

import "bytes"

// reading is one way to understand a path. Servers differ in these points, so
// a path that routes differently under two readings is refused: what we match
// would not be what the upstream serves.
type reading uint8

// The points in which readings differ. The zero reading is the one we match
// on: every escape decoded, an encoded slash inside its segment.
const (
	slashSplits     reading = 1 << iota // %2F separates segments
	backslashSplits                     // %5C separates segments
	mergeSlashes                        // empty segments are dropped
	resolveDots                         // . and .. are resolved
	dotStaysEncoded                     // %2E is no dot
)

// readings says in which points a raw path can be read in more than one way;
// 0 for nearly every path there is. err is for paths that no reading can save.
func readings(path []byte) (points reading, escaped bool, err error) {
	for i, c := range path {
		switch c {
		case '\\':
			return 0, false, &badRequest{"the path holds a backslash"}
		case '/':
			if i > 0 && path[i-1] == '/' {
				points |= mergeSlashes
			}
			if isDotSegment(path[i+1:]) {
				points |= resolveDots
			}
		case '%':
			escaped = true
			decoded, ok := unhex(path[i:])
			if !ok {
				return 0, false, &badRequest{"the path holds a percent sign without two hex digits"}
			}
			switch decoded {
			case 0:
				return 0, false, &badRequest{"the path holds an encoded NUL"}
			case '/':
				points |= slashSplits | mergeSlashes | resolveDots
			case '\\':
				points |= backslashSplits | mergeSlashes | resolveDots
			case '.':
				points |= dotStaysEncoded | resolveDots
			}
		}
	}
	return points, escaped, nil
}

// isDotSegment says whether the segment that s begins with is . or ..
func isDotSegment(s []byte) bool {
	if end := bytes.IndexByte(s, '/'); end >= 0 {
		s = s[:end]
	}
	return len(s) > 0 && len(s) <= 2 && s[0] == '.' && s[len(s)-1] == '.'
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

// splitAs cuts and decodes a path under one reading. The segments lie in
// memory appended to scratch.
func splitAs(segments [][]byte, scratch, path []byte, as reading) ([][]byte, []byte) {
	start := len(scratch)
	first := len(segments)
	for i := 1; i < len(path); i++ {
		c, wide := path[i], 0
		if c == '%' {
			c, _ = unhex(path[i:])
			wide = 2
		}
		switch {
		case c == '/' && (wide == 0 || as&slashSplits != 0), c == '\\' && as&backslashSplits != 0:
			segments = endSegment(segments, first, scratch[start:], as)
			start = len(scratch)
		case c == '.' && wide > 0 && as&dotStaysEncoded != 0:
			scratch = append(scratch, path[i:i+3]...)
		default:
			scratch = append(scratch, c)
		}
		i += wide
	}
	last := scratch[start:]
	if as&resolveDots != 0 && isDotSegment(last) {
		segments = endSegment(segments, first, last, as)
		last = nil
	}
	return append(segments, last), scratch
}

// endSegment adds a segment that a slash follows.
func endSegment(segments [][]byte, first int, s []byte, as reading) [][]byte {
	switch {
	case len(s) == 0 && as&mergeSlashes != 0:
		return segments
	case as&resolveDots == 0 || len(s) == 0 || len(s) > 2 || !isDotSegment(s):
		return append(segments, s)
	case len(s) == 2 && len(segments) > first:
		return segments[:len(segments)-1]
	}
	return segments
}

var errAmbiguousPath = &badRequest{"the path can be read in several ways (encoded slashes or dots, empty or dot segments) that match different routes"}

// resolve finds the route of r: the one that every reading of the path leads to,
// with the same values for the segments that the route names. nil: no route.
func (rt *router) resolve(r *request) (*route, error) {
	r.segments = r.segments[:0]
	if r.path[0] != '/' { // OPTIONS *
		return rt.match(r, nil), nil
	}
	points, escaped, err := readings(r.path)
	if err != nil {
		return nil, err
	}
	if !escaped {
		r.segments = splitPlain(r.segments, r.path)
	} else {
		r.segments, r.scratch = splitAs(r.segments, r.scratch, r.path, 0)
	}
	found := rt.match(r, r.segments)
	if points != 0 && !rt.unanimous(r, found, points) {
		return nil, errAmbiguousPath
	}
	return found, nil
}

// unanimous says whether every combination of the points leads to found.
func (rt *router) unanimous(r *request, found *route, points reading) bool {
	var memory [32][]byte
	for as := points; as != 0; as = (as - 1) & points {
		var segments [][]byte
		segments, r.scratch = splitAs(memory[:0], r.scratch, r.path, as)
		if rt.match(r, segments) != found || !found.sameParams(r.segments, segments) {
			return false
		}
	}
	return true
}

// sameParams says whether the segments that the route reads are the same.
func (rt *route) sameParams(a, b [][]byte) bool {
	if rt == nil {
		return true
	}
	for _, segment := range rt.path.params {
		if !bytes.Equal(a[segment], b[segment]) {
			return false
		}
	}
	return true
}
