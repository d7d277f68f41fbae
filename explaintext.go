package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

const (
	textWidth  = 80 // columns
	labelWidth = 10
	// maxShown is how much of a client's text is shown, in bytes.
	maxShown = 120
	// maxRoutesShown is how many routes are shown that did not match; of more, those
	// with the right host and path go first.
	maxRoutesShown = 24
)

// page is a text under construction: labels on the left, wrapped lines beside them.
type page struct{ strings.Builder }

// line adds a line under a label, "" for the one above it.
func (p *page) line(label, format string, args ...any) {
	p.wrap(fmt.Sprintf("%-*s", labelWidth, label), labelWidth, fmt.Sprintf(format, args...))
}

// item adds a line that belongs to the one above it.
func (p *page) item(format string, args ...any) {
	p.wrap(strings.Repeat(" ", labelWidth+2), labelWidth+4, fmt.Sprintf(format, args...))
}

// wrap writes text behind a lead, its further lines indented, broken at spaces and, if
// a word is wider than a line, inside it.
func (p *page) wrap(lead string, indent int, text string) {
	line := lead
	at, empty := utf8.RuneCountInString(lead), true
	flush := func() {
		p.WriteString(strings.TrimRight(line, " "))
		p.WriteByte('\n')
		line, at, empty = strings.Repeat(" ", indent), indent, true
	}
	for field := range strings.FieldsSeq(text) {
		word := []rune(field)
		n := len(word)
		if !empty && at+1+n > textWidth {
			flush()
		}
		if !empty {
			line, at = line+" ", at+1
		}
		for at+n > textWidth {
			cut := textWidth - at
			line, word, n = line+string(word[:cut]), word[cut:], n-cut
			flush()
		}
		line, at, empty = line+string(word), at+n, false
	}
	flush()
}

// shown is a client's text as a terminal can take it: quoted, escaped and cut.
func shown(text string) string {
	if len(text) > maxShown {
		return fmt.Sprintf("%+q... (%d bytes)", text[:maxShown], len(text))
	}
	// Spaces inside would be taken for those between words.
	return fmt.Sprintf("%+q", text)
}

// Text is x for a human, in 80 columns.
func (x *explained) Text() string {
	p := new(page)
	host := "(no host) "
	if x.Host != "" {
		host = bare(x.Host)
	}
	if !strings.HasPrefix(x.Path, "/") {
		host += " "
	}
	p.line("request", "%s %s%s", bare(x.Method), host, bare(x.Path))
	if x.Host == "" && x.Refused == nil {
		p.item("as of HTTP/1.0; HTTP/1.1 without Host is answered 400")
	}
	x.writeClient(p)
	x.writeReadings(p)
	x.writeRoutes(p)
	x.writeAsked(p)
	x.writeLimits(p)
	if u := x.Upstream; u != nil {
		p.line("upstream", "%s: %s", u.Name, strings.Join(u.Targets, ", "))
	}
	x.writeAnswer(p)
	return p.String()
}

// bare is shown without the quotes where it needs none.
func bare(text string) string {
	quoted := shown(text)
	if quoted == `"`+text+`"` && text != "" && !strings.Contains(text, " ") {
		return text
	}
	return quoted
}

func (x *explained) writeClient(p *page) {
	c := &x.Client
	p.line("client", "%s", c.ClientIP)
	if c.Address != c.ClientIP {
		p.item("the network of %s, by proxy.ipv6_prefix", c.Address)
	}
	switch {
	case c.Ignored:
		p.item("%s connected, which is not in proxy.trusted_proxies: its X-Forwarded-For is ignored", c.Peer)
	case c.Trusted && len(c.Hops) == 0:
		p.item("%s connected, a trusted proxy, but without X-Forwarded-For", c.Peer)
	case c.Trusted:
		p.item("%s connected, a trusted proxy: X-Forwarded-For from the right", c.Peer)
	default:
		p.item("%s connected", c.Peer)
	}
	for _, h := range c.Hops {
		p.item("%s %s", bare(h.Hop), hopTexts[h.Verdict])
	}
}

var hopTexts = map[string]string{
	"trusted":   "is a trusted proxy: on to the next",
	"client":    "is the client",
	"malformed": "is no address: the one before is the client",
}

func (x *explained) writeReadings(p *page) {
	for i, r := range x.Readings {
		label, points := "", "as it is matched"
		if i == 0 {
			label = "readings"
		}
		if len(r.Points) > 0 {
			points = strings.Join(r.Points, ", ")
		}
		p.line(label, "%s -> %s (%s)", bare(r.Path), orNone(r.Route), points)
	}
}

func orNone(name string) string {
	if name == "" {
		return "no route"
	}
	return name
}

func (x *explained) writeRoutes(p *page) {
	label := "routes"
	routes := x.nearest()
	for _, r := range routes {
		why := r.Why
		switch {
		case r.Matched:
			why = "matches"
		case r.Matcher != "":
			why = "no: " + why
		}
		p.wrap(fmt.Sprintf("%-*s", labelWidth, label), labelWidth+2, fmt.Sprintf("%d %s: %s", r.Index+1, r.Route, why))
		label = ""
	}
	if left := len(x.Routes) - len(routes); left > 0 {
		p.line(label, "and %d more that have another host or path; -format json has all", left)
	}
	switch {
	case len(x.Routes) == 0:
		p.line("route", "none was looked for")
	case x.Route == "":
		p.line("route", "none")
	default:
		p.line("route", "%s, action %s", x.Route, x.Action)
	}
}

// nearest are all routes, or the match and those that came close to it.
func (x *explained) nearest() (some []proxy.RouteTrace) {
	if len(x.Routes) <= maxRoutesShown {
		return x.Routes
	}
	for _, r := range x.Routes {
		if r.Matched || len(some) < maxRoutesShown && r.Matcher != "host" && r.Matcher != "path" {
			some = append(some, r)
		}
	}
	return some
}

func (x *explained) writeAsked(p *page) {
	byDefault := "{client_ip}, the default"
	if x.UserID != nil && len(x.UserID.Tried) > 0 {
		byDefault = "{client_ip}, as no template has a value"
	}
	x.writeDerived(p, "user_id", x.UserID, byDefault)
	x.writeDerived(p, "resource", x.Resource, "the route's name")
	x.writeDerived(p, "plan", x.Plan, "")
	if x.PlanKnown != nil && !*x.PlanKnown {
		p.item("limiter.plans has no such plan: as if there were none")
	}
	x.writeDerived(p, "cost", x.Cost, "")
	e := x.Enforced
	if e == nil {
		return
	}
	switch {
	case e.Shadow:
		p.line("enforced", "no: the route is a shadow, nobody is denied")
	case e.Share == "":
		p.line("enforced", "yes")
	case e.Enforced:
		p.line("enforced", "yes: the user's place is %s, which is in the %s", e.Place, e.Share)
	default:
		p.line("enforced", "no: the user's place is %s, which is not in the %s", e.Place, e.Share)
	}
}

// writeDerived tells a value; byDefault says where it is from if not from a template.
func (x *explained) writeDerived(p *page, label string, d *proxy.Derivation, byDefault string) {
	if d == nil {
		return
	}
	switch {
	case len(d.Tried) > 0 && d.Tried[len(d.Tried)-1].Fault != "":
		p.line(label, "at fault")
	case d.Hidden:
		p.line(label, "(hidden)")
	case d.Value == "":
		p.line(label, "none")
	case d.From == "" && byDefault != "":
		p.line(label, "%s (%s)", bare(d.Value), byDefault)
	default:
		p.line(label, "%s", bare(d.Value))
	}
	for _, t := range d.Tried {
		x.writeTemplate(p, &t)
	}
}

func (x *explained) writeTemplate(p *page, t *proxy.TemplateTrace) {
	if len(t.Parts) == 1 && !strings.Contains(t.Template, "{") {
		return // a fixed text
	}
	var parts []string
	for _, each := range t.Parts {
		if text := partText(each); text != "" {
			parts = append(parts, text)
		}
	}
	if t.Fault != "" {
		parts = append(parts, t.Fault)
	}
	key := t.Key
	if !strings.Contains(key, "[") {
		key = "from"
	}
	if len(t.Parts) > 1 || strings.HasPrefix(t.Template, "{") == (strings.Count(t.Template, "{") > 1) {
		key += " " + t.Template
	}
	p.item("%s: %s", key, strings.Join(parts, ", "))
}

// partText is what a placeholder came to; nothing for literal text.
func partText(t proxy.PartTrace) string {
	var filters strings.Builder
	for _, f := range t.Filters {
		filters.WriteString("|" + f)
	}
	switch {
	case !strings.HasPrefix(t.Part, "{"):
		return ""
	case t.Empty:
		return t.Part + " is empty"
	case t.Hidden && t.Result == "":
		return t.Part + " is (hidden)"
	case t.Hidden:
		return strings.TrimSuffix(t.Part, "}") + filters.String() + "} is " + bare(t.Result)
	case t.Result != "" && t.Result != t.Value:
		return t.Part + " is " + bare(t.Value) + ", " + strings.TrimPrefix(filters.String(), "|") + " makes " + bare(t.Result)
	case t.Value == "":
		return ""
	}
	return t.Part + " is " + bare(t.Value)
}

// sourceTexts say where limits come from.
var sourceTexts = map[limiter.Source]string{
	limiter.FromConfig:    "of limiter.resources",
	limiter.FromPersisted: "set by an operator",
	limiter.FromDefault:   "of limiter.default",
	limiter.FromPlan:      "of the plan",
	limiter.FromOverride:  "of the user's override",
}

func (x *explained) writeLimits(p *page) {
	if x.Limits == nil {
		return
	}
	p.line("limits", "%s", sourceTexts[x.Limits.Source])
	for _, l := range x.Limits.Limits {
		text := fmt.Sprintf("%s: capacity %d, %s, per %s", bare(l.Limit), l.Capacity, l.RefillRate, l.Per)
		if l.Shadow {
			text += ", shadow"
		}
		if b := l.Bucket; b != nil {
			text += fmt.Sprintf("; %s tokens", limiter.AppendTokens(nil, float64(b.Tokens)))
			if b.NextToken > 0 {
				text += ", next " + until(b.NextToken)
			}
			if b.FullIn > 0 {
				text += ", full " + until(b.FullIn)
			}
			if b.Denies {
				text += ": denies"
			}
		}
		p.item("%s", text)
	}
}

func until(s seconds) string {
	return "in " + string(limiter.AppendSeconds(nil, time.Duration(s))) + "s"
}

func (x *explained) writeAnswer(p *page) {
	switch {
	case x.Refused != nil:
		p.line("answer", "%d %s", x.Refused.Status, x.Refused.Detail)
	case x.Preflight:
		p.line("answer", "forwarded: a CORS preflight is never charged")
	case x.Limits == nil:
		p.line("answer", "forwarded, nothing is charged")
	case x.Decision != nil:
		x.writeDecision(p)
	case !x.Enforced.Enforced:
		p.line("answer", "forwarded: what the limits decide is counted alone")
	case x.Limits.Never:
		p.line("answer", "429: the cost is more than a limit holds, it can never pass")
	default:
		p.line("answer", "as the limits decide, then forwarded or 429")
	}
}

func (x *explained) writeDecision(p *page) {
	d := x.Decision
	if d.StoreError != "" {
		p.line("store", "does not answer: %s", shown(d.StoreError))
		p.item("on_store_error is %s, which decides now", d.StandIn)
	}
	if d.Override != "" {
		p.line("override", "%s the user", map[string]string{"exempt": "exempts", "block": "blocks"}[d.Override])
	}
	by := ""
	if d.Limit != "" {
		by = " by " + bare(d.Limit)
	}
	switch {
	case d.Waived:
		p.line("now", "denied%s, but in the shadow: forwarded", by)
	case d.Allowed && d.StandIn == string(limiter.StandInLocal):
		p.line("now", "a bucket of this gateway decides")
	case d.Allowed:
		p.line("now", "allowed and forwarded")
	case d.StandIn != "":
		p.line("now", "503")
	case d.Override != "":
		p.line("now", "denied: 403")
	case d.RetryAfter != nil:
		p.line("now", "denied%s: 429, retry after %ss", by, limiter.AppendSeconds(nil, time.Duration(*d.RetryAfter)))
	default:
		p.line("now", "denied%s: 429, it can never pass", by)
	}
}
