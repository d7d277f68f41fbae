package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf16"

	"github.com/r8limiter/r8limiter/admin"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// explained is what explain answers: what the rules say, and the limits.
type explained struct {
	*proxy.Explanation
	PlanKnown *bool         `json:"plan_known,omitempty"` // limiter.plans has it
	Limits    *limitsTrace  `json:"limits,omitempty"`     // where the limiter is asked
	Decision  *decisionText `json:"decision,omitempty"`   // of the running gateway
}

// limitsTrace are the limits that decide.
type limitsTrace struct {
	// Source is config, persisted, default, plan or override.
	Source       limiter.Source `json:"source"`
	OnStoreError limiter.Policy `json:"on_store_error"`
	// Never says that the cost exceeds a capacity, so that it can't pass at any time.
	Never  bool         `json:"never,omitempty"`
	Limits []limitTrace `json:"limits"`
}

// limitTrace is one limit, on a running gateway with its bucket.
type limitTrace struct {
	Limit      string       `json:"limit"`
	Per        string       `json:"per"` // user or resource
	Shadow     bool         `json:"shadow,omitempty"`
	Capacity   int64        `json:"capacity"`
	RefillRate string       `json:"refill_rate"`
	Bucket     *bucketTrace `json:"bucket,omitempty"`
}

// bucketTrace is the state of a bucket before the request.
type bucketTrace struct {
	Tokens    number  `json:"tokens"`
	NextToken seconds `json:"next_token_seconds"`
	FullIn    seconds `json:"full_refill_seconds"`
	Denies    bool    `json:"denies,omitempty"`
}

// decisionText is what would be decided now.
type decisionText struct {
	Allowed bool `json:"allowed"`
	// Waived says that it is allowed only because the limits don't hold for the user.
	Waived     bool     `json:"waived,omitempty"`
	Limit      string   `json:"limit,omitempty"`       // the binding one
	RetryAfter *seconds `json:"retry_after,omitempty"` // where a limit refuses and waiting helps
	Override   string   `json:"override,omitempty"`    // exempt or block
	// StandIn is what decides while the store fails: local, allow or deny.
	StandIn    string `json:"stand_in,omitempty"`
	StoreError string `json:"store_error,omitempty"`
}

// number reads as a float whatever its value, rounded down to six decimals.
type number float64

// seconds are written rounded up to the millisecond.
type seconds time.Duration

// MarshalJSON is limiter.AppendTokens.
func (n number) MarshalJSON() ([]byte, error) { return limiter.AppendTokens(nil, float64(n)), nil }

// MarshalJSON is limiter.AppendSeconds.
func (s seconds) MarshalJSON() ([]byte, error) {
	return limiter.AppendSeconds(nil, time.Duration(s)), nil
}

// explainWith is the answer without any bucket.
func explainWith(rules *proxy.Rules, l *limiter.Limiter, q *question) *explained {
	x := &explained{Explanation: rules.Explain(q.asked())}
	j := &x.Judgement
	if !j.Charged || j.Refused != nil {
		return x
	}
	holds := l.Applied(&j.Ask)
	if x.Plan != nil && len(j.Ask.Plan) > 0 {
		x.PlanKnown = &holds.PlanKnown
	}
	x.Limits = &limitsTrace{Source: holds.Source, OnStoreError: holds.OnStoreError, Limits: []limitTrace{}}
	for _, limit := range holds.Limits {
		t := limitTrace{Limit: x.limitName(limit.Name), Per: "user", Shadow: limit.Shadow, Capacity: limit.Capacity, RefillRate: limit.Rate.String()}
		if limit.Scope == limiter.PerResource {
			t.Per = "resource"
		}
		x.Limits.Limits = append(x.Limits.Limits, t)
		x.Limits.Never = x.Limits.Never || !limit.Shadow && j.Ask.Cost > limit.Capacity
	}
	return x
}

// look adds what a running gateway knows of the buckets. It spends and counts nothing.
func (x *explained) look(ctx context.Context, l *limiter.Limiter) {
	if x.Limits == nil {
		return
	}
	var d limiter.Decision
	if err := l.Explain(ctx, &x.Judgement.Ask, &d); err != nil {
		policy := x.Limits.OnStoreError
		x.Decision = &decisionText{
			Allowed: policy != limiter.StandInDeny || x.Judgement.Ask.Shadow, Waived: policy == limiter.StandInDeny && x.Judgement.Ask.Shadow,
			StandIn: string(policy), StoreError: err.Error(),
		}
		return
	}
	x.Decision = &decisionText{Allowed: d.Allowed, Waived: d.Waived}
	switch d.Override {
	case limiter.Exempted:
		x.Decision.Override = "exempt"
	case limiter.Blocked:
		x.Decision.Override = "block"
	}
	if b := d.Binding(); b != nil {
		x.Decision.Limit = x.limitName(string(d.AppendLimitName(nil, b)))
	}
	if wait := d.RetryAfter(); wait > 0 {
		x.Decision.RetryAfter = new(seconds(wait))
	}
	for i := range d.Limits {
		if i < len(x.Limits.Limits) {
			x.Limits.Limits[i].Bucket = traceBucket(&d.Limits[i])
		}
	}
}

// limitName hides the name of a limit that is named after a resource which is a secret.
func (x *explained) limitName(name string) string {
	if x.Resource.Hidden && name == string(x.Judgement.Ask.Resource) {
		return hidden
	}
	return name
}

func traceBucket(s *limiter.LimitState) *bucketTrace {
	return &bucketTrace{
		Tokens:    number(s.Level.Tokens(s.Capacity, s.Rate)),
		NextToken: seconds(s.Level.Wait(1, s.Capacity, s.Rate)),
		FullIn:    seconds(s.Level.Full(s.Rate)),
		Denies:    s.Denied,
	}
}

// JSON is x in ASCII alone: whatever the client sent, a terminal shows it as text.
func (x *explained) JSON() []byte {
	data, err := json.Marshal(x)
	if err != nil {
		panic(err) // the type is at fault
	}
	var ascii []byte
	for _, c := range string(data) {
		switch {
		case c < 0x7f:
			ascii = append(ascii, byte(c))
		case c > 0xffff:
			high, low := utf16.EncodeRune(c)
			ascii = fmt.Appendf(ascii, `\u%04x\u%04x`, high, low)
		default:
			ascii = fmt.Appendf(ascii, `\u%04x`, c)
		}
	}
	return ascii
}

// explain answers POST /admin/explain by the rules in force.
func (g *gateway) explain(ctx context.Context, asked *admin.Question) (admin.Explained, error) {
	line := queryLine{ip: asked.IP, method: asked.Method, format: "text", positional: []string{asked.URL}}
	if line.ip == "" {
		line.ip = "127.0.0.1"
	}
	q, err := line.question()
	if err != nil {
		return admin.Explained{}, err
	}
	for _, h := range asked.Headers {
		q.addField(h[0], h[1])
	}
	for name, value := range asked.Claims {
		q.claims = append(q.claims, [2]string{name, value})
	}
	x := explainWith(g.rules.Load(), g.limiter, q)
	x.look(ctx, g.limiter)
	return admin.Explained{JSON: x.JSON(), Text: x.Text()}, nil
}
