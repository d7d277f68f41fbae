package proxy

import (
	"context"
	"fmt"

	"github.com/VictoriaMetrics/metrics"

	"github.com/r8limiter/r8limiter/limiter"
)

// Rules are what a Config says about requests: which of them are whose, and what
// is done with them. They are immutable, and a request sees one of them from its
// first byte to its last: a reload replaces the whole at once.
type Rules struct {
	trusted []Prefix
	prefix6 int
	routes  []*route // in file order
	router  *router
	jwt     *jwtVerifier // nil where no tokens are verified
	apiKeys *apiKeys     // nil where there is no table
	config  *Config      // what they were made of, for Explain

	// What only a Proxy needs; the zero values where rules are but asked.
	client      LimitsConfig
	upstreams   map[string]*upstream
	limits      *limiter.Limits
	headers     limiter.HeaderSet
	logRequests string
}

// NewRules compiles a configuration that Validate found no fault with. It has no
// side effect. Where proxy.jwt has a URL of keys there are none before FetchKeys.
func NewRules(c Config) (*Rules, error) { return newRules(c, newJWTMetrics(metrics.NewSet())) }

func newRules(c Config, m *jwtMetrics) (*Rules, error) {
	r := &Rules{
		trusted: c.TrustedProxies, prefix6: c.IPv6Prefix, router: newRouter(), apiKeys: newAPIKeys(c.APIKeys),
		client: c.Limits.withDefaults(), upstreams: map[string]*upstream{}, config: &c,
	}
	claims := claimsRead(c.Routes)
	if c.JWT != nil {
		var err error
		if r.jwt, err = newJWTVerifier(c.JWT, claims, m); err != nil {
			return nil, fmt.Errorf("jwt: %w", err)
		}
	}
	ways := 0
	for i := range c.Routes {
		rt, err := newRoute(place{i, ways}, &c.Routes[i], claims)
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", c.Routes[i].Name, err)
		}
		ways += len(rt.ways)
		r.routes = append(r.routes, rt)
		r.router.add(rt, c.Routes[i].Match.hosts())
	}
	r.router.index()
	return r, nil
}

// FetchKeys fetches once the keys that tokens are verified with, where they are to
// be fetched. It is for rules that are not in force: those do so in the background.
func (rs *Rules) FetchKeys(ctx context.Context) error {
	if rs.jwt == nil || rs.jwt.source == nil {
		return nil
	}
	return rs.jwt.source.refresh(ctx)
}

// find is the route for a request whose head was read and checked; nil for none.
// The error is the client's fault.
func (rs *Rules) find(r *request) (*route, error) {
	r.prefix6 = rs.prefix6
	if err := rs.router.checkMatched(r); err != nil {
		return nil, err
	}
	return rs.router.resolve(r)
}
