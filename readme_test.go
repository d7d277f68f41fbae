package main

import (
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// readme is the text of README.md.
func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// transcript is a command of the README and what it prints there.
type transcript struct{ command, output string }

// transcripts are the indented blocks of text in which a line begins with "$ curl",
// in order. A block ends where text without indent follows.
func transcripts(text string) (found []transcript) {
	for line := range strings.SplitSeq(text, "\n") {
		inner, indented := strings.CutPrefix(line, "    ")
		command, begins := strings.CutPrefix(inner, "$ ")
		switch {
		case indented && begins:
			found = append(found, transcript{command: command})
		case len(found) == 0:
		case indented || line == "":
			found[len(found)-1].output += inner + "\n"
		default:
			found[len(found)-1].output += "\x00" // what follows is no output
		}
	}
	for i := range found {
		output, _, _ := strings.Cut(found[i].output, "\x00")
		found[i].output = strings.TrimSpace(output)
	}
	return found
}

// variable is what differs from run to run, and what stands for it.
var variable = []struct {
	pattern *regexp.Regexp
	same    string
}{
	{regexp.MustCompile(`Date: .*`), "Date: now"},
	{regexp.MustCompile(`"(retry_after|tokens_left)":0\.\d+`), `"$1":0.5`},
	{regexp.MustCompile(`Content-Length: \d+`), "Content-Length: n"},
	{regexp.MustCompile(`"(allowed_total|denied_total|active_keys|denies)":\d+`), `"$1":1`},
}

func normalised(output string) string {
	output = strings.TrimSpace(strings.ReplaceAll(output, "\r\n", "\n"))
	for _, v := range variable {
		output = v.pattern.ReplaceAllString(output, v.same)
	}
	return output
}

// TestReadmeCommandsPrintWhatItSays runs the README's curl lines, in order,
// against the shipped example.
func TestReadmeCommandsPrintWhatItSays(t *testing.T) {
	g := startExample(t)
	options := " --connect-to localhost:8080:" + strings.TrimPrefix(g.proxy, "http://") +
		" --connect-to localhost:8000:" + strings.TrimPrefix(g.control, "http://") + " "
	commands := transcripts(readme(t))
	if len(commands) < 8 {
		t.Fatalf("found only %d commands", len(commands))
	}
	for _, c := range commands {
		// curl forgets its options at --next.
		out, err := exec.Command("bash", "-c", regexp.MustCompile(`\bcurl |--next `).ReplaceAllString(c.command, "$0 -sS"+options)).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", c.command, err, out)
		}
		got, want := normalised(string(out)), normalised(c.output)
		want, open := strings.CutSuffix(want, "…")
		if open && len(got) > len(want) {
			got = got[:len(want)]
		}
		if got != want {
			t.Errorf("$ %s\ngot:\n%s\nwant:\n%s", c.command, got, want)
		}
	}
}

// exampleOnFreePorts is config.example.yaml with ports of the system's choice.
func exampleOnFreePorts(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, address := range []string{`":8080"`, `"127.0.0.1:8000"`} {
		if strings.Count(text, "listen: "+address) != 1 {
			t.Fatalf("the example does not listen on %s once", address)
		}
		text = strings.Replace(text, "listen: "+address, `listen: "127.0.0.1:0"`, 1)
	}
	return text
}

// startExample serves the shipped example until the test ends.
func startExample(t *testing.T) *started {
	t.Helper()
	s := start(t, exampleOnFreePorts(t))
	t.Cleanup(func() {
		s.signals <- syscall.SIGINT
		if code := <-s.exit; code != exitFine {
			t.Errorf("exit code %d, want 0", code)
		}
	})
	return s
}

// TestReadmeMetricsExist looks for every metric that the documentation names in
// what a gateway with Redis shows, and one with TLS.
func TestReadmeMetricsExist(t *testing.T) {
	socket := redistest.Start(t).Socket()
	g := startGateway(t, httptestServer(t, func(http.ResponseWriter, *http.Request) {}), socket)
	ask(t, g.proxy+"/")
	_, metrics := ask(t, g.control+"/metrics")
	metrics += secureMetrics(t)
	names := regexp.MustCompile("`(r8limiter_[a-z0-9_]+[a-z0-9]|requests_total|active_keys|request_latency_seconds)\\b").FindAllStringSubmatch(readme(t), -1)
	if len(names) < 10 {
		t.Fatalf("found only %v", names)
	}
	for _, name := range names {
		if !strings.Contains("\n"+metrics, "\n"+name[1]) {
			t.Errorf("there is no metric %s", name[1])
		}
	}
}

// TestReadmePathsAndFilesExist looks for every control path, file and make
// target that the README names.
func TestReadmePathsAndFilesExist(t *testing.T) {
	text := readme(t)
	g := startExample(t)
	paths := map[string]bool{}
	for _, m := range regexp.MustCompile("/(admin/[a-z_./{}]+|allow|metrics|readyz|livez)").FindAllString(text, -1) {
		paths[strings.TrimRight(regexp.MustCompile(`\{[a-z_]+\}`).ReplaceAllString(m, "x"), "./")] = true
	}
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		if got := status(t, http.MethodOptions, g.control+path); got != http.StatusMethodNotAllowed {
			t.Errorf("OPTIONS %s: got %d, want 405 as for every path that exists", path, got)
		}
	}
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`\bmake ([a-z][a-z-]+)`).FindAllStringSubmatch(text, -1) {
		if !regexp.MustCompile(`(?m)^`+m[1]+`:`).Match(makefile) && m[1] != "sure" {
			t.Errorf("there is no make target %s", m[1])
		}
	}
	for _, m := range regexp.MustCompile("(?:\\]\\(|`)((?:deploy|loadtest|admin|lua|proxy|limiter|\\.github)/[A-Za-z0-9_./-]+|[A-Z][A-Z]+\\.md|config\\.example\\.yaml)").FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(m[1]); err != nil {
			t.Errorf("the README names %s: %v", m[1], err)
		}
	}
}

// TestReadmeNamesTestsThatExist looks for every test that the README names.
func TestReadmeNamesTestsThatExist(t *testing.T) {
	var sources strings.Builder
	for _, pattern := range []string{"*_test.go", "limiter/*_test.go", "admin/*_test.go", "proxy/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(text)
		}
	}
	names := regexp.MustCompile(`Test[A-Z]\w+`).FindAllString(readme(t), -1)
	if len(names) < 10 {
		t.Fatalf("found only %q", names)
	}
	for _, name := range names {
		if !strings.Contains(sources.String(), "func "+name+"(") {
			t.Errorf("there is no %s", name)
		}
	}
}

// TestReadmeCommandsAreTheProgram compares the README's list of commands with
// the program's own.
func TestReadmeCommandsAreTheProgram(t *testing.T) {
	_, list, _ := strings.Cut(readme(t), "## Commands\n")
	list, _, _ = strings.Cut(list, "Exit codes")
	var wanted, got []string
	for line := range strings.SplitSeq(strings.TrimSpace(list), "\n") {
		wanted = append(wanted, strings.Trim(strings.Fields(line)[1], "[]"))
	}
	for _, v := range (&program{}).verbs() {
		got = append(got, v.name)
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("-README +program:\n%s", diff)
	}
}
