package proxy

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// Validate reports every problem by its path below `proxy`. capacity is the
// smallest capacity of a resource: a fixed cost above it could never pass.
func (c *Config) Validate(capacity func(resource string) int64, report func(path, problem string)) {
	if c.Listen != "" {
		if _, port, err := net.SplitHostPort(c.Listen); err != nil || !isPort([]byte(":"+port)) || port == "" {
			report("listen", fmt.Sprintf("%q is no address; write host:port or :port, as in \":8080\"", c.Listen))
		}
		if len(c.Routes) == 0 {
			report("routes", "a proxy listener without routes answers 404 to everything; add a route or set listen to \"\"")
		}
	}
	if c.IPv6Prefix < 1 || c.IPv6Prefix > 128 {
		report("ipv6_prefix", "must be from 1 to 128 bits; 64 is one site")
	}
	if c.DrainDelay < 0 {
		report("drain_delay", "must not be negative")
	}
	if c.DrainTimeout <= c.DrainDelay && c.DrainTimeout != 0 || c.DrainTimeout < 0 {
		report("drain_timeout", fmt.Sprintf("%v leaves requests in flight no time: drain_delay (%v) is part of it; write more, as 30s", c.DrainTimeout, c.DrainDelay))
	}
	if c.DrainTimeout == 0 && c.DrainDelay > 0 {
		report("drain_timeout", "is 0 and drain_delay is not, which is part of it; write more, as 30s")
	}
	c.Limits.validate(func(key, problem string) { report("limits."+key, problem) })
	if c.ProxyProtocol && len(c.TrustedProxies) == 0 {
		report("proxy_protocol", "is true, but trusted_proxies is empty: list there who may connect and say for whom")
	}
	if c.TLS != nil {
		c.TLS.validate(func(key, problem string) { report("tls."+key, problem) })
	}
	for name, u := range c.Upstreams {
		u.validate(name, func(key, problem string) { report("upstreams."+name+key, problem) })
	}
	names := map[string]bool{}
	for i := range c.Routes {
		at := func(key, problem string) { report(fmt.Sprintf("routes[%d]%s", i, key), problem) }
		rt := &c.Routes[i]
		if names[rt.Name] {
			at(".name", fmt.Sprintf("%q is the name of an earlier route; names are unique", rt.Name))
		}
		names[rt.Name] = true
		c.validateRoute(rt, at)
		rt.validateCost(capacity, at)
	}
}

// validate looks at the texts alone; whoever reads the files reports those.
func (c *TLSConfig) validate(report func(key, problem string)) {
	if len(c.Certificates) == 0 {
		report("certificates", "is empty: write [{cert_file: FILE, key_file: FILE}], or leave tls out")
	}
	for i, each := range c.Certificates {
		if each.CertFile == "" {
			report(fmt.Sprintf("certificates[%d].cert_file", i), "is missing: give the PEM file of a certificate")
		}
		if each.KeyFile == "" {
			report(fmt.Sprintf("certificates[%d].key_file", i), "is missing: give the PEM file of the certificate's private key")
		}
	}
	if !slices.Contains([]string{"", "1.2", "1.3"}, c.MinVersion) {
		report("min_version", fmt.Sprintf("%q is neither \"1.2\" nor \"1.3\"", c.MinVersion))
	}
}

func (c *UpstreamConfig) validate(name string, report func(key, problem string)) {
	if !isName(name) {
		report("", fmt.Sprintf("name %q: use 1 to 64 letters, digits, dots, dashes and underscores", name))
	}
	buildUpstream(c.options(name), report)
	if c.Balance != "" && c.Balance != roundRobin && c.Balance != leastConn {
		report(".balance", fmt.Sprintf("%q is none of %s, %s", c.Balance, roundRobin, leastConn))
	}
	for key, d := range map[string]time.Duration{".connect_timeout": c.ConnectTimeout, ".response_timeout": c.ResponseTimeout, ".idle_timeout": c.IdleTimeout} {
		if d < 0 || d > 0 && d < time.Millisecond {
			report(key, "must be at least 1ms")
		}
	}
	if c.MaxConns < 0 {
		report(".max_conns", "must be at least 1")
	}
	if q := c.QueueTimeout; q != nil && (*q < 0 || *q > time.Minute) {
		report(".queue_timeout", "must be from 0s, for no waiting, to 1m")
	}
	if n := c.Retries; n != nil && (*n < 0 || *n > 10) {
		report(".retries", "must be from 0 to 10")
	}
	if c.HealthCheck != nil {
		c.HealthCheck.validate(func(key, problem string) { report(".health_check"+key, problem) })
	}
}

func (c *HealthCheckConfig) validate(report func(key, problem string)) {
	isOdd := func(b rune) bool { return b <= ' ' || b > '~' || b == '#' }
	if c.Path != "" && (c.Path[0] != '/' || strings.ContainsFunc(c.Path, isOdd)) {
		report(".path", fmt.Sprintf("%q is no path; write it as it is sent, as in /healthz or /status?full=1", c.Path))
	}
	if c.Interval != 0 && c.Interval < 100*time.Millisecond {
		report(".interval", "must be at least 100ms")
	}
	if c.Timeout != 0 && c.Timeout < time.Millisecond {
		report(".timeout", "must be at least 1ms")
	}
	if interval := cmp.Or(c.Interval, defaultCheckInterval); c.Timeout > interval {
		report(".timeout", fmt.Sprintf("is %v, longer than the interval (%v): the next check would be due before this one ended", c.Timeout, interval))
	}
	if c.UnhealthyAfter < 0 || c.UnhealthyAfter > 1000 {
		report(".unhealthy_after", "must be from 1 to 1000")
	}
	if c.HealthyAfter < 0 || c.HealthyAfter > 1000 {
		report(".healthy_after", "must be from 1 to 1000")
	}
}

func (c *Config) validateRoute(rt *RouteConfig, report func(key, problem string)) {
	if !isName(rt.Name) {
		report(".name", fmt.Sprintf("%q: use 1 to 64 letters, digits, dots, dashes and underscores", rt.Name))
	}
	act, known := actions[rt.Action]
	if !known {
		report(".action", fmt.Sprintf("%q is none of limit, bypass, block", rt.Action))
	}
	if _, ok := c.Upstreams[rt.Upstream]; !ok && (rt.Upstream != "" || act != blockAction) {
		report(".upstream", fmt.Sprintf("%q is not one of proxy.upstreams", rt.Upstream))
	}
	rt.Match.validate(func(key, problem string) { report(".match"+key, problem) })
	path, err := parsePath(rt.Match.Path)
	if err != nil {
		report(".match.path", err.Error())
		return
	}
	bind := func(key string, t Template) {
		if err := t.bindPath(path); err != nil {
			report(key, err.Error())
		}
	}
	bind(".resource", rt.Resource)
	bind(".cost", rt.Cost)
	for i := range rt.UserID {
		bind(fmt.Sprintf(".user_id[%d]", i), rt.UserID[i])
	}
}

func (m *MatchConfig) validate(report func(key, problem string)) {
	if host := strings.TrimPrefix(m.Host, "*."); m.Host != "" {
		name, ok := []byte(nil), false
		if host != "" {
			name, ok = splitHost([]byte(host))
		}
		if !ok || strings.Contains(host, "*") || len(name) != len(host) {
			report(".host", fmt.Sprintf("%q is no host name; write api.example.com or *.example.com, without a port", m.Host))
		}
	}
	for i, method := range m.Methods {
		if !isToken([]byte(method)) || method != strings.ToUpper(method) {
			report(fmt.Sprintf(".methods[%d]", i), fmt.Sprintf("%q is no method; write it in capitals, as in GET", method))
		}
	}
	for name := range m.Headers {
		if !isToken([]byte(name)) {
			report(".headers."+name, "is no header name")
		}
	}
}

// validateCost checks a cost that is the same for every request.
func (rt *RouteConfig) validateCost(capacity func(resource string) int64, report func(key, problem string)) {
	text, fixed := rt.Cost.static()
	if !fixed || text == "" {
		return
	}
	cost, ok := parseCost([]byte(text))
	if !ok {
		report(".cost", fmt.Sprintf("%q is no integer from 0 to %d, and no template", text, limiter.MaxCost))
		return
	}
	resource, fixed := rt.Resource.static()
	if resource == "" {
		resource = rt.Name
	}
	if most := capacity(resource); fixed && cost > most {
		report(".cost", "is "+strconv.FormatInt(cost, 10)+", but resource "+resource+" holds "+strconv.FormatInt(most, 10)+" tokens at most: no request could ever pass")
	}
}

// isName says whether s can name a route or an upstream.
func isName(s string) bool {
	return len(s) > 0 && len(s) <= 64 && !slices.ContainsFunc([]byte(s), func(c byte) bool {
		return c != '.' && c != '-' && c != '_' && (!isHostByte(c) || !isToken([]byte{c}) || strings.IndexByte("~!$&'*+%", c) >= 0)
	})
}
