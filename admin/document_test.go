package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

// document is openapi.yaml, ready to hold answers against it.
type document struct {
	root     map[string]any
	compiler *jsonschema.Compiler
	schemas  map[string]*jsonschema.Schema // compiled so far, by pointer
	seen     map[string]bool               // "GET /livez 200": answers that were checked
}

// operation is one that the document describes.
type operation struct{ method, path string }

// readDocument reads openapi.yaml after edit, which may be nil, has changed it.
func readDocument(t *testing.T, edit func(root map[string]any)) *document {
	t.Helper()
	var fromYAML any
	if err := yaml.Unmarshal(openAPI, &fromYAML); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	read, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	d := &document{root: read.(map[string]any), compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{}, seen: map[string]bool{}}
	if edit != nil {
		edit(d.root)
	}
	d.compiler.AssertFormat()
	if err := d.compiler.AddResource("openapi.json", d.root); err != nil {
		t.Fatal(err)
	}
	return d
}

// methods are those that a path item can describe and that are ever served.
var methods = []string{"get", "post", "put", "delete"}

// operations are all that the document describes, in order.
func (d *document) operations() []operation {
	var all []operation
	paths := d.root["paths"].(map[string]any)
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		for _, method := range methods {
			if _, ok := paths[path].(map[string]any)[method]; ok {
				all = append(all, operation{strings.ToUpper(method), path})
			}
		}
	}
	return all
}

// find follows the names from a pointer, through references, and returns the
// value with the pointer it really has; nil if there is none.
func (d *document) find(pointer string, names ...string) (any, string) {
	var at any = d.root
	path := strings.Split(pointer, "/")[1:]
	for _, name := range names {
		path = append(path, escapePointer(name))
	}
	here := "#"
	for _, name := range path {
		here += "/" + name
		object, _ := at.(map[string]any)
		at = object[unescapePointer(name)]
		for object, ok := at.(map[string]any); ok && object["$ref"] != nil; object, ok = at.(map[string]any) {
			at, here = d.find(object["$ref"].(string))
		}
	}
	return at, here
}

func escapePointer(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

func unescapePointer(name string) string {
	return strings.NewReplacer("~1", "/", "~0", "~").Replace(name)
}

// names are the names of the object that find finds, in order.
func (d *document) names(pointer string, names ...string) []string {
	object, _ := d.find(pointer, names...)
	found, _ := object.(map[string]any)
	return slices.Sorted(maps.Keys(found))
}

// pointer is where the operation is described.
func (o operation) pointer() string {
	return "#/paths/" + escapePointer(o.path) + "/" + strings.ToLower(o.method)
}

// valid returns what the schema at a pointer says against value, JSON as text.
func (d *document) valid(pointer, value string) error {
	schema := d.schemas[pointer]
	if schema == nil {
		var err error
		if schema, err = d.compiler.Compile("openapi.json" + pointer); err != nil {
			return err
		}
		d.schemas[pointer] = schema
	}
	read, err := jsonschema.UnmarshalJSON(strings.NewReader(value))
	if err != nil {
		return fmt.Errorf("%q is no JSON: %w", value, err)
	}
	return schema.Validate(read)
}

// ordinary are fields of any answer, which no API description lists.
var ordinary = map[string]bool{"Content-Type": true, "Content-Length": true, "Cache-Control": true, "Connection": true}

// problems are what is undocumented about an answer to o, as it came.
func (d *document) problems(o operation, answer string) []string {
	head, body, _ := strings.Cut(answer, "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	status := lines[0][9:12]
	response, at := d.find(o.pointer(), "responses", status)
	if response == nil {
		return []string{"status " + status + " is undocumented"}
	}
	d.seen[o.method+" "+o.path+" "+status] = true
	problems := d.fieldProblems(at, lines[1:])
	kind, _, _ := strings.Cut(field(answer, "Content-Type"), ";")
	schema, schemaAt := d.find(at, "content", kind, "schema")
	switch {
	case schema == nil:
		problems = append(problems, fmt.Sprintf("status %s: Content-Type %q is undocumented", status, kind))
	case kind == "application/json":
		if err := d.valid(schemaAt, body); err != nil {
			problems = append(problems, fmt.Sprintf("status %s: %s: %v", status, body, err))
		}
	case body == "":
		problems = append(problems, "the body is empty")
	}
	return problems
}

// fieldProblems compares header lines with the response described at a pointer.
func (d *document) fieldProblems(at string, lines []string) (problems []string) {
	there := map[string]bool{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		there[name] = true
		if ordinary[name] {
			continue
		}
		schema, schemaAt := d.find(at, "headers", name, "schema")
		if schema == nil {
			problems = append(problems, "field "+line+" is undocumented")
			continue
		}
		text, _ := json.Marshal(value)
		if err := d.valid(schemaAt, string(text)); err != nil {
			problems = append(problems, fmt.Sprintf("field %s: %v", line, err))
		}
	}
	for _, name := range d.names(at, "headers") {
		if required, _ := d.find(at, "headers", name, "required"); required == true && !there[name] {
			problems = append(problems, "there is no field "+name)
		}
	}
	return problems
}
