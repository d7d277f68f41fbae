package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// maxIdle is how long an unused connection is kept. It is below the 5 s after
// which Node.js closes its side, the shortest default among common servers.
const maxIdle = 4 * time.Second

// field is one line of a head: the name as it was written, the value without
// the white space around it.
type field struct{ name, value []byte }

// upstreamOptions describe one upstream. Every duration and maxConns must be
// above zero.
type upstreamOptions struct {
	name   string // for messages
	target string // http://host[:port] or unix:/path
	// connectTimeout bounds the look-up of the host and connecting to it.
	connectTimeout time.Duration
	// responseTimeout bounds the wait for the head, from when the request was sent.
	responseTimeout time.Duration
	// idleTimeout bounds the wait for the upstream between two steps of a body.
	idleTimeout time.Duration
	// maxConns is the number of connections at most, in use and idle together.
	maxConns int
}

// upstream sends requests to one server over a pool of its connections. It is
// safe for concurrent use. Nothing is ever sent twice.
//
// The pool is a stack: under little load few connections are used again and
// again and stay warm, the rest end at its bottom and are closed.
type upstream struct {
	upstreamOptions
	echo    bool // there is no server; the proxy answers itself
	metrics *upstreamMetrics
	host    []byte // the Host for a request that came without one

	network, address string
	dialer           net.Dialer

	mu       sync.Mutex // guards what follows
	idle     []*upstreamConn
	open     int // in use and idle, and those being dialled
	closed   bool
	sweeping bool // the sweeper's timer runs
	sweeper  *time.Timer
}

// newUpstream reads the target. It doesn't dial.
func newUpstream(o upstreamOptions) (*upstream, error) {
	u := &upstream{upstreamOptions: o, dialer: net.Dialer{Timeout: o.connectTimeout}}
	if err := u.parseTarget(); err != nil {
		return nil, fmt.Errorf("target %q: %w", o.target, err)
	}
	return u, nil
}

var errTarget = errors.New("write http://host:port, without path or user, or unix:/path/of/socket")

func (u *upstream) parseTarget() error {
	if path, ok := strings.CutPrefix(u.target, "unix:"); ok {
		if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") {
			return errTarget
		}
		u.network, u.address, u.host = "unix", path, []byte("localhost")
		return nil
	}
	if strings.HasPrefix(strings.ToLower(u.target), "https:") {
		return errors.New("https targets are not served yet; use http://host:port or unix:/path/of/socket")
	}
	t, err := url.Parse(u.target)
	if err != nil || t.Scheme != "http" || t.Hostname() == "" || t.User != nil {
		return errTarget
	}
	if !strings.EqualFold("http://"+t.Host, u.target) || strings.HasSuffix(t.Host, ":") {
		return errTarget
	}
	port := cmp.Or(t.Port(), "80")
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errTarget
	}
	u.network, u.address, u.host = "tcp", net.JoinHostPort(t.Hostname(), port), []byte(t.Host)
	return nil
}

// do sends a request and reads the head of its answer into in. The caller
// calls in.finish when it is done with in, also after an error. The error is
// always an *upstreamError, and nothing is tried again.
func (u *upstream) do(out *outgoing, in *incoming) error {
	in.finish()
	in.clear()
	c, err := u.acquire()
	if err != nil {
		return err
	}
	if err := converse(c, out, in); err != nil {
		u.discard(c)
		return err
	}
	return nil
}

// acquire takes the connection that was used last, or dials.
func (u *upstream) acquire() (*upstreamConn, error) {
	for {
		c, err := u.take(time.Now())
		if err != nil {
			return nil, err
		}
		if c == nil {
			return u.dial()
		}
		if c.isQuiet() {
			return c, nil
		}
		u.discard(c)
	}
}

var (
	errBusy   = errors.New("all connections that max_conns allows are in use")
	errClosed = errors.New("the upstream is closed")
)

// take takes a connection off the pool. If there is none it counts a new one,
// which the caller has to dial, and returns nil.
func (u *upstream) take(now time.Time) (*upstreamConn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, &upstreamError{faultConnect, errClosed}
	}
	if last := len(u.idle) - 1; last >= 0 && now.Sub(u.idle[last].idleSince) < maxIdle {
		c := u.idle[last]
		u.idle[last] = nil
		u.idle = u.idle[:last]
		return c, nil
	}
	u.closeIdleLocked(len(u.idle)) // all are older than the last
	if u.open >= u.maxConns {
		return nil, &upstreamError{faultBusy, errBusy}
	}
	u.open++
	return nil, nil
}

func (u *upstream) dial() (*upstreamConn, error) {
	raw, err := u.dialer.Dial(u.network, u.address)
	if err == nil {
		var c *upstreamConn
		if c, err = newUpstreamConn(raw, u); err == nil {
			return c, nil
		}
		_ = raw.Close()
	}
	u.mu.Lock()
	u.open--
	u.mu.Unlock()
	return nil, &upstreamError{faultConnect, fmt.Errorf("connect: %w", err)}
}

// release puts a clean connection back.
func (u *upstream) release(c *upstreamConn) {
	c.rest()
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		u.discard(c)
		return
	}
	c.idleSince = time.Now()
	u.idle = append(u.idle, c)
	if !u.sweeping {
		u.sweepLocked(maxIdle)
	}
	u.mu.Unlock()
}

// discard closes a connection that is in use.
func (u *upstream) discard(c *upstreamConn) {
	_ = c.Close()
	u.mu.Lock()
	u.open--
	u.mu.Unlock()
}

func (u *upstream) sweepLocked(after time.Duration) {
	u.sweeping = true
	if u.sweeper == nil {
		u.sweeper = time.AfterFunc(after, u.sweep)
		return
	}
	u.sweeper.Reset(after)
}

// sweep closes what nobody used for too long, and comes again when the next
// connection is due. A timer that runs once in maxIdle costs a request nothing.
func (u *upstream) sweep() {
	u.mu.Lock()
	defer u.mu.Unlock()
	old, now := 0, time.Now()
	for old < len(u.idle) && now.Sub(u.idle[old].idleSince) >= maxIdle {
		old++
	}
	u.closeIdleLocked(old)
	u.sweeping = false
	if len(u.idle) > 0 {
		u.sweepLocked(maxIdle - now.Sub(u.idle[0].idleSince))
	}
}

// closeIdleLocked closes the n connections at the bottom of the pool. Close
// doesn't block: nothing is waiting to be sent on them.
func (u *upstream) closeIdleLocked(n int) {
	for _, c := range u.idle[:n] {
		_ = c.Close()
	}
	left := copy(u.idle, u.idle[n:])
	clear(u.idle[left:])
	u.idle = u.idle[:left]
	u.open -= n
}

// close closes the idle connections at once and the others when their
// response is finished. It is safe to call twice.
func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if u.sweeper != nil {
		u.sweeper.Stop()
	}
	u.closeIdleLocked(len(u.idle))
}

// openConns counts the connections, in use or idle.
func (u *upstream) openConns() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.open
}

// idleConns counts the connections that wait for a request.
func (u *upstream) idleConns() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.idle)
}
