// Package proxy is the proxy listener: it matches a request to a route, says
// who asks for what at which cost, asks the limiter, and forwards what is
// allowed to an upstream.
package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// Config is what the file may say under `proxy`.
type Config struct {
	// Listen is the address of the proxy listener; "" turns it off. Routes then are
	// for what other proxies ask at the control listener, and need no upstream.
	Listen string `yaml:"listen"`
	// TLS turns TLS on; nil for a listener that speaks plain HTTP.
	TLS *TLSConfig `yaml:"tls"`
	// ProxyProtocol says that every connection begins with a header of the
	// PROXY protocol, version 1 or 2, that tells the client's address. Only
	// TrustedProxies may connect then.
	ProxyProtocol bool `yaml:"proxy_protocol"`
	// TrustedProxies are the peers whose X-Forwarded-* fields are believed;
	// addresses or CIDR prefixes. Default none.
	TrustedProxies []Prefix `yaml:"trusted_proxies"`
	// IPv6Prefix is how many bits of an IPv6 address are one client, 1 to 128.
	IPv6Prefix int `yaml:"ipv6_prefix"`
	// DrainDelay is how long, after SIGTERM, requests are still taken while
	// /readyz tells load balancers to look elsewhere.
	DrainDelay time.Duration `yaml:"drain_delay"`
	// DrainTimeout bounds the whole drain, DrainDelay included. What still runs
	// then is cut off. It is longer than DrainDelay, or both are 0.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// Limits bound what a client may take up.
	Limits LimitsConfig `yaml:"limits"`
	// JWT says which tokens {jwt.CLAIM} reads; nil for none.
	JWT *JWTConfig `yaml:"jwt"`
	// APIKeys is the table that {api_key.user_id} and {api_key.plan} read; nil for none.
	APIKeys *APIKeysConfig `yaml:"api_keys"`
	// Upstreams are the servers behind, by the name that routes use.
	Upstreams map[string]UpstreamConfig `yaml:"upstreams"`
	// Routes are tried in file order; the first match wins.
	Routes []RouteConfig `yaml:"routes"`
}

// TLSConfig is the `tls` block of the proxy listener. Its files are PEM, read
// again when they change; relative paths begin at the working directory.
type TLSConfig struct {
	// Certificates are at least one. A client gets the first that goes with the
	// name it asks for, else the first of all.
	Certificates []CertificateConfig `yaml:"certificates"`
	// MinVersion is the oldest version of TLS that is spoken: 1.2 (default) or 1.3.
	MinVersion string `yaml:"min_version" enum:"1.2,1.3" default:"1.2"`
}

// CertificateConfig is one certificate; both files are needed.
type CertificateConfig struct {
	// CertFile is the certificate, intermediates after it.
	CertFile string `yaml:"cert_file"`
	// KeyFile is its private key.
	KeyFile string `yaml:"key_file"`
}

// UpstreamConfig is one named upstream. Durations and counts that are zero
// take the default given here; a file leaves them out for that.
type UpstreamConfig struct {
	// Targets are 1 to 64 servers that can all serve any request: http://host:port,
	// https://host:port or unix:/path; or echo: (which mirrors the request as JSON) alone.
	Targets []string `yaml:"targets"`
	// Balance is round_robin (default), or least_conn: the target with the
	// fewest requests in flight.
	Balance string `yaml:"balance" enum:"round_robin,least_conn" default:"round_robin"`
	// ConnectTimeout bounds connecting, TLS included; default 2s.
	ConnectTimeout time.Duration `yaml:"connect_timeout" zero:"unset" default:"2s"`
	// ResponseTimeout bounds the wait for the response head; default 30s.
	ResponseTimeout time.Duration `yaml:"response_timeout" zero:"unset" default:"30s"`
	// IdleTimeout bounds the wait between two reads of a body; default 60s.
	IdleTimeout time.Duration `yaml:"idle_timeout" zero:"unset" default:"60s"`
	// MaxConns is the number of connections to each target at most, and of
	// requests that wait for one; default 1024.
	MaxConns int `yaml:"max_conns" zero:"unset" default:"1024"`
	// QueueTimeout bounds the wait for one of MaxConns, first come first served;
	// 0 means no waiting; nil is the default 100ms.
	QueueTimeout *time.Duration `yaml:"queue_timeout" default:"100ms"`
	// Retries is how often a request is sent again, to another target where there
	// is one, 0 to 10; nil is the default 1. It happens only if no byte of the request
	// was written, or if a used connection was closed without a byte of an answer and
	// the method is GET, HEAD or OPTIONS without a body.
	Retries *int `yaml:"retries" default:"1"`
	// HealthCheck says how targets are checked; nil: not at all.
	HealthCheck *HealthCheckConfig `yaml:"health_check"`
	// TLS says how https is spoken to targets; nil: by the system's authorities,
	// and without a certificate of the gateway's own.
	TLS *UpstreamTLSConfig `yaml:"tls"`
}

// defaultCheckInterval is the default of health_check.interval.
const defaultCheckInterval = 5 * time.Second

// HealthCheckConfig is how each target of an upstream is checked: with a GET over
// a connection of its own, to which 2xx and 3xx are good answers. What is zero takes
// the default given here. Without checks a target is ejected after 3 connection
// faults in a row and gets single requests to try it, after a second and then less often.
type HealthCheckConfig struct {
	// Path is what is asked for; default /healthz.
	Path string `yaml:"path" default:"/healthz"`
	// Interval is the time between two checks, give or take a fifth; default 5s.
	Interval time.Duration `yaml:"interval" zero:"unset" default:"5s"`
	// Timeout bounds one check, Interval at most; default 1s, or Interval where that
	// is shorter.
	Timeout time.Duration `yaml:"timeout" zero:"unset" default:"1s"`
	// UnhealthyAfter is how many bad checks in a row eject a target, and how
	// many connection faults of requests; default 3.
	UnhealthyAfter int `yaml:"unhealthy_after" zero:"unset" default:"3"`
	// HealthyAfter is how many good checks in a row bring it back; default 2.
	HealthyAfter int `yaml:"healthy_after" zero:"unset" default:"2"`
}

// UpstreamTLSConfig is how TLS to targets is done: version 1.2 or later, and
// the target's certificate is always verified. Its files are PEM, read at the start
// and at each reload. The zero value trusts the system's authorities
// and shows no certificate.
type UpstreamTLSConfig struct {
	// CAFile holds the authorities that may sign the targets' certificates, in
	// place of the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile is the certificate that the gateway shows, intermediates after it;
	// with KeyFile, or neither.
	CertFile string `yaml:"cert_file"`
	// KeyFile is its private key.
	KeyFile string `yaml:"key_file"`
	// ServerName is the name that is asked for and that the certificates must
	// hold; "" for the target's host.
	ServerName string `yaml:"server_name"`
}

// RouteConfig is one rule.
type RouteConfig struct {
	// Name is unique; it labels metrics and logs.
	Name string `yaml:"name"`
	// Match says which requests the rule is for; default all.
	Match MatchConfig `yaml:"match"`
	// UserID are tried in order; the first that is not empty is the user.
	// Default and last resort {client_ip}.
	UserID []Template `yaml:"user_id" default:"{client_ip}"`
	// Resource is what is asked for; default the route's name.
	Resource Template `yaml:"resource"`
	// Plan names one of limiter.plans; empty: none, and the resource's own limits.
	Plan Template `yaml:"plan"`
	// Cost is the number of tokens: an integer, or a template of one. Default
	// 1, also where the template is empty.
	Cost Template `yaml:"cost" default:"1"`
	// Upstream names the upstream to forward to.
	Upstream string `yaml:"upstream"`
	// Action is limit (default), bypass (forward, charge nothing) or block (403).
	Action string `yaml:"action" enum:"limit,bypass,block" default:"limit"`
	// Shadow says that the limits are charged, counted and logged as ever, but that
	// nobody is denied for them, and that answers don't tell of them.
	Shadow bool `yaml:"shadow"`
	// Enforce is the share of the users for whom the limits hold, as in 5%; for the
	// others they are as with Shadow. Who it is depends on the route's name and the
	// user alone, and who is in stays in as it grows. Default: all.
	Enforce limiter.Percent `yaml:"enforce" default:"100%"`
}

// MatchConfig says which requests a route is for: all that is given must hold.
// What is left out matches any.
type MatchConfig struct {
	// Host is one of these: exact, or *.example.com for every host below example.com.
	Host []string `yaml:"host"`
	// Path is one of these: exact; a segment {name} matches any one segment, a last
	// segment * matches any rest: /x/* is all below /x, and not /x, which is another
	// path than /x/ and /X.
	Path []string `yaml:"path"`
	// Methods are compared as they are written.
	Methods []string `yaml:"methods"`
	// Headers must all be there, by their names.
	Headers map[string]ValueMatch `yaml:"headers"`
	// Query parameters must all be there, by their names.
	Query map[string]ValueMatch `yaml:"query"`
	// ClientIP are networks; the client's address is in one of them.
	ClientIP []Prefix `yaml:"client_ip"`
}

// DefaultConfig is the configuration that a file is decoded over: no listener.
func DefaultConfig() Config {
	return Config{IPv6Prefix: 64, DrainDelay: 5 * time.Second, DrainTimeout: 30 * time.Second, Limits: defaultLimits()}
}

// Values of UpstreamConfig.Balance.
const (
	roundRobin = "round_robin"
	leastConn  = "least_conn"
)

// withDefaults fills in what the file left out.
func (c UpstreamConfig) withDefaults() UpstreamConfig {
	c.Balance = cmp.Or(c.Balance, roundRobin)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 2*time.Second)
	c.ResponseTimeout = cmp.Or(c.ResponseTimeout, 30*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 60*time.Second)
	c.MaxConns = cmp.Or(c.MaxConns, 1024)
	if c.QueueTimeout == nil {
		c.QueueTimeout = new(100 * time.Millisecond)
	}
	if c.Retries == nil {
		c.Retries = new(1)
	}
	if c.HealthCheck != nil {
		check := *c.HealthCheck
		check.Path = cmp.Or(check.Path, "/healthz")
		check.Interval = cmp.Or(check.Interval, 5*time.Second)
		check.Timeout = cmp.Or(check.Timeout, min(time.Second, check.Interval))
		check.UnhealthyAfter = cmp.Or(check.UnhealthyAfter, 3)
		check.HealthyAfter = cmp.Or(check.HealthyAfter, 2)
		c.HealthCheck = &check
	}
	return c
}

// options are those of the upstream called name.
func (c UpstreamConfig) options(name string) upstreamOptions {
	c = c.withDefaults()
	return upstreamOptions{
		name: name, urls: c.Targets, leastConn: c.Balance == leastConn,
		connectTimeout: c.ConnectTimeout, responseTimeout: c.ResponseTimeout, idleTimeout: c.IdleTimeout,
		maxConns: c.MaxConns, queueTimeout: *c.QueueTimeout, retries: *c.Retries,
		check: c.HealthCheck, tls: c.TLS,
	}
}

// Prefix is a network in CIDR notation, or one address.
type Prefix struct{ netip.Prefix }

// UnmarshalText parses "10.0.0.0/8", "10.0.0.1" or "::1".
func (p *Prefix) UnmarshalText(text []byte) error {
	s := string(text)
	if !strings.Contains(s, "/") {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("%q is no IP address or CIDR prefix such as 10.0.0.0/8", s)
		}
		p.Prefix = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
		return nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err == nil && prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	if err != nil || prefix.Addr().Is4In6() {
		return fmt.Errorf("%q is no CIDR prefix such as 10.0.0.0/8 or 2001:db8::/32", s)
	}
	if prefix != prefix.Masked() {
		return fmt.Errorf("%q has bits set behind its prefix; write %q", s, prefix.Masked())
	}
	p.Prefix = prefix
	return nil
}
