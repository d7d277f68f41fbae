package main

import (
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// withoutHelp are the lines of an exposition that no `# HELP` with a text covers.
func withoutHelp(exposition string) (lines []string) {
	family := ""
	for line := range strings.Lines(exposition) {
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, text, _ := strings.Cut(strings.TrimSpace(rest), " ")
			if family = ""; text != "" {
				family = name
			}
			continue
		}
		name := line[:strings.IndexAny(line+" ", "{ ")]
		part, _ := strings.CutPrefix(name, family)
		isPart := part == "" || part == "_bucket" || part == "_sum" || part == "_count"
		if !strings.HasPrefix(line, "#") && (family == "" || !isPart) {
			lines = append(lines, line)
		}
	}
	return lines
}

// A metric that is new must get its text in admin's table.
func TestEveryFamilyOfARunningServerHasHelp(t *testing.T) {
	socket := redistest.Start(t).Socket()
	upstream := httptestServer(t, func(http.ResponseWriter, *http.Request) {})
	for store, redis := range map[string]string{"memory": "", "redis": `redis: {url: "unix://` + socket + `", timeout: 5s}`} {
		s := start(t, `
proxy:
  listen: "127.0.0.1:0"
  drain_delay: 50ms
  upstreams: {api: {targets: ["`+upstream+`"]}, gone: {targets: ["http://127.0.0.1:1"]}, mirror: {targets: ["echo:"]}}
  routes:
    - {name: gone, match: {path: /gone}, action: bypass, upstream: gone}
    - {name: mirror, match: {path: /mirror}, action: bypass, upstream: mirror}
    - {name: all, upstream: api}
limiter:
  default: {capacity: 1, refill_rate: 1/h}
  `+redis+`
admin: {listen: "127.0.0.1:0"}
`)
		eventually(t, "the gateway is ready", func() bool { return status(t, "GET", s.control+"/readyz") == 200 })
		for path, want := range map[string]int{"/gone": 502, "/mirror": 200} {
			if got := status(t, "GET", s.proxy+path); got != want {
				t.Errorf("%s: got %d, want %d", path, got, want)
			}
		}
		for _, want := range []int{200, 429} {
			if got := status(t, "GET", s.proxy+"/"); got != want {
				t.Errorf("%s: got %d, want %d", store, got, want)
			}
		}
		_, text := ask(t, s.control+"/metrics")
		if lines := withoutHelp(text); len(lines) > 0 {
			t.Errorf("%s: without help:\n%s", store, strings.Join(lines, ""))
		}
		for _, want := range []string{"requests_total", "r8limiter_upstream_errors_total", "r8limiter_log_dropped_total", "process_open_fds", "r8limiter_store_"} {
			if !strings.Contains(text, "\n"+want) {
				t.Errorf("%s: there is no %s", store, want)
			}
		}
		s.signals <- syscall.SIGINT
		if code := <-s.exit; code != exitFine {
			t.Errorf("exit code %d, want 0", code)
		}
	}
}

func TestLinesWithoutHelpAreFound(t *testing.T) {
	got := withoutHelp("# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\nab 1\n# HELP b\n# TYPE b gauge\nb 1\n")
	if want := "ab 1\n|b 1\n"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
