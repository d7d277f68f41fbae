package proxy

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// ValueMatch is what a header field or a query parameter must be: in the file a
// text, which is the exact value or "*" for any, or exactly one of the keys.
type ValueMatch struct {
	// Exact is the whole value.
	Exact string `yaml:"exact"`
	// Prefix is what the value begins with.
	Prefix string `yaml:"prefix"`
	// Regexp is an expression of Go (RE2) that must match the whole value.
	Regexp string `yaml:"regexp"`
	// Present takes any value, also the empty one.
	Present bool `yaml:"present"`
	// isText says that the file has a text, which may be empty.
	isText bool
}

// UnmarshalText takes the exact value, or "*" for any.
func (m *ValueMatch) UnmarshalText(text []byte) error {
	*m = ValueMatch{Exact: string(text), isText: true}
	if m.Exact == "*" {
		*m = ValueMatch{Present: true}
	}
	return nil
}

// validate reports by the key below the matcher, "" for itself.
func (m *ValueMatch) validate(report func(key, problem string)) {
	given := 0
	for _, is := range []bool{m.Exact != "", m.Prefix != "", m.Regexp != "", m.Present} {
		if is {
			given++
		}
	}
	if given != 1 && !m.isText {
		report("", `wants one way to match: a text for the exact value, "*" for any, or one of exact, prefix, regexp and present`)
	}
	if _, err := compileWhole(m.Regexp); err != nil {
		report(".regexp", fmt.Sprintf("%q is no regular expression: %v", m.Regexp, err))
	}
}

// compileWhole compiles an expression that must match all of a value: half a
// match would be a way around the rule.
func compileWhole(text string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(text); err != nil { // it alone: "a)(b" is none
		return nil, err
	}
	return regexp.Compile(`\A(?s:` + text + `)\z`)
}

// valueMatch is a ValueMatch as it runs.
type valueMatch struct {
	ValueMatch
	name  string
	index int // of a query parameter: in router.queries
	whole *regexp.Regexp
}

// newValueMatches compiles the matchers, by name so that the order is the same
// each time.
func newValueMatches(c map[string]ValueMatch) (all []valueMatch, err error) {
	for _, name := range sortedKeys(c) {
		m := valueMatch{ValueMatch: c[name], name: name}
		if m.Regexp != "" {
			if m.whole, err = compileWhole(m.Regexp); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		all = append(all, m)
	}
	return all, nil
}

// accepts says whether value, of one that is there, matches.
func (m *valueMatch) accepts(value []byte) bool {
	switch {
	case m.Present:
		return true
	case m.whole != nil:
		return m.whole.Match(value)
	case m.Prefix != "":
		return bytes.HasPrefix(value, []byte(m.Prefix))
	}
	return string(value) == m.Exact
}

// acceptsHeader says whether the field of that name matches. That there is at most
// one was checked before.
func (m *valueMatch) acceptsHeader(r *request) bool {
	for i := range r.fields {
		if equalFold(r.fields[i].name, m.name) && m.accepts(r.fields[i].value) {
			return true
		}
	}
	return false
}

func (m *valueMatch) acceptsQuery(r *request) bool {
	q := &r.queries[m.index]
	return q.there && m.accepts(q.value)
}

// queryValue is a parameter of the query, decoded.
type queryValue struct {
	value []byte
	there bool
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
