package proxy

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/netip"
	"sync"

	"golang.org/x/net/http2"
)

//lint:file-ignore SA1019 what replaces http2.Server is http.Server, which wants the listener and the handshake for itself

// What a connection of HTTP/2 may upload ahead of its readers, in bytes: a stream,
// and all of them. A body that nobody reads costs no more memory.
const (
	streamWindow = 64 << 10
	connWindow   = 256 << 10
)

// http2Server serves the connections that chose HTTP/2 in their handshake. Framing,
// HPACK, flow control and what bounds floods of frames are x/net's.
type http2Server struct {
	server *server
	limits LimitsConfig // that it was made with
	base   http.Server  // has no listener: it is for its time-outs and Shutdown
	frames http2.Server
}

func newHTTP2Server(s *server) *http2Server {
	l := s.limits()
	h := &http2Server{
		server: s, limits: *l,
		base: http.Server{
			ErrorLog: log.New(io.Discard, "", 0),
			// Ours is stream.measure, which answers. From here on x/net ends the
			// connection; its own measure has 32 bytes more for each field.
			MaxHeaderBytes: 2*l.HeaderBytes + 32*l.HeaderFields,
		},
		frames: http2.Server{
			MaxConcurrentStreams: uint32(l.Streams),
			MaxReadFrameSize:     16 << 10, // the least allowed: each connection has a buffer of it
			IdleTimeout:          l.KeepAliveTimeout,
			// A ping isn't answered amid a head: these two cut off slow heads and
			// clients that vanished.
			ReadIdleTimeout:              l.HeaderTimeout,
			PingTimeout:                  l.HeaderTimeout,
			WriteByteTimeout:             l.WriteTimeout,
			MaxUploadBufferPerConnection: connWindow,
			MaxUploadBufferPerStream:     streamWindow,
		},
	}
	// It fails over cipher suites only, and base has no TLS configuration.
	_ = http2.ConfigureServer(&h.base, &h.frames)
	return h
}

// withProtocols is a copy of config that offers what is spoken here.
func withProtocols(config *tls.Config) *tls.Config {
	config = config.Clone()
	config.NextProtos = []string{http2.NextProtoTLS, "http/1.1"}
	return config
}

// serve answers requests until c ends and no handler works for it any more.
func (h *http2Server) serve(c *clientConn) {
	conn := &http2Conn{server: h.server, peer: c.peer}
	h.frames.ServeConn(c.Conn, &http2.ServeConnOpts{BaseConfig: &h.base, Handler: conn})
	conn.wait()
}

// goAway tells all connections to end after the streams they have. A connection
// that comes later must be told again.
func (h *http2Server) goAway() { _ = h.base.Shutdown(context.Background()) }

// http2Conn is the handler of one connection's requests.
type http2Conn struct {
	server *server
	peer   netip.Addr

	mu      sync.Mutex // guards ended
	ended   bool
	running sync.WaitGroup // grows only until ended
}

func (c *http2Conn) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.running.Add(1)
	}
	return !c.ended
}

// wait keeps the connection counted while handlers work for it; they would else
// be bounded by nothing, since a client can leave and come again.
func (c *http2Conn) wait() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.running.Wait()
}

// ServeHTTP answers a request. Its panic is how x/net is told to reset the stream.
func (c *http2Conn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !c.enter() {
		panic(http.ErrAbortHandler)
	}
	defer c.running.Done()
	s := &stream{conn: c, r: r, w: w, control: http.NewResponseController(w), limits: c.server.limits()}
	defer context.AfterFunc(r.Context(), func() { s.departure.leave(c.server.whyLeft()) })()
	c.answer(s)
	if s.cut {
		panic(http.ErrAbortHandler)
	}
}

func (c *http2Conn) answer(s *stream) {
	defer func() {
		if fault := recover(); fault != nil {
			c.server.panicked(fault)
			s.cut = true
		}
	}()
	c.server.proxy.serve(s, c.peer, nil)
}
