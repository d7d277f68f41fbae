package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/r8limiter/r8limiter/limiter"
)

// secure makes the TLS configuration of every target with https, from the
// files of the upstream's tls block. It reports what can't be used.
func (u *upstream) secure(report func(key, problem string)) {
	c := u.tls
	if c == nil {
		c = &UpstreamTLSConfig{}
	}
	base := (*limiter.ClientTLS)(c).Read(func(path, problem string) { report(".tls."+path, problem) })
	base.NextProtos = []string{"http/1.1"}
	for _, t := range u.targets {
		if !t.secure {
			continue
		}
		t.tls = base.Clone()
		t.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0)
		if t.tls.ServerName == "" {
			t.tls.ServerName, _, _ = net.SplitHostPort(t.address)
		}
	}
}

// tlsConn is a TLS connection that can be asked whether it is quiet.
type tlsConn struct {
	*tls.Conn
	below *belowTLS
	one   [1]byte // for isQuiet
}

// handshake secures raw. The caller closes raw if it fails.
func handshake(ctx context.Context, raw net.Conn, config *tls.Config) (*tlsConn, error) {
	below := &belowTLS{Conn: raw}
	sc, ok := raw.(syscall.Conn)
	if !ok {
		return nil, errors.New("the connection has no descriptor")
	}
	var err error
	if below.raw, err = sc.SyscallConn(); err != nil {
		return nil, err
	}
	below.readNow = below.recv
	c := &tlsConn{Conn: tls.Client(below, config), below: below}
	return c, c.HandshakeContext(ctx)
}

// SyscallConn is that of the TCP connection.
func (c *tlsConn) SyscallConn() (syscall.RawConn, error) { return c.below.raw, nil }

// Close closes the TCP connection without a word: tls.Conn's own would wait up
// to 5 s for an upstream that has stopped to read.
func (c *tlsConn) Close() error { return c.below.Close() }

// isQuiet takes in what has come and says whether that is nothing that matters:
// no data, no end. A peek at the socket would not do: tls.Conn reads ahead, and
// session tickets (TLS 1.3) come when the server likes and are no harm.
func (c *tlsConn) isQuiet() bool {
	c.below.impatient = true
	n, err := c.Read(c.one[:])
	c.below.impatient = false
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

// wasCut says, of a connection that has ended, whether it did without a closure
// alert. crypto/tls lets that pass between two records, but anybody on the way can
// make such an end: a body that has no other end is not whole (RFC 9112 section 9.8).
func (c *upstreamConn) wasCut() bool { return c.tls != nil && c.tls.below.ended }

// part closes an idle connection. With TLS it says so first: many servers log a
// connection that just ends as an error.
//
// It doesn't wait for that, for callers hold locks: an upstream that has stopped to
// read may take 5 s.
func (c *upstreamConn) part() {
	if c.tls == nil {
		_ = c.Close()
		return
	}
	go func() {
		_ = c.tls.CloseWrite()
		_ = c.Close()
	}()
}

// belowTLS is the TCP connection below a TLS one. One goroutine reads it at a
// time.
type belowTLS struct {
	net.Conn
	raw       syscall.RawConn
	impatient bool // Read doesn't wait for anything
	ended     bool // the TCP connection has; behind a closure alert nobody looks
	readNow   func(fd uintptr)
	into      []byte // what follows is between Read and recv
	n         int
	err       error
}

// Read reads as usual or, while impatient, only what has come: else it is as
// if a deadline had passed, which tls.Conn survives.
func (b *belowTLS) Read(p []byte) (int, error) {
	if !b.impatient {
		n, err := b.Conn.Read(p)
		b.ended = b.ended || err == io.EOF
		return n, err
	}
	b.into = p
	if err := b.raw.Control(b.readNow); err != nil {
		return 0, err
	}
	b.into = nil
	switch {
	case b.err == syscall.EAGAIN:
		return 0, os.ErrDeadlineExceeded
	case b.err != nil:
		return 0, b.err
	case b.n == 0:
		return 0, net.ErrClosed
	}
	return b.n, nil
}

func (b *belowTLS) recv(fd uintptr) {
	b.n, _, b.err = syscall.Recvfrom(int(fd), b.into, syscall.MSG_DONTWAIT)
}
