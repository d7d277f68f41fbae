package proxy

import "sync"

// http2All is the one http2Server that takes new connections, and those before it
// that still have some: what bounds a connection of HTTP/2 is fixed when it begins.
type http2All struct {
	server *server

	mu   sync.Mutex // guards what follows
	now  *http2Server
	live map[*http2Server]int // how many connections each has
}

func newHTTP2(s *server) *http2All {
	return &http2All{server: s, now: newHTTP2Server(s), live: map[*http2Server]int{}}
}

// renew lets new connections be bounded by the limits of now.
func (a *http2All) renew() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.now.limits != *a.server.limits() {
		a.now = newHTTP2Server(a.server)
	}
}

// serve answers requests until c ends and no handler works for it any more.
func (a *http2All) serve(c *clientConn) {
	a.mu.Lock()
	h := a.now
	a.live[h]++
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.live[h]--; a.live[h] == 0 {
			delete(a.live, h)
		}
	}()
	h.serve(c)
}

// goAway tells all connections to end after the streams they have. A connection
// that comes later must be told again.
func (a *http2All) goAway() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for h := range a.live {
		h.goAway()
	}
}
