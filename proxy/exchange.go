package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/r8limiter/r8limiter/limiter"
)

// exchange is one request and its answer, with all the memory they need; it is
// reused. Nothing in it outlives the answer.
type exchange struct {
	proxy    *Proxy
	rules    *Rules // those in force when it began
	client   client
	request  request
	ask      limiter.Request
	decision limiter.Decision
	decided  bool // decision holds one
	closing  bool // the connection ends with this exchange
	cut      bool // the answer ended before its end
	linger   bool // but what the client may still be sending is to be read on for a moment

	ids  []byte // memory of ask
	out  []byte // what is sent next, to the upstream or to the client
	body []byte // of an answer of our own; then values of the log line
	id   []byte // X-Request-Id
	text []byte // before it is escaped as JSON
	send outgoing
	resp incoming
	// onInterim is interim, made once: as a value of each request it would be garbage.
	onInterim func(status int, reason []byte, fields []field)

	start    time.Time
	upstream time.Duration // from sending the request until the head of the answer came
	outside  time.Duration // with the upstream, and waiting for the client's body and for it to take the answer
	status   int           // what the client got; 0: nothing yet
	sent     int64         // bytes of body to the client
	cause    error         // why we answered ourselves
}

func (x *exchange) reset() {
	x.client, x.rules, x.cause = nil, nil, nil
	x.request.forget()
	x.ask = limiter.Request{}
	x.decided, x.closing, x.linger, x.cut = false, false, false, false
	x.upstream, x.outside, x.status, x.sent = 0, 0, 0, 0
	x.id = x.id[:0]
}

// serve reads the request, finds its route, and spends what it costs. If it
// answers false the client has its answer, else the request is to be forwarded.
func (x *exchange) serve() bool {
	if err := x.receive(); err != nil {
		return x.refuse(err)
	}
	found, err := x.rules.find(&x.request)
	if err != nil {
		return x.refuse(err)
	}
	if found == nil {
		x.problem(fasthttp.StatusNotFound, "no route matches this request", errNoRoute)
		return false
	}
	x.request.route = found
	switch {
	case found.action == blockAction:
		x.problem(fasthttp.StatusForbidden, "this route is blocked", errBlocked)
		return false
	case found.action == bypassAction || x.request.isPreflight():
		return true
	}
	return x.admit()
}

var (
	errNoRoute = errors.New("no route")
	errBlocked = errors.New("route blocks")
	// errUserBlocked is an operator's doing: see /admin/user/{user_id}/override.
	errUserBlocked = errors.New("an override blocks the user")
)

// receive reads and checks the request.
func (x *exchange) receive() error {
	r := &x.request
	r.prefix6 = x.rules.prefix6
	if err := x.client.parse(r, &x.rules.client); err != nil {
		return err
	}
	x.closing = x.closing || r.close
	r.upgrade = upgradeOf(r)
	r.client, r.trusted = clientAddress(r, x.rules.trusted)
	x.name()
	return r.checkBody(&x.rules.client)
}

// name takes the client's X-Request-Id, or makes one.
func (x *exchange) name() {
	for i := range x.request.fields {
		if f := &x.request.fields[i]; equalFold(f.name, "X-Request-Id") && len(f.value) > 0 {
			x.id = append(x.id[:0], f.value...)
			return
		}
	}
	var random [16]byte
	binary.LittleEndian.PutUint64(random[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(random[8:], rand.Uint64())
	x.id = hex.AppendEncode(x.id[:0], random[:])
}

var (
	errExpectation = &refusal{fasthttp.StatusExpectationFailed, "the only expectation served is 100-continue"}
	errConnect     = &refusal{fasthttp.StatusMethodNotAllowed, "CONNECT is not served"}
	errUnreadable  = &refusal{fasthttp.StatusBadRequest, "the request can't be read"}
)

// checkBody finds out whether there may be such a body, and whether the client waits
// with it.
func (r *request) checkBody(l *LimitsConfig) error {
	if r.length > l.BodyBytes {
		return tooLargeBody(l)
	}
	for i := range r.fields {
		f := &r.fields[i]
		if !equalFold(f.name, "Expect") {
			continue
		}
		if !equalFold(f.value, "100-continue") {
			return errExpectation
		}
		r.expects = r.version == 11 && r.length != 0
	}
	return nil
}

// refuse answers a request that a fault was found with, and ends the connection:
// what follows on it can't be told from the rest of this request. Of an error that is
// no refusal only the log says what it is. Of credentials nothing is in doubt but
// themselves: there the connection goes on.
func (x *exchange) refuse(err error) bool {
	if fault, ok := errors.AsType[*authFault](err); ok {
		x.problem(fault.status, fault.detail, err)
		return false
	}
	r, ok := errors.AsType[*refusal](err)
	if !ok {
		r = errUnreadable
	}
	x.abandon()
	x.problem(r.status, r.detail, err)
	return false
}

// abandon ends the connection after the answer, and leaves the client time to
// read it although it may be sending.
func (x *exchange) abandon() { x.closing, x.linger = true, true }

// isPreflight says whether this is a CORS preflight, which a browser sends by
// itself and which is never charged.
func (r *request) isPreflight() bool {
	if string(r.method) != "OPTIONS" {
		return false
	}
	origin, method := false, false
	for i := range r.fields {
		name := r.fields[i].name
		origin = origin || equalFold(name, "Origin")
		method = method || equalFold(name, "Access-Control-Request-Method")
	}
	return origin && method
}

// admit asks the limiter. If the answer is no, or there is none, the client
// gets it and admit says false.
func (x *exchange) admit() bool {
	err := x.rules.authenticate(&x.request)
	if err == nil {
		x.ids, err = x.request.identify(x.ids[:0], &x.ask)
	}
	if err != nil {
		return x.refuse(err)
	}
	x.ask.Limits = x.rules.limits
	err = x.proxy.options.Limiter.Decide(&x.ask, &x.decision)
	x.request.route.metrics.outcomes.Count(&x.decision, err)
	if err != nil {
		x.problem(fasthttp.StatusServiceUnavailable, "the store of the limits is unavailable", err)
		return false
	}
	x.decided = true
	if x.decision.Override == limiter.Blocked {
		x.problem(fasthttp.StatusForbidden, "this user is blocked", errUserBlocked)
		return false
	}
	if !x.decision.Allowed {
		x.deny()
		return false
	}
	return true
}
