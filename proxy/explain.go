package proxy

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/r8limiter/r8limiter/limiter"
)

// Explanation says why rules say of a request what they say. It holds no secret: a
// value that goes through |sha256 only as the hash, and none that is hidden by its
// nature, such as Authorization, a cookie or a key. Its texts are a client's, as they
// came; who shows them to a terminal escapes them.
type Explanation struct {
	Method string `json:"method"`
	Host   string `json:"host"` // lower case, without port; as it was asked for where that is malformed
	Path   string `json:"path"` // raw; the query may hold secrets and is left out

	Client ClientTrace `json:"client"`
	// Readings are there where the path can be read in several ways.
	Readings []Reading `json:"readings,omitempty"`
	// Routes are those that were looked at, in file order: all before the one that
	// matched, and that.
	Routes []RouteTrace `json:"routes"`
	// Route is the name of the one that matched; "" for none.
	Route  string `json:"route"`
	Action string `json:"action,omitempty"` // limit, bypass or block
	// Preflight says that it is a CORS preflight, which is not charged.
	Preflight bool `json:"preflight,omitempty"`

	// What follows is there where the limiter is asked, as far as it was found out.
	UserID   *Derivation  `json:"user_id,omitempty"`
	Resource *Derivation  `json:"resource,omitempty"`
	Plan     *Derivation  `json:"plan,omitempty"` // nil where the route has none
	Cost     *Derivation  `json:"cost,omitempty"`
	Enforced *Enforcement `json:"enforced,omitempty"`

	Upstream *UpstreamTrace `json:"upstream,omitempty"`
	// Refused is there where the gateway answers by itself.
	Refused *Refused `json:"refused,omitempty"`

	// Judgement is that of the same request.
	Judgement Judgement `json:"-"`
}

// ClientTrace is how the client's address was found.
type ClientTrace struct {
	Peer string `json:"peer"` // who connected
	// Trusted says that the peer is one of trusted_proxies.
	Trusted bool `json:"trusted"`
	// Hops are those of X-Forwarded-For that were looked at, from the right.
	Hops []HopTrace `json:"hops,omitempty"`
	// Ignored says that there is an X-Forwarded-For of a peer that is not trusted.
	Ignored bool `json:"forwarded_for_ignored,omitempty"`
	// Address is the client's; {client_ip} is its network where it has IPv6.
	Address  string `json:"address"`
	ClientIP string `json:"client_ip"`
}

// HopTrace is one hop of X-Forwarded-For.
type HopTrace struct {
	Hop string `json:"hop"`
	// Verdict is trusted (so the next is looked at), client, or malformed (so the one
	// before is the client).
	Verdict string `json:"verdict"`
}

// Reading is a way in which servers may read the path.
type Reading struct {
	Path   string   `json:"path"`   // as it is routed then
	Points []string `json:"points"` // in what it differs from ours; none for ours
	Route  string   `json:"route"`  // "" for none
}

// RouteTrace is a route and why it did not match.
type RouteTrace struct {
	Index   int    `json:"index"` // in proxy.routes
	Route   string `json:"route"`
	Matched bool   `json:"matched"`
	Matcher string `json:"matcher,omitempty"` // the first that failed: host, path, methods, client_ip, headers or query
	Why     string `json:"why,omitempty"`
}

// Derivation is how a value was made.
type Derivation struct {
	Value string `json:"value"`
	// Hidden says that the value is a secret, and Value "".
	Hidden bool `json:"hidden,omitempty"`
	// From is the key of the template that had a value, as user_id[0]; "" for the default.
	From string `json:"from"`
	// Tried are the templates in order, up to the one that had a value.
	Tried []TemplateTrace `json:"tried,omitempty"`
}

// TemplateTrace is a template and what it came to.
type TemplateTrace struct {
	Key      string      `json:"key"`
	Template string      `json:"template"`
	Empty    bool        `json:"empty,omitempty"`
	Fault    string      `json:"fault,omitempty"` // for which the request is refused
	Parts    []PartTrace `json:"parts"`           // up to the first that is empty
}

// PartTrace is a placeholder, or literal text.
type PartTrace struct {
	Part    string   `json:"part"` // as {header.X-User-Id}, without its filters
	Value   string   `json:"value,omitempty"`
	Filters []string `json:"filters,omitempty"`
	Result  string   `json:"result,omitempty"` // what the filters made of it
	Empty   bool     `json:"empty,omitempty"`
	// Hidden says that Value is a secret and left out, and Result unless it is a hash.
	Hidden bool `json:"hidden,omitempty"`
}

// Enforcement says whether the limits hold for the user.
type Enforcement struct {
	Enforced bool   `json:"enforced"`
	Shadow   bool   `json:"shadow,omitempty"` // the whole route is one
	Share    string `json:"share,omitempty"`  // of the users, as 5%
	Place    string `json:"place,omitempty"`  // the user's: enforced where it is below the share
}

// UpstreamTrace is where the request goes if it is allowed.
type UpstreamTrace struct {
	Name    string   `json:"upstream"`
	Targets []string `json:"targets"` // without credentials
}

// Refused is the gateway's own answer.
type Refused struct {
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Challenge string `json:"challenge,omitempty"` // WWW-Authenticate
}

// Explain judges a request and says why. It is far slower than Judge, which it asks.
func (rs *Rules) Explain(a *Asked) *Explanation {
	e := &Explanation{Method: string(a.Method), Host: string(a.Host), Routes: []RouteTrace{}}
	j, r := &e.Judgement, &a.request
	r.unseen = true
	rs.Judge(a, j)
	if e.Path = string(r.path); e.Path == "" { // it was not even read
		e.Path, _, _ = strings.Cut(string(a.Target), "?")
	}
	if len(r.host) > 0 {
		e.Host = string(r.host)
	}
	e.Client = rs.traceClient(a)
	if j.Refused != nil {
		e.Refused = &Refused{Status: j.Status, Detail: j.Refused.Error(), Challenge: j.Challenge}
	}
	if len(r.roots) == 0 { // nobody came to look at routes
		return e
	}
	e.Readings = rs.traceReadings(a)
	e.traceRoutes(rs, r)
	if r.route == nil || j.Index < 0 {
		return e
	}
	e.Route, e.Action = r.route.name, r.route.action.String()
	e.Preflight = r.isPreflight()
	e.Upstream = rs.traceUpstream(r.route)
	if j.Charged {
		e.traceAsked(rs, a)
	}
	return e
}

// String is the action as the file has it.
func (a action) String() string { return [...]string{"limit", "bypass", "block"}[a] }

func (rs *Rules) traceClient(a *Asked) ClientTrace {
	r := &a.request
	peer := a.Peer.Unmap().WithZone("")
	t := ClientTrace{Peer: "unknown", Trusted: a.Believed || contains(rs.trusted, peer)}
	if peer.IsValid() {
		t.Peer = peer.String()
	}
	t.Ignored = !t.Trusted && slices.ContainsFunc(r.fields, func(f field) bool { return equalFold(f.name, "X-Forwarded-For") })
	seen := request{fields: r.fields, client: peer, prefix6: rs.prefix6}
	if t.Trusted {
		var hops []hop
		seen.client = walkForwarded(r, peer, rs.trusted, &hops)
		t.Hops = traceHops(hops, rs.trusted)
	}
	t.ClientIP = string(seen.appendClient(nil))
	t.Address = t.ClientIP
	if seen.client.IsValid() {
		t.Address = seen.client.String()
	}
	return t
}

func traceHops(hops []hop, trusted []Prefix) (all []HopTrace) {
	for i, h := range hops {
		verdict := "client"
		switch {
		case !h.addr.IsValid():
			verdict = "malformed"
		case contains(trusted, h.addr) && i < len(hops)-1:
			verdict = "trusted"
		}
		all = append(all, HopTrace{Hop: string(h.text), Verdict: verdict})
	}
	return all
}

func (rs *Rules) traceUpstream(rt *route) *UpstreamTrace {
	name := rs.config.Routes[rt.index].Upstream
	if name == "" {
		return nil
	}
	t := &UpstreamTrace{Name: name, Targets: []string{}}
	for _, target := range rs.config.Upstreams[name].Targets {
		if u, err := url.Parse(target); err == nil {
			u.User = nil
			target = u.String()
		}
		t.Targets = append(t.Targets, target)
	}
	return t
}

// traceAsked adds what the limiter is asked. Where a template is at fault, what was
// found before it stays.
func (e *Explanation) traceAsked(rs *Rules, a *Asked) {
	r, ask := &a.request, &e.Judgement.Ask
	rt := r.route
	if !a.authenticated {
		return
	}
	found := true
	derive := func(templates []Template, key, value string) *Derivation {
		if !found {
			return nil
		}
		d := &Derivation{Value: value}
		for i := range templates {
			if !templates[i].isSet() {
				continue
			}
			t := rs.traceTemplate(&templates[i], r)
			if t.Key = key; key == "user_id" {
				t.Key = fmt.Sprintf("user_id[%d]", i)
			}
			d.Tried = append(d.Tried, t)
			if found = t.Fault == ""; !found {
				d.Value = ""
				break
			}
			if !t.Empty {
				d.From = t.Key
				d.hide(&t)
				break
			}
		}
		return d
	}
	e.UserID = derive(rt.userID, "user_id", string(ask.User))
	e.Resource = derive([]Template{rt.resource}, "resource", string(ask.Resource))
	if rt.plan.isSet() {
		e.Plan = derive([]Template{rt.plan}, "plan", string(ask.Plan))
	}
	e.Cost = derive([]Template{rt.cost}, "cost", strconv.FormatInt(ask.Cost, 10))
	switch {
	case !found:
	case e.Judgement.Refused == nil:
		e.Enforced = rt.traceEnforcement(ask)
	case len(e.Cost.Tried) > 0: // it has a value, but no number
		e.Cost.Value, e.Cost.Tried[0].Fault = "", e.Judgement.Refused.Error()
	}
}

// hide takes the value away if t shows a part that is secret.
func (d *Derivation) hide(t *TemplateTrace) {
	if slices.ContainsFunc(t.Parts, func(p PartTrace) bool { return p.Hidden && p.Result == "" }) {
		d.Value, d.Hidden = "", true
	}
}

func (rt *route) traceEnforcement(ask *limiter.Request) *Enforcement {
	e := &Enforcement{Enforced: !ask.Shadow, Shadow: rt.shadow}
	if rt.enforce.IsGiven() {
		e.Share, e.Place = rt.enforce.String(), limiter.PlaceOf(rt.name, ask.User).String()
	}
	return e
}

// traceTemplate makes the template's value part by part, with the very code that
// makes it for a request.
func (rs *Rules) traceTemplate(t *Template, r *request) TemplateTrace {
	all := TemplateTrace{Template: t.text, Parts: []PartTrace{}}
	for i := range t.parts {
		p := &t.parts[i]
		raw, err := p.appendTo(nil, r)
		part := PartTrace{Part: p.arg, Empty: err == nil && len(raw) == 0}
		if p.from != fromLiteral {
			name, filterNames, _ := strings.Cut(p.text, "|")
			part.Part = "{" + name + "}"
			part.Filters = strings.FieldsFunc(filterNames, func(c rune) bool { return c == '|' })
		}
		if err != nil {
			all.Fault = err.Error()
		} else if !part.Empty {
			part.fill(p, raw, rs.isSecret(p))
		}
		all.Parts = append(all.Parts, part)
		if err != nil || part.Empty {
			all.Empty = part.Empty
			break
		}
	}
	return all
}

// fill runs the filters over raw. What is a hash is no secret any more.
func (t *PartTrace) fill(p *templatePart, raw []byte, secret bool) {
	hashed := slices.Contains(t.Filters, "sha256")
	t.Hidden = hashed || secret
	if !t.Hidden && p.from != fromLiteral {
		t.Value = string(raw)
	}
	for _, f := range p.filters {
		raw = f(raw, 0)
	}
	if len(p.filters) > 0 && (hashed || !secret) {
		t.Result = string(raw)
	}
}

// isSecret says whether the value lets who knows it act as the client, by its name.
func (rs *Rules) isSecret(p *templatePart) bool {
	switch p.from {
	case fromHeader:
		return IsSecretName(p.arg) || rs.apiKeys != nil && equalFold([]byte(p.arg), rs.apiKeys.header)
	case fromQuery, fromCookie:
		return IsSecretName(p.arg)
	}
	return false
}
