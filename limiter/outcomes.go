package limiter

import (
	"errors"
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"
)

// outcome is an outcome label with its reason label. The reasons are few and
// fixed; what a limit is about is in the limit label.
type outcome uint8

const (
	allowed outcome = iota
	replayed
	denied
	tooLarge
	waived
	shadowDenied
	shadowTooLarge
	storeFailed
	keyReused
	exempted
	blocked
	localAllowed
	localDenied
	unaskedAllowed
)

// outcomeLabels are the labels of each outcome.
var outcomeLabels = [...]string{
	allowed:      `outcome="allow",reason="tokens"`,
	replayed:     `outcome="allow",reason="replayed"`,
	denied:       `outcome="deny",reason="tokens"`,
	tooLarge:     `outcome="deny",reason="cost_exceeds_capacity"`,
	waived:       `outcome="allow",reason="shadow"`,
	shadowDenied: `outcome="shadow_deny",reason="tokens"`,
	storeFailed:  `outcome="error",reason="store"`,
	keyReused:    `outcome="error",reason="idempotency_key_reused"`,
	exempted:     `outcome="allow",reason="override"`,
	blocked:      `outcome="deny",reason="override"`,

	shadowTooLarge: `outcome="shadow_deny",reason="cost_exceeds_capacity"`,

	localAllowed:   `outcome="allow",reason="store_local"`,
	localDenied:    `outcome="deny",reason="store_local"`,
	unaskedAllowed: `outcome="allow",reason="store_allow"`,
}

// outcomeSet holds the Outcomes of all routes.
type outcomeSet struct {
	series *metrics.Set
	mu     sync.Mutex // guards routes
	routes map[string]*Outcomes
}

func (s *outcomeSet) init() {
	s.series = metrics.NewSet()
	s.routes = map[string]*Outcomes{}
}

// Outcomes counts the decisions of one route by limit, outcome and reason. It
// is safe for concurrent use, and lock-free but for a pair's first time.
type Outcomes struct {
	route    string // escaped for a label
	set      *outcomeSet
	dropped  bool                                        // nobody sees it any more; set.mu guards it
	counters atomic.Pointer[map[series]*metrics.Counter] // replaced, never changed
}

// series is one counter of a route. Limit names come from the configuration and
// from what operators persist, never from clients, so there are few.
type series struct {
	limit   string
	outcome outcome
}

// Outcomes returns the counters of a route, the same for the same name until
// DropOutcomes. Routes must come from the configuration.
func (l *Limiter) Outcomes(route string) *Outcomes {
	s := &l.decisions
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.routes[route]
	if !ok {
		o = &Outcomes{route: labelEscapes.Replace(route), set: s}
		o.counters.Store(&map[series]*metrics.Counter{})
		s.routes[route] = o
	}
	return o
}

// DropOutcomes forgets the counters of a route that no configuration names any
// more. Who still has them may count, which nobody sees.
func (l *Limiter) DropOutcomes(route string) {
	s := &l.decisions
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.routes[route]
	if !ok {
		return
	}
	delete(s.routes, route)
	o.dropped = true
	o.keepLocked(func(series) bool { return false })
}

// keep forgets the counters of limits that have none of the labels: limits come
// and go with configurations, and each would leave its counters behind.
func (s *outcomeSet) keep(labels map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.routes {
		o.keepLocked(func(each series) bool { return labels[each.limit] })
	}
}

// keepLocked forgets the counters that are not wanted.
func (o *Outcomes) keepLocked(wanted func(series) bool) {
	all := *o.counters.Load()
	kept := make(map[series]*metrics.Counter, len(all))
	for each, c := range all {
		if wanted(each) {
			kept[each] = c
		} else {
			o.set.series.UnregisterMetric(o.name(each))
		}
	}
	if len(kept) < len(all) {
		o.counters.Store(&kept)
	}
}

// name is what a series is called in the text format.
func (o *Outcomes) name(s series) string {
	return `r8limiter_decisions_total{route="` + o.route + `",limit="` + labelEscapes.Replace(s.limit) + `",` + outcomeLabels[s.outcome] + `}`
}

// Count counts what Decide answered: d under its binding limit, and besides it each
// limit that would have refused, a shadow or one whose refusal was waived; or err,
// with no limit.
func (o *Outcomes) Count(d *Decision, err error) {
	switch {
	case errors.Is(err, ErrKeyReused):
		o.counter(series{"", keyReused}).Inc()
	case err != nil:
		o.counter(series{"", storeFailed}).Inc()
	case d.Override == Exempted:
		o.counter(series{"", exempted}).Inc()
	case d.Override == Blocked:
		o.counter(series{"", blocked}).Inc()
	case d.StandIn == AllowedUnasked:
		o.counter(series{"", unaskedAllowed}).Inc()
	default:
		o.countDecision(d)
	}
}

// countDecision counts one decision once, and besides it who would have refused.
func (o *Outcomes) countDecision(d *Decision) {
	if s := d.Binding(); s != nil {
		o.counter(series{s.label(), d.outcome()}).Inc()
		if d.Waived && d.Never {
			o.counter(series{s.label(), shadowTooLarge}).Inc()
		} else if d.Waived {
			o.counter(series{s.label(), shadowDenied}).Inc()
		}
	}
	for i := range d.Limits {
		if s := &d.Limits[i]; s.Shadow && s.Denied {
			o.counter(series{s.label(), shadowDenied}).Inc()
		}
	}
}

func (d *Decision) outcome() outcome {
	switch {
	case d.Waived:
		return waived
	case d.Replayed:
		return replayed
	case d.Allowed && d.StandIn == LocalBucket:
		return localAllowed
	case d.Allowed:
		return allowed
	case d.Never:
		return tooLarge
	case d.StandIn == LocalBucket:
		return localDenied
	}
	return denied
}

// defaultLabel is what metrics call the limit of resources that nothing names.
const defaultLabel = "default"

// label is what metrics call the limit: never what a client chose.
func (l *Limit) label() string {
	if l.Name == "" {
		return defaultLabel
	}
	return l.Name
}

// counter finds a counter without a lock.
func (o *Outcomes) counter(s series) *metrics.Counter {
	if c, ok := (*o.counters.Load())[s]; ok {
		return c
	}
	return o.add(s)
}

// add makes the counter of a series that is seen for the first time.
func (o *Outcomes) add(s series) *metrics.Counter {
	o.set.mu.Lock()
	defer o.set.mu.Unlock()
	known := maps.Clone(*o.counters.Load())
	c := new(metrics.Counter)
	if !o.dropped {
		c = o.set.series.GetOrCreateCounter(o.name(s))
	}
	known[s] = c
	o.counters.Store(&known)
	return c
}

// labelEscapes is what Prometheus' text format asks of a label's value.
var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
