package admin

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/rs/zerolog"
	"github.com/valyala/fasthttp"
)

// maxLogged is how many bytes of a client's text a log line repeats.
const maxLogged = 256

// logRequest writes one line about x after it was answered. Neither a query,
// which may hold what should not be there, nor a token is ever in it.
func (s *Server) logRequest(x *exchange) {
	e := s.event(x)
	if e == nil {
		return
	}
	e.Bytes("request_id", x.requestID()).Str("listener", "control")
	if x.isDescribed() {
		x.logDescribed(e)
	} else if x.path != nil {
		e.Bytes("method", logged(x.ctx.Request.Header.Method())).Bytes("path", logged(x.path))
	}
	if x.request.User != nil {
		x.logDecision(e)
	}
	status := x.ctx.Response.StatusCode()
	e.Int("status", status)
	if own := x.ownStatus(); own != status {
		e.Int("own_status", own)
	}
	e.RawJSON("duration_ms", x.milliseconds())
	x.logClient(e)
	e.Int("bytes", x.bodySent()).AnErr("error", x.reason()).Send()
}

// isDescribed says whether x asks at /check, and said about what.
func (x *exchange) isDescribed() bool { return x.check != nil && len(x.check.asked.Target) > 0 }

// logDescribed adds the request that another proxy described, in the names that it would
// have in the proxy listener's log.
func (x *exchange) logDescribed(e *zerolog.Event) {
	c := x.check
	e.Str("endpoint", checkPath)
	e.Bytes("method", logged(c.asked.Method)).Bytes("path", logged(pathOf(c.asked.Target)))
	if c.verdict.Route != "" {
		e.Str("route", c.verdict.Route)
	}
}

// logClient adds whose request it is, and at /check who asks about it.
func (x *exchange) logClient(e *zerolog.Event) {
	if !x.isDescribed() {
		x.logAddr(e, "client_ip", x.peer)
		return
	}
	x.logAddr(e, "client_ip", x.check.verdict.Client)
	x.logAddr(e, "peer", x.peer)
}

// reason is what was behind a 5xx, or behind the refusal of a described request.
func (x *exchange) reason() error {
	if x.cause == nil && x.isDescribed() {
		return x.check.verdict.Refused
	}
	return x.cause
}

// pathOf is the path of a described target, which may be a whole URL: without its user,
// its query and what looks like a fragment. It is empty where there is none.
func pathOf(target []byte) []byte {
	if len(target) > 1 && target[0] != '/' {
		_, rest, _ := bytes.Cut(target, []byte("://"))
		target = rest[len(rest):]
		if slash := bytes.IndexAny(rest, "/?#"); slash >= 0 {
			target = rest[slash:]
		}
	}
	if end := bytes.IndexAny(target, "?#"); end >= 0 {
		target = target[:end]
	}
	return target
}

// ownStatus is the answer's status before deny_status replaced it.
func (x *exchange) ownStatus() int {
	if x.check != nil && x.check.status != 0 {
		if own, err := fasthttp.ParseUint(x.ctx.Response.Header.PeekBytes(nameStatus)); err == nil {
			return own
		}
	}
	return x.ctx.Response.StatusCode()
}

// logAddr adds an address, if there is one.
func (x *exchange) logAddr(e *zerolog.Event, name string, addr netip.Addr) {
	if addr.IsValid() {
		x.body = addr.AppendTo(x.body[:0])
		e.Bytes(name, x.body)
	}
}

// event begins the line about x, or returns nil if there is to be none.
func (s *Server) event(x *exchange) *zerolog.Event {
	status := x.ownStatus()
	which := s.settings.Load().terms.LogRequests
	if which == "none" || which == "denied" && status < fasthttp.StatusBadRequest {
		return nil
	}
	switch {
	case x.quiet:
		return s.Log.Debug()
	case status >= fasthttp.StatusInternalServerError:
		return s.Log.Warn()
	}
	return s.Log.Info()
}

// logDecision adds what was asked of the limiter and what it said.
func (x *exchange) logDecision(e *zerolog.Event) {
	e.Bytes("user_id", logged(x.request.User)).Bytes("resource", logged(x.request.Resource)).Int64("cost", x.request.Cost)
	if len(x.request.Plan) > 0 {
		e.Bytes("plan", logged(x.request.Plan))
	}
	d := &x.decision
	if !x.decided {
		e.Str("decision", "error")
		return
	}
	outcome := "deny"
	if d.Allowed {
		outcome = "allow"
	}
	e.Str("decision", outcome)
	if d.Replayed {
		e.Bool("replayed", true)
	}
	if d.StandIn != limiter.NoStandIn {
		e.Stringer("degraded", d.StandIn).AnErr("store_error", d.StoreError)
	}
	if l := d.Binding(); l != nil {
		x.body = d.AppendLimitName(x.body[:0], l)
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

// requestID is the client's X-Request-Id if it can be one, else a new one: the
// same for each call.
func (x *exchange) requestID() []byte {
	if len(x.id) > 0 {
		return x.id
	}
	if id := x.ctx.Request.Header.Peek("X-Request-Id"); len(id) <= 128 && isToken(id) {
		x.id = append(x.id, id...)
		return x.id
	}
	// The top bit makes all of them 16 digits long.
	x.id = strconv.AppendUint(x.id, rand.Uint64()|1<<63, 16)
	x.id = strconv.AppendUint(x.id, rand.Uint64()|1<<63, 16)
	return x.id
}

// milliseconds is how long x took so far, to the microsecond.
func (x *exchange) milliseconds() []byte {
	x.body = limiter.AppendMilliseconds(x.body[:0], time.Since(x.start))
	return x.body
}

// bodySent is how many bytes of body the answer has on the wire.
func (x *exchange) bodySent() int {
	if x.ctx.IsHead() {
		return 0
	}
	return len(x.ctx.Response.Body())
}

// logged cuts a client's text. zerolog escapes what is not printable.
func logged(s []byte) []byte { return s[:min(len(s), maxLogged)] }

// quietLogger is fasthttp's logger: what it says about single connections is
// the clients' doing and would flood the log.
type quietLogger struct{ log zerolog.Logger }

// Printf logs at debug level.
func (l quietLogger) Printf(format string, args ...any) {
	l.log.Debug().Str("listener", "control").Msgf(format, args...)
}
