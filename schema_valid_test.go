package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"github.com/r8limiter/r8limiter/proxy"
)

// shippedSchema is the schema as it is shipped, ready to judge.
func shippedSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	read, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("config.json", read); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("config.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// judge is what a schema says of a configuration as an editor sees it.
func judge(s *jsonschema.Schema, text []byte) error {
	var fromYAML any
	if err := yaml.Unmarshal(text, &fromYAML); err != nil {
		return err
	}
	asJSON, err := json.Marshal(fromYAML)
	if err != nil {
		return err
	}
	read, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		return err
	}
	return s.Validate(read)
}

// plainDefaults are the keys whose line in the example shows something better than
// the default, and why.
var plainDefaults = map[string]string{
	"proxy.listen": "the default is no listener",
}

// TestExampleShowsEveryDefault wants a line for each default, as it would be written.
func TestExampleShowsEveryDefault(t *testing.T) {
	data, err := os.ReadFile("config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if first, _, _ := strings.Cut(string(data), "\n"); first != "# yaml-language-server: $schema="+schemaFile {
		t.Errorf("the first line is %q, by which no editor finds the schema", first)
	}
	for _, row := range keyRows(t) {
		if _, ok := plainDefaults[row.path]; row.byDefault == "–" || ok {
			continue
		}
		key := row.path[1+strings.LastIndexByte(row.path, '.'):]
		is := regexp.QuoteMeta(strings.Trim(row.byDefault, "`[]\""))
		if row.byDefault == "`false`" {
			is = "(true|false)" // where it is false by default, true is what needs to be shown
		}
		shown := regexp.MustCompile(`[\s{]` + key + `: *(\[?"?` + is + `"?\]?([\s,}]|$)|.*# .*(` + is + ` \(default\)|default:? ` + is + `))`)
		if !shown.Match(data) {
			t.Errorf("no line shows the default %s of %s", row.byDefault, row.path)
		}
	}
}

func TestSchemaAcceptsWhatIsShipped(t *testing.T) {
	s := shippedSchema(t)
	for file, text := range shippedConfigs(t) {
		if err := judge(s, text); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	for _, text := range []string{
		`{}`,
		`proxy: {ipv6_prefix: "${PREFIX}", proxy_protocol: "${PP:-false}", drain_delay: "${DELAY}s", drain_timeout: 0}`,
		`proxy: {ipv6_prefix: "56", trusted_proxies: 10.0.0.1, upstreams: {api: {targets: "echo:", balance: "${BALANCE}"}}}`,
		`proxy: {tls: {min_version: 1.3}, routes: [{name: 1, cost: 2, user_id: "{header.X-Id}", match: {host: a.example.com, path: [/a, /b], headers: {X-A: 1, X-B: {prefix: b}}}}]}`,
		`limiter: {default: {refill_rate: 0.5}, headers: legacy, on_store_error: "${POLICY:-deny}"}`,
		`limiter: {headers: [], plans: {gold: {read: {limits: [{name: a, per: resource, capacity: 1, refill_rate: 1/d}]}}}}`,
	} {
		if err := judge(s, []byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// What the schema can see, it refuses as check does; the files are named after
// what is wrong with them.
func TestSchemaRefusesWhatItCanSee(t *testing.T) {
	s := shippedSchema(t)
	seen := 0
	for _, kind := range []string{"key", "type", "word", "duration", "rate", "template"} {
		files, err := filepath.Glob("testdata/bad_" + kind + "_*.yaml")
		if err != nil || len(files) == 0 {
			t.Fatalf("no files of kind %s: %v", kind, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if judge(s, text) == nil {
				t.Errorf("the schema accepts %s", file)
			}
			seen++
		}
	}
	t.Logf("%d files", seen)
}

// textsOf are texts of which the pattern of a type and its decoder must think alike.
var textsOf = map[string][]string{
	"duration":   {"5s", "1m30s", "1.5h", "+5s", "500ms", "0", "5us", "5µs", ".5s", "5", "s", "5 s", "-5s", "1d", "", "5s5", "1h 5m"},
	"rate":       {"10/s", "0.5/m", "5", "100/h", "5000/d", "10/y", "/s", "1e3/s", "10 /s", "-1/s", "", "10/", "10/s/s", "fast"},
	"percentage": {"5%", "0.5%", "100%", "5", "%", "five%", "", "-5%", "5 %"},
	"network":    {"10.0.0.0/8", "10.0.0.1", "::1", "2001:db8::/32", "ten", "10.0.0.0/", "localhost", "10.0.0.0/8/8", "", "/8"},
	"SHA-256":    {strings.Repeat("a1", 32), strings.Repeat("A1", 32), strings.Repeat("a", 63), strings.Repeat("g1", 32), ""},
	"template": {
		"{header.X-Id}", "user-{query.id|lower|sha256}", "{cookie.sid|sha256}", "{path.id}", "{client_ip}", "{host}{method}", "plain", "1",
		"{", "}", "{header}", "{header.}", "{nothing}", "{header.X|upper}", "{host.x}", "{header.X|}", "a{b", "{{host}}", "",
	},
}

func TestSchemaReadsTextsAsTheDecoderDoes(t *testing.T) {
	for typ, is := range textTypes {
		p := regexp.MustCompile(textPattern(is.pattern))
		for _, text := range textsOf[is.word] {
			err := setScalar(text, reflect.New(typ).Elem())
			if got := p.MatchString(text); got != (err == nil) {
				t.Errorf("%s %q: the pattern says %v, the decoder %v", is.word, text, got, err)
			}
		}
		if len(textsOf[is.word]) == 0 {
			t.Errorf("no texts are tried for %s", is.word)
		}
	}
}

// The pattern of templates is to know every placeholder and filter that there is.
func TestSchemaKnowsEveryPlaceholder(t *testing.T) {
	p := regexp.MustCompile(textPattern(templatePattern))
	_, err := proxy.ParseTemplate("{nothing}")
	_, list, _ := strings.Cut(err.Error(), "there are ")
	placeholders := regexp.MustCompile(`\{[^}]+\}`).FindAllString(list, -1)
	_, err = proxy.ParseTemplate("{host|nothing}")
	_, list, _ = strings.Cut(err.Error(), "there are ")
	filters := regexp.MustCompile(`lower|sha256|\w{4,}`).FindAllString(list, -1)
	if len(placeholders) < 8 || len(filters) < 2 {
		t.Fatalf("found only %q and %q", placeholders, filters)
	}
	for _, each := range placeholders {
		if !p.MatchString(each) {
			t.Errorf("the pattern refuses %s", each)
		}
	}
	for _, each := range filters {
		if !p.MatchString("{host|" + each + "}") {
			t.Errorf("the pattern refuses the filter %s", each)
		}
	}
}
