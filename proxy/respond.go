package proxy

import (
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"github.com/r8limiter/r8limiter/limiter"
)

const problemType = "application/problem+json"

// problem answers with an error of our own: what is wrong for the client, and
// its cause for the log.
func (x *exchange) problem(status int, detail string, cause error) {
	x.status, x.cause = status, cause
	dst := append(x.body[:0], `{"type":"about:blank","title":"`...)
	dst = append(append(dst, fasthttp.StatusMessage(status)...), `","status":`...)
	dst = append(strconv.AppendInt(dst, int64(status), 10), `,"detail":`...)
	x.body = append(appendJSON(dst, []byte(detail)), '}')
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
	x.answer(problemType, extra)
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
	d := &x.decision
	x.status = fasthttp.StatusTooManyRequests
	dst := append(x.body[:0], `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":`...)
	dst = append(x.appendReason(dst), `,"violated-policies":[`...)
	for i := range d.Limits {
		if s := &d.Limits[i]; s.Denied && !s.Shadow {
			dst = append(x.appendLimitName(dst, s), ',')
		}
	}
	if dst[len(dst)-1] == ',' {
		dst = dst[:len(dst)-1]
	}
	dst = append(dst, `],"allowed":false,"retry_after":`...)
	if d.Never {
		dst = append(dst, "null"...)
	} else {
		dst = limiter.AppendSeconds(dst, d.RetryAfter())
	}
	dst = limiter.AppendTokens(append(dst, `,"tokens_left":`...), d.TokensLeft())
	if d.StandIn != limiter.NoStandIn {
		dst = append(append(append(dst, `,"degraded":"`...), d.StandIn.String()...), '"')
	}
	x.body = append(dst, '}')
	x.abandonBody()
	x.answer(problemType, "")
}

// appendReason appends, as a JSON string, what the binding limit allows.
func (x *exchange) appendReason(dst []byte) []byte {
	d := &x.decision
	s := d.Binding()
	if s == nil {
		return append(dst, `"The request is over its limit."`...)
	}
	text := d.AppendLimitName(append(x.text[:0], `Limit "`...), s)
	text = append(append(text, `" of resource "`...), d.Resource()...)
	if d.Never {
		text = strconv.AppendInt(append(text, `" holds `...), s.Capacity, 10)
		text = strconv.AppendInt(append(text, " tokens at most; this request costs "...), x.ask.Cost, 10)
	} else {
		text = appendPerUnit(append(text, `" allows `...), s.Rate.String())
	}
	x.text = append(text, '.')
	return appendJSON(dst, x.text)
}

// appendPerUnit appends a rate in words: "10/s" is "10 per second".
func appendPerUnit(dst []byte, rate string) []byte {
	n, unit, _ := strings.Cut(rate, "/")
	dst = append(dst, n...)
	switch unit {
	case "m":
		return append(dst, " per minute"...)
	case "h":
		return append(dst, " per hour"...)
	case "d":
		return append(dst, " per day"...)
	}
	return append(dst, " per second"...)
}

// appendLimitName appends the limit's name as a JSON string.
func (x *exchange) appendLimitName(dst []byte, s *limiter.LimitState) []byte {
	x.text = x.decision.AppendLimitName(x.text[:0], s)
	return appendJSON(dst, x.text)
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

// appendJSON appends text as a JSON string. Bytes that are not UTF-8 become
// the replacement character.
func appendJSON(dst, text []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(text); {
		c := text[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(text[i:])
			dst = utf8.AppendRune(dst, r)
			i += size
			continue
		}
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ' || c == 0x7f || c == '<' || c == '>' || c == '&':
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = append(dst, c)
		}
		i++
	}
	return append(dst, '"')
}
