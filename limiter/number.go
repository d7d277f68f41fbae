package limiter

import (
	"math"
	"strconv"
	"time"
)

// AppendTokens appends a number of tokens with at most six decimals, rounded
// down: someone who reads 1.0 can spend one. t is not negative.
func AppendTokens(dst []byte, t float64) []byte {
	// The float nearest to 7.4 may lie below 7.4 and must not read 7.399999:
	// what is lost to a few roundings of the arithmetic is added back. It is
	// far less than a millionth wherever a float can tell millionths apart.
	micros := t * 1e6
	micros += micros * 0x1p-50
	return appendFixed(dst, uint64(micros), 6)
}

// AppendSeconds appends d in seconds, rounded up to the millisecond.
func AppendSeconds(dst []byte, d time.Duration) []byte {
	ms := (max(d, 0) + time.Millisecond - 1) / time.Millisecond
	return appendFixed(dst, uint64(ms), 3)
}

// AppendMilliseconds appends d in milliseconds, rounded down to the microsecond.
func AppendMilliseconds(dst []byte, d time.Duration) []byte {
	return appendFixed(dst, uint64(max(d, 0)/time.Microsecond), 3)
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
