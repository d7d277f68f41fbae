package simulate

import (
	"fmt"
	"slices"
	"strings"
)

// FieldMap says where a line of JSON has what a request is made of. The zero value
// knows the names that are usual; see usualFields.
type FieldMap struct {
	given   bool                  // something is not as usual
	paths   map[string][][]string // by what is there; the first path that a line has counts
	headers []mapped
	claims  []mapped
}

// mapped is a header field or a claim, and the path to it.
type mapped struct {
	name  string
	bytes []byte // of the name
	path  []string
}

// usualFields are the paths that are tried for what -fields says nothing of.
var usualFields = map[string][]string{
	"time":      {"time", "ts", "timestamp", `@timestamp`, "time_iso8601", "msec", "time_local", "start_time"},
	"request":   {"request"},
	"method":    {"method", "request_method", "http_method"},
	"uri":       {"request_uri", "uri", "path", "url"},
	"host":      {"host", "http_host", "authority"},
	"client_ip": {"client_ip", "remote_addr", "remote_ip", "client", "ip"},
	"scheme":    {"scheme"},
	"user":      nil,
	"resource":  nil,
	"plan":      nil,
	"cost":      nil,
}

// ParseFields reads a map as the command line gives it, like
// time=ts,uri=req.uri,header.X-User-Id=headers.x_user,jwt.sub=user. Dots lead into
// objects; \. and \, are a dot and a comma of a name.
func ParseFields(text string) (FieldMap, error) {
	m := FieldMap{paths: map[string][][]string{}}
	for what, names := range usualFields {
		for _, name := range names {
			m.paths[what] = append(m.paths[what], splitPath(name))
		}
	}
	if text == "" {
		return m, nil
	}
	m.given = true
	given := map[string]bool{}
	for _, pair := range splitEscaped(text, ',') {
		what, path, ok := strings.Cut(pair, "=")
		if !ok || what == "" || path == "" {
			return m, fmt.Errorf("%q is no pair like time=ts", pair)
		}
		if given[what] {
			return m, fmt.Errorf("%q is there twice", what)
		}
		given[what] = true
		if err := m.set(what, splitPath(path)); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (m *FieldMap) set(what string, path []string) error {
	if name, ok := strings.CutPrefix(what, "header."); ok && name != "" {
		m.headers = append(m.headers, mapped{name, []byte(name), path})
		return nil
	}
	if name, ok := strings.CutPrefix(what, "jwt."); ok && name != "" {
		m.claims = append(m.claims, mapped{name, []byte(name), path})
		return nil
	}
	if _, ok := usualFields[what]; !ok {
		return fmt.Errorf("%q is none of time, request, method, uri, host, client_ip, scheme, user, resource, plan, cost, header.NAME, jwt.NAME", what)
	}
	m.paths[what] = [][]string{path}
	return nil
}

// has says whether a template's source, as in header.X-User-Id, can be in a line.
func (m *FieldMap) has(source string) bool {
	kind, name, _ := strings.Cut(source, ".")
	is := func(f mapped) bool { return strings.EqualFold(f.name, name) }
	switch kind {
	case "header":
		return slices.ContainsFunc(m.headers, is)
	case "cookie":
		return slices.ContainsFunc(m.headers, func(f mapped) bool { return strings.EqualFold(f.name, "Cookie") })
	case "jwt":
		return slices.ContainsFunc(m.claims, func(f mapped) bool { return f.name == name })
	case "query", "host", "client_ip", "method", "route", "path":
		return true
	}
	return false
}

// wanted says, for an error, which names a line may have for what is missing.
func (m *FieldMap) wanted(what string) string {
	names := make([]string, len(m.paths[what]))
	for i, path := range m.paths[what] {
		names[i] = strings.Join(path, ".")
	}
	return strings.Join(names, ", ")
}

func splitPath(path string) []string { return splitEscaped(path, '.') }

// splitEscaped splits at separators that have no backslash before them, and takes the
// backslash off those that have.
func splitEscaped(text string, separator byte) []string {
	var parts []string
	var part strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text) && text[i+1] == separator:
			i++
			part.WriteByte(separator)
		case text[i] == separator:
			parts = append(parts, part.String())
			part.Reset()
		default:
			part.WriteByte(text[i])
		}
	}
	return append(parts, part.String())
}
