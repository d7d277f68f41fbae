package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// shippedConfigs are the example and all configurations in deploy/ and loadtest/,
// those in values of the chart included.
func shippedConfigs(t *testing.T) map[string][]byte {
	t.Helper()
	files := []string{"config.example.yaml"}
	for _, dir := range []string{"deploy", "loadtest"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(path, ".yaml") && !strings.Contains(path, "/templates/") {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	all := map[string][]byte{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var sections map[string]any
		if err := yaml.Unmarshal(text, &sections); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if inner, ok := sections["config"].(map[string]any); ok { // values of the chart
			sections = inner
			if text, err = yaml.Marshal(inner); err != nil {
				t.Fatal(err)
			}
		}
		for _, section := range keysOf(reflect.TypeFor[Config]()) {
			if _, ok := sections[section].(map[string]any); ok {
				all[file] = text
			}
		}
	}
	return all
}

func TestShippedConfigurationsAreThoseThatTestsShouldSee(t *testing.T) {
	all := shippedConfigs(t)
	for _, file := range []string{"config.example.yaml", "deploy/docker/config.yaml", "loadtest/config.redis.yaml", "deploy/helm/r8limiter/values.yaml", "deploy/helm/r8limiter/ci/everything.yaml"} {
		if all[file] == nil {
			t.Errorf("%s is not among the %d that were found", file, len(all))
		}
	}
	if all["deploy/prometheus/rules.yaml"] != nil {
		t.Error("rules of Prometheus were taken for a configuration")
	}
}

func TestShippedConfigurationsHaveNoWarnings(t *testing.T) {
	for name, text := range shippedConfigs(t) {
		// A variable without a default has a value that is fine for a secret.
		named := map[string]bool{}
		for _, m := range regexp.MustCompile(`\$\{(\w+)\}`).FindAllSubmatch(text, -1) {
			named[string(m[1])] = true
		}
		env := func(name string) (string, bool) { return "0123456789abcdef", named[name] }
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, problems := (&program{env: env}).load(file)
		if strings.HasPrefix(name, "deploy/helm/") {
			problems = nil // the chart adds what is missing
		}
		for _, p := range append(problems, c.warnings...) {
			t.Error(p.format(name))
		}
	}
}
