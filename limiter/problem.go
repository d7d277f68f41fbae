package limiter

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// ProblemType is the Content-Type of the bodies that AppendProblem and
// Decision.AppendDenial make (RFC 9457).
const ProblemType = "application/problem+json"

// AppendProblem appends the body of an answer that tells of a fault: the name of
// its status, and what is wrong, for the client's author.
func AppendProblem(dst []byte, status int, title, detail string) []byte {
	dst = append(append(dst, `{"type":"about:blank","title":"`...), title...)
	dst = strconv.AppendInt(append(dst, `","status":`...), int64(status), 10)
	return append(AppendJSON(append(dst, `,"detail":`...), []byte(detail)), '}')
}

// AppendDenial appends the body of the answer to a request that d denied: which
// limits refused, and when to come again. cost is what the request asked for.
func (d *Decision) AppendDenial(dst []byte, cost int64) []byte {
	dst = append(dst, `{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":`...)
	dst = append(d.appendReason(dst, cost), `,"violated-policies":[`...)
	for i := range d.Limits {
		if s := &d.Limits[i]; s.Denied && !s.Shadow {
			dst = append(d.appendEscapedName(append(dst, '"'), s), `",`...)
		}
	}
	if dst[len(dst)-1] == ',' {
		dst = dst[:len(dst)-1]
	}
	dst = append(dst, `],"allowed":false,"retry_after":`...)
	if d.Never {
		dst = append(dst, "null"...)
	} else {
		dst = AppendSeconds(dst, d.RetryAfter())
	}
	dst = AppendTokens(append(dst, `,"tokens_left":`...), d.TokensLeft())
	if d.StandIn != NoStandIn {
		dst = append(append(append(dst, `,"degraded":"`...), d.StandIn.String()...), '"')
	}
	return append(dst, '}')
}

// appendReason appends, as a JSON string, what the binding limit allows.
func (d *Decision) appendReason(dst []byte, cost int64) []byte {
	s := d.Binding()
	if s == nil {
		return append(dst, `"The request is over its limit."`...)
	}
	dst = d.appendEscapedName(append(dst, `"Limit \"`...), s)
	dst = appendEscaped(append(dst, `\" of resource \"`...), d.resource)
	if d.Never {
		dst = strconv.AppendInt(append(dst, `\" holds `...), s.Capacity, 10)
		dst = strconv.AppendInt(append(dst, " tokens at most; this request costs "...), cost, 10)
	} else {
		dst = appendPerUnit(append(dst, `\" allows `...), s.Rate.String())
	}
	return append(dst, `."`...)
}

// appendEscapedName appends the limit's name as it stands in a JSON string.
func (d *Decision) appendEscapedName(dst []byte, s *LimitState) []byte {
	if s.Name == "" {
		return appendEscaped(dst, d.resource)
	}
	return appendEscaped(dst, []byte(s.Name))
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

// AppendJSON appends text as a JSON string. Bytes that are not UTF-8 become
// the replacement character.
func AppendJSON(dst, text []byte) []byte { return append(appendEscaped(append(dst, '"'), text), '"') }

func appendEscaped(dst, text []byte) []byte {
	const hex = "0123456789abcdef"
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
	return dst
}
