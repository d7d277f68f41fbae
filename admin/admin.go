package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strings"
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
	maxHead      = 64 << 10         // bytes; more than a proxy that describes a request at /check takes of its client
	maxBody      = 64 << 10         // bytes
)

// Deps is what the control listener shows and asks.
type Deps struct {
	Limiter *limiter.Limiter
	// Log adds the time to its lines by itself.
	Log zerolog.Logger
	// LogRequests is that of Terms, until Commit.
	LogRequests string
	// Metrics write what else /metrics shows, in Prometheus text format.
	Metrics []func(io.Writer)
	// Upstreams says how the proxy's upstreams fare; nil where there is no proxy.
	Upstreams func() []Upstream
	// NewJudge makes what says of a request what the routes in force say.
	NewJudge func() Judge
	// Config is that of Terms, until Commit.
	Config any
	// Explain answers POST /admin/explain by the rules in force.
	// The error is the question's fault.
	Explain func(context.Context, *Question) (Explained, error)
	// Reload takes the configuration file in again.
	Reload  func() Reloaded
	Version string
}

// Server is the control listener. Create it with New.
type Server struct {
	Deps
	settings atomic.Pointer[Settings] // in force; see Commit
	guesses  guesses
	http     *fasthttp.Server

	outcomes     *limiter.Outcomes
	set          *metrics.Set
	latency      *metrics.PrometheusHistogram // of /allow, seconds
	checkLatency *metrics.PrometheusHistogram // of /check, seconds
	panics       *metrics.Counter
	checks       sync.Pool // of *check

	draining atomic.Bool
	stop     chan struct{} // closed by Shutdown
	stopOnce sync.Once
}

// endpoint is what is served under one path, by method.
type endpoint struct {
	get, post, put, delete func(*Server, *exchange) // get answers HEAD too
	any                    func(*Server, *exchange) // in place of the others: whatever the method
	quiet                  bool                     // asked every few seconds by machines: logged only at debug
}

// serves is who answers method, or nil.
func (e *endpoint) serves(method []byte) func(*Server, *exchange) {
	if e.any != nil {
		return e.any
	}
	switch string(method) {
	case fasthttp.MethodGet, fasthttp.MethodHead:
		return e.get
	case fasthttp.MethodPost:
		return e.post
	case fasthttp.MethodPut:
		return e.put
	case fasthttp.MethodDelete:
		return e.delete
	}
	return nil
}

// allowed is the value of an Allow field.
func (e *endpoint) allowed() string {
	var methods []string
	for _, each := range []struct {
		names string
		serve func(*Server, *exchange)
	}{{"GET, HEAD", e.get}, {"POST", e.post}, {"PUT", e.put}, {"DELETE", e.delete}} {
		if each.serve != nil {
			methods = append(methods, each.names)
		}
	}
	return strings.Join(methods, ", ")
}

// endpoints are matched on the raw target: no spelling but these reaches one.
var endpoints = map[string]*endpoint{
	"/allow":               {post: (*Server).allow},
	checkPath:              {any: (*Server).check},
	"/admin/":              {get: (*Server).page},
	"/admin/stats":         {get: (*Server).stats},
	"/admin/top_offenders": {get: (*Server).topOffenders},
	"/admin/resources":     {get: (*Server).resources},
	"/admin/overrides":     {get: (*Server).overrides},
	"/admin/config":        {get: (*Server).config},
	"/admin/reload":        {post: (*Server).reload},
	"/admin/upstreams":     {get: (*Server).upstreams},
	"/admin/audit":         {get: (*Server).audit},
	"/admin/openapi.yaml":  {get: (*Server).openAPI},
	"/admin/explain":       {post: (*Server).explain},
	"/metrics":             {get: (*Server).metrics, quiet: true},
	"/readyz":              {get: (*Server).readyz, quiet: true},
	"/livez":               {get: (*Server).livez, quiet: true},
}

// named are endpoints whose path names something: between prefix and suffix
// stands one segment, in which a slash is escaped.
var named = []struct {
	prefix, suffix string
	endpoint       endpoint
}{
	{"/admin/user/", "", endpoint{get: (*Server).user}},
	{"/admin/user/", "/reset", endpoint{post: (*Server).reset}},
	{"/admin/user/", "/override", endpoint{put: (*Server).putOverride, delete: (*Server).deleteOverride}},
	{"/admin/web/", "", endpoint{get: (*Server).asset}},
	{"/admin/resources/", "", endpoint{put: (*Server).putLimits, delete: (*Server).deleteLimits}},
}

// New makes a control listener that doesn't listen yet. c has been validated.
func New(c Config, d Deps) *Server {
	s := &Server{
		Deps:     d,
		outcomes: d.Limiter.Outcomes("/allow"),
		set:      metrics.NewSet(),
		stop:     make(chan struct{}),
		guesses:  newGuesses(),
	}
	s.Commit(NewSettings(c, Terms{LogRequests: d.LogRequests, Config: d.Config}))
	s.latency = s.set.NewPrometheusHistogramExt(`request_latency_seconds{endpoint="/allow"}`, latencyBuckets)
	s.checkLatency = s.set.NewPrometheusHistogramExt(`request_latency_seconds{endpoint="/check"}`, latencyBuckets)
	s.checks.New = s.newCheck
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
		s.endCheck(x)
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
	if findCheck(x) != nil {
		s.beginCheck(x)
	}
	if err := checkRequest(&x.ctx.Request.Header); err != nil {
		x.path = nil // nothing of it is logged: it may hold a password
		x.malformed(statusOf(err), err)
		x.replaceBroken(statusOf(err))
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
	serve := e.serves(x.ctx.Request.Header.Method())
	if serve == nil {
		x.ctx.Response.Header.Set(fasthttp.HeaderAllow, e.allowed())
		x.refuse(fasthttp.StatusMethodNotAllowed, "the method is not allowed here, only "+e.allowed())
		return
	}
	serve(s, x)
}

// isAdmin says whether a raw path is /admin or below it.
func isAdmin(path []byte) bool {
	rest, ok := bytes.CutPrefix(path, []byte("/admin"))
	return ok && (len(rest) == 0 || rest[0] == '/')
}

// find returns nil if x's path is nobody's.
func find(x *exchange) *endpoint {
	if e := findCheck(x); e != nil {
		return e
	}
	if e := endpoints[string(x.path)]; e != nil {
		return e
	}
	for i := range named {
		n := &named[i]
		rest, ok := bytes.CutPrefix(x.path, []byte(n.prefix))
		if !ok {
			continue
		}
		name, ok := bytes.CutSuffix(rest, []byte(n.suffix))
		if ok && len(name) > 0 && bytes.IndexByte(name, '/') < 0 {
			x.rest = name
			return &n.endpoint
		}
	}
	return nil
}

// handleBroken answers a request that fasthttp could not read.
func (s *Server) handleBroken(ctx *fasthttp.RequestCtx, err error) {
	if state := ctx.TLSConnectionState(); state != nil && !state.HandshakeComplete {
		s.Log.Info().Str("listener", "control").Stringer("peer", ctx.RemoteAddr()).Err(err).Msg("TLS handshake failed")
		return
	}
	x := begin(ctx)
	if findCheck(x) != nil {
		s.beginCheck(x)
	}
	// What was read up to the error is not to be trusted, save with the status of its
	// refusal, nor logged.
	x.path, x.query = nil, nil
	status := statusOf(err)
	x.malformed(status, errors.New(brokenReasons[status]))
	x.replaceBroken(status)
	s.logRequest(x)
	s.endCheck(x)
	x.end()
}

var brokenReasons = map[int]string{
	fasthttp.StatusBadRequest:                  "the request is malformed",
	fasthttp.StatusRequestTimeout:              "the request took too long to arrive",
	fasthttp.StatusRequestEntityTooLarge:       "the body is larger than 64 KiB",
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
