package simulate

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// Report is what a simulation found, as -output json writes it. Fields are added, never
// renamed; lists are empty, not null. Shares are from 0 to 1, times UTC.
type Report struct {
	// Version is that of this form: 1.
	Version int    `json:"version"`
	Config  string `json:"config"`
	// Input is what was read.
	Input InputReport `json:"input"`
	// Total is what became of all requests.
	Total Outcome `json:"total"`
	// Routes are all routes in file order, also those that nothing matched, and
	// behind them, where they occur, "(no route)" and "(/allow)".
	Routes []RouteReport `json:"routes"`
	// Limits are all limits that were asked, by resource and plan.
	Limits []LimitReport `json:"limits"`
	// Users are those who would have been denied.
	Users UsersReport `json:"users"`
	// Refusals are what the gateway would have answered by itself, most first.
	Refusals []Refusal `json:"refusals"`
	// Timeline is what happened when.
	Timeline Timeline `json:"timeline"`
	// Target is how small the limits may be; absent where that was not asked.
	Target *TargetReport `json:"target,omitempty"`
}

// InputReport is what was read.
type InputReport struct {
	Files []string `json:"files"`
	Lines uint64   `json:"lines"`
	// Requests are the lines that could be read as such.
	Requests uint64 `json:"requests"`
	// Unreadable lines could not, and Skipped ones are about something else.
	Unreadable uint64 `json:"unreadable"`
	Skipped    uint64 `json:"skipped"`
	// Examples are the first that were unreadable.
	Examples []Unreadable `json:"unreadable_examples"`
	// Broken are the logs that could not be read to their end: what is behind it is
	// missing from the report.
	Broken []Broken `json:"broken"`
	// First and Last are the times of requests; absent where there is none.
	First *time.Time `json:"first,omitempty"`
	Last  *time.Time `json:"last,omitempty"`
	// Clamped lines are older than one before them, and were taken as of then; the
	// largest difference is ClampedMost.
	Clamped     uint64  `json:"clamped"`
	ClampedMost float64 `json:"clamped_most_seconds"`

	first, clampedMost int64 // microseconds
}

// Broken is a log that could not be read to its end.
type Broken struct {
	File string `json:"file"`
	Line int64  `json:"line"` // the last that was read; 0 for none
	Why  string `json:"why"`
}

// String says it for people.
func (b Broken) String() string {
	return fmt.Sprintf("%s: can't be read on behind line %d: %s", printable(b.File), b.Line, printable(b.Why))
}

// broken is an ErrBroken that names the logs, or nil.
func (r *Report) broken() error {
	var all []string
	for _, b := range r.Input.Broken {
		all = append(all, b.String())
	}
	if len(all) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrBroken, strings.Join(all, "; "))
}

// Unreadable is a line that could not be read.
type Unreadable struct {
	File string `json:"file"`
	Line int64  `json:"line"`
	Why  string `json:"why"`
}

// Outcome is what became of requests. Each is charged (allowed or denied by the limits),
// passed (by a bypass route, a preflight, or what /allow had said before under the same
// idempotency key) or refused (by the gateway itself: no route, a blocking one, or a
// request that is malformed).
type Outcome struct {
	Requests    uint64  `json:"requests"`
	Charged     uint64  `json:"charged"`
	Allowed     uint64  `json:"allowed"`
	Denied      uint64  `json:"denied"`
	DeniedShare float64 `json:"denied_share"` // of those charged
	Passed      uint64  `json:"passed"`
	Refused     uint64  `json:"refused"`
	// ShadowDenied are allowed, but would have been denied if shadows decided.
	ShadowDenied uint64 `json:"shadow_denied"`
}

// RouteReport is what became of a route's requests.
type RouteReport struct {
	Route string `json:"route"`
	// Share is that of all requests.
	Share float64 `json:"share"`
	Outcome
}

// LimitName says which limit it is about, and how it is.
type LimitName struct {
	Resource   string `json:"resource"`
	Plan       string `json:"plan,omitempty"` // whose limits these are; "" for the resource's own
	Limit      string `json:"limit"`
	Per        string `json:"per"` // user or resource
	Shadow     bool   `json:"shadow"`
	Capacity   int64  `json:"capacity"`
	RefillRate string `json:"refill_rate"`
}

// LimitReport is what a limit did.
type LimitReport struct {
	LimitName
	Requests uint64 `json:"requests"`
	// Denied are the denials that name this limit: each names one, of those that
	// refused the one with the longest wait.
	Denied      uint64  `json:"denied"`
	DeniedShare float64 `json:"denied_share"`
	// Refused is how often it had not enough, also beside another.
	Refused uint64 `json:"refused"`
	// ShadowDenied is how often it would have refused, but decides nothing.
	ShadowDenied uint64 `json:"shadow_denied"`
	// UsersDenied are the users whom its denials met.
	UsersDenied uint64 `json:"users_denied"`
}

// UsersReport is about users.
type UsersReport struct {
	Seen   uint64       `json:"seen"`
	Denied uint64       `json:"denied"`
	Top    []UserReport `json:"top"` // most denials first
}

// UserReport is what became of a user's requests.
type UserReport struct {
	User        string      `json:"user_id"`
	Requests    uint64      `json:"requests"`
	Denied      uint64      `json:"denied"`
	DeniedShare float64     `json:"denied_share"`
	First       time.Time   `json:"first_denied"`
	Last        time.Time   `json:"last_denied"`
	By          []UserLimit `json:"by"` // most denials first
}

// UserLimit counts a user's denials by a limit.
type UserLimit struct {
	Resource string `json:"resource"`
	Plan     string `json:"plan,omitempty"`
	Limit    string `json:"limit"`
	Denied   uint64 `json:"denied"`
}

// Name is the limit for people.
func (l UserLimit) Name() string {
	name := l.Limit
	if l.Resource != l.Limit {
		name += " of " + l.Resource
	}
	if l.Plan != "" {
		name += " (" + l.Plan + ")"
	}
	return name
}

// Refusal is an answer of the gateway's own.
type Refusal struct {
	Status   int    `json:"status"`
	Reason   string `json:"reason"`
	Requests uint64 `json:"requests"`
}

// Timeline counts requests over time, in at most 200 parts.
type Timeline struct {
	Width int64 `json:"width_seconds"`
	Bars  []Bar `json:"parts"`
}

// Bar is one part of a Timeline.
type Bar struct {
	Start        time.Time `json:"start"`
	Requests     uint64    `json:"requests"`
	Denied       uint64    `json:"denied"`
	ShadowDenied uint64    `json:"shadow_denied"`
	Refused      uint64    `json:"refused"`
}

// TargetReport is how small limits may be, each as if it were the only one. Users who
// change plans are taken as different ones in each.
type TargetReport struct {
	// Share is the largest of a limit's requests that it may deny, as it was given.
	Share  string        `json:"share"`
	Limits []LimitTarget `json:"limits"`
}

// LimitTarget is how small one limit may be.
type LimitTarget struct {
	LimitName
	Requests uint64 `json:"requests"`
	// Budget is how many of them may be denied.
	Budget uint64 `json:"budget"`
	// Now is what it denies as it is.
	Now Candidate `json:"now"`
	// Capacity is the smallest at its rate, Rate the smallest at its capacity, and
	// Scale the smallest factor for both; null where none is large enough.
	Capacity *Candidate `json:"smallest_capacity"`
	Rate     *Candidate `json:"smallest_rate"`
	Scale    *Candidate `json:"smallest_scale"`
	// Smallest says that there can be no smaller ones, as all requests cost the same.
	// Otherwise what is one step smaller denies too much, but what is smaller still
	// may not: a large request that is denied leaves room for small ones.
	Smallest bool `json:"proven_smallest"`
}

// Candidate is a limit, and what it denies.
type Candidate struct {
	Factor     string `json:"factor,omitempty"` // of a scale
	Capacity   int64  `json:"capacity"`
	RefillRate string `json:"refill_rate"`
	Denied     uint64 `json:"denied"`
}

// Names of what is no route.
const (
	unmatchedRoute = "(no route)"
	directRoute    = "(/allow)"
)

// report makes the Report of what was counted.
func (e *engine) report() *Report {
	r := &Report{
		Version: 1, Config: e.o.Config, Input: e.inputReport(), Total: e.total.report(),
		Routes: []RouteReport{}, Limits: []LimitReport{}, Refusals: []Refusal{},
		Users: e.usersReport(),
	}
	for i := range e.routes {
		c := &e.routes[i]
		if i < len(e.o.Proxy.Routes) || c.requests > 0 {
			r.Routes = append(r.Routes, RouteReport{Route: c.name, Share: part(c.requests, e.requests), Outcome: c.report()})
		}
	}
	victims := e.victims()
	for _, set := range e.sets.sorted() {
		for i := range set.limits {
			r.Limits = append(r.Limits, set.report(i, victims[set.base+uint32(i)]))
		}
	}
	for key, n := range e.refusals {
		r.Refusals = append(r.Refusals, Refusal{key.status, key.reason, n})
	}
	slices.SortFunc(r.Refusals, func(a, b Refusal) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Status, b.Status), cmp.Compare(a.Reason, b.Reason))
	})
	r.Timeline = e.timeline.report()
	return r
}

// sorted are the sets by resource and plan.
func (s *limitSets) sorted() []*limitSet {
	all := slices.Clone(s.all)
	slices.SortFunc(all, func(a, b *limitSet) int {
		return cmp.Or(cmp.Compare(a.resource, b.resource), cmp.Compare(a.plan, b.plan), cmp.Compare(a.number, b.number))
	})
	return all
}

func (e *engine) inputReport() InputReport {
	in := e.input
	in.Files = append([]string{}, e.o.Files...)
	in.Lines, in.Requests = uint64(e.lines()), e.requests
	in.Examples = append([]Unreadable{}, e.examples...)
	in.Broken = append([]Broken{}, in.Broken...)
	in.ClampedMost = float64(in.clampedMost) / second
	if e.requests > 0 {
		first, last := time.UnixMicro(in.first).UTC(), time.UnixMicro(e.now).UTC()
		in.First, in.Last = &first, &last
	}
	return in
}

func (o *outcome) report() Outcome {
	return Outcome{
		Requests: o.requests, Charged: o.charged, Allowed: o.charged - o.denied, Denied: o.denied,
		DeniedShare: part(o.denied, o.charged), Passed: o.requests - o.charged - o.refused,
		Refused: o.refused, ShadowDenied: o.shadow,
	}
}

func part(of, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(of) / float64(whole)
}

func (set *limitSet) limitName(i int) LimitName {
	l := set.rules[i].Limit
	per := "user"
	if l.Scope == limiter.PerResource {
		per = "resource"
	}
	return LimitName{
		Resource: set.resource, Plan: set.plan, Limit: set.limits[i].name, Per: per, Shadow: l.Shadow,
		Capacity: l.Capacity, RefillRate: l.Rate.String(),
	}
}

func (set *limitSet) report(i int, victims uint64) LimitReport {
	c := &set.limits[i]
	return LimitReport{
		LimitName: set.limitName(i), Requests: set.requests,
		Denied: c.bound, DeniedShare: part(c.bound, set.requests),
		Refused: c.refused, ShadowDenied: c.shadow, UsersDenied: victims,
	}
}

// victims is how many users each limit denied.
func (e *engine) victims() map[uint32]uint64 {
	n := map[uint32]uint64{}
	for i := range e.denials {
		n[e.denials[i].limit]++
	}
	return n
}

func (e *engine) usersReport() UsersReport {
	r := UsersReport{Seen: uint64(len(e.persons)), Top: []UserReport{}}
	var denied []uint32
	for i := range e.persons {
		if e.persons[i].denied > 0 {
			denied = append(denied, uint32(i))
		}
	}
	r.Denied = uint64(len(denied))
	slices.SortFunc(denied, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(e.persons[b].denied, e.persons[a].denied), cmp.Compare(a, b))
	})
	for _, number := range denied[:min(len(denied), e.o.Top)] {
		r.Top = append(r.Top, e.userReport(number))
	}
	return r
}

func (e *engine) userReport(number uint32) UserReport {
	p := &e.persons[number]
	u := UserReport{
		User: string(e.users.at(number)), Requests: p.requests,
		Denied: p.denied, DeniedShare: part(p.denied, p.requests),
		First: time.UnixMicro(p.first).UTC(), Last: time.UnixMicro(p.last).UTC(),
	}
	for i := p.denials; i != 0; i = e.denials[i-1].next {
		d := &e.denials[i-1]
		set, limit := e.sets.limit(d.limit)
		u.By = append(u.By, UserLimit{set.resource, set.plan, set.limits[limit].name, d.count})
	}
	slices.SortStableFunc(u.By, func(a, b UserLimit) int { return cmp.Compare(b.Denied, a.Denied) })
	return u
}

// limit finds a limit by its number.
func (s *limitSets) limit(number uint32) (*limitSet, int) {
	i, found := slices.BinarySearchFunc(s.all, number, func(set *limitSet, n uint32) int { return cmp.Compare(set.base, n) })
	if !found {
		i--
	}
	return s.all[i], int(number - s.all[i].base)
}

func (t *timeline) report() Timeline {
	r := Timeline{Width: t.width, Bars: []Bar{}}
	for i := range t.bars {
		b := &t.bars[i]
		r.Bars = append(r.Bars, Bar{t.start(i), b.requests, b.denied, b.shadow, b.refused})
	}
	return r
}

// WriteJSON writes the report as JSON, for people too.
func (r *Report) WriteJSON(w io.Writer) error {
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	return out.Encode(r)
}
