package limiter

import (
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"strings"
)

// What a rate may be, so that every product of bucket.go (and of the script
// that repeats it in Redis) is exact.
const (
	maxNumerator   = 1 << 27
	maxDenominator = 1 << 52
	maxDigits      = 8
	slowest        = 30 * 86_400_000_000 // microseconds a token takes at most
)

var errRateRange = errors.New("must be from 1 per 30 days to 1000000/s")

// Rate is how fast a bucket refills: exactly n/p tokens per microsecond, in
// lowest terms, with 0 < n <= p. The zero Rate is no rate at all; it only
// serves to say that none was given.
type Rate struct {
	n, p int64
	text string
}

// ParseRate reads "N/s", "N/m", "N/h", "N/d", or a bare number of tokens per
// second. Decimals are exact, thus limited to 8 significant digits.
func ParseRate(s string) (Rate, error) {
	number, unit, found := strings.Cut(s, "/")
	micros, ok := unitMicros(unit)
	if !found {
		micros, ok = 1_000_000, true
	}
	if !ok || !isDecimal(number) {
		return Rate{}, fmt.Errorf("rate %q: write a number and a unit, like 10/s, 0.5/m, 100/h or 5000/d", s)
	}
	if significantDigits(number) > maxDigits {
		return Rate{}, fmt.Errorf("rate %q: more than %d significant digits; round it", s, maxDigits)
	}
	exact, _ := new(big.Rat).SetString(number)
	r, err := newRate(exact.Quo(exact, new(big.Rat).SetInt64(micros)))
	if err != nil {
		return Rate{}, fmt.Errorf("rate %q: %w", s, err)
	}
	r.text = s
	return r, nil
}

// newRate takes tokens per microsecond.
func newRate(exact *big.Rat) (Rate, error) {
	if exact.Cmp(big.NewRat(1, 1)) > 0 || exact.Cmp(big.NewRat(1, slowest)) < 0 {
		return Rate{}, errRateRange
	}
	n, p := exact.Num(), exact.Denom()
	if n.Cmp(big.NewInt(maxNumerator)) >= 0 || p.Cmp(big.NewInt(maxDenominator)) >= 0 {
		return Rate{}, errors.New("too many decimals; round it, or write it with a shorter unit")
	}
	return Rate{n: n.Int64(), p: p.Int64()}, nil
}

func unitMicros(unit string) (int64, bool) {
	switch unit {
	case "s":
		return 1_000_000, true
	case "m":
		return 60_000_000, true
	case "h":
		return 3_600_000_000, true
	case "d":
		return 86_400_000_000, true
	}
	return 0, false
}

// isDecimal says whether s is digits with at most one point between them.
func isDecimal(s string) bool {
	whole, fraction, point := strings.Cut(s, ".")
	return isDigits(whole) && (!point || isDigits(fraction)) && len(s) <= 64
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// significantDigits counts without leading and trailing zeros.
func significantDigits(s string) int {
	whole, fraction, _ := strings.Cut(s, ".")
	return len(strings.Trim(whole+fraction, "0"))
}

// UnmarshalText is ParseRate for decoders.
func (r *Rate) UnmarshalText(text []byte) error {
	parsed, err := ParseRate(string(text))
	if err == nil {
		*r = parsed
	}
	return err
}

// MarshalText writes the rate as it was given.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.text), nil }

// String is the rate as it was given, "10/s".
func (r Rate) String() string { return r.text }

// PerSecond is the rate in tokens per second, rounded to a float64.
func (r Rate) PerSecond() float64 { return float64(r.n) * 1e6 / float64(r.p) }

// isZero says that no rate was given.
func (r Rate) isZero() bool { return r.n == 0 }

// seconds is how long the bucket takes to gain so many tokens, rounded up.
func (r Rate) seconds(tokens int64) int64 {
	hi, lo := bits.Mul64(uint64(tokens), uint64(r.p))
	return ceilDiv(hi, lo, uint64(r.n)*1_000_000)
}

// micros is how long the bucket takes to gain debt tokens when it has gained
// progress/p of a token already, in microseconds, rounded up.
func (r Rate) micros(debt, progress int64) int64 {
	hi, lo := bits.Mul64(uint64(debt), uint64(r.p))
	var carry uint64
	if progress >= 0 {
		lo, carry = bits.Sub64(lo, uint64(progress), 0)
		hi -= carry
	} else {
		lo, carry = bits.Add64(lo, uint64(-progress), 0)
		hi += carry
	}
	return ceilDiv(hi, lo, uint64(r.n))
}

// longest bounds every computed time: 2^53, which a float64 still holds
// exactly and which fits a time.Duration as microseconds.
const longest = 1 << 53

// ceilDiv is (hi, lo) / d rounded up, at most longest.
func ceilDiv(hi, lo, d uint64) int64 {
	if hi >= d {
		return longest
	}
	q, rest := bits.Div64(hi, lo, d)
	if q >= longest {
		return longest
	}
	if rest > 0 {
		q++
	}
	return int64(q)
}
