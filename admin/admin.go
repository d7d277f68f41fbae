package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/rs/zerolog"
	"github.com/valyala/fasthttp"
)

// Bounds of a connection and of a request.
const (
	readTimeout  = 10 * time.Second // a whole request
	writeTimeout = 10 * time.Second
	idleTimeout  = 60 * time.Second // between two requests
	maxHead      = 16 << 10         // bytes
	maxBody      = 64 << 10         // bytes; no endpoint reads a body
)

// Deps is what the control listener shows and asks.
type Deps struct {
	Limiter *limiter.Limiter
	// Log adds the time to its lines by itself.
	Log zerolog.Logger
	// LogRequests is "all", "denied" (every answer from 400 on) or "none".
	LogRequests string
	// Metrics write what else /metrics shows, in Prometheus text format.
	Metrics []func(io.Writer)
	Version string
}

// Server is the control listener. Create it with New.
type Server struct {
	Deps
	adminGuard guard
	allowGuard guard
	http       *fasthttp.Server

	outcomes *limiter.Outcomes
	set      *metrics.Set
	latency  *metrics.PrometheusHistogram // of /allow, seconds
	panics   *metrics.Counter

	draining atomic.Bool
	stop     chan struct{} // closed by Shutdown
	stopOnce sync.Once
}

// What an endpoint allows.
const (
	reading = "GET, HEAD"
	posting = "POST"
)

// endpoint is what is served under one path.
type endpoint struct {
	methods string // reading or posting
	serve   func(*Server, *exchange)
	quiet   bool // asked every few seconds by machines: logged only at debug
}

func (e *endpoint) allows(method []byte) bool {
	if e.methods == posting {
		return string(method) == fasthttp.MethodPost
	}
	return string(method) == fasthttp.MethodGet || string(method) == fasthttp.MethodHead
}

// endpoints are matched on the raw target: no spelling but these reaches one.
var endpoints = map[string]*endpoint{
	"/allow":       {methods: posting, serve: (*Server).allow},
	"/admin/stats": {methods: reading, serve: (*Server).stats},
	"/metrics":     {methods: reading, serve: (*Server).metrics, quiet: true},
	"/readyz":      {methods: reading, serve: (*Server).readyz, quiet: true},
	"/livez":       {methods: reading, serve: (*Server).livez, quiet: true},
}

// userPrefix precedes a user's id; /admin/user/{user_id} is userEndpoint.
const userPrefix = "/admin/user/"

var userEndpoint = &endpoint{methods: reading, serve: (*Server).user}

// New makes a control listener that doesn't listen yet. c has been validated.
func New(c Config, d Deps) *Server {
	s := &Server{
		Deps:       d,
		adminGuard: newGuard(c.Token),
		allowGuard: newGuard(c.AllowToken),
		outcomes:   d.Limiter.Outcomes("/allow"),
		set:        metrics.NewSet(),
		stop:       make(chan struct{}),
	}
	s.latency = s.set.NewPrometheusHistogramExt(`request_latency_seconds{endpoint="/allow"}`, latencyBuckets)
	s.panics = s.set.NewCounter(`r8limiter_panics_total{listener="control"}`)
	s.http = s.newHTTP()
	return s
}

func (s *Server) newHTTP() *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                      s.handle,
		ErrorHandler:                 s.handleBroken,
		Logger:                       quietLogger{s.Log},
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		ReadBufferSize:               maxHead,
		MaxRequestBodySize:           maxBody,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		DisablePreParseMultipartForm: true,
		CloseOnShutdown:              true,
	}
}

// Serve answers on ln until Shutdown, then returns nil. A shortage of file
// descriptors doesn't end it; an error that it returns is permanent.
func (s *Server) Serve(ln net.Listener) error {
	err := s.http.Serve(&patientListener{Listener: ln, stop: s.stop, log: s.Log})
	if err != nil {
		return fmt.Errorf("serve control listener on %s: %w", ln.Addr(), err)
	}
	return nil
}

// Drain makes /readyz answer 503, so that load balancers turn away, and closes
// connections after their next answer. Everything is still answered.
func (s *Server) Drain() { s.draining.Store(true) }

// Shutdown closes the listener, waits for the requests in flight until ctx is
// done, and returns what kept it from an orderly end. It may be called at any
// time, also before Serve, and more than once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Drain()
	s.stopOnce.Do(func() { close(s.stop) })
	if err := s.http.ShutdownWithContext(ctx); err != nil {
		return fmt.Errorf("shut down control listener: %w", err)
	}
	return nil
}

// handle answers one request. fasthttp would let a panic end the process.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	x := begin(ctx)
	defer func() {
		if v := recover(); v != nil {
			s.recovered(x, v)
		}
		if s.draining.Load() {
			ctx.SetConnectionClose()
		}
		s.logRequest(x)
		x.end()
	}()
	s.route(x)
}

func (s *Server) recovered(x *exchange, v any) {
	s.panics.Inc()
	s.Log.Error().Str("listener", "control").Bytes("path", x.path).Interface("panic", v).Bytes("stack", debug.Stack()).Msg("panic")
	x.cause = fmt.Errorf("panic: %v", v)
	x.ctx.Response.Reset()
	x.malformed(fasthttp.StatusInternalServerError, errors.New("internal error"))
}

// route finds who answers x. Nobody learns which paths /admin has, nor with
// which methods, before the guard has let them pass.
func (s *Server) route(x *exchange) {
	if err := checkRequest(&x.ctx.Request.Header); err != nil {
		x.malformed(statusOf(err), err)
		return
	}
	if isAdmin(x.path) && !s.mayAdminister(x) {
		return
	}
	e := find(x)
	if e == nil {
		x.refuse(fasthttp.StatusNotFound, "there is nothing here")
		return
	}
	x.quiet = e.quiet
	if !e.allows(x.ctx.Request.Header.Method()) {
		x.ctx.Response.Header.Set(fasthttp.HeaderAllow, e.methods)
		x.refuse(fasthttp.StatusMethodNotAllowed, "the method is not allowed here, only "+e.methods)
		return
	}
	e.serve(s, x)
}

// isAdmin says whether a raw path is /admin or below it.
func isAdmin(path []byte) bool {
	rest, ok := bytes.CutPrefix(path, []byte("/admin"))
	return ok && (len(rest) == 0 || rest[0] == '/')
}

// find returns nil if x's path is nobody's.
func find(x *exchange) *endpoint {
	if e := endpoints[string(x.path)]; e != nil {
		return e
	}
	// An id is one segment: a slash that is part of it is escaped.
	id, ok := bytes.CutPrefix(x.path, []byte(userPrefix))
	if !ok || len(id) == 0 || bytes.IndexByte(id, '/') >= 0 {
		return nil
	}
	x.rest = id
	return userEndpoint
}

// handleBroken answers a request that fasthttp could not read.
func (s *Server) handleBroken(ctx *fasthttp.RequestCtx, err error) {
	x := begin(ctx)
	// What was read up to the error is not to be trusted, nor logged.
	x.path, x.query = nil, nil
	status := statusOf(err)
	x.malformed(status, errors.New(brokenReasons[status]))
	s.logRequest(x)
	x.end()
}

var brokenReasons = map[int]string{
	fasthttp.StatusBadRequest:                  "the request is malformed",
	fasthttp.StatusRequestTimeout:              "the request took too long to arrive",
	fasthttp.StatusRequestEntityTooLarge:       "the body is too large: send none",
	fasthttp.StatusRequestHeaderFieldsTooLarge: "the request line and header are too large",
}

// statusOf is the status for a request that can't be read because of err.
func statusOf(err error) int {
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.As(err, &small), errors.Is(err, errManyFields):
		return fasthttp.StatusRequestHeaderFieldsTooLarge
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		return fasthttp.StatusRequestEntityTooLarge
	case errors.As(err, &netErr) && netErr.Timeout():
		return fasthttp.StatusRequestTimeout
	case errors.Is(err, errHTTPVersion):
		return fasthttp.StatusHTTPVersionNotSupported
	}
	return fasthttp.StatusBadRequest
}
