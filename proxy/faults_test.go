package proxy

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// allFaults says that the long forms of these tests run, and that times are held
// to the letter: `make test-faults`.
var allFaults = os.Getenv("FAULTS") == "all"

// longOr is long with allFaults, else quick.
func longOr[T any](long, quick T) T {
	if allFaults {
		return long
	}
	return quick
}

// faultTime is the time-out of upstreams here, and faultSlack what an answer may
// come before or after it.
var (
	faultTime  = longOr(time.Second, 300*time.Millisecond)
	faultSlack = longOr(faultTime/10, time.Second)
)

// pairRig is a proxy in front of two upstreams: api, which has the faults, and
// good below /good, which has none.
func pairRig(t *testing.T, script func(p *peer), more func(c *Config)) (rg *rig, api, good *rawServer) {
	t.Helper()
	good = startRaw(t, always(okAnswer))
	rg, api = rawRig(t, 1<<20, script, func(c *Config) {
		c.Upstreams["api"] = UpstreamConfig{
			Targets: c.Upstreams["api"].Targets, ConnectTimeout: faultTime, ResponseTimeout: faultTime, IdleTimeout: faultTime,
		}
		c.Upstreams["good"] = UpstreamConfig{Targets: []string{good.target()}}
		c.Routes = []RouteConfig{
			{Name: "good", Match: MatchConfig{Path: []string{"/good"}}, Upstream: "good", Action: "bypass"},
			{Name: "all", Upstream: "api", Action: "bypass"},
		}
		if more != nil {
			more(c)
		}
	})
	return rg, api, good
}

const goodGet = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n"

// keepAsking asks for the good route over one connection until stop, which checks
// that all was well, and returns how long the answers took, sorted.
func (rg *rig) keepAsking(t *testing.T) (stop func() []time.Duration) {
	var over atomic.Bool
	done := make(chan []time.Duration)
	c := rg.dial(t)
	_ = c.SetDeadline(time.Now().Add(10 * time.Minute))
	go func() {
		var took []time.Duration
		defer func() { done <- took }()
		buf := make([]byte, len(okAnswer))
		for !over.Load() {
			start := time.Now()
			_, sendErr := io.WriteString(c, goodGet)
			_, err := io.ReadFull(c.r, buf)
			if string(buf) != okAnswer || err != nil {
				t.Errorf("the good route got %q, %v, %v", buf, sendErr, err)
				return
			}
			took = append(took, time.Since(start))
			time.Sleep(2 * time.Millisecond) // the pace
		}
	}()
	return func() []time.Duration {
		over.Store(true)
		took := <-done
		slices.Sort(took)
		return took
	}
}

// quantile is that of sorted durations, 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// spread tells of sorted durations in a line.
func spread(sorted []time.Duration) string {
	return fmt.Sprintf("n=%d p50=%v p99=%v p99.9=%v max=%v", len(sorted), quantile(sorted, .5), quantile(sorted, .99), quantile(sorted, .999), quantile(sorted, 1))
}

// blackHole is an address that leaves attempts to connect without an answer: its
// backlog is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, address := bound(t)
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for {
		filler, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { filler.Close() })
	}
}

// upstreamFault is a way in which an upstream can fail.
type upstreamFault struct {
	name     string
	script   func(p *peer)
	target   string // in place of the script's
	status   string // of the answer
	kind     fault
	slow     bool // it takes faultTime
	attempts int
}

// dripped sends the bytes of a head one by one, too slowly.
func dripped(p *peer) {
	p.take()
	for i := range len(okAnswer) {
		select {
		case <-p.server.stopped:
			return
		case <-time.After(faultTime / 4):
			p.send(okAnswer[i : i+1])
		}
	}
}

// Every fault of an upstream costs one attempt and the time that is configured,
// gets the status that says what it was, and touches no other upstream.
func TestFaultsOfAnUpstreamEndInTimeAndAlone(t *testing.T) {
	for _, each := range []upstreamFault{
		{name: "refused", target: refusing(t), status: "502", kind: faultConnect},
		{name: "black hole", target: "http://" + blackHole(t), status: "504", kind: faultTimeout, slow: true},
		{name: "never answers", script: func(p *peer) { p.take(); p.ended() }, status: "504", kind: faultTimeout, slow: true, attempts: 1},
		{name: "drips its head", script: dripped, status: "504", kind: faultTimeout, slow: true, attempts: 1},
		{name: "stalls amid the body", script: func(p *peer) { p.take(); p.send(okAnswer[:len(okAnswer)-1]); p.ended() }, status: "200", kind: faultTimeout, slow: true, attempts: 1},
		{name: "closes at once", script: func(p *peer) { p.take() }, status: "502", kind: faultClosed, attempts: 1},
		{name: "closes after a byte", script: func(p *peer) { p.take(); p.send("H") }, status: "502", kind: faultClosed, attempts: 1},
		{name: "closes amid the body", script: func(p *peer) { p.take(); p.send(okAnswer[:len(okAnswer)-1]) }, status: "200", kind: faultClosed, attempts: 1},
		{name: "speaks TLS", script: func(p *peer) { p.take(); p.send("\x15\x03\x01\x00\x02\x02\x46"); p.ended() }, status: "502", kind: faultProtocol, attempts: 1},
		{name: "speaks HTTP/2", script: func(p *peer) { p.take(); p.send("\x00\x00\x12\x04\x00\x00\x00\x00\x00"); p.ended() }, status: "502", kind: faultProtocol, attempts: 1},
	} {
		t.Run(each.name, each.try)
	}
}

func (f *upstreamFault) try(t *testing.T) {
	script := f.script
	if script == nil {
		script = always(okAnswer)
	}
	rg, api, _ := pairRig(t, script, func(c *Config) {
		if f.target != "" {
			u := c.Upstreams["api"]
			u.Targets = []string{f.target}
			c.Upstreams["api"] = u
		}
	})
	stop := rg.keepAsking(t)
	start := time.Now()
	f.ask(t, rg)
	took := time.Since(start)
	t.Logf("took %v; the good route meanwhile: %s", took, spread(stop()))
	least, most := time.Duration(0), faultSlack
	if f.slow {
		least, most = faultTime*9/10, faultTime+faultSlack
	}
	if took < least || took > most {
		t.Errorf("it took %v, want %v to %v", took, least, most)
	}
	if got := len(api.recorded()); got != f.attempts {
		t.Errorf("the upstream got %d requests, want %d", got, f.attempts)
	}
	eventually(t, "the fault is counted, and no other", func() bool { return rg.faults(f.kind) == 1 })
	eventually(t, "no connection is left", func() bool { return rg.p.rules.Load().upstreams["api"].openConns() == 0 })
}

// ask makes a request and reads its answer to the end.
func (f *upstreamFault) ask(t *testing.T, rg *rig) {
	t.Helper()
	c := rg.dial(t)
	c.send(plainGet)
	if got := c.head(); got[9:12] != f.status {
		t.Errorf("got %q, want %s", got, f.status)
	}
	if f.status != "200" {
		return
	}
	if rest := c.ended(); rest != "h" { // a part of an answer ends with the connection
		t.Errorf("got the body %q, want its half", rest)
	}
}

// A POST that meets an idle connection which the upstream has closed goes over
// another one: nothing is lost, nothing comes twice. The upstream never closes amid a
// request here: against that nobody can do anything.
func TestFaultsOfIdleConnectionsHarmNoPost(t *testing.T) {
	t.Parallel()
	rg, up, _ := pairRig(t, always(okAnswer), nil)
	var quiet sync.RWMutex // held for reading while a request is on its way
	n := longOr(5*60, 3) * 50
	pace := time.NewTicker(time.Second / 50)
	defer pace.Stop()
	c := rg.dial(t)
	_ = c.SetDeadline(time.Now().Add(10 * time.Minute))
	for i := range n {
		<-pace.C
		if i%3 == 0 {
			quiet.Lock()
			up.closeSome()
			quiet.Unlock()
		}
		quiet.RLock()
		c.send(fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", i))
		if got := c.answer("POST"); got != okAnswer {
			t.Fatalf("request %d: got %q", i, got)
		}
		quiet.RUnlock()
	}
	seen := map[string]bool{}
	for _, text := range up.recorded() {
		seen[strings.Fields(text)[1]] = true
	}
	if len(seen) != n || len(up.recorded()) != n {
		t.Errorf("the upstream got %d requests, %d different; want %d", len(up.recorded()), len(seen), n)
	}
	if up.connections() < n/50 {
		t.Errorf("got %d connections: hardly any was closed", up.connections())
	}
	t.Logf("%d requests over %d connections", n, up.connections())
}

// outcome is what came of a request, and when.
type outcome struct {
	status      string
	began, done time.Time
}

// paced sends a GET each interval by one of several clients, each with a
// connection of its own, until stop, which returns what came of them.
func (rg *rig) paced(t *testing.T, interval time.Duration) (stop func() []outcome) {
	turns := make(chan struct{})
	over := make(chan struct{})
	var all sync.WaitGroup
	var mu sync.Mutex
	var outcomes []outcome
	for range 16 {
		c := rg.dial(t)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		all.Go(func() {
			for range turns {
				o := outcome{began: time.Now()}
				c.send(plainGet)
				o.status, o.done = c.answer("GET")[9:12], time.Now()
				mu.Lock()
				outcomes = append(outcomes, o)
				mu.Unlock()
			}
		})
	}
	all.Go(func() {
		defer close(turns)
		pace := time.NewTicker(interval)
		defer pace.Stop()
		for {
			select {
			case <-over:
				return
			case <-pace.C:
				turns <- struct{}{}
			}
		}
	})
	return func() []outcome { close(over); all.Wait(); return outcomes }
}

// An upstream that restarts fails requests only while it is gone, each of them
// fast, and serves again within a second.
func TestFaultsOfAnUpstreamThatRestarts(t *testing.T) {
	first := startRaw(t, always(okAnswer))
	address := first.listener.Addr().String()
	rg, _, _ := pairRig(t, always(okAnswer), func(c *Config) {
		c.Upstreams["api"] = UpstreamConfig{Targets: []string{first.target()}}
	})
	stop := rg.paced(t, time.Second/200)
	pause := func(d time.Duration) { <-time.After(d) } // the case itself
	pause(faultTime)
	down := time.Now()
	first.stop()
	pause(longOr(2*time.Second, 300*time.Millisecond))
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	serveRaw(t, l, always(okAnswer))
	up := time.Now()
	pause(2 * time.Second)
	var failed []time.Duration
	var lastBad time.Time
	served := 0
	for _, o := range stop() {
		took := o.done.Sub(o.began)
		switch {
		case o.status == "200":
			served++
		case o.done.Before(down):
			t.Errorf("got %s before the upstream was gone", o.status)
		case o.began.After(up.Add(time.Second)):
			t.Errorf("got %s %v after the upstream was back", o.status, o.began.Sub(up))
		case o.status != "502" && o.status != "503", took > time.Second:
			t.Errorf("got %s after %v", o.status, took)
		default:
			failed = append(failed, took)
			lastBad = o.began
		}
	}
	slices.Sort(failed)
	if len(failed) == 0 || served < 200 {
		t.Errorf("%d failed, %d were served", len(failed), served)
	}
	t.Logf("%d served; failed: %s; recovered in %v", served, spread(failed), max(0, lastBad.Sub(up)))
}

// resources is what a process has in hand that a leak would make more of.
type resources struct{ goroutines, files int }

func inHand(t *testing.T) resources {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return resources{runtime.NumGoroutine(), len(files)}
}

// wantNoMore waits until as little is in hand as before, give or take a few.
func (before resources) wantNoMore(t *testing.T) {
	t.Helper()
	eventually(t, "nothing is left over", func() bool {
		now := inHand(t)
		return now.goroutines <= before.goroutines+4 && now.files <= before.files+4
	})
}

// heapBytes is what the heap holds, now that what nobody uses is gone.
func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
