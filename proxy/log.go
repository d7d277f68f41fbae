package proxy

import (
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
)

// maxLogged is how many bytes of a client's text a log line repeats.
const maxLogged = 256

// record counts the exchange and writes its line.
func (x *exchange) record() {
	took := time.Since(x.start)
	if rt := x.request.route; rt != nil {
		rt.metrics.latency.Update(took.Seconds())
		rt.metrics.overhead.Update((took - x.outside).Seconds())
	}
	if c := x.proxy.metrics.problems[x.status]; c != nil && x.cause != nil {
		c.Inc()
	}
	if e := x.event(); e != nil {
		x.describe(e, took)
	}
}

// event begins the line about x, or is nil if there is to be none.
func (x *exchange) event() *zerolog.Event {
	o, which := &x.proxy.options, x.rules.logRequests
	denied := x.status >= 400 && (!x.decided || !x.decision.Allowed || x.cause != nil)
	trouble := x.cause != nil && (x.status >= 500 || isTrouble(x.cause))
	switch {
	case trouble && (which != LogNone || x.proxy.isNews(x.start)):
		return o.Log.Warn()
	case trouble, which == LogNone, which == LogDenied && !denied:
		return nil
	}
	return o.Log.Info()
}

// isTrouble says whether a cause is an upstream's fault, or our own, that may have
// cut off an answer which had begun well.
func isTrouble(cause error) bool {
	if errors.Is(cause, errDrained) {
		return true
	}
	e, ok := errors.AsType[*upstreamError](cause)
	return ok && e.kind != faultClient
}

// isNews says whether trouble is to be logged although requests are not: once a
// second, so that an outage is never silent.
func (p *Proxy) isNews(at time.Time) bool {
	last := p.lastTrouble.Load()
	return at.UnixNano()-last >= int64(time.Second) && p.lastTrouble.CompareAndSwap(last, at.UnixNano())
}

func (x *exchange) describe(e *zerolog.Event, took time.Duration) {
	r := &x.request
	path := r.path
	if len(x.id) == 0 {
		x.name()
	}
	e.Bytes("request_id", logged(x.id)).Str("listener", "proxy").Bytes("method", logged(r.method)).Bytes("path", logged(path))
	if r.route != nil {
		e.Str("route", r.route.name)
		x.describeDecision(e)
		if u := r.route.upstream; u != nil && x.upstream > 0 {
			e.Str("upstream", u.name)
			if x.send.target != "" {
				e.Str("target", x.send.target)
			}
			e.RawJSON("upstream_ms", x.milliseconds(x.upstream))
		}
	}
	e.Int("status", x.status).RawJSON("duration_ms", x.milliseconds(took))
	if r.client.IsValid() {
		x.body = r.client.AppendTo(x.body[:0])
		e.Bytes("client_ip", x.body)
	}
	e.Int64("bytes", x.sent).AnErr("error", x.cause).Send()
}

// describeDecision adds what was asked of the limiter and what it said.
func (x *exchange) describeDecision(e *zerolog.Event) {
	if len(x.ask.User) == 0 {
		return
	}
	e.Bytes("user_id", logged(x.ask.User)).Bytes("resource", logged(x.ask.Resource)).Int64("cost", x.ask.Cost)
	if len(x.ask.Plan) > 0 {
		e.Bytes("plan", logged(x.ask.Plan))
	}
	d := &x.decision
	switch {
	case !x.decided:
		e.Str("decision", "error")
		return
	case d.Allowed:
		e.Str("decision", "allow")
	default:
		e.Str("decision", "deny")
	}
	if d.StandIn != limiter.NoStandIn {
		e.Stringer("degraded", d.StandIn).AnErr("store_error", d.StoreError)
	}
	if s := d.Binding(); s != nil {
		x.body = d.AppendLimitName(x.body[:0], s)
		e.Bytes("limit", logged(x.body))
	}
	if x.body = d.AppendShadowDenied(x.body[:0]); len(x.body) > 0 {
		e.Bytes("shadow_denied", logged(x.body))
	}
	x.body = limiter.AppendTokens(x.body[:0], d.TokensLeft())
	e.RawJSON("tokens_left", x.body)
	x.body = limiter.AppendSeconds(x.body[:0], d.RetryAfter())
	e.RawJSON("retry_after", x.body)
}

// milliseconds formats d in x.body, to the microsecond.
func (x *exchange) milliseconds(d time.Duration) []byte {
	x.body = limiter.AppendMilliseconds(x.body[:0], d)
	return x.body
}

func logged(text []byte) []byte { return text[:min(len(text), maxLogged)] }
