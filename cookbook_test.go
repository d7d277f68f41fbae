package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// situation is one of the README's cookbook.
type situation struct {
	title, yaml, command, output string
	at                           [2]int // where the output stands in the README
}

var recipePattern = regexp.MustCompile("(?s)\n### ([^\n]+)\n.*?```yaml\n(.*?)```.*?```console\n\\$ r8limiter ([^\n]+)\n(.*?)```")

// cookbook are the recipes of text, in order, and how many titles there are for them.
func cookbook(text string) (all []situation, titles int) {
	start := strings.Index(text, "## Rule cookbook\n")
	if start < 0 {
		return nil, 0
	}
	section := text[start : start+1+strings.Index(text[start+1:], "\n## ")]
	for _, m := range recipePattern.FindAllStringSubmatchIndex(section, -1) {
		part := func(n int) string { return text[start+m[2*n] : start+m[2*n+1]] }
		all = append(all, situation{part(1), part(2), part(3), part(4), [2]int{start + m[8], start + m[9]}})
	}
	return all, strings.Count(section, "\n### ")
}

// split cuts a command line as a shell does.
func split(t *testing.T, command string) []string {
	t.Helper()
	out, err := exec.Command("bash", "-c", `printf '%s\n' `+command).Output()
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// TestReadmeCookbook checks each recipe's file and compares what its command prints
// with what README.md shows; -update writes that instead.
func TestReadmeCookbook(t *testing.T) {
	text := readme(t)
	recipes, titles := cookbook(text)
	if len(recipes) < 14 || len(recipes) != titles {
		t.Fatalf("found %d recipes under %d titles", len(recipes), titles)
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	env := func(name string) (string, bool) { return strings.Repeat("s", 64), name == "JWT_SECRET" }
	updated := text
	for i := len(recipes) - 1; i >= 0; i-- { // from the end, so that places stay right
		r := recipes[i]
		if err := os.WriteFile(file, []byte(r.yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, stdout, stderr := commandIn(env, "check", "-strict", "-config", file); code != exitFine {
			t.Errorf("%s: %s%s", r.title, stdout, stderr)
		}
		args := split(t, r.command)
		args = append([]string{args[0], "-config", file}, args[1:]...)
		code, stdout, stderr := commandIn(env, args...)
		if code != exitFine || stderr != "" {
			t.Errorf("%s: exit code %d, %s", r.title, code, stderr)
		}
		if stdout != r.output && !*update {
			t.Errorf("%s:\n$ r8limiter %s\ngot:\n%s\nREADME.md has (go test -run Cookbook . -update writes it anew):\n%s", r.title, r.command, stdout, r.output)
		}
		updated = updated[:r.at[0]] + stdout + updated[r.at[1]:]
	}
	if *update && !t.Failed() {
		if err := os.WriteFile("README.md", []byte(updated), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
