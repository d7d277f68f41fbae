package admin

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/valyala/fasthttp"
)

// defaultResource is what /allow spends from when no resource is named.
var defaultResource = []byte("default")

// headerIdempotencyKey is draft-ietf-httpapi-idempotency-key-header's.
const headerIdempotencyKey = "Idempotency-Key"

// Names of fields as they are spelled: fasthttp would make it Ratelimit.
var (
	namePolicy     = []byte("RateLimit-Policy")
	nameRateLimit  = []byte("RateLimit")
	nameLimit      = []byte("X-RateLimit-Limit")
	nameRemaining  = []byte("X-RateLimit-Remaining")
	nameReset      = []byte("X-RateLimit-Reset")
	nameRetryAfter = []byte("Retry-After")
)

// allow answers POST /allow: it decides, spends and says so.
func (s *Server) allow(x *exchange) {
	if !s.mayAsk(x) {
		return
	}
	defer func() { s.latency.Update(time.Since(x.start).Seconds()) }()
	if err := x.readAllow(); err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
		return
	}
	limits := s.Limiter.Current() // once: a reload in between would tell of other limits' fields
	x.request.Limits = limits
	err := s.Limiter.Decide(&x.request, &x.decision)
	s.outcomes.Count(&x.decision, err)
	x.decided = err == nil
	switch {
	case errors.Is(err, limiter.ErrKeyReused):
		x.refuse(fasthttp.StatusUnprocessableEntity, err.Error())
	case err != nil:
		x.storeTrouble(err)
	case x.decision.Override == limiter.Blocked:
		x.answer(fasthttp.StatusForbidden, blockedAnswer)
	case x.decision.Never:
		x.refuse(fasthttp.StatusBadRequest, x.never())
	default:
		x.answerDecision(limits.Headers())
	}
}

// blockedAnswer has what a denial has, for callers that look no further, but no
// Retry-After: waiting does not help.
var blockedAnswer = []byte(`{"allowed": false, "retry_after": 0.0, "tokens_left": 0.0, "error": "the user is blocked by an override"}`)

// never says why a cost can't pass.
func (x *exchange) never() string {
	for i := range x.decision.Limits {
		if l := &x.decision.Limits[i]; !l.Shadow && x.request.Cost > l.Capacity {
			return fmt.Sprintf("cost %d exceeds the capacity %d of limit %s: it can never pass",
				x.request.Cost, l.Capacity, quote(x.decision.AppendLimitName(nil, l)))
		}
	}
	return "cost exceeds the capacity: it can never pass"
}

// answerDecision writes 200 or 429 in the form of the contract, byte for byte.
func (x *exchange) answerDecision(fields limiter.HeaderSet) {
	d := &x.decision
	x.setRateLimit(fields)
	if d.Replayed {
		x.ctx.Response.Header.Set("Idempotency-Replayed", "true")
	}
	status, b := fasthttp.StatusOK, append(x.body[:0], `{"allowed": true`...)
	if !d.Allowed {
		x.setNumber(nameRetryAfter, d.RetryAfterSeconds())
		status, b = fasthttp.StatusTooManyRequests, append(x.body[:0], `{"allowed": false`...)
	}
	b = limiter.AppendSeconds(append(b, `, "retry_after": `...), d.RetryAfter())
	b = limiter.AppendTokens(append(b, `, "tokens_left": `...), d.TokensLeft())
	if d.StandIn != limiter.NoStandIn {
		b = append(append(append(b, `, "degraded": "`...), d.StandIn.String()...), '"')
	}
	x.body = append(b, '}')
	x.answer(status, x.body)
}

// setRateLimit sets the fields that show the state of the limits: those of
// draft-ietf-httpapi-ratelimit-headers-11, the older X-RateLimit-*, or both.
func (x *exchange) setRateLimit(fields limiter.HeaderSet) {
	d, h := &x.decision, &x.ctx.Response.Header
	if fields.Draft && len(d.Limits) > 0 {
		x.body = d.AppendPolicy(x.body[:0])
		h.SetCanonical(namePolicy, x.body)
		x.body = d.AppendRateLimit(x.body[:0])
		h.SetCanonical(nameRateLimit, x.body)
	}
	if l := d.Binding(); fields.Legacy && l != nil {
		x.setNumber(nameLimit, l.Capacity)
		x.setNumber(nameRemaining, int64(math.Floor(d.TokensLeft())))
		x.setNumber(nameReset, int64((d.Reset()+time.Second-1)/time.Second))
	}
}

func (x *exchange) setNumber(name []byte, n int64) {
	x.body = strconv.AppendInt(x.body[:0], n, 10)
	x.ctx.Response.Header.SetCanonical(name, x.body)
}

// allowParam is a set of parameters of /allow.
type allowParam uint8

const (
	paramUser allowParam = 1 << iota
	paramResource
	paramPlan
	paramCost
	paramIdempotency
)

// readAllow reads x.request from the query and the Idempotency-Key field. What
// it can't take at its word is an error: a parameter that it overlooked could
// have been the one that mattered.
func (x *exchange) readAllow() error {
	fields := x.ctx.Request.Header.PeekAll(headerIdempotencyKey)
	if len(fields) > 1 {
		return errors.New("more than one Idempotency-Key")
	}
	// Each byte of the key given as a parameter is stored twice, decoded and unquoted.
	x.reserve(2*len(x.query) + MaxIdempotencyKey)
	x.request = limiter.Request{Resource: defaultResource, Cost: 1}
	var seen allowParam
	for name, value, rest, ok := cutPair(x.query); ok; name, value, rest, ok = cutPair(rest) {
		if err := x.readParam(name, value, &seen); err != nil {
			return err
		}
	}
	if seen&paramUser == 0 {
		return errors.New("parameter user_id is missing: say whose tokens to spend, as in /allow?user_id=alice")
	}
	if len(fields) == 1 {
		return x.readKeyField(fields[0])
	}
	return nil
}

// readParam reads one parameter into x.request, unless it was seen before.
func (x *exchange) readParam(name, value []byte, seen *allowParam) error {
	name, err := x.decode(name, ' ')
	if err != nil {
		return err
	}
	if value, err = x.decode(value, ' '); err != nil {
		return fmt.Errorf("parameter %s: %w", quote(name), err)
	}
	param := paramNamed(name)
	if *seen&param != 0 {
		return fmt.Errorf("parameter %s is given more than once", quote(name))
	}
	*seen |= param
	switch param {
	case paramUser:
		x.request.User = value
		return notEmpty(name, value)
	case paramResource:
		x.request.Resource = value
		return notEmpty(name, value)
	case paramPlan:
		x.request.Plan = value
		return notEmpty(name, value)
	case paramCost:
		x.request.Cost, err = parseCost(value)
		return err
	case paramIdempotency:
		x.request.IdempotencyKey, err = x.unquote(value)
		return err
	}
	return fmt.Errorf("unknown parameter %s: there are user_id, resource, plan, cost and idempotency", quote(name))
}

// paramNamed is 0 for a name that no parameter has.
func paramNamed(name []byte) allowParam {
	switch string(name) {
	case "user_id":
		return paramUser
	case "resource":
		return paramResource
	case "plan":
		return paramPlan
	case "cost":
		return paramCost
	case "idempotency":
		return paramIdempotency
	}
	return 0
}

func notEmpty(name, value []byte) error {
	if len(value) == 0 {
		return fmt.Errorf("parameter %s is empty", quote(name))
	}
	return nil
}

// readKeyField reads the Idempotency-Key field, which may repeat the parameter.
func (x *exchange) readKeyField(field []byte) error {
	key, err := x.unquote(field)
	if err != nil {
		return err
	}
	if given := x.request.IdempotencyKey; given != nil && !bytes.Equal(given, key) {
		return errors.New("the Idempotency-Key field and the parameter idempotency differ: send one of them")
	}
	x.request.IdempotencyKey = key
	return nil
}

// unquote is appendIdempotencyKey in x's own memory.
func (x *exchange) unquote(s []byte) ([]byte, error) {
	n := len(x.text)
	text, err := appendIdempotencyKey(x.text, s)
	x.text = text
	return text[n:], err
}
