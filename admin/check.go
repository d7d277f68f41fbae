package admin

import (
	"bytes"
	"errors"
	"net/netip"
	"strconv"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/valyala/fasthttp"
)

// Described is a request that another proxy has, and asks about at /check before
// it lets it pass. Its bytes are valid until the answer.
type Described struct {
	// Method, Target and Host are the client's: the target is the path with the query,
	// the host may have a port and is empty where nobody said one.
	Method, Target, Host []byte
	// Secure says that the client came over TLS.
	Secure bool
	// Peer is the proxy that asks; invalid if it came by a Unix socket.
	Peer netip.Addr
	// Fields are the client's header fields in their order, X-Forwarded-For included.
	Fields []Field
}

// Field is a header field as it came.
type Field struct{ Name, Value []byte }

// Verdict is what the routes say about a request, before the limiter is asked.
type Verdict struct {
	// Refused says why the request is answered with Status already: it is amiss, no
	// route matches, the route blocks, or its credentials are wrong. nil otherwise.
	Refused error
	Status  int
	// Challenge is the value of the answer's WWW-Authenticate; "" for none.
	Challenge string
	// Route is the one that matched; "" for none.
	Route string
	// Client is the described client; invalid where it has no address, or where the
	// request is too much amiss to tell.
	Client netip.Addr
	// Charged says that the limiter is asked, for Ask: neither a bypass nor a CORS
	// preflight.
	Charged bool
	Ask     limiter.Request
	// Outcomes counts the route's decisions; not nil where Charged.
	Outcomes *limiter.Outcomes
}

// Judge says what the routes in force say about a request. It has memory of its
// own, to which Verdict.Ask points until it is used again: one goroutine at a time.
type Judge func(*Described, *Verdict)

// check is a question at /check with all the memory that it takes. It is pooled
// by the server, since the judge goes by the server's routes.
type check struct {
	fault   error // what is wrong with the query of /check itself
	judge   Judge
	told    description
	asked   Described
	verdict Verdict
	status  int // in place of that of any refusal; 0 for none
}

// forget drops the client's bytes and keeps the memory.
func (c *check) forget() {
	clear(c.asked.Fields)
	*c = check{judge: c.judge, asked: Described{Fields: c.asked.Fields[:0]}}
}

// newCheck is what the pool is filled from.
func (s *Server) newCheck() any { return &check{judge: s.NewJudge()} }

// check answers /check: the request that another proxy describes is judged by the
// routes as if it had come to the proxy listener, the limiter decides and spends,
// and the answer is that of the proxy listener, save that 200 stands for a request
// that it would have forwarded.
func (s *Server) check(x *exchange) {
	if !s.mayCheck(x) {
		x.coverStatus()
		return
	}
	defer func() { s.checkLatency.Update(time.Since(x.start).Seconds()) }()
	if x.check.fault != nil {
		x.refuse(fasthttp.StatusBadRequest, x.check.fault.Error())
		return
	}
	if err := x.describe(); err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
		x.replaceStatus()
		return
	}
	c := x.check
	c.judge(&c.asked, &c.verdict)
	switch {
	case c.verdict.Refused != nil:
		x.refuseDescribed()
	case c.verdict.Charged:
		s.decideDescribed(x)
	default:
		x.answer(fasthttp.StatusOK, passed)
	}
}

// passed is the body where the request may pass. What is left is in the fields.
var passed = []byte(`{"allowed": true}`)

// refuseDescribed answers for a request that the routes refuse.
func (x *exchange) refuseDescribed() {
	v := &x.check.verdict
	if v.Status >= fasthttp.StatusInternalServerError {
		x.cause = v.Refused
	}
	h := &x.ctx.Response.Header
	if v.Challenge != "" {
		h.SetCanonical(nameAuthenticate, []byte(v.Challenge))
	}
	if v.Status == fasthttp.StatusMethodNotAllowed {
		h.Set(fasthttp.HeaderAllow, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	}
	detail := v.Refused.Error()
	switch v.Status { // in the words of the proxy listener
	case fasthttp.StatusNotFound:
		detail = "no route matches this request"
	case fasthttp.StatusForbidden:
		detail = "this route is blocked"
	}
	x.problem(v.Status, detail)
}

// decideDescribed asks the limiter for a request that the routes charge.
func (s *Server) decideDescribed(x *exchange) {
	v := &x.check.verdict
	x.request = v.Ask
	if x.request.Limits == nil {
		x.request.Limits = s.Limiter.Current() // as in allow
	}
	err := s.Limiter.Decide(&x.request, &x.decision)
	v.Outcomes.Count(&x.decision, err)
	x.decided = err == nil
	if err == nil && !x.request.Shadow {
		x.setRateLimit(fieldsFor(&x.request))
	}
	switch {
	case err != nil:
		x.cause = err
		x.problem(fasthttp.StatusServiceUnavailable, "the store of the limits is unavailable")
	case x.decision.Override == limiter.Blocked:
		x.problem(fasthttp.StatusForbidden, "this user is blocked")
	case x.decision.Allowed:
		x.answer(fasthttp.StatusOK, passed)
	default:
		x.denyDescribed()
	}
}

// maxToldResource is how long a resource's name may be that the RateLimit fields
// name, in bytes. A client may have chosen it, and proxies have little room for the
// head of an answer, nginx 4 KiB: one that is too large for them is none, which must
// not be at a client's discretion where none lets requests pass.
const maxToldResource = 256

// fieldsFor are the fields of the limits that decide for r.
func fieldsFor(r *limiter.Request) limiter.HeaderSet {
	fields := r.Limits.Headers()
	fields.Draft = fields.Draft && len(r.Resource) <= maxToldResource
	return fields
}

// denyDescribed answers 429: which limits refused, and when to come again.
func (x *exchange) denyDescribed() {
	if !x.decision.Never {
		x.setNumber(nameRetryAfter, x.decision.RetryAfterSeconds())
	}
	x.body = x.decision.AppendDenial(x.body[:0], x.request.Cost)
	x.answerProblem(fasthttp.StatusTooManyRequests)
}

// problem answers for a described request as the proxy listener does.
func (x *exchange) problem(status int, detail string) {
	if status == fasthttp.StatusServiceUnavailable {
		x.ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "1")
	}
	x.body = limiter.AppendProblem(x.body[:0], status, fasthttp.StatusMessage(status), detail)
	x.answerProblem(status)
}

// answerProblem sends x.body, a problem. A described HEAD gets none: whoever asks
// may pass on what it is told.
func (x *exchange) answerProblem(status int) {
	if string(x.check.asked.Method) == fasthttp.MethodHead {
		x.body = x.body[:0]
	}
	x.answer(status, x.body)
	x.ctx.Response.Header.SetContentType(limiter.ProblemType)
	x.replaceStatus()
}

// Names of fields as they are spelled: fasthttp would make them Www- and R8limiter.
var (
	nameAuthenticate = []byte("WWW-Authenticate")
	nameStatus       = []byte("X-R8limiter-Status")
)

// replaceStatus gives a refusal the status that deny_status asks for, and tells
// its own in X-R8limiter-Status: auth_request of nginx can read fields, not bodies.
func (x *exchange) replaceStatus() {
	if !x.hasDenyStatus() {
		return
	}
	x.text = strconv.AppendInt(x.text[:0], int64(x.ctx.Response.StatusCode()), 10)
	x.ctx.Response.Header.SetCanonical(nameStatus, x.text)
	x.ctx.Response.SetStatusCode(x.check.status)
}

// coverStatus gives the refusal of whoever asks the status that deny_status asks for.
// The client has no part in it and must not be told, nor asked for a token: without
// X-R8limiter-Status and a challenge the proxy in front knows that it is itself at fault.
func (x *exchange) coverStatus() {
	if x.hasDenyStatus() {
		x.ctx.Response.SetStatusCode(x.check.status)
	}
}

// hasDenyStatus says that refusals get another status than their own.
func (x *exchange) hasDenyStatus() bool { return x.check != nil && x.check.status != 0 }

// replaceBroken is for a question that can't be read. Most of it is the client's, and so
// is what is amiss, or too large; not the version of HTTP, nor how fast it comes.
func (x *exchange) replaceBroken(status int) {
	switch status {
	case fasthttp.StatusBadRequest, fasthttp.StatusRequestEntityTooLarge, fasthttp.StatusRequestHeaderFieldsTooLarge:
		x.replaceStatus()
	default:
		x.coverStatus()
	}
}

// beginCheck takes memory for a question at /check and reads the query, before
// anything is refused: that is what deny_status is for.
func (s *Server) beginCheck(x *exchange) {
	x.check = s.checks.Get().(*check)
	if x.check.fault = x.readDenyStatus(); x.check.fault != nil {
		x.check.status = 0
	}
}

// endCheck gives it back.
func (s *Server) endCheck(x *exchange) {
	if x.check != nil {
		x.check.forget()
		s.checks.Put(x.check)
	}
}

var (
	errDenyStatus   = errors.New("deny_status is not a status from 400 to 599: leave it out, or write 403 for auth_request of nginx")
	errCheckUnknown = errors.New("unknown parameter: there is deny_status")
	errCheckTwice   = errors.New("parameter deny_status is given more than once")
)

// readDenyStatus reads the query of /check itself. That of /check/REST is the
// described request's.
func (x *exchange) readDenyStatus() error {
	if x.rest != nil {
		return nil
	}
	for name, value, rest, ok := cutPair(x.query); ok; name, value, rest, ok = cutPair(rest) {
		switch {
		case string(name) != "deny_status":
			return errCheckUnknown
		case x.check.status != 0:
			return errCheckTwice
		case len(value) != 3 || value[0] != '4' && value[0] != '5' || !isDigit(value[1]) || !isDigit(value[2]):
			return errDenyStatus
		}
		x.check.status = int(value[0]-'0')*100 + int(value[1]-'0')*10 + int(value[2]-'0')
	}
	return nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// checkPath is the endpoint that stands for /check/REST too.
const checkPath = "/check"

// findCheck finds out whether x asks at /check, or at /check/REST where REST is the
// described target, as Envoy sends it; that may hold any number of slashes.
func findCheck(x *exchange) *endpoint {
	rest, ok := bytes.CutPrefix(x.path, []byte(checkPath))
	if !ok || len(rest) > 0 && rest[0] != '/' {
		return nil
	}
	if len(rest) > 0 {
		x.rest = rest
		x.path = x.path[:len(checkPath)] // the rest is a client's, with what it may hold
	}
	return endpoints[checkPath]
}
