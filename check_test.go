package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// wantedOf are the first comment lines of a file in testdata: what check must say
// of it, each line without the file's name.
func wantedOf(t *testing.T, file string) (wanted []string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "# ")
		if !ok {
			break
		}
		wanted = append(wanted, text)
	}
	return wanted
}

// saidOf is what check prints about a file, without the file's name.
func saidOf(t *testing.T, file, stderr string) (said []string) {
	t.Helper()
	for line := range strings.Lines(stderr) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), file+":")
		if !ok {
			t.Errorf("a line of another form: %s", line)
		}
		said = append(said, text)
	}
	return said
}

func isWarningLine(line string) bool { return strings.Contains(line, ": warning: ") }

// Each bad file's first comment lines are all the errors that check must find in
// it, with their places.
func TestBadFilesAreRefusedWithEveryProblem(t *testing.T) {
	files, err := filepath.Glob("testdata/bad_*.yaml")
	if err != nil || len(files) < 60 {
		t.Fatalf("found %d files: %v", len(files), err)
	}
	for _, file := range files {
		code, stdout, stderr := command("check", "-config", file)
		if code != exitUsage || stdout != "" {
			t.Errorf("%s: got %d %q, want %d and nothing there", file, code, stdout, exitUsage)
		}
		said := slices.DeleteFunc(saidOf(t, file, stderr), isWarningLine)
		if diff := cmp.Diff(wantedOf(t, file), said); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
		if code, _, _ := command("-config", file); code != exitUsage {
			t.Errorf("serve %s: exit code %d, want %d", file, code, exitUsage)
		}
	}
}

// Each warn file is legal; its first comment lines are all that it is warned of.
func TestFilesThatAreSurelyWrongAreWarnedOf(t *testing.T) {
	files, err := filepath.Glob("testdata/warn_*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d files: %v", len(files), err)
	}
	for _, file := range files {
		code, stdout, stderr := command("check", "-config", file)
		if code != exitFine || !strings.HasPrefix(stdout, file+": ok, with ") {
			t.Errorf("%s: got %d %q", file, code, stdout)
		}
		if diff := cmp.Diff(wantedOf(t, file), saidOf(t, file, stderr)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
		if code, stdout, again := command("check", "-strict", "-config", file); code != exitUsage || stdout != "" || again != stderr {
			t.Errorf("%s with -strict: got %d %q %q", file, code, stdout, again)
		}
	}
}

// Nothing that check says shows a secret, in either form. All those in testdata
// contain "sesame".
func TestCheckNeverShowsASecret(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	held := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "sesame") {
			held++
		}
		for _, format := range []string{"text", "json"} {
			if _, stdout, stderr := command("check", "-format", format, "-config", file); strings.Contains(stdout+stderr, "sesame") {
				t.Errorf("%s: check -format %s shows %s%s", file, format, stdout, stderr)
			}
		}
	}
	if held < 5 {
		t.Errorf("only %d files hold a secret", held)
	}
}

func TestCheckReportsAsJSON(t *testing.T) {
	const bad, warn = "testdata/bad_key_slip.yaml", "testdata/warn_no_plans.yaml"
	for _, c := range []struct {
		args []string
		code int
		want findings
	}{
		{[]string{"-config", "config.example.yaml"}, exitFine, findings{File: "config.example.yaml", OK: true, Problems: []finding{}}},
		{[]string{"-config", warn}, exitFine, findings{File: warn, OK: true, Problems: []finding{
			{"warning", 5, 25, "proxy.routes[0].plan", "changes nothing: limiter.plans is empty; add plans there, or take this out"},
		}}},
		{[]string{"-strict", "-config", warn}, exitUsage, findings{File: warn, OK: false, Problems: []finding{
			{"warning", 5, 25, "proxy.routes[0].plan", "changes nothing: limiter.plans is empty; add plans there, or take this out"},
		}}},
		{[]string{"-config", "testdata/bad_limiter_numbers.yaml"}, exitUsage, findings{File: "testdata/bad_limiter_numbers.yaml", Problems: []finding{
			{"error", 6, 20, "limiter.idempotency_ttl", "must be from 1ms to 168h, is 200h0m0s"},
			{"error", 7, 13, "limiter.replicas", "must be from 1 to 10000 gateways, is 0"},
			{"error", 8, 19, "limiter.on_store_error", "is empty; write one of local, allow, deny, or leave the key out to get the default"},
			{"error", 9, 20, "limiter.headers[1]", `"draft" is there twice; remove one`},
		}}},
		{[]string{"-config", "testdata/bad_syntax_tab.yaml"}, exitUsage, findings{File: "testdata/bad_syntax_tab.yaml", Problems: []finding{
			{"error", 3, 1, "", "is no YAML: found character that cannot start any token: a tab; YAML is indented with spaces"},
		}}},
	} {
		code, stdout, stderr := command(append([]string{"check", "-format", "json"}, c.args...)...)
		var got findings
		if err := json.Unmarshal([]byte(stdout), &got); err != nil || strings.Count(stdout, "\n") != 1 {
			t.Errorf("%q: %v in %q", c.args, err, stdout)
		}
		if diff := cmp.Diff(c.want, got); diff != "" || code != c.code || stderr != "" {
			t.Errorf("%q: got %d and %q (-want +got):\n%s", c.args, code, stderr, diff)
		}
	}
	if _, stdout, _ := command("check", "-format", "json", "-config", bad); !strings.Contains(stdout, `"message":"is no known key; did you mean \"listen\"?"`) {
		t.Errorf("got %s", stdout)
	}
	if code, stdout, stderr := command("check", "-format", "xml", "-config", bad); code != exitUsage || stdout != "" || !strings.Contains(stderr, `-format "xml" is none of text, json`) {
		t.Errorf("-format xml: got %d %q %q", code, stdout, stderr)
	}
	// A file that can't be read is a problem like others.
	if code, stdout, _ := command("check", "-format", "json", "-config", "testdata/none.yaml"); code != exitUsage || !strings.Contains(stdout, `"line":1,"column":1,"path":"","message":"read: `) {
		t.Errorf("no such file: got %d %s", code, stdout)
	}
}

// loadText is what load makes of a file with that text.
func loadText(t *testing.T, text string) (Config, []problem) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return (&program{env: noEnv}).load(file)
}

// What has errors may not say what is meant; the rest is judged all the same.
func TestErrorsHideTheWarningsOfTheirSectionAlone(t *testing.T) {
	const sound = `proxy:
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: a, user_id: "{header.X-User-Id}", upstream: api}]
`
	const limits = `limiter: {default: {limits: [{name: a, capacity: 1, refill_rate: 1/s}, {name: b, capacity: 1, refill_rate: 1/s}]}}
`
	for _, c := range []struct {
		text string
		want []string
	}{
		{sound + limits, []string{"proxy.routes[0].user_id", "limiter.default.limits[1]"}},
		{sound + limits + "log: {level: loud}\n", []string{"proxy.routes[0].user_id", "limiter.default.limits[1]"}},
		{strings.Replace(sound, "upstream: api", "upstream: b", 1) + limits, []string{"limiter.default.limits[1]"}},
		{sound + "limiter: {replicas: 0}\n", []string{"proxy.routes[0].user_id"}},
		{"proxy: []\nadmin: {token: sesame-sesame-sesame}\n", []string{"admin.token"}},
	} {
		config, _ := loadText(t, c.text)
		var got []string
		for _, w := range config.warnings {
			got = append(got, w.path)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.text, diff)
		}
	}
}

// A secret is in clear text if the file alone tells it.
func TestSecretsOfVariablesAreNotInClearText(t *testing.T) {
	for written, clear := range map[string]bool{
		"":                         false,
		"sesame":                   true,
		"${TOKEN}":                 false,
		"${TOKEN:-}":               false,
		"${TOKEN:-sesame}":         true,
		"prefix-${TOKEN}":          false,
		"${A:-sesame}-${B}":        false,
		"${A:-sesame}-${B:-seed}":  true,
		"$${sesame}":               true,
		"sesame-$${not a variable": true,
	} {
		if got := isClear(written); got != clear {
			t.Errorf("%q: got %v, want %v", written, got, clear)
		}
	}
	for url, clear := range map[string]bool{
		"redis://u:sesame@h:6379/0":               true,
		"redis://u:${PW}@h:6379/0":                false,
		"redis://u:${PW:-sesame}@h:6379/0":        true,
		"redis://u:sesame@${HOST:-h}:6379/0":      true,
		"redis://u:sesame@${HOST}/0":              true,
		"redis://u@h:6379/0":                      false,
		"redis://h:6379/0":                        false,
		"${URL:-redis://h:6379/0}":                false,
		"${URL:-redis://u:sesame@h:6379/0}":       true,
		"unix:///run/redis.sock?db=${DB:-0}":      false,
		"unix://u:sesame@/run/redis.sock":         true,
		"redis://gateway:${PW:-}@h:6379/0":        false,
		"redis://gateway:a${PW}b@h:6379/${DB:-0}": false,
	} {
		var got []string
		w := warner{&Config{}, document{written: map[string]string{"limiter.redis.url": url}}, func(path, _ string) { got = append(got, path) }}
		w.clearText()
		if (len(got) > 0) != clear {
			t.Errorf("%s: got %q, want %v", url, got, clear)
		}
	}
}

// Whatever is never shown should not stand in the file either.
func TestEverySecretShouldComeFromAVariable(t *testing.T) {
	var paths []string
	for _, each := range outside {
		paths = append(paths, each.path)
	}
	for path := range maps.Keys(secrets) {
		if !strings.Contains(path, "*") && !slices.Contains(paths, path) {
			t.Errorf("nobody is warned of %s in clear text", path)
		}
	}
}

func TestRunningGatewayLogsWarnings(t *testing.T) {
	s := start(t, `
proxy:
  listen: "127.0.0.1:0"
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: a, user_id: "{header.X-User-Id}", upstream: api}]
admin: {listen: "127.0.0.1:0", allow_token: sesame-sesame-sesame}
`)
	s.signals <- syscall.SIGINT
	if code := <-s.exit; code != exitFine {
		t.Errorf("exit code %d, want 0", code)
	}
	for _, want := range []string{
		`{"level":"warn","place":"` + s.file + `:5:31","key":"proxy.routes[0].user_id",`, `"message":"surely wrong in the configuration: has no fallback`,
		`{"level":"warn","place":"` + s.file + `:6:45","key":"admin.allow_token",`, `"message":"surely wrong in the configuration: is a secret in clear text`,
	} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, s.log.String())
		}
	}
	if strings.Contains(s.log.String(), "sesame") {
		t.Error("the log shows a secret")
	}
}

// The place of a fault of YAML is found by trial, which is bounded: in a large file
// it is what the parser says, at most a line or a block too early.
func TestSyntaxErrorsOfLargeFilesTakeNoMinutes(t *testing.T) {
	var text strings.Builder
	for range 20000 {
		text.WriteString("# a comment, of which there are many\n")
	}
	text.WriteString("log: {level: \"info}\n")
	for range 5000 {
		text.WriteString("# more, behind the quote\n")
	}
	var c Config
	_, problems := decodeYAML([]byte(text.String()), noEnv, &c)
	if len(problems) != 1 || problems[0].line != 20001 {
		t.Errorf("got %v, want line 20001", problems)
	}
}

// The README's example of a report is what check makes of this file.
func TestReadmeShowsAReportOfCheck(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(`proxy:
  listen: ":8080"
  upstreams: {api: {targets: ["http://10.0.0.5:9000"]}}
  routes:
    - {name: all, upstream: api}
    - {name: items, match: {path: /v1/items/*}, upstream: api}
log:
  levle: debug
`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(readme(t), "\n    {\"file\":")
	text, _, _ = strings.Cut(text, "\n\n")
	_, stdout, _ := command("check", "-format", "json", "-config", file)
	var got, want findings
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"file":`+text), &want); err != nil {
		t.Fatalf("the README's report: %v", err)
	}
	got.File = "config.yaml"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-README +check:\n%s", diff)
	}
}
