package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/net/http2"
)

// server takes clients' connections and serves each in a goroutine.
//
// fasthttp serves the control listener. Here its server had to go: it reads a
// request leniently before anybody can look at it, hides the framing of bodies,
// decides about a body before the handler, and has no HTTP/2 to share a way with.
type server struct {
	proxy    *Proxy
	tls      *tls.Config // nil: plain
	http2    *http2All   // nil where tls is
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

func newServer(p *Proxy, config *tls.Config) *server {
	s := &server{
		proxy: p, stopped: make(chan struct{}),
		listeners: map[net.Listener]bool{}, conns: map[*clientConn]bool{}, perClient: map[netip.Addr]int{},
	}
	if config != nil {
		s.tls, s.http2 = withProtocols(config), newHTTP2(s)
	}
	for reason, name := range refusalNames {
		s.refused[reason] = p.metrics.set.NewCounter(fmt.Sprintf(`r8limiter_connections_refused_total{listener="proxy",reason=%q}`, name))
	}
	return s
}

// limits are those in force now.
func (s *server) limits() *LimitsConfig { return &s.proxy.rules.Load().client }

// renew takes over new limits where they were copied.
func (s *server) renew() {
	if s.http2 != nil {
		s.http2.renew()
	}
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
	c := newClientConn(s, raw)
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
	ctx, cancel := context.WithTimeout(context.Background(), s.limits().HeaderTimeout)
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

// connections counts the clients' connections.
func (s *server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}
