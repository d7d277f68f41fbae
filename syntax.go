package main

import (
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntaxProblem is what the parser says of text, and where; nil and EOF are of an
// empty file.
//
// yaml.v3 gives no column, and as the line mostly the one before the block around
// the fault. So the place is found by trial: where the longest beginning of the
// file ends that is YAML by itself.
func syntaxProblem(text string, err error) problem {
	if err == nil || errors.Is(err, io.EOF) {
		return problem{line: 1, col: 1, text: "the file is empty; an empty configuration is written {}"}
	}
	words, line := err.Error(), 1
	if m := yamlLine.FindStringSubmatch(words); m != nil {
		line, _ = strconv.Atoi(m[1])
		words = words[len(m[0]):]
	}
	f := faultFinder{text: text, words: words, budget: maxTrial, lines: strings.SplitAfter(text, "\n")}
	line = f.line(max(line, 1))
	at := f.column(line)
	before := f.lines[line-1][:at]
	return problem{
		line: line, col: utf8.RuneCountInString(before) + 1,
		text: "is no YAML: " + words + hintOf(words, f.lines[line-1][at:]),
	}
}

// maxTrial bounds, in bytes, what all trials of a file read together: about half a
// second. A larger file gets the place as the parser has it.
const maxTrial = 8 << 20

// faultFinder finds the place of the one fault that the parser stops at.
type faultFinder struct {
	text   string
	words  string   // what the parser says of it
	lines  []string // of the text, with their ends
	budget int      // bytes that may still be read
}

// reads says whether text is YAML, or would be with what is open at its end closed.
// It is so too where the budget is used up.
func (f *faultFinder) reads(text string) bool {
	if f.faultOf(text) == "" {
		return true
	}
	open := openAt(text)
	return open.closers != "" && (!open.quoted || strings.Contains(f.words, "escape")) && f.faultOf(text+open.closers) == ""
}

// faultOf is what the parser says of text, without the line; "" if nothing, or if
// the budget is used up.
func (f *faultFinder) faultOf(text string) string {
	if f.budget -= len(text); f.budget < 0 {
		return ""
	}
	if err := readYAML(strings.NewReader(text)); err != nil {
		return yamlLine.ReplaceAllString(err.Error(), "")
	}
	return ""
}

// readYAML reads all documents of in.
func readYAML(in io.Reader) error {
	documents := yaml.NewDecoder(in)
	for {
		var n yaml.Node
		if err := documents.Decode(&n); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// line is the line of the fault, from 1; said is the parser's.
func (f *faultFinder) line(said int) int {
	said = min(said, len(f.lines))
	// What opens and never closes, the parser blames on its opening or the line before.
	for _, line := range []int{said, said + 1} {
		if line <= len(f.lines) && f.opensAt(line) {
			return line
		}
	}
	in := &byteReader{text: f.text}
	_ = readYAML(in)
	line := 1 + strings.Count(f.text[:in.read], "\n")
	for line > 1 && f.faultOf(f.upTo(line-1)) != "" {
		line--
	}
	if f.budget < 0 {
		return said
	}
	return min(line, len(f.lines))
}

// opensAt says whether the file is YAML before that line, and from it on has the
// very fault that the whole has.
func (f *faultFinder) opensAt(line int) bool {
	text := f.upTo(line)
	return f.reads(f.upTo(line-1)) && (f.faultOf(text) == f.words || f.faultOf(text+openAt(text).closers) == f.words)
}

// upTo is the text of so many lines.
func (f *faultFinder) upTo(lines int) string { return strings.Join(f.lines[:lines], "") }

// column is how many bytes of the line come before the fault: before what never
// closes, or behind the longest part that can be read.
func (f *faultFinder) column(line int) int {
	before, own := f.upTo(line-1), strings.TrimRight(f.lines[line-1], "\r\n")
	if open := openAt(before + own); open.at >= len(before) && f.reads(before+own) {
		return open.at - len(before)
	}
	at := len(own) - 1
	for at > 0 && (!utf8.RuneStart(own[at]) || !f.reads(before+own[:at])) {
		at--
	}
	if f.budget < 0 {
		return 0
	}
	return max(at, 0)
}

// opening is what is open at the end of a text.
type opening struct {
	closers string // what would close all of it
	at      int    // where the last of it begins; below 0 for nowhere
	quoted  bool   // that is a double quote
}

// openAt is what text leaves open, as far as that can be told without parsing: in
// texts without quotes brackets are counted too.
func openAt(text string) opening {
	var places []int
	quote, comment, escaped := -1, false, false
	for i, c := range []byte(text) {
		first := i == 0 || strings.IndexByte(" \t\n[{,:", text[i-1]) >= 0 // of a value, or of a comment
		switch {
		case comment || c == '#' && first && quote < 0:
			comment = c != '\n'
		case quote >= 0:
			if c == text[quote] && !escaped {
				quote = -1
			}
			escaped = c == '\\' && !escaped && quote >= 0 && text[quote] == '"'
		case (c == '"' || c == '\'') && first:
			quote = i
		case c == '[' || c == '{':
			places = append(places, i)
		case (c == ']' || c == '}') && len(places) > 0:
			places = places[:len(places)-1]
		}
	}
	open := opening{at: quote, quoted: quote >= 0}
	var closers []byte
	if open.quoted {
		closers = append(closers, text[quote])
	}
	for _, at := range slices.Backward(places) {
		closers = append(closers, text[at]+2) // [ and ], { and } are two apart
		open.at = max(open.at, at)
	}
	open.closers = string(closers)
	return open
}

// byteReader hands out a text byte by byte, so that it shows how far a parser went.
type byteReader struct {
	text string
	read int
}

// Read hands out the next byte.
func (r *byteReader) Read(p []byte) (int, error) {
	if r.read == len(r.text) || len(p) == 0 {
		return 0, io.EOF
	}
	p[0] = r.text[r.read]
	r.read++
	return 1, nil
}

// hints say what is behind the words of the parser.
var hints = []struct{ words, hint string }{
	{"mapping values are not allowed", "a colon makes a key here: quote the value, or align the key with its neighbours"},
	{"expected key", "this is no key of the block around it: align it with its neighbours, and write KEY: VALUE"},
	{"expected '-' indicator", "this is no element of the list around it: align it with its neighbours, or put a dash before it"},
	{"expected node content", "a value or a closing bracket is missing"},
	{"',' or ']'", "a comma or the closing bracket is missing, or a value needs quotes"},
	{"',' or '}'", "a comma or the closing brace is missing, or a value needs quotes"},
	{"unexpected end of stream", "the quote that begins here is not closed"},
	{"unknown escape character", "a backslash in double quotes begins an escape: write it twice, or use single quotes"},
	{"could not find expected ':'", "a key is followed by a colon and a space"},
	{"alphabetic or numeric character", "quote a text that begins with * or &"},
	{"unknown anchor", "aliases are not supported: write the value out, or quote a text that begins with *"},
}

// hintOf advises about a fault that the parser put into words; rest is what stands
// at its place.
func hintOf(words, rest string) string {
	if strings.Contains(words, "cannot start any token") {
		if strings.HasPrefix(rest, "\t") {
			return ": a tab; YAML is indented with spaces"
		}
		return ": quote the value"
	}
	for _, each := range hints {
		if strings.Contains(words, each.words) {
			return ": " + each.hint
		}
	}
	return ""
}
