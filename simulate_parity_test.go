package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// shifted is a gateway on a real listener, whose limits go by a clock that a test sets.
type shifted struct {
	url string
	now atomic.Int64 // microseconds since 1970
	log processLog
	// asked numbers the requests: what ends its connection may be logged after the next.
	asked int
}

// decisions are the lines of the log in the order of the requests.
func (s *shifted) decisions(t *testing.T) []string {
	t.Helper()
	eventually(t, "all is logged", func() bool { return len(s.log.lines()) == s.asked })
	lines := s.log.lines()
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(requestID(a), requestID(b)) })
	return lines
}

func requestID(line string) string {
	_, id, _ := strings.Cut(line, `"request_id":"`)
	return id[:8]
}

func startShifted(t *testing.T) *shifted {
	t.Helper()
	c, problems := (&program{env: noEnv}).load("testdata/simulate.yaml")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var here proxy.Prefix
	if err := here.UnmarshalText([]byte("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	c.Proxy.TrustedProxies = []proxy.Prefix{here} // the test tells the clients' addresses
	s := &shifted{}
	l := limiter.New(c.Limiter, limiter.NewMemoryStoreAt(s.now.Load))
	p, err := proxy.New(c.Proxy, proxy.Options{Limiter: l, Log: zerolog.New(&s.log)})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + listener.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(listener) }()
	t.Cleanup(func() {
		_ = p.Shutdown(context.Background())
		<-ended
		_ = l.Close()
	})
	return s
}

// ask sends v at its time, or at the full second before, and is the answer's status.
func (s *shifted) ask(t *testing.T, client *http.Client, v *visit, fields bool) int {
	t.Helper()
	req, err := http.NewRequest(v.method, s.url+v.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", v.address)
	req.Header.Set("User-Agent", v.agent)
	s.asked++
	req.Header.Set("X-Request-Id", fmt.Sprintf("%08d", s.asked))
	at := v.at.Truncate(time.Second)
	if fields {
		at = v.at
		req.Header["X-User-Id"], req.Header["X-Plan"] = []string{v.user}, []string{v.plan}
	}
	s.now.Store(at.UnixMicro())
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// decision is what the gateway's log and the simulation's decisions both have.
type decision struct {
	Route      string          `json:"route"`
	User       string          `json:"user_id"`
	Resource   string          `json:"resource"`
	Cost       int64           `json:"cost"`
	Decision   string          `json:"decision"`
	Limit      string          `json:"limit"`
	RetryAfter json.RawMessage `json:"retry_after"`
	Shadow     string          `json:"shadow_denied"`
	Status     int             `json:"status"`
}

// decisionsIn reads them, with what only one of the two has left out.
func decisionsIn(t *testing.T, lines []string) []decision {
	t.Helper()
	all := make([]decision, len(lines))
	for i, line := range lines {
		d := &all[i]
		if err := json.Unmarshal([]byte(line), d); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if d.Status < 400 || d.Status == 429 {
			d.Status = 0
		}
		if d.Decision != "deny" {
			d.RetryAfter = nil
		}
		if d.Decision == "pass" || d.Decision == "refuse" {
			d.Decision = ""
		}
	}
	return all
}

// TestSimulationDecidesAsTheGatewayDoes sends the same traffic, of many users of whom few
// ask for much, to a gateway with a clock that is shifted and, as a log, through simulate.
func TestSimulationDecidesAsTheGatewayDoes(t *testing.T) {
	for name, c := range map[string]struct {
		write  func(*visit, *bufio.Writer)
		args   []string
		fields bool // the log has header fields, and fractions of seconds
	}{
		"combined": {(*visit).combined, nil, false},
		"json":     {(*visit).json, []string{"-format", "json", "-fields", jsonFields}, true},
	} {
		t.Run(name, func(t *testing.T) {
			made := traffic{requests: 20_000, users: 5000, seed: 42, span: 10 * time.Second}
			gateway, statuses := startShifted(t), map[int]int{}
			client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
			defer client.CloseIdleConnections()
			var times []int64
			made.each(func(v *visit) {
				statuses[gateway.ask(t, client, v, c.fields)]++
				times = append(times, gateway.now.Load())
			})
			file := filepath.Join(t.TempDir(), "access.log")
			if err := made.write(file, c.write); err != nil {
				t.Fatal(err)
			}
			logged := gateway.decisions(t)
			compareDecisions(t, logged, simulatedDecisions(t, append(c.args, file)...))
			// And so does the gateway's own log, at the time by which it decided.
			own := filepath.Join(t.TempDir(), "own.log")
			var text bytes.Buffer
			for i, line := range logged {
				fmt.Fprintf(&text, `{"time":%d,%s`, times[i], line[1:])
			}
			if err := os.WriteFile(own, text.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			compareDecisions(t, logged, simulatedDecisions(t, own))
			if statuses[200] < 5000 || statuses[429] < 2000 || statuses[400] == 0 || statuses[403] == 0 {
				t.Errorf("the answers are %v: too much the same to tell anything", statuses)
			}
		})
	}
}

// simulatedDecisions simulates and is the lines of the decisions.
func simulatedDecisions(t *testing.T, args ...string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "decisions")
	if code, _, stderr := simulated("", append([]string{"-decisions", file}, args...)...); code != exitFine {
		t.Fatal(stderr)
	}
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(written)))
}

func compareDecisions(t *testing.T, logged, simulated []string) {
	t.Helper()
	want, got := decisionsIn(t, logged), decisionsIn(t, simulated)
	if len(want) != len(got) {
		t.Fatalf("the gateway decided %d times, the simulation %d", len(want), len(got))
	}
	different, shadows, bound := 0, 0, map[string]int{}
	for i := range want {
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			if different++; different < 4 {
				t.Errorf("request %d: -gateway +simulation\n%s%s%s", i+1, diff, logged[i], simulated[i])
			}
		}
		if want[i].Decision == "deny" {
			bound[want[i].Limit]++
		}
		if want[i].Shadow != "" {
			shadows++
		}
	}
	if different > 0 || len(bound) < 3 || shadows < 100 {
		t.Errorf("%d decisions differ; denials were by %v, and %d by shadows", different, bound, shadows)
	}
}

// TestLogOfCheckAndAllowIsSimulatedAsItWasDecided asks a gateway without a proxy listener,
// and runs its log through its own rules.
func TestLogOfCheckAndAllowIsSimulatedAsItWasDecided(t *testing.T) {
	g := start(t, checkRules)
	for _, uri := range []string{"/items/1?q", "/items/2", "/items/3", "/private/x", "/nowhere", "/free", "/shadow", "/cost?cost=2", "https://r8limiter/items/4"} {
		for _, client := range []string{"192.0.2.1", "192.0.2.2, 10.0.0.1", "2001:db8::1"} {
			rawAnswer(g.control, checkRequest("GET /check?deny_status=403", append([]string{"Host: r8limiter", "X-Forwarded-Proto: https"}, about(uri, client)...)...))
		}
	}
	for _, query := range []string{"user_id=ann&resource=search&plan=gold&cost=900&idempotency=k", "user_id=ann&resource=search&plan=gold&cost=900&idempotency=k",
		"user_id=ann&resource=search&plan=gold&cost=50", "user_id=ann&resource=search&plan=gold&cost=51", "user_id=ann&cost=x"} {
		status(t, "POST", g.control+"/allow?"+query)
	}
	status(t, "GET", g.control+"/admin/user/ann")
	g.signals <- syscall.SIGINT
	<-g.exit
	file := filepath.Join(t.TempDir(), "own.log")
	if err := os.WriteFile(file, g.log.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	decisions := filepath.Join(t.TempDir(), "decisions")
	if code, _, stderr := simulated("", "-config", g.file, "-decisions", decisions, file); code != exitFine {
		t.Fatal(stderr)
	}
	written, err := os.ReadFile(decisions)
	if err != nil {
		t.Fatal(err)
	}
	logged, got := slices.Collect(strings.Lines(g.log.String())), slices.Collect(strings.Lines(string(written)))
	compared := 0
	for i := range logged {
		want, ok := asSimulated(logged[i])
		if !ok {
			continue
		}
		compared++
		if short := shortDecision(t, got[i]); short != want {
			t.Errorf("%s\nsimulated %s, want %s", logged[i], short, want)
		}
	}
	if len(got) != len(logged) || compared != 9*3+5 {
		t.Errorf("compared %d lines; of %d there are %d decisions", compared, len(logged), len(got))
	}
}

// loggedDecision is what the line of a decision is compared by.
type loggedDecision struct {
	Listener  string `json:"listener"`
	Path      string `json:"path"`
	Decision  string `json:"decision"`
	Route     string `json:"route"`
	User      string `json:"user_id"`
	Plan      string `json:"plan"`
	Limit     string `json:"limit"`
	Shadow    string `json:"shadow_denied"`
	Status    int    `json:"status"`
	OwnStatus int    `json:"own_status"`
	Replayed  bool   `json:"replayed"`
}

func (d *loggedDecision) String() string {
	if d.Decision == "pass" || d.Decision == "refuse" {
		return fmt.Sprint(d.Decision, d.Status)
	}
	return fmt.Sprintln(d.Decision, d.Route, d.User, d.Plan, d.Limit, d.Shadow)
}

// asSimulated is what a line of the gateway's should be simulated as; false for one that is
// not simulated.
func asSimulated(line string) (string, bool) {
	var d loggedDecision
	if json.Unmarshal([]byte(line), &d) != nil || d.Listener != "control" || d.Status == 0 || strings.HasPrefix(d.Path, "/admin") {
		return "", false
	}
	if d.OwnStatus > 0 {
		d.Status = d.OwnStatus
	}
	if d.Status >= 400 && d.Status != 429 {
		d.Decision = "refuse"
	}
	if d.Decision == "" || d.Replayed {
		d.Decision, d.Status = "pass", 0
	}
	if d.Path == "/allow" {
		d.Route = "(/allow)"
	}
	return d.String(), true
}

func shortDecision(t *testing.T, line string) string {
	t.Helper()
	var d loggedDecision
	if err := json.Unmarshal([]byte(line), &d); err != nil {
		t.Fatal(err)
	}
	return d.String()
}
