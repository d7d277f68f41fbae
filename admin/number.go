package admin

import (
	"bytes"
	"math"
	"strconv"
	"time"
)

// appendTokens appends a number of tokens with at most six decimals, rounded
// down: someone who reads 1.0 can spend one. t is not negative.
func appendTokens(dst []byte, t float64) []byte {
	// The float nearest to 7.4 may lie below 7.4 and must not read 7.399999:
	// what is lost to a few roundings of the arithmetic is added back. It is
	// far less than a millionth wherever a float can tell millionths apart.
	micros := t * 1e6
	micros += micros * 0x1p-50
	return appendFixed(dst, uint64(micros), 6)
}

// appendSeconds appends d in seconds, rounded up to the millisecond.
func appendSeconds(dst []byte, d time.Duration) []byte {
	ms := (max(d, 0) + time.Millisecond - 1) / time.Millisecond
	return appendFixed(dst, uint64(ms), 3)
}

// appendFixed appends n/10^decimals, without the zeros at its end but always
// with a decimal point and a digit after it.
func appendFixed(dst []byte, n uint64, decimals int) []byte {
	unit := uint64(math.Pow10(decimals))
	dst = strconv.AppendUint(dst, n/unit, 10)
	// The leading 1 keeps the zeros behind the point.
	point := len(dst)
	dst = strconv.AppendUint(dst, unit+n%unit, 10)
	dst[point] = '.'
	for dst[len(dst)-1] == '0' && len(dst) > point+2 {
		dst = dst[:len(dst)-1]
	}
	return dst
}

// tokens, seconds and perSecond are numbers of a JSON answer that is built by
// encoding/json; they read as floats there whatever their value.
type (
	tokens    float64
	seconds   time.Duration
	perSecond float64
)

// MarshalJSON writes t rounded down to six decimals.
func (t tokens) MarshalJSON() ([]byte, error) { return appendTokens(nil, float64(t)), nil }

// MarshalJSON writes s rounded up to the millisecond.
func (s seconds) MarshalJSON() ([]byte, error) { return appendSeconds(nil, time.Duration(s)), nil }

// MarshalJSON writes p in full: a rate of 1 per 30 days is 0.00000038... .
func (p perSecond) MarshalJSON() ([]byte, error) {
	b := strconv.AppendFloat(nil, float64(p), 'f', -1, 64)
	if bytes.IndexByte(b, '.') < 0 {
		b = append(b, ".0"...)
	}
	return b, nil
}
