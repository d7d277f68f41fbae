package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

var update = flag.Bool("update", false, "write what the golden files are compared with anew")

// golden compares got with a file.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is not what came out; with -update it will be:\n%s", file, diff)
	}
}

// hostile is what a client may send to whoever reads a report.
const hostile = `</title><script>alert(1)</script>"'\x1b[2J\xff\u202e`

// example is the report of a log that has something of everything.
func example(t *testing.T) *Report {
	t.Helper()
	random := []string{"GET /items/1 HTTP/1.1", "GET /items/2 HTTP/1.1", "GET /search?cost=3 HTTP/1.1", "GET /whose HTTP/1.1", "GET /healthz HTTP/1.1"}
	lines := crowd(3000, func(r *rand.Rand) string { return random[r.IntN(len(random))] })
	lines = append(lines, at(70, 1, "GET /internal/x HTTP/1.1"), at(70, 1, "GET /nowhere HTTP/1.1"), at(72, 1, "-"), "garbage "+hostile, at(10, 9, "GET /whose HTTP/1.1"), "")
	o := options(t)
	o.Top = 3
	o.Files, o.Target = []string{"-"}, share(t, "5%")
	o.Stdin = strings.NewReader(strings.Join(lines, "\n"))
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestReportsAreAsTheyWere(t *testing.T) {
	r := example(t)
	var text, js bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/report.txt", text.Bytes())
	if err := r.WriteJSON(&js); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/report.json", js.Bytes())
	for line := range strings.Lines(text.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestListsAreNeverNull(t *testing.T) {
	o := options(t)
	o.Files, o.Stdin = []string{"-"}, strings.NewReader("")
	r, err := Run(context.Background(), o)
	if err != ErrNothing {
		t.Fatal(err)
	}
	var js, html, text bytes.Buffer
	if err := r.WriteJSON(&js); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(js.String(), "null") {
		t.Errorf("got %s", js.String())
	}
	if err := r.WriteHTML(&html); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
}

// hostileReport is example with hostile text wherever a log can put it.
func hostileReport(t *testing.T) *Report {
	t.Helper()
	evil := strings.NewReplacer(`\x1b`, "\x1b", `\xff`, "\xff", `\u202e`, "\u202e").Replace(hostile)
	r := example(t)
	r.Config, r.Input.Files[0] = evil, evil
	r.Input.Examples[0] = Unreadable{evil, 1, evil}
	r.Input.Broken = []Broken{{evil, 1, evil}}
	r.Routes[0].Route = evil
	r.Limits[0].Resource, r.Limits[0].Limit, r.Limits[0].Plan = evil, evil, evil
	r.Users.Top[0].User, r.Users.Top[0].By[0] = evil, UserLimit{evil, evil, evil, 1}
	r.Refusals[0].Reason = evil
	r.Target.Limits[0].Resource, r.Target.Limits[0].Limit, r.Target.Limits[0].Plan = evil, evil, evil
	return r
}

func TestPageShowsHostileTextAsText(t *testing.T) {
	var page bytes.Buffer
	if err := hostileReport(t).WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	html := page.String()
	for _, bad := range []string{"<script", "</title><script", "\x1b", "\u202e", "\xff", "ZgotmplZ", "http://", "https://"} {
		if strings.Contains(html, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	if got := strings.Count(html, "&lt;script&gt;alert(1)"); got < 10 {
		t.Errorf("the hostile text is there %d times as text, want at least 10", got)
	}
	// What it is made of is there, and closed.
	in := xml.NewDecoder(strings.NewReader(strings.NewReplacer("<!doctype html>", "", `<meta charset="utf-8">`, "").Replace(html)))
	in.Strict = false
	in.AutoClose = append(xml.HTMLAutoClose, "meta")
	in.Entity = xml.HTMLEntity
	tags := map[string]int{}
	for {
		token, err := in.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok {
			tags[e.Name.Local]++
		}
	}
	if tags["svg"] < 5 || tags["rect"] < 50 || tags["table"] != 5 || tags["script"] != 0 || tags["title"] < 50 {
		t.Errorf("the page is made of %v", tags)
	}
}

func TestTextHoldsNothingThatATerminalObeys(t *testing.T) {
	var text bytes.Buffer
	if err := hostileReport(t).WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, r := range text.String() {
		if r < ' ' && r != '\n' || r == 0x7f || r == '\u202e' || r == utf8.RuneError {
			t.Errorf("the text holds %q", r)
		}
	}
	if !strings.Contains(text.String(), `\x1b[2J`) || !strings.Contains(text.String(), `\xff`) {
		t.Errorf("the escapes are not shown:\n%s", text.String())
	}
}

func TestDecisionsHoldHostileTextAsJSON(t *testing.T) {
	o := options(t)
	o.Files = []string{logFile(t, `{"time":1,"method":"GET","uri":"/items/1","who":"a\"\n\u001b\u0000"}`)}
	var err error
	if o.Fields, err = ParseFields("user=who"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	o.Decisions = &out
	if _, err := Run(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	var d struct {
		User string `json:"user_id"`
	}
	if err := json.Unmarshal(out.Bytes(), &d); err != nil || d.User != "a\"\n\x1b\x00" || bytes.Count(out.Bytes(), []byte("\n")) != 1 {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestNumbersAreWrittenForPeople(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := count(n); got != want {
			t.Errorf("%d: got %s", n, got)
		}
	}
	for _, c := range []struct {
		part, whole uint64
		want        string
	}{{0, 0, "-"}, {0, 5, "0.0 %"}, {1, 3, "33.3 %"}, {1, 1000, "0.1 %"}, {1, 2000, "0.050 %"}, {5, 5, "100.0 %"}} {
		if got := percent(c.part, c.whole); got != c.want {
			t.Errorf("%d of %d: got %s, want %s", c.part, c.whole, got, c.want)
		}
	}
}

func TestReportsAreAsTheSchemaSays(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile("report.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	validate := func(r *Report) error {
		var js bytes.Buffer
		if err := r.WriteJSON(&js); err != nil {
			t.Fatal(err)
		}
		report, err := jsonschema.UnmarshalJSON(&js)
		if err != nil {
			t.Fatal(err)
		}
		return schema.Validate(report)
	}
	r := example(t)
	r.Limits[0].Plan, r.Users.Top[0].By[0].Plan, r.Target.Limits[0].Plan = "gold", "gold", "gold"
	if err := validate(r); err != nil {
		t.Error(err)
	}
	o := options(t)
	o.Files, o.Stdin = []string{"-"}, strings.NewReader("")
	if empty, _ := Run(context.Background(), o); validate(empty) != nil {
		t.Error(validate(empty))
	}
	r.Version = 2
	if validate(r) == nil {
		t.Error("the schema takes anything")
	}
}
