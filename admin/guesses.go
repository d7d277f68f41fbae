package admin

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

const (
	freeGuesses = 10          // wrong tokens from one address that are answered at once
	guessPause  = time.Second // what each beyond waits for its answer
	maxGuessers = 256         // who may wait at the same time
)

// guesses slows down those who try out tokens, by address, in buckets like any
// other. A right token never waits, or a guesser could lock everyone out that
// comes from the same address; while maxGuessers are waiting, the wrong ones of an
// address that has none left are refused at once.
type guesses struct {
	limiter *limiter.Limiter
	waiting *atomic.Int64
}

func newGuesses() guesses {
	c := limiter.DefaultConfig()
	rate, _ := limiter.ParseRate("1/s")
	c.Default = limiter.ResourceConfig{Capacity: freeGuesses, RefillRate: rate}
	return guesses{limiter.New(c, limiter.NewMemoryStore()), new(atomic.Int64)}
}

// crowded says that there is no room for another of peer to wait.
func (g guesses) crowded(peer netip.Addr) bool {
	return g.waiting.Load() >= maxGuessers && g.ask(peer, 0).TokensLeft() < 1
}

// slowDown notes a wrong token and, if there were many, waits, or until stop.
func (g guesses) slowDown(peer netip.Addr, stop <-chan struct{}) {
	if g.ask(peer, 1).Allowed {
		return
	}
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	select {
	case <-time.After(guessPause):
	case <-stop:
	}
}

func (g guesses) ask(peer netip.Addr, cost int64) *limiter.Decision {
	user := []byte("unknown")
	if client, err := peer.Prefix(min(64, peer.BitLen())); err == nil { // a site's IPv6 addresses are one
		user = client.AppendTo(nil)
	}
	d := new(limiter.Decision)
	_ = g.limiter.Decide(&limiter.Request{User: user, Resource: []byte("token"), Cost: cost}, d) // memory doesn't fail
	return d
}
