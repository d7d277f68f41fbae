package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// within waits until the process is gone and returns its exit code and how long
// that took.
func (p *process) within(t *testing.T, limit time.Duration) (code int, took time.Duration) {
	t.Helper()
	start := time.Now()
	select {
	case <-p.exited:
	case <-time.After(limit):
		t.Fatalf("it still runs after %v: %s", limit, p.log.lines())
	}
	return p.command.ProcessState.ExitCode(), time.Since(start)
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.command.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// awaitLog waits for a line that holds text.
func (p *process) awaitLog(t *testing.T, text string) {
	t.Helper()
	eventually(t, "the log says "+text, func() bool { return p.logged(text) > 0 })
}

// logged counts the lines that hold text.
func (p *process) logged(text string) (n int) {
	for _, line := range p.log.lines() {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// wireUpstream answers at once, but /slow after as many milliseconds as it is
// asked to wait, after it has told arrived.
func wireUpstream(t *testing.T, arrived chan<- struct{}) string {
	return httptestServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			ms, _ := strconv.Atoi(r.URL.RawQuery)
			select {
			case <-time.After(time.Duration(ms) * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, "fine")
	})
}

// drainConfig is a gateway whose requests are all decided by Redis, from one
// bucket that doesn't refill while the test runs.
func drainConfig(upstream, redis string, delay, timeout time.Duration) string {
	return fmt.Sprintf(`
proxy:
  listen: "127.0.0.1:0"
  drain_delay: %v
  drain_timeout: %v
  upstreams: {api: {targets: [%q]}}
  routes: [{name: all, user_id: ["{header.X-User-Id}"], upstream: api}]
limiter:
  default: {capacity: %d, refill_rate: 1/d, on_store_error: deny}
  redis: {url: %q, timeout: 5s}
admin: {listen: "127.0.0.1:0"}
log: {requests: none}
`, delay, timeout, upstream, drainCapacity, redis)
}

const drainCapacity = 10_000_000

// One of two gateways is sent SIGTERM again and again and replaced, under load
// over kept and fresh connections by clients that turn away from a gateway that is
// not ready. No request fails, a long one that is on its way ends well, and each is
// spent once in Redis: none was decided by anybody else.
func TestWireSigtermUnderLoadFailsNoRequest(t *testing.T) {
	runs := 2
	if allFaults {
		runs = 20
	}
	arrived := make(chan struct{}, 1)
	upstream, redis := wireUpstream(t, arrived), redistest.Start(t)
	begin := func(delay time.Duration) *process {
		return startProcess(t, drainConfig(upstream, redis.URL(), delay, 20*time.Second))
	}
	f := startFleet(t)
	old, next := begin(time.Second), begin(time.Second)
	f.add(t, old)
	f.add(t, next)
	load := startLoad(f, 2*time.Millisecond, 24)
	for run := range runs {
		load.await(t, 100)
		slow, delay := 1500*time.Millisecond, time.Second
		if allFaults && run%5 == 0 {
			slow, delay = 5*time.Second, 5*time.Second // the default, of the one that begins here
		}
		drainUnderLoad(t, old, slow, arrived)
		f.remove(old)
		old, next = next, begin(delay)
		f.add(t, next)
	}
	load.await(t, 100)
	load.end(t)
	resp, _ := askAs(t, next.proxy+"/x", "load")
	spent := load.sent.Load() + 1
	if want := fmt.Sprintf(`;r=%d;`, drainCapacity-spent); !strings.Contains(resp.Header.Get("RateLimit")+";", want) {
		t.Errorf("RateLimit: %s after %d requests, want %s", resp.Header.Get("RateLimit"), spent, want)
	}
}

// askAs sends a GET for a user.
func askAs(t *testing.T, url, user string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-User-Id", user)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return &http.Response{}, err
	}
	drop(resp)
	return resp, nil
}

// drainUnderLoad ends a process that has a slow request in flight.
func drainUnderLoad(t *testing.T, p *process, slow time.Duration, arrived <-chan struct{}) {
	t.Helper()
	answer := make(chan string, 1)
	go func() {
		answer <- rawAnswer(p.proxy, fmt.Sprintf("GET /slow?%d HTTP/1.1\r\nHost: a\r\nX-User-Id: slow\r\n\r\n", slow.Milliseconds()))
	}()
	<-arrived
	p.signal(t, syscall.SIGTERM)
	code, took := p.within(t, 20*time.Second+3*time.Second)
	if code != exitFine {
		t.Errorf("exit code %d, want 0: %s", code, p.log.lines())
	}
	if took > 20*time.Second {
		t.Errorf("it took %v to end, longer than proxy.drain_timeout", took)
	}
	if got := <-answer; !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.Contains(got, "Connection: close\r\n") || !strings.HasSuffix(got, "\r\n\r\nfine") {
		t.Errorf("the slow request got %q, want a whole 200 that closes", got)
	}
}

// rawAnswer sends text to a base URL and returns all that comes until the
// connection ends.
func rawAnswer(to, text string) string {
	conn, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return err.Error()
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return string(answer) + "\n" + err.Error()
	}
	return string(answer)
}

// endlessUpstream sends a byte each 20 ms for ever: events under /events,
// behind a 101 elsewhere.
func endlessUpstream(t *testing.T) string {
	return httptestServer(t, func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		head := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ticks\r\n\r\n"
		if r.URL.Path == "/events" {
			head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
		}
		_, err = buffered.WriteString(head)
		for tick := time.NewTicker(20 * time.Millisecond); err == nil; <-tick.C {
			if err = buffered.WriteByte('.'); err == nil {
				err = buffered.Flush()
			}
		}
	})
}

// An event stream and a tunnel have all of proxy.drain_timeout, and no more.
func TestWireStreamsLastUntilTheDrainTimeout(t *testing.T) {
	timeout := 2 * time.Second
	if allFaults {
		timeout = 6 * time.Second
	}
	p := startProcess(t, fmt.Sprintf(`
proxy:
  listen: "127.0.0.1:0"
  drain_delay: 500ms
  drain_timeout: %v
  upstreams: {api: {targets: [%q]}}
  routes: [{name: all, action: bypass, upstream: api}]
admin: {listen: "127.0.0.1:0"}
`, timeout, endlessUpstream(t)))
	ends := map[string]<-chan time.Time{
		"event stream": streamUntilCut(t, p, "GET /events HTTP/1.1\r\nHost: a\r\n\r\n", "200"),
		"tunnel":       streamUntilCut(t, p, "GET /t HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: ticks\r\n\r\n", "101"),
	}
	began := time.Now()
	p.signal(t, syscall.SIGTERM)
	code, took := p.within(t, timeout+10*time.Second)
	if code != exitFine || took > timeout+3*time.Second {
		t.Errorf("exit code %d after %v, want 0 after %v: %s", code, took, timeout, p.log.lines())
	}
	for what, end := range ends {
		lasted := (<-end).Sub(began)
		t.Logf("the %s lasted %v", what, lasted)
		if lasted < timeout || lasted > timeout+3*time.Second {
			t.Errorf("the %s was cut %v after the signal, want %v", what, lasted, timeout)
		}
	}
}

// streamUntilCut asks for a stream, reads its head and tells when it ended.
func streamUntilCut(t *testing.T, p *process, request, status string) <-chan time.Time {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.proxy, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || !strings.HasPrefix(resp.Status, status) {
		t.Fatalf("got %v, %v, want %s", resp, err, status)
	}
	end := make(chan time.Time, 1)
	go func() {
		_, _ = io.Copy(io.Discard, r) // a chunked body is cut too
		end <- time.Now()
	}()
	return end
}

func TestWireSecondSignalEndsAtOnce(t *testing.T) {
	arrived := make(chan struct{}, 1)
	p := startProcess(t, fmt.Sprintf(`
proxy:
  listen: "127.0.0.1:0"
  drain_delay: 20s
  upstreams: {api: {targets: [%q]}}
  routes: [{name: all, action: bypass, upstream: api}]
admin: {listen: "127.0.0.1:0"}
`, wireUpstream(t, arrived)))
	go rawAnswer(p.proxy, "GET /slow?20000 HTTP/1.1\r\nHost: a\r\n\r\n")
	<-arrived
	p.signal(t, syscall.SIGTERM)
	p.awaitLog(t, `"draining"`)
	p.signal(t, syscall.SIGTERM) // some send it twice: to a process, and to its group
	p.signal(t, syscall.SIGHUP)
	if resp, body := ask(t, p.control+"/livez"); resp.StatusCode != 200 {
		t.Errorf("after the same signal again: %d %s", resp.StatusCode, body)
	}
	p.signal(t, syscall.SIGINT)
	if code, took := p.within(t, 10*time.Second); code != exitFailure {
		t.Errorf("exit code %d after %v, want %d at once: %s", code, took, exitFailure, p.log.lines())
	}
	if p.logged("second signal") != 1 {
		t.Errorf("the log doesn't say why it ended: %s", p.log.lines())
	}
}

// Whatever a request is answered with while the gateway drains, the answer says
// that the connection ends with it, and it does.
func TestWireEveryAnswerOfADrainClosesItsConnection(t *testing.T) {
	p := startProcess(t, fmt.Sprintf(`
proxy:
  listen: "127.0.0.1:0"
  drain_delay: 20s
  upstreams:
    api: {targets: [%q]}
    none: {targets: ["http://127.0.0.1:1"]}
  routes:
    - {name: blocked, match: {path: /blocked}, action: block}
    - {name: limited, match: {path: /limited}, resource: limited, upstream: api}
    - {name: broken, match: {path: /broken}, action: bypass, upstream: none}
    - {name: all, match: {path: /x, methods: [GET, HEAD, POST]}, action: bypass, upstream: api}
limiter: {resources: {limited: {capacity: 1, refill_rate: 1/h}}}
admin: {listen: "127.0.0.1:0"}
`, wireUpstream(t, nil)))
	if got := status(t, "GET", p.proxy+"/limited"); got != 200 {
		t.Fatalf("got %d, want 200", got)
	}
	kept := dialWire(t, p.proxy) // it stands before the signal
	kept.want("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "200")
	p.signal(t, syscall.SIGTERM)
	p.awaitLog(t, `"draining"`)
	eventually(t, "the gateway is not ready", func() bool { return status(t, "GET", p.control+"/readyz") == 503 })
	kept.want("GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "200")
	kept.ended()
	for _, c := range []struct{ to, request, status string }{
		{p.proxy, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n", "200"},
		{p.proxy, "GET /x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", "200"},
		{p.proxy, "HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n", "200"},
		{p.proxy, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab", "200"},
		{p.proxy, "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", "200"},
		{p.proxy, "GET /limited HTTP/1.1\r\nHost: a\r\n\r\n", "429"},
		{p.proxy, "GET /blocked HTTP/1.1\r\nHost: a\r\n\r\n", "403"},
		{p.proxy, "GET /broken HTTP/1.1\r\nHost: a\r\n\r\n", "502"},
		{p.proxy, "GET /none HTTP/1.1\r\nHost: a\r\n\r\n", "404"},
		{p.proxy, "GET /x HTTP/1.1\r\n\r\n", "400"},
		{p.control, "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", "503"},
		{p.control, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", "200"},
		{p.control, "POST /allow?user_id=a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "200"},
	} {
		got := rawAnswer(c.to, c.request)
		head, _, _ := strings.Cut(got, "\r\n\r\n")
		if _, rest, _ := strings.Cut(head, " "); !strings.HasPrefix(rest, c.status+" ") || !strings.Contains(strings.ToLower(head), "\r\nconnection: close") {
			t.Errorf("%q: got %q, want %s and Connection: close", c.request, got, c.status)
		}
	}
}

// wireConn is a connection over which raw requests are sent one by one.
type wireConn struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func dialWire(t *testing.T, to string) *wireConn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &wireConn{conn, t, bufio.NewReader(conn)}
}

// want sends a request and fails if the answer's status is another.
func (c *wireConn) want(request, status string) *http.Response {
	c.t.Helper()
	_ = c.SetDeadline(time.Now().Add(wireWait))
	if _, err := io.WriteString(c, request); err != nil {
		c.t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("%q: %v", request, err)
	}
	drop(resp)
	if !strings.HasPrefix(resp.Status, status) {
		c.t.Errorf("%q: got %s, want %s", request, resp.Status, status)
	}
	return resp
}

// ended fails if anything but the end comes.
func (c *wireConn) ended() {
	c.t.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.t.Errorf("got %q, %v, want the end of the connection", rest, err)
	}
}

// Requests whose decisions Redis owes when the gateway is told to end get those,
// and not what stands in for them: the store closes last.
func TestWireDecisionsInFlightAtTheSignalAreThoseOfRedis(t *testing.T) {
	redis := redistest.Start(t)
	relay := redistest.NewRelay(t, redis.Addr())
	config := drainConfig(wireUpstream(t, nil), relay.URL(), time.Second, 20*time.Second)
	p := startProcess(t, strings.Replace(config, fmt.Sprint(drainCapacity), "3", 1))
	p.awaitReady(t)
	if resp, _ := askAs(t, p.proxy+"/x", "ann"); resp.StatusCode != 200 {
		t.Fatalf("got %s, want 200", resp.Status)
	}
	before := p.metric(t, `r8limiter_connections{listener="proxy"}`)
	relay.BlackHole(true)
	answers := make(chan string, 5)
	for range cap(answers) {
		go func() {
			answers <- rawAnswer(p.proxy, "GET /x HTTP/1.1\r\nHost: a\r\nX-User-Id: ann\r\nConnection: close\r\n\r\n")
		}()
	}
	eventually(t, "the requests have come", func() bool {
		return p.metric(t, `r8limiter_connections{listener="proxy"}`) >= before+float64(cap(answers))
	})
	p.signal(t, syscall.SIGINT) // without a delay
	p.awaitLog(t, `"draining"`)
	relay.BlackHole(false)
	got := map[string]int{}
	for range cap(answers) {
		answer := <-answers
		got[strings.TrimPrefix(answer, "HTTP/1.1 ")[:3]]++
	}
	if got["200"] != 2 || got["429"] != 3 {
		t.Errorf("got %v, want two of 200 and three of 429", got)
	}
	if code, _ := p.within(t, wireWait); code != exitFine {
		t.Errorf("exit code %d, want 0: %s", code, p.log.lines())
	}
}
