package limiter

import "math/bits"

// breaker keeps a Redis that fails from costing each decision its time-out. It
// opens after three failures in a row, or when half of the last 20 batches
// failed; then only probes ask, until one succeeds. The zero value is closed.
type breaker struct {
	open    bool
	history uint32 // a bit for each of the last batches, 1 is a failure, the latest lowest
}

const (
	breakerRow    = 1<<3 - 1
	breakerWindow = 1<<20 - 1
	breakerHalf   = 10
)

// note takes in how a batch ended, and says whether that opened the breaker.
func (b *breaker) note(err error) (opened bool) {
	b.history <<= 1
	if err == nil || b.open {
		return false
	}
	b.history |= 1
	b.open = b.history&breakerRow == breakerRow || bits.OnesCount32(b.history&breakerWindow) >= breakerHalf
	return b.open
}
