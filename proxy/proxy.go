package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"github.com/valyala/fasthttp"

	"github.com/r8limiter/r8limiter/limiter"
)

// Which requests the log holds a line of.
const (
	LogAll    = "all"
	LogDenied = "denied"
	LogNone   = "none"
)

// Options are what a Proxy works with besides its Config.
type Options struct {
	Limiter *limiter.Limiter
	// Log gets a line a request, and the proxy's own troubles.
	Log zerolog.Logger
	// LogRequests is LogAll, LogDenied or LogNone; "" is LogAll.
	LogRequests string
}

// Proxy is the proxy listener.
type Proxy struct {
	options   Options
	trusted   []Prefix
	prefix6   int
	router    *router
	upstreams map[string]*upstream
	metrics   *proxyMetrics
	headers   limiter.HeaderSet
	server    *fasthttp.Server
	exchanges sync.Pool
	draining  atomic.Bool
	// lastTrouble is when isNews said yes, in Unix nanoseconds.
	lastTrouble atomic.Int64
}

// New builds a proxy from a configuration that Validate found no fault with.
func New(c Config, o Options) (*Proxy, error) {
	p := &Proxy{
		options: o, trusted: c.TrustedProxies, prefix6: c.IPv6Prefix,
		router: newRouter(), upstreams: map[string]*upstream{},
		metrics: newProxyMetrics(), headers: o.Limiter.Headers(),
	}
	for name, uc := range c.Upstreams {
		options := uc.options(name)
		options.log = o.Log
		u, err := newUpstream(options)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", name, err)
		}
		u.metrics = newUpstreamMetrics(p.metrics.set, name, u)
		p.upstreams[name] = u
	}
	for i := range c.Routes {
		rt, err := p.newRoute(i, &c.Routes[i])
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", c.Routes[i].Name, err)
		}
		p.router.add(rt, c.Routes[i].Match.Host)
	}
	p.exchanges.New = func() any { return &exchange{proxy: p} }
	p.server = p.newServer()
	for _, u := range p.upstreams {
		u.start()
	}
	return p, nil
}

func (p *Proxy) newRoute(index int, c *RouteConfig) (*route, error) {
	path, err := parsePath(c.Match.Path)
	if err != nil {
		return nil, err
	}
	rt := &route{
		index: index, name: c.Name, path: path, methods: c.Match.Methods,
		userID: c.UserID, resource: c.Resource, cost: c.Cost,
		action: actions[c.Action], upstream: p.upstreams[c.Upstream],
		metrics: newRouteMetrics(p.metrics.set, c.Name, p.options.Limiter.Outcomes(c.Name)),
	}
	for name, value := range c.Match.Headers {
		rt.headers = append(rt.headers, headerMatch{name: name, value: value, any: value == "*"})
	}
	templates := []*Template{&rt.resource, &rt.cost}
	for i := range rt.userID {
		templates = append(templates, &rt.userID[i])
	}
	for _, t := range templates {
		if err := t.bindPath(path); err != nil {
			return nil, err
		}
	}
	return rt, nil
}

func (p *Proxy) newServer() *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                       p.handle,
		ExpectHandler:                 p.handleExpect,
		ErrorHandler:                  p.handleError,
		ReadTimeout:                   headTimeout,
		IdleTimeout:                   keepAlive,
		ReadBufferSize:                maxHeadBytes,
		StreamRequestBody:             true,
		MaxRequestBodySize:            1, // how much is read before the handler, not a limit
		DisablePreParseMultipartForm:  true,
		DisableHeaderNamesNormalizing: true,
		NoDefaultServerHeader:         true,
		NoDefaultDate:                 true,
		NoDefaultContentType:          true,
		SecureErrorLogMessage:         true,
		LazyRequestTime:               true,
		CloseOnShutdown:               true,
		Logger:                        quietLogger{},
	}
}

// quietLogger drops fasthttp's own lines: every fault of a request is logged
// by us with its cause, and a flood of bad ones must not flood the log twice.
type quietLogger struct{}

// Printf drops the line.
func (quietLogger) Printf(string, ...any) {}

// Serve answers clients on l until Shutdown.
func (p *Proxy) Serve(l net.Listener) error {
	return p.server.Serve(&listener{Listener: l, log: p.options.Log})
}

// Drain makes every answer from now on close its connection.
func (p *Proxy) Drain() { p.draining.Store(true) }

// Shutdown stops accepting, waits for the requests in flight until ctx ends,
// and closes the connections to the upstreams.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.Drain()
	err := p.server.ShutdownWithContext(ctx)
	for _, u := range p.upstreams {
		u.close()
	}
	return err
}

// handle answers one request: the whole way of a request is serve.
func (p *Proxy) handle(ctx *fasthttp.RequestCtx) {
	conn := ctx.Conn().(*clientConn)
	x := conn.continued
	conn.continued = nil
	if x == nil {
		x = p.acquire(ctx, conn)
	}
	defer p.release(x)
	if x.done || x.serve() {
		x.forward()
	}
}

// handleExpect decides about a request that asks before it sends its body:
// denied, it is answered here; allowed, the client is told to go on.
func (p *Proxy) handleExpect(ctx *fasthttp.RequestCtx) int {
	conn := ctx.Conn().(*clientConn)
	x := p.acquire(ctx, conn)
	allowed := false
	defer func() {
		if !allowed {
			p.release(x)
		}
	}()
	x.closing = true
	if !x.serve() || conn.send(continueLine, x.start) != nil {
		return fasthttp.StatusExpectationFailed
	}
	allowed = true
	x.closing = ctx.Request.Header.ConnectionClose()
	x.done = true
	conn.continued = x
	return fasthttp.StatusContinue
}

var continueLine = []byte("HTTP/1.1 100 Continue\r\n\r\n")

// handleError answers what fasthttp could not read as a request.
func (p *Proxy) handleError(ctx *fasthttp.RequestCtx, err error) {
	x := p.acquire(ctx, ctx.Conn().(*clientConn))
	defer p.release(x)
	x.closing, x.conn.linger = true, true
	var small *fasthttp.ErrSmallBuffer
	var timeout net.Error
	switch {
	case errors.As(err, &small):
		x.problem(fasthttp.StatusRequestHeaderFieldsTooLarge, "the request head is larger than 16 KiB", errHeadTooLong)
	case errors.As(err, &timeout) && timeout.Timeout():
		x.problem(fasthttp.StatusRequestTimeout, "the request did not arrive in time", errTooSlow)
	default:
		x.problem(fasthttp.StatusBadRequest, "the request can't be read as HTTP/1.1", errUnreadable)
	}
}

// What fasthttp could not read, for the log: its own errors quote the client's
// bytes, cookies and tokens among them.
var (
	errHeadTooLong = errors.New("request head over 16 KiB")
	errTooSlow     = errors.New("time-out while reading the request")
	errUnreadable  = errors.New("request is no HTTP/1.1")
)

func (p *Proxy) acquire(ctx *fasthttp.RequestCtx, conn *clientConn) *exchange {
	x := p.exchanges.Get().(*exchange)
	x.ctx, x.conn, x.start = ctx, conn, time.Now()
	x.request.peer, x.request.client = conn.peer, conn.peer // for the log, until more is known
	x.closing = p.draining.Load() || ctx.Request.Header.ConnectionClose() || !ctx.Request.Header.IsHTTP11()
	return x
}

// release ends an exchange, also one that panicked: the client gets a 500, or,
// if part of an answer is out, a closed connection.
func (p *Proxy) release(x *exchange) {
	if fault := recover(); fault != nil {
		p.metrics.panics.Inc()
		p.options.Log.Error().Interface("panic", fault).Bytes("stack", debug.Stack()).Msg("a request panicked; please report this")
		x.closing = true
		if x.status == 0 {
			x.problem(fasthttp.StatusInternalServerError, "internal error", fmt.Errorf("panic: %v", fault))
		}
	}
	x.resp.finish()
	x.conn.budget = 0
	if x.closing {
		x.ctx.SetConnectionClose()
	}
	x.record()
	x.reset()
	p.exchanges.Put(x)
}
