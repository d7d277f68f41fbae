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
	c.warnOfOpenRoots(warn)
	c.warnOfUnused(warn)
	c.warnOfUnreadCredentials(warn)
	for i := range c.Routes {
		c.warnOfRoute(&c.Routes[i], func(key, text string) { warn(fmt.Sprintf("routes[%d]%s", i, key), text) })
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

// warnOfUnreadCredentials reports what says who clients are, and is never asked: no
// route that limits reads it, nor must every client show it.
func (c *Config) warnOfUnreadCredentials(warn func(path, text string)) {
	if len(c.Routes) == 0 {
		return // as above
	}
	var r reads
	for i := range c.Routes {
		if rt := &c.Routes[i]; actions[rt.Action] == limitAction {
			for _, t := range rt.templates() {
				r.note(&t)
			}
		}
	}
	if c.JWT != nil && !c.JWT.Required && !r.token {
		warn("jwt", "no route that limits reads {jwt.CLAIM}, and required is false, so that no token is ever looked at: read it, as in user_id: [\"{jwt.sub}\", \"{client_ip}\"], write required: true, or take this out")
	}
	if c.APIKeys != nil && !c.APIKeys.Required && !r.key {
		warn("api_keys", "no route that limits reads {api_key.user_id} or {api_key.plan}, and required is false, so that no key is ever looked at: read it, as in user_id: [\"{api_key.user_id}\", \"{client_ip}\"], write required: true, or take this out")
	}
}

// warnOfRoute reports by the key below the route, beginning with a dot.
func (c *Config) warnOfRoute(rt *RouteConfig, warn func(key, text string)) {
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
	c.warnOfMissingUser(rt, warn)
	rt.warnOfUnneededUsers(warn)
	rt.warnOfHostAsUser(warn)
	c.warnOfChosenResource(rt, warn)
	rt.warnOfChosenCost(warn)
	rt.warnOfPlaceholders(warn)
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
