package proxy

import (
	"errors"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/r8limiter/r8limiter/limiter"
)

// problem answers with an error of our own: what is wrong for the client, and
// its cause for the log.
func (x *exchange) problem(status int, detail string, cause error) {
	x.status, x.cause = status, cause
	x.body = limiter.AppendProblem(x.body[:0], status, fasthttp.StatusMessage(status), detail)
	extra := ""
	switch status {
	case fasthttp.StatusServiceUnavailable:
		extra = "Retry-After: 1\r\n"
	case fasthttp.StatusUnauthorized:
		if fault, ok := errors.AsType[*authFault](cause); ok {
			extra = "WWW-Authenticate: " + fault.challenge + "\r\n"
		}
	case fasthttp.StatusMethodNotAllowed:
		extra = "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
	}
	x.abandonBody()
	x.answer(limiter.ProblemType, extra)
}

// abandonBody ends the connection after an answer that leaves a body unread
// which is too much to read and throw away.
func (x *exchange) abandonBody() {
	if r := &x.request; r.length < 0 || r.length > smallBodyBytes || r.expects {
		x.abandon()
	}
}

// deny answers 429: which limits refused, and when to come again.
func (x *exchange) deny() {
	x.status = fasthttp.StatusTooManyRequests
	x.body = x.decision.AppendDenial(x.body[:0], x.ask.Cost)
	x.abandonBody()
	x.answer(limiter.ProblemType, "")
}

// answer sends x.status with x.body and, after the usual fields, extra header lines.
func (x *exchange) answer(contentType, extra string) {
	dst := append(x.out[:0], "HTTP/1.1 "...)
	dst = append(strconv.AppendInt(dst, int64(x.status), 10), ' ')
	dst = append(append(dst, fasthttp.StatusMessage(x.status)...), "\r\nDate: "...)
	dst = append(fasthttp.AppendHTTPDate(dst, x.start), "\r\nContent-Type: "...)
	dst = append(append(dst, contentType...), "\r\nCache-Control: no-store\r\nContent-Length: "...)
	dst = append(strconv.AppendInt(dst, int64(len(x.body)), 10), "\r\n"...)
	dst = append(dst, extra...)
	if x.status == fasthttp.StatusTooManyRequests && !x.decision.Never {
		dst = append(strconv.AppendInt(append(dst, "Retry-After: "...), x.decision.RetryAfterSeconds(), 10), "\r\n"...)
	}
	dst = x.appendEnd(x.appendLimits(dst, x.status))
	head := len(dst)
	if string(x.request.method) != "HEAD" {
		dst = append(dst, x.body...)
		x.sent = int64(len(x.body))
	}
	x.out = dst
	if cause := x.cause; !x.write(dst, head) && cause != nil {
		x.cause = cause // the first trouble is what an operator looks for
	}
}

func ceilSeconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
