package admin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

// apiDocument is openapi.yaml, as far as it is looked into.
type apiDocument struct {
	paths    map[string]map[string]any
	compiler *jsonschema.Compiler
}

const documentURL = "https://r8limiter.invalid/openapi.json"

func readDocument(t *testing.T) *apiDocument {
	t.Helper()
	var doc map[string]any
	if err := yaml.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(doc) // the validator wants JSON's types
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	d := &apiDocument{paths: map[string]map[string]any{}, compiler: jsonschema.NewCompiler()}
	d.compiler.AssertFormat()
	if err := d.compiler.AddResource(documentURL, parsed); err != nil {
		t.Fatal(err)
	}
	for path, item := range doc["paths"].(map[string]any) {
		d.paths[path] = item.(map[string]any)
	}
	return d
}

// methods are those of a path, in the order of an Allow field.
func (d *apiDocument) methods(path string) (found []string) {
	for _, m := range []string{"get", "post", "put", "delete"} {
		if d.paths[path][m] != nil {
			found = append(found, strings.ToUpper(m))
		}
	}
	return found
}

// check validates an answer by what the document says of path, method and status.
func (d *apiDocument) check(t *testing.T, path, method, status, body string) {
	t.Helper()
	operation, ok := d.paths[path][strings.ToLower(method)].(map[string]any)
	if !ok {
		t.Errorf("%s %s is not documented", method, path)
		return
	}
	pointer := "/paths/" + escapePointer(path) + "/" + strings.ToLower(method) + "/responses/" + status
	response, ok := operation["responses"].(map[string]any)[status].(map[string]any)
	if !ok {
		t.Errorf("%s %s: status %s is not documented: %s", method, path, status, body)
		return
	}
	if ref, ok := response["$ref"].(string); ok {
		pointer = strings.TrimPrefix(ref, "#")
	}
	schema, err := d.compiler.Compile(documentURL + "#" + pointer + "/content/application~1json/schema")
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
	if err != nil {
		t.Errorf("%s %s: %v in %s", method, path, err, body)
		return
	}
	if err := schema.Validate(value); err != nil {
		t.Errorf("%s %s %s: %v\n%s", method, path, status, err, body)
	}
}

func escapePointer(path string) string {
	path = strings.NewReplacer("~", "~0", "/", "~1").Replace(path)
	return strings.NewReplacer("{", "%7B", "}", "%7D").Replace(path)
}

// served are the paths that the tables of endpoints have, with the methods of each.
func served() map[string][]string {
	all := map[string][]string{}
	add := func(path string, e *endpoint) {
		all[path] = strings.Split(strings.Replace(e.allowed(), "GET, HEAD", "GET", 1), ", ")
	}
	for path, e := range endpoints {
		add(path, e)
	}
	for i := range named {
		what := map[string]string{"/admin/user/": "{user_id}", "/admin/resources/": "{resource}", "/admin/web/": "{file}"}[named[i].prefix]
		add(named[i].prefix+what+named[i].suffix, &named[i].endpoint)
	}
	return all
}

func TestDocumentHasWhatIsServed(t *testing.T) {
	d := readDocument(t)
	documented := map[string][]string{}
	for path := range d.paths {
		documented[path] = d.methods(path)
	}
	if diff := cmp.Diff(served(), documented); diff != "" {
		t.Errorf("served (-) and documented (+):\n%s", diff)
	}
}

func TestDocumentIsServed(t *testing.T) {
	g := start(t, setup{})
	if status, body := g.do(t, "GET", "/admin/openapi.yaml"); status != "200" || body != string(openAPI) {
		t.Errorf("got %s and %d bytes", status, len(body))
	}
}

// apiCall is a request and the status that it gets.
type apiCall struct{ method, path, target, body, status string }

// calls has every documented JSON answer that a sound gateway gives, in an
// order in which each has what it needs.
var calls = []apiCall{
	{"POST", "/allow", "/allow?user_id=a", "", "200"},
	{"POST", "/allow", "/allow?user_id=a&cost=9&idempotency=k", "", "200"},
	{"POST", "/allow", "/allow?user_id=a&cost=2&idempotency=k", "", "422"},
	{"POST", "/allow", "/allow?user_id=a", "", "429"},
	{"POST", "/allow", "/allow", "", "400"},
	{"GET", "/admin/stats", "/admin/stats?top_n=5", "", "200"},
	{"GET", "/admin/stats", "/admin/stats?top_n=-1", "", "400"},
	{"GET", "/admin/top_offenders", "/admin/top_offenders?window=15m&bucket=minute", "", "200"},
	{"GET", "/admin/top_offenders", "/admin/top_offenders?window=7d", "", "400"},
	{"PUT", "/admin/user/{user_id}/override", "/admin/user/b/override", `{"block":true,"ttl":"10m","reason":"r"}`, "200"},
	{"PUT", "/admin/user/{user_id}/override", "/admin/user/b/override", `{"resource":"read","capacity":5,"refill_rate":"1/s"}`, "200"},
	{"PUT", "/admin/user/{user_id}/override", "/admin/user/b/override", `{}`, "400"},
	{"POST", "/allow", "/allow?user_id=b", "", "403"},
	{"GET", "/admin/user/{user_id}", "/admin/user/b", "", "200"},
	{"GET", "/admin/user/{user_id}", "/admin/user/%zz", "", "400"},
	{"GET", "/admin/overrides", "/admin/overrides", "", "200"},
	{"GET", "/admin/overrides", "/admin/overrides?x", "", "400"},
	{"DELETE", "/admin/user/{user_id}/override", "/admin/user/b/override?resource=read", "", "200"},
	{"DELETE", "/admin/user/{user_id}/override", "/admin/user/b/override?resource=", "", "400"},
	{"DELETE", "/admin/user/{user_id}/override", "/admin/user/nobody/override", "", "404"},
	{"POST", "/admin/user/{user_id}/reset", "/admin/user/a/reset", "", "200"},
	{"POST", "/admin/user/{user_id}/reset", "/admin/user/a/reset?all=1", "", "400"},
	{"PUT", "/admin/resources/{resource}", "/admin/resources/read", `{"capacity":7,"refill_rate":"1/s"}`, "200"},
	{"PUT", "/admin/resources/{resource}", "/admin/resources/s", `{"limits":[{"name":"x","capacity":7,"refill_rate":"1/s","per":"resource"},{"name":"y","shadow":true,"capacity":7,"refill_rate":"1/s"}]}`, "200"},
	{"PUT", "/admin/resources/{resource}", "/admin/resources/read", `{"capacity":0}`, "400"},
	{"GET", "/admin/resources", "/admin/resources", "", "200"},
	{"GET", "/admin/resources", "/admin/resources?x=1", "", "400"},
	{"DELETE", "/admin/resources/{resource}", "/admin/resources/read", "", "200"},
	{"DELETE", "/admin/resources/{resource}", "/admin/resources/read", "", "404"},
	{"DELETE", "/admin/resources/{resource}", "/admin/resources/read?x=1", "", "400"},
	{"GET", "/admin/audit", "/admin/audit?n=9", "", "200"},
	{"GET", "/admin/audit", "/admin/audit?n=x", "", "400"},
	{"GET", "/admin/config", "/admin/config", "", "200"},
	{"GET", "/readyz", "/readyz", "", "200"},
	{"GET", "/livez", "/livez", "", "200"},
}

func (g *gateway) call(t *testing.T, c apiCall, fields ...string) (status, body string) {
	t.Helper()
	if c.body != "" {
		fields = append(fields, "Content-Type: application/json", fmt.Sprint("Content-Length: ", len(c.body)))
	}
	answer := g.send(t, request(c.method, c.target, fields...)+c.body)
	head, body, ok := strings.Cut(answer, "\r\n\r\n")
	if !ok || len(head) < 12 {
		t.Fatalf("%s %s: got %q", c.method, c.target, answer)
	}
	return head[9:12], body
}

func TestAnswersAreAsDocumented(t *testing.T) {
	d := readDocument(t)
	for name, store := range map[string]func() limiter.Store{
		"memory": func() limiter.Store { return limiter.NewMemoryStore() },
		"redis":  func() limiter.Store { return openRedis(t, startRedis(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, setup{store: store(), settings: map[string]any{"log": "x"}})
			for _, c := range calls {
				status, body := g.call(t, c)
				if status != c.status {
					t.Errorf("%s %s: got %s, want %s: %s", c.method, c.target, status, c.status, body)
				}
				d.check(t, c.path, c.method, status, body)
			}
		})
	}
}

func TestRefusalsAreAsDocumented(t *testing.T) {
	d := readDocument(t)
	guarded := start(t, setup{config: Config{Token: adminToken, AllowToken: allowToken}})
	guarded.strangers = true
	open := start(t, setup{})
	down := start(t, setup{store: openRedis(t, "/nonexistent/redis.sock")})
	for path, methods := range served() {
		target := strings.NewReplacer("{user_id}", "a", "{resource}", "a").Replace(path)
		if isPage([]byte(path)) {
			continue
		}
		for _, method := range methods {
			c := apiCall{method: method, target: target}
			if strings.HasPrefix(path, "/admin") || path == "/allow" {
				status, body := guarded.call(t, c)
				d.check(t, path, method, status, body)
				if status != "401" {
					t.Errorf("%s %s without its token: %s", method, path, status)
				}
				c := apiCall{method: method, target: target + "?user_id=a"}
				if status, body = open.call(t, c, "Host: evil.example", "Origin: https://evil.example"); status == "200" {
					t.Errorf("%s %s from a web page: %s %s", method, path, status, body)
				}
			}
			if !slices.Contains([]string{"/metrics", "/livez", "/admin/config", "/admin/openapi.yaml", "/admin/overrides"}, path) {
				checkDown(t, d, down, path, method, target)
			}
		}
	}
}

// checkDown wants 503 from whatever needs the store.
func checkDown(t *testing.T, d *apiDocument, down *gateway, path, method, target string) {
	t.Helper()
	c := apiCall{method: method, target: target}
	switch path {
	case "/allow":
		c.target += "?user_id=a"
	case "/admin/user/{user_id}/override":
		if method == "PUT" {
			c.body = `{"block":true}`
		}
	case "/admin/resources/{resource}":
		if method == "PUT" {
			c.body = `{"capacity":1,"refill_rate":"1/s"}`
		}
	}
	status, body := down.call(t, c)
	if status != "503" {
		t.Errorf("%s %s without its store: got %s %s", method, path, status, body)
	}
	d.check(t, path, method, status, body)
}
