package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// served are the operations of the endpoint tables, without the names of what
// is between braces.
func served() (all []string) {
	add := func(path string, e *endpoint) {
		if e.any != nil { // the document can't say "any"
			all = append(all, "GET "+path)
			return
		}
		for _, method := range methods {
			if e.serves([]byte(strings.ToUpper(method))) != nil {
				all = append(all, strings.ToUpper(method)+" "+path)
			}
		}
	}
	for path, e := range endpoints {
		add(path, e)
	}
	for i := range named {
		add(named[i].prefix+"{}"+named[i].suffix, &named[i].endpoint)
	}
	slices.Sort(all)
	return all
}

var braces = regexp.MustCompile(`\{[^}]*\}`)

func TestDocumentHasWhatIsServedAndNothingElse(t *testing.T) {
	var documented []string
	for _, o := range readDocument(t, nil).operations() {
		documented = append(documented, o.method+" "+braces.ReplaceAllString(o.path, "{}"))
	}
	slices.Sort(documented)
	if diff := cmp.Diff(served(), documented); diff != "" {
		t.Errorf("(-served +documented):\n%s", diff)
	}
	status, body := start(t, setup{}).do(t, "GET", "/admin/openapi.yaml")
	if status != "200" || body != string(openAPI) {
		t.Errorf("served: got %s %.100q", status, body)
	}
}

// example is a target that o answers with 200, if all is well.
func (o operation) example() string {
	target := strings.NewReplacer("{user_id}", "alice", "{resource}", "read", "{file}", "app.js").Replace(o.path)
	if o.path == "/allow" {
		target += "?user_id=alice"
	}
	return target
}

// holder holds what gateways answer against the document.
type holder struct {
	*document
	t *testing.T
}

// ask sends raw, a request for o, and holds the answer, which must have the status.
func (h holder) ask(g *gateway, o operation, status, raw string) {
	h.t.Helper()
	answer := g.send(h.t, raw)
	if len(answer) < 12 || answer[9:12] != status {
		h.t.Errorf("%.200q: got %.300q, want %s", raw, answer, status)
		return
	}
	for _, problem := range h.problems(o, answer) {
		h.t.Errorf("%s %s: %.120q: %s", o.method, o.path, raw, problem)
	}
	if strings.Contains(answer, "\r\nAccess-Control-") {
		h.t.Errorf("%.200q is answered with a CORS field: %.300q", raw, answer)
	}
	if allow := field(answer, "Allow"); allow != "" && o.path != checkPath && allow != h.allowed(o.path) {
		h.t.Errorf("%s: got Allow: %s, want %s", o.path, allow, h.allowed(o.path))
	}
}

// allowed is what Allow should say by the document.
func (h holder) allowed(path string) string {
	var all []string
	for _, o := range h.operations() {
		if o.path == path {
			all = append(all, o.method)
		}
	}
	return strings.Replace(strings.Join(all, ", "), "GET", "GET, HEAD", 1)
}

func TestEveryAnswerIsAsDocumented(t *testing.T) {
	d := readDocument(t, nil)
	for _, kind := range []string{"memory", "redis"} {
		t.Run(kind, func(t *testing.T) {
			h := holder{d, t}
			open := func() limiter.Store { return limiter.NewMemoryStore() }
			down := limiter.Store(deadStore{limiter.NewMemoryStore()})
			if kind == "redis" {
				server, dead := redistest.Start(t), redistest.Start(t)
				open = func() limiter.Store { return openRedis(t, server) }
				down = openRedis(t, dead)
				dead.Kill()
			}
			h.askAll(start(t, documentedSetup(t, open())))
			h.askBroken(start(t, documentedSetup(t, open())))
			h.askUnguarded(start(t, documentedSetup(t, open())))
			h.askGuarded(open())
			h.askDown(start(t, documentedSetup(t, down)))
			h.askFull(open())
		})
	}
	holder{d, t}.askSlow()
	holder{d, t}.askPanic()
	for _, o := range d.operations() {
		for _, status := range d.names(o.pointer(), "responses") {
			// The others have no panic that a test could bring about.
			if key := o.method + " " + o.path + " " + status; !d.seen[key] && (status != "500" || o.path == "/metrics") {
				t.Errorf("%s is documented, but no answer was", key)
			}
		}
	}
}

// documentedSetup has all that answers can show.
func documentedSetup(t *testing.T, store limiter.Store) setup {
	limits := frozen(t, 10)
	limits.OnStoreError = limiter.StandInDeny
	limits.Headers = []string{"draft", "legacy"}
	limits.Resources = map[string]limiter.ResourceConfig{
		"read": {Capacity: 10, RefillRate: rate(t, "0.034/d")},
		"search": {Limits: []limiter.LimitConfig{
			{Name: "burst", Capacity: 4, RefillRate: rate(t, "0.25/s")},
			{Name: "everyone", Per: "resource", Capacity: 1000, RefillRate: rate(t, "0.5/s")},
			{Name: "next", Shadow: true, Capacity: 2, RefillRate: rate(t, "1/s")},
		}},
	}
	inForce := map[string]any{"proxy": map[string]any{"listen": ":8080"}, "limiter": map[string]any{}, "admin": map[string]any{}, "log": map[string]any{}}
	return setup{limits: limits, store: store, shown: inForce, upstreams: someUpstreams, explain: echoQuestion, reload: someReloads()}
}

// someReloads are, one after the other, all that may come of a reload.
func someReloads() func() Reloaded {
	all := []Reloaded{
		{Changed: true, NeedsRestart: []string{"proxy.listen", "limiter.redis"}},
		{Changed: true, Warnings: []Problem{{2, 3, "admin.token", "is in clear text"}}}, {},
		{Problems: []Problem{{1, 1, "", "the file is empty"}, {3, 7, "admin.token", "is short"}}},
		{Refused: "there is no file"},
	}
	var next atomic.Int64
	return func() Reloaded { return all[int(next.Add(1)-1)%len(all)] }
}

// put is a request with a JSON body.
func put(target, body string) string {
	return request("PUT", target, "Content-Type: application/json", fmt.Sprintf("Content-Length: %d", len(body))) + body
}

// post is put with another method.
func post(target, body string) string { return strings.Replace(put(target, body), "PUT", "POST", 1) }

// askAll asks in an order in which each request finds what it needs.
func (h holder) askAll(g *gateway) {
	override, reset, resource := "/admin/user/{user_id}/override", "/admin/user/{user_id}/reset", "/admin/resources/{resource}"
	for _, r := range []struct{ status, method, path, raw string }{
		{"200", "POST", reset, request("POST", "/admin/user/nobody/reset")},
		{"404", "DELETE", override, request("DELETE", "/admin/user/alice/override")},
		{"404", "DELETE", resource, request("DELETE", "/admin/resources/read")},
		{"200", "POST", "/allow", request("POST", "/allow?user_id=alice&resource=read&cost=9", "Idempotency-Key: k")},
		{"200", "POST", "/allow", request("POST", "/allow?user_id=alice&resource=read&cost=9", "Idempotency-Key: k")},
		{"422", "POST", "/allow", request("POST", "/allow?user_id=alice&resource=read&cost=8", "Idempotency-Key: k")},
		{"429", "POST", "/allow", request("POST", "/allow?user_id=alice&resource=read&cost=9")},
		{"400", "POST", "/allow", request("POST", "/allow?user_id=alice&resource=read&cost=11")},
		{"200", "POST", "/allow", request("POST", "/allow?user_id=alice&resource=search&cost=3")},
		{"200", "POST", "/allow", request("POST", "/allow?user_id=alice&resource=unheard")},
		{"200", "GET", checkPath, request("GET", "/check", "X-Forwarded-Uri: /items")},
		{"200", "GET", checkPath, request("GET", "/check/free", "X-Forwarded-For: 192.0.2.1")},
		{"400", "GET", checkPath, request("GET", "/check")},
		{"400", "GET", checkPath, request("GET", "/check", "X-Original-URI: /odd")},
		{"401", "GET", checkPath, request("GET", "/check", "X-Original-URI: /login")},
		{"401", "GET", checkPath, request("GET", "/check?deny_status=401", "X-Original-URI: /blocked")},
		{"403", "GET", checkPath, request("GET", "/check", "X-Original-URI: /blocked")},
		{"403", "GET", checkPath, request("GET", "/check?deny_status=403", "X-Original-URI: /cost/10")},
		{"404", "GET", checkPath, request("GET", "/check", "X-Original-URI: /nowhere")},
		{"405", "GET", checkPath, request("GET", "/check", "X-Original-URI: /", "X-Original-Method: CONNECT")},
		{"429", "GET", checkPath, request("GET", "/check", "X-Original-URI: /cost/10")},
		{"429", "GET", checkPath, request("GET", "/check", "X-Original-URI: /cost/11")},
		{"200", "PUT", override, put("/admin/user/alice/override", `{"resource":"read","capacity":20,"refill_rate":"0.5/h","ttl":"10m","reason":"test"}`)},
		{"200", "PUT", override, put("/admin/user/vip/override", `{"exempt":true}`)},
		{"200", "PUT", override, put("/admin/user/bad/override", `{"block":true,"ttl":"1h","reason":"abuse"}`)},
		{"403", "POST", "/allow", request("POST", "/allow?user_id=bad")},
		{"200", "POST", "/allow", request("POST", "/allow?user_id=vip&cost=11")},
		{"200", "PUT", resource, put("/admin/resources/read", `{"capacity":30,"refill_rate":"1/h"}`)},
		{"200", "PUT", resource, put("/admin/resources/new", `{"limits":[{"name":"a","per":"resource","capacity":3,"refill_rate":"1/d"},{"name":"b","shadow":true,"capacity":3,"refill_rate":"0.1"}]}`)},
		{"200", "GET", "/admin/user/{user_id}", request("GET", "/admin/user/alice")},
		{"200", "GET", "/admin/user/{user_id}", request("GET", "/admin/user/bad")},
		{"200", "GET", "/admin/user/{user_id}", request("GET", "/admin/user/alice?plan=gold")},
		{"400", "GET", "/admin/user/{user_id}", request("GET", "/admin/user/alice?plan=")},
		{"200", "POST", "/allow", request("POST", "/allow?user_id=alice&resource=read&plan=gold")},
		{"200", "POST", reset, request("POST", "/admin/user/alice/reset")},
		{"200", "POST", reset, request("POST", "/admin/user/alice/reset?resource=read")},
		{"200", "GET", "/admin/stats", request("GET", "/admin/stats?top_n=1")},
		{"200", "GET", "/admin/top_offenders", request("GET", "/admin/top_offenders?window=7d&bucket=hour&top_n=1")},
		{"200", "GET", "/admin/overrides", request("GET", "/admin/overrides")},
		{"200", "GET", "/admin/resources", request("GET", "/admin/resources")},
		{"200", "GET", "/admin/config", request("GET", "/admin/config")},
		{"200", "POST", "/admin/explain", post("/admin/explain", `{"url":"/x"}`)},
		{"200", "POST", "/admin/explain", post("/admin/explain?format=text", `{"url":"/x"}`)},
		{"200", "GET", "/admin/upstreams", request("GET", "/admin/upstreams")},
		{"200", "DELETE", override, request("DELETE", "/admin/user/alice/override?resource=read")},
		{"200", "DELETE", resource, request("DELETE", "/admin/resources/new")},
		{"200", "POST", "/admin/reload", request("POST", "/admin/reload")},
		{"200", "POST", "/admin/reload", request("POST", "/admin/reload")},
		{"200", "POST", "/admin/reload", request("POST", "/admin/reload")},
		{"422", "POST", "/admin/reload", request("POST", "/admin/reload")},
		{"409", "POST", "/admin/reload", request("POST", "/admin/reload")},
		{"200", "GET", "/admin/audit", request("GET", "/admin/audit?n=100")},
		{"200", "GET", "/admin/openapi.yaml", request("GET", "/admin/openapi.yaml")},
		{"200", "GET", "/admin/", request("GET", "/admin/")},
		{"200", "GET", "/admin/web/{file}", request("GET", "/admin/web/style.css")},
		{"404", "GET", "/admin/web/{file}", request("GET", "/admin/web/nothing.js")},
		{"200", "GET", "/metrics", request("GET", "/metrics")},
		{"200", "GET", "/readyz", request("GET", "/readyz")},
		{"200", "GET", "/livez", request("GET", "/livez")},
	} {
		h.ask(g, operation{r.method, r.path}, r.status, r.raw)
	}
}

// askBroken sends what no operation can take.
func (h holder) askBroken(g *gateway) {
	for _, o := range h.operations() {
		head := o.method + " " + o.example() + " HTTP/1.1\r\nHost: localhost\r\n"
		h.ask(g, o, "400", head+"X : y\r\n\r\n")
		if o.path != checkPath {
			h.ask(g, o, "405", request("TRACE", o.example()))
			h.ask(g, o, "405", request("OPTIONS", o.example()))
		}
		h.ask(g, o, "413", head+"Content-Length: 65537\r\n\r\n")
		h.ask(g, o, "431", head+strings.Repeat("X: y\r\n", maxFields)+"\r\n")
		h.ask(g, o, "505", strings.Replace(head, "1.1", "1.2", 1)+"\r\n")
	}
}

// guarded says which token an operation asks for: admin, allow or none.
func (d *document) guarded(o operation) string {
	security, _ := d.find(o.pointer(), "security")
	switch fmt.Sprint(security) {
	case "[map[adminToken:[]] map[]]":
		return adminToken
	case "[map[allowToken:[]] map[]]", "[map[checkToken:[]] map[]]":
		return allowToken
	}
	return ""
}

// askUnguarded asks as a web page would where there are no tokens.
func (h holder) askUnguarded(g *gateway) {
	for _, o := range h.operations() {
		switch {
		case o.path == checkPath:
			h.ask(g, o, "403", request(o.method, o.example()+"/items", "Origin: https://evil.example"))
		case h.guarded(o) == "" && !isPage([]byte(o.example())):
		case o.method == "GET":
			h.ask(g, o, "403", o.method+" "+o.example()+" HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
		default:
			h.ask(g, o, "403", request(o.method, o.example(), "Origin: https://evil.example"))
		}
	}
}

// askGuarded asks with wrong tokens, also while it is crowded.
func (h holder) askGuarded(store limiter.Store) {
	s := documentedSetup(h.t, store)
	s.config = Config{Token: adminToken, AllowToken: allowToken}
	g := start(h.t, s)
	g.strangers = true
	for _, o := range h.operations() {
		if h.guarded(o) != "" {
			h.ask(g, o, "401", request(o.method, o.example(), "Authorization: Bearer wrong"))
		}
	}
	g.strangers = false
	g.guesses.waiting.Store(maxGuessers)
	g.guesses.ask(netip.MustParseAddr("127.0.0.1"), freeGuesses)
	for _, o := range h.operations() {
		if h.guarded(o) != "" {
			h.ask(g, o, "429", request(o.method, o.example(), "Authorization: Bearer wrong"))
		}
	}
}

// askDown asks for what takes a store that is not there.
func (h holder) askDown(g *gateway) {
	for _, o := range h.operations() {
		raw := request(o.method, o.example())
		switch o.path {
		case "/admin/explain": // the answer says how the store fares
			h.ask(g, o, "200", post(o.example(), `{"url":"/x"}`))
			continue
		case checkPath:
			raw = request(o.method, o.example(), "X-Forwarded-Uri: /items")
		case "/admin/user/{user_id}/override":
			if o.method == "PUT" {
				raw = put(o.example(), `{"block":true}`)
			}
		case "/admin/resources/{resource}":
			if o.method == "PUT" {
				raw = put(o.example(), `{"capacity":1,"refill_rate":"1/s"}`)
			}
		case "/admin/", "/admin/web/{file}", "/admin/overrides", "/admin/config", "/admin/reload", "/admin/upstreams", "/admin/openapi.yaml", "/metrics", "/livez":
			h.ask(g, o, "200", raw) // these answer all the same
			continue
		}
		h.ask(g, o, "503", raw)
	}
}

// askFull asks for more than a fleet can keep.
func (h holder) askFull(store limiter.Store) {
	fill := func(n int, change func(name string) limiter.Change) {
		for i := range n {
			err := store.Fleet().Change(h.t.Context(), change(fmt.Sprint(i)))
			if errors.Is(err, limiter.ErrTooMany) {
				return // something was there before
			}
			if err != nil {
				h.t.Fatal(err)
			}
		}
	}
	one := limiter.ResourceConfig{Capacity: 1, RefillRate: rate(h.t, "1/s")}
	fill(1000, func(name string) limiter.Change {
		return limiter.Change{Entry: limiter.AuditEntry{Action: "limits.set", Resource: name}, SetLimits: &one}
	})
	fill(limiter.MaxOverrides, func(name string) limiter.Change {
		return limiter.Change{Entry: limiter.AuditEntry{Action: "override.set"}, SetOverride: &limiter.Override{User: name, Block: true}}
	})
	g := start(h.t, documentedSetup(h.t, store))
	h.ask(g, operation{"PUT", "/admin/user/{user_id}/override"}, "409", put("/admin/user/alice/override", `{"exempt":true}`))
	h.ask(g, operation{"PUT", "/admin/resources/{resource}"}, "409", put("/admin/resources/another", `{"capacity":1,"refill_rate":"1/s"}`))
}

// askSlow sends half a request.
func (h holder) askSlow() {
	g := newGateway(h.t, setup{})
	g.http.ReadTimeout = 20 * time.Millisecond
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	g.addr = ln.Addr().String()
	go func() { _ = g.Serve(ln) }()
	defer func() { _ = g.Shutdown(h.t.Context()) }()
	for _, o := range h.operations() {
		h.ask(g, o, "408", o.method+" "+o.example()+" HTTP/1.1\r\nHost: localhost\r\n")
	}
}

func (h holder) askPanic() {
	g := start(h.t, setup{metrics: []func(io.Writer){func(io.Writer) { panic("a bug") }}})
	h.ask(g, operation{"GET", "/metrics"}, "500", request("GET", "/metrics"))
}

func TestEveryGetIsAnsweredToHeadWithoutABody(t *testing.T) {
	g := start(t, documentedSetup(t, limiter.NewMemoryStore()))
	for _, o := range readDocument(t, nil).operations() {
		if o.method != "GET" {
			continue
		}
		if answer := g.send(t, request("HEAD", o.example(), "X-Forwarded-Uri: /items")); answer[9:12] != "200" || !strings.HasSuffix(answer, "\r\n\r\n") || field(answer, "Content-Length") == "0" {
			t.Errorf("HEAD %s: got %q, want 200, a length and no body", o.path, answer)
		}
	}
}

// deadStore is a store that is down with all that it keeps.
type deadStore struct{ *limiter.MemoryStore }

func (deadStore) Decide(context.Context, *limiter.Spend, *limiter.Decision) error { return errDown }
func (deadStore) Reset(context.Context, [][]byte) error                           { return errDown }
func (deadStore) Probe(context.Context) error                                     { return errDown }
func (deadStore) Fleet() limiter.Fleet                                            { return deadFleet{} }

type deadFleet struct{ limiter.Fleet }

func (deadFleet) Flush(context.Context, *limiter.Figures) (int64, error) { return 0, errDown }
func (deadFleet) Settings(context.Context) (limiter.Settings, error) {
	return limiter.Settings{}, errDown
}
func (deadFleet) Resources(context.Context) ([]limiter.ResourceFigures, error) { return nil, errDown }
func (deadFleet) Change(context.Context, limiter.Change) error                 { return errDown }
func (deadFleet) Audit(context.Context, int) ([]limiter.AuditEntry, error)     { return nil, errDown }

// Whoever holds answers against a document must notice what is missing in it.
func TestWhatIsUndocumentedIsFound(t *testing.T) {
	g := start(t, setup{})
	answer := g.send(t, request("GET", "/admin/stats"))
	notAllowed := g.send(t, request("POST", "/admin/stats"))
	stats := operation{"GET", "/admin/stats"}
	remove := func(pointer, name string) func(root map[string]any) {
		return func(root map[string]any) {
			at, _ := (&document{root: root}).find(pointer)
			delete(at.(map[string]any), name)
		}
	}
	for _, c := range []struct {
		what, answer, want string
		edit               func(root map[string]any)
	}{
		{"nothing", answer, "", nil},
		{"a field", answer, "additional properties 'active_keys' not allowed", remove("#/components/schemas/Stats/properties", "active_keys")},
		{"a status", answer, "status 200 is undocumented", remove("#/paths/~1admin~1stats/get/responses", "200")},
		{"a media type", answer, `Content-Type "application/json" is undocumented`, remove("#/paths/~1admin~1stats/get/responses/200/content", "application/json")},
		{"a header field", notAllowed, "field Allow: GET, HEAD is undocumented", remove("#/components/responses/MethodNotAllowed/headers", "Allow")},
		{"a field of the answer", strings.Replace(answer, `"active_keys":0,`, "", 1), "missing property 'active_keys'", nil},
		{"a header of the answer", strings.Replace(notAllowed, "Allow: GET, HEAD\r\n", "", 1), "there is no field Allow", nil},
		{"the type of a field of the answer", strings.Replace(answer, `"active_keys":0`, `"active_keys":"0"`, 1), "got string, want integer", nil},
	} {
		got := strings.Join(readDocument(t, c.edit).problems(stats, c.answer), "\n")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("without %s: got %q, want %q", c.what, got, c.want)
		}
	}
}

func TestDocumentedParametersAreThoseThatAreTaken(t *testing.T) {
	g := start(t, setup{})
	list := regexp.MustCompile(`: there (?:is|are) ([a-z_, ]+)`)
	d := readDocument(t, nil)
	for _, o := range d.operations() {
		if d.guarded(o) == "" {
			continue // these take whatever comes
		}
		target, _, _ := strings.Cut(o.example(), "?")
		answer := g.send(t, strings.Replace(put(target+"?nonsense=1", "{}"), "PUT", o.method, 1))
		found := list.FindStringSubmatch(answer)
		if answer[9:12] != "400" || found == nil {
			t.Errorf("%s %s: got %q", o.method, o.path, answer)
			continue
		}
		taken := strings.FieldsFunc(strings.ReplaceAll(strings.ReplaceAll(found[1], " and ", ","), "none here", ""), func(r rune) bool { return r == ',' || r == ' ' })
		slices.Sort(taken)
		if diff := cmp.Diff(strings.Join(d.queryParameters(o), " "), strings.Join(taken, " ")); diff != "" {
			t.Errorf("%s %s (-documented +taken):\n%s", o.method, o.path, diff)
		}
	}
}

// queryParameters are the names of what o takes in its query, in order.
func (d *document) queryParameters(o operation) (names []string) {
	found, _ := d.find(o.pointer(), "parameters")
	list, _ := found.([]any)
	for _, each := range list {
		p := each.(map[string]any)
		if ref, ok := p["$ref"].(string); ok {
			at, _ := d.find(ref)
			p = at.(map[string]any)
		}
		if p["in"] == "query" {
			names = append(names, p["name"].(string))
		}
	}
	slices.Sort(names)
	return names
}

func TestDocumentedSchemasAreClosedAndExamplesFit(t *testing.T) {
	d := readDocument(t, nil)
	open := map[string]bool{}
	for _, section := range []string{"proxy", "limiter", "admin", "log"} {
		open["#/components/schemas/Config/properties/"+section] = true // the file's keys
	}
	examples := 0
	d.walk(d.root, "#", func(at string, object map[string]any) {
		if object["type"] == "object" && object["additionalProperties"] != false && !open[at] {
			t.Errorf("%s: additionalProperties is not false", at)
		}
		if strings.HasSuffix(at, "/example") || object["schema"] == nil {
			return
		}
		for _, example := range examplesOf(object) {
			examples++
			_, schemaAt := d.find(at, "schema")
			text, err := jsonText(example)
			if err == nil {
				err = d.valid(schemaAt, text)
			}
			if err != nil {
				t.Errorf("%s: example %s: %v", at, text, err)
			}
		}
	})
	if examples < 40 {
		t.Errorf("found %d examples: are they looked for in the right place?", examples)
	}
}

// walk calls f with every object, by its pointer.
func (d *document) walk(value any, at string, f func(at string, object map[string]any)) {
	switch value := value.(type) {
	case []any:
		for i, each := range value {
			d.walk(each, fmt.Sprint(at, "/", i), f)
		}
	case map[string]any:
		f(at, value)
		for _, name := range slices.Sorted(maps.Keys(value)) {
			d.walk(value[name], at+"/"+escapePointer(name), f)
		}
	}
}

func examplesOf(object map[string]any) (all []any) {
	if example, ok := object["example"]; ok {
		all = append(all, example)
	}
	several, _ := object["examples"].(map[string]any)
	for _, each := range several {
		all = append(all, each.(map[string]any)["value"])
	}
	return all
}

func jsonText(v any) (string, error) {
	text, err := json.Marshal(v)
	return string(text), err
}
