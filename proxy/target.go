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
	retired  bool // no connection is kept
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

// ask sends a request to this target once, and reads the head of the answer. It
// keeps account of the target's health. After an error it says what may be tried.
func (t *target) ask(out *outgoing, in *incoming, from supply) (again, error) {
	c, err := t.acquire(from)
	if err != nil {
		more, fault := unsent(err), err
		if kind := faultOf(err); kind == faultBusy || kind == faultLocal {
			fault = nil // it has enough to do, and works; or the trouble is our own
		}
		t.account(fault)
		return more, err
	}
	spoken := false
	defer func() {
		if !spoken { // a panic, of what passes interim answers on
			out.departure.end()
			t.discard(c)
			in.unsent()
		}
	}()
	err = t.speak(c, out, in)
	spoken = true
	if err != nil {
		more := c.again(out, err)
		t.account(c.blame(out, err))
		t.discard(c)
		return more, err
	}
	t.answered()
	return never, nil
}

// speak converses over c until the client leaves.
func (t *target) speak(c *upstreamConn, out *outgoing, in *incoming) error {
	if why := out.departure.begin(c.Conn); why != nil {
		return &upstreamError{faultClient, why}
	}
	err := converse(c, out, in)
	if err == nil {
		in.departure = out.departure
		return nil
	}
	if why := out.departure.end(); why != nil {
		return &upstreamError{faultClient, why}
	}
	return err
}

// unsent says what may be tried after an attempt that found no connection.
// Where the target took too long, or has the wrong certificate, it will again.
func unsent(err error) again {
	switch faultOf(err) {
	case faultLocal:
		return never
	case faultBusy, faultTimeout, faultCertificate:
		return elsewhere
	}
	if errors.Is(err, errClosed) {
		return never
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

func (t *target) dial() (*upstreamConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), t.upstream.connectTimeout)
	defer cancel()
	c, err := t.connect(ctx)
	if err != nil {
		t.leave()
		return nil, t.unconnected(err)
	}
	return c, nil
}

// unconnected says what it means that there is no connection.
func (t *target) unconnected(err error) error {
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	kind := faultConnect
	switch {
	case untrusted:
		kind = faultCertificate
	case isShortage(err):
		kind = faultLocal
		err = fmt.Errorf("%w: this gateway is at its own limit; raise that of open files (ulimit -n), or lower proxy.limits.connections", err)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		kind = faultTimeout
		err = fmt.Errorf("%w: connect_timeout %v is over", err, t.upstream.connectTimeout)
	}
	return &upstreamError{kind, fmt.Errorf("connect to %s: %w", t.url, err)}
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
			return nil, fmt.Errorf("TLS handshake: %w", err)
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
