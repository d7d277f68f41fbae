package main

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"

	"github.com/r8limiter/r8limiter/limiter"
)

// maxDocument bounds the configuration file, in bytes.
const maxDocument = 1 << 20

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

// decoder fills in a struct and collects every problem on the way: yaml.v3's own
// decoding stops early and gives neither columns nor paths.
type decoder struct {
	document
	env      func(string) (string, bool)
	whole    reflect.Type // of the struct for the whole file
	problems []problem
}

// decodeYAML decodes data over the defaults in the struct that into points to.
func decodeYAML(data []byte, env func(string) (string, bool), into any) (document, []problem) {
	v := reflect.ValueOf(into).Elem()
	d := &decoder{env: env, whole: v.Type(), document: document{at: positions{}, written: map[string]string{}}}
	if root := d.parse(string(data)); root != nil {
		d.value(root, "", v)
	}
	slices.SortStableFunc(d.problems, comparePlaces)
	return d.document, d.problems
}

// parse reads the one document of text; nil if there is none.
func (d *decoder) parse(text string) *yaml.Node {
	if len(text) > maxDocument {
		d.problems = append(d.problems, problem{line: 1, col: 1, text: "the file is larger than 1 MiB"})
		return nil
	}
	in := yaml.NewDecoder(strings.NewReader(text))
	var doc, second yaml.Node
	if err := in.Decode(&doc); err != nil || len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		d.problems = append(d.problems, syntaxProblem(text, err))
		return nil
	}
	if err := in.Decode(&second); err == nil {
		d.report(&second, "", "a second document begins here; a configuration is one document")
	} else if !errors.Is(err, io.EOF) {
		d.problems = append(d.problems, syntaxProblem(text, err))
	}
	return doc.Content[0]
}

func (d *decoder) report(n *yaml.Node, path, text string) {
	d.problems = append(d.problems, problem{line: max(n.Line, 1), col: max(n.Column, 1), path: path, text: text})
}

// value decodes n into v by v's type.
func (d *decoder) value(n *yaml.Node, path string, v reflect.Value) {
	d.at[path] = [2]int{n.Line, n.Column}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.report(n, path, "anchors and aliases are not supported; write the value out")
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		d.report(n, path, "has no value; leave the key out to get the default")
		return
	}
	_, isText := v.Addr().Interface().(encoding.TextUnmarshaler)
	switch {
	case isText && n.Kind == yaml.MappingNode && v.Kind() == reflect.Struct && len(keysOf(v.Type())) > 0:
		d.structure(n, path, v) // it may be written in either way
	case isText || v.Type() == reflect.TypeFor[time.Duration]():
		d.scalar(n, path, v)
	case v.Kind() == reflect.Pointer:
		fresh := reflect.New(v.Type().Elem())
		d.value(n, path, fresh.Elem())
		v.Set(fresh)
	case v.Kind() == reflect.Struct:
		d.structure(n, path, v)
	case v.Kind() == reflect.Map:
		d.table(n, path, v)
	case v.Kind() == reflect.Slice:
		d.list(n, path, v)
	default:
		d.scalar(n, path, v)
	}
}

// pairs calls f for each key of a mapping, once.
func (d *decoder) pairs(n *yaml.Node, path string, f func(key, value *yaml.Node, path string)) {
	if n.Kind != yaml.MappingNode {
		d.report(n, path, "wants keys and values, found "+kindOf(n)+map[yaml.Kind]string{
			yaml.SequenceNode: "; take the dashes or brackets away", yaml.ScalarNode: "; write KEY: VALUE below it",
		}[n.Kind])
		return
	}
	seen := map[string]int{} // the line
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		below := strings.TrimPrefix(path+"."+key.Value, ".")
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge":
			d.report(key, path, "a key must be plain text; merge keys are not supported")
		case seen[key.Value] > 0:
			d.report(key, below, fmt.Sprintf("is there twice, first in line %d; keep one of them", seen[key.Value]))
		default:
			seen[key.Value] = key.Line
			f(key, n.Content[i+1], below)
		}
	}
}

// member decodes the value of a key.
func (d *decoder) member(key, value *yaml.Node, path string, v reflect.Value) {
	d.value(value, path, v)
	if value.Kind != yaml.ScalarNode {
		d.at[path] = [2]int{key.Line, key.Column}
	}
}

// structure decodes the keys of a struct.
func (d *decoder) structure(n *yaml.Node, path string, v reflect.Value) {
	d.pairs(n, path, func(key, value *yaml.Node, below string) {
		field, ok := fieldOf(v.Type(), key.Value)
		if !ok {
			d.unknownKey(key, path, v.Type())
			return
		}
		before := len(d.problems)
		d.member(key, value, below, v.FieldByIndex(field.Index))
		if len(d.problems) == before {
			d.checkTags(value, below, field, v.FieldByIndex(field.Index))
		}
	})
}

// keysOf are the keys of a struct, in its order.
func keysOf(t reflect.Type) (keys []string) {
	for field := range t.Fields() {
		if key := field.Tag.Get("yaml"); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// fieldOf is the field of a struct for a key.
func fieldOf(t reflect.Type, key string) (field reflect.StructField, ok bool) {
	for field = range t.Fields() {
		if key != "" && field.Tag.Get("yaml") == key {
			return field, true
		}
	}
	return field, false
}

// checkTags holds a value against the tags of its field: zero:"unset" where zero
// stands for a default and can't be given, enum:"a,b" where it is one of few words.
func (d *decoder) checkTags(n *yaml.Node, path string, field reflect.StructField, v reflect.Value) {
	if field.Tag.Get("zero") == "unset" && v.IsZero() {
		d.report(n, path, "must not be 0; leave the key out to get the default")
	}
	words, ok := field.Tag.Lookup("enum")
	if !ok {
		return
	}
	if v.Kind() != reflect.Slice {
		d.checkWord(n, path, v.String(), strings.Split(words, ","))
		return
	}
	for i, item := range items(n) {
		d.checkWord(item, fmt.Sprintf("%s[%d]", path, i), v.Index(i).String(), strings.Split(words, ","))
	}
}

// checkWord reports a word that is none of words. The empty one is for the package
// to judge that the key belongs to.
func (d *decoder) checkWord(n *yaml.Node, path, word string, words []string) {
	if word != "" && !slices.Contains(words, word) {
		d.report(n, path, fmt.Sprintf("%q is none of %s%s", word, strings.Join(words, ", "), limiter.DidYouMean(word, words)))
	}
}

// unknownKey reports a key that the block at path, of type t, does not have, and
// what it may mean: one of the block's own, else one that belongs elsewhere.
func (d *decoder) unknownKey(key *yaml.Node, path string, t reflect.Type) {
	known := slices.Sorted(slices.Values(keysOf(t)))
	text := "is no known key; there are " + strings.Join(known, ", ")
	place, isElsewhere := placeOf(d.whole, key.Value, path)
	if isElsewhere {
		text = fmt.Sprintf("is no known key here, but one of %s; here there are %s", place, strings.Join(known, ", "))
	}
	isBelow := isElsewhere && isAtOrBelow(place, anyElement(path))
	near, ok := limiter.Nearest(key.Value, known)
	if !ok && !isElsewhere {
		near, ok = limiter.Meant(key.Value, known)
	}
	if ok && !isBelow {
		text = fmt.Sprintf("is no known key; did you mean %q?", near)
		d.meant = append(d.meant, strings.TrimPrefix(path+"."+near, "."))
	}
	if before, _, ok := strings.Cut(key.Value, ":"); ok && slices.Contains(known, before) {
		text = "is no known key; put a space behind the colon of " + before
	}
	d.report(key, strings.TrimPrefix(path+"."+key.Value, "."), text)
}

// placeOf is where in a file of type t a key belongs: below the block at path if it
// can be, else in one around it, NAME standing for any name and [] for any element.
func placeOf(t reflect.Type, key, path string) (place string, ok bool) {
	path = anyElement(path)
	nearness := func(block string) int {
		switch {
		case isAtOrBelow(block, path):
			return math.MaxInt
		case isAtOrBelow(path, block):
			return len(block)
		}
		return 0
	}
	eachKey(t, "", func(at string, _ reflect.StructField) {
		block, isOne := strings.CutSuffix(at, "."+key)
		if isOne && (!ok || nearness(block) > nearness(place)) {
			place, ok = block, true
		}
	})
	return place, ok
}

var element = regexp.MustCompile(`\[[0-9]+\]`)

// anyElement is a path with [] for each element of a list.
func anyElement(path string) string { return element.ReplaceAllString(path, "[]") }

// eachKey calls f for each key of a file of type t, with its path: NAME stands for
// any name of a map, [] for any element of a list.
func eachKey(t reflect.Type, path string, f func(path string, field reflect.StructField)) {
	switch t.Kind() {
	case reflect.Pointer:
		eachKey(t.Elem(), path, f)
	case reflect.Slice:
		eachKey(t.Elem(), path+"[]", f)
	case reflect.Map:
		eachKey(t.Elem(), path+".NAME", f)
	case reflect.Struct:
		for field := range t.Fields() {
			if key := field.Tag.Get("yaml"); key != "" {
				below := strings.TrimPrefix(path+"."+key, ".")
				f(below, field)
				eachKey(field.Type, below, f)
			}
		}
	}
}

func (d *decoder) table(n *yaml.Node, path string, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(n, path, func(key, value *yaml.Node, below string) {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.member(key, value, below, elem)
		v.SetMapIndex(reflect.ValueOf(key.Value), elem)
	})
}

// items are the elements of a list; one scalar stands for a list of one.
func items(n *yaml.Node) []*yaml.Node {
	if n.Kind == yaml.ScalarNode {
		return []*yaml.Node{n}
	}
	return n.Content
}

// list decodes a sequence, or the one scalar that stands for it.
func (d *decoder) list(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode && n.Kind != yaml.ScalarNode {
		d.report(n, path, "wants a list, found "+kindOf(n)+adviceOn(n, "; begin each element with a dash"))
		return
	}
	all := items(n)
	out := reflect.MakeSlice(v.Type(), len(all), len(all))
	for i, item := range all {
		d.value(item, fmt.Sprintf("%s[%d]", path, i), out.Index(i))
	}
	v.Set(out)
}

// scalar decodes a single value. Every text may hold ${NAME}.
func (d *decoder) scalar(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		d.report(n, path, "wants a single value, found "+kindOf(n)+adviceOn(n, ""))
		return
	}
	d.written[path] = n.Value
	text, err := expand(n.Value, d.env)
	if err == nil {
		err = setScalar(text, v)
	}
	if err != nil {
		d.report(n, path, err.Error())
	}
}

func setScalar(text string, v reflect.Value) error {
	if t, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return t.UnmarshalText([]byte(text))
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		return setDuration(text, v)
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if errors.Is(err, strconv.ErrRange) {
			return fmt.Errorf("%q is too large", text)
		}
		if err != nil {
			return fmt.Errorf("%q is no integer; write digits alone, as in 100", text)
		}
		v.SetInt(n)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is neither true nor false%s", text, limiter.DidYouMean(text, []string{"true", "false"}))
		}
		v.SetBool(text == "true")
	default:
		return fmt.Errorf("can't hold a value of this kind (%s)", v.Type())
	}
	return nil
}

func setDuration(text string, v reflect.Value) error {
	t, err := time.ParseDuration(text)
	if _, bare := strconv.ParseUint(text, 10, 31); err != nil && bare == nil {
		return fmt.Errorf("%q has no unit; write %ss for seconds, or %sms", text, text, text)
	}
	if err != nil {
		return fmt.Errorf("%q is no duration; write a number and a unit (ms, s, m, h), as in 500ms, 5s or 1m30s", text)
	}
	if t < 0 {
		return fmt.Errorf("%q must not be negative", text)
	}
	v.SetInt(int64(t))
	return nil
}

// adviceOn is what to do about n in place of a value: often it is a template, which
// YAML takes for braces of its own. Else it is the other advice.
func adviceOn(n *yaml.Node, other string) string {
	if n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle != 0 {
		return "; quote a value that begins with a brace"
	}
	return other
}

// kindOf is what n is; not what it holds, which may be a secret.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expand replaces ${NAME} and ${NAME:-default}; $${ stands for ${.
func expand(text string, env func(string) (string, bool)) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "${")
		if !found {
			return out.String() + text, nil
		}
		if strings.HasSuffix(before, "$") {
			out.WriteString(before[:len(before)-1] + "${")
			text = rest
			continue
		}
		out.WriteString(before)
		inside, after, closed := strings.Cut(rest, "}")
		name, fallback, hasDefault := strings.Cut(inside, ":-")
		if !closed || !variableName.MatchString(name) {
			// It is not shown: it may be the rest of a password.
			return "", errors.New("holds ${ and what follows is no variable; write ${NAME} or ${NAME:-default}, or $${ for the text itself")
		}
		value, set := env(name)
		if !set && !hasDefault {
			return "", fmt.Errorf("variable %s is not set; set it, or give a default as in ${%s:-value}", name, name)
		}
		if !set || value == "" && hasDefault {
			value = fallback
		}
		out.WriteString(value)
		text = after
	}
}
