package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// closesSecond answers the first request of a connection and closes it when
// the second has come.
func closesSecond(p *peer) {
	if _, ok := p.take(); !ok {
		return
	}
	p.send(answerOK)
	p.take()
}

// countRetries gives u metrics.
func countRetries(u *upstream) *metrics.Counter {
	u.metrics = newUpstreamMetrics(u.name)
	return u.metrics.retries
}

func TestWhatIsSentAgainAfterAUsedConnectionWasClosed(t *testing.T) {
	tests := []struct {
		name       string
		out        outgoing
		retries    int
		seen       int // requests that arrive, the first answered one apart
		wantClosed bool
	}{
		{"GET", outgoing{head: []byte(getHead), idempotent: true}, 1, 2, false},
		{"GET without retries", outgoing{head: []byte(getHead), idempotent: true}, 0, 1, true},
		{"POST", outgoing{head: []byte(postHead)}, 1, 1, true},
		{"POST of a long body", outgoing{head: []byte("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"), body: strings.NewReader("abc"), bodyLen: 3}, 5, 1, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startRaw(t, closesSecond)
			u := upstreamTo(t, s.target())
			u.retries = tt.retries
			retried := countRetries(u)
			mustAnswer(t, u, "ok")
			status, _, err := roundTrip(u, &tt.out)
			if tt.wantClosed {
				wantFault(t, err, faultClosed)
			} else if status != 200 || err != nil {
				t.Errorf("got %d, %v", status, err)
			}
			if got := len(s.recorded()) - 1; got != tt.seen || int(retried.Get()) != tt.seen-1 {
				t.Errorf("the upstream saw it %d times, %d counted; want %d", got, retried.Get(), tt.seen)
			}
		})
	}
}

// On a fresh connection there is no innocent reason to close.
func TestGetOnAFreshConnectionIsNotSentAgain(t *testing.T) {
	s := startRaw(t, func(p *peer) { p.take() })
	u := upstreamTo(t, s.target())
	u.retries = 5
	_, _, err := roundTrip(u, &outgoing{head: []byte(getHead), idempotent: true})
	wantFault(t, err, faultClosed)
	if got := len(s.recorded()); got != 1 {
		t.Errorf("it was sent %d times, want once", got)
	}
}

func TestNothingIsSentAgainAfterAnAnswerBegan(t *testing.T) {
	for name, script := range map[string]func(p *peer){
		"one byte":     func(p *peer) { p.send("H") },
		"nonsense":     func(p *peer) { p.send("SSH-2.0\r\n") },
		"interim":      func(p *peer) { p.send("HTTP/1.1 103 Early Hints\r\n\r\n") },
		"too slow":     func(p *peer) { p.ended() },
		"server error": func(p *peer) { p.send("HTTP/1.1 503 Down\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok") },
		"too many":     func(p *peer) { p.send("HTTP/1.1 429 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok") },
		"cut body":     func(p *peer) { p.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no") },
	} {
		t.Run(name, func(t *testing.T) {
			second := func(p *peer) {
				if _, ok := p.take(); !ok {
					return
				}
				p.send(answerOK)
				p.take()
				script(p)
			}
			a, b := startRaw(t, second), startRaw(t, second)
			u := upstreamTo(t, a.target(), b.target())
			u.retries, u.responseTimeout = 5, 200*time.Millisecond
			mustAnswer(t, u, "ok")
			mustAnswer(t, u, "ok")
			_, _, _ = roundTrip(u, &outgoing{head: []byte(getHead), idempotent: true})
			if got := len(a.recorded()) + len(b.recorded()); got != 3 {
				t.Errorf("it was sent %d times, want once", got-2)
			}
		})
	}
}

// refusing is a target that refuses connections. Its port stays bound, or
// somebody else might get it.
func refusing(t *testing.T) string {
	t.Helper()
	_, address := bound(t)
	return "http://" + address
}

// bound is a socket with a port of its own, on which nobody listens.
func bound(t testing.TB) (fd int, address string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, fmt.Sprintf("127.0.0.1:%d", at.(*syscall.SockaddrInet4).Port)
}

func TestAnyRequestGoesElsewhereIfThereIsNoConnection(t *testing.T) {
	s := startRaw(t, always(answerOK))
	for _, head := range []string{getHead, postHead} {
		u := upstreamTo(t, refusing(t), s.target())
		u.retries = 1
		retried := countRetries(u)
		for range 2 {
			out := &outgoing{head: []byte(head)}
			if status, _, err := roundTrip(u, out); status != 200 || err != nil || out.target != s.target() {
				t.Errorf("got %d, %v by %s", status, err, out.target)
			}
		}
		if retried.Get() != 1 {
			t.Errorf("got %d retries, want 1", retried.Get())
		}
	}
	if got := len(s.recorded()); got != 4 {
		t.Errorf("%d requests arrived, want 4", got)
	}
}

func TestRetriesBoundTheAttempts(t *testing.T) {
	for retries, want := range []uint64{0, 1, 2, 2} { // each target is tried once
		u := upstreamTo(t, refusing(t), refusing(t), refusing(t))
		u.retries = retries
		retried := countRetries(u)
		_, _, err := roundTrip(u, &outgoing{head: []byte(getHead), idempotent: true})
		wantFault(t, err, faultConnect)
		if retries < 3 && retried.Get() != want {
			t.Errorf("retries %d: got %d", retries, retried.Get())
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "connect to http://127.0.0.1:") {
			t.Errorf("got %v", err)
		}
	}
}

func TestBusyTargetIsPassedOver(t *testing.T) {
	g := startGate(t, 0)
	s := startRaw(t, always(answerOK))
	u := upstreamTo(t, g.target(), s.target())
	u.retries, u.maxConns = 1, 1
	held := make(chan error, 2)
	go func() {
		for range 2 { // one of them meets the gate
			_, _, err := roundTrip(u, &outgoing{head: []byte(postHead)})
			held <- err
		}
	}()
	eventually(t, "the gate holds one", func() bool { return len(g.recorded()) == 1 })
	for range 4 {
		if status, _, err := roundTrip(u, &outgoing{head: []byte(postHead)}); status != 200 || err != nil {
			t.Errorf("got %d, %v", status, err)
		}
	}
	if u.ejectedTargets() != 0 {
		t.Error("a target was ejected for being busy")
	}
	g.open <- true
	for range 2 {
		if err := <-held; err != nil {
			t.Error(err)
		}
	}
}

// Where every idle connection was closed unseen, the retry must not take the
// next of them.
func TestRetryUsesANewConnectionEvenAtTheBound(t *testing.T) {
	s := startRaw(t, closesSecond)
	u := upstreamTo(t, s.target())
	u.maxConns, u.retries = 3, 1
	ins := make([]incoming, 3)
	for i := range ins {
		if err := u.do(&outgoing{head: []byte(getHead)}, &ins[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range ins {
		ins[i].buffered()
		ins[i].finish()
	}
	if u.idleConns() != 3 {
		t.Fatalf("%d idle connections, want 3", u.idleConns())
	}
	status, _, err := roundTrip(u, &outgoing{head: []byte(getHead), idempotent: true})
	if status != 200 || err != nil || s.connections() != 4 {
		t.Errorf("got %d, %v over %d connections; want a fourth", status, err, s.connections())
	}
}

// The upstream closes connections at random moments, but never amid a request:
// against that nobody can do anything. No POST fails or arrives twice.
func TestConnectionsThatCloseAtRandomHarmNoPost(t *testing.T) {
	a := newAuthority(t)
	secure := serveRaw(t, a.listen(t, a.issue(t, "server")), always(answerOK))
	plain := startRaw(t, always(answerOK))
	for s, u := range map[*rawServer]*upstream{secure: a.upstream(t, secure), plain: upstreamTo(t, plain.target())} {
		const workers, posts = 4, 200
		var quiet sync.RWMutex // held for reading while a request is on its way
		var all sync.WaitGroup
		for w := range workers {
			all.Go(func() {
				for n := range posts {
					quiet.RLock()
					head := fmt.Appendf(nil, "POST /%d-%d HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", w, n)
					status, _, err := roundTrip(u, &outgoing{head: head})
					quiet.RUnlock()
					if status != 200 || err != nil {
						t.Errorf("got %d, %v", status, err)
					}
				}
			})
		}
		done := make(chan bool)
		go func() {
			defer close(done)
			for len(s.recorded()) < workers*posts*9/10 && !t.Failed() {
				quiet.Lock()
				s.closeSome()
				quiet.Unlock()
			}
		}()
		all.Wait()
		<-done
		seen := map[string]int{}
		for _, r := range s.recorded() {
			seen[r]++
		}
		if len(seen) != workers*posts || len(s.recorded()) != workers*posts {
			t.Errorf("got %d requests, %d different; want %d", len(s.recorded()), len(seen), workers*posts)
		}
		if s.connections() < 10 {
			t.Errorf("got %d connections: hardly any was closed", s.connections())
		}
	}
}

// closeSome closes each connection with a probability of a quarter.
func (s *rawServer) closeSome() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if rand.N(4) == 0 {
			_ = c.Close()
		}
	}
}
