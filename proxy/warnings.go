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
	for i := range c.Routes {
		c.Routes[i].warn(func(key, text string) { warn(fmt.Sprintf("routes[%d]%s", i, key), text) })
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
		return // nothing below is looked at
	}
	rt.warnOfMissingUser(warn)
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

// isEmptyFor says whether p may be empty in a request that m matches.
func (p placeholder) isEmptyFor(m *MatchConfig) bool {
	isNamed := func(name string) bool { return strings.EqualFold(name, p.name) }
	switch p.kind {
	case "header":
		return !slices.ContainsFunc(sortedKeys(m.Headers), isNamed)
	case "query":
		_, ok := m.Query[p.name]
		return !ok
	case "client_ip", "path", "host", "method", "route":
		return false
	}
	return true
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
