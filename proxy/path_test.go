package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The reference: every reading of a path as a row of steps on strings, and
// every route tried in turn. Slow, and each step can be seen to be right.

var (
	badEscape  = regexp.MustCompile(`%($|.$|[^0-9A-Fa-f]|.[^0-9A-Fa-f])`)
	bareDots   = regexp.MustCompile(`(?is)(/|%2f|%5c)(\.|%2e){1,2}(;|%3b)`)
	bareEmpty  = regexp.MustCompile(`(?is)(/|%2f|%5c)(;|%3b).*(/|%2f|%5c)`)
	separators = regexp.MustCompile(`(?i)/|%2f|%5c`)
	escapes    = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
	rawParams  = regexp.MustCompile(`;[^/]*`)
)

// hopeless says whether a path is refused whatever the routes are.
func hopeless(path string) bool {
	return badEscape.MatchString(path) || strings.Contains(path, `\`) || strings.Contains(path, "%00") ||
		bareDots.MatchString(path) || bareEmpty.MatchString(path)
}

func merged(segments []string) (out []string) {
	for i, s := range segments {
		if s != "" || i == len(segments)-1 {
			out = append(out, s)
		}
	}
	return out
}

func resolved(segments []string) (out []string) {
	for i, s := range segments {
		switch {
		case s == "..":
			out = out[:max(0, len(out)-1)]
		case s != ".":
			out = append(out, s)
			continue
		}
		if i == len(segments)-1 {
			out = append(out, "")
		}
	}
	return out
}

func cut(segments []string) (out []string) {
	for _, s := range segments {
		s, _, _ = strings.Cut(s, ";")
		out = append(out, s)
	}
	return out
}

// steps are the ways to go on once a path is split.
var steps = []func([]string) []string{
	func(s []string) []string { return s },
	merged,
	resolved,
	func(s []string) []string { return resolved(merged(s)) },
	func(s []string) []string { return merged(resolved(s)) },
}

func unescaped(escape string) byte {
	n, err := strconv.ParseUint(escape[1:], 16, 8)
	if err != nil {
		panic(err)
	}
	return byte(n)
}

// decode splits and decodes a path. A slash or backslash that splits nothing
// is put by as a byte that no accepted path holds.
func decode(path string, slash, backslash, dot bool) []string {
	text := escapes.ReplaceAllStringFunc(path[1:], func(escape string) string {
		c := unescaped(escape)
		switch {
		case c == '/' && !slash:
			return "\x00"
		case c == '\\' && backslash:
			return "/"
		case c == '.' && !dot:
			return escape
		}
		return string([]byte{c})
	})
	segments := strings.Split(text, "/")
	for i := range segments {
		segments[i] = strings.ReplaceAll(segments[i], "\x00", "/")
	}
	return segments
}

// allReadings are the different lists of segments that the readings make; the first is ours.
func allReadings(path string) (all [][]string) {
	for choice := range 8 {
		slash, backslash, dot := choice&1 != 0, choice&2 != 0, choice&4 == 0
		whole := decode(path, slash, backslash, dot)
		late := cut(whole)
		early := decode(rawParams.ReplaceAllString(path, ""), slash, backslash, dot)
		for _, step := range steps {
			for _, segments := range [][]string{whole, late, early} {
				if segments = step(segments); !slices.ContainsFunc(all, func(s []string) bool { return slices.Equal(s, segments) }) {
					all = append(all, segments)
				}
			}
		}
	}
	return all
}

// referenceRoute is the first pattern that the segments match, "" for none,
// followed by the values of its named segments.
func referenceRoute(patterns, segments []string) string {
	for _, pattern := range patterns {
		parts := strings.Split(pattern, "/")[1:]
		if parts[len(parts)-1] == "*" {
			if parts = parts[:len(parts)-1]; len(segments) <= len(parts) {
				continue
			}
		} else if len(segments) != len(parts) {
			continue
		}
		found, matches := pattern, true
		for i, part := range parts {
			named := strings.HasPrefix(part, "{")
			matches = matches && (segments[i] == part || named && segments[i] != "")
			if named {
				found += fmt.Sprintf(" %q", segments[i])
			}
		}
		if matches {
			return found
		}
	}
	return ""
}

var errUnclear = errors.New("unclear")

// reference is what all readings of a path lead to.
func reference(patterns []string, path string, all [][]string) (string, error) {
	if all == nil {
		return "", errUnclear
	}
	found := referenceRoute(patterns, all[0])
	for _, segments := range all[1:] {
		if len(separators.FindAllString(path, -1)) > maxPathParts || referenceRoute(patterns, segments) != found {
			return "", errUnclear
		}
	}
	return found, nil
}

// routeSets are what the readings are compared on.
var routeSets = [][]string{
	{"/*"},
	{"/admin/*", "/v1/{id}", "/v1/*"},
	{"/v1/items/{id}", "/v1/items/new", "/v1/*", "/exact", "/dir/"},
	{"/a/b", "/{x}/b", "/a/{y}", "/{x}/{y}/c", "/*"},
	{"/a/.x/b", "/a/", "/", "/b/*", "/{x}"},
	{"/b", "/a/b/*", "/*"},
	{"/a", "/b/{x}", "/{x}/a/*"},
}

// describe is what resolve found, in the words of referenceRoute.
func describe(found *route, r *request) string {
	if found == nil {
		return ""
	}
	text := []byte(found.name)
	for i, part := range strings.Split(found.name, "/")[1:] {
		if strings.HasPrefix(part, "{") {
			text = fmt.Appendf(text, " %q", r.segments[i])
		}
	}
	return string(text)
}

// checkPath compares resolve with the reference for every set of routes.
func checkPath(t *testing.T, routers []*router, path string) {
	t.Helper()
	var all [][]string
	if !hopeless(path) {
		all = allReadings(path)
	}
	for i, rt := range routers {
		r := &request{path: []byte(path)}
		found, err := rt.resolve(r)
		wantFound, wantErr := reference(routeSets[i], path, all)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("routes %q, path %q: got %v, want %v", routeSets[i], path, err, wantErr)
		}
		if err != nil {
			continue
		}
		if got := describe(found, r); got != wantFound {
			t.Fatalf("routes %q, path %q: got %s, want %s", routeSets[i], path, got, wantFound)
		}
		u, err := url.ParseRequestURI(path)
		if err != nil || u.Path != "/"+string(bytes.Join(r.segments, []byte("/"))) {
			t.Fatalf("path %q: segments %q, but net/url reads %v, %v", path, r.segments, u, err)
		}
	}
}

func routersOf(tb testing.TB) (routers []*router) {
	for _, patterns := range routeSets {
		routers = append(routers, newTestRouter(tb, patterns...))
	}
	return routers
}

// FuzzPathReadings checks that a path is refused exactly if two readings of it
// lead to different routes or values, and that net/http reads it as we do.
func FuzzPathReadings(f *testing.F) {
	for _, path := range []string{
		"/v1/x", "/v1/../admin", "/%2e%2e/a", "/a%2Fb", "//a", "/a%5Cb", "/v1/%2e%2e%2fadmin/x", "/a;x/b", "/a/..;/b", "/a%3Bx%2Fc/b",
		"/x//w//../../b", "/a;%2Fb", "/a;%2F..%2F/b", "/;x", "/a/;", "/%zz", "/a;/%2e%3b", "/.", "/a/%2E", strings.Repeat("/a", 70) + ";", strings.Repeat("/a", 62) + "//",
	} {
		f.Add(path)
	}
	routers := routersOf(f)
	f.Fuzz(func(t *testing.T, path string) {
		if strings.HasPrefix(path, "/") && !strings.ContainsFunc(path, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '?' || c == '#' }) {
			checkPath(t, routers, path)
		}
	})
}

// TestEveryShortPathIsReadAsTheReferenceReadsIt goes through all the paths
// that some few pieces make.
func TestEveryShortPathIsReadAsTheReferenceReadsIt(t *testing.T) {
	routers := routersOf(t)
	pieces := []string{"/", "a", "b", "..", ".", ";", "%2F", "%5c", "%2e", "%3B"}
	var walk func(path string, depth int)
	walk = func(path string, depth int) {
		checkPath(t, routers, path)
		if depth > 0 {
			for _, piece := range pieces {
				walk(path+piece, depth-1)
			}
		}
	}
	walk("/", 3)
}

func TestWhatAPathMayHold(t *testing.T) {
	rt := newTestRouter(t, "/internal/*", "/items/{id}", "/x/z", "/*")
	for _, c := range []struct{ path, want string }{
		{"/", "/*"},
		{"/shop;jsessionid=1/cart", "/*"},
		{"/;jsessionid=1", "/*"},
		{"/internal;x/a", ""},
		{"/internal%3Bx/a", ""},
		{"/internal;x%2Fa/b", ""},
		{"/internal;%2Fb", ""}, // internal and b only to those who split first and then cut
		{"/;/internal/a", ""},
		{"/a/..;/internal/a", ""},
		{"/a/..;/b", ""},
		{"/a/.;x=1/b", ""},
		{"/a/%2e%2E%3bx/b", ""},
		{"/a%2f..;x/b", ""},
		{"/items/7;v=2", ""}, // the value of {id} is 7, or 7;v=2
		{"/items/a%2Eb", ""},
		{"/items/7", "/items/{id}"},
		{"/items/%41b", "/items/{id}"},
		{"/x//w//../../z", ""}, // dots first, then slashes: /x/z
		{"/a%252Finternal", "/*"},
		{"/%252e%252e/internal", "/*"},
		{"/Internal/a", "/*"},
		{"/internal", "/*"},
		{"/a\x80\xff", "/*"},
		{"/a%0d%0a%01%7f%ff", "/*"},
		{"/*", "/*"},
		{"/a%00", ""},
		{`/a\b`, ""},
		{"/a%5Cb", "/*"},
		{"/a%5Cinternal", "/*"},
		{"/internal%5Ca", ""},
		{"/a%", ""},
		{"/a%4", ""},
		{"/a%u002f", ""},
		{strings.Repeat("/a", 1000), "/*"},
		{strings.Repeat("/a", 63) + "%2Fb", "/*"},
		{strings.Repeat("/a", 64) + "%2Fb", ""},
	} {
		found, err := rt.resolve(&request{path: []byte(c.path)})
		got := ""
		if err == nil {
			got = found.name
		}
		if got != c.want {
			t.Errorf("%.60s: got %q (%v), want %q", c.path, got, err, c.want)
		}
	}
}

// TestHostilePathsCostNoMemory pins what bounds the work for a path that has
// every point: no reading of it allocates.
func TestHostilePathsCostNoMemory(t *testing.T) {
	rt := newTestRouter(t, "/internal/{id}/x", "/*")
	r := &request{path: []byte("/a;b%2Fc%5Cd%2Ee%3B//./f" + strings.Repeat("/..", 52)), method: []byte("GET")}
	got := testing.AllocsPerRun(100, func() {
		r.scratch = r.scratch[:0]
		if _, err := rt.resolve(r); err != nil {
			t.Fatal(err)
		}
	})
	if got != 0 {
		t.Errorf("%v allocations", got)
	}
}
