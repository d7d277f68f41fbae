package admin

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"github.com/r8limiter/r8limiter/limiter"
)

// MaxIdempotencyKey is how many characters an idempotency key may have.
const MaxIdempotencyKey = 255

var errIdempotencyKey = errors.New("the idempotency key is malformed: write 1 to 255 printable ASCII characters, bare or in double quotes")

// cutPair takes the first name=value pair off a query. Pairs that are empty,
// as in a&&b, are passed over; ok is false when none is left.
func cutPair(query []byte) (name, value, rest []byte, ok bool) {
	var pair []byte
	for len(query) > 0 {
		pair, query, _ = bytes.Cut(query, []byte("&"))
		if len(pair) > 0 {
			name, value, _ = bytes.Cut(pair, []byte("="))
			return name, value, query, true
		}
	}
	return nil, nil, nil, false
}

// appendDecoded appends s with each %XX as the byte it stands for and each '+'
// as plus: ' ' in a query, '+' in a path. It never appends more than len(s)
// bytes. On a malformed escape it returns an error that shows it.
func appendDecoded(dst, s []byte, plus byte) ([]byte, error) {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '%':
			b, ok := unhex(s[i+1:])
			if !ok {
				return dst, fmt.Errorf("malformed escape %q: write %%25 for a percent sign", s[i:min(i+3, len(s))])
			}
			dst = append(dst, b)
			i += 2
		case '+':
			dst = append(dst, plus)
		default:
			dst = append(dst, c)
		}
	}
	return dst, nil
}

// unhex decodes the two hexadecimal digits at the start of s.
func unhex(s []byte) (byte, bool) {
	if len(s) < 2 {
		return 0, false
	}
	hi, ok1 := hexDigit(s[0])
	lo, ok2 := hexDigit(s[1])
	return hi<<4 | lo, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

// parseCost reads a whole number of tokens. Signs, fractions and exponents are
// errors, not roundings: they show that the caller means something else.
func parseCost(s []byte) (int64, error) {
	var n int64
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, costError(s)
		}
		if n = 10*n + int64(c-'0'); n > limiter.MaxCost {
			return 0, costError(s)
		}
	}
	if len(s) == 0 {
		return 0, costError(s)
	}
	return n, nil
}

func costError(s []byte) error {
	return fmt.Errorf("cost %s is not a whole number from 0 to %d", quote(s), limiter.MaxCost)
}

// appendIdempotencyKey appends the key that s stands for: s itself, or what is
// between its quotes, in which \" and \\ are escapes (RFC 9651 section 3.3.3).
func appendIdempotencyKey(dst, s []byte) ([]byte, error) {
	n := len(dst)
	quoted := len(s) > 0 && s[0] == '"'
	if quoted {
		if len(s) < 2 || s[len(s)-1] != '"' {
			return dst, errIdempotencyKey
		}
		s = s[1 : len(s)-1]
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if quoted && c == '\\' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\') {
			i++
			c = s[i]
		} else if quoted && (c == '"' || c == '\\') {
			return dst[:n], errIdempotencyKey
		}
		if c < ' ' || c > '~' || len(dst)-n == MaxIdempotencyKey {
			return dst[:n], errIdempotencyKey
		}
		dst = append(dst, c)
	}
	if len(dst) == n {
		return dst, errIdempotencyKey
	}
	return dst, nil
}

// quote shows text of a client in an error, at most its first 64 bytes.
func quote(s []byte) string {
	if len(s) > 64 {
		return strconv.Quote(string(s[:64])) + "..."
	}
	return strconv.Quote(string(s))
}
