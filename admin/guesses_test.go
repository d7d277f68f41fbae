package admin

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// local is a peer on this machine.
var local = peerAt("127.0.0.1")

func peerAt(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip)} }

// pipeFrom is pipe from an address of the test's choice.
func (g *gateway) pipeFrom(t *testing.T, peer net.Addr, raw string) string {
	t.Helper()
	client, server := net.Pipe()
	go func() { _ = g.http.ServeConn(connFrom{server, peer}); _ = server.Close() }()
	return talk(t, client, raw)
}

// inBubble runs test on a gateway that has both tokens, where time is made up.
func inBubble(t *testing.T, test func(t *testing.T, g *gateway)) {
	t.Helper()
	start(t, setup{}).do(t, "GET", "/livez") // fasthttp's clock must start outside the bubble
	synctest.Test(t, func(t *testing.T) {
		test(t, newGateway(t, setup{config: Config{Token: adminToken, AllowToken: allowToken}}))
	})
}

// guess sends a token from peer and returns the answer and how long it took.
func (g *gateway) guess(t *testing.T, peer net.Addr, token string) (answer string, took time.Duration) {
	t.Helper()
	began := time.Now()
	answer = g.pipeFrom(t, peer, request("GET", "/admin/stats", "Authorization: Bearer "+token))
	return answer, time.Since(began)
}

func TestEleventhWrongTokenWaitsASecondAndARightOneDoesNot(t *testing.T) {
	inBubble(t, func(t *testing.T, g *gateway) {
		for i := range freeGuesses {
			if answer, took := g.guess(t, local, fmt.Sprint("wrong", i)); answer[9:12] != "401" || took != 0 {
				t.Errorf("guess %d: got %.12q after %v, want 401 at once", i+1, answer, took)
			}
		}
		if answer, took := g.guess(t, local, "wrong"); answer[9:12] != "401" || took != guessPause {
			t.Errorf("the eleventh: got %.12q after %v, want 401 after %v", answer, took, guessPause)
		}
		// A second brought one token back: the twelfth is free, the next waits.
		var waiting sync.WaitGroup
		for range 5 {
			waiting.Go(func() { g.guess(t, local, "wrong") })
		}
		synctest.Wait()
		if n := g.guesses.waiting.Load(); n != 4 {
			t.Errorf("%d guesses are waiting, want 4", n)
		}
		if answer, took := g.guess(t, local, adminToken); answer[9:12] != "200" || took != 0 {
			t.Errorf("the right one: got %.12q after %v, want 200 at once", answer, took)
		}
		waiting.Wait()
	})
}

func TestAddressesGuessForThemselves(t *testing.T) {
	inBubble(t, func(t *testing.T, g *gateway) {
		for _, c := range []struct{ guesser, other, same string }{
			{"192.0.2.1", "192.0.2.2", "192.0.2.1"},
			{"2001:db8::1", "2001:db8:0:1::1", "2001:db8::2"}, // a site's IPv6 addresses are one
		} {
			for range freeGuesses {
				g.guess(t, peerAt(c.guesser), "wrong")
			}
			if _, took := g.guess(t, peerAt(c.other), "wrong"); took != 0 {
				t.Errorf("%s: answered after %v, want at once", c.other, took)
			}
			if _, took := g.guess(t, peerAt(c.same), "wrong"); took != guessPause {
				t.Errorf("%s: answered after %v, want %v", c.same, took, guessPause)
			}
		}
	})
}

func TestGuessesAtBothDoorsAreCountedTogetherAndComeBack(t *testing.T) {
	inBubble(t, func(t *testing.T, g *gateway) {
		wrong := request("POST", "/allow?user_id=a", "Authorization: Bearer wrong")
		for range freeGuesses {
			g.pipeFrom(t, local, wrong)
		}
		if _, took := g.guess(t, local, "wrong"); took != guessPause {
			t.Errorf("answered after %v, want %v", took, guessPause)
		}
		time.Sleep(freeGuesses * time.Second)
		for i := range freeGuesses {
			if _, took := g.guess(t, local, "wrong"); took != 0 {
				t.Errorf("guess %d after ten seconds of peace: answered after %v, want at once", i+1, took)
			}
		}
	})
}

func TestCrowdOfGuessersIsTurnedAway(t *testing.T) {
	inBubble(t, func(t *testing.T, g *gateway) {
		for range freeGuesses {
			g.guess(t, local, "wrong")
		}
		var waiting sync.WaitGroup
		for range maxGuessers {
			waiting.Go(func() {
				if answer, took := g.guess(t, local, "wrong"); answer[9:12] != "401" || took != guessPause {
					t.Errorf("in the crowd: got %.12q after %v", answer, took)
				}
			})
		}
		synctest.Wait()
		answer, took := g.guess(t, local, "wrong")
		if answer[9:12] != "429" || took != 0 || field(answer, "Retry-After") != "1" || !strings.HasSuffix(answer, `{"error":"too many wrong tokens from this address: wait before the next"}`) {
			t.Errorf("got %q after %v, want 429 at once", answer, took)
		}
		for _, peer := range []net.Addr{local, peerAt("192.0.2.1")} {
			if answer, took := g.guess(t, peer, adminToken); answer[9:12] != "200" || took != 0 {
				t.Errorf("the right token from %v: got %.12q after %v, want 200 at once", peer, answer, took)
			}
		}
		if answer := g.pipeFrom(t, local, request("GET", "/livez")); answer[9:12] != "200" {
			t.Errorf("what takes no token: got %.12q, want 200", answer)
		}
		waiting.Wait()
		if answer, _ := g.guess(t, local, adminToken); answer[9:12] != "200" {
			t.Errorf("after the crowd: got %.12q, want 200", answer)
		}
	})
}

func TestShutdownDoesNotWaitForGuessers(t *testing.T) {
	inBubble(t, func(t *testing.T, g *gateway) {
		for range freeGuesses {
			g.guess(t, local, "wrong")
		}
		took := make(chan time.Duration, 1)
		go func() {
			_, d := g.guess(t, local, "wrong")
			took <- d
		}()
		synctest.Wait()
		if err := g.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if d := <-took; d >= guessPause {
			t.Errorf("the guesser was answered after %v, want at once", d)
		}
	})
}

// The same once with real sockets and real time.
func TestWrongTokensAreSlowOnTheWire(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken}})
	for range freeGuesses {
		g.do(t, "GET", "/admin/stats")
	}
	answered := make(chan time.Duration, 1)
	go func() {
		began := time.Now()
		g.do(t, "GET", "/admin/stats")
		answered <- time.Since(began)
	}()
	eventually(t, "the guess waits", func() bool { return g.guesses.waiting.Load() == 1 })
	began := time.Now()
	if status, _ := g.do(t, "GET", "/admin/stats", "Authorization: Bearer "+adminToken); status != "200" || time.Since(began) > guessPause/2 {
		t.Errorf("the right token: got %s after %v", status, time.Since(began))
	}
	if took := <-answered; took < guessPause/2 {
		t.Errorf("the wrong token was answered after %v, want about %v", took, guessPause)
	}
}
