package proxy

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
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
	c.validateDrain(report)
	c.Limits.validate(func(key, problem string) { report("limits."+key, problem) })
	if c.ProxyProtocol && len(c.TrustedProxies) == 0 {
		report("proxy_protocol", "is true, but trusted_proxies is empty: list there who may connect and say for whom")
	}
	if c.TLS != nil {
		c.TLS.validate(func(key, problem string) { report("tls."+key, problem) })
	}
	if c.JWT != nil {
		c.JWT.validate(func(key, problem string) { report(strings.TrimSuffix("jwt."+key, "."), problem) })
	}
	if c.APIKeys != nil {
		c.APIKeys.validate(func(key, problem string) { report("api_keys."+key, problem) })
	}
	for name, u := range c.Upstreams {
		at := func(key, problem string) { report("upstreams."+name+key, problem) }
		u.validate(name, at)
		c.validateNoLoop(u.Targets, at)
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

// longestWait is the largest time-out that the file may name: more is a slip.
const longestWait = 24 * time.Hour

// checkWait reports a wait, 0 or not, that is below least or above longestWait.
func checkWait(key string, got, least time.Duration, report func(key, problem string)) {
	if got < least || got > longestWait {
		report(key, fmt.Sprintf("is %v; must be from %v to 24h", got, least))
	}
}

// checkCount reports a number that is below least or above most; unit is what it
// counts, with a space before it, or "".
func checkCount(key string, got, least, most int64, unit string, report func(key, problem string)) {
	if got < least || got > most {
		report(key, fmt.Sprintf("is %d%s; must be from %d to %d", got, unit, least, most))
	}
}

// validateDrain checks that a drain leaves time for what is in flight, or that
// there is none at all.
func (c *Config) validateDrain(report func(key, problem string)) {
	checkWait("drain_delay", c.DrainDelay, 0, report)
	checkWait("drain_timeout", c.DrainTimeout, 0, report)
	if c.DrainTimeout > c.DrainDelay || c.DrainTimeout == 0 && c.DrainDelay == 0 || c.DrainDelay > longestWait {
		return
	}
	report("drain_timeout", fmt.Sprintf("is %v, and drain_delay (%v) is part of it: requests in flight would be cut; write more than drain_delay, as in %v, or 0s for both",
		c.DrainTimeout, c.DrainDelay, c.DrainDelay+25*time.Second))
}

// validateNoLoop checks that no target is this very listener.
func (c *Config) validateNoLoop(targets []string, report func(key, problem string)) {
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "0" {
		return
	}
	for i, text := range targets {
		t, err := newTarget(nil, text, i)
		if err != nil || t.network != "tcp" {
			continue // the upstream's own validation says what is wrong
		}
		to, toPort, _ := net.SplitHostPort(t.address)
		if port == toPort && leadsTo(to, host) {
			report(fmt.Sprintf(".targets[%d]", i), fmt.Sprintf("%q is the proxy listener itself (proxy.listen is %q): requests would go round for ever; write the address of the server behind", text, c.Listen))
		}
	}
}

// leadsTo says whether a connection to host ends at a listener on the host listen.
// It asks no DNS, and knows no other addresses of this machine than the loopback ones.
func leadsTo(host, listen string) bool {
	if strings.EqualFold(host, listen) {
		return true
	}
	to, toHere := localAddr(host)
	at, atHere := localAddr(listen)
	return toHere && atHere && (to.IsUnspecified() || at.IsUnspecified() || strings.EqualFold(host, "localhost") || strings.EqualFold(listen, "localhost"))
}

// localAddr says whether host is an address of this machine wherever that is:
// loopback, or all of its addresses, which "" stands for too.
func localAddr(host string) (addr netip.Addr, ok bool) {
	switch {
	case host == "":
		return netip.IPv6Unspecified(), true
	case strings.EqualFold(host, "localhost"):
		return netip.IPv6Loopback(), true
	}
	addr, err := netip.ParseAddr(host)
	addr = addr.Unmap()
	return addr, err == nil && (addr.IsLoopback() || addr.IsUnspecified())
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

// maxMaxConns is more connections than one address pair has ports for.
const maxMaxConns = 1_000_000

func (c *UpstreamConfig) validate(name string, report func(key, problem string)) {
	if !isName(name) {
		report("", fmt.Sprintf("name %q: use 1 to 64 letters, digits, dots, dashes and underscores", name))
	}
	buildUpstream(c.options(name), report)
	with := c.withDefaults()
	c = &with // what the decoder was given as zero it has reported
	if c.Balance != roundRobin && c.Balance != leastConn {
		report(".balance", fmt.Sprintf("%q is none of %s, %s", c.Balance, roundRobin, leastConn))
	}
	for key, d := range map[string]time.Duration{".connect_timeout": c.ConnectTimeout, ".response_timeout": c.ResponseTimeout, ".idle_timeout": c.IdleTimeout} {
		checkWait(key, d, time.Millisecond, report)
	}
	checkCount(".max_conns", int64(c.MaxConns), 1, maxMaxConns, " connections", report)
	if q := *c.QueueTimeout; q < 0 || q > time.Minute {
		report(".queue_timeout", fmt.Sprintf("is %v; must be from 0s, for no waiting, to 1m", q))
	}
	checkCount(".retries", int64(*c.Retries), 0, 10, "", report)
	if c.HealthCheck != nil {
		c.HealthCheck.validate(func(key, problem string) { report(".health_check"+key, problem) })
	}
}

func (c *HealthCheckConfig) validate(report func(key, problem string)) {
	isOdd := func(b rune) bool { return b <= ' ' || b > '~' || b == '#' }
	if c.Path != "" && (c.Path[0] != '/' || strings.ContainsFunc(c.Path, isOdd)) {
		report(".path", fmt.Sprintf("%q is no path; write it as it is sent, as in /healthz or /status?full=1", c.Path))
	}
	checkWait(".interval", c.Interval, 100*time.Millisecond, report)
	checkWait(".timeout", c.Timeout, time.Millisecond, report)
	if c.Interval >= 100*time.Millisecond && c.Timeout > c.Interval && c.Timeout <= longestWait {
		report(".timeout", fmt.Sprintf("is %v, longer than interval (%v): a check would last into the next; write at most interval", c.Timeout, c.Interval))
	}
	checkCount(".unhealthy_after", int64(c.UnhealthyAfter), 1, 1000, " checks", report)
	checkCount(".healthy_after", int64(c.HealthyAfter), 1, 1000, " checks", report)
}

func (c *Config) validateRoute(rt *RouteConfig, report func(key, problem string)) {
	if rt.Name == "" {
		report(".name", "is missing; give each route a name of its own, the label in metrics and logs")
	} else if !isName(rt.Name) {
		report(".name", fmt.Sprintf("%q: use 1 to 64 letters, digits, dots, dashes and underscores", rt.Name))
	}
	act, known := actions[rt.Action]
	if !known {
		report(".action", fmt.Sprintf("%q is none of limit, bypass, block", rt.Action))
	}
	if _, ok := c.Upstreams[rt.Upstream]; !ok && (rt.Upstream != "" || act != blockAction && c.Listen != "") {
		report(".upstream", c.unknownUpstream(rt.Upstream))
	}
	rt.Match.validate(func(key, problem string) { report(".match"+key, problem) })
	if rt.Shadow && rt.Enforce.IsGiven() {
		report(".enforce", "goes with a share of the users, shadow with none of them; keep one of the two")
	}
	if known && act != limitAction {
		rt.validateUnlimited(report)
	}
	c.validateTemplates(rt, report)
}

// validateUnlimited checks a route without limits: nothing of it is tried on some users.
func (rt *RouteConfig) validateUnlimited(report func(key, problem string)) {
	text := fmt.Sprintf("is about limits, but action %s is done to everybody: take one of the two out", rt.Action)
	if rt.Shadow {
		report(".shadow", text)
	}
	if rt.Enforce.IsGiven() {
		report(".enforce", text)
	}
}

// unknownUpstream says what to do about an upstream of a route that is none.
func (c *Config) unknownUpstream(name string) string {
	known := sortedKeys(c.Upstreams)
	near := limiter.DidYouMean(name, known)
	const most = 10 // to be listed
	if len(known) > most {
		known = append(known[:most], "…")
	}
	switch {
	case len(known) == 0:
		return fmt.Sprintf("%q is not one of proxy.upstreams, which has none; add it there", name)
	case name == "":
		return "is missing; name one of proxy.upstreams: " + strings.Join(known, ", ")
	case near != "":
		return fmt.Sprintf("%q is not one of proxy.upstreams%s", name, near)
	}
	return fmt.Sprintf("%q is not one of proxy.upstreams; there are %s", name, strings.Join(known, ", "))
}

// knownMethods are those that an API may be asked with (RFC 9110, RFC 5789).
var knownMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}

// validateTemplates checks that there is what the templates of a route read:
// segments of its paths, and what proves who somebody is.
func (c *Config) validateTemplates(rt *RouteConfig, report func(key, problem string)) {
	paths := &route{userID: slices.Clone(rt.UserID), resource: rt.Resource, plan: rt.Plan, cost: rt.Cost}
	if paths.addWays(rt.Match.paths(), 0) != nil {
		return // reported as the path's
	}
	_ = paths.eachTemplate(func(key string, t *Template) error {
		if err := t.bindPath(paths.names); err != nil {
			report(key, err.Error())
		}
		if err := c.checkSources(t); err != nil {
			report(key, err.Error())
		}
		return nil
	})
}

func (m *MatchConfig) validate(report func(key, problem string)) {
	for i, host := range m.Host {
		if !isHostPattern(host) {
			report(elementOf(".host", m.Host, i), fmt.Sprintf("%q is no host name; write %s", host, hostLike(host)))
		}
	}
	for i, path := range m.Path {
		if path == "" {
			report(elementOf(".path", m.Path, i), "is empty; leave match.path out for any path")
			continue
		}
		if err := checkPattern(path); err != nil {
			report(elementOf(".path", m.Path, i), err.Error())
		}
	}
	for i, method := range m.Methods {
		if !isToken([]byte(method)) || method != strings.ToUpper(method) {
			report(fmt.Sprintf(".methods[%d]", i), fmt.Sprintf("%q is no method; write it in capitals, as in GET%s", method, limiter.DidYouMean(method, knownMethods)))
		}
	}
	for name, v := range m.Headers {
		if !isToken([]byte(name)) {
			report(".headers."+name, "is no header name")
		}
		v.validate(func(key, problem string) { report(".headers."+name+key, problem) })
	}
	for name, v := range m.Query {
		v.validate(func(key, problem string) { report(".query."+name+key, problem) })
	}
}

// elementOf is the key of an element of a list, which may be written as one value.
func elementOf(key string, list []string, i int) string {
	if len(list) == 1 {
		return key
	}
	return fmt.Sprintf("%s[%d]", key, i)
}

// checkPattern says what is wrong with a pattern of match.path.
func checkPattern(pattern string) error {
	if path, query, found := strings.Cut(pattern, "?"); found && path != "" {
		name, _, _ := strings.Cut(query, "=")
		return fmt.Errorf("%q holds a query, which belongs in match.query: write the path alone, %q, and match.query: {%s: ...}", pattern, path, cmp.Or(name, "NAME"))
	}
	_, err := parsePath(pattern)
	return err
}

// isHostPattern says whether host is a name, or *. and a name, without a port. It
// has no dot at either end: requests are matched without the last one, and none has
// the first.
func isHostPattern(host string) bool {
	host = strings.TrimPrefix(host, "*.")
	if host == "" || strings.Contains(host, "*") || strings.Trim(host, ".") != host {
		return false
	}
	name, ok := splitHost([]byte(host))
	return ok && len(name) == len(host)
}

// hostLike is the pattern that was surely meant by one that is none, or what
// patterns look like.
func hostLike(host string) string {
	like := strings.TrimRight(host, ".")
	if name := strings.TrimLeft(strings.TrimPrefix(like, "*"), "."); name != like {
		like = "*." + name // as in cookies, where .example.com is all below
	}
	if like == host || !isHostPattern(like) {
		return "api.example.com or *.example.com, without a port"
	}
	return like
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
