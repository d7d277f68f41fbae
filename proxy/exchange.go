package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/r8limiter/r8limiter/limiter"
)

// exchange is one request and its answer, with all the memory they need; it is
// reused. Nothing in it outlives the handler.
type exchange struct {
	proxy    *Proxy
	ctx      *fasthttp.RequestCtx
	conn     *clientConn
	request  request
	ask      limiter.Request
	decision limiter.Decision
	decided  bool // decision holds one
	done     bool // serve has said yes already; see handleExpect
	closing  bool // the connection ends with this exchange

	ids  []byte // memory of ask
	out  []byte // what is sent next, to the upstream or to the client
	body []byte // a small request body, or a piece of a response's
	id   []byte // X-Request-Id
	text []byte // before it is escaped as JSON
	send outgoing
	resp incoming

	start    time.Time
	upstream time.Duration // from sending the request until the last byte came
	status   int           // what the client got; 0: nothing yet
	sent     int64         // bytes of body to the client
	cause    error         // why we answered ourselves
}

func (x *exchange) reset() {
	x.ctx, x.conn, x.cause = nil, nil, nil
	x.request.forget()
	x.ask = limiter.Request{}
	x.decided, x.done, x.closing = false, false, false
	x.upstream, x.status, x.sent = 0, 0, 0
	x.id = x.id[:0]
}

// serve reads the request, finds its route, and spends what it costs. If it
// answers false the client has its answer, else the request is to be forwarded.
func (x *exchange) serve() bool {
	if err := x.receive(); err != nil {
		return x.refuse(err)
	}
	if err := x.proxy.router.checkMatched(&x.request); err != nil {
		return x.refuse(err)
	}
	found, err := x.proxy.router.resolve(&x.request)
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
	case found.action == bypassAction || x.isPreflight():
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

// receive checks the request and cuts it into pieces.
func (x *exchange) receive() error {
	r, h := &x.request, &x.ctx.Request.Header
	r.method, r.peer, r.prefix6 = h.Method(), x.conn.peer, x.proxy.prefix6
	switch string(h.Protocol()) {
	case "HTTP/1.1":
		r.version = 1
	case "HTTP/1.0":
		r.version = 0
	default:
		return &badRequest{"only HTTP/1.1 and HTTP/1.0 are spoken here"}
	}
	switch {
	case !isToken(r.method):
		return &badRequest{"the method is no token"}
	case string(r.method) == "CONNECT":
		return errConnect
	}
	for _, step := range [...]func() error{x.parseFields, r.parseFraming, x.parseTarget, r.parseHost} {
		if err := step(); err != nil {
			return err
		}
	}
	r.client, r.trusted = clientAddress(r, x.proxy.trusted)
	x.name()
	return x.checkBody()
}

func (x *exchange) parseFields() error {
	return x.request.parseFields(x.ctx.Request.Header.RawHeaders())
}
func (x *exchange) parseTarget() error {
	return x.request.parseTarget(x.ctx.Request.Header.RequestURI())
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
	errBodyTooLarge = errors.New("the request body is larger than 10 MiB")
	errExpectation  = errors.New("the only expectation served is 100-continue")
	errConnect      = errors.New("CONNECT is not served")
)

func (x *exchange) checkBody() error {
	if x.request.length > maxBodyBytes {
		return errBodyTooLarge
	}
	for i := range x.request.fields {
		if f := &x.request.fields[i]; equalFold(f.name, "Expect") && !equalFold(f.value, "100-continue") {
			return errExpectation
		}
	}
	return nil
}

// refuse answers a request that serve found a fault with.
func (x *exchange) refuse(err error) bool {
	status := fasthttp.StatusBadRequest
	switch {
	case errors.Is(err, errBodyTooLarge):
		status = fasthttp.StatusRequestEntityTooLarge
	case errors.Is(err, errExpectation):
		status = fasthttp.StatusExpectationFailed
	case errors.Is(err, errConnect):
		status = fasthttp.StatusMethodNotAllowed
	case err == error(errTooManyFields):
		status = fasthttp.StatusRequestHeaderFieldsTooLarge
	}
	x.closing, x.conn.linger = true, true
	x.problem(status, err.Error(), err)
	return false
}

// isPreflight says whether this is a CORS preflight, which a browser sends by
// itself and which is never charged.
func (x *exchange) isPreflight() bool {
	if string(x.request.method) != "OPTIONS" {
		return false
	}
	origin, method := false, false
	for i := range x.request.fields {
		name := x.request.fields[i].name
		origin = origin || equalFold(name, "Origin")
		method = method || equalFold(name, "Access-Control-Request-Method")
	}
	return origin && method
}

// admit asks the limiter. If the answer is no, or there is none, the client
// gets it and admit says false.
func (x *exchange) admit() bool {
	if err := x.identify(); err != nil {
		return x.refuse(err)
	}
	err := x.proxy.options.Limiter.Decide(&x.ask, &x.decision)
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

// errClientBody marks a fault of the client while it sent its body.
var errClientBody = errors.New("read request body")

// clientBody reads a large or chunked request body with a time-out between
// two reads and a bound on its size.
type clientBody struct {
	x    *exchange
	from io.Reader
	left int64

	stopped atomic.Bool
}

// Read moves the deadline on, so that a steady upload may take its time.
func (b *clientBody) Read(p []byte) (int, error) {
	if err := b.x.ctx.SetReadDeadline(time.Now().Add(clientIdle)); err != nil {
		return 0, err
	}
	if b.stopped.Load() { // after the deadline was set, or stop's might be lost
		return 0, errBodyStopped
	}
	n, err := b.from.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errBodyTooLarge
	}
	return n, err
}

var errBodyStopped = errors.New("the rest of the body is not wanted")

// stop ends a Read that is under way, and all later ones.
func (b *clientBody) stop() {
	b.stopped.Store(true)
	_ = b.x.ctx.SetReadDeadline(longAgo)
}
