package proxy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// gate is an upstream of one connection whose answers wait for open.
type gate struct {
	*rawServer
	u    *upstream
	open chan bool
	done chan error
}

func startGate(t *testing.T, wait time.Duration) *gate {
	t.Helper()
	g := &gate{open: make(chan bool, 100), done: make(chan error, 100)}
	g.rawServer = startRaw(t, func(p *peer) {
		for {
			if _, ok := p.take(); !ok {
				return
			}
			if !<-g.open {
				return
			}
			p.send(answerOK)
		}
	})
	t.Cleanup(func() { close(g.open) })
	g.u = upstreamTo(t, g.target())
	g.u.maxConns, g.u.queueTimeout = 1, wait
	return g
}

// request sends one with this path, and returns when it has the connection or
// is number queued in the queue.
func (g *gate) request(t *testing.T, path string, queued int) {
	t.Helper()
	go func() {
		_, _, err := roundTrip(g.u, &outgoing{head: fmt.Appendf(nil, "GET %s HTTP/1.1\r\n\r\n", path)})
		g.done <- err
	}()
	eventually(t, path+" waits", func() bool { return g.u.targets[0].load() == queued+1 })
}

func (g *gate) paths() []string {
	var paths []string
	for _, r := range g.recorded() {
		paths = append(paths, strings.Fields(r)[1])
	}
	return paths
}

func TestQueueIsFirstComeFirstServed(t *testing.T) {
	g := startGate(t, 10*time.Second)
	want := []string{"/0"}
	g.request(t, "/0", 0)
	g.u.maxConns = 20 // of the queue; that of connections is full all the same
	g.u.targets[0].mu.Lock()
	g.u.targets[0].open += 19
	g.u.targets[0].mu.Unlock()
	for i := range 19 {
		path := fmt.Sprintf("/%d", i+1)
		want = append(want, path)
		go func() {
			_, _, err := roundTrip(g.u, &outgoing{head: fmt.Appendf(nil, "GET %s HTTP/1.1\r\n\r\n", path)})
			g.done <- err
		}()
		eventually(t, path+" waits", func() bool { return g.queued() == i+1 })
	}
	for range want {
		g.open <- true
		if err := <-g.done; err != nil {
			t.Fatal(err)
		}
	}
	if got := g.paths(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if g.connections() != 1 {
		t.Errorf("got %d connections, want 1", g.connections())
	}
}

func (g *gate) queued() int {
	t := g.u.targets[0]
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waiting.Len()
}

func TestWaitInTheQueueIsBounded(t *testing.T) {
	const wait = 100 * time.Millisecond
	g := startGate(t, wait)
	g.request(t, "/held", 0)
	start := time.Now()
	_, _, err := roundTrip(g.u, &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultBusy)
	if took := time.Since(start); took < wait || took > 2*wait {
		t.Errorf("it took %v, want %v", took, wait)
	}
	if g.queued() != 0 {
		t.Errorf("%d still wait", g.queued())
	}
	g.open <- true
	if err := <-g.done; err != nil {
		t.Fatal(err)
	}
	g.open <- true
	mustAnswer(t, g.u, "ok")
	if g.u.openConns() != 1 || g.connections() != 1 {
		t.Errorf("got %d open, %d connections; want 1", g.u.openConns(), g.connections())
	}
}

func TestRequestsBeyondTheQueueFailAtOnce(t *testing.T) {
	g := startGate(t, 10*time.Second)
	g.request(t, "/held", 0)
	g.request(t, "/queued", 1)
	start := time.Now()
	_, _, err := roundTrip(g.u, &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultBusy)
	if took := time.Since(start); took > 50*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	for range 2 {
		g.open <- true
		if err := <-g.done; err != nil {
			t.Error(err)
		}
	}
}

// A connection that can't be used again makes room for the next in the queue too.
func TestClosedConnectionLetsTheNextDial(t *testing.T) {
	release := make(chan bool)
	s := startRaw(t, func(p *peer) {
		p.take()
		<-release
		p.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
	})
	u := upstreamTo(t, s.target())
	u.maxConns, u.queueTimeout = 2, 10*time.Second
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if status, _, err := roundTrip(u, &outgoing{head: []byte(postHead)}); status != 200 || err != nil {
				t.Errorf("got %d, %v", status, err)
			}
		})
	}
	eventually(t, "two wait", func() bool { return u.targets[0].load() == 4 })
	close(release)
	all.Wait()
	if s.connections() != 4 || u.openConns() != 0 {
		t.Errorf("got %d connections, %d open; want 4, 0", s.connections(), u.openConns())
	}
}

func TestWhoWaitsLearnsThatTheUpstreamIsClosed(t *testing.T) {
	g := startGate(t, 10*time.Second)
	g.request(t, "/held", 0)
	g.request(t, "/queued", 1)
	g.u.close()
	if err := <-g.done; !errors.Is(err, errClosed) {
		t.Errorf("got %v, want %v", err, errClosed)
	}
	g.open <- true
	if err := <-g.done; err != nil {
		t.Error(err)
	}
	if g.u.openConns() != 0 {
		t.Errorf("%d connections are open", g.u.openConns())
	}
}

// Under steady overload nobody is forgotten and no room is lost.
func TestQueueUnderLoadLosesNothing(t *testing.T) {
	s := startRaw(t, func(p *peer) {
		for n := 1; ; n++ {
			if _, ok := p.take(); !ok || n%7 == 0 {
				return
			}
			p.send(answerOK)
		}
	})
	u := upstreamTo(t, s.target())
	u.maxConns, u.queueTimeout = 3, time.Millisecond
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			for range 100 {
				_, _, err := roundTrip(u, &outgoing{head: []byte(getHead)})
				if f := faultOf(err); err != nil && f != faultBusy && f != faultClosed {
					t.Errorf("got %v", err)
				}
			}
		})
	}
	all.Wait()
	if u.openConns() > u.maxConns || u.openConns() != u.idleConns() || u.targets[0].load() != 0 {
		t.Errorf("got %d open, %d idle, load %d", u.openConns(), u.idleConns(), u.targets[0].load())
	}
}
