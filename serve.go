package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/admin"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// gateway is what runs: the two listeners and what they share.
type gateway struct {
	program *program
	file    string // of the configuration; "" for the built-in defaults
	log     zerolog.Logger
	level   *logLevel // of log
	limiter *limiter.Limiter
	// proxy has the rules, also where its listener is off: then it serves nobody.
	proxy *proxy.Proxy
	// rules are those in force, for whoever asks what becomes of a request.
	rules atomic.Pointer[proxy.Rules]
	admin *admin.Server
	// reloads take the file in again.
	reloads reloads

	// proxyListener is nil where that listener is off.
	proxyListener, adminListener net.Listener
	inherited                    []string // the names of those that others have bound
	// What the listeners show where they speak TLS; nil where they don't.
	proxyTLS, adminTLS *credentials

	ended chan error // one for each listener
}

// serve runs until a signal, or until a listener fails.
func (p *program) serve(file string) int {
	watch := watchOf(file) // before the file is read: no change is missed
	c, problems := p.load(file)
	if p.complain(file, problems) {
		return exitUsage
	}
	out := newLogWriter(p.stderr)
	defer out.Close()
	g := &gateway{program: p, file: file, ended: make(chan error, 2)}
	g.log, g.level = newLogger(c.Log, out)
	g.reloads.begin(&c)
	if err := g.build(&c, out); err != nil {
		g.log.Error().Err(err).Msg("start")
		return exitFailure
	}
	defer g.limiter.Close()
	if err := g.listen(&c); err != nil {
		g.log.Error().Err(err).Msg("listen")
		return exitFailure
	}
	g.greet(&c, file)
	g.join(&c)
	defer g.keepUp(watch)()
	g.start()
	return g.wait()
}

// keepUp lets what runs follow its files, and reloads when it is told to, until the
// function that it returns is called, which waits for the end of it, but not for
// ever: a file of a dead file server can't be waited for.
func (g *gateway) keepUp(config *fileWatch) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, c := range []*credentials{g.proxyTLS, g.adminTLS} {
		if c != nil {
			running.Go(func() { c.run(ctx) })
		}
	}
	running.Go(func() { g.followHangups(ctx) })
	if config != nil {
		config.log = g.log
		running.Go(func() { g.followFiles(ctx, config) })
	}
	return func() {
		cancel()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			running.Wait()
		}()
		select {
		case <-ended:
		case <-time.After(stopTime):
			g.log.Warn().Msg("stopping while a file is still being read, which nobody waits for any longer")
		}
	}
}

// stopTime is how long a reload under way may take once the gateway is to end.
const stopTime = 2 * time.Second

// setLogTime says how all loggers of the process write times.
var setLogTime = sync.OnceFunc(func() {
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00"
	zerolog.TimestampFunc = func() time.Time { return time.Now().UTC() }
})

// newLogger makes a logger and what it goes by.
func newLogger(c LogConfig, out io.Writer) (zerolog.Logger, *logLevel) {
	setLogTime()
	if c.Format == "console" {
		out = zerolog.ConsoleWriter{Out: out, NoColor: true, TimeFormat: zerolog.TimeFieldFormat}
	}
	level := new(logLevel)
	level.set(c.Level)
	return zerolog.New(out).Sample(level).With().Timestamp().Logger(), level
}

// build makes everything, with no side effect outside the process.
func (g *gateway) build(c *Config, out *logWriter) error {
	var store limiter.Store = limiter.NewMemoryStore()
	if c.Limiter.Redis != nil {
		redis, err := limiter.NewRedisStore(*c.Limiter.Redis)
		if err != nil {
			return fmt.Errorf("open Redis store: %w", err)
		}
		store = redis
	}
	g.limiter = limiter.New(c.Limiter, store)
	writers := []func(io.Writer){out.WriteMetrics, g.reloads.WriteMetrics}
	if err := g.buildProxy(c); err != nil {
		return fmt.Errorf("build proxy: %w", err)
	}
	writers = append(writers, g.proxy.WriteMetrics)
	if files := c.adminTLS(); files != nil {
		var err error
		if g.adminTLS, err = newCredentials(files, g.log); err != nil {
			return err
		}
	}
	for _, each := range []*credentials{g.proxyTLS, g.adminTLS} {
		if each != nil {
			writers = append(writers, each.WriteMetrics)
		}
	}
	g.admin = admin.New(c.Admin, admin.Deps{
		Limiter: g.limiter, Log: g.log, LogRequests: c.Log.Requests, Metrics: writers,
		Upstreams: g.upstreams, NewJudge: g.newJudge, Config: redacted(c), Version: buildVersion(),
		Explain: g.explain,
		Reload:  func() admin.Reloaded { return g.reload("POST /admin/reload") },
	})
	return nil
}

// upstreams is what the control listener shows of the proxy's; none where its
// listener is off.
func (g *gateway) upstreams() (all []admin.Upstream) {
	for _, u := range g.proxy.Upstreams() {
		shown := admin.Upstream{Name: u.Name}
		for _, t := range u.Targets {
			state := admin.TargetHealthy
			if t.Ejected {
				state = admin.TargetEjected
			}
			shown.Targets = append(shown.Targets, admin.Target{URL: t.URL, State: state, Connections: t.Open, Idle: t.Idle})
		}
		all = append(all, shown)
	}
	return all
}

func (g *gateway) buildProxy(c *Config) (err error) {
	o := proxy.Options{Limiter: g.limiter, Log: g.log, LogRequests: c.Log.Requests}
	if files := c.proxyTLS(); files != nil && c.Proxy.Listen != "" {
		if g.proxyTLS, err = newCredentials(files, g.log); err != nil {
			return err
		}
		o.TLS = g.proxyTLS.config()
	}
	if g.proxy, err = proxy.New(c.rulesConfig(), o); err != nil {
		return err
	}
	g.rules.Store(g.proxy.Rules())
	return nil
}

// rulesConfig is what the proxy is made of. Without a listener nothing is forwarded:
// there are no upstreams then, and none is checked.
func (c *Config) rulesConfig() proxy.Config {
	p := c.Proxy
	if p.Listen != "" {
		return p
	}
	p.Upstreams, p.Routes = nil, slices.Clone(p.Routes)
	for i := range p.Routes {
		p.Routes[i].Upstream = ""
	}
	return p
}

// listen has both listeners, inherited or bound, before either serves.
func (g *gateway) listen(c *Config) error {
	sockets, err := inheritedSockets(g.program.env)
	if err != nil {
		return err
	}
	control := &place{name: "control", key: "admin.listen", listen: c.Admin.Listen}
	places := []*place{control}
	front := &place{name: "proxy", key: "proxy.listen", listen: c.Proxy.Listen}
	if c.Proxy.Listen != "" {
		places = []*place{front, control}
	}
	err = seat(sockets, places)
	for _, p := range places {
		if p.listener != nil {
			g.inherited = append(g.inherited, p.name)
		}
		if err == nil {
			err = p.bind()
		}
	}
	if err != nil {
		closeSockets(sockets)
		closePlaces(places)
		return err
	}
	g.proxyListener, g.adminListener = front.listener, control.listener
	if g.adminTLS != nil {
		config := g.adminTLS.config()
		config.NextProtos = []string{"http/1.1"}
		g.adminListener = tls.NewListener(g.adminListener, config)
	}
	return nil
}

// greet logs what runs, and what an operator should know about it.
func (g *gateway) greet(c *Config, file string) {
	store := "memory"
	if c.Limiter.Redis != nil {
		store = "redis"
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := g.limiter.Probe(ctx); err != nil {
			g.log.Warn().Err(err).Msg("Redis does not decide: until it does, on_store_error does. Check limiter.redis and the server")
		}
	}
	c.logWarnings(g.log, file)
	if c.Admin.Token == "" && isOpen(g.adminListener.Addr()) {
		g.log.Warn().Str("listen", c.Admin.Listen).Msg("the control listener is open to other hosts and admin.token is empty: /admin answers loopback peers only, /allow and /check everyone")
	}
	e := g.log.Info().Str("version", buildVersion()).Str("config", file).Str("store", store).Stringer("control", g.adminListener.Addr())
	if g.proxyListener != nil {
		e = e.Stringer("proxy", g.proxyListener.Addr()).Int("routes", len(c.Proxy.Routes))
	}
	g.tellWays(e, c)
	e.Msg("serving")
}

// tellWays adds how the listeners are spoken to, and what of that is on.
func (g *gateway) tellWays(e *zerolog.Event, c *Config) {
	for _, way := range []struct {
		field string
		on    bool
	}{
		{"proxy_tls", g.proxyTLS != nil}, {"http2", g.proxyTLS != nil}, {"proxy_protocol", g.proxyListener != nil && c.Proxy.ProxyProtocol},
		{"control_tls", g.adminTLS != nil},
	} {
		if way.on {
			e.Bool(way.field, true)
		}
	}
	if len(g.inherited) > 0 {
		e.Strs("inherited_sockets", g.inherited)
	}
}

// join takes in what operators changed on the running gateways before.
func (g *gateway) join(c *Config) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := g.limiter.Start(ctx, g.log); err != nil {
		g.log.Warn().Err(err).Msg("persisted limits and overrides are not in force until Redis answers; the file alone holds")
	}
}

// isOpen says whether other hosts can reach a listener at addr: not by a Unix
// socket, nor by a loopback address.
func isOpen(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && !tcp.IP.IsLoopback()
}

func (g *gateway) start() {
	go func() { g.ended <- g.admin.Serve(g.adminListener) }()
	var proxyAddr net.Addr
	if g.proxyListener != nil {
		proxyAddr = g.proxyListener.Addr()
		go func() { g.ended <- g.proxy.Serve(g.proxyListener) }()
	}
	g.program.listening(proxyAddr, g.adminListener.Addr())
}

// wait runs until a signal and drains; a second signal ends it at once.
func (g *gateway) wait() int {
	for {
		select {
		case err := <-g.ended:
			g.log.Error().AnErr("error", err).Msg("a listener ended by itself; stopping, so that whoever supervises us starts anew")
			return exitFailure
		case s := <-g.program.signals:
			if s == syscall.SIGHUP {
				g.reloads.ask()
				continue
			}
			g.log.Info().Stringer("signal", s).Msg("draining")
			times := g.reloads.end()
			if s != syscall.SIGTERM {
				times.delay = 0
			}
			done := make(chan error, 1)
			go func() { done <- g.drain(times) }()
			return g.awaitDrain(done, s)
		}
	}
}

// repeatGrace is how soon the same signal again is the first one: a wrapper that
// signals a process and then its group sends it twice.
const repeatGrace = time.Second

// awaitDrain waits for the drain that first began. Another signal ends it at once.
func (g *gateway) awaitDrain(done <-chan error, first os.Signal) int {
	began := time.Now()
	for {
		select {
		case err := <-done:
			if err != nil {
				g.log.Warn().Err(err).Msg("requests were still running when the time to drain was over")
			}
			g.log.Info().Msg("stopped")
			return exitFine
		case s := <-g.program.signals:
			switch {
			case s == syscall.SIGHUP:
				g.log.Warn().Stringer("signal", s).Msg(errDraining)
				continue
			case s == first && time.Since(began) < repeatGrace:
				continue
			}
			g.log.Warn().Stringer("signal", s).Msg("second signal: stopping at once")
			return exitFailure
		}
	}
}

// drain turns /readyz to 503, lets load balancers notice while requests are
// still taken, and then waits for those in flight. The control listener goes
// after the proxy, and the store last of all.
func (g *gateway) drain(times drainTimes) error {
	ctx, cancel := context.WithTimeout(context.Background(), times.timeout)
	defer cancel()
	g.admin.Drain()
	g.proxy.Drain()
	time.Sleep(times.delay)
	return errors.Join(g.proxy.Shutdown(ctx), g.admin.Shutdown(ctx))
}
