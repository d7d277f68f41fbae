package proxy

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// This file finds templates whose values are not what they look like: the client's to
// choose, to leave out or to keep secret.

// warnOfMissingUser reports a user that the client may leave out, after whom
// nothing comes.
func (c *Config) warnOfMissingUser(rt *RouteConfig, warn func(key, text string)) {
	if len(rt.UserID) == 0 || !slices.ContainsFunc(placeholdersOf(rt.UserID[len(rt.UserID)-1]), c.mayBeLeftOut) {
		return
	}
	mayBeEmpty := func(p placeholder) bool { return c.mayBeEmpty(p, &rt.Match) }
	for _, t := range rt.UserID {
		if !slices.ContainsFunc(placeholdersOf(t), mayBeEmpty) {
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

// warnOfHostAsUser reports a user who is whatever host the client asks for. What
// else it reads is the client's to choose too, or of few values; a header field may
// be one that an edge sets.
func (rt *RouteConfig) warnOfHostAsUser(warn func(key, text string)) {
	host, isAsked := placeholder{kind: "header", name: "Host"}, len(rt.Match.Host)+len(rt.Match.ClientIP) > 0
	if isAsked || host.isBoundBy(&rt.Match) {
		return
	}
	isHost := func(p placeholder) bool { return p.kind == "host" }
	tellsWho := func(p placeholder) bool {
		return !slices.Contains([]string{"host", "method", "route", "path", "query", "cookie"}, p.kind)
	}
	for i, t := range rt.UserID {
		if all := placeholdersOf(t); slices.ContainsFunc(all, isHost) && !slices.ContainsFunc(all, tellsWho) {
			warn(fmt.Sprintf(".user_id[%d]", i), "{host} is whatever a client sends, and each host that it invents has a full bucket: nobody is held to anything; list your hosts in match.host, or count by {client_ip}")
		}
	}
}

// warnOfChosenResource reports a resource that clients name as they like: each new name
// has full buckets. A header field may be one that a proxy in front sets, if there is one.
func (c *Config) warnOfChosenResource(rt *RouteConfig, warn func(key, text string)) {
	if len(rt.Match.ClientIP) > 0 {
		return // who may come here is told by address
	}
	for _, p := range placeholdersOf(rt.Resource) {
		mayBeOfEdge := p.kind == "header" && len(c.TrustedProxies) > 0
		if p.isClients() && !mayBeOfEdge && !p.isBoundBy(&rt.Match) {
			warn(".resource", fmt.Sprintf("{%s} is what a client likes to send, and each new value has a full bucket: nobody is held to anything; say in match which values there are, as in {regexp: \"read|write\"}, or take it from {jwt.NAME}", p.text))
		}
	}
}

// warnOfChosenCost reports a cost that clients name as they like. A header field may
// be one that an edge sets.
func (rt *RouteConfig) warnOfChosenCost(warn func(key, text string)) {
	if len(rt.Match.ClientIP) > 0 {
		return // as above
	}
	cookies := placeholder{kind: "header", name: "Cookie"}
	for _, p := range placeholdersOf(rt.Cost) {
		isChosen := p.kind == "query" && !p.isBoundBy(&rt.Match) || p.kind == "cookie" && !cookies.isBoundBy(&rt.Match)
		if isChosen {
			warn(".cost", fmt.Sprintf("{%s} is what a client likes to send, so that whoever asks says what it costs, 0 too: say in match which values there are, as in {regexp: \"[1-9][0-9]?\"}, or take a header field that your edge sets", p.text))
		}
	}
}

// warnOfPlaceholders reports those that a template should not read.
func (rt *RouteConfig) warnOfPlaceholders(warn func(key, text string)) {
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

// mayBeLeftOut says whether clients may send what p reads or not: credentials too,
// unless everybody must show some.
func (c *Config) mayBeLeftOut(p placeholder) bool {
	switch p.kind {
	case "jwt":
		return c.JWT != nil && !c.JWT.Required
	case "api_key":
		return c.APIKeys != nil && !c.APIKeys.Required
	}
	return p.isClients()
}

// mayBeEmpty says whether p may be empty, or not be there at all, in requests that m
// matches: a value that is asked for but empty is no slip of the file.
func (c *Config) mayBeEmpty(p placeholder, m *MatchConfig) bool {
	if !c.mayBeLeftOut(p) {
		return false
	}
	field := placeholder{kind: "header"}
	switch p.kind {
	case "jwt":
		field.name = "Authorization"
	case "api_key":
		field.name = cmp.Or(c.APIKeys.Header, defaultKeyHeader)
	case "basic_user":
		field.name = "Authorization"
	case "cookie":
		field.name = "Cookie"
	default:
		field = p
	}
	_, isAsked := field.matcher(m)
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
