package proxy

import (
	"fmt"
	"io"
	"slices"
	"testing"
)

// startNamed starts servers that answer with their number, and an upstream of them.
func startNamed(t *testing.T, n int) ([]*rawServer, *upstream) {
	t.Helper()
	var servers []*rawServer
	var urls []string
	for i := range n {
		s := startRaw(t, always(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", i)))
		servers, urls = append(servers, s), append(urls, s.target())
	}
	return servers, upstreamTo(t, urls...)
}

// shares counts who answered n requests, one after the other.
func shares(t *testing.T, u *upstream, n int) []int {
	t.Helper()
	got := make([]int, len(u.targets))
	for range n {
		status, body, err := roundTrip(u, &outgoing{head: []byte(getHead)})
		if status != 200 || err != nil {
			t.Fatalf("got %d, %v", status, err)
		}
		got[body[0]-'0']++
	}
	return got
}

func TestRoundRobinGivesEqualSharesOverOneConnectionEach(t *testing.T) {
	servers, u := startNamed(t, 3)
	if got := shares(t, u, 30); !slices.Equal(got, []int{10, 10, 10}) {
		t.Errorf("got shares %v, want 10 each", got)
	}
	for i, s := range servers {
		if s.connections() != 1 {
			t.Errorf("server %d: got %d connections, want 1", i, s.connections())
		}
	}
	if u.openConns() != 3 || u.idleConns() != 3 {
		t.Errorf("got %d open, %d idle", u.openConns(), u.idleConns())
	}
}

// The next one must not get the share of the one that is out.
func TestShareOfAnEjectedTargetIsDivided(t *testing.T) {
	for _, least := range []bool{false, true} {
		_, u := startNamed(t, 4)
		u.leastConn = least
		u.targets[1].eject("test")
		if got := shares(t, u, 30); !slices.Equal(got, []int{10, 0, 10, 10}) {
			t.Errorf("least_conn %t: got shares %v, want 10 each but for the second", least, got)
		}
	}
}

func TestLeastConnAvoidsTheBusyTarget(t *testing.T) {
	_, u := startNamed(t, 3)
	u.leastConn = true
	var held [4]incoming
	for i := range held {
		if err := u.do(&outgoing{head: []byte(getHead)}, &held[i]); err != nil {
			t.Fatal(err)
		}
	}
	busiest := 0
	for i, target := range u.targets {
		if target.load() > u.targets[busiest].load() {
			busiest = i
		}
	}
	if got := u.targets[busiest].load(); got != 2 {
		t.Fatalf("four requests over three targets: one has %d, want 2", got)
	}
	if got := shares(t, u, 20); got[busiest] != 0 || got[0]+got[1]+got[2] != 20 || slices.Min(append(got[:busiest:busiest], got[busiest+1:]...)) != 10 {
		t.Errorf("got shares %v, want 10 each but none for %d", got, busiest)
	}
	for i := range held {
		if _, err := io.ReadAll(&held[i]); err != nil {
			t.Fatal(err)
		}
		held[i].finish()
	}
	if got := shares(t, u, 30); !slices.Equal(got, []int{10, 10, 10}) {
		t.Errorf("ties: got shares %v, want 10 each", got)
	}
}

func TestEveryOf64TargetsIsChosen(t *testing.T) {
	var urls []string
	for i := range maxTargets {
		urls = append(urls, fmt.Sprintf("http://10.0.0.%d", i))
	}
	u := upstreamTo(t, urls...)
	seen := map[*target]int{}
	for range 2 * maxTargets {
		seen[u.pick(0)]++
	}
	if len(seen) != maxTargets || seen[nil] > 0 {
		t.Errorf("%d targets were chosen, want %d", len(seen), maxTargets)
	}
	if got := u.pick(^uint64(0) &^ (1 << 63)); got != u.targets[63] {
		t.Errorf("all but the last were tried: got %v", got)
	}
	if got := u.pick(^uint64(0)); got != nil {
		t.Errorf("all were tried: got %v", got)
	}
	if _, err := newUpstream(upstreamOptions{urls: append(urls, "http://10.0.1.0")}); err == nil {
		t.Error("65 targets are accepted")
	}
}

func TestChoosingAmongTargetsAllocatesNothing(t *testing.T) {
	for _, least := range []bool{false, true} {
		u := upstreamTo(t, startFixed(t, answerOK).urls[0], startFixed(t, answerOK).urls[0])
		u.leastConn = least
		out, in := &outgoing{head: []byte(getHead)}, new(incoming)
		allocs := testing.AllocsPerRun(500, func() {
			if err := exchangeInto(u, out, in); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("least_conn %t: got %v allocations a request, want 0", least, allocs)
		}
	}
}

func TestFailureOfOneUpstreamTouchesNoOther(t *testing.T) {
	blocked := startRaw(t, func(p *peer) { p.take(); p.ended() })
	s := startRaw(t, always(answerOK))
	bad, good := upstreamTo(t, blocked.target()), upstreamTo(t, s.target())
	bad.maxConns = 4
	done := make(chan error)
	for range bad.maxConns {
		go func() {
			_, _, err := roundTrip(bad, &outgoing{head: []byte(getHead)})
			done <- err
		}()
	}
	eventually(t, "all connections are in use", func() bool { return blocked.connections() == 4 && len(blocked.recorded()) == 4 })
	_, _, err := roundTrip(bad, &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultBusy)
	for range 50 {
		mustAnswer(t, good, "ok")
	}
	blocked.stop()
	for range bad.maxConns {
		wantFault(t, <-done, faultClosed)
	}
}
