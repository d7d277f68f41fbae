package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/r8limiter/r8limiter/limiter"
)

// Template makes a value out of a request: literal text and placeholders such
// as {header.X-User-Id|lower}. The zero Template is not set.
type Template struct {
	text  string
	parts []templatePart
}

// source says where a placeholder takes its value from.
type source uint8

const (
	fromLiteral source = iota
	fromHeader
	fromQuery
	fromCookie
	fromPath
	fromClientIP
	fromHost
	fromMethod
	fromRoute
	fromJWT
	fromBasicUser
	fromKeyUser
	fromKeyPlan
)

// sources are the placeholders by name; those in named take an argument.
var (
	sources = map[string]source{
		"client_ip": fromClientIP, "host": fromHost, "method": fromMethod, "route": fromRoute,
		"basic_user": fromBasicUser, "api_key.user_id": fromKeyUser, "api_key.plan": fromKeyPlan,
	}
	namedSources = map[string]source{"header": fromHeader, "query": fromQuery, "cookie": fromCookie, "path": fromPath, "jwt": fromJWT}
)

type templatePart struct {
	from    source
	arg     string // the literal text, or the name of the header, parameter, cookie, segment or claim
	index   int    // of fromPath: which of the route's names; of fromJWT: which claim; set by bindPath and bindClaims
	filters []filter
}

// filter changes value[from:] in place or appends its replacement there.
type filter func(value []byte, from int) []byte

var filters = map[string]filter{"lower": lowerFilter, "sha256": sha256Filter}

func lowerFilter(value []byte, from int) []byte {
	for i := from; i < len(value); i++ {
		value[i] = lowerByte(value[i])
	}
	return value
}

func sha256Filter(value []byte, from int) []byte {
	sum := sha256.Sum256(value[from:])
	return hex.AppendEncode(value[:from], sum[:])
}

// UnmarshalText parses the template; see ParseTemplate.
func (t *Template) UnmarshalText(text []byte) error {
	parsed, err := ParseTemplate(string(text))
	if err != nil {
		return err
	}
	*t = parsed
	return nil
}

// String is the template as it was written.
func (t Template) String() string { return t.text }

// MarshalText writes the template as it was written.
func (t Template) MarshalText() ([]byte, error) { return []byte(t.text), nil }

func (t Template) isSet() bool { return t.text != "" }

// static is the value of a template without placeholders.
func (t Template) static() (string, bool) {
	if len(t.parts) == 1 && t.parts[0].from == fromLiteral {
		return t.parts[0].arg, true
	}
	return "", len(t.parts) == 0
}

// ParseTemplate reads literal text with placeholders in braces.
func ParseTemplate(text string) (Template, error) {
	t := Template{text: text}
	if text == "" {
		return t, fmt.Errorf("is empty; leave the key out or give a value")
	}
	for rest := text; rest != ""; {
		open := strings.IndexAny(rest, "{}")
		if open < 0 {
			t.parts = append(t.parts, templatePart{arg: rest})
			break
		}
		if open > 0 {
			t.parts = append(t.parts, templatePart{arg: rest[:open]})
		}
		end := strings.IndexAny(rest[open+1:], "{}")
		if rest[open] == '}' || end < 0 || rest[open+1+end] == '{' {
			return t, fmt.Errorf("%q has an unpaired brace", text)
		}
		part, err := parsePlaceholder(rest[open+1 : open+1+end])
		if err != nil {
			return t, err
		}
		t.parts = append(t.parts, part)
		rest = rest[open+end+2:]
	}
	return t, nil
}

func parsePlaceholder(text string) (templatePart, error) {
	name, filterNames, hasFilters := strings.Cut(text, "|")
	part, err := parseSource(name)
	if err != nil || !hasFilters {
		return part, err
	}
	for f := range strings.SplitSeq(filterNames, "|") {
		apply, ok := filters[f]
		if !ok {
			return part, fmt.Errorf("{%s}: unknown filter %q; there are lower and sha256%s", text, f, limiter.DidYouMean(f, sortedKeys(filters)))
		}
		part.filters = append(part.filters, apply)
	}
	return part, nil
}

func parseSource(name string) (templatePart, error) {
	if from, ok := sources[name]; ok {
		return templatePart{from: from}, nil
	}
	kind, arg, _ := strings.Cut(name, ".")
	from, ok := namedSources[kind]
	switch {
	case !ok:
		return templatePart{}, errPlaceholder(name)
	case arg == "":
		return templatePart{}, fmt.Errorf("{%s} needs a name, as in {%s.NAME}", name, kind)
	case from == fromHeader && !isToken([]byte(arg)):
		return templatePart{}, fmt.Errorf("{%s}: %q is no header name", name, arg)
	}
	return templatePart{from: from, arg: arg}, nil
}

// errPlaceholder is what is wrong with a placeholder of that name: it may be a slip.
func errPlaceholder(name string) error {
	kind, arg, _ := strings.Cut(name, ".")
	if near, ok := limiter.Nearest(kind, sortedKeys(namedSources)); ok && arg != "" {
		return fmt.Errorf("unknown placeholder {%s}; did you mean {%s.%s}?", name, near, arg)
	}
	if near, ok := limiter.Nearest(name, sortedKeys(sources)); ok {
		return fmt.Errorf("unknown placeholder {%s}; did you mean {%s}?", name, near)
	}
	return fmt.Errorf("unknown placeholder {%s}; there are {header.N} {query.N} {cookie.N} {path.N} {jwt.CLAIM} {api_key.user_id} {api_key.plan} {basic_user} {client_ip} {host} {method} {route}", name)
}

// bindPath looks up every {path.N} among the segments that a route's paths name.
func (t *Template) bindPath(names []string) error {
	t.parts = slices.Clone(t.parts) // the configuration's own stay as they are
	for i := range t.parts {
		p := &t.parts[i]
		if p.from != fromPath {
			continue
		}
		if p.index = slices.Index(names, p.arg); p.index < 0 {
			return fmt.Errorf("{path.%s}: match.path has no segment {%s}, or not in each of its paths%s", p.arg, p.arg, limiter.DidYouMean(p.arg, names))
		}
	}
	return nil
}

// appendTo appends the value for r. A template is empty, and appends nothing,
// if any of its placeholders is. err is the client's fault: a value that is
// there twice or can't be decoded, or a claim that is no text.
func (t *Template) appendTo(dst []byte, r *request) (out []byte, err error) {
	start := len(dst)
	for i := range t.parts {
		p := &t.parts[i]
		from := len(dst)
		if dst, err = p.appendTo(dst, r); err != nil {
			return dst[:start], err
		}
		if len(dst) == from {
			return dst[:start], nil
		}
		for _, f := range p.filters {
			dst = f(dst, from)
		}
	}
	return dst, nil
}

func (p *templatePart) appendTo(dst []byte, r *request) ([]byte, error) {
	switch p.from {
	case fromLiteral:
		return append(dst, p.arg...), nil
	case fromHeader:
		value, err := r.header(p.arg)
		return append(dst, value...), err
	case fromQuery:
		return r.appendQuery(dst, p.arg)
	case fromCookie:
		return r.appendCookie(dst, p.arg)
	case fromPath:
		return append(dst, r.segments[r.way.at[p.index]]...), nil
	case fromClientIP:
		return r.appendClient(dst), nil
	case fromHost:
		return append(dst, r.host...), nil
	case fromMethod:
		return append(dst, r.method...), nil
	case fromJWT:
		return r.appendClaim(dst, p.index)
	case fromBasicUser:
		return r.appendBasicUser(dst)
	case fromKeyUser:
		return append(dst, r.key.userID()...), nil
	case fromKeyPlan:
		return append(dst, r.key.planName()...), nil
	default:
		return append(dst, r.route.name...), nil
	}
}
