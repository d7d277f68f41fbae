package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// slowConfig is a gateway with an upstream of short answers, and one of answers of
// 4 MiB under /big, more than sockets hold: who reads those slowly keeps connections
// of that upstream only.
func slowConfig(t *testing.T, limits string) string {
	upstream := httptestServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/big" {
			fmt.Fprint(w, "fine")
			return
		}
		piece := make([]byte, 64<<10)
		for range 64 {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	})
	return fmt.Sprintf(`
proxy:
  listen: "127.0.0.1:0"
  limits: {%s}
  upstreams: {api: {targets: [%q]}, big: {targets: [%q]}}
  routes: [{name: big, match: {path: /big}, action: bypass, upstream: big}, {name: all, action: bypass, upstream: api}]
admin: {listen: "127.0.0.1:0"}
log: {requests: none}
`, limits, upstream, upstream)
}

// steadyFleet is the one instance that is always used.
func steadyFleet(p *process) *fleet {
	i := &instance{addr: strings.TrimPrefix(p.proxy, "http://")}
	i.serves.Store(true)
	return &fleet{instances: []*instance{i}}
}

func (p *process) connections(t *testing.T) int {
	t.Helper()
	return int(p.metric(t, `r8limiter_connections{listener="proxy"}`))
}

// occupation is how clients take up connections without getting anything.
type occupation struct {
	name  string
	count int
	// begin opens count connections to a base URL and holds them until stop is
	// called.
	begin func(t *testing.T, to string, count int) (stop func())
	// ends is how long one may last.
	ends time.Duration
	// held says that the p99 of others may not double. It is measured while the same
	// attackers hold on to somebody else, and then to the gateway, for on this
	// machine they take up processors too. Of the others it is logged only.
	held bool
}

// slowHTTPTest is an attack by slowhttptest, at the lowest priority: those who
// attack have processors of their own. One process would take far longer to connect
// ten thousand times than ten do.
func slowHTTPTest(path string, options ...string) func(*testing.T, string, int) func() {
	return func(t *testing.T, to string, count int) func() {
		var attackers []*exec.Cmd
		for range 10 {
			c := exec.Command("nice", append([]string{"-n", "19", installed(t, "slowhttptest"),
				"-c", fmt.Sprint(count / 10), "-r", "500", "-l", "60", "-u", to + path}, options...)...)
			c.Dir = t.TempDir()
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			attackers = append(attackers, c)
		}
		return sync.OnceFunc(func() {
			for _, c := range attackers {
				_ = c.Process.Kill()
				_ = c.Wait()
			}
		})
	}
}

// idle opens connections that have had one answer and ask no more.
func idle(t *testing.T, to string, count int) func() {
	t.Helper()
	var conns []net.Conn
	for range count {
		conn, err := net.Dial("tcp", strings.TrimPrefix(to, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		if _, err := io.WriteString(conn, wireGet); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}

const (
	crowd        = 10_000 // connections
	crowdRSS     = 400 << 20
	crowdRounds  = 2
	crowdAtMost  = 3                      // rounds, where others use the processors: all of them count
	crowdWindows = 5                      // of a second each, without the crowd and with it
	crowdMetrics = 250 * time.Millisecond // how long /metrics may take meanwhile
	closeGrace   = 2 * time.Second        // beyond the time-out that ends a connection
)

var crowds = []occupation{
	{name: "idle", count: crowd, begin: idle, ends: 20 * time.Second},
	{name: "slow heads", count: crowd, begin: slowHTTPTest("/x", "-H", "-i", "5"), ends: 20 * time.Second, held: true},
	// The second byte comes after 10 s, and is too little then.
	{name: "slow bodies", count: crowd, begin: slowHTTPTest("/x", "-B", "-i", "9", "-s", "65000"), ends: 20 * time.Second},
	// Twice write_timeout, see send; who gets no connection of the upstream is idle after their 503.
	{name: "slow readers", count: crowd / 5, begin: slowHTTPTest("/big", "-X", "-n", "5", "-z", "32"), ends: 20 * time.Second},
}

// Ten thousand connections that are idle, or as slow as can be, cost the clients
// that behave less than as much time again, cost little memory, and end in time.
func TestWireCrowdOfSlowClientsIsBorne(t *testing.T) {
	if !allFaults {
		t.Skip("with FAULTS=all only: it wants slowhttptest and ten thousand connections")
	}
	for _, o := range crowds {
		t.Run(o.name, func(t *testing.T) {
			p := startBuilt(t, slowConfig(t, "header_timeout: 20s, write_timeout: 10s, keep_alive_timeout: 20s"))
			load := startLoad(steadyFleet(p), 5*time.Millisecond, 16)
			var quiet, crowded []time.Duration
			doubled := func() bool { return o.held && median(crowded) >= 2*median(quiet) }
			for round := 0; round < crowdRounds || round < crowdAtMost && doubled(); round++ {
				quiet = append(quiet, o.elsewhere(t, load)...)
				crowded = append(crowded, o.round(t, p, load)...)
			}
			load.end(t)
			t.Logf("p99 without them %v, with them %v, of %d windows each", median(quiet), median(crowded), len(quiet))
			if doubled() {
				t.Errorf("the median p99 of good clients is %v with the crowd and %v without, want less than double; on processors that others use try again", median(crowded), median(quiet))
			}
		})
	}
}

// windows are the p99 of some seconds.
func windows(load *wireLoad) (p99 []time.Duration) {
	for range crowdWindows {
		p99 = append(p99, quantile(load.window(func() { <-time.After(time.Second) }), .99))
	}
	return p99
}

// round has the crowd come, stay for some windows and go, and returns the p99 of
// the others meanwhile.
func (o *occupation) round(t *testing.T, p *process, load *wireLoad) []time.Duration {
	t.Helper()
	base, start := p.connections(t), time.Now()
	defer o.begin(t, p.proxy, o.count)()
	o.awaitThere(t, func() int { return p.connections(t) - base })
	there, slowest := time.Now(), time.Duration(0)
	p99 := windows(load)
	for range 10 { // not meanwhile: with so many files it takes a processor for a while
		asked := time.Now()
		p.connections(t)
		slowest = max(slowest, time.Since(asked))
	}
	rss := int64(p.metric(t, "process_resident_memory_bytes"))
	o.awaitGone(t, p, there, base)
	t.Logf("there after %v, gone after another %v; RSS %d MiB; /metrics took %v at most; p99 %v",
		there.Sub(start).Round(time.Millisecond), time.Since(there).Round(time.Millisecond), rss>>20, slowest, p99)
	if rss > crowdRSS {
		t.Errorf("RSS is %d MiB, want at most %d", rss>>20, crowdRSS>>20)
	}
	if slowest > crowdMetrics {
		t.Errorf("/metrics took %v, want at most %v", slowest, crowdMetrics)
	}
	return p99
}

// elsewhere has the crowd hold on to a listener that does next to nothing, where the p99
// of others is held to something, and returns that p99. It answers whole requests, as
// slowhttptest sends one now and then to see how the service fares: from the first
// answer on it takes all of a processor, so that it must get one here too.
func (o *occupation) elsewhere(t *testing.T, load *wireLoad) []time.Duration {
	t.Helper()
	if !o.held {
		return windows(load)
	}
	l := listen(t)
	var conns []net.Conn
	var there atomic.Int64
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			conns = append(conns, conn)
			there.Add(1)
			go answerWhole(conn)
		}
	})
	defer func() {
		_ = l.Close()
		accepting.Wait()
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	defer o.begin(t, "http://"+l.Addr().String(), o.count)()
	o.awaitThere(t, func() int { return int(there.Load()) })
	return windows(load)
}

// answerWhole answers the first bytes of a connection, if they are a whole request.
func answerWhole(conn net.Conn) {
	first := make([]byte, 4<<10)
	n, _ := conn.Read(first)
	if bytes.Contains(first[:n], []byte("\r\n\r\n")) {
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine")
		_ = conn.Close()
	}
}

// awaitThere waits until nearly all of the crowd are connected at a time.
func (o *occupation) awaitThere(t *testing.T, connected func() int) {
	t.Helper()
	most := 0
	for start := time.Now(); most < o.count*99/100; most = max(most, connected()) {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("only %d of the crowd were there at a time: the machine is too slow for this test, or has no files left", most)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// awaitGone fails if more than a hundredth is left when the time of the last is over.
func (o *occupation) awaitGone(t *testing.T, p *process, there time.Time, base int) {
	t.Helper()
	for p.connections(t) > base+o.count/100 {
		if time.Since(there) > o.ends+closeGrace {
			t.Errorf("%d connections are left %v after the last came", p.connections(t)-base, time.Since(there).Round(time.Millisecond))
			return
		}
		<-time.After(50 * time.Millisecond)
	}
}

// A small crowd of each kind, without tools: it ends in time, and meanwhile no
// request of a client that behaves fails.
func TestWireSlowClientsAreCutOff(t *testing.T) {
	p := startProcess(t, slowConfig(t, "header_timeout: 1s, body_timeout: 1s, write_timeout: 1s, keep_alive_timeout: 1s"))
	load := startLoad(steadyFleet(p), 10*time.Millisecond, 4)
	load.await(t, 20)
	base := p.connections(t)
	for _, say := range []string{
		"",
		"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", // and no other
		"GET /x HTTP/1.1\r\nHost: a\r\nX-A: ",
		"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\na",
		"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\na",
		"GET /big HTTP/1.1\r\nHost: a\r\n\r\n", // and doesn't read
	} {
		for range 50 {
			conn := dialWire(t, p.proxy)
			_, _ = io.WriteString(conn, say) // the time-out may have come before
		}
	}
	eventually(t, "slow clients stand", func() bool { return p.connections(t) > base+100 })
	eventually(t, "slow clients are cut off", func() bool { return p.connections(t) <= base+4 })
	load.end(t)
}
