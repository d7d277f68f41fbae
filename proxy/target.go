package proxy

import (
	"cmp"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxIdle is how long an unused connection is kept. It is below the 5 s after
// which Node.js closes its side, the shortest default among common servers.
const maxIdle = 4 * time.Second

// target is one server of an upstream with a pool of connections to it. It is
// safe for concurrent use.
//
// The pool is a stack: under little load few connections are used again and
// again and stay warm, the rest end at its bottom and are closed. Who finds
// max_conns in use waits in a queue, first come, first served.
type target struct {
	upstream *upstream
	url      string // as configured
	bit      uint64 // 1 << its place among the targets
	host     []byte // for the Host field

	network, address string
	hostname         string // to look up; "" for an address or a socket
	secure           bool   // https
	tls              *tls.Config
	dialer           net.Dialer

	health health

	mu       sync.Mutex // guards what follows
	idle     []*upstreamConn
	open     int       // in use and idle, and those being dialled
	waiting  list.List // of chan grant; only while open is max_conns and none is idle
	closed   bool
	sweeping bool // the sweeper's timer runs
	sweeper  *time.Timer

	resolved  uint32                  // counts look-ups of hostname
	addresses map[netip.Addr]struct{} // what the last one gave
}

// newTarget reads the url of the target at index. It doesn't dial.
func newTarget(u *upstream, url string, index int) (*target, error) {
	t := &target{upstream: u, url: url, bit: 1 << index}
	return t, t.parse()
}

var (
	errTarget = errors.New("write http://host:port or https://host:port, without path or user, or unix:/path/of/socket")
	errEcho   = errors.New("must be the only target")
)

func (t *target) parse() error {
	if t.url == echoTarget {
		return errEcho
	}
	if path, ok := strings.CutPrefix(t.url, "unix:"); ok {
		if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") {
			return errTarget
		}
		t.network, t.address, t.host = "unix", path, []byte("localhost")
		return nil
	}
	at, err := url.Parse(t.url)
	if err != nil || at.Scheme != "http" && at.Scheme != "https" || at.Hostname() == "" || at.User != nil {
		return errTarget
	}
	if !strings.EqualFold(at.Scheme+"://"+at.Host, t.url) || strings.HasSuffix(at.Host, ":") {
		return errTarget
	}
	t.secure = at.Scheme == "https"
	port := "80"
	if t.secure {
		port = "443"
	}
	port = cmp.Or(at.Port(), port)
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errTarget
	}
	t.network, t.address, t.host = "tcp", net.JoinHostPort(at.Hostname(), port), []byte(at.Host)
	if _, err := netip.ParseAddr(at.Hostname()); err != nil {
		t.hostname = at.Hostname()
	}
	return nil
}

// isSame says whether o is the same server, asked in the same way.
func (t *target) isSame(o *target) bool {
	if t.network == "unix" || o.network == "unix" {
		return t.address == o.address
	}
	return t.secure == o.secure && strings.EqualFold(t.address, o.address)
}

// isNamed says whether the target has a name that DNS may give new addresses.
func (t *target) isNamed() bool { return t.hostname != "" }

// supply says which connections an attempt may use.
type supply uint8

const (
	pooled supply = iota // an idle one, else a new one
	fresh                // a new one
)

// ask sends a request to this target once, and reads the head of the answer. It
// keeps account of the target's health. After an error it says what may be tried.
func (t *target) ask(out *outgoing, in *incoming, from supply) (again, error) {
	c, err := t.acquire(from)
	if err != nil {
		more, fault := unsent(err), err
		if faultOf(err) == faultBusy {
			fault = nil // it has enough to do, and works
		}
		t.account(fault)
		return more, err
	}
	if err := converse(c, out, in); err != nil {
		more := c.again(out, err)
		t.account(c.blame(out, err))
		t.discard(c)
		return more, err
	}
	t.answered()
	return never, nil
}

// unsent says what may be tried after an attempt that found no connection.
// Where the target took too long, or has the wrong certificate, it will again.
func unsent(err error) again {
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, errClosed):
		return never
	case faultOf(err) == faultBusy, untrusted, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return elsewhere
	}
	return anywhere
}

// again says what may be tried after the conversation over c ended with err.
func (c *upstreamConn) again(out *outgoing, err error) again {
	unanswered := c.reused && c.end == 0 && out.idempotent
	if faultOf(err) == faultClosed && (!c.wrote || unanswered) {
		return anywhere
	}
	return never
}

// blame is err if it speaks against the target's health: not where a client is
// at fault, or where the target closed a used connection, as it may, or amid an
// upload, as servers do that don't want it.
func (c *upstreamConn) blame(out *outgoing, err error) error {
	switch faultOf(err) {
	case faultClient:
		return nil
	case faultClosed:
		if c.reused || out.body != nil {
			return nil
		}
	}
	return err
}

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

func (t *target) dial() (*upstreamConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), t.upstream.connectTimeout)
	defer cancel()
	c, err := t.connect(ctx)
	if err != nil {
		t.leave()
		return nil, &upstreamError{faultConnect, fmt.Errorf("connect to %s: %w", t.url, err)}
	}
	return c, nil
}

// connect opens a connection, with TLS where the target has it. The pool knows
// nothing of it.
func (t *target) connect(ctx context.Context) (*upstreamConn, error) {
	t.mu.Lock()
	resolved := t.resolved // before the dialer looks the name up
	t.mu.Unlock()
	raw, err := t.dialer.DialContext(ctx, t.network, t.address)
	if err != nil {
		return nil, err
	}
	var secure *tlsConn
	if t.tls != nil {
		if secure, err = handshake(ctx, raw, t.tls); err != nil {
			_ = raw.Close()
			return nil, err
		}
		raw = secure
	}
	c, err := newUpstreamConn(raw, t.upstream)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	c.target, c.tls, c.resolved = t, secure, resolved
	return c, nil
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
	if t.closed || !t.isCurrentLocked(c) {
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

// closeIdleLocked closes the n connections at the bottom of the pool. Close
// doesn't block: nothing is waiting to be sent on them.
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
