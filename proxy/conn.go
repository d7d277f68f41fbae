package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// Time-outs of the client's side.
const (
	headTimeout    = 10 * time.Second // for a request head, and for a small body
	keepAlive      = 60 * time.Second // between two requests
	clientIdle     = 60 * time.Second // between two reads of a large body
	writeTimeout   = 30 * time.Second // for one write to a client
	lingerTimeout  = time.Second      // see clientConn.Close
	lingerMaxBytes = 1 << 20
)

// listener hands out clientConns and outlives what ends fasthttp's accept
// loop: running out of file descriptors.
type listener struct {
	net.Listener
	log  zerolog.Logger
	open func(*clientConn) error // see clientConn.open
}

// Accept waits for the next client. It backs off, from 5 ms up to 1 s, while
// the process or the system is out of descriptors.
func (l *listener) Accept() (net.Conn, error) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		c, err := l.Listener.Accept()
		if err == nil {
			conn := newClientConn(c)
			conn.open = l.open
			return conn, nil
		}
		if !isTransient(err) {
			return nil, err
		}
		l.log.Warn().Err(err).Dur("pause_ms", pause).Msg("accept: raise the limit of open files (ulimit -n) if this goes on")
		time.Sleep(pause)
	}
}

func isTransient(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// clientConn is a client's connection. fasthttp reads requests from it; what
// fasthttp writes is thrown away, because every answer is written by send:
// fasthttp's response has no room for an upstream's Date, for fields as they
// came in the order they came, or for a stream that is flushed as it comes.
type clientConn struct {
	net.Conn
	peer      netip.Addr
	writeBy   time.Time               // the write deadline that is set
	linger    bool                    // see Close
	budget    int64                   // see Read; 0 for no bound
	open      func(*clientConn) error // what precedes the first byte of HTTP; nil for nothing, or once it is done
	continued *exchange               // decided when the client asked with Expect, its body not read yet
}

func newClientConn(c net.Conn) *clientConn {
	cc := &clientConn{Conn: c}
	if addr, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		cc.peer = addr.AddrPort().Addr().Unmap().WithZone("")
	}
	return cc
}

// opening is what a connection begins with, before HTTP; nil for nothing.
func (p *Proxy) opening() func(*clientConn) error {
	config := p.options.TLS
	if config == nil && !p.proxyProtocol {
		return nil
	}
	if config != nil {
		config = config.Clone()
		config.NextProtos = []string{"http/1.1"}
	}
	return func(c *clientConn) error {
		err := p.openConn(c, config)
		if err != nil {
			p.logRefusedPeer(c.peer, err)
		}
		return err
	}
}

func (p *Proxy) openConn(c *clientConn, config *tls.Config) error {
	if p.proxyProtocol {
		conn, source, err := p.readProxyHeader(c.Conn, c.peer)
		if err != nil {
			return err
		}
		c.Conn, c.peer = conn, source
	}
	if config == nil {
		return c.Conn.SetReadDeadline(time.Now().Add(headTimeout))
	}
	conn := tls.Server(c.Conn, config)
	if err := conn.SetDeadline(time.Now().Add(headTimeout)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.Conn = conn
	return conn.SetWriteDeadline(time.Time{})
}

var errBudget = errors.New("the framing of the request body is larger than what it holds")

// Read bounds, where budget is set, what a chunked body costs on the wire:
// chunk extensions hold nothing for us and have no end.
func (c *clientConn) Read(p []byte) (int, error) {
	if open := c.open; open != nil {
		c.open = nil
		if open(c) != nil {
			return 0, io.EOF
		}
	}
	n, err := c.Conn.Read(p)
	if c.budget == 0 {
		return n, err
	}
	if c.budget -= int64(n); c.budget <= 0 {
		c.budget = 1
		return 0, errBudget
	}
	return n, err
}

// Write drops what fasthttp writes; see clientConn.
func (c *clientConn) Write(p []byte) (int, error) { return len(p), nil }

// send writes to the client. The deadline is moved only when a good part of
// it is used up, which saves most requests from setting one.
func (c *clientConn) send(p []byte, now time.Time) error {
	if c.writeBy.Sub(now) < writeTimeout {
		c.writeBy = now.Add(2 * writeTimeout)
		if err := c.Conn.SetWriteDeadline(c.writeBy); err != nil {
			return err
		}
	}
	_, err := c.Conn.Write(p)
	return err
}

// Close ends the connection. If the client may still be sending a body that
// nobody read, it first ends our side and reads on for a moment: a close with
// bytes unread resets the connection, and the client would lose our answer.
func (c *clientConn) Close() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); c.linger && ok && half.CloseWrite() == nil {
		c.linger = false
		if c.Conn.SetReadDeadline(time.Now().Add(lingerTimeout)) == nil {
			_, _ = io.CopyN(io.Discard, c.Conn, lingerMaxBytes)
		}
	}
	return c.Conn.Close()
}
