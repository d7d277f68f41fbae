package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
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
	// TLS is what the listener speaks; nil for plain HTTP. It is cloned.
	TLS *tls.Config
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
	jwt       *jwtVerifier // nil where no tokens are verified
	apiKeys   *apiKeys     // nil where there is no table
	server    *server
	exchanges sync.Pool
	draining  atomic.Bool
	// lastTrouble is when isNews said yes, in Unix nanoseconds.
	lastTrouble atomic.Int64
	// lastRefused is when logRefusedPeer wrote, in Unix nanoseconds.
	lastRefused atomic.Int64
	// proxyProtocol is Config.ProxyProtocol.
	proxyProtocol bool
}

// New builds a proxy from a configuration that Validate found no fault with.
func New(c Config, o Options) (*Proxy, error) {
	p := &Proxy{
		options: o, trusted: c.TrustedProxies, prefix6: c.IPv6Prefix,
		proxyProtocol: c.ProxyProtocol,
		router:        newRouter(), upstreams: map[string]*upstream{},
		metrics: newProxyMetrics(), headers: o.Limiter.Headers(), apiKeys: newAPIKeys(c.APIKeys),
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
	claims := claimsRead(c.Routes)
	if c.JWT != nil {
		var err error
		if p.jwt, err = newJWTVerifier(c.JWT, claims, p.metrics.jwt); err != nil {
			return nil, fmt.Errorf("jwt: %w", err)
		}
	}
	for i := range c.Routes {
		rt, err := p.newRoute(i, &c.Routes[i])
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", c.Routes[i].Name, err)
		}
		for _, t := range c.Routes[i].templates() {
			t.bindClaims(claims)
			rt.reads.note(&t)
		}
		p.router.add(rt, c.Routes[i].Match.Host)
	}
	p.exchanges.New = func() any {
		x := &exchange{proxy: p}
		x.onInterim = x.interim
		return x
	}
	p.server = newServer(p, c.Limits, o.TLS)
	for _, u := range p.upstreams {
		u.start()
	}
	if p.jwt != nil {
		p.jwt.start(context.Background(), o.Log)
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

// Serve answers clients on l until Shutdown.
func (p *Proxy) Serve(l net.Listener) error { return p.server.serve(l) }

// Drain makes every answer from now on close its connection.
func (p *Proxy) Drain() { p.draining.Store(true) }

// Shutdown stops accepting, waits for the requests in flight until ctx ends,
// and closes the connections to the upstreams. What ran in the background has ended then.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.Drain()
	err := p.server.shutdown(ctx)
	if p.jwt != nil {
		p.jwt.close()
	}
	for _, u := range p.upstreams {
		u.close()
	}
	return err
}

// serve answers one request: the whole way of a request is this. fault is what
// was wrong with its head, if anything was.
func (p *Proxy) serve(c client, peer netip.Addr, fault error) {
	x := p.acquire(c, peer)
	defer p.release(x)
	switch {
	case fault != nil:
		x.refuse(fault)
	case x.serve():
		x.forward()
	}
}

func (p *Proxy) acquire(c client, peer netip.Addr) *exchange {
	x := p.exchanges.Get().(*exchange)
	x.client, x.start = c, time.Now()
	x.request.peer, x.request.client = peer, peer // for the log, until more is known
	x.closing = p.draining.Load()
	return x
}

// release ends an exchange, also one that panicked: the client gets a 500, or,
// if part of an answer is out, a closed connection.
func (p *Proxy) release(x *exchange) {
	if fault := recover(); fault != nil {
		p.metrics.panics.Inc()
		p.options.Log.Error().Interface("panic", fault).Bytes("stack", debug.Stack()).Msg("a request panicked; please report this")
		x.closing, x.cut = true, x.status != 0
		if x.status == 0 {
			x.problem(fasthttp.StatusInternalServerError, "internal error", fmt.Errorf("panic: %v", fault))
		}
	}
	x.resp.finish()
	x.client.finish(x)
	x.record()
	x.reset()
	p.exchanges.Put(x)
}
