package admin

import (
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExpositionIsByFamilyWithHelpAndType(t *testing.T) {
	check := func(raw, want string) {
		t.Helper()
		e := new(exposition)
		e.raw.WriteString(raw)
		if diff := cmp.Diff(want, string(e.text())); diff != "" {
			t.Errorf("%q (-want +got):\n%s", raw, diff)
		}
	}
	check("", "")
	check(`requests_total{result="allow"} 1
request_latency_seconds_bucket{endpoint="b",le="0.5"} 1
request_latency_seconds_bucket{endpoint="b",le="10"} 1
request_latency_seconds_sum{endpoint="b"} 0.25
request_latency_seconds_count{endpoint="b"} 1
active_keys 3
requests_total{result="deny"} 2
request_latency_seconds_bucket{endpoint="a",le="0.5"} 0
request_latency_seconds_sum{endpoint="a"} 0
request_latency_seconds_count{endpoint="a"} 0
`, `# HELP active_keys `+families["active_keys"].help+`
# TYPE active_keys gauge
active_keys 3
# HELP request_latency_seconds `+families["request_latency_seconds"].help+`
# TYPE request_latency_seconds histogram
request_latency_seconds_bucket{endpoint="b",le="0.5"} 1
request_latency_seconds_bucket{endpoint="b",le="10"} 1
request_latency_seconds_sum{endpoint="b"} 0.25
request_latency_seconds_count{endpoint="b"} 1
request_latency_seconds_bucket{endpoint="a",le="0.5"} 0
request_latency_seconds_sum{endpoint="a"} 0
request_latency_seconds_count{endpoint="a"} 0
# HELP requests_total `+families["requests_total"].help+`
# TYPE requests_total counter
requests_total{result="allow"} 1
requests_total{result="deny"} 2
`)
	// Other metadata, empty lines and a last line without an end.
	check("# HELP active_keys\n# TYPE active_keys gauge\n\nactive_keys 3", "# HELP active_keys "+families["active_keys"].help+"\n# TYPE active_keys gauge\nactive_keys 3\n")
	// A label may hold what a name may not.
	check(`active_keys{a="x y{} # \\\"\n"} 1`, "# HELP active_keys "+families["active_keys"].help+"\n# TYPE active_keys gauge\n"+`active_keys{a="x y{} # \\\"\n"} 1`+"\n")
}

func TestUnknownFamiliesAreUntyped(t *testing.T) {
	e := new(exposition)
	e.raw.WriteString("news_sum 1\nactive_keys_count 2\nnews 3\nnews_sum{a=\"b\"} 4\n")
	want := "# TYPE active_keys_count untyped\nactive_keys_count 2\n# TYPE news untyped\nnews 3\n# TYPE news_sum untyped\nnews_sum 1\nnews_sum{a=\"b\"} 4\n"
	if diff := cmp.Diff(want, string(e.text())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The rules are those of `promtool check metrics`, which deploy/test runs.
func TestFamiliesAreNamedAndDescribedAsPrometheusWants(t *testing.T) {
	sentence := regexp.MustCompile(`^[A-Z][^\\\n]*[^.]\.$`)
	part := regexp.MustCompile(`_(bucket|sum|count)$`)
	for name, f := range families {
		if !sentence.MatchString(f.help) {
			t.Errorf("%s: %q is not one sentence", name, f.help)
		}
		if strings.HasSuffix(name, "_total") != (f.kind == "counter") {
			t.Errorf("%s: a counter, and nothing else, ends in _total; this is a %s", name, f.kind)
		}
		switch f.kind {
		case "untyped":
			if !part.MatchString(name) {
				t.Errorf("%s could have a type", name)
			}
		case "counter", "gauge", "histogram", "summary":
			if part.MatchString(name) {
				t.Errorf("%s: only parts of a histogram or summary are called so", name)
			}
		default:
			t.Errorf("%s: there is no type %q", name, f.kind)
		}
	}
}

func TestControlListenersFamiliesAreInTheTable(t *testing.T) {
	g := start(t, setup{})
	g.do(t, "POST", "/allow?user_id=a&cost=9")
	g.do(t, "POST", "/allow?user_id=a&cost=9")
	_, body := g.do(t, "GET", "/metrics")
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) `).FindAllStringSubmatch(body, -1) {
		if families[m[1]].help == "" {
			t.Errorf("%s is not in the table", m[1])
		}
		if seen[m[1]] {
			t.Errorf("%s is there in two pieces", m[1])
		}
		seen[m[1]] = true
	}
	if len(seen) < 60 {
		t.Errorf("got only %d families:\n%s", len(seen), body)
	}
}

func TestScrapesShareNothing(t *testing.T) {
	long := strings.Repeat("x", 200)
	times := 0
	g := start(t, setup{metrics: []func(io.Writer){func(w io.Writer) {
		if times++; times == 1 {
			_, _ = io.WriteString(w, "first_"+long+" 1\n")
		}
	}}})
	if _, body := g.do(t, "GET", "/metrics"); !strings.Contains(body, "\nfirst_"+long+" 1\n") {
		t.Errorf("the first scrape lacks its series:\n%s", body)
	}
	if _, body := g.do(t, "GET", "/metrics"); strings.Contains(body, "first") || !strings.Contains(body, "\nactive_keys 0\n") {
		t.Errorf("the second scrape is not its own:\n%s", body)
	}
}
