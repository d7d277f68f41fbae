package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// startSwitch is an upstream server that answers while on, and closes each
// connection without an answer while off.
func startSwitch(t *testing.T) (*rawServer, *atomic.Bool) {
	on := new(atomic.Bool)
	on.Store(true)
	return startRaw(t, func(p *peer) {
		for {
			if _, ok := p.take(); !ok || !on.Load() {
				return
			}
			p.send(answerOK)
		}
	}), on
}

// withLog gives u a log.
func withLog(u *upstream) *logBuffer {
	log := new(logBuffer)
	u.log = zerolog.New(log)
	return log
}

func wantLines(t *testing.T, log *logBuffer, want ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
	if len(lines) != len(want) {
		t.Fatalf("got %d lines, want %d: %s", len(lines), len(want), log)
	}
	for i, line := range lines {
		if !strings.Contains(line, want[i]) {
			t.Errorf("line %d: got %s, want %s in it", i, line, want[i])
		}
	}
}

// hasten makes an ejected target's time come.
func hasten(target *target) {
	target.health.mu.Lock()
	defer target.health.mu.Unlock()
	target.health.tryAt = time.Now()
}

func TestThreeConnectionFaultsEjectATargetAndOneAnswerBringsItBack(t *testing.T) {
	bad, on := startSwitch(t)
	good := startRaw(t, always(answerOK))
	u := upstreamTo(t, bad.target(), good.target())
	log := withLog(u)
	on.Store(false)
	failed := 0
	for range 20 {
		if _, _, err := roundTrip(u, &outgoing{head: []byte(postHead)}); err != nil {
			wantFault(t, err, faultClosed)
			failed++
		}
	}
	if failed != 3 || u.ejectedTargets() != 1 || len(bad.recorded()) != 3 {
		t.Fatalf("%d requests failed, %d targets are out, the bad one saw %d requests; want 3, 1, 3", failed, u.ejectedTargets(), len(bad.recorded()))
	}
	hasten(u.targets[0])
	if _, _, err := roundTrip(u, &outgoing{head: []byte(postHead)}); err == nil || len(bad.recorded()) != 4 {
		t.Errorf("the request that tries it: got %v, %d requests there", err, len(bad.recorded()))
	}
	for range 5 {
		mustAnswer(t, u, "ok")
	}
	if len(bad.recorded()) != 4 {
		t.Error("it was tried again at once")
	}
	on.Store(true)
	hasten(u.targets[0])
	mustAnswer(t, u, "ok")
	if u.ejectedTargets() != 0 || len(bad.recorded()) != 5 {
		t.Errorf("%d targets are out, the first saw %d requests; want 0, 5", u.ejectedTargets(), len(bad.recorded()))
	}
	wantLines(t, log, `"target":"`+bad.target()+`","reason":"3 faults in a row, the last: the upstream closed the connection without an answer","message":"target ejected"`,
		`"message":"target is back"`)
}

func TestWaitOfAnEjectedTargetDoubles(t *testing.T) {
	u := upstreamTo(t, refusing(t), refusing(t))
	target := u.targets[0]
	target.eject("test")
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		left := time.Until(target.health.tryAt)
		if want *= time.Second; left > want || left < want-time.Second/2 {
			t.Fatalf("it waits %v, want %v", left, want)
		}
		if target.mayTry(time.Now()) {
			t.Fatal("it may be tried before its time")
		}
		if !target.mayTry(time.Now().Add(want)) || target.mayTry(time.Now().Add(want)) {
			t.Fatal("at its time not exactly one request may try it")
		}
		target.account(&upstreamError{faultConnect, errNoAnswer})
	}
	target.mayTry(time.Now().Add(maxEjection))
	target.account(nil) // the request ended without saying anything
	if !target.mayTry(time.Now()) || target.mayTry(time.Now()) {
		t.Error("after a try that said nothing not exactly one more may try it at once")
	}
	if target.mayTry(time.Now().Add(5 * time.Second)) {
		t.Error("a second may try it while the first could still be answered")
	}
	if !target.mayTry(time.Now().Add(time.Minute)) {
		t.Error("a try that nobody ended blocks it for good")
	}
	target.answered()
	target.eject("again")
	if left := time.Until(target.health.tryAt); left > time.Second {
		t.Errorf("after it was back it waits %v, want 1s", left)
	}
}

// What a client did, what a server may do, and what an application answers are
// no connection faults.
func TestWhatEjectsATarget(t *testing.T) {
	fault := errors.New("client is gone")
	tests := []struct {
		name    string
		script  func(p *peer)
		out     func() *outgoing
		ejected int
	}{
		{"500", always("HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno"), nil, 0},
		{"429", always("HTTP/1.1 429 No\r\nContent-Length: 2\r\n\r\nno"), nil, 0},
		{"client's body fails", func(p *peer) { p.ended() }, func() *outgoing {
			return &outgoing{head: []byte("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"), body: failing{fault}, bodyLen: 9}
		}, 0},
		{"closes amid an upload", func(p *peer) { _, _ = p.r.ReadString('\n') }, func() *outgoing {
			return &outgoing{head: []byte("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), body: io.LimitReader(zeros{}, 1<<20), bodyLen: -1}
		}, 0},
		{"closes used connections", closesSecond, nil, 0},
		{"closes fresh connections", func(p *peer) { p.take() }, nil, 1},
		{"nonsense", func(p *peer) { p.take(); p.send("SSH-2.0\r\n"); p.ended() }, nil, 1},
		{"no head in time", func(p *peer) { p.take(); p.ended() }, nil, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, good := startRaw(t, tt.script), startRaw(t, always(answerOK))
			u := upstreamTo(t, s.target(), good.target())
			u.responseTimeout = 400 * time.Millisecond
			for range 10 {
				out := &outgoing{head: []byte(getHead)}
				if tt.out != nil {
					out = tt.out()
				}
				_, _, _ = roundTrip(u, out)
			}
			if u.ejectedTargets() != tt.ejected {
				t.Errorf("%d targets are out, want %d", u.ejectedTargets(), tt.ejected)
			}
		})
	}
}

// failing is a body that can't be read.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestAnswerBetweenFaultsKeepsATargetIn(t *testing.T) {
	s, on := startSwitch(t)
	u := upstreamTo(t, s.target(), refusing(t))
	u.targets[1].eject("test")
	for range 5 {
		for range 2 {
			on.Store(false)
			_, _, err := roundTrip(u, &outgoing{head: []byte(postHead)})
			wantFault(t, err, faultClosed)
		}
		on.Store(true)
		mustAnswer(t, u, "ok")
		u.targets[0].closeIdle() // so that the next connection is fresh
	}
	if u.ejectedTargets() != 1 {
		t.Errorf("%d targets are out, want only the one that was before", u.ejectedTargets())
	}
}

// closeIdle closes all idle connections.
func (t *target) closeIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closeIdleLocked(len(t.idle))
}

func TestWithoutAHealthyTargetRequestsFailAtOnce(t *testing.T) {
	a, b := startRaw(t, always(answerOK)), startRaw(t, always(answerOK))
	u := upstreamTo(t, a.target(), b.target())
	u.targets[0].eject("test")
	u.targets[1].eject("test")
	for range 3 {
		_, _, err := roundTrip(u, &outgoing{head: []byte(getHead), idempotent: true})
		wantFault(t, err, faultUnhealthy)
	}
	if len(a.recorded())+len(b.recorded()) != 0 {
		t.Error("a request was sent")
	}
	hasten(u.targets[1])
	mustAnswer(t, u, "ok")
	mustAnswer(t, u, "ok")
	if len(a.recorded()) != 0 || len(b.recorded()) != 2 {
		t.Errorf("got %d and %d requests, want 0 and 2", len(a.recorded()), len(b.recorded()))
	}
}

func TestLoneTargetIsNeverEjectedAndIsBackAtOnce(t *testing.T) {
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, s.target())
	s.stop()
	for range 10 {
		_, _, err := roundTrip(u, &outgoing{head: []byte(getHead)})
		wantFault(t, err, faultConnect)
	}
	l, err := net.Listen("tcp", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	serveRaw(t, l, always(answerOK))
	mustAnswer(t, u, "ok")
}

// checkedUpstream is one whose checks run all 20 ms.
func checkedUpstream(t *testing.T, urls ...string) (*upstream, *logBuffer) {
	t.Helper()
	u := upstreamTo(t, urls...)
	u.check = &HealthCheckConfig{Path: "/ready?x=1", Interval: 20 * time.Millisecond, Timeout: 200 * time.Millisecond, UnhealthyAfter: 3, HealthyAfter: 2}
	return u, withLog(u)
}

// startReady answers the check of checkedUpstream with status, and others with ok.
func startReady(t *testing.T, status *atomic.Int32) *rawServer {
	return startRaw(t, func(p *peer) {
		for {
			raw, ok := p.take()
			switch {
			case !ok:
				return
			case !strings.HasPrefix(raw, "GET /ready?x=1 "):
				p.send(answerOK)
			case status.Load() == 0:
				p.ended()
			default:
				p.send(fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", status.Load()))
			}
		}
	})
}

func TestChecksEjectATargetAndBringItBack(t *testing.T) {
	var status, other atomic.Int32
	status.Store(302)
	other.Store(204)
	a, b := startReady(t, &status), startReady(t, &other)
	u, log := checkedUpstream(t, a.target(), b.target())
	u.start()
	eventually(t, "checks were made", func() bool { return a.connections() > 3 && b.connections() > 3 })
	if u.ejectedTargets() != 0 {
		t.Fatal("a healthy target is out")
	}
	for _, bad := range []int32{503, 404, 0} {
		status.Store(bad)
		eventually(t, "it is ejected", func() bool { return u.targets[0].isEjected() })
		for range 4 {
			out := &outgoing{head: []byte(getHead)}
			if code, _, err := roundTrip(u, out); code != 200 || err != nil || out.target != b.target() {
				t.Errorf("got %d, %v by %s", code, err, out.target)
			}
		}
		status.Store(200)
		eventually(t, "it is back", func() bool { return u.ejectedTargets() == 0 })
	}
	u.close()
	back := `"reason":"2 health checks in a row passed","message":"target is back"`
	wantLines(t, log, `3 health checks in a row failed, the last: GET /ready?x=1: status 503`, back,
		`3 health checks in a row failed, the last: GET /ready?x=1: status 404`, back,
		`3 health checks in a row failed, the last: no response head within`, back)
	want := "GET /ready?x=1 HTTP/1.1\r\nHost: " + string(u.targets[0].host) + "\r\nUser-Agent: r8limiter-health\r\nConnection: close\r\n\r\n"
	if got := a.recorded()[0]; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A lone target with checks has somebody who says when it is back.
func TestLoneTargetWithChecksIsEjectedByFaultsToo(t *testing.T) {
	s, on := startSwitch(t)
	u, _ := checkedUpstream(t, s.target())
	on.Store(false)
	for range 3 {
		_, _, err := roundTrip(u, &outgoing{head: []byte(getHead)})
		wantFault(t, err, faultClosed)
	}
	_, _, err := roundTrip(u, &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultUnhealthy)
	hasten(u.targets[0])
	_, _, err = roundTrip(u, &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultUnhealthy) // only checks may try it
	on.Store(true)
	u.start()
	eventually(t, "it is back", func() bool { return u.ejectedTargets() == 0 })
	mustAnswer(t, u, "ok")
}

// A full pool is no ill health.
func TestChecksUseConnectionsOfTheirOwn(t *testing.T) {
	var status atomic.Int32
	status.Store(200)
	s := startReady(t, &status)
	u, _ := checkedUpstream(t, s.target())
	u.maxConns = 1
	var held incoming
	if err := u.do(&outgoing{head: []byte(getHead)}, &held); err != nil {
		t.Fatal(err)
	}
	defer held.finish()
	u.start()
	eventually(t, "checks were made", func() bool { return s.connections() > 4 })
	if u.ejectedTargets() != 0 || u.openConns() != 1 {
		t.Errorf("%d targets are out, %d connections open", u.ejectedTargets(), u.openConns())
	}
}

func TestSecureTargetsAreCheckedWithTLS(t *testing.T) {
	a := newAuthority(t)
	s := serveRaw(t, a.listen(t, a.issue(t, "server")), always(answerOK))
	u := a.upstream(t, s)
	u.check = &HealthCheckConfig{Path: "/", Timeout: time.Second}
	if err := u.targets[0].probe(t.Context()); err != nil {
		t.Error(err)
	}
	u = secureUpstream(t, s, nil)
	u.check = &HealthCheckConfig{Path: "/", Timeout: time.Second}
	if err := u.targets[0].probe(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("got %v", err)
	}
}

// Neither a check that waits for an answer nor a look-up outlives close.
func TestCloseLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	asked := make(chan bool, 100)
	s := startRaw(t, func(p *peer) { p.take(); asked <- true; p.ended() })
	_, port, _ := net.SplitHostPort(s.listener.Addr().String())
	u := upstreamTo(t, s.target(), "http://localhost:"+port)
	u.check = &HealthCheckConfig{Path: "/", Interval: time.Millisecond, Timeout: time.Minute, UnhealthyAfter: 1, HealthyAfter: 1}
	u.start()
	<-asked
	<-asked
	start := time.Now()
	u.close()
	if took := time.Since(start); took > time.Second {
		t.Errorf("close took %v", took)
	}
	if u.ejectedTargets() != 0 {
		t.Error("a check that close cut short ejected a target")
	}
	u.close()
	s.stop()
	eventually(t, "all goroutines ended", func() bool { return runtime.NumGoroutine() <= before })
}

func TestClientGetsRetryAfterWhereNoTargetIsHealthy(t *testing.T) {
	c := DefaultConfig()
	up := newRecorder(t, okAnswer)
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://" + up.addr, refusing(t)}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api", Action: "bypass"}}
	rg := startRig(t, c, up, newLimiter(t, 10))
	conn := rg.dial(t)
	conn.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if got := conn.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("got %q", got)
	}
	for _, target := range rg.p.rules.Load().upstreams["api"].targets {
		target.eject("test")
	}
	conn.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	got := conn.answer("GET")
	for _, part := range []string{"HTTP/1.1 503 ", "\r\nRetry-After: 1\r\n", `"detail":"upstream api has no healthy target"`} {
		if !strings.Contains(got, part) {
			t.Errorf("got %q, want %q in it", got, part)
		}
	}
	eventually(t, "both are logged", func() bool { return strings.Count(rg.log.String(), `"status"`) == 2 })
	if !strings.Contains(rg.log.String(), `"upstream":"api","target":"http://`+up.addr+`"`) {
		t.Errorf("the log does not name the target: %s", rg.log)
	}
	var text strings.Builder
	rg.p.WriteMetrics(&text)
	for _, line := range []string{
		`r8limiter_upstream_targets{upstream="api",state="healthy"} 0`, `r8limiter_upstream_targets{upstream="api",state="ejected"} 2`,
		`r8limiter_upstream_errors_total{upstream="api",kind="unhealthy"} 1`, `r8limiter_upstream_retries_total{upstream="api"} `,
	} {
		if !strings.Contains(text.String(), line) {
			t.Errorf("there is no %s", line)
		}
	}
}
