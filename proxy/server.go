package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"
	"golang.org/x/net/http2"
)

// server takes clients' connections and serves each in a goroutine.
//
// fasthttp serves the control listener. Here its server had to go: it reads a
// request leniently before anybody can look at it, hides the framing of bodies,
// decides about a body before the handler, and has no HTTP/2 to share a way with.
type server struct {
	proxy    *Proxy
	limits   LimitsConfig
	tls      *tls.Config  // nil: plain
	http2    *http2Server // nil where tls is
	refused  [refusalReasons]*metrics.Counter
	stopping atomic.Bool
	cutting  atomic.Bool   // what did not end in time is being cut off
	stopped  chan struct{} // closed when shutdown is over
	watching sync.Once
	stopOnce sync.Once
	// away counts the connections that are being turned away; see dismiss.
	away atomic.Int64

	mu        sync.Mutex // guards what follows
	listeners map[net.Listener]bool
	conns     map[*clientConn]bool
	perClient map[netip.Addr]int // by the first address of its network
}

// Why a connection is refused.
const (
	refusedTotal = iota
	refusedPerClient
	refusedHandshake
	refusalReasons
)

var refusalNames = [refusalReasons]string{"connections", "connections_per_client", "handshake"}

func newServer(p *Proxy, limits LimitsConfig, config *tls.Config) *server {
	s := &server{
		proxy: p, limits: limits, stopped: make(chan struct{}),
		listeners: map[net.Listener]bool{}, conns: map[*clientConn]bool{}, perClient: map[netip.Addr]int{},
	}
	if s.limits.Connections == 0 {
		s.limits.Connections = defaultConnections()
	}
	if config != nil {
		s.tls, s.http2 = withProtocols(config), newHTTP2Server(s)
	}
	for reason, name := range refusalNames {
		s.refused[reason] = p.metrics.set.NewCounter(fmt.Sprintf(`r8limiter_connections_refused_total{listener="proxy",reason=%q}`, name))
	}
	return s
}

// defaultConnections leaves a fifth of the files a process may open to
// upstreams, the store and the control listener.
func defaultConnections() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 1 << 16
	}
	return int(min(files.Cur, 1<<30)) / 5 * 4
}

// serve takes connections from l until shutdown.
func (s *server) serve(l net.Listener) error {
	s.mu.Lock()
	if s.stopping.Load() {
		s.mu.Unlock()
		return l.Close()
	}
	s.listeners[l] = true
	s.mu.Unlock()
	s.watching.Do(func() { go s.watchDepartures() })
	for pause := time.Duration(0); ; {
		raw, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.take(raw)
		case s.stopping.Load() && (errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)):
			s.close(l)
			return nil
		case !isTransient(err):
			s.close(l)
			return err
		default:
			pause = s.rest(pause, err)
		}
	}
}

func (s *server) close(l net.Listener) {
	_ = l.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// rest waits a while, from 5 ms up to 1 s, because the process or the system is
// out of descriptors: the loop that accepts must outlive that.
func (s *server) rest(pause time.Duration, err error) time.Duration {
	pause = min(max(2*pause, 5*time.Millisecond), time.Second)
	if s.proxy.isNews(time.Now()) {
		s.proxy.options.Log.Warn().Err(err).Msg("no connection can be accepted: raise the limit of open files (ulimit -n), or lower proxy.limits.connections")
	}
	time.Sleep(pause)
	return pause
}

// isTransient says whether accepting may work again.
func isTransient(err error) bool { return isShortage(err) || errors.Is(err, syscall.ECONNABORTED) }

// isShortage says whether the process or the system has no room for a connection.
func isShortage(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// take serves a connection in a goroutine of its own, or refuses it.
func (s *server) take(raw net.Conn) {
	c := &clientConn{Conn: raw, socket: raw, server: s}
	c.reader.conn = c
	if !s.enter(c) {
		s.dismiss(c)
		return
	}
	go s.run(c)
}

// run serves c until it ends.
func (s *server) run(c *clientConn) {
	defer s.leave(c)
	defer func() {
		if fault := recover(); fault != nil {
			s.panicked(fault)
		}
	}()
	if err := s.identify(c); err != nil {
		s.unopened(c, err)
		return
	}
	client := s.clientOf(c.peer)
	if !s.count(client) {
		s.refuse(refusedPerClient, c.peer)
		c.turnAway(refusedPerClient)
		return
	}
	defer s.uncount(client)
	if err := s.secure(c); err != nil {
		s.unopened(c, err)
		return
	}
	if c.http2 {
		s.http2.serve(c)
		return
	}
	c.serve()
}

func (s *server) panicked(fault any) {
	s.proxy.metrics.panics.Inc()
	s.proxy.options.Log.Error().Interface("panic", fault).Bytes("stack", debug.Stack()).Msg("a connection panicked; please report this")
}

// identify finds out who the peer is: the PROXY header says so, if there is one.
func (s *server) identify(c *clientConn) error {
	c.peer = addressOf(c.socket)
	if !s.proxy.proxyProtocol {
		return nil
	}
	conn, source, err := s.proxy.readProxyHeader(c.Conn, c.peer)
	if err != nil {
		return err
	}
	c.Conn, c.peer = conn, source
	return nil
}

// secure does the TLS handshake, where there is one.
func (s *server) secure(c *clientConn) error {
	if s.tls == nil {
		return nil
	}
	secured := tls.Server(c.Conn, s.tls)
	ctx, cancel := context.WithTimeout(context.Background(), s.limits.HeaderTimeout)
	defer cancel()
	if err := secured.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.Conn, c.secure = secured, true
	c.http2 = secured.ConnectionState().NegotiatedProtocol == http2.NextProtoTLS
	return nil
}

// addressOf is the address of a connection's peer; the zero Addr where it has none.
func addressOf(c net.Conn) netip.Addr {
	if addr, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return addr.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// enter registers a connection and says whether there is room for it.
func (s *server) enter(c *clientConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.limits.Connections {
		return false
	}
	s.conns[c] = true
	return true
}

func (s *server) leave(c *clientConn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// clientOf is what counts as one client of limits.connections_per_client; the
// zero Addr is not counted.
func (s *server) clientOf(peer netip.Addr) netip.Addr {
	if s.limits.ConnectionsPerClient == 0 || !peer.IsValid() || contains(s.proxy.trusted, peer) {
		return netip.Addr{}
	}
	if peer.Is4() {
		return peer
	}
	network, _ := peer.Prefix(s.proxy.prefix6)
	return network.Addr()
}

func (s *server) count(client netip.Addr) bool {
	if !client.IsValid() {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perClient[client] >= s.limits.ConnectionsPerClient {
		return false
	}
	s.perClient[client]++
	return true
}

func (s *server) uncount(client netip.Addr) {
	if !client.IsValid() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perClient[client]--; s.perClient[client] == 0 {
		delete(s.perClient, client)
	}
}

// turnedAway are the answers to connections for which there is no room.
var turnedAway = [...][]byte{
	refusedTotal:     noRoom("the gateway has all the connections that proxy.limits.connections allows"),
	refusedPerClient: noRoom("this client has all the connections that proxy.limits.connections_per_client allows"),
}

func noRoom(detail string) []byte {
	body := fmt.Sprintf(`{"type":"about:blank","title":"Service Unavailable","status":503,"detail":%q}`, detail)
	return fmt.Appendf(nil, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

var errRefused = [...]error{
	refusedTotal:     errors.New("proxy.limits.connections is reached"),
	refusedPerClient: errors.New("proxy.limits.connections_per_client is reached"),
}

// refuse counts and logs a connection for which there is no room.
func (s *server) refuse(reason int, peer netip.Addr) {
	s.refused[reason].Inc()
	s.proxy.metrics.problems[fasthttp.StatusServiceUnavailable].Inc()
	s.proxy.logRefusedPeer(peer, errRefused[reason])
}

// unopened counts and logs a connection that did not come to its first request.
// Health checks of load balancers connect and close: that is no failure.
func (s *server) unopened(c *clientConn, err error) {
	if errors.Is(err, io.EOF) {
		s.proxy.options.Log.Debug().Str("listener", "proxy").Stringer("peer", c.peer).Msg("connection closed by the peer before its first byte")
		return
	}
	s.refused[refusedHandshake].Inc()
	s.proxy.logRefusedPeer(c.peer, err)
}

// dismiss turns away a connection for which there is no room. Until it has ended
// it takes a file, of those that were left for upstreams, the store and the control
// listener: of many at a time most are closed at once, and may lose the answer.
func (s *server) dismiss(c *clientConn) {
	s.refuse(refusedTotal, addressOf(c.socket))
	if s.away.Add(1) > int64(s.limits.Connections/16+1) {
		s.away.Add(-1)
		if s.tls == nil {
			_ = c.socket.SetWriteDeadline(time.Now().Add(acceptGrace))
			_, _ = c.socket.Write(turnedAway[refusedTotal])
		}
		_ = c.socket.Close()
		return
	}
	go func() {
		defer s.away.Add(-1)
		c.turnAway(refusedTotal)
	}()
}

// turnAway tells a client that there is no room, if it takes that at once. Who
// speaks TLS would not understand a word before the handshake, and is not worth one.
func (c *clientConn) turnAway(reason int) {
	if c.server.tls == nil {
		_ = c.Conn.SetDeadline(time.Now().Add(lingerTimeout))
		_, err := c.Conn.Write(turnedAway[reason])
		c.linger = err == nil
	}
	_ = c.Close()
}

// connections counts the clients' connections.
func (s *server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

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
