package proxy

import (
	"container/list"
	"fmt"
	"time"
)

// maxIdle is how long an unused connection is kept. It is below the 5 s after
// which Node.js closes its side, the shortest default among common servers.
const maxIdle = 4 * time.Second

// supply says which connections an attempt may use.
type supply uint8

const (
	pooled supply = iota // an idle one, else a new one
	fresh                // a new one
)

// acquire takes the connection that was used last, or dials.
func (t *target) acquire(from supply) (*upstreamConn, error) {
	c, place, err := t.take(time.Now(), from)
	if place != nil {
		c, err = t.wait(place)
	}
	if err != nil {
		return nil, err
	}
	for c != nil && (from == fresh || !c.isQuiet()) {
		_ = c.Close()
		c = t.instead(from)
	}
	if c == nil {
		return t.dial()
	}
	c.reused, c.wrote = true, false
	return c, nil
}

// take takes a connection off the pool. If there is none it counts a new one,
// which the caller has to dial, or it queues and returns the place there.
func (t *target) take(now time.Time, from supply) (*upstreamConn, *list.Element, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, &upstreamError{faultConnect, errClosed}
	}
	if from == pooled {
		if c := t.popLocked(now); c != nil {
			return c, nil, nil
		}
	} else if len(t.idle) > 0 && t.open >= t.upstream.maxConns {
		t.closeIdleLocked(1)
	}
	switch {
	case t.open < t.upstream.maxConns:
		t.open++
		return nil, nil, nil
	case t.upstream.queueTimeout == 0 || t.waiting.Len() >= t.upstream.maxConns:
		return nil, nil, &upstreamError{faultBusy, errBusy}
	}
	return nil, t.waiting.PushBack(make(chan grant, 1)), nil
}

// popLocked takes the connection that was used last, unless it is too old:
// then all are, and they are closed.
func (t *target) popLocked(now time.Time) *upstreamConn {
	last := len(t.idle) - 1
	if last < 0 || now.Sub(t.idle[last].idleSince) >= maxIdle {
		t.closeIdleLocked(len(t.idle))
		return nil
	}
	c := t.idle[last]
	t.idle[last] = nil
	t.idle = t.idle[:last]
	return c
}

// instead gives another idle connection in place of one that was closed, or
// nil: then the caller dials, in its place.
func (t *target) instead(from supply) *upstreamConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if from == fresh {
		return nil
	}
	c := t.popLocked(time.Now())
	if c != nil {
		t.open--
	}
	return c
}

// grant is what a place in the queue leads to: a connection, the right to dial
// one (conn and err are nil), or an error.
type grant struct {
	conn *upstreamConn
	err  error
}

// wait waits for its turn, up to queueTimeout.
func (t *target) wait(place *list.Element) (*upstreamConn, error) {
	turn := place.Value.(chan grant)
	timer := time.NewTimer(t.upstream.queueTimeout)
	defer timer.Stop()
	select {
	case g := <-turn:
		return g.conn, g.err
	case <-timer.C:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case g := <-turn: // just in time
		return g.conn, g.err
	default:
		t.waiting.Remove(place)
		return nil, &upstreamError{faultBusy, fmt.Errorf("%w, for %v", errBusy, t.upstream.queueTimeout)}
	}
}

// grantLocked gives to who waits longest, and says whether anybody does.
func (t *target) grantLocked(g grant) bool {
	first := t.waiting.Front()
	if first == nil {
		return false
	}
	t.waiting.Remove(first).(chan grant) <- g
	return true
}

// leave gives up the room of a connection: to who waits for it, if any.
func (t *target) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.grantLocked(grant{}) {
		t.open--
	}
}

// release puts a clean connection back, or gives it to who waits longest.
func (t *target) release(c *upstreamConn) {
	c.rest()
	t.mu.Lock()
	if t.closed || t.retired || !t.isCurrentLocked(c) {
		t.mu.Unlock()
		t.discard(c)
		return
	}
	defer t.mu.Unlock()
	if t.grantLocked(grant{conn: c}) {
		return
	}
	c.idleSince = time.Now()
	t.idle = append(t.idle, c)
	if !t.sweeping {
		t.sweepLocked(maxIdle)
	}
}

// discard closes a connection that is in use.
func (t *target) discard(c *upstreamConn) {
	_ = c.Close()
	t.leave()
}

func (t *target) sweepLocked(after time.Duration) {
	t.sweeping = true
	if t.sweeper == nil {
		t.sweeper = time.AfterFunc(after, t.sweep)
		return
	}
	t.sweeper.Reset(after)
}

// sweep closes what nobody used for too long, and comes again when the next
// connection is due. A timer that runs once in maxIdle costs a request nothing.
func (t *target) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, now := 0, time.Now()
	for old < len(t.idle) && now.Sub(t.idle[old].idleSince) >= maxIdle {
		old++
	}
	t.closeIdleLocked(old)
	t.sweeping = false
	if len(t.idle) > 0 {
		t.sweepLocked(maxIdle - now.Sub(t.idle[0].idleSince))
	}
}

// closeIdleLocked closes the n connections at the bottom of the pool.
func (t *target) closeIdleLocked(n int) {
	for _, c := range t.idle[:n] {
		c.part()
	}
	left := copy(t.idle, t.idle[n:])
	clear(t.idle[left:])
	t.idle = t.idle[:left]
	t.open -= n
}

// close closes the idle connections at once and the others when their
// response is finished, and sends away who waits. It is safe to call twice.
func (t *target) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.sweeper != nil {
		t.sweeper.Stop()
	}
	t.closeIdleLocked(len(t.idle))
	for t.grantLocked(grant{err: &upstreamError{faultConnect, errClosed}}) {
	}
}

// retire closes the idle connections at once and the others behind the request
// that has them. New ones are still dialled for those who ask.
func (t *target) retire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retired = true
	if t.sweeper != nil {
		t.sweeper.Stop()
	}
	t.closeIdleLocked(len(t.idle))
}

// load counts the requests that are in flight or wait for a connection.
func (t *target) load() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open - len(t.idle) + t.waiting.Len()
}

// conns counts the connections: all, and those that wait for a request.
func (t *target) conns() (open, idle int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open, len(t.idle)
}
