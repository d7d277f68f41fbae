package limiter

import (
	"strconv"
	"time"
)

// Resource is the name of the resource that was asked for. The bytes are the
// decision's own, until it is used again.
func (d *Decision) Resource() []byte { return d.resource }

// Binding is the limit that decided: of those that refused, also if that was
// waived, the one with the longest wait; when allowed, the one with the fewest tokens left. Shadow
// limits never bind. It is nil in a Decision that Decide has not filled, and
// where an override decided.
func (d *Decision) Binding() *LimitState {
	if d.binding >= len(d.Limits) {
		return nil
	}
	return &d.Limits[d.binding]
}

// bind finds the binding limit. Ties go to the first.
func (d *Decision) bind() {
	best := -1
	for i := range d.Limits {
		s := &d.Limits[i]
		if s.Shadow || !d.Allowed && !s.Denied {
			continue
		}
		if best < 0 || d.tighter(s, &d.Limits[best]) {
			best = i
		}
	}
	d.binding = max(best, 0)
}

// tighter says whether a binds more than b.
func (d *Decision) tighter(a, b *LimitState) bool {
	if !d.Allowed {
		return a.Wait > b.Wait
	}
	return a.tokens() < b.tokens()
}

func (s *LimitState) tokens() float64 { return s.Level.Tokens(s.Capacity, s.Rate) }

// TokensLeft is what the binding limit has left. For a user who is exempt it
// is the capacity that they always have; 0 if nothing was decided.
func (d *Decision) TokensLeft() float64 {
	s := d.Binding()
	if s == nil {
		return float64(d.spared)
	}
	return s.tokens()
}

// RetryAfter is how long to wait before the same request can be allowed,
// rounded up to the millisecond; 0 if it was allowed, other than by a waiver, or
// never can be.
func (d *Decision) RetryAfter() time.Duration {
	s := d.Binding()
	if s == nil || d.Allowed && !d.Waived || d.Never {
		return 0
	}
	return roundUp(s.Wait, time.Millisecond) * time.Millisecond
}

// RetryAfterSeconds is the value of a Retry-After field: RetryAfter rounded
// up to seconds, at least 1.
func (d *Decision) RetryAfterSeconds() int64 {
	return max(1, int64(roundUp(d.RetryAfter(), time.Second)))
}

// Reset is how long until the binding limit's bucket is full.
func (d *Decision) Reset() time.Duration {
	s := d.Binding()
	if s == nil {
		return 0
	}
	return s.Level.Full(s.Rate)
}

// roundUp is how many units d takes.
func roundUp(d, unit time.Duration) time.Duration {
	whole := d / unit
	if whole*unit < d {
		whole++
	}
	return whole
}

// AppendLimitName appends the name of s, which is one of d.Limits, as it is:
// the limit's own, or the resource's.
func (d *Decision) AppendLimitName(dst []byte, s *LimitState) []byte {
	if s.Name == "" {
		return append(dst, d.resource...)
	}
	return append(dst, s.Name...)
}

// AppendShadowDenied appends the names of the limits that would have refused, with
// commas between; nothing if there are none. They are shadows, or the one whose
// refusal was waived.
func (d *Decision) AppendShadowDenied(dst []byte) []byte {
	start := len(dst)
	for i := range d.Limits {
		if s := &d.Limits[i]; s.Denied && (s.Shadow || d.Waived && i == d.binding) {
			if len(dst) > start {
				dst = append(dst, ',')
			}
			dst = d.AppendLimitName(dst, s)
		}
	}
	return dst
}

// AppendPolicy appends the value of the RateLimit-Policy field
// (draft-ietf-httpapi-ratelimit-headers): every limit but the shadows, its
// capacity and how many seconds fill it.
func (d *Decision) AppendPolicy(dst []byte) []byte {
	return d.appendList(dst, (*LimitState).decides, func(dst []byte, s *LimitState) []byte {
		dst = appendParameter(dst, ";q=", s.Capacity)
		return appendParameter(dst, ";w=", max(1, s.Rate.seconds(s.Capacity)))
	})
}

// AppendRateLimit appends the value of the RateLimit field: for every limit
// but the shadows, and those whose state is not known, the whole tokens left, and
// how many seconds bring as many; for one that refused or is empty, how many
// seconds to wait.
func (d *Decision) AppendRateLimit(dst []byte) []byte {
	return d.appendList(dst, (*LimitState).told, func(dst []byte, s *LimitState) []byte {
		dst = appendParameter(dst, ";r=", s.Level.whole(s.Capacity))
		return appendParameter(dst, ";t=", s.window())
	})
}

// window is the t parameter of s, in seconds: how long to wait for a limit that
// has nothing to give, else how long the tokens left take to come back.
func (s *LimitState) window() int64 {
	left := s.Level.whole(s.Capacity)
	wait := s.Wait
	if left == 0 && wait == 0 {
		wait = s.Level.Wait(1, s.Capacity, s.Rate)
	}
	if wait > 0 {
		return int64(roundUp(wait, time.Second))
	}
	return max(1, s.Rate.seconds(left))
}

func (s *LimitState) decides() bool { return !s.Shadow }
func (s *LimitState) told() bool    { return !s.Shadow && !s.Unknown }

// appendList appends some of the limits as a list of strings (RFC 8941) with the
// parameters that params appends.
func (d *Decision) appendList(dst []byte, which func(*LimitState) bool, params func([]byte, *LimitState) []byte) []byte {
	separate := false
	for i := range d.Limits {
		s := &d.Limits[i]
		if !which(s) {
			continue
		}
		if separate {
			dst = append(dst, ',')
		}
		separate = true
		dst = params(d.appendQuotedName(dst, s), s)
	}
	return dst
}

// appendQuotedName appends the name as a string of RFC 8941, which can only
// hold printable ASCII: a question mark stands for every other byte.
func (d *Decision) appendQuotedName(dst []byte, s *LimitState) []byte {
	dst = append(dst, '"')
	start := len(dst)
	dst = d.AppendLimitName(dst, s)
	escapes := 0
	for i, c := range dst[start:] {
		if c < ' ' || c > '~' {
			dst[start+i] = '?'
		}
		if c == '"' || c == '\\' {
			escapes++
		}
	}
	if escapes > 0 {
		dst = escapeQuotes(dst, start, escapes)
	}
	return append(dst, '"')
}

// escapeQuotes puts a backslash before each of the n quotes and backslashes
// of dst[start:], from the back so that it needs no second buffer.
func escapeQuotes(dst []byte, start, n int) []byte {
	from := len(dst) - 1
	for range n {
		dst = append(dst, 0)
	}
	for to := len(dst) - 1; from >= start; from-- {
		c := dst[from]
		dst[to] = c
		to--
		if c == '"' || c == '\\' {
			dst[to] = '\\'
			to--
		}
	}
	return dst
}

func appendParameter(dst []byte, name string, value int64) []byte {
	return strconv.AppendInt(append(dst, name...), value, 10)
}
