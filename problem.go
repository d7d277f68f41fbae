package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// problem is a fault of the configuration file.
type problem struct {
	line, col  int
	path, text string
	severity   severity
}

// severity says whether a file with such a problem can be run.
type severity uint8

const (
	isError   severity = iota
	isWarning          // legal, but surely wrong
)

// String is the word in reports.
func (s severity) String() string { return [...]string{"error", "warning"}[s] }

// format is the line that an operator sees.
func (p problem) format(file string) string {
	text := p.text
	if strings.ContainsFunc(p.path, unicode.IsControl) {
		text = strconv.Quote(p.path) + ": " + text
	} else if p.path != "" {
		text = p.path + ": " + text
	}
	if p.severity == isWarning {
		text = "warning: " + text
	}
	return fmt.Sprintf("%s:%d:%d: %s", file, p.line, p.col, text)
}

// covers says whether path is what p is about, or lies in it or around it.
func (p problem) covers(path string) bool {
	return isAtOrBelow(path, p.path) || isAtOrBelow(p.path, path)
}

// isAtOrBelow says whether path is top or lies in it.
func isAtOrBelow(path, top string) bool {
	rest, ok := strings.CutPrefix(path, top)
	return ok && (rest == "" || top == "" || rest[0] == '.' || rest[0] == '[')
}

// comparePlaces orders problems as they stand in the file.
func comparePlaces(a, b problem) int {
	return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.col, b.col), cmp.Compare(a.path, b.path))
}

// positions says where in the file each path is: a single value where it begins,
// keys and values and lists at their own key, an element of a list where it begins.
type positions map[string][2]int

// of is the place of path, or of the nearest thing around it that the file has.
func (p positions) of(path string) (line, col int) {
	for ; path != ""; path = path[:max(strings.LastIndexAny(path, ".["), 0)] {
		if at, ok := p[path]; ok {
			return at[0], at[1]
		}
	}
	return 1, 1
}

// document is what is known of a file besides what it configures.
type document struct {
	at positions
	// written are the single values as they stand in the file, before variables
	// are replaced.
	written map[string]string
	// meant are the paths of the keys that unknown ones were surely meant to be:
	// whether they are missing is not known.
	meant []string
}

// problem is an error at path.
func (d *document) problem(path, text string) problem {
	line, col := d.at.of(path)
	return problem{line: line, col: col, path: path, text: text}
}
