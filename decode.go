package main

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/r8limiter/r8limiter/limiter"
)

// maxDocument bounds the configuration file, in bytes.
const maxDocument = 1 << 20

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
	var doc, next yaml.Node
	err := in.Decode(&doc)
	if err == nil && isEmpty(&doc) {
		err = skipEmpty(in, &next)
	} else if err == nil {
		err = in.Decode(&next)
	}
	switch {
	case err == nil:
		d.report(&next, "", "a second document begins here; a configuration is one document")
	case isEmpty(&doc) || !errors.Is(err, io.EOF):
		d.problems = append(d.problems, syntaxProblem(text, err))
	}
	if isEmpty(&doc) {
		return nil
	}
	return doc.Content[0]
}

// skipEmpty reads the first document that holds something.
func skipEmpty(in *yaml.Decoder, doc *yaml.Node) error {
	for {
		if err := in.Decode(doc); err != nil || !isEmpty(doc) {
			return err
		}
	}
}

// isEmpty says whether a document holds nothing, or was not read.
func isEmpty(doc *yaml.Node) bool { return len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" }

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

// checkWord reports a word that is none of words. That a variable is empty is for
// the package to judge that the key belongs to: mostly it stands for the default.
func (d *decoder) checkWord(n *yaml.Node, path, word string, words []string) {
	switch {
	case n.Value == "" && strings.HasSuffix(path, "]"):
		d.report(n, path, fmt.Sprintf("is empty; write one of %s, or [] as the list for none", strings.Join(words, ", ")))
	case n.Value == "":
		d.report(n, path, fmt.Sprintf("is empty; write one of %s, or leave the key out to get the default", strings.Join(words, ", ")))
	case word != "" && !slices.Contains(words, word):
		d.report(n, path, fmt.Sprintf("%q is none of %s%s", word, strings.Join(words, ", "), limiter.DidYouMean(word, words)))
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
