package main

import (
	"cmp"
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// maxDocument bounds the configuration file, in bytes.
const maxDocument = 1 << 20

// problem is a fault of the configuration file.
type problem struct {
	line, col  int
	path, text string
}

// format is the line that an operator sees.
func (p problem) format(file string) string {
	if p.path == "" {
		return fmt.Sprintf("%s:%d:%d: %s", file, p.line, p.col, p.text)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", file, p.line, p.col, p.path, p.text)
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

// positions says where in the file the value of each path begins.
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

// decoder fills in a struct and collects every problem on the way: yaml.v3's own
// decoding stops early and gives neither columns nor paths.
type decoder struct {
	env      func(string) (string, bool)
	at       positions
	problems []problem
}

// decodeYAML decodes data over the defaults in the struct that into points to.
func decodeYAML(data []byte, env func(string) (string, bool), into any) (positions, []problem) {
	d := &decoder{env: env, at: positions{}}
	if root := d.parse(data); root != nil {
		d.value(root, "", reflect.ValueOf(into).Elem())
	}
	slices.SortStableFunc(d.problems, comparePlaces)
	return d.at, d.problems
}

// parse reads the one document of data; nil if there is none.
func (d *decoder) parse(data []byte) *yaml.Node {
	if len(data) > maxDocument {
		d.problems = append(d.problems, problem{1, 1, "", "the file is larger than 1 MiB"})
		return nil
	}
	in := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc, second yaml.Node
	if err := in.Decode(&doc); err != nil || len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		d.problems = append(d.problems, syntaxProblem(err))
		return nil
	}
	if err := in.Decode(&second); err == nil {
		d.report(&second, "", "a second document begins here; a configuration is one document")
	} else if err.Error() != "EOF" {
		d.problems = append(d.problems, syntaxProblem(err))
	}
	return doc.Content[0]
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntaxProblem places an error of the parser; nil and EOF are an empty file.
func syntaxProblem(err error) problem {
	if err == nil || err.Error() == "EOF" {
		return problem{1, 1, "", "the file is empty; an empty configuration is written {}"}
	}
	text := err.Error()
	line := 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = text[len(m[0]):]
	}
	return problem{max(line, 1), 1, "", "is no YAML: " + text}
}

func (d *decoder) report(n *yaml.Node, path, text string) {
	d.problems = append(d.problems, problem{max(n.Line, 1), max(n.Column, 1), path, text})
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
	case isText && n.Kind == yaml.MappingNode && v.Kind() == reflect.Struct && v.NumField() > 0 && v.Type().Field(0).Tag.Get("yaml") != "":
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
		d.report(n, path, "wants keys and values, found "+kindOf(n))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		below := strings.TrimPrefix(path+"."+key.Value, ".")
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge":
			d.report(key, path, "a key must be plain text; merge keys are not supported")
		case seen[key.Value]:
			d.report(key, below, "is there twice; keep one of them")
		default:
			seen[key.Value] = true
			f(key, n.Content[i+1], below)
		}
	}
}

// structure decodes the keys of a struct. A field tagged zero:"unset", whose zero
// stands for a default, can't be given as zero.
func (d *decoder) structure(n *yaml.Node, path string, v reflect.Value) {
	fields, unset := map[string]reflect.Value{}, map[string]bool{}
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		if name := tag.Get("yaml"); name != "" {
			fields[name], unset[name] = v.Field(i), tag.Get("zero") == "unset"
		}
	}
	d.pairs(n, path, func(key, value *yaml.Node, below string) {
		field, ok := fields[key.Value]
		if !ok {
			known := slices.Sorted(maps.Keys(fields))
			d.report(key, below, "is no known key; there are "+strings.Join(known, ", "))
			return
		}
		before := len(d.problems)
		d.value(value, below, field)
		if unset[key.Value] && field.IsZero() && len(d.problems) == before {
			d.report(value, below, "must not be 0; leave the key out to get the default")
		}
	})
}

func (d *decoder) table(n *yaml.Node, path string, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(n, path, func(key, value *yaml.Node, below string) {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(value, below, elem)
		v.SetMapIndex(reflect.ValueOf(key.Value), elem)
	})
}

// list decodes a sequence; one scalar stands for a list of one.
func (d *decoder) list(n *yaml.Node, path string, v reflect.Value) {
	items := n.Content
	switch n.Kind {
	case yaml.SequenceNode:
	case yaml.ScalarNode:
		items = []*yaml.Node{n}
	default:
		d.report(n, path, "wants a list, found "+kindOf(n)+"; quote a value that begins with a brace")
		return
	}
	out := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, item := range items {
		d.value(item, fmt.Sprintf("%s[%d]", path, i), out.Index(i))
	}
	v.Set(out)
}

// scalar decodes a single value. Every text may hold ${NAME}.
func (d *decoder) scalar(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		d.report(n, path, "wants a single value, found "+kindOf(n)+"; quote a value that begins with a brace")
		return
	}
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
		t, err := time.ParseDuration(text)
		if err == nil && t < 0 {
			return fmt.Errorf("%q must not be negative", text)
		}
		if err != nil {
			return fmt.Errorf("%q is no duration; write a number and a unit, as in 500ms, 5s or 1m30s", text)
		}
		v.SetInt(int64(t))
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is no integer", text)
		}
		v.SetInt(n)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(text == "true")
	default:
		return fmt.Errorf("can't hold a value of this kind (%s)", v.Type())
	}
	return nil
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	}
	return fmt.Sprintf("%q", n.Value)
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
			return "", fmt.Errorf("${%s is no variable; write ${NAME} or ${NAME:-default}, or $${ for the text itself", inside)
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
