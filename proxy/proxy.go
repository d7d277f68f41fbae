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
	rules     atomic.Pointer[Rules] // in force; see Commit
	metrics   *proxyMetrics
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
	p := &Proxy{options: o, proxyProtocol: c.ProxyProtocol, metrics: newProxyMetrics()}
	p.exchanges.New = func() any {
		x := &exchange{proxy: p}
		x.onInterim = x.interim
		return x
	}
	rs, err := p.Prepare(c, Terms{Limits: o.Limiter.Current(), LogRequests: o.LogRequests})
	if err != nil {
		return nil, err
	}
	p.Commit(rs)
	p.server = newServer(p, o.TLS)
	return p, nil
}

// Rules are those in force.
func (p *Proxy) Rules() *Rules { return p.rules.Load() }

// Serve answers clients on l until Shutdown.
func (p *Proxy) Serve(l net.Listener) error { return p.server.serve(l) }

// Drain makes every answer from now on close its connection.
func (p *Proxy) Drain() { p.draining.Store(true) }

// Shutdown stops accepting, waits for the requests in flight until ctx ends,
// and closes the connections to the upstreams. What ran in the background has ended then.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.Drain()
	err := p.server.shutdown(ctx)
	rs := p.rules.Load()
	rs.jwt.close()
	for _, u := range rs.upstreams {
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
	x.rules, x.client, x.start = p.rules.Load(), c, time.Now()
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
