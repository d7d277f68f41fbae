package admin

import (
	"bytes"
	"strconv"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// tokens, seconds and perSecond are numbers of a JSON answer that is built by
// encoding/json; they read as floats there whatever their value.
type (
	tokens    float64
	seconds   time.Duration
	perSecond float64
)

// MarshalJSON writes t rounded down to six decimals.
func (t tokens) MarshalJSON() ([]byte, error) { return limiter.AppendTokens(nil, float64(t)), nil }

// MarshalJSON writes s rounded up to the millisecond.
func (s seconds) MarshalJSON() ([]byte, error) {
	return limiter.AppendSeconds(nil, time.Duration(s)), nil
}

// MarshalJSON writes p in full: a rate of 1 per 30 days is 0.00000038... .
func (p perSecond) MarshalJSON() ([]byte, error) {
	b := strconv.AppendFloat(nil, float64(p), 'f', -1, 64)
	if bytes.IndexByte(b, '.') < 0 {
		b = append(b, ".0"...)
	}
	return b, nil
}
