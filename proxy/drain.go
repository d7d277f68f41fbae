package proxy

import (
	"context"
	"fmt"
	"time"
)

// isEmpty says whether there is neither a listener nor a connection left.
func (s *server) isEmpty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) == 0 && len(s.listeners) == 0
}

// acceptGrace is how long a listener is still asked for connections that wait in
// its queue: closing it would reset them.
const acceptGrace = 20 * time.Millisecond

// shutdown stops accepting, lets requests in flight end and idle connections
// go, and closes what is left when ctx ends, whose error it returns then.
func (s *server) shutdown(ctx context.Context) error {
	defer s.stopOnce.Do(func() { close(s.stopped) })
	s.mu.Lock()
	s.stopping.Store(true)
	for l := range s.listeners {
		if timed, ok := l.(interface{ SetDeadline(time.Time) error }); !ok || timed.SetDeadline(time.Now().Add(acceptGrace)) != nil {
			_ = l.Close()
		}
	}
	s.mu.Unlock()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		s.endIdle()
		if s.http2 != nil {
			s.http2.goAway()
		}
		if s.isEmpty() {
			return nil
		}
		select {
		case <-ctx.Done():
			return s.closeAll(ctx.Err())
		case <-time.After(pause):
		}
	}
}

// endIdle ends the connections that wait for a request, unless one has come.
func (s *server) endIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.endIdle()
	}
}

// closeAll cuts off what did not end in time.
func (s *server) closeAll(err error) error {
	s.cutting.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.departure.leave(errDrained)
		_ = c.socket.Close()
	}
	return fmt.Errorf("%w: %d connections with requests, streams or tunnels were cut off; raise proxy.drain_timeout if they should have ended", err, len(s.conns))
}

// whyLeft is why a client is gone whose connection has ended.
func (s *server) whyLeft() error {
	if s.cutting.Load() {
		return errDrained
	}
	return errClientLeft
}
