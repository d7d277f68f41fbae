package simulate

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// engine judges requests and counts what comes of them. One goroutine uses it.
type engine struct {
	o       *Options
	rules   *proxy.Rules
	limiter *limiter.Limiter

	now    int64 // the virtual clock, in microseconds since 1970
	asked  proxy.Asked
	judged proxy.Judgement
	// decision holds one if the limiter was asked.
	decision limiter.Decision
	login    []byte
	// stands says for each format what of a route's is not judged; see standsFor.
	stands map[string][]stands

	input     InputReport
	examples  []Unreadable
	requests  uint64
	routes    []routeCount // by index; two more for unmatched and direct
	refusals  map[refusalKey]uint64
	sets      limitSets
	users     *names
	persons   []person
	denials   []denial
	total     outcome
	timeline  timeline
	decisions *decisionWriter
	trace     *trace // nil where no limits are sought
}

// outcome counts what became of requests.
type outcome struct{ requests, charged, denied, shadow, refused uint64 }

// routeCount is what became of the requests of a route.
type routeCount struct {
	name string
	outcome
}

type refusalKey struct {
	status int
	reason string
}

var (
	errNoHTTP   = errors.New("the request line is not a method, a target and HTTP/x")
	errNotAsked = errors.New("/allow refused what it was asked")
)

// Bounds of what is kept of what logs can make up at will.
const (
	maxRefusals = 100
	maxExamples = 5
)

func newEngine(o *Options) (*engine, error) {
	rules, err := proxy.NewRules(o.Proxy)
	if err != nil {
		return nil, fmt.Errorf("build routes: %w", err)
	}
	e := &engine{
		o: o, rules: rules, stands: map[string][]stands{},
		refusals: map[refusalKey]uint64{}, users: newNames(),
		timeline: newTimeline(),
	}
	for i := range o.Proxy.Routes {
		e.routes = append(e.routes, routeCount{name: o.Proxy.Routes[i].Name})
	}
	e.routes = append(e.routes, routeCount{name: unmatchedRoute}, routeCount{name: directRoute})
	e.sets.init(&o.Limiter)
	c := o.Limiter
	c.Redis = nil
	e.limiter = limiter.New(c, limiter.NewMemoryStoreAt(func() int64 { return e.now }))
	if o.Decisions != nil {
		e.decisions = newDecisionWriter(o.Decisions)
	}
	if o.Target.isSet() {
		if e.trace, err = newTrace(); err != nil {
			return nil, err
		}
	}
	return e, nil
}

func (e *engine) close() {
	_ = e.limiter.Close() // in memory
	if e.trace != nil {
		e.trace.close()
	}
}

// finish ends the taking in.
func (e *engine) finish() error {
	if e.decisions != nil {
		return e.decisions.flush()
	}
	return nil
}

// lines is how many lines were read, of any kind.
func (e *engine) lines() int64 {
	return int64(e.requests) + int64(e.input.Unreadable) + int64(e.input.Skipped)
}

// unread counts a line that is no request.
func (e *engine) unread(s *source, why error) {
	if e.decisions != nil {
		e.decisions.unread(s, why)
	}
	if isSkip(why) {
		e.input.Skipped++
		return
	}
	e.input.Unreadable++
	if len(e.examples) < maxExamples {
		e.examples = append(e.examples, Unreadable{File: s.name, Line: s.number, Why: why.Error()})
	}
}

// broke notes that a log can't be read on.
func (e *engine) broke(s *source, why error) {
	e.input.Broken = append(e.input.Broken, Broken{File: s.name, Line: s.number, Why: why.Error()})
}

// tick sets the clock. It never goes back: logs are written when requests end, and some
// tell when they began.
func (e *engine) tick(at int64) {
	if e.requests == 0 {
		e.now, e.input.first = at, at
	}
	if at < e.now {
		e.input.Clamped++
		e.input.clampedMost = max(e.input.clampedMost, e.now-at)
		return
	}
	e.now = at
}

// take runs the request of the line that s has read.
func (e *engine) take(s *source) error {
	l := &s.line
	e.tick(l.at)
	e.requests++
	j := &e.judged
	if l.direct {
		e.judgeDirect(l)
	} else {
		e.judge(s)
	}
	index := j.Index
	if index < 0 {
		index = len(e.routes) - 2
	}
	became := outcome{requests: 1}
	switch {
	case j.Refused != nil:
		became.refused = 1
		e.refuse(j)
	case j.Charged:
		if err := e.decide(&became); err != nil {
			return err
		}
	}
	e.total.add(&became)
	e.routes[index].add(&became)
	e.timeline.add(e.now, &became)
	if e.decisions != nil {
		return e.decisions.write(s, e)
	}
	return nil
}

func (o *outcome) add(more *outcome) {
	o.requests += more.requests
	o.charged += more.charged
	o.denied += more.denied
	o.shadow += more.shadow
	o.refused += more.refused
}

// refuse counts a request that the gateway would answer by itself.
func (e *engine) refuse(j *proxy.Judgement) {
	key := refusalKey{j.Status, j.Refused.Error()}
	if _, known := e.refusals[key]; !known && len(e.refusals) >= maxRefusals {
		key.reason = "other reasons"
	}
	e.refusals[key]++
}

// judgeDirect says what /allow made of what it was asked. What it refused, or had said
// before, is not charged.
func (e *engine) judgeDirect(l *line) {
	j := &e.judged
	*j = proxy.Judgement{Index: len(e.routes) - 1, Route: directRoute, Charged: l.refused == 0 && !l.replayed}
	j.Ask = limiter.Request{User: l.user, Resource: l.resource, Plan: l.plan, Cost: max(l.cost, 0)}
	if l.refused > 0 {
		j.Refused, j.Status = errNotAsked, l.refused
	}
}

// judge asks the routes.
func (e *engine) judge(s *source) {
	l, a, j := &s.line, &e.asked, &e.judged
	if len(l.method) == 0 {
		*j = proxy.Judgement{Index: -1, Refused: errNoHTTP, Status: 400}
		return
	}
	a.Reset()
	a.Method, a.Target, a.Peer, a.Secure = l.method, l.target, l.client, l.secure
	a.Host = e.host(l)
	for i := range l.fields {
		a.AddField(l.fields[i].name, l.fields[i].value)
	}
	for i := range l.claims {
		a.SetClaim(string(l.claims[i].name), l.claims[i].value)
	}
	if len(l.login) > 0 {
		e.addLogin(l)
	}
	a.Direct = true
	e.rules.Judge(a, j)
	for e.excuses() {
		e.rules.Judge(a, j)
	}
	if all := e.standsFor(s); j.Charged && all != nil {
		all[j.Index].apply(l, &j.Ask, &e.o.Proxy.Routes[j.Index])
	}
}

// excuses lets pass for want of what a request was refused that no log has, or what has
// expired since; false where it was refused for something else. An API key that is
// there and unknown stays so.
func (e *engine) excuses() bool {
	a, j := &e.asked, &e.judged
	switch {
	case j.LacksToken && !a.ExcuseToken:
		a.ExcuseToken = true
	case j.LacksKey && !a.ExcuseKey:
		a.ExcuseKey = true
	default:
		return false
	}
	return true
}

// host is the Host field: the log's, else the authority that the target names, else what
// the command line says.
func (e *engine) host(l *line) []byte {
	if len(l.host) > 0 {
		return l.host
	}
	if len(l.target) > 0 && l.target[0] != '/' {
		if scheme := bytes.Index(l.target, []byte("://")); scheme > 0 {
			authority := l.target[scheme+3:]
			if end := bytes.IndexAny(authority, "/?"); end >= 0 {
				authority = authority[:end]
			}
			e.asked.Secure = e.asked.Secure || bytes.EqualFold(l.target[:scheme], []byte("https"))
			return authority
		}
	}
	return []byte(e.o.Host)
}

var (
	nameAuthorization = []byte("Authorization")
	basic             = []byte("Basic ")
)

// addLogin makes of a name that logged in the field it came from. The password is not
// known, and not missed: whoever is told apart by both has one of them.
func (e *engine) addLogin(l *line) {
	for i := range l.fields {
		if bytes.EqualFold(l.fields[i].name, nameAuthorization) {
			return
		}
	}
	e.login = append(append(e.login[:0], l.login...), ':')
	value := base64.StdEncoding.AppendEncode(append(e.login, basic...), e.login)
	e.asked.AddField(nameAuthorization, value[len(e.login):])
}

// decide asks the limiter, and counts.
func (e *engine) decide(became *outcome) error {
	ask, d := &e.judged.Ask, &e.decision
	if err := e.limiter.Decide(ask, d); err != nil {
		return fmt.Errorf("decide: %w", err)
	}
	became.charged = 1
	user := e.user(ask.User)
	p := &e.persons[user]
	p.requests++
	set := e.sets.find(ask, d)
	if set == nil { // there are no limits
		return nil
	}
	set.count(ask, d)
	if !d.Allowed {
		became.denied = 1
		p.deny(e.now)
		e.blame(p, set.base+uint32(set.binding(d)))
	} else if set.anyDenied(d) {
		became.shadow = 1
	}
	if e.trace != nil {
		return e.trace.add(set, record{at: e.now, user: user, resource: set.resourceNumber(ask.Resource), cost: uint32(ask.Cost)})
	}
	return nil
}
