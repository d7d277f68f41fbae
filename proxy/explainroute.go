package proxy

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// This file says why a route does not match. What decides is the router; here is said
// in words what its trees of hosts and paths found, and tests hold the two together.

// traceRoutes adds the routes that were looked at.
func (e *Explanation) traceRoutes(rs *Rules, r *request) {
	for _, rt := range rs.routes {
		t := RouteTrace{Index: rt.index, Route: rt.name, Matched: rt.index == e.Judgement.Index}
		if !t.Matched {
			t.Matcher, t.Why = rs.whyNot(rt, r)
		}
		if !t.Matched && t.Why == "" {
			t.Why = "it is for this route, as the path is read here; other readings lead elsewhere"
		}
		e.Routes = append(e.Routes, t)
		if t.Matched || t.Matcher == "" {
			return
		}
	}
}

// whyNot is the first matcher by which r is not for rt, in the order of host, path
// and the rest, and why; "" where all accept it.
func (rs *Rules) whyNot(rt *route, r *request) (matcher, why string) {
	m := &rs.config.Routes[rt.index].Match
	if hosts := m.hosts(); !slices.ContainsFunc(hosts, func(h string) bool { return isHostOf(h, string(r.host)) }) {
		return "host", fmt.Sprintf("host %s is not %s", quoted(r.host), oneOf(hosts))
	}
	if why := rt.whyNotPath(m.paths(), r); why != "" {
		return "path", why
	}
	by, i := rt.refuses(r)
	switch by {
	case methodMatcher:
		return "methods", fmt.Sprintf("method %s is not %s", r.method, oneOf(rt.methods))
	case clientMatcher:
		return "client_ip", fmt.Sprintf("client %s is not in %s", clientText(r), prefixTexts(rt.clients))
	case headerMatcher:
		return "headers", "header " + rt.headers[i].name + " " + rt.headers[i].lack(r.hasField(rt.headers[i].name))
	case queryMatcher:
		q := &rt.queries[i]
		return "query", "query parameter " + q.name + " " + q.lack(r.queries[q.index].there)
	}
	return "", ""
}

// lack says what is wrong with a value. What it must be may be a secret.
func (m *valueMatch) lack(there bool) string {
	switch {
	case !there:
		return "is absent"
	case m.whole != nil:
		return "does not match the expression"
	case m.Prefix != "":
		return "does not begin with the prefix"
	}
	return "differs"
}

func (r *request) hasField(name string) bool {
	return slices.ContainsFunc(r.fields, func(f field) bool { return equalFold(f.name, name) })
}

func clientText(r *request) string {
	if !r.client.IsValid() {
		return "unknown"
	}
	return r.client.String()
}

func prefixTexts(prefixes []Prefix) string {
	texts := make([]string, len(prefixes))
	for i, p := range prefixes {
		texts[i] = p.String()
	}
	return strings.TrimPrefix(oneOf(texts), "one of ")
}

// maxNamed is how many of several a text names.
const maxNamed = 4

// oneOf lists texts of the configuration.
func oneOf(texts []string) string {
	switch {
	case len(texts) == 1:
		return texts[0]
	case len(texts) > maxNamed:
		return fmt.Sprintf("one of %s and %d more", strings.Join(texts[:maxNamed], ", "), len(texts)-maxNamed)
	}
	return "one of " + strings.Join(texts, ", ")
}

// maxQuoted is how much of a client's text stands in a reason, in bytes.
const maxQuoted = 64

// quoted is a client's text, escaped and cut.
func quoted(text []byte) string {
	if len(text) > maxQuoted {
		return fmt.Sprintf("%+q...", text[:maxQuoted])
	}
	return fmt.Sprintf("%+q", text)
}

// isHostOf says whether host, which is lower case, is one for a pattern; "" is for any.
func isHostOf(pattern, host string) bool {
	pattern = strings.ToLower(pattern)
	suffix, wild := strings.CutPrefix(pattern, "*")
	if !wild {
		return pattern == "" || pattern == host
	}
	below, ok := strings.CutSuffix(host, suffix)
	return ok && below != "" && !strings.HasSuffix(below, ".")
}

// whyNotPath is why none of the paths, of which texts are as they were written, is
// that of r; "" where one is. Of several it tells of the one that goes farthest.
func (rt *route) whyNotPath(texts []string, r *request) string {
	farthest, why := -1, ""
	for i, w := range rt.ways {
		at, text := w.path.misses(r)
		if text == "" {
			return ""
		}
		if at > farthest {
			farthest, why = at, text
			if len(texts) > 1 {
				why = fmt.Sprintf("none of %d paths; %s: %s", len(texts), texts[i], text)
			}
		}
	}
	return why
}

// misses says at which segment of r's path p does not match, from 0, and how; "" where
// it matches.
func (p *pathPattern) misses(r *request) (at int, why string) {
	if len(r.path) == 0 || r.path[0] != '/' {
		if p.rest && len(p.segments) == 0 {
			return 0, ""
		}
		return 0, "the target is no path"
	}
	for i, want := range p.segments {
		literal := want != "" || p.isTrailingSlash(i)
		switch {
		case i >= len(r.segments):
			return i, fmt.Sprintf("the path ends before segment %d, %s", i+1, p.segmentText(i))
		case literal && string(r.segments[i]) != want:
			return i, fmt.Sprintf("path segment %d %s is not %q", i+1, quoted(r.segments[i]), want)
		case !literal && len(r.segments[i]) == 0:
			return i, fmt.Sprintf("path segment %d, %s, is empty", i+1, p.segmentText(i))
		}
	}
	n := len(p.segments)
	switch {
	case p.rest && len(r.segments) <= n:
		return n, fmt.Sprintf("the path ends before segment %d, /*", n+1)
	case !p.rest && len(r.segments) > n:
		return n, fmt.Sprintf("the path goes on with segment %d %s", n+1, quoted(r.segments[n]))
	}
	return n, ""
}

// segmentText is segment i as it was written.
func (p *pathPattern) segmentText(i int) string {
	for name, at := range p.params {
		if at == i {
			return "{" + name + "}"
		}
	}
	return fmt.Sprintf("%q", p.segments[i])
}

// pointTexts say what a server does that reads a path in a way of its own.
var pointTexts = []struct {
	point reading
	text  string
}{
	{slashSplits, "%2F separates segments"},
	{backslashSplits, "%5C separates segments"},
	{mergeSlashes, "empty segments are dropped"},
	{resolveDots, "dot segments are resolved"},
	{dotsFirst, "dots before empty segments"},
	{dotStaysEncoded, "%2E stays encoded"},
	{cutRaw, "parameters behind ; are cut before decoding"},
	{cutDecoded, "parameters behind ; are cut after decoding"},
}

// maxReadings is how many readings are told.
const maxReadings = 8

// traceReadings lists the readings of the path that come to another path or route: ours
// first, then those that differ from it in few points. nil where there is but one.
func (rs *Rules) traceReadings(a *Asked) (all []Reading) {
	r := &a.request
	if len(r.path) == 0 || r.path[0] != '/' || isPlain(r.path) {
		return nil
	}
	points, _, err := readings(r.path)
	if err != nil || points == 0 {
		return nil
	}
	seen := map[string]bool{}
	note := func(as reading, segments [][]byte) {
		t := Reading{Path: pathOf(segments), Points: []string{}}
		if w := match(r, segments); w != nil {
			t.Route = w.route.name
		}
		for _, p := range pointTexts {
			if as&p.point != 0 {
				t.Points = append(t.Points, p.text)
			}
		}
		if key := t.Route + "\x00" + t.Path; !seen[key] && len(all) < maxReadings {
			seen[key] = true
			all = append(all, t)
		}
	}
	note(0, r.segments)
	var dotted, encoded pathParts
	if _, ok := dotted.cutInto(nil, r.path, true); !ok {
		return nil
	}
	encoded.cutInto(nil, r.path, false)
	var memory [maxPathParts + 1][]byte
	for _, as := range subsetsOf(points) {
		ps := &dotted
		if as&dotStaysEncoded != 0 {
			ps = &encoded
		}
		note(as, ps.segmentsAs(memory[:0], as))
	}
	return all
}

// subsetsOf are the readings that differ from ours in some of points, in few first.
func subsetsOf(points reading) (all []reading) {
	for as := points; as != 0; as = (as - 1) & points {
		if as.possible() {
			all = append(all, as)
		}
	}
	slices.SortStableFunc(all, func(a, b reading) int {
		if n := bits.OnesCount8(uint8(a)) - bits.OnesCount8(uint8(b)); n != 0 {
			return n
		}
		return int(a) - int(b)
	})
	return all
}

// pathOf is a path of decoded segments, in which a slash is written %2F.
func pathOf(segments [][]byte) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(strings.ReplaceAll(string(s), "/", "%2F"))
	}
	return b.String()
}
