package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

const explainFile = `
proxy:
  listen: "127.0.0.1:0"
  trusted_proxies: [10.0.0.0/8, 127.0.0.1]
  upstreams: {api: {targets: ["echo:"]}}
  routes:
    - {name: closed, match: {path: /internal/*}, action: block}
    - {name: admin, match: {host: admin.example.com, headers: {X-Key: hunter2}}, action: bypass, upstream: api}
    - name: search
      match: {path: "/v1/{kind}", methods: [GET]}
      user_id: ["{header.X-Api-Key|sha256}", "{header.X-User-Id|lower}", "{client_ip}"]
      resource: search
      plan: "{header.X-Plan}"
      cost: "{query.cost}"
      enforce: 80%
      upstream: api
limiter:
  resources:
    search:
      limits:
        - {name: burst, capacity: 4, refill_rate: 1/d}
        - {name: everyone, per: resource, capacity: 50, refill_rate: 1/h}
        - {name: next, shadow: true, capacity: 1, refill_rate: 1/h}
  plans: {gold: {search: {capacity: 9, refill_rate: 1/h}}}
`

// explainFileAt writes a configuration for explain.
func explainFileAt(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// golden compares got with a file of testdata, or writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", name, diff)
	}
}

// explainCases are command lines, without -config.
var explainCases = [][]string{
	{"GET", "https://api.example.com/v1/tea?cost=2", "-ip", "10.0.0.1", "-H", "X-Forwarded-For: 198.51.100.1, 203.0.113.9, 10.0.0.2", "-H", "X-Plan: silver"},
	{"-H", "X-User-Id: ANN", "GET", "http://api.example.com/v1/tea", "-H", "X-Plan: gold"},
	{"-X", "POST", "/v1/tea", "-H", "Host: admin.example.com", "-H", "X-Key: guess"},
	{"http://api.example.com/v1/a%2Fb"},
	{"api.example.com/internal/x"},
	{"-ip", "203.0.113.9", "http://api.example.com/v1/tea?cost=100", "-H", "X-Forwarded-For: 1.2.3.4", "-H", "X-Api-Key: k"},
	{"http://api.example.com/v1/tea?cost=much"},
	{"http://api.example.com/v1/tea", "-H", "X-User-Id: a", "-H", "x-user-id: b"},
	{"CONNECT", "/x"},
	{"OPTIONS", "*", "-H", "Host: api.example.com"},
}

func TestExplainPrintsTextAndJSON(t *testing.T) {
	file := explainFileAt(t, explainFile)
	var text, lines strings.Builder
	for _, args := range explainCases {
		code, stdout, stderr := command(append([]string{"explain", "-config", file}, args...)...)
		if code != exitFine || stderr != "" {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
		}
		text.WriteString("$ " + strings.Join(args, " ") + "\n" + stdout + "\n")
		for line := range strings.Lines(stdout) {
			if len(strings.TrimSuffix(line, "\n")) > textWidth {
				t.Errorf("%q: %q has more than %d columns", args, line, textWidth)
			}
		}
		code, stdout, _ = command(append([]string{"explain", "-config", file, "-format", "json"}, args...)...)
		if code != exitFine || !json.Valid([]byte(stdout)) {
			t.Errorf("%q: exit code %d, %s", args, code, stdout)
		}
		lines.WriteString(stdout)
		holdToSchema(t, stdout)
	}
	golden(t, "explain.txt", text.String())
	golden(t, "explain.jsonl", lines.String())
}

// holdToSchema holds an explanation to what admin/openapi.yaml says of it.
func holdToSchema(t *testing.T, text string) {
	t.Helper()
	data, err := os.ReadFile("admin/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document any
	if err := yaml.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	read, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("openapi.json", read); err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if err := c.MustCompile("openapi.json#/components/schemas/Explanation").Validate(value); err != nil {
		t.Errorf("%s: %v", text, err)
	}
}

func TestExplainTakesArgumentsAsCurlDoes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want question
	}{
		{[]string{"POST", "http://a.test:80/x?y=1#z"}, question{method: "POST", host: "a.test:80", target: "/x?y=1"}},
		{[]string{"https://a.test"}, question{method: "GET", host: "a.test", target: "/", secure: true}},
		{[]string{"https://a.test?x"}, question{method: "GET", host: "a.test", target: "/?x", secure: true}},
		{[]string{"a.test/x%2Fy"}, question{method: "GET", host: "a.test", target: "/x%2Fy"}},
		{[]string{"http://[::1]:8080/x"}, question{method: "GET", host: "[::1]:8080", target: "/x"}},
		{[]string{"/x", "-X", "PUT", "-H", "Host: b.test"}, question{method: "PUT", host: "b.test", target: "/x"}},
		{[]string{"-H", "A: 1", "GET", "-H", "B;", "/x", "-H", "C:", "-H", "D:a:b "}, question{method: "GET", target: "/x", headers: [][2]string{{"A", "1"}, {"B", ""}, {"D", "a:b"}}}},
		{[]string{"-u", "ann:pw", "/x"}, question{method: "GET", target: "/x", headers: [][2]string{{"Authorization", "Basic YW5uOnB3"}}}},
		{[]string{"http://ann:pw@a.test/"}, question{method: "GET", host: "a.test", target: "/", headers: [][2]string{{"Authorization", "Basic YW5uOnB3"}}}},
		{[]string{"h.test/x?u=http://y"}, question{method: "GET", host: "h.test", target: "/x?u=http://y"}},
		{[]string{"h.test?u=http://y"}, question{method: "GET", host: "h.test", target: "/?u=http://y"}},
		{[]string{"h.test#http://y"}, question{method: "GET", host: "h.test", target: "/"}},
		{[]string{"h.test/http://y"}, question{method: "GET", host: "h.test", target: "/http://y"}},
		{[]string{"h.test:80//y"}, question{method: "GET", host: "h.test:80", target: "//y"}},
		{[]string{"HTTPS://h.test/"}, question{method: "GET", host: "h.test", target: "/", secure: true}},
		{[]string{"GET", "GET"}, question{method: "GET", host: "GET", target: "/"}},
		{[]string{"get"}, question{method: "GET", host: "get", target: "/"}},
		{[]string{"-XPOST", "/x"}, question{method: "POST", target: "/x"}},
		{[]string{"--request", "PUT", "/x"}, question{method: "PUT", target: "/x"}},
		{[]string{"--request=PUT", "/x"}, question{method: "PUT", target: "/x"}},
		{[]string{"-X=PUT", "/x"}, question{method: "PUT", target: "/x"}},
		{[]string{"/x", "-HX-A: b=c", "--header", "B: -XPOST", "-H", "-C: d", "--header=E:f"}, question{method: "GET", target: "/x", headers: [][2]string{{"X-A", "b=c"}, {"B", "-XPOST"}, {"-C", "d"}, {"E", "f"}}}},
		{[]string{"/x", "--user", "ann:pw"}, question{method: "GET", target: "/x", headers: [][2]string{{"Authorization", "Basic YW5uOnB3"}}}},
		{[]string{"/x", "-uann:pw", "-H", "authorization: mine"}, question{method: "GET", target: "/x", headers: [][2]string{{"authorization", "mine"}}}},
		{[]string{"-ba=1", "/x", "--cookie", "b=2; c=3", "-b", "d="}, question{method: "GET", target: "/x", headers: [][2]string{{"Cookie", "a=1; b=2; c=3; d="}}}},
		{[]string{"-b", "a=1", "/x", "-H", "Cookie: b=2"}, question{method: "GET", target: "/x", headers: [][2]string{{"Cookie", "b=2"}}}},
		{[]string{"-I", "/x"}, question{method: "HEAD", target: "/x"}},
		{[]string{"/x", "--head", "-X", "GET"}, question{method: "GET", target: "/x"}},
		{[]string{"-Acurl/8", "/x"}, question{method: "GET", target: "/x", headers: [][2]string{{"User-Agent", "curl/8"}}}},
		{[]string{"--user-agent", "a b", "/x"}, question{method: "GET", target: "/x", headers: [][2]string{{"User-Agent", "a b"}}}},
		{[]string{"-s", "-k", "/x", "-i", "-v"}, question{method: "GET", target: "/x"}},
		{[]string{"-sSL", "/x"}, question{method: "GET", target: "/x"}},
		{[]string{"-skI", "/x"}, question{method: "HEAD", target: "/x"}},
		{[]string{"-siXPOST", "/x"}, question{method: "POST", target: "/x"}},
		{[]string{"-sX", "POST", "/x"}, question{method: "POST", target: "/x"}},
		{[]string{"/x", "-claim", "sub=a=b"}, question{method: "GET", target: "/x", claims: [][2]string{{"sub", "a=b"}}}},
	} {
		var line queryLine
		got, err := line.read(c.args)
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		got.ip = c.want.ip
		if diff := cmp.Diff(&c.want, got, cmp.AllowUnexported(question{}), cmp.Comparer(func(a, b [][2]string) bool {
			return cmp.Equal(append([][2]string{}, a...), append([][2]string{}, b...))
		}), cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".ip" }, cmp.Ignore())); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.args, diff)
		}
	}
}

func TestExplainRefusesBadUsage(t *testing.T) {
	file := explainFileAt(t, explainFile)
	for want, args := range map[string][]string{
		"there is no URL":         {},
		"unexpected argument":     {"GET", "/x", "/y"},
		"is no IP address":        {"/x", "-ip", "nobody"},
		"write 'Name: value'":     {"/x", "-H", "nonsense"},
		"-format":                 {"/x", "-format", "xml"},
		"is no URL with http":     {"ftp://a.test/x"},
		"has no host":             {"http:///x"},
		"write NAME=VALUE":        {"/x", "-claim", "sub"},
		"-nonsense is no option":  {"/x", "-nonsense"},
		"the URL is empty":        {""},
		`unexpected argument "u"`: {"-X", "GET", "POST", "u"},
		"no URL behind GET":       {"GET"},
		"no URL behind DELETE":    {"-X", "POST", "DELETE"},
		"write NAME=VALUE; files": {"/x", "-b", "cookies.txt"},
		"did you mean -header?":   {"/x", "--heder", "A: b"},
		"did you mean -request?":  {"/x", "-reqest", "PUT"},
		"did you mean -user?":     {"/x", "-usr", "ann"},
		"-vip is no option":       {"/x", "-vip", "10.0.0.1"},
		"-X\n":                    {"/x", "-X"},
	} {
		code, stdout, stderr := command(append([]string{"explain", "-config", file}, args...)...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%q: got %d %q %q, want %q", args, code, stdout, stderr, want)
		}
	}
	if code, _, stderr := command("explain", "-config", explainFileAt(t, "proxy: {nonsense: 1}"), "/x"); code != exitUsage || !strings.Contains(stderr, ":1:9: proxy.nonsense") {
		t.Errorf("got %d %q", code, stderr)
	}
}

// What a client sends must not reach a terminal as it is.
func TestExplainEscapesWhatClientsSend(t *testing.T) {
	file := explainFileAt(t, `
proxy:
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: all, match: {path: [/other, /*]}, user_id: ["{header.X-User-Id}", "{query.u}"], resource: "{header.X-Res}", upstream: api}]
`)
	unprintable := regexp.MustCompile(`[^\n -~]`)
	for _, hostile := range []string{"\x1b[31mred", "a\nb", "a\x00b", "\u202etxt.exe", "\u009b31m", "\xff\xfe", "a\tb", "\x7f", "😀", strings.Repeat("é", 4096)} {
		for _, format := range []string{"text", "json"} {
			escaped := strings.NewReplacer("\n", "%0A", "\x1b", "%1B", "\xff", "%FF").Replace(hostile)
			for _, args := range [][]string{
				{"/x", "-H", "X-User-Id: " + hostile, "-H", "X-Res: " + hostile}, {"/x?u=" + escaped}, {"/" + hostile}, {"GET" + hostile, "/x"}, {"/x", "-H", "Host: " + hostile}, {"/x", "-H", hostile + ": x"},
			} {
				code, stdout, _ := command(append([]string{"explain", "-config", file, "-format", format}, args...)...)
				if code != exitFine {
					continue // bad usage
				}
				if bad := unprintable.FindString(stdout); bad != "" {
					t.Errorf("%.80q: %s holds %q: %.300s", args, format, bad, stdout)
				}
				if format == "text" && len(stdout) > 8192 {
					t.Errorf("%.80q: %d bytes of text", args, len(stdout))
				}
			}
		}
	}
}

// explainBy is the answer of a running gateway.
func explainBy(t *testing.T, control, query, body string) (status int, answer string) {
	t.Helper()
	resp, err := http.Post(control+"/admin/explain"+query, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestExplainNeverPrintsASecret(t *testing.T) {
	config := `
proxy:
  listen: "127.0.0.1:0"
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: all, user_id: "{header.Authorization}", resource: "{cookie.session}", plan: "{query.api_key}", upstream: api}]
`
	file := explainFileAt(t, config)
	for _, format := range []string{"text", "json"} {
		code, stdout, _ := command("explain", "-config", file, "-format", format, "/x?api_key=hunter2", "-H", "Host: a", "-H", "Authorization: hunter2", "-H", "Cookie: session=hunter2")
		if code != exitFine || strings.Contains(stdout, "hunter2") || strings.Count(stdout, "hidden") < 4 {
			t.Errorf("%s: got %d %s", format, code, stdout)
		}
	}
	g := start(t, config+"admin: {listen: \"127.0.0.1:0\"}\n")
	defer func() { g.signals <- os.Interrupt; <-g.exit }()
	status, answer := explainBy(t, g.control, "", `{"url":"http://a/x?api_key=hunter2","headers":{"Authorization":"hunter2","Cookie":"session=hunter2"}}`)
	if status != 200 || strings.Contains(answer, "hunter2") || !strings.Contains(answer, `"decision":{"allowed":true,"limit":"(hidden)"}`) {
		t.Errorf("got %d %s", status, answer)
	}
}

func TestExplainTakesClaimsForAToken(t *testing.T) {
	file := explainFileAt(t, `
proxy:
  jwt: {secret: "`+strings.Repeat("s", 64)+`", required: true}
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: all, user_id: "{jwt.sub}", upstream: api}]
`)
	for want, args := range map[string][]string{
		"answer    401":           {"/x"},
		"answer    401 the token": {"/x", "-H", "Authorization: Bearer junk"},
		"user_id   ann\n            user_id[0]: {jwt.sub} is ann": {"/x", "-claim", "sub=ann"},
	} {
		if code, stdout, stderr := command(append([]string{"explain", "-config", file}, args...)...); code != exitFine || stderr != "" || !strings.Contains(stdout, want) {
			t.Errorf("%q: got %d %s%s, want %q", args, code, stdout, stderr, want)
		}
	}
}

func TestExplainOnARunningGatewaySaysWhatWouldBeDecided(t *testing.T) {
	stores := map[string]string{"memory": "", "redis": "  redis: {url: \"unix://" + redistest.Start(t).Socket() + "?db=0\"}\n"}
	for name, store := range stores {
		t.Run(name, func(t *testing.T) {
			config := strings.Replace(explainFile, "      enforce: 80%\n", "", 1)
			g := start(t, strings.Replace(config, "limiter:\n", "limiter:\n"+store, 1)+"admin: {listen: \"127.0.0.1:0\"}\nlog: {requests: none}\n")
			defer func() { g.signals <- os.Interrupt; <-g.exit }()
			question := `{"method":"GET","url":"https://api.example.com/v1/tea?cost=3","ip":"127.0.0.1","headers":{"X-User-Id":"Ann"}}`
			for range 3 { // looking changes nothing
				wantDecision(t, g, question, `"bucket":{"tokens":4.0,"next_token_seconds":0.0,"full_refill_seconds":0.0}`, `"decision":{"allowed":true,"limit":"burst"}`, `"user_id":{"value":"ann"`)
			}
			req, err := http.NewRequest("GET", g.proxy+"/v1/tea?cost=3", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-User-Id", "ann")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			wantDecision(t, g, question, `"tokens":1.0`, `"denies":true`, `"allowed":false,"limit":"burst","retry_after":17`)
			wantDecision(t, g, strings.Replace(question, "cost=3", "cost=99", 1), `"never":true`, `"decision":{"allowed":false,"limit":"burst"}`)
			wantDecision(t, g, strings.Replace(question, `"Ann"`, `"Ann","X-Plan":"gold"`, 1), `"source":"plan"`, `"plan_known":true`, `"decision":{"allowed":true,"limit":"search"}`)
			override(t, g, "ann", `{"block":true}`)
			wantDecision(t, g, question, `"decision":{"allowed":false,"override":"block"}`)
			override(t, g, "bob", `{"resource":"search","capacity":70,"refill_rate":"1/s"}`)
			wantDecision(t, g, strings.Replace(question, "Ann", "bob", 1), `"source":"override"`, `"capacity":70`)
			if status, text := explainBy(t, g.control, "?format=text", question); status != 200 || !strings.Contains(text, "now       denied: 403\n") {
				t.Errorf("got %d %s", status, text)
			}
			if status, text := explainBy(t, g.control, "", `{"url":"nowhere://"}`); status != 400 || !strings.Contains(text, "is no URL") {
				t.Errorf("got %d %s", status, text)
			}
			if stats := bodyOf(t, g.control+"/admin/stats"); !strings.Contains(stats, `"allowed_total":1,"denied_total":0`) {
				t.Errorf("explaining was counted: %s", stats)
			}
		})
	}
}

func wantDecision(t *testing.T, g *started, question string, wants ...string) {
	t.Helper()
	status, answer := explainBy(t, g.control, "", question)
	if status != 200 {
		t.Fatalf("%s: got %d %s", question, status, answer)
	}
	holdToSchema(t, answer)
	for _, want := range wants {
		if !strings.Contains(answer, want) {
			t.Errorf("%s: got %s\nwant %s in it", question, answer, want)
		}
	}
}

func override(t *testing.T, g *started, user, body string) {
	t.Helper()
	req, err := http.NewRequest("PUT", g.control+"/admin/user/"+user+"/override", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatalf("override: %d", resp.StatusCode)
	}
}

func TestExplainOnAGatewayWhoseStoreFailsSaysWhatStandsIn(t *testing.T) {
	g := start(t, strings.Replace(explainFile, "limiter:\n", "limiter:\n  on_store_error: deny\n  redis: {url: \"redis://127.0.0.1:1\", timeout: 20ms}\n", 1)+"admin: {listen: \"127.0.0.1:0\"}\nlog: {requests: none}\n")
	defer func() { g.signals <- os.Interrupt; <-g.exit }()
	question := `{"url":"https://api.example.com/v1/tea","headers":{"X-User-Id":"a"}}`
	wantDecision(t, g, question, `"stand_in":"deny"`, `"store_error":"`)
	if status, text := explainBy(t, g.control, "?format=text", question); status != 200 || !strings.Contains(text, "on_store_error is deny") {
		t.Errorf("got %d %s", status, text)
	}
}
