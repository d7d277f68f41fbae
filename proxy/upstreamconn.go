package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// fault is what went wrong with an upstream, as far as the answer differs.
type fault uint8

const (
	faultConnect     fault = iota // 502: no connection, nothing was sent
	faultBusy                     // 503: max_conns reached, nothing was sent
	faultCertificate              // 502: the target's certificate is not trusted, nothing was sent
	faultLocal                    // 503: this gateway has no descriptor or port left, nothing was sent
	faultUnhealthy                // 503: every target is ejected, nothing was sent
	faultTimeout                  // 504: too slow
	faultProtocol                 // 502: what it sent is no HTTP/1.1 response
	faultClosed                   // 502: it closed the connection too early
	faultClient                   // 400: the client's body could not be read
	faultCount                    // how many there are
)

var faultNames = [faultCount]string{"connect", "busy", "certificate", "local", "unhealthy", "timeout", "protocol", "closed", "client"}

// String is the value of the label kind.
func (f fault) String() string { return faultNames[f] }

// upstreamError is every error of an upstream. It unwraps to its cause; for
// faultClient that is the error of the body's reader.
type upstreamError struct {
	kind fault
	err  error
}

// Error says what happened, without the upstream's name.
func (e *upstreamError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *upstreamError) Unwrap() error { return e.err }

// faultOf is the kind of an error that do or Read gave.
func faultOf(err error) fault {
	if e, ok := errors.AsType[*upstreamError](err); ok {
		return e.kind
	}
	return faultClosed
}

// brokenBy turns an error of the connection into an upstreamError.
func brokenBy(doing string, err error) error {
	kind := faultClosed
	if errors.Is(err, os.ErrDeadlineExceeded) {
		kind = faultTimeout
	}
	return &upstreamError{kind, fmt.Errorf("%s: %w", doing, err)}
}

// outgoing is a request to send.
type outgoing struct {
	head    []byte    // the request head, with a small body behind it
	body    io.Reader // a larger body; nil for none
	bodyLen int64     // of body: bytes, or -1: chunked, and do frames the chunks
	isHead  bool      // the method is HEAD, whose answer has no body
	host    []byte    // the Host to name if the client named none
	// upgrade says that the head asks for another protocol (RFC 9110 section 7.8):
	// only then a 101 is an answer.
	upgrade bool
	// stopBody makes the Read of body that is under way, and all later ones, fail
	// soon. It is called from another goroutine than Read, once at most, when nobody
	// wants the rest of body. It may be nil if no Read blocks.
	stopBody func()
	// interim is called for each interim response but 100 and 101, from within do,
	// before the final head is there. What it gets is valid during the call, and has
	// hop-by-hop and framing fields in it. Nil drops them.
	interim func(status int, reason []byte, fields []field)
	// departure ends the conversation when the client leaves; nil for nobody.
	departure *departure
	// idempotent says that the method is GET, HEAD or OPTIONS and there is no body.
	idempotent bool
	target     string // set by do: the target that was asked last, as configured
}

// The read buffer of a connection grows while a head doesn't fit. A large one
// isn't kept between requests, or many connections would hold much memory for one
// odd answer.
const (
	minReadBuffer  = 4 << 10
	keptReadBuffer = 16 << 10
	maxReadBuffer  = 64 << 10
)

// upstreamConn is a connection to an upstream. One goroutine uses it at a time;
// but while an upload is under way, that writes (with writeBy), and the one that
// waits for the answer reads (with buf, read, end and readBy).
type upstreamConn struct {
	net.Conn
	upstream  *upstream
	target    *target
	tls       *tlsConn // the same as Conn; nil without TLS
	idleSince time.Time
	resolved  uint32 // which look-up of the target's name has this address
	reused    bool   // it carried a request before
	wrote     bool   // a byte of the present request was written

	raw     syscall.RawConn
	peek    func(fd uintptr) // sets what follows; made once, because a closure a call would be garbage
	peeked  [1]byte
	peekN   int
	peekErr error

	buf             []byte
	read, end       int // buf[read:end] was received and not yet used
	readBy, writeBy time.Time
}

func newUpstreamConn(raw net.Conn, u *upstream) (*upstreamConn, error) {
	c := &upstreamConn{Conn: raw, upstream: u, buf: make([]byte, minReadBuffer)}
	sc, ok := raw.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("a %T has no descriptor", raw)
	}
	var err error
	c.raw, err = sc.SyscallConn()
	c.peek = c.peekAt
	return c, err
}

// isQuiet says whether an idle connection may carry a request: the upstream
// neither closed it nor sent anything that nobody asked for, which would be taken
// for the next answer. Control, unlike Read, works also when a deadline is over.
func (c *upstreamConn) isQuiet() bool {
	if c.tls != nil {
		return c.tls.isQuiet()
	}
	return c.raw.Control(c.peek) == nil && c.peekErr == syscall.EAGAIN
}

func (c *upstreamConn) peekAt(fd uintptr) {
	c.peekN, _, c.peekErr = syscall.Recvfrom(int(fd), c.peeked[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
}

// rest prepares the connection for the pool.
func (c *upstreamConn) rest() {
	c.read, c.end = 0, 0
	if len(c.buf) > keptReadBuffer {
		c.buf = make([]byte, minReadBuffer)
	}
}

// fill receives more behind buf[:end]. What lies before never moves: a full
// buffer is replaced, so that slices into the old one stay as they are.
func (c *upstreamConn) fill(due time.Time) error {
	if c.end == len(c.buf) {
		if c.end >= maxReadBuffer {
			return errHeadTooLarge
		}
		grown := make([]byte, 4*len(c.buf))
		copy(grown, c.buf)
		c.buf = grown
	}
	n, err := c.receive(c.buf[c.end:], due)
	c.end += n
	return err
}

// receive reads once, until due at the latest; a zero due leaves the deadline
// that is set as it is.
//
// Setting a deadline costs more than the rest of a short read. So the one that
// is set may be earlier than due, from a request before: when it passes it is
// moved to due and the read goes on. It is never later than due. An upload that
// ends makes it pass early, see upload.end, which does no harm for the same reason.
func (c *upstreamConn) receive(p []byte, due time.Time) (int, error) {
	if !due.IsZero() && (c.readBy.IsZero() || c.readBy.After(due)) {
		if err := c.setReadBy(due); err != nil {
			return 0, err
		}
	}
	for {
		n, err := c.Conn.Read(p)
		if n > 0 || err == nil || due.IsZero() || !errors.Is(err, os.ErrDeadlineExceeded) || !time.Now().Before(due) {
			return n, err
		}
		if err := c.setReadBy(due); err != nil {
			return 0, err
		}
	}
}

func (c *upstreamConn) setReadBy(due time.Time) error {
	c.readBy = due
	return c.Conn.SetReadDeadline(due)
}

// write sends p. It gives up when that takes longer than the upstream's
// idleTimeout. Like in receive, the deadline is moved only when it has passed;
// but with TLS, which a write that was cut short spoils for good, always.
func (c *upstreamConn) write(p []byte) error {
	due := time.Now().Add(c.upstream.idleTimeout)
	if c.tls != nil {
		c.writeBy = time.Time{}
	}
	for {
		if !c.writeBy.IsZero() {
			n, err := c.Conn.Write(p)
			c.wrote = c.wrote || n > 0
			if err == nil || !c.writeBy.Before(due) || !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
			p = p[n:]
		}
		c.writeBy = due
		if err := c.Conn.SetWriteDeadline(due); err != nil {
			return err
		}
	}
}

// writeBody sends a piece of body.
func (c *upstreamConn) writeBody(p []byte) error {
	if err := c.write(p); err != nil {
		return brokenBy("send request body", err)
	}
	return nil
}

// sendBody sends the body of out, which has one.
func (c *upstreamConn) sendBody(out *outgoing) error {
	if out.bodyLen < 0 {
		return c.sendChunked(out.body)
	}
	return c.sendFixed(out.body, out.bodyLen)
}

// sendFixed sends exactly length bytes of body.
func (c *upstreamConn) sendFixed(body io.Reader, length int64) error {
	buf := pieces.Get().(*piece)
	defer pieces.Put(buf)
	for length > 0 {
		data := buf.room()[:min(length, pieceBytes)]
		n, readErr := body.Read(data)
		length -= int64(n)
		if n > 0 {
			if err := c.writeBody(data[:n]); err != nil {
				return err
			}
		}
		if readErr == io.EOF && length > 0 {
			readErr = io.ErrUnexpectedEOF
		}
		if readErr != nil && length > 0 {
			return clientFault(readErr)
		}
	}
	return nil
}

// sendChunked sends each read of body as one chunk, and the last chunk only
// when the body came to its proper end: else the upstream would take a piece of
// it for the whole.
func (c *upstreamConn) sendChunked(body io.Reader) error {
	buf := pieces.Get().(*piece)
	defer pieces.Put(buf)
	for {
		n, readErr := body.Read(buf.room())
		if readErr != nil && readErr != io.EOF {
			return clientFault(readErr)
		}
		framed := buf.chunk(n)
		if readErr == io.EOF {
			framed = append(framed, lastChunk...)
		}
		if len(framed) > 0 {
			if err := c.writeBody(framed); err != nil {
				return err
			}
		}
		if readErr == io.EOF {
			return nil
		}
	}
}

func clientFault(err error) error {
	return &upstreamError{faultClient, fmt.Errorf("read request body: %w", err)}
}
