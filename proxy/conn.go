package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// How a client's connection ends: see clientConn.Close and awaitRequest. What is
// read on for is a body of the default size: many clients send theirs to its end
// before they read.
const (
	lingerTimeout  = time.Second
	lingerMaxBytes = 16 << 20
	lastWait       = time.Second
)

// The read buffer of a client's connection begins small, since most of them are
// idle most of the time, and grows to limits.header_bytes where a head needs it.
const (
	minClientBuffer  = 4 << 10
	keptClientBuffer = 8 << 10 // of an idle connection
)

// client is where a request came from and where its answer goes: a connection
// of HTTP/1.1, or a stream of HTTP/2.
type client interface {
	// parse fills in what the client asked. The request and its answer are held to
	// limits to their end.
	parse(r *request, limits *LimitsConfig) error
	// body reads the request's body without its framing.
	body() io.Reader
	// interrupt ends, from another goroutine, a read of the body that waits, and
	// all later ones.
	interrupt()
	// departing is what to tell of the upstream that works for the client.
	departing() *departure
	// proceed tells a client that asked first (Expect: 100-continue) to send its body.
	proceed(now time.Time) error
	// send sends a piece of an answer. The first head bytes of p are its head,
	// interim or final, as HTTP/1.1 writes it; what follows is body.
	send(p []byte, head int, now time.Time) error
	// flush sends what of an answer is still kept.
	flush()
	// trail sends trailers where they are no part of the body, as in HTTP/2.
	trail(trailers []field)
	// finish is told how the exchange ended.
	finish(x *exchange)
}

// clientConn is a connection of HTTP/1.x. One goroutine serves it; a body may
// be read by another while an answer is written.
type clientConn struct {
	net.Conn
	server *server
	peer   netip.Addr
	secure bool // TLS
	http2  bool // the handshake chose it: the rest is http2Server's
	socket net.Conn

	// buf[read:end] was received and not yet used. head is the request head
	// before it: while a request is served, what lies in buf before read stays.
	buf       []byte
	read, end int
	head      []byte
	reader    requestBody
	limits    *LimitsConfig // of the request at hand: those in force when it began

	readBy, writeBy time.Time   // the deadlines that are set
	waiting         sync.Mutex  // guards the beginning and the end of idle
	idle            atomic.Bool // it waits for a request
	interrupted     atomic.Bool // see interrupt
	served          bool        // a request before the one at hand
	closing, linger bool        // after the last exchange; see Close
	departure       departure
}

var (
	errInterrupted = errors.New("the wait for the client was interrupted")
	errBareLF      = badRequest("a header line does not end in CRLF")
	errNoMethod    = badRequest("the request does not begin with a method")
)

func newClientConn(s *server, raw net.Conn) *clientConn {
	c := &clientConn{Conn: raw, socket: raw, server: s, limits: s.limits()}
	c.reader.conn = c
	return c
}

// serve answers requests until the connection ends.
func (c *clientConn) serve() {
	for !c.closing {
		err := c.readHead()
		if err == io.EOF {
			return
		}
		c.server.proxy.serve(c, c.peer, err)
		c.served = true
		if !c.closing && c.reader.discard() != nil {
			c.closing, c.linger = true, true
		}
	}
}

// readHead waits for the head of the next request. io.EOF means that there is
// no more to answer. Other errors are the client's fault.
func (c *clientConn) readHead() error {
	c.reader.reset()
	c.head = nil
	if c.read == c.end {
		c.read, c.end = 0, 0
		if err := c.awaitRequest(); err != nil {
			return io.EOF
		}
	}
	limits := c.server.limits()
	c.limits = limits
	due, seen := time.Time{}, 0 // seen bytes hold no end of a head
	for {
		text := c.buf[c.read:c.end]
		from := max(0, seen-len(headEnd)+1)
		if at := bytes.Index(text[from:], headEnd); at >= 0 && from+at+len(headEnd) <= limits.HeaderBytes {
			c.head = text[:from+at+len(headEnd)]
			c.read += len(c.head)
			return nil
		}
		switch {
		case !tokenBytes[text[0]]: // an empty line, a TLS handshake, nonsense
			return errNoMethod
		case len(text) >= limits.HeaderBytes && bytes.IndexByte(text, '\n') < 0:
			return tooLongTarget(limits)
		case len(text) >= limits.HeaderBytes:
			return tooLargeHead(limits)
		case hasBareLF(text, seen):
			return errBareLF
		case due.IsZero():
			due = time.Now().Add(limits.HeaderTimeout)
		}
		seen = len(text)
		if err := c.fill(due); err != nil {
			return headError(err, limits)
		}
	}
}

var headEnd = []byte("\r\n\r\n")

// hasBareLF says whether a line of text ends in LF alone, behind from.
func hasBareLF(text []byte, from int) bool {
	for i := max(from, 0); ; i++ {
		next := bytes.IndexByte(text[i:], '\n')
		if next < 0 {
			return false
		}
		if i += next; i == 0 || text[i-1] != '\r' {
			return true
		}
	}
}

// headError says what it means that no more of a head came.
func headError(err error, limits *LimitsConfig) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return tooSlowHead(limits)
	}
	return io.EOF // the client left amid its head: nobody reads an answer
}

// awaitRequest waits for the first bytes of a request. While the proxy stops,
// who is about to send one has lastWait to do so.
func (c *clientConn) awaitRequest() error {
	limits := c.server.limits()
	wait := limits.KeepAliveTimeout
	if !c.served { // a new connection has nothing to wait for
		wait = min(wait, limits.HeaderTimeout)
	}
	if c.server.stopping.Load() {
		wait = min(wait, lastWait)
	}
	if len(c.buf) > keptClientBuffer {
		c.buf = nil
	}
	c.beIdle(true)
	err := c.fill(time.Now().Add(wait))
	if c.beIdle(false) && err == errInterrupted {
		err = c.fill(time.Now().Add(c.lastWait()))
	}
	return err
}

// beIdle says whether the connection waits for a request, and may be interrupted.
// An interruption of what was before is over; it says whether there was one.
func (c *clientConn) beIdle(idle bool) (interrupted bool) {
	c.waiting.Lock()
	defer c.waiting.Unlock()
	c.idle.Store(idle)
	if interrupted = c.interrupted.Swap(false); interrupted {
		c.readBy = time.Time{} // the deadline that is set has passed
	}
	return interrupted
}

// endIdle interrupts the connection if it waits for a request.
func (c *clientConn) endIdle() {
	c.waiting.Lock()
	defer c.waiting.Unlock()
	if c.idle.Load() && !c.interrupted.Load() {
		c.interrupt()
	}
}

// lastWait is how long an interrupted connection may take until its request is
// there: not at all if nothing hints at one. A part of a TLS record can't be seen.
func (c *clientConn) lastWait() time.Duration {
	switch {
	case !c.served || c.hasBytes():
		return lastWait
	case c.secure:
		return lastWait / 10
	}
	return 0
}

// fill receives more of a head behind buf[:end].
func (c *clientConn) fill(due time.Time) error {
	if c.end == len(c.buf) {
		c.makeRoom(1)
	}
	n, err := c.receive(c.buf[c.end:], due)
	c.end += n
	if n > 0 {
		return nil
	}
	return err
}

// makeRoom makes room for n more bytes behind those that are not used yet. It
// leaves the old buffer as it is: the head that is served may lie in it.
func (c *clientConn) makeRoom(n int) {
	size := minClientBuffer
	for size < c.end-c.read+n {
		size *= 2
	}
	bigger := make([]byte, size)
	c.end = copy(bigger, c.buf[c.read:c.end])
	c.buf, c.read = bigger, 0
}

// unread puts back what was received behind a body.
func (c *clientConn) unread(p []byte) {
	if len(c.buf)-c.end < len(p) {
		c.makeRoom(len(p))
	}
	c.end += copy(c.buf[c.end:], p)
}

// receive reads once, until due at the latest. As with the upstream's
// connections the deadline that is set may be an earlier one: it's moved when it passes.
func (c *clientConn) receive(p []byte, due time.Time) (int, error) {
	if c.readBy.IsZero() || c.readBy.After(due) {
		if err := c.setReadBy(due); err != nil {
			return 0, err
		}
	}
	for {
		n, err := c.Conn.Read(p)
		if n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if c.interrupted.Load() {
			return 0, errInterrupted
		}
		if !time.Now().Before(due) {
			return 0, err
		}
		if err := c.setReadBy(due); err != nil {
			return 0, err
		}
	}
}

func (c *clientConn) setReadBy(due time.Time) error {
	c.readBy = due
	err := c.Conn.SetReadDeadline(due)
	if c.interrupted.Load() {
		err = c.Conn.SetReadDeadline(longAgo)
	}
	return err
}

var longAgo = time.Unix(1, 0)

// interrupt ends a read that waits, from another goroutine.
func (c *clientConn) interrupt() {
	c.interrupted.Store(true)
	_ = c.Conn.SetReadDeadline(longAgo)
}

// hasBytes says whether bytes have come that nobody has read.
func (c *clientConn) hasBytes() bool {
	n, err := c.peek()
	return n > 0 && err == nil
}

// peek looks at what is there to be read. It's for rare moments only.
func (c *clientConn) peek() (n int, err error) {
	sc, ok := c.socket.(syscall.Conn)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var first [1]byte
	if failed := raw.Control(func(fd uintptr) {
		n, _, err = syscall.Recvfrom(int(fd), first[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	}); failed != nil {
		return 0, failed
	}
	return n, err
}

func (c *clientConn) parse(r *request, limits *LimitsConfig) error {
	r.secure, c.limits = c.secure, limits
	if err := r.parseHead(c.head, limits); err != nil {
		return err
	}
	c.reader.begin(r.length)
	return nil
}

func (c *clientConn) body() io.Reader { return &c.reader }

func (c *clientConn) departing() *departure { return &c.departure }

var continueLine = []byte("HTTP/1.1 100 Continue\r\n\r\n")

// proceed needs no word to a client that has begun to send its body unasked.
func (c *clientConn) proceed(now time.Time) error {
	if c.read < c.end {
		return nil
	}
	return c.send(continueLine, len(continueLine), now)
}

// send writes to the client. The deadline is moved only when a good part of
// it is used up, which saves most requests from setting one.
func (c *clientConn) send(p []byte, _ int, now time.Time) error {
	wait := c.limits.WriteTimeout
	if c.writeBy.Sub(now) < wait {
		c.writeBy = now.Add(2 * wait)
		if err := c.Conn.SetWriteDeadline(c.writeBy); err != nil {
			return err
		}
	}
	_, err := c.Conn.Write(p)
	return err
}

func (c *clientConn) flush() {}

func (c *clientConn) trail([]field) {}

func (c *clientConn) finish(x *exchange) { c.closing, c.linger = x.closing, x.linger }

// Close ends the connection. If the client may still be sending a body that
// nobody read, or has sent another request, it first ends our side and reads on
// for a moment: a close with bytes unread resets the connection, and the client
// would lose our answer.
func (c *clientConn) Close() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && (c.linger || c.hasBytes()) && half.CloseWrite() == nil {
		c.linger = false
		if c.socket.SetReadDeadline(time.Now().Add(lingerTimeout)) == nil {
			_, _ = io.CopyN(io.Discard, c.socket, lingerMaxBytes)
		}
	}
	return c.Conn.Close()
}
