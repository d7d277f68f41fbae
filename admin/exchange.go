package admin

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/valyala/fasthttp"
)

// exchange is one request and its answer. It is pooled together with the
// memory that it takes to decide.
type exchange struct {
	ctx   *fasthttp.RequestCtx
	start time.Time
	peer  netip.Addr // invalid if the peer has no IP address
	path  []byte     // of the raw target, as it came
	query []byte
	rest  []byte // of the path, behind an endpoint's prefix; still escaped

	request  limiter.Request
	decision limiter.Decision
	decided  bool   // decision is that of request
	text     []byte // what request's fields point to
	body     []byte // scratch: header values, then the answer
	id       []byte // see requestID

	check *check // what is asked at /check; nil elsewhere

	quiet bool  // is of interest only to who debugs
	cause error // what was behind a 5xx
}

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

// begin takes an exchange from the pool. Nothing of ctx may be used after end.
func begin(ctx *fasthttp.RequestCtx) *exchange {
	x := exchanges.Get().(*exchange)
	x.ctx, x.start = ctx, ctx.Time()
	if x.start.IsZero() { // no request came to an end
		x.start = time.Now()
	}
	x.path, x.query, _ = bytes.Cut(ctx.Request.Header.RequestURI(), []byte("?"))
	if addr, ok := ctx.RemoteAddr().(*net.TCPAddr); ok {
		x.peer = addr.AddrPort().Addr().Unmap().WithZone("")
	}
	return x
}

// end gives x back. Only memory is kept, no text of the request.
func (x *exchange) end() {
	*x = exchange{decision: x.decision, text: x.text[:0], body: x.body[:0], id: x.id[:0]}
	exchanges.Put(x)
}

// decode returns s with its escapes resolved, in x's own memory; see
// appendDecoded. The room must have been reserved.
func (x *exchange) decode(s []byte, plus byte) ([]byte, error) {
	n := len(x.text)
	text, err := appendDecoded(x.text, s, plus)
	x.text = text
	return text[n:], err
}

// reserve makes room for n bytes of text, so that what decode returned before
// stays where it is.
func (x *exchange) reserve(n int) { x.text = slices.Grow(x.text[:0], n) }

// answer sends body, which is copied, as JSON.
func (x *exchange) answer(status int, body []byte) {
	r := &x.ctx.Response
	r.SetStatusCode(status)
	r.Header.SetContentType("application/json")
	r.Header.Set(fasthttp.HeaderCacheControl, "no-store")
	r.SetBody(body)
}

// answerJSON answers 200 with v. Text in it that is not UTF-8 shows as U+FFFD.
func (x *exchange) answerJSON(v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // v's type is at fault
	}
	x.answer(fasthttp.StatusOK, body)
}

// refuse answers with a reason that says what to do.
func (x *exchange) refuse(status int, reason string) {
	body, err := json.Marshal(struct {
		Error string `json:"error"`
	}{reason})
	if err != nil {
		panic(err)
	}
	x.answer(status, body)
}

// storeTrouble answers for a store that gave no decision.
func (x *exchange) storeTrouble(cause error) {
	x.cause = cause
	x.ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "1")
	x.refuse(fasthttp.StatusServiceUnavailable, "the store of the limits gives no answer: try again")
}

// malformed refuses to read on: what follows on the connection can't be told
// from this request with certainty.
func (x *exchange) malformed(status int, reason error) {
	x.ctx.SetConnectionClose()
	x.refuse(status, reason.Error())
}
