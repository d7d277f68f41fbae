package limiter

import (
	"math/bits"
	"time"
)

// maxSkew is how far in the future, in microseconds, a bucket may lie before
// it is brought back: a clock that is corrected must not lock anyone out.
const maxSkew = 60_000_000

// Bucket is the stored state of a token bucket: Debt whole tokens were missing
// at At + Frac/n microseconds, where n is the numerator of the limit's Rate and
// 0 <= Frac < n. The zero value is full. Neither capacity nor rate is part of
// the state, so changing them forgives no debt.
//
// The script in package lua repeats this arithmetic; the tests compare them.
type Bucket struct{ Debt, At, Frac int64 }

// Level is a bucket at a moment: Debt - Progress/p tokens are missing, where p
// is the denominator of the limit's Rate. Progress is less than p. It is
// negative while the clock is behind the bucket; waits then include the lag.
// The zero value is full.
type Level struct{ Debt, Progress int64 }

// ahead says that the bucket lies too far in the future to be believed.
func (b Bucket) ahead(now int64) bool { return b.At-now > maxSkew }

// Level is the state at now, in microseconds of the clock that At was read
// from. A bucket more than a minute in the future is taken as of now.
func (b Bucket) Level(now int64, r Rate) Level {
	if b.Debt <= 0 {
		return Level{}
	}
	if b.ahead(now) {
		b.At, b.Frac = now, 0
	}
	if b.Frac >= r.n { // the rate was another when this was stored
		b.At, b.Frac = b.At+1, 0
	}
	whole, progress := r.refill(now-b.At, b.Frac)
	if whole >= b.Debt {
		return Level{}
	}
	return Level{b.Debt - whole, progress}
}

// refill is what elapsed - frac/n microseconds bring: whole tokens, and the
// rest in 1/p tokens. Before the bucket's time it is only a negative rest.
func (r Rate) refill(elapsed, frac int64) (whole, rest int64) {
	if elapsed <= 0 { // at least -maxSkew-1: the product fits
		return 0, elapsed*r.n - frac
	}
	// elapsed*n - frac = (turns*p + left)*n - frac; n <= p bounds turns*n.
	turns, left := elapsed/r.p, elapsed%r.p
	hi, lo := bits.Mul64(uint64(left), uint64(r.n))
	if hi == 0 && lo < uint64(frac) { // only if left is 0, thus turns > 0
		return turns*r.n - 1, r.p - frac
	}
	lo, borrow := bits.Sub64(lo, uint64(frac), 0)
	quotient, remainder := bits.Div64(hi-borrow, lo, uint64(r.p))
	return turns*r.n + int64(quotient), int64(remainder)
}

// Bucket is what to store for l at now.
func (l Level) Bucket(now int64, r Rate) Bucket {
	if l.Debt <= 0 {
		return Bucket{}
	}
	micros := l.Progress / r.n // rounded up: towards zero is up below zero
	if micros*r.n < l.Progress {
		micros++
	}
	return Bucket{l.Debt, now - micros, micros*r.n - l.Progress}
}

// Spend takes cost tokens out of b at now, in microseconds, if they are there, and
// says whether. It is what a MemoryStore does with a bucket of the limit l, for who
// has the buckets in their own hands.
func (b *Bucket) Spend(now, cost int64, l *Limit) (allowed bool) {
	level := b.Level(now, l.Rate)
	allowed = level.admits(cost, l.Capacity)
	if allowed {
		level.Debt += cost
	}
	if allowed && cost > 0 || b.Debt > 0 && b.ahead(now) {
		*b = level.Bucket(now, l.Rate)
	}
	return allowed
}

// admits says whether cost tokens are there. A cost of 0 is, also where the debt
// exceeds a capacity that has shrunk: it only asks for the state.
func (l Level) admits(cost, capacity int64) bool { return cost == 0 || l.Debt+cost <= capacity }

// Tokens is how many tokens are left, from 0 to capacity.
func (l Level) Tokens(capacity int64, r Rate) float64 {
	if l.Debt <= 0 {
		return float64(capacity)
	}
	left := float64(capacity-l.Debt) + float64(max(l.Progress, 0))/float64(r.p)
	return min(max(left, 0), float64(capacity))
}

// whole is Tokens rounded down, exactly.
func (l Level) whole(capacity int64) int64 { return max(capacity-l.Debt, 0) }

// Wait is how long until cost tokens are there, to the microsecond, rounded
// up; 0 if they are. It means nothing for a cost above the capacity.
func (l Level) Wait(cost, capacity int64, r Rate) time.Duration {
	missing := l.Debt + cost - capacity
	if missing <= 0 {
		return 0
	}
	return time.Duration(r.micros(missing, l.Progress)) * time.Microsecond
}

// Full is how long until the bucket is full, to the microsecond, rounded up.
func (l Level) Full(r Rate) time.Duration {
	return time.Duration(l.fullMicros(r)) * time.Microsecond
}

func (l Level) fullMicros(r Rate) int64 {
	if l.Debt <= 0 {
		return 0
	}
	return r.micros(l.Debt, l.Progress)
}
