package proxy

import (
	"fmt"
	"strings"
)

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
