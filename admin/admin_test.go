package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/rs/zerolog"
)

func TestHealthAnswersAsBytes(t *testing.T) {
	g := start(t, setup{})
	head := func(status string, n int) string {
		return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n", status, n)
	}
	check := func(method, target, want string) {
		t.Helper()
		if diff := cmp.Diff(want, g.send(t, request(method, target))); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", method, target, diff)
		}
	}
	check("GET", "/livez", head("200 OK", 14)+`{"alive":true}`)
	check("HEAD", "/livez", head("200 OK", 14))
	check("GET", "/readyz?verbose", head("200 OK", 14)+`{"ready":true}`)
	check("GET", "/nothing", head("404 Not Found", 33)+`{"error":"there is nothing here"}`)
	check("HEAD", "/nothing", head("404 Not Found", 33))
	g.Drain()
	check("GET", "/readyz", head("503 Service Unavailable", 35)+`{"ready":false,"reason":"draining"}`)
	check("GET", "/livez", head("200 OK", 14)+`{"alive":true}`)
}

func TestReadyzSaysWhatIsWrongWithTheStore(t *testing.T) {
	g := start(t, setup{store: brokenStore{limiter.NewMemoryStore()}})
	status, body := g.do(t, "GET", "/readyz")
	if got, want := status+" "+body, `503 {"ready":false,"reason":"`+errDown.Error()+`"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if status, _ := g.do(t, "GET", "/livez"); status != "200" {
		t.Errorf("/livez: got %s, want 200: a restart would not mend the store", status)
	}
}

func TestReadyzStaysReadyWhereSomethingStandsIn(t *testing.T) {
	for _, test := range []struct {
		policy limiter.Policy
		want   string
	}{
		{limiter.StandInLocal, `200 {"ready":true,"degraded":"` + errDown.Error() + `"}`},
		{limiter.StandInAllow, `200 {"ready":true,"degraded":"` + errDown.Error() + `"}`},
		{limiter.StandInDeny, `503 {"ready":false,"reason":"` + errDown.Error() + `"}`},
	} {
		limits := frozen(t, 10)
		limits.OnStoreError = test.policy
		g := start(t, setup{config: Config{ReadyWhenDegraded: true}, limits: limits, store: brokenStore{limiter.NewMemoryStore()}})
		status, body := g.do(t, "GET", "/readyz")
		if got := status + " " + body; got != test.want {
			t.Errorf("%s: got %s, want %s", test.policy, got, test.want)
		}
	}
}

func TestDegradedDecisionsSayWhatDecided(t *testing.T) {
	for policy, want := range map[limiter.Policy]string{
		limiter.StandInLocal: `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 9.0, "degraded": "local"}`,
		limiter.StandInAllow: `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 10.0, "degraded": "allow"}`,
	} {
		limits := frozen(t, 10)
		limits.OnStoreError = policy
		g := start(t, setup{limits: limits, store: brokenStore{limiter.NewMemoryStore()}})
		status, body := g.do(t, "POST", "/allow?user_id=a")
		if got := status + " " + body; got != want {
			t.Errorf("%s: got %s, want %s", policy, got, want)
		}
		eventually(t, "the log says so", func() bool {
			return strings.Contains(g.log.String(), `"degraded":"`+string(policy)+`"`)
		})
	}
}

func TestMalformedRequestsAreRefusedAndTheConnectionCloses(t *testing.T) {
	g := start(t, setup{})
	next := "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
	for _, c := range []struct{ status, raw string }{
		{"400", "POST /allow?user_id=a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"400", "POST /allow?user_id=a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"},
		{"400", "POST /allow?user_id=a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"},
		{"400", "POST /allow?user_id=a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"},
		{"400", "GET /livez HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"},
		{"400", "GET /livez HTTP/1.1\r\nHost: a\r\nX: y\n\r\n"},
		{"400", "GET /livez HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n"},
		{"400", "GET /livez HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n"},
		{"400", "GET /livez HTTP/1.1\r\nHost: a\r\nX : z\r\n\r\n"},
		{"400", "GET /livez HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"},
		{"400", "GET /livez HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n"},
		{"400", "GET /livez HTTP/1.1\r\n\r\n"},
		{"400", "GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"},
		{"400", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"400", "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"400", "GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n"},
		{"505", "GET /livez HTTP/9.9\r\nHost: a\r\n\r\n"},
		{"505", "GET /livez HTTP/2.0\r\nHost: a\r\n\r\n"},
		{"400", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"400", "nonsense\r\n\r\n"},
		{"431", "GET /livez HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n"},
		{"431", "GET /livez HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", maxFields) + "\r\n"},
	} {
		answer := g.send(t, c.raw+next)
		if len(answer) < 12 || answer[9:12] != c.status || field(answer, "Connection") != "close" {
			t.Errorf("%.120q: got %q, want %s and close", c.raw, answer, c.status)
		}
		if n := strings.Count(answer, "HTTP/1.1 "); n != 1 {
			t.Errorf("%.120q: got %d answers, want one: %q", c.raw, n, answer)
		}
		if field(answer, "Content-Type") != "application/json" {
			t.Errorf("%.120q: got %q, which is not JSON", c.raw, answer)
		}
	}
}

func TestBodyOfAReadIsNotTheNextRequest(t *testing.T) {
	g := start(t, setup{})
	hidden := "POST /allow?user_id=a HTTP/1.1\r\nHost: a\r\n\r\n"
	first := fmt.Sprintf("GET /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden)
	answer := g.send(t, first+request("GET", "/livez"))
	if n := strings.Count(answer, "HTTP/1.1 "); n != 2 || !strings.HasSuffix(answer, `{"alive":true}`) {
		t.Errorf("got %q, want a 404 and a 200", answer)
	}
	if allowed, _ := g.Limiter.Totals(); allowed != 0 {
		t.Error("the body was taken for a request")
	}
}

func TestSlowRequestIsTimedOut(t *testing.T) {
	g := newGateway(t, setup{})
	g.http.ReadTimeout = 50 * time.Millisecond
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = ln.Addr().String()
	go func() { _ = g.Serve(ln) }()
	defer func() { _ = g.Shutdown(t.Context()) }()
	if answer := g.send(t, "GET /livez HTTP/1.1\r\nHost: a\r\n"); answer == "" || answer[9:12] != "408" {
		t.Errorf("got %q, want 408", answer)
	}
}

func TestStatsCountDecisions(t *testing.T) {
	g := start(t, setup{})
	for _, target := range []string{"/allow?user_id=a&cost=9", "/allow?user_id=a&cost=9", "/allow?user_id=b", "/allow?user_id=c&cost=0"} {
		g.do(t, "POST", target)
	}
	for target, want := range map[string]string{
		"/admin/stats":                 `200 {"allowed_total":3,"denied_total":1,"active_keys":2,"top_offenders":[{"user_id":"a","denies":1}]}`,
		"/admin/stats?top_n=1":         `200 {"allowed_total":3,"denied_total":1,"active_keys":2,"top_offenders":[{"user_id":"a","denies":1}]}`,
		"/admin/stats?top_n=0":         `400 {"error":"top_n \"0\" is not a whole number from 1 to 100"}`,
		"/admin/stats?window=1h":       `400 {"error":"unknown parameter \"window\": there is top_n"}`,
		"/admin/stats?top_n=1&top_n=2": `400 {"error":"parameter \"top_n\" is given more than once"}`,
	} {
		status, body := g.do(t, "GET", target)
		if got := status + " " + body; got != want {
			t.Errorf("%s: got %s, want %s", target, got, want)
		}
	}
}

func TestUserShowsEveryBucketOfThatUser(t *testing.T) {
	limits := frozen(t, 10)
	limits.Resources = map[string]limiter.ResourceConfig{
		"search": {Limits: []limiter.LimitConfig{
			{Name: "burst", Capacity: 4, RefillRate: rate(t, "0.25/s")},
			{Name: "everyone", Per: "resource", Capacity: 1000, RefillRate: rate(t, "0.5/s")},
			{Name: "next", Shadow: true, Capacity: 2, RefillRate: rate(t, "1/s")},
		}},
	}
	g := start(t, setup{limits: limits})
	g.do(t, "POST", "/allow?user_id=a/%3Cb%3E&cost=4&resource=read")
	want := `{"user_id":"a/\u003cb\u003e","resources":[` +
		`{"resource":"read","limit":"read","capacity":10,"refill_rate_per_sec":RATE,"tokens":6.0,"next_token_seconds":0.0,"full_refill_seconds":FULL},` +
		`{"resource":"search","limit":"burst","capacity":4,"refill_rate_per_sec":0.25,"tokens":4.0,"next_token_seconds":0.0,"full_refill_seconds":0.0},` +
		`{"resource":"search","limit":"everyone","per":"resource","capacity":1000,"refill_rate_per_sec":0.5,"tokens":1000.0,"next_token_seconds":0.0,"full_refill_seconds":0.0},` +
		`{"resource":"search","limit":"next","shadow":true,"capacity":2,"refill_rate_per_sec":1.0,"tokens":2.0,"next_token_seconds":0.0,"full_refill_seconds":0.0}]}`
	_, body := g.do(t, "GET", "/admin/user/a%2f%3Cb%3E")
	got := strings.NewReplacer(between(body, `"refill_rate_per_sec":`, ","), "RATE", between(body, `"full_refill_seconds":`, "}"), "FULL").Replace(body)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if allowed, denied := g.Limiter.Totals(); allowed+denied != 1 {
		t.Errorf("got %d decisions, want 1: looking is not asking", allowed+denied)
	}
}

func between(s, before, after string) string {
	_, s, _ = strings.Cut(s, before)
	s, _, _ = strings.Cut(s, after)
	return s
}

func TestUserIDIsOneSegmentOfTheRawPath(t *testing.T) {
	g := start(t, setup{})
	for target, want := range map[string]string{
		"/admin/user/a+b%20c%252":   `200 {"user_id":"a+b c%2","resources":[]}`,
		"/admin/user/..":            `200 {"user_id":"..","resources":[]}`,
		"/admin/user/%2e%2e%2Fx":    `200 {"user_id":"../x","resources":[]}`,
		"/admin/user/%C3%BC%22%00":  `200 {"user_id":"ü\"\u0000","resources":[]}`,
		"/admin/user/%ff":           `200 {"user_id":"\ufffd","resources":[]}`,
		"/admin/user/":              `404 {"error":"there is nothing here"}`,
		"/admin/user":               `404 {"error":"there is nothing here"}`,
		"/admin/user/a/":            `404 {"error":"there is nothing here"}`,
		"/admin/user/a/../b":        `404 {"error":"there is nothing here"}`,
		"/admin/user/a%":            `400 {"error":"user_id: malformed escape \"%\": write %25 for a percent sign"}`,
		"/admin/user/a?resource=":   `400 {"error":"unknown parameter \"resource\": there is plan"}`,
		"/admin/stats/../user/a":    `404 {"error":"there is nothing here"}`,
		"/admin/user//a":            `404 {"error":"there is nothing here"}`,
		"/admin/user/a%2Freset?x=y": `400 {"error":"unknown parameter \"x\": there is plan"}`,
	} {
		if status, body := g.do(t, "GET", target); status+" "+body != want {
			t.Errorf("GET %s\n got %s %s\nwant %s", target, status, body, want)
		}
	}
}

func TestMetricsAreInPrometheusTextFormat(t *testing.T) {
	g := start(t, setup{metrics: []func(io.Writer){func(w io.Writer) { _, _ = io.WriteString(w, "from_elsewhere 7\n") }}})
	g.do(t, "POST", "/allow?user_id=someone&cost=9")
	g.do(t, "POST", "/allow?user_id=someone&cost=9&resource=something")
	g.do(t, "POST", "/allow?user_id=someone&cost=9")
	answer := g.send(t, request("GET", "/metrics"))
	if got, want := field(answer, "Content-Type"), "text/plain; version=0.0.4; charset=utf-8"; got != want {
		t.Errorf("got Content-Type %q, want %q", got, want)
	}
	for _, line := range []string{
		"from_elsewhere 7",
		`requests_total{result="allow"} 2`, `requests_total{result="deny"} 1`, "active_keys 2",
		`request_latency_seconds_bucket{endpoint="/allow",le="+Inf"} 3`, `request_latency_seconds_bucket{endpoint="/allow",le="10"} 3`,
		`request_latency_seconds_count{endpoint="/allow"} 3`, `r8limiter_panics_total{listener="control"} 0`,
		`r8limiter_build_info{version="1.2.3",go="go1.`, "go_goroutines ", "process_open_fds ", `r8limiter_decisions_total{route="/allow"`,
		`request_latency_seconds_bucket{endpoint="/allow",le="0.0001"} `, `request_latency_seconds_sum{endpoint="/allow"} `,
	} {
		if !strings.Contains(answer, "\n"+line) {
			t.Errorf("there is no %s", line)
		}
	}
	if strings.Contains(answer, "someone") || strings.Contains(answer, "something") {
		t.Error("text that a client chose is in the metrics")
	}
	if status, body := g.do(t, "HEAD", "/metrics"); status != "200" || body != "" {
		t.Errorf("HEAD: got %s %q", status, body)
	}
	if status, _ := g.do(t, "POST", "/metrics"); status != "405" {
		t.Errorf("POST: got %s, want 405", status)
	}
}

func TestPanicIsAnswered500CountedAndLogged(t *testing.T) {
	g := start(t, setup{metrics: []func(io.Writer){func(io.Writer) { panic("a bug") }}})
	want := "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 26\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n" +
		`{"error":"internal error"}`
	if diff := cmp.Diff(want, g.send(t, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := g.panics.Get(); n != 1 {
		t.Errorf("got %d panics counted, want 1", n)
	}
	if log := g.log.String(); !strings.Contains(log, `"panic":"a bug"`) || !strings.Contains(log, "admin_test.go") {
		t.Errorf("got log %s, want the panic and its stack", log)
	}
	if status, _ := g.do(t, "GET", "/livez"); status != "200" {
		t.Errorf("after the panic: got %s, want 200", status)
	}
}

func TestAccessLogHasTheFieldsOfTheContract(t *testing.T) {
	g := start(t, setup{})
	g.do(t, "POST", "/allow?user_id=a%0Ab&cost=9&resource=r", "X-Request-Id: id-1")
	g.do(t, "POST", "/allow?user_id=a%0Ab&cost=9&resource=r", "X-Request-Id: not a token")
	g.do(t, "POST", "/allow?user_id=a&cost=x", "X-Request-Id: id-3")
	g.do(t, "GET", "/admin/user/b", "X-Request-Id: id-4")
	var lines []map[string]any
	eventually(t, "four lines are logged", func() bool {
		lines = parseLog(t, g.log.String(), "info")
		return len(lines) == 4
	})
	if id, ok := lines[1]["request_id"].(string); !ok || len(id) != 32 {
		t.Errorf("got request_id %v, want 32 digits of our own", lines[1]["request_id"])
	}
	delete(lines[1], "request_id")
	for _, l := range lines {
		if ms, ok := l["duration_ms"].(float64); !ok || ms < 0 || ms > 5000 {
			t.Errorf("got duration_ms %v", l["duration_ms"])
		}
		delete(l, "duration_ms")
	}
	if wait, _ := lines[1]["retry_after"].(float64); wait < 1e6 {
		t.Errorf("got retry_after %v, want that of 8 tokens", lines[1]["retry_after"])
	}
	delete(lines[1], "retry_after")
	allow := map[string]any{"level": "info", "listener": "control", "method": "POST", "path": "/allow", "client_ip": "127.0.0.1", "user_id": "a\nb", "resource": "r", "cost": 9.0, "limit": "r", "tokens_left": 1.0}
	want := []map[string]any{
		with(allow, map[string]any{"request_id": "id-1", "decision": "allow", "retry_after": 0.0, "status": 200.0, "bytes": 57.0}),
		with(allow, map[string]any{"decision": "deny", "status": 429.0, "bytes": lines[1]["bytes"]}),
		{"level": "info", "listener": "control", "method": "POST", "path": "/allow", "client_ip": "127.0.0.1", "request_id": "id-3", "user_id": "a", "resource": "default", "cost": 0.0, "decision": "error", "status": 400.0, "bytes": lines[2]["bytes"]},
		{"level": "info", "listener": "control", "method": "GET", "path": "/admin/user/b", "client_ip": "127.0.0.1", "request_id": "id-4", "status": 200.0, "bytes": lines[3]["bytes"]},
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func with(a, b map[string]any) map[string]any {
	m := map[string]any{}
	for _, from := range []map[string]any{a, b} {
		maps.Copy(m, from)
	}
	return m
}

// parseLog returns the access log's lines of one level.
func parseLog(t *testing.T, log, level string) []map[string]any {
	t.Helper()
	var lines []map[string]any
	for s := bufio.NewScanner(strings.NewReader(log)); s.Scan(); {
		var line map[string]any
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			t.Fatalf("%s: %v", s.Text(), err)
		}
		if line["level"] == level && line["status"] != nil {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestLogRequestsChoosesWhatIsLogged(t *testing.T) {
	for mode, want := range map[string]int{"all": 4, "denied": 3, "none": 0} {
		g := start(t, setup{logRequests: mode})
		g.do(t, "POST", "/allow?user_id=a&cost=9")
		g.do(t, "POST", "/allow?user_id=a&cost=9")
		g.do(t, "GET", "/nothing")
		g.send(t, "nonsense\r\n\r\n")
		g.do(t, "GET", "/livez") // only at debug
		eventually(t, fmt.Sprint(mode, " logs ", want), func() bool { return len(parseLog(t, g.log.String(), "info")) == want })
	}
}

func TestShutdownAnswersWhatIsInFlightAndEndsServe(t *testing.T) {
	reached, release := make(chan struct{}), make(chan struct{})
	g := newGateway(t, setup{metrics: []func(io.Writer){func(io.Writer) { close(reached); <-release }}})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = ln.Addr().String()
	served, stopped := make(chan error, 1), make(chan error, 1)
	go func() { served <- g.Serve(ln) }()
	answer := make(chan string, 1)
	go func() { answer <- g.send(t, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") }()
	<-reached
	go func() { stopped <- g.Shutdown(t.Context()) }()
	if err := <-served; err != nil {
		t.Errorf("Serve: got %v", err)
	}
	close(release)
	if got := <-answer; !strings.HasPrefix(got, "HTTP/1.1 200 OK") || field(got, "Connection") != "close" {
		t.Errorf("got %.200q, want 200 and close", got)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Shutdown: got %v", err)
	}
}

func TestShutdownGivesUpWhenItsTimeIsOver(t *testing.T) {
	reached, release := make(chan struct{}), make(chan struct{})
	g := start(t, setup{metrics: []func(io.Writer){func(io.Writer) { close(reached); <-release }}})
	go func() { _, _ = http.Get("http://" + g.addr + "/metrics") }()
	<-reached
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	close(release)
}

func TestServeAfterShutdownReturnsAndClosesTheListener(t *testing.T) {
	g := newGateway(t, setup{})
	if err := g.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Serve(ln); err != nil {
		t.Errorf("got %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
}

// crowded is a listener of a process that has no file descriptor left for its
// first connections.
type crowded struct {
	net.Listener
	failures int
}

func (l *crowded) Accept() (net.Conn, error) {
	if l.failures--; l.failures >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return nil, errors.New("accepted")
}

func TestAcceptWaitsLongerAndLongerForFileDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var log bytes.Buffer
		l := &patientListener{Listener: &crowded{failures: 10}, stop: make(chan struct{}), log: zerolog.New(&log)}
		if _, err := l.Accept(); err == nil || err.Error() != "accepted" {
			t.Errorf("got %v", err)
		}
		// 5, 10, ... 640 ms, then twice the longest.
		if got, want := time.Since(began), 1275*time.Millisecond+2*time.Second; got != want {
			t.Errorf("waited %v, want %v", got, want)
		}
		if got := strings.Count(log.String(), "raise the limit of open files"); got != 3 {
			t.Errorf("the log is %q, want a line at once, after 1.275 s and a second later", log.String())
		}
	})
}

func TestNumbersAreFloatsThatNeverOverstateWhatIsLeft(t *testing.T) {
	for _, c := range []struct {
		tokens float64
		want   string
	}{
		{0, "0.0"}, {1, "1.0"}, {7.4, "7.4"}, {0.29, "0.29"}, {0.1 + 0.2, "0.3"}, {0.9999999, "0.999999"}, {0.999999, "0.999999"},
		{0.0000009, "0.0"}, {10, "10.0"}, {1.000001, "1.000001"}, {123456789.4, "123456789.4"}, {1e9, "1000000000.0"},
		{1 - 1e-9, "0.999999"}, {math.Nextafter(8, 0), "8.0"}, {999999999.5, "999999999.5"},
	} {
		if got := string(limiter.AppendTokens(nil, c.tokens)); got != c.want {
			t.Errorf("%v tokens: got %s, want %s", c.tokens, got, c.want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0.0", 1: "0.001", time.Millisecond: "0.001", 220 * time.Millisecond: "0.22", 220*time.Millisecond + 1: "0.221",
		time.Second: "1.0", 30 * 24 * time.Hour: "2592000.0", -time.Second: "0.0", 1050 * time.Millisecond: "1.05",
	} {
		if got := string(limiter.AppendSeconds(nil, d)); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
	for p, want := range map[perSecond]string{1: "1.0", 0.5: "0.5", 1e6: "1000000.0", 1e-7: "0.0000001"} {
		if got, err := p.MarshalJSON(); string(got) != want || err != nil {
			t.Errorf("%v per second: got %s, %v, want %s", float64(p), got, err, want)
		}
	}
}
