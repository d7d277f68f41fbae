package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// Why a connection is refused.
const (
	refusedTotal = iota
	refusedPerClient
	refusedHandshake
	refusalReasons
)

var refusalNames = [refusalReasons]string{"connections", "connections_per_client", "handshake"}

// defaultConnections leaves a fifth of the files a process may open to
// upstreams, the store and the control listener.
func defaultConnections() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 1 << 16
	}
	return int(min(files.Cur, 1<<30)) / 5 * 4
}

// enter registers a connection and says whether there is room for it.
func (s *server) enter(c *clientConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.limits().Connections {
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
	rs := s.proxy.rules.Load()
	if rs.client.ConnectionsPerClient == 0 || !peer.IsValid() || contains(rs.trusted, peer) {
		return netip.Addr{}
	}
	if peer.Is4() {
		return peer
	}
	network, _ := peer.Prefix(rs.prefix6)
	return network.Addr()
}

func (s *server) count(client netip.Addr) bool {
	if !client.IsValid() {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perClient[client] >= s.limits().ConnectionsPerClient {
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
	if s.away.Add(1) > int64(s.limits().Connections/16+1) {
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
