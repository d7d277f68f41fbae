package simulate

import (
	"bytes"
	"errors"
	"strings"
)

// Formats are the words for Options.Format, the one for "find out" first.
var Formats = []string{auto, "combined", "json", "caddy", "envoy", ownFormat}

const (
	auto      = "auto"
	ownFormat = "r8limiter"
)

// format is a way to read lines.
type format struct {
	name   string // of Formats, and which of its kinds
	isJSON bool   // each line is an object
	// new makes a parser for one log.
	new func(*FieldMap) parser
	// has says whether the log has what a template's source, as in header.Host, reads.
	has func(m *FieldMap, source string) bool
}

// formats are in the order in which they are tried: what is more special goes first.
var formats = []format{
	{ownFormat, true, func(*FieldMap) parser { return new(own).parse }, func(_ *FieldMap, s string) bool { return ownHas(s) }},
	{"caddy", true, func(*FieldMap) parser { return new(caddy).parse }, hasAll},
	{"envoy json", true, func(*FieldMap) parser { return new(envoyJSON).parse }, hasAll},
	{"json", true, func(m *FieldMap) parser { return (&mappedJSON{fields: m}).parse }, (*FieldMap).has},
	{"envoy text", false, func(*FieldMap) parser { return new(envoyText).parse }, hasAll},
	{"combined", false, func(*FieldMap) parser { return new(combined).parse }, hasAll},
}

// hasAll is for formats that never say what a request led to: there is nothing that
// could stand for what they lack.
func hasAll(*FieldMap, string) bool { return true }

// choose finds the format of a log of which sample is the beginning: that one of those
// that go by the given name which can read a line of it. A map that was given is of JSON.
func choose(name string, sample []byte, m *FieldMap) (format, error) {
	if name == auto && m.given {
		name = "json"
	}
	var candidates []format
	for _, f := range formats {
		if kind, _, _ := strings.Cut(f.name, " "); name == auto || name == kind {
			candidates = append(candidates, f)
		}
	}
	if len(candidates) == 1 {
		return candidates[0], nil
	}
	if len(sample) == sourceBuffer && bytes.IndexByte(sample, '\n') < 0 {
		return guess(candidates, sample[0]), nil
	}
	for _, f := range candidates {
		if f.canRead(sample, m) {
			return f, nil
		}
	}
	return format{}, errors.New(firstFault(sample, m))
}

// canRead says whether a line of sample is in the format.
func (f *format) canRead(sample []byte, m *FieldMap) bool {
	parse := f.new(m)
	var l line
	for raw := range bytes.Lines(bytes.Clone(sample)) { // parsers change what they read
		raw = bytes.TrimRight(raw, "\r\n")
		if len(raw) == 0 || (raw[0] == '{') != f.isJSON {
			continue
		}
		l.reset()
		if err := parse(raw, &l); err == nil || err == errAside {
			return true
		}
	}
	return false
}

// guess is the format of a log whose first line is too long to look at, by its first
// byte.
func guess(candidates []format, first byte) format {
	for _, f := range candidates {
		if first == '{' && f.isJSON || first == '[' && f.name == "envoy text" {
			return f
		}
	}
	return candidates[len(candidates)-1]
}

// firstFault says why the first line of a log is in none of the formats, and what to do.
func firstFault(sample []byte, m *FieldMap) string {
	raw, _, _ := bytes.Cut(bytes.TrimLeft(sample, "\r\n"), []byte{'\n'})
	raw = bytes.Clone(bytes.TrimRight(raw, "\r"))
	var l line
	l.reset()
	switch {
	case len(raw) == 0:
		return errEmpty.Error() + " (say which format it is, with -format)"
	case raw[0] == '{':
		return "the first line is JSON, but " + (&mappedJSON{fields: m}).parse(raw, &l).Error() +
			" (say what is where, with -fields, or which format it is, with -format)"
	}
	return "the first line is no JSON, not Envoy's, and if it were combined: " + new(combined).parse(raw, &l).Error() +
		" (say which format it is, with -format)"
}
