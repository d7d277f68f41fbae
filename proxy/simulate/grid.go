package simulate

import (
	"math/big"
	"strconv"
	"strings"

	"github.com/r8limiter/r8limiter/limiter"
)

// Numbers that a search goes through have at most four significant digits: nobody
// configures more. They are counted in steps: number n of a grid with d decimals is
// n * 10^-d up to 9999, then 1000 * 10^(1-d) follows, and so on by nine thousand.
const (
	mantissas  = 9000
	firstOfRow = 1000
)

// gridNumber is number n, as a mantissa and a power of ten, of a grid with d decimals.
func gridNumber(n int64, d int) (mantissa int64, power int) {
	if n < firstOfRow {
		return n, -d
	}
	return firstOfRow + (n-firstOfRow)%mantissas, int((n-firstOfRow)/mantissas) - d
}

// gridText is number n as text.
func gridText(n int64, d int) string {
	mantissa, power := gridNumber(n, d)
	text := strconv.FormatInt(mantissa, 10)
	if power >= 0 {
		return text + strings.Repeat("0", power)
	}
	if len(text) <= -power {
		text = strings.Repeat("0", -power+1-len(text)) + text
	}
	whole, fraction := text[:len(text)+power], strings.TrimRight(text[len(text)+power:], "0")
	if fraction == "" {
		return whole
	}
	return whole + "." + fraction
}

// gridRat is number n, exactly.
func gridRat(n int64, d int) *big.Rat {
	mantissa, power := gridNumber(n, d)
	return new(big.Rat).Mul(new(big.Rat).SetInt64(mantissa), tenTo(power))
}

func tenTo(power int) *big.Rat {
	ten := big.NewInt(10)
	if power < 0 {
		return new(big.Rat).SetFrac(big.NewInt(1), ten.Exp(ten, big.NewInt(int64(-power)), nil))
	}
	return new(big.Rat).SetInt(ten.Exp(ten, big.NewInt(int64(power)), nil))
}

// gridAtLeast is the first number of a grid that is not below x.
func gridAtLeast(x *big.Rat, d int) int64 {
	low, high := int64(1), int64(firstOfRow+mantissas*(12+d))
	for low < high {
		middle := (low + high) / 2
		if gridRat(middle, d).Cmp(x) < 0 {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}

// rates are the refill rates that a search goes through: those with the unit of the
// limit's own.
type rates struct {
	unit        string // "/s"
	decimals    int
	first, last int64 // numbers of the grid that are rates
	now         *big.Rat
	text        string // of the limit's own
}

// units are how long each is, in microseconds, and how many decimals a rate in it can
// have whatever its digits are.
var units = map[string]struct {
	micros   int64
	decimals int
}{"s": {1e6, 9}, "m": {60e6, 7}, "h": {3600e6, 6}, "d": {86400e6, 4}}

// slowest is how long a token may take, in microseconds: 30 days.
const slowest = 30 * 86400 * second

// ratesLike are the rates around r.
func ratesLike(r limiter.Rate) rates {
	number, unit, ok := strings.Cut(r.String(), "/")
	if !ok {
		unit = "s"
	}
	u := units[unit]
	now, _ := new(big.Rat).SetString(number)
	fastest := new(big.Rat).SetInt64(u.micros)
	least := big.NewRat(u.micros, slowest)
	g := rates{unit: "/" + unit, decimals: u.decimals, now: now, text: r.String()}
	g.first, g.last = gridAtLeast(least, u.decimals), gridAtLeast(fastest, u.decimals)
	return g
}

// at is the rate with number n of the grid.
func (g *rates) at(n int64) (limiter.Rate, error) {
	return limiter.ParseRate(gridText(n, g.decimals) + g.unit)
}

// start is the number from which a search begins: that of the limit's own rate, or the
// next above it.
func (g *rates) start() int64 { return min(max(gridAtLeast(g.now, g.decimals), g.first), g.last) }

// scaled is the limit's own rate times a factor, rounded up to eight digits and to what
// can be a rate.
func (g *rates) scaled(factor *big.Rat) (limiter.Rate, error) {
	x := new(big.Rat).Mul(g.now, factor)
	if x.Cmp(g.now) == 0 {
		return limiter.ParseRate(g.text)
	}
	if least := gridRat(g.first, g.decimals); x.Cmp(least) < 0 {
		x = least
	}
	if most := gridRat(g.last, g.decimals); x.Cmp(most) > 0 {
		x = most
	}
	return limiter.ParseRate(roundUp(x, g.decimals) + g.unit)
}

// roundUp writes x with at most eight significant digits and so many decimals, and not
// below x.
func roundUp(x *big.Rat, decimals int) string {
	for d := decimals; ; d-- {
		scaled := new(big.Rat).Mul(x, tenTo(d))
		n, rest := new(big.Int).QuoRem(scaled.Num(), scaled.Denom(), new(big.Int))
		if rest.Sign() > 0 {
			n.Add(n, big.NewInt(1))
		}
		text := n.String()
		if len(strings.TrimRight(text, "0")) <= 8 {
			return point(text, d)
		}
	}
}

// point puts a decimal point before the last d digits, or so many zeros behind.
func point(text string, d int) string {
	if d <= 0 {
		return text + strings.Repeat("0", -d)
	}
	if len(text) <= d {
		text = strings.Repeat("0", d+1-len(text)) + text
	}
	whole, fraction := text[:len(text)-d], strings.TrimRight(text[len(text)-d:], "0")
	if fraction == "" {
		return whole
	}
	return whole + "." + fraction
}

// scaleDecimals are those of the factors that a search goes through.
const scaleDecimals = 6

// scaledCapacity is a capacity times a factor, rounded up to what can be one.
func scaledCapacity(capacity int64, factor *big.Rat) int64 {
	x := new(big.Rat).Mul(new(big.Rat).SetInt64(capacity), factor)
	n, rest := new(big.Int).QuoRem(x.Num(), x.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		n.Add(n, big.NewInt(1))
	}
	if !n.IsInt64() {
		return limiter.MaxCapacity
	}
	return min(max(n.Int64(), 1), limiter.MaxCapacity)
}

// firstThat is the first number from low to high that passes, if all behind one that
// passes do; ok is false if none does. start is where it may be. Between numbers that
// don't go up evenly it is one that passes although the one before it does not.
func firstThat(low, high, start int64, passes func(int64) (bool, error)) (found int64, ok bool, err error) {
	fails, holds, step := low-1, high+1, max(1, (high-low)/128)
	for at := start; ; step *= 4 { // gallop away from start until the end is in between
		ok, err := passes(at)
		if err != nil {
			return 0, false, err
		}
		if ok {
			holds = at
		} else {
			fails = at
		}
		if ok && (at == low || fails >= low) || !ok && (at == high || holds <= high) {
			break
		}
		if ok {
			at = max(at-step, low)
		} else {
			at = min(at+step, high)
		}
	}
	for holds-fails > 1 {
		middle := fails + (holds-fails)/2
		ok, err := passes(middle)
		if err != nil {
			return 0, false, err
		}
		if ok {
			holds = middle
		} else {
			fails = middle
		}
	}
	return holds, holds <= high, nil
}
