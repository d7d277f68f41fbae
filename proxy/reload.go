package proxy

import (
	"crypto/sha256"
	"fmt"
	"reflect"

	"github.com/r8limiter/r8limiter/limiter"
)

// Terms are what Rules need besides the Config of this package.
type Terms struct {
	// Limits decide for the requests of these rules; nil: those that the limiter has in force.
	Limits *limiter.Limits
	// LogRequests is LogAll, LogDenied or LogNone; "" is LogAll.
	LogRequests string
}

// Prepare makes of a configuration that Validate found no fault with what Commit
// puts in force. It has no side effect; what comes of it may be thrown away.
func (p *Proxy) Prepare(c Config, t Terms) (*Rules, error) {
	rs, err := newRules(c, p.metrics.jwt)
	if err != nil {
		return nil, err
	}
	if now := p.rules.Load(); now != nil && rs.jwt != nil && rs.jwt.isSame(now.jwt) {
		rs.jwt = now.jwt // with the tokens that it knows
	}
	rs.limits, rs.logRequests, rs.headers = t.Limits, t.LogRequests, p.options.Limiter.Headers()
	if t.Limits != nil {
		rs.headers = t.Limits.Headers()
	}
	for name, uc := range c.Upstreams {
		if rs.upstreams[name], err = p.prepareUpstream(name, uc); err != nil {
			return nil, fmt.Errorf("upstream %s: %w", name, err)
		}
	}
	for i, rt := range rs.routes {
		rt.upstream = rs.upstreams[c.Routes[i].Upstream]
	}
	return rs, nil
}

// prepareUpstream is the upstream in force if it is just the same, so that its
// connections and what is known of its targets stay; else a new one.
func (p *Proxy) prepareUpstream(name string, c UpstreamConfig) (*upstream, error) {
	o := c.options(name)
	o.log = p.options.Log
	u, err := newUpstream(o)
	if err != nil {
		return nil, err
	}
	u.config, u.files = c.withDefaults(), c.TLS.digest()
	if now := p.rules.Load(); now != nil {
		if old := now.upstreams[name]; old != nil && old.files == u.files && reflect.DeepEqual(old.config, u.config) {
			return old, nil
		}
	}
	return u, nil
}

// digest is of what the files hold; of one that can't be read, nothing.
func (c *UpstreamTLSConfig) digest() (sum [sha256.Size]byte) {
	if c == nil {
		return sum
	}
	all := sha256.New()
	for _, path := range []string{c.CAFile, c.CertFile, c.KeyFile} {
		data, err := limiter.ReadSmallFile(path)
		fmt.Fprintf(all, "%q %d %t\n", path, len(data), err == nil)
		all.Write(data)
	}
	all.Sum(sum[:0])
	return sum
}

// Commit puts rs, which Prepare made, in force for every request from now on. It
// can't fail. Requests under way end by the rules they began with: upstreams that
// are no more, or are others now, serve them to their end. Commits follow each
// other: the caller doesn't prepare before the last is done.
func (p *Proxy) Commit(rs *Rules) {
	p.metrics.dress(rs, p)
	old := p.rules.Load()
	for name, u := range rs.upstreams {
		if old == nil || old.upstreams[name] != u {
			u.start()
		}
	}
	if old == nil || old.jwt != rs.jwt {
		rs.jwt.begin(old, p.options.Log)
	}
	p.rules.Store(rs)
	if p.server != nil {
		p.server.renew()
	}
	if old == nil {
		return
	}
	for name, u := range old.upstreams {
		if rs.upstreams[name] != u {
			u.retire()
		}
	}
	if old.jwt != rs.jwt {
		old.jwt.close() // it goes on verifying for who has it
	}
	p.metrics.forget(rs, p.options.Limiter)
}
