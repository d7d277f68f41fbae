package proxy

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// held is an upstream script that answers when it is told to, and counts the
// requests in flight.
type held struct {
	now, most atomic.Int64
	open      chan struct{} // closed: answer
}

func (h *held) script(p *peer) {
	for {
		if _, ok := p.take(); !ok {
			return
		}
		now := h.now.Add(1)
		for most := h.most.Load(); now > most && !h.most.CompareAndSwap(most, now); most = h.most.Load() {
		}
		select {
		case <-h.open:
		case <-p.server.stopped:
		}
		h.now.Add(-1)
		p.send(okAnswer)
	}
}

// bounded gives the upstream api so many connections, and such a wait for one.
func bounded(conns int, wait time.Duration) func(c *Config) {
	return func(c *Config) {
		c.Upstreams["api"] = UpstreamConfig{Targets: c.Upstreams["api"].Targets, MaxConns: conns, QueueTimeout: &wait}
	}
}

// Who finds all connections in use waits for one, as long as is configured, and
// then hears when to come again; the next who asks is served.
func TestFullUpstreamSays503AndRecovers(t *testing.T) {
	const conns, wait = 2, 200 * time.Millisecond
	h := &held{open: make(chan struct{})}
	rg, api, _ := pairRig(t, h.script, bounded(conns, wait))
	var inside []*rawClient
	for range conns {
		c := rg.dial(t)
		c.send(plainGet)
		inside = append(inside, c)
	}
	eventually(t, "all connections are in use", func() bool { return h.now.Load() == conns })
	var waiting sync.WaitGroup
	for range conns {
		c := rg.dial(t)
		waiting.Go(func() {
			start := time.Now()
			c.send(plainGet)
			got := c.answer("GET")
			if took := time.Since(start); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "\r\nRetry-After: 1\r\n") || took < wait || took > wait+time.Second {
				t.Errorf("after %v: got %q, want 503 and Retry-After after %v", took, got, wait)
			}
		})
	}
	eventually(t, "the queue is full", func() bool { return rg.p.rules.Load().upstreams["api"].targets[0].load() == 2*conns })
	start := time.Now()
	if got := rg.statusOf(t, plainGet); got != "503" || time.Since(start) > wait/2 {
		t.Errorf("beyond the queue: got %s after %v, want 503 at once", got, time.Since(start))
	}
	waiting.Wait()
	if got := rg.faults(faultBusy); got != conns+1 {
		t.Errorf("counted %d, want %d", got, conns+1)
	}
	close(h.open)
	for _, c := range inside {
		want(t, "who was inside", c.answer("GET"), okAnswer)
	}
	if got := rg.statusOf(t, plainGet); got != "200" {
		t.Errorf("afterwards: got %s, want 200", got)
	}
	if api.connections() != conns {
		t.Errorf("got %d connections, want %d", api.connections(), conns)
	}
}

// Clients that send small bodies slowly hold none of the upstream's connections:
// others of the same upstream get through.
func TestFaultsOfSlowSmallUploadsHoldNoConnection(t *testing.T) {
	rg, api, _ := pairRig(t, always(okAnswer), bounded(8, 0))
	rg.uploadSlowly(t, 512, smallBodyBytes)
	stop := rg.keepAsking(t)
	for range 50 {
		if got := rg.statusOf(t, post("Content-Length: 5\r\n", "abcde")); got != "200" {
			t.Errorf("got %s, want 200", got)
		}
	}
	if api.connections() > 8 || len(api.recorded()) != 50 {
		t.Errorf("the upstream got %d requests over %d connections", len(api.recorded()), api.connections())
	}
	t.Logf("another upstream: %s", spread(stop()))
}

// Clients that send large bodies slowly hold connections of that one upstream.
// What finds none is told so at once; another upstream is not touched.
func TestFaultsOfSlowLargeUploadsFillOneUpstreamOnly(t *testing.T) {
	const conns = 64
	rg, api, _ := pairRig(t, always(okAnswer), bounded(conns, 0))
	clients := rg.uploadSlowly(t, 512, 1<<20)
	eventually(t, "the upstream is full and the rest refused", func() bool { return rg.faults(faultBusy) == 512-conns })
	stop := rg.keepAsking(t)
	start := time.Now()
	if got := rg.statusOf(t, plainGet); got != "503" {
		t.Errorf("the full upstream: got %s, want 503", got)
	}
	t.Logf("503 after %v; another upstream: %s", time.Since(start), spread(stop()))
	if api.connections() != conns {
		t.Errorf("got %d connections, want %d", api.connections(), conns)
	}
	for _, c := range clients {
		c.Close()
	}
	eventually(t, "the upstream has room again", func() bool { return rg.statusOf(t, plainGet) == "200" })
}

// uploadSlowly has n clients begin bodies of size bytes.
func (rg *rig) uploadSlowly(t *testing.T, n, size int) (clients []*rawClient) {
	t.Helper()
	for range n {
		c := rg.dial(t)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		c.send(fmt.Sprintf("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\nx", size))
		clients = append(clients, c)
	}
	eventually(t, "all are connected", func() bool { return rg.p.server.connections() >= n })
	return clients
}

// A slow upstream has no more requests in flight than it has connections, however
// many come; the rest are told at once, and another upstream is not touched.
func TestFaultsOfASlowUpstreamAreBounded(t *testing.T) {
	conns, n, slow := longOr(256, 32), longOr(2000, 300), longOr(10*time.Second, time.Second)
	h := &held{open: make(chan struct{})}
	rg, _, _ := pairRig(t, h.script, bounded(conns, 0))
	stop := rg.keepAsking(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	var refused []time.Duration
	served := 0
	clients := make([]*rawClient, n)
	for i := range clients {
		clients[i] = rg.dial(t)
		_ = clients[i].SetDeadline(time.Now().Add(time.Minute))
	}
	for _, c := range clients {
		all.Go(func() {
			start := time.Now()
			c.send(plainGet)
			got := c.answer("GET")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case got == okAnswer:
				served++
			case strings.HasPrefix(got, "HTTP/1.1 503 ") && strings.Contains(got, "\r\nRetry-After: 1\r\n"):
				refused = append(refused, time.Since(start))
			default:
				t.Errorf("got %q", got)
			}
		})
	}
	time.AfterFunc(slow, func() { close(h.open) })
	all.Wait()
	slices.Sort(refused)
	if served != conns || len(refused) != n-conns || h.most.Load() != int64(conns) {
		t.Errorf("%d served, %d refused, %d in flight; want %d, %d, %d", served, len(refused), h.most.Load(), conns, n-conns, conns)
	}
	if quantile(refused, 1) > slow {
		t.Errorf("a refusal waited for the upstream: %s", spread(refused))
	}
	good := stop()
	if quantile(good, .99) > longOr(100*time.Millisecond, time.Second) {
		t.Errorf("the good route suffers: %s", spread(good))
	}
	t.Logf("refused: %s; the good route: %s", spread(refused), spread(good))
}

// leaving is a stage of an exchange at which a client leaves.
type leaving struct {
	name    string
	send    string
	half    bool // the upstream has sent half of an answer
	decided bool // a token was spent
}

var leavings = []leaving{
	{"amid the head", "GET /x HTTP/1.1\r\nHo", false, false},
	{"behind the head", plainGet, false, true},
	{"amid a small body", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf", false, true},
	{"amid a large body", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nhalf", false, true},
	{"amid a chunked body", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nha", false, true},
	{"amid the answer", "GET /half HTTP/1.1\r\nHost: a\r\n\r\n", true, true},
}

// Clients that leave, at whatever stage, take their upstream's connection with
// them within two seconds; their tokens stay spent, and nothing else stays.
func TestFaultsOfClientsThatLeaveLeaveNothing(t *testing.T) {
	const batch = 250
	n := longOr(10_000, 500)
	up := func(p *peer) {
		request, ok := p.take()
		if ok && strings.HasPrefix(request, "GET /half ") {
			p.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.")
		}
		p.ended()
	}
	rg, _ := rawRig(t, int64(n)+1, up, nil)
	before, decided := inHand(t), 0
	var slowest time.Duration
	for done := 0; done < n; done += batch {
		clients := make([]*rawClient, batch)
		for i := range clients {
			l := leavings[i%len(leavings)]
			clients[i] = rg.dial(t)
			clients[i].send(l.send)
			if l.half {
				clients[i].until("half.")
			}
			if l.decided {
				decided++
			}
		}
		eventually(t, "all have been decided about", func() bool { return rg.tally().decisions == decided })
		start := time.Now()
		for _, c := range clients {
			c.Close()
		}
		eventually(t, "all connections are gone", func() bool {
			return rg.p.server.connections() == 0 && rg.p.rules.Load().upstreams["api"].openConns() == 0
		})
		slowest = max(slowest, time.Since(start))
	}
	if slowest > 2*time.Second {
		t.Errorf("it took %v until the upstream's connections were gone", slowest)
	}
	before.wantNoMore(t)
	c := rg.dial(t)
	c.send("GET /half HTTP/1.1\r\nHost: a\r\n\r\n")
	if got, want := c.until("half."), fmt.Sprintf(`;r=%d;`, n-decided); !strings.Contains(got, want) {
		t.Errorf("got %q, want %s: spent tokens stay spent", got, want)
	}
	t.Logf("%d clients left, %d of them decided about; gone after %v at most; in hand before and after: %v, %v", n, decided, slowest, before, inHand(t))
}

// A client that reads slowly, or no more, holds back the upstream, not memory;
// one that takes nothing for write_timeout is cut off.
func TestFaultsOfAClientThatStopsReading(t *testing.T) {
	const size = 100 << 20
	const stalled = 500 * time.Millisecond // write_timeout; twice that at most, see clientConn.send
	var written atomic.Int64
	ended := make(chan error, 1)
	rg, _ := rawRig(t, 10, func(p *peer) {
		p.take()
		p.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size))
		for range size / len(rawPiece) {
			n, err := io.WriteString(p, rawPiece)
			if written.Add(int64(n)); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}, func(c *Config) { bypassing(c); c.Limits.WriteTimeout = longOr(10*time.Second, stalled) })
	before := heapBytes()
	c := rg.dial(t)
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	c.send(plainGet)
	c.head()
	buf := make([]byte, 1<<10)
	for range longOr(30, 10) { // 1 KB a second, or somewhat more
		if _, err := io.ReadFull(c.r, buf); err != nil {
			t.Fatal(err)
		}
		time.Sleep(longOr(time.Second, 20*time.Millisecond)) // the case itself
	}
	if got := written.Load(); got > size/4 {
		t.Errorf("the upstream could send %d bytes to a client that read %d", got, longOr(30, 10)<<10)
	}
	t.Logf("the client read %d KiB; the upstream could send %d KiB; the heap grew by %d KiB", longOr(30, 10), written.Load()>>10, (heapBytes()-before)>>10)
	if grown := heapBytes() - before; grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	start := time.Now()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the upstream could send everything")
		}
	case <-time.After(longOr(30*time.Second, 5*time.Second)):
		t.Error("a client that takes nothing keeps its upstream")
	}
	t.Logf("cut off %v after the last read", time.Since(start))
	eventually(t, "no connection is left", func() bool {
		return rg.p.server.connections() == 0 && rg.p.rules.Load().upstreams["api"].openConns() == 0
	})
}
