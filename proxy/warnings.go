package proxy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/r8limiter/r8limiter/limiter"
)

// Warn reports what is legal but surely wrong, by its path below `proxy`. c is a
// configuration that Validate found no fault with.
func (c *Config) Warn(warn func(path, text string)) {
	for i, each := range c.TrustedProxies {
		if each.Bits() == 0 && (c.Listen != "" || len(c.Routes) > 0) {
			warn(fmt.Sprintf("trusted_proxies[%d]", i), fmt.Sprintf("%v trusts every peer: any client can then say by X-Forwarded-For who {client_ip} is, and escape its limits; list the networks of your load balancers", each))
		}
	}
	c.warnOfUnreachable(warn)
	c.warnOfUnused(warn)
	for i := range c.Routes {
		c.Routes[i].warn(func(key, text string) { warn(fmt.Sprintf("routes[%d]%s", i, key), text) })
	}
}

// warnOfUnused reports upstreams that no route forwards to.
func (c *Config) warnOfUnused(warn func(path, text string)) {
	if len(c.Routes) == 0 {
		return // the file is not written to its end, or is for the control listener alone
	}
	for _, name := range sortedKeys(c.Upstreams) {
		if !slices.ContainsFunc(c.Routes, func(rt RouteConfig) bool { return rt.Upstream == name && actions[rt.Action] != blockAction }) {
			warn("upstreams."+name, "no route forwards to it; name it as the upstream of a route, or take it out")
		}
	}
}

// warn reports by the key below the route, beginning with a dot.
func (rt *RouteConfig) warn(warn func(key, text string)) {
	for _, name := range sortedKeys(rt.Match.Headers) {
		if isClientSaid(name) {
			warn(".match.headers."+name, "is sent by whoever likes to; write match.client_ip, for which X-Forwarded-For is believed from trusted_proxies alone")
		}
	}
	for i, method := range rt.Match.Methods {
		if !slices.Contains(knownMethods, method) {
			if near, ok := limiter.Nearest(method, knownMethods); ok {
				warn(fmt.Sprintf(".match.methods[%d]", i), fmt.Sprintf("%q is a method that no client knows; did you mean %q?", method, near))
			}
		}
	}
	if actions[rt.Action] != limitAction {
		rt.warnOfIgnored(warn)
		return
	}
	if rt.Enforce.IsNone() {
		warn(".enforce", "is 0%, so that nobody is denied; write shadow: true, which says so, or a share above 0%")
	}
	rt.warnOfMissingUser(warn)
	rt.warnOfUnneededUsers(warn)
	rt.warnOfChosenResource(warn)
	templates := map[string]Template{".resource": rt.Resource, ".plan": rt.Plan, ".cost": rt.Cost}
	for i, t := range rt.UserID {
		templates[fmt.Sprintf(".user_id[%d]", i)] = t
	}
	for key, t := range templates {
		for _, p := range placeholdersOf(t) {
			p.warn(key, warn)
		}
	}
}

// warnOfIgnored reports what a route says about limits that it does not have.
func (rt *RouteConfig) warnOfIgnored(warn func(key, text string)) {
	for key, isSet := range map[string]bool{
		".user_id": len(rt.UserID) > 0, ".resource": rt.Resource.isSet(), ".plan": rt.Plan.isSet(), ".cost": rt.Cost.isSet(),
	} {
		if isSet {
			warn(key, fmt.Sprintf("is not looked at, as action %s charges nothing; take one of the two out", rt.Action))
		}
	}
}

// warnOfUnneededUsers reports templates of user_id behind one that always has a value.
func (rt *RouteConfig) warnOfUnneededUsers(warn func(key, text string)) {
	mayBeEmpty := func(p placeholder) bool { return !p.isNeverEmpty(&rt.Match) }
	for i, t := range rt.UserID[:max(0, len(rt.UserID)-1)] {
		if !slices.ContainsFunc(placeholdersOf(t), mayBeEmpty) {
			warn(fmt.Sprintf(".user_id[%d]", i+1), fmt.Sprintf("is never tried: %q before it is never empty; change their order, or take this out", t))
			return
		}
	}
}

// warnOfChosenResource reports a resource that clients name as they like: each new name
// has full buckets.
func (rt *RouteConfig) warnOfChosenResource(warn func(key, text string)) {
	if len(rt.Match.ClientIP) > 0 {
		return // who may come here is told by address
	}
	for _, p := range placeholdersOf(rt.Resource) {
		if p.isClients() && !p.isBoundBy(&rt.Match) {
			warn(".resource", fmt.Sprintf("{%s} is what a client likes to send, and each new value has a full bucket: nobody is held to anything; say in match which values there are, as in {regexp: \"read|write\"}, or take it from {jwt.NAME} or {path.NAME}", p.text))
		}
	}
}

// warnOfMissingUser reports a user that the client may leave out, after whom
// nothing comes.
func (rt *RouteConfig) warnOfMissingUser(warn func(key, text string)) {
	if len(rt.UserID) == 0 || !slices.ContainsFunc(placeholdersOf(rt.UserID[len(rt.UserID)-1]), placeholder.isClients) {
		return
	}
	for _, t := range rt.UserID {
		if !slices.ContainsFunc(placeholdersOf(t), func(p placeholder) bool { return p.isEmptyFor(&rt.Match) }) {
			return
		}
	}
	warn(".user_id", fmt.Sprintf("has no fallback: requests without it are all counted by {client_ip}; if that is meant write [%s, \"{client_ip}\"]", quotedList(rt.UserID)))
}

func quotedList(templates []Template) string {
	var all []string
	for _, t := range templates {
		all = append(all, fmt.Sprintf("%q", t))
	}
	return strings.Join(all, ", ")
}

// placeholder is one of a template, taken apart.
type placeholder struct {
	text    string // as it was written, without the braces
	kind    string // as header
	name    string // of the header or the like; "" where the kind takes none
	filters []string
}

var placeholderText = regexp.MustCompile(`\{([^{}]*)\}`)

// placeholdersOf are those of a template, in order.
func placeholdersOf(t Template) (all []placeholder) {
	for _, m := range placeholderText.FindAllStringSubmatch(t.text, -1) {
		source, filters, _ := strings.Cut(m[1], "|")
		kind, name, _ := strings.Cut(source, ".")
		all = append(all, placeholder{m[1], kind, name, strings.Split(filters, "|")})
	}
	return all
}

// isClients says whether the client may send what p reads or not, as it likes.
func (p placeholder) isClients() bool {
	return p.kind == "header" || p.kind == "query" || p.kind == "cookie" || p.kind == "basic_user"
}

// matcher is what m wants the value of p to be.
func (p placeholder) matcher(m *MatchConfig) (v ValueMatch, ok bool) {
	switch p.kind {
	case "header":
		for name, v := range m.Headers {
			if strings.EqualFold(name, p.name) {
				return v, true
			}
		}
	case "query":
		v, ok = m.Query[p.name]
	}
	return v, ok
}

// isBoundBy says whether m asks for more of p than that it is there.
func (p placeholder) isBoundBy(m *MatchConfig) bool {
	v, ok := p.matcher(m)
	return ok && !v.Present
}

// isNeverEmpty says whether p surely has a value in every request that m matches.
func (p placeholder) isNeverEmpty(m *MatchConfig) bool {
	v, ok := p.matcher(m)
	return ok && v.Exact+v.Prefix != "" || slices.Contains([]string{"client_ip", "method", "route"}, p.kind)
}

// isEmptyFor says whether p may be empty, or not be there at all, in requests that m
// matches: a value that is asked for but empty is no slip of the file.
func (p placeholder) isEmptyFor(m *MatchConfig) bool {
	_, isAsked := p.matcher(m)
	switch p.kind {
	case "client_ip", "path", "host", "method", "route":
		return false
	}
	return !isAsked
}

// warn reports what p should not read at all, or not as it is.
func (p placeholder) warn(key string, warn func(key, text string)) {
	switch {
	case p.kind == "header" && isClientSaid(p.name):
		warn(key, fmt.Sprintf("{%s} is whatever a client likes to send; write {client_ip}, for which X-Forwarded-For is believed from trusted_proxies alone", p.text))
	case p.isClients() && IsSecretName(p.name) && !slices.Contains(p.filters, "sha256") && key != ".cost":
		warn(key, fmt.Sprintf("{%s} looks like a secret, and would stand in Redis, logs and /admin as it is; write {%s|sha256}", p.text, p.text))
	}
}

// clientSaid are the header fields that say whose address a request comes from:
// what of them is true only the address of the peer can tell.
var clientSaid = []string{
	"X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP", "X-Client-IP", "X-Cluster-Client-IP", "Fastly-Client-IP",
}

func isClientSaid(name string) bool {
	return slices.ContainsFunc(clientSaid, func(s string) bool { return strings.EqualFold(s, name) })
}

// secretName is how names of header fields, parameters and cookies end that hold
// secrets: what logs a client in.
var secretName = regexp.MustCompile(`(?i)(authorization|token|secret|password|passwd|jwt|session|sess(ion)?[-_]?id|(api|access|auth|secret|private)[-_]?key|(^|[-_.])(cookie|sid))$`)

// IsSecretName says whether what goes by that name is surely a secret.
func IsSecretName(name string) bool { return secretName.MatchString(name) }
