package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/invopop/jsonschema"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// update writes what is generated from the structs: the schema, and the README's
// table of keys.
var update = flag.Bool("update", false, "write the schema and the README's table of keys anew")

// schemaFile is the JSON Schema of the configuration file.
const schemaFile = "deploy/schema/config.schema.json"

// textType is a type that reads itself from a text.
type textType struct {
	word    string // in the README
	pattern string // of the texts, as far as a pattern can tell; variables aside
	number  string // the schema of the YAML numbers that stand for it too; "" for none
}

// textTypes are those of the configuration.
var textTypes = map[reflect.Type]textType{
	reflect.TypeFor[time.Duration]():   {"duration", `\+?(0|(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)`, `{"const": 0}`},
	reflect.TypeFor[limiter.Rate]():    {"rate", `[0-9]+(\.[0-9]+)?(/[smhd])?`, `{"type": "number", "exclusiveMinimum": 0}`},
	reflect.TypeFor[limiter.Percent](): {"percentage", `[0-9]+(\.[0-9]+)?%`, ""},
	reflect.TypeFor[proxy.Prefix]():    {"network", `[0-9A-Fa-f:.]*[0-9A-Fa-f:](/[0-9]{1,3})?`, ""},
	reflect.TypeFor[proxy.Digest]():    {"SHA-256", `[0-9A-Fa-f]{64}`, ""},
	reflect.TypeFor[proxy.Template]():  {"template", templatePattern, `{"type": ["number", "boolean"]}`},
}

const templatePattern = `([^{}]|\{((header|query|cookie|path|jwt)\.[^{}|]+|client_ip|host|method|route|basic_user|api_key\.(user_id|plan))(\|(lower|sha256))*\})+`

// textPattern is p as the schema has it: of the whole text, or of one with a variable.
func textPattern(p string) string { return `^(` + p + `)$|\$\{` }

// asSchema is a schema written as JSON.
func asSchema(text string) *jsonschema.Schema {
	s := &jsonschema.Schema{}
	if err := json.Unmarshal([]byte(text), s); err != nil {
		// The library knows one type at a time.
		s = &jsonschema.Schema{Extras: map[string]any{}}
		if err := json.Unmarshal([]byte(text), &s.Extras); err != nil {
			panic(err)
		}
	}
	return s
}

// plain are the definitions of what is no block. Every one of them may be a variable.
func plain() jsonschema.Definitions {
	variable := &jsonschema.Schema{Type: "string", Pattern: `\$\{`}
	all := jsonschema.Definitions{
		"text":     asSchema(`{"type": ["string", "number", "boolean"]}`),
		"integer":  {AnyOf: []*jsonschema.Schema{{Type: "integer"}, {Type: "string", Pattern: textPattern(`[+-]?[0-9]+`)}}},
		"boolean":  {AnyOf: []*jsonschema.Schema{{Type: "boolean"}, {Type: "string", Pattern: textPattern(`true|false`)}}},
		"texts":    oneOrMore("text"),
		"variable": variable,
	}
	for t, is := range textTypes {
		text := &jsonschema.Schema{Type: "string", Pattern: textPattern(is.pattern)}
		if is.number != "" {
			text = &jsonschema.Schema{AnyOf: []*jsonschema.Schema{text, asSchema(is.number)}}
		}
		all[definitionOf(t)] = text
	}
	return all
}

// definitionOf names the definition of a type.
func definitionOf(t reflect.Type) string {
	if is, ok := textTypes[t]; ok {
		return is.word
	}
	if t.Name() == "" {
		return "" // lists and maps are written where they are used
	}
	return t.String()
}

func ref(name string) *jsonschema.Schema { return &jsonschema.Schema{Ref: "#/$defs/" + name} }

// oneOrMore is a list, or one element in its place.
func oneOrMore(name string) *jsonschema.Schema {
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{ref(name), {Type: "array", Items: ref(name)}}}
}

// mapType is the schema of a type that is no block; nil for those that are.
func mapType(t reflect.Type) *jsonschema.Schema {
	if _, ok := textTypes[t]; ok {
		return ref(definitionOf(t))
	}
	switch t.Kind() {
	case reflect.String:
		return ref("text")
	case reflect.Int, reflect.Int64:
		return ref("integer")
	case reflect.Bool:
		return ref("boolean")
	case reflect.Slice:
		if _, ok := textTypes[t.Elem()]; ok {
			return oneOrMore(definitionOf(t.Elem()))
		}
		if t.Elem().Kind() == reflect.String {
			return ref("texts")
		}
	}
	return nil
}

// newReflector reads the structs and their comments.
func newReflector(t *testing.T) *jsonschema.Reflector {
	t.Helper()
	r := &jsonschema.Reflector{FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true, ExpandedStruct: true, Anonymous: true, Mapper: mapType, Namer: definitionOf}
	if err := r.AddGoComments("github.com/r8limiter/r8limiter", "."); err != nil {
		t.Fatal(err)
	}
	r.LookupComment = func(of reflect.Type, name string) string { return describe(r, of, name) }
	return r
}

// describe is the comment of a field, or of a type for "", in the words of the file:
// keys for fields, and nothing of Go.
func describe(r *jsonschema.Reflector, of reflect.Type, name string) string {
	if of.Kind() != reflect.Struct {
		return ""
	}
	at := of.PkgPath() + "." + of.Name()
	if name != "" {
		at += "." + name
	}
	text := strings.Join(strings.Fields(r.CommentMap[at]), " ")
	for _, subject := range []string{name, of.Name()} {
		if rest, ok := strings.CutPrefix(text, subject+" "); ok && subject != "" {
			text = rest
			for _, verb := range []string{"is ", "are "} {
				text = strings.TrimPrefix(text, verb)
			}
			break
		}
	}
	for field := range of.Fields() {
		// TLS, URL and the like are words too, and so is any at the start of a sentence.
		if key := field.Tag.Get("yaml"); key != "" && key != "redis" && strings.ToUpper(field.Name) != field.Name {
			text = regexp.MustCompile(`([^.] )`+field.Name+`\b`).ReplaceAllString(text, "${1}"+key)
		}
	}
	text = strings.ReplaceAll(text, ". nil ", ". Absent ")
	return regexp.MustCompile(`\bnil\b`).ReplaceAllString(text, "absent")
}

// newSchema is the schema of the structs.
func newSchema(t *testing.T) []byte {
	t.Helper()
	r := newReflector(t)
	s := r.Reflect(&Config{})
	maps.Copy(s.Definitions, plain())
	decorate(s.Definitions, s, reflect.TypeFor[Config](), reflect.ValueOf(defaultConfig()))
	match := definitionOf(reflect.TypeFor[proxy.ValueMatch]())
	s.Definitions[match] = &jsonschema.Schema{Description: s.Definitions[match].Description, AnyOf: []*jsonschema.Schema{ref("text"), s.Definitions[match]}}
	s.Title = "r8limiter's configuration"
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

// decorate adds to the schema of a struct, and of all below it, what tags and
// defaults say. v is the struct that a file is decoded over; invalid where there is
// none, as below maps.
func decorate(all jsonschema.Definitions, s *jsonschema.Schema, of reflect.Type, v reflect.Value) {
	for field := range of.Fields() {
		key := field.Tag.Get("yaml")
		if key == "" {
			continue
		}
		value := v
		if v.IsValid() {
			value = v.FieldByIndex(field.Index)
		}
		property, ok := s.Properties.Get(key)
		if !ok {
			panic("the schema lacks " + key)
		}
		addWords(property, field)
		property.Default = defaultOf(field, value)
		block, ok := blockOf(field.Type)
		if !ok {
			continue
		}
		if block != field.Type || block == reflect.TypeFor[limiter.ResourceConfig]() {
			value = reflect.Value{}
		}
		decorate(all, all[definitionOf(block)], block, value)
	}
}

// addWords restricts a property to the words of its tag.
func addWords(property *jsonschema.Schema, field reflect.StructField) {
	tag, ok := field.Tag.Lookup("enum")
	if !ok {
		return
	}
	words := &jsonschema.Schema{}
	for word := range strings.SplitSeq(tag, ",") {
		words.Enum = append(words.Enum, word)
		if number, err := strconv.ParseFloat(word, 64); err == nil { // without quotes it is one
			words.Enum = append(words.Enum, number)
		}
	}
	either := []*jsonschema.Schema{words, ref("variable")}
	if field.Type.Kind() == reflect.Slice {
		either = append(either, &jsonschema.Schema{Type: "array", Items: &jsonschema.Schema{AnyOf: slices.Clone(either)}})
	}
	property.Ref, property.AnyOf = "", either
}

// blockOf is the struct that t is, or that its elements are, if they have keys.
func blockOf(t reflect.Type) (reflect.Type, bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	return t, t.Kind() == reflect.Struct && len(keysOf(t)) > 0
}

// defaultOf is what a key means that is left out, as it is written in the file; nil
// where that is nothing to write. value is as in decorate.
func defaultOf(field reflect.StructField, value reflect.Value) any {
	tag, tagged := field.Tag.Lookup("default")
	switch {
	case tagged:
		if n, err := strconv.Atoi(tag); err == nil {
			return n
		}
		return tag
	case field.Type.Kind() == reflect.Bool:
		return value.IsValid() && value.Bool()
	case !value.IsValid():
		return nil
	}
	switch is := value.Interface().(type) {
	case time.Duration:
		return shortDuration(is)
	case limiter.Rate:
		return is.String()
	case limiter.ResourceConfig:
		return map[string]any{"capacity": is.Capacity, "refill_rate": is.RefillRate.String()}
	}
	switch field.Type.Kind() {
	case reflect.Int, reflect.Int64, reflect.String, reflect.Slice:
		if value.IsZero() && field.Tag.Get("enum") != "" {
			return nil
		}
		if field.Type.Kind() == reflect.Slice && value.IsNil() {
			return []any{}
		}
		return value.Interface()
	}
	return nil
}

// shortDuration is d as people write it: 60s, not 1m0s.
func shortDuration(d time.Duration) string {
	if d%time.Second == 0 && d < 2*time.Minute {
		return strconv.Itoa(int(d/time.Second)) + "s"
	}
	return strings.ReplaceAll(strings.ReplaceAll(d.String(), "m0s", "m"), "h0m", "h")
}

// TestSchemaIsThatOfTheStructs wants deploy/schema as the structs make it.
func TestSchemaIsThatOfTheStructs(t *testing.T) {
	want := newSchema(t)
	if *update {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is old: run go test -run 'Schema|Readme' -update . and look at what changed", schemaFile)
	}
}

// keyRow is a key as the README has it.
type keyRow struct{ path, typ, byDefault, meaning string }

// keyRows are all keys, in the order of the structs. A block that was shown is not
// shown again: its row names the first.
func keyRows(t *testing.T) (rows []keyRow) {
	t.Helper()
	r := newReflector(t)
	shown := map[reflect.Type]string{}
	var walk func(path string, of reflect.Type, v reflect.Value)
	walk = func(path string, of reflect.Type, v reflect.Value) {
		for field := range of.Fields() {
			key := field.Tag.Get("yaml")
			if key == "" {
				continue
			}
			value := v
			if v.IsValid() {
				value = v.FieldByIndex(field.Index)
			}
			at := strings.TrimPrefix(path+"."+key, ".")
			meaning := firstSentence(describe(r, of, field.Name))
			row := keyRow{at, wordOf(field.Type, field.Tag.Get("enum")), shownDefault(field, value), meaning}
			block, ok := blockOf(field.Type)
			before := shown[block]
			if ok && before != "" {
				row.typ += ", as `" + before + "`"
			}
			rows = append(rows, row)
			if !ok || before != "" {
				continue
			}
			for each := field.Type; each != block; each = each.Elem() {
				value = reflect.Value{}
				switch each.Kind() {
				case reflect.Slice:
					at += "[]"
				case reflect.Map:
					at += ".NAME"
				}
			}
			shown[block] = at
			walk(at, block, value)
		}
	}
	walk("", reflect.TypeFor[Config](), reflect.ValueOf(defaultConfig()))
	return rows
}

var nextSentence = regexp.MustCompile(`\. [A-Z]`)

func firstSentence(text string) string {
	if next := nextSentence.FindStringIndex(text); next != nil {
		text = text[:next[0]]
	}
	return strings.TrimSuffix(text, ".")
}

// wordOf is a type in the README; words are those of the enum tag.
func wordOf(t reflect.Type, words string) string {
	if is, ok := textTypes[t]; ok {
		return is.word
	}
	switch t.Kind() {
	case reflect.Pointer:
		return wordOf(t.Elem(), words)
	case reflect.Slice:
		return "list of " + wordOf(t.Elem(), words)
	case reflect.Map:
		if t.Elem().Kind() == reflect.Map {
			return wordOf(t.Elem().Elem(), words) + " by two names"
		}
		return wordOf(t.Elem(), words) + " by name"
	case reflect.Struct:
		return "block"
	case reflect.Bool:
		return "true, false"
	case reflect.Int, reflect.Int64:
		return "integer"
	}
	if words != "" {
		return strings.ReplaceAll(words, ",", ", ")
	}
	return "text"
}

func shownDefault(field reflect.StructField, value reflect.Value) string {
	is := defaultOf(field, value)
	if _, ok := blockOf(field.Type); ok || is == nil {
		return "–"
	}
	text, err := json.Marshal(is)
	if err != nil {
		panic(err)
	}
	if word := strings.Trim(string(text), `"`); word != "" {
		return "`" + word + "`"
	}
	return "`\"\"`"
}

// readmeKeys are the lines of the README around the table of keys.
const readmeKeys, readmeKeysEnd = "<!-- keys: go test -run 'Schema|Readme' -update . -->\n", "<!-- end of keys -->\n"

// TestReadmeHasEveryKey wants the README's table as the structs make it.
func TestReadmeHasEveryKey(t *testing.T) {
	var table strings.Builder
	table.WriteString("| key | type | default | what it is |\n| --- | --- | --- | --- |\n")
	for _, row := range keyRows(t) {
		if row.meaning == "" {
			t.Errorf("%s has no comment in its struct", row.path)
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", row.path, row.typ, row.byDefault, strings.ReplaceAll(row.meaning, "|", `\|`))
	}
	text := readme(t)
	before, rest, found := strings.Cut(text, readmeKeys)
	got, after, ended := strings.Cut(rest, readmeKeysEnd)
	if !found || !ended {
		t.Fatalf("the README has no lines %q and %q", readmeKeys, readmeKeysEnd)
	}
	if *update {
		if err := os.WriteFile("README.md", []byte(before+readmeKeys+table.String()+readmeKeysEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(table.String(), got); diff != "" {
		t.Errorf("the README's table is old: run go test -run 'Schema|Readme' -update . (-want +got):\n%s", diff)
	}
}
