package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

const (
	// proxyHeaderTimeout bounds the wait for a PROXY header. Load balancers
	// send it with the connection.
	proxyHeaderTimeout = 5 * time.Second
	// maxProxyLine is the length of a header of version 1 at most.
	maxProxyLine = 107
	// proxyBuffer holds most headers of version 2 with their TLVs; a longer one,
	// of up to 4 KiB, only takes more reads.
	proxyBuffer = 512
)

var (
	errNotTrusted  = errors.New("proxy.proxy_protocol is on and the peer is not in proxy.trusted_proxies")
	errProxyHeader = errors.New("the connection does not begin with a PROXY header, which proxy.proxy_protocol demands")
	errNotStream   = errors.New("the PROXY header is of a datagram")
)

// readProxyHeader reads what a trusted peer says before anything else: for
// whom it has connected (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt).
// It returns the connection as it goes on behind the header, and the address
// that is the peer from now on. That is not the load balancer's: whether
// X-Forwarded-* are believed is asked of the one in the header.
//
//   - A health check of the load balancer's own (LOCAL, or UNKNOWN in version 1)
//     comes from the peer itself.
//   - A client of the load balancer that came by a Unix socket has no address:
//     the result is the zero Addr, which nothing trusts.
//   - Any other peer, and any other beginning, is an error: the caller closes.
//
// It waits for the peer, for proxyHeaderTimeout at most, so it is for the
// connection's own goroutine, never for the accept loop. It leaves no deadline
// behind. A header of version 1 may come in pieces.
func (p *Proxy) readProxyHeader(c net.Conn, peer netip.Addr) (net.Conn, netip.Addr, error) {
	if !contains(p.rules.Load().trusted, peer) {
		return nil, netip.Addr{}, errNotTrusted
	}
	if err := c.SetReadDeadline(time.Now().Add(proxyHeaderTimeout)); err != nil {
		return nil, netip.Addr{}, err
	}
	in := bufio.NewReaderSize(c, proxyBuffer)
	header, err := proxyHeader(in)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	source, err := sourceOf(header, peer)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	if in.Buffered() > 0 {
		c = &readAhead{Conn: c, rest: in}
	}
	return c, source, c.SetReadDeadline(time.Time{})
}

// proxyHeader reads one header, and not a byte more out of in.
func proxyHeader(in *bufio.Reader) (*proxyproto.Header, error) {
	if err := awaitProxyLine(in); err != nil {
		return nil, fmt.Errorf("wait for a PROXY header: %w", err)
	}
	header, err := proxyproto.Read(in)
	if errors.Is(err, proxyproto.ErrNoProxyProtocol) {
		return nil, errProxyHeader
	}
	if err != nil {
		return nil, fmt.Errorf("read PROXY header: %w", err)
	}
	return header, nil
}

// awaitProxyLine waits until a header of version 1 is there as a whole, for
// proxyproto takes none that isn't. It returns as soon as there is none to come.
func awaitProxyLine(in *bufio.Reader) error {
	for n := 1; ; n++ {
		if _, err := in.Peek(n); err != nil {
			return err
		}
		n = in.Buffered()
		line, _ := in.Peek(n)
		begin := min(n, len(proxyproto.SIGV1))
		if !bytes.Equal(line[:begin], proxyproto.SIGV1[:begin]) || n >= maxProxyLine || bytes.IndexByte(line, '\n') >= 0 {
			return nil
		}
	}
}

// sourceOf is the address that a header tells, in the form of all addresses here.
func sourceOf(h *proxyproto.Header, peer netip.Addr) (netip.Addr, error) {
	if h.Command.IsLocal() {
		return peer, nil
	}
	switch addr := h.SourceAddr.(type) {
	case *net.TCPAddr:
		return addr.AddrPort().Addr().Unmap().WithZone(""), nil
	case *net.UnixAddr:
		if h.TransportProtocol.IsStream() {
			return netip.Addr{}, nil
		}
	}
	return netip.Addr{}, errNotStream
}

// readAhead is a connection of which some bytes have been read already.
type readAhead struct {
	net.Conn
	rest *bufio.Reader // nil once they are used up
}

// Read gives the bytes that were read ahead first, and by themselves.
func (c *readAhead) Read(p []byte) (int, error) {
	if c.rest == nil {
		return c.Conn.Read(p)
	}
	n, err := c.rest.Read(p[:min(len(p), c.rest.Buffered())])
	if c.rest.Buffered() == 0 {
		c.rest = nil
	}
	return n, err
}

// CloseWrite ends our side of the connection, where it can.
func (c *readAhead) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// logRefusedPeer says once a second at most why a connection was closed before
// its first request: anybody can cause these.
func (p *Proxy) logRefusedPeer(peer netip.Addr, err error) {
	now := time.Now()
	last := p.lastRefused.Load()
	if now.UnixNano()-last < int64(time.Second) || !p.lastRefused.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	p.options.Log.Warn().Str("listener", "proxy").Stringer("peer", peer).Err(err).Msg("connection closed before its first request")
}
