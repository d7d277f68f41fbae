package admin

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWrongTokensWaitAndRightOnesDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, stop := newGuesses(), make(chan struct{})
		attacker, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		began := time.Now()
		for range freeGuesses {
			g.slowDown(attacker, stop)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the first wrong tokens waited %v", took)
		}
		var all sync.WaitGroup
		for range maxGuessers {
			all.Go(func() { g.slowDown(attacker, stop) })
		}
		synctest.Wait()
		if !g.crowded(attacker) || g.crowded(other) {
			t.Errorf("crowded: %v for the attacker, %v for another", g.crowded(attacker), g.crowded(other))
		}
		all.Wait()
		if took := time.Since(began); took != guessPause {
			t.Errorf("wrong tokens waited %v, want %v", took, guessPause)
		}
		if g.crowded(attacker) {
			t.Error("crowded with nobody waiting")
		}
		all.Go(func() { g.slowDown(attacker, stop) })
		synctest.Wait()
		close(stop)
		all.Wait()
		if took := time.Since(began); took != guessPause {
			t.Errorf("a shutdown waits for a guesser: %v", took)
		}
	})
}

func TestIPv6GuessersOfOneSiteAreOne(t *testing.T) {
	g := newGuesses()
	for i := range freeGuesses {
		g.ask(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i)), 1)
	}
	if g.ask(netip.MustParseAddr("2001:db8::ffff:1"), 1).Allowed {
		t.Error("another address of the same /64 may go on")
	}
	if !g.ask(netip.MustParseAddr("2001:db8:0:1::1"), 1).Allowed {
		t.Error("another site has to wait")
	}
}

func TestRightTokenIsAnsweredWhileOthersWait(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken}})
	wrong := func() { g.do(t, "GET", "/admin/stats", "Authorization: Bearer wrong") }
	for range freeGuesses {
		wrong()
	}
	began := time.Now()
	var guesser sync.WaitGroup
	guesser.Go(wrong)
	eventually(t, "a guesser waits", func() bool { return g.guesses.waiting.Load() == 1 })
	if status, body := g.do(t, "GET", "/admin/stats", "Authorization: Bearer "+adminToken); status != "200" {
		t.Errorf("got %s %s", status, body)
	}
	if g.guesses.waiting.Load() != 1 {
		t.Error("the right token waited as long as the wrong one")
	}
	guesser.Wait()
	if took := time.Since(began); took < guessPause {
		t.Errorf("the wrong token waited only %v", took)
	}
	g.guesses.waiting.Store(maxGuessers)
	defer g.guesses.waiting.Store(0)
	answer := g.send(t, request("GET", "/admin/stats", "Authorization: Bearer "+adminToken))
	if answer[9:12] == "429" && field(answer, "Retry-After") != "1" {
		t.Errorf("got %s", answer)
	}
}

func TestNoCORS(t *testing.T) {
	g := start(t, setup{})
	for _, target := range []string{"/admin/stats", "/allow?user_id=a", "/admin/user/a/reset"} {
		answer := g.send(t, request("OPTIONS", target, "Origin: https://evil.example", "Access-Control-Request-Method: POST"))
		if status := answer[9:12]; status != "405" && status != "403" || strings.Contains(answer, "Access-Control") {
			t.Errorf("%s: got %s", target, answer)
		}
		for _, method := range []string{"POST", "PUT", "DELETE"} {
			if answer := g.send(t, request(method, target, "Origin: https://evil.example")); answer[9] != '4' {
				t.Errorf("%s %s from a web page: got %s", method, target, answer)
			}
		}
	}
}

// TestFloodAddsNoSeriesAndNoMemory sends what strangers can: any path, method,
// user and token.
func TestFloodAddsNoSeriesAndNoMemory(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken, AllowToken: allowToken}, started: true})
	g.strangers = true
	flood := func(n int) {
		r := rand.New(rand.NewPCG(1, uint64(n)))
		for range n {
			word := fmt.Sprintf("%x", r.Uint64())
			switch r.IntN(4) {
			case 0:
				g.do(t, "GET", "/"+word)
			case 1:
				g.do(t, strings.ToUpper("x"+word), "/admin/user/"+word)
			case 2:
				g.do(t, "POST", "/allow?resource="+word+"&user_id="+word, "Authorization: Bearer "+word)
			default:
				g.do(t, "PUT", "/admin/resources/"+word, "X-Request-Id: "+word)
			}
		}
	}
	flood(200)
	g.log.mu.Lock()
	g.log.b = bytes.Buffer{}
	g.log.mu.Unlock()
	before, heap := g.series(t), heapInUse()
	flood(3000)
	g.log.mu.Lock() // the log that the test keeps is not the gateway's memory
	g.log.b = bytes.Buffer{}
	g.log.mu.Unlock()
	if after := g.series(t); !slices.Equal(before, after) {
		t.Errorf("series before: %d, after: %d", len(before), len(after))
	}
	if grown := heapInUse() - heap; grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// series are the names, with labels, of all that /metrics shows.
func (g *gateway) series(t *testing.T) (names []string) {
	t.Helper()
	_, body := g.do(t, "GET", "/metrics")
	for line := range strings.SplitSeq(body, "\n") {
		if name, _, ok := strings.Cut(line, " "); ok && !strings.HasPrefix(line, "#") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
