// Package limiter decides: it spends tokens from token buckets, all limits of
// a resource in one atomic step, in process or in Redis.
package limiter

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/rs/zerolog"
)

// Bounds of what a limit may say. Inside them every decision is exact.
const (
	MaxCapacity = 1_000_000_000
	MaxCost     = MaxCapacity
)

// ErrKeyReused is returned by Decide when an idempotency key was used before
// with another cost.
var ErrKeyReused = errors.New("idempotency key was used before with another cost")

// Scope says whose requests share a bucket of a limit.
type Scope uint8

// The scopes: PerUser keeps one bucket for each user, PerResource one for all.
const (
	PerUser Scope = iota
	PerResource
)

// Limit is one token bucket rule of a resource as it runs. It is immutable.
type Limit struct {
	// Name is unique in its resource. "" stands for the resource's own name:
	// the limit of resources that no configuration names.
	Name     string
	Scope    Scope
	Shadow   bool  // counted and logged, decides nothing
	Capacity int64 // tokens, 1 to MaxCapacity
	Rate     Rate
}

// Request asks for a decision. Its bytes are only read until Decide returns.
type Request struct {
	User     []byte
	Resource []byte
	// Plan is the plan whose limits replace the resource's; empty for none. One
	// that no configuration names is none.
	Plan []byte
	Cost int64 // tokens, 0 to MaxCost; 0 spends nothing and returns the state
	// IdempotencyKey makes an allowed decision repeatable without spending
	// again; empty for none.
	IdempotencyKey []byte
	// Shadow says that a refusal is none: the request is decided and charged as ever,
	// but always allowed, and Decision.Waived says when it would not have been. So
	// does it when the store fails, whatever the policy. Only an override that
	// blocks the user still does.
	Shadow bool
	// Limits are those that decide; nil for those in force. It is for who found
	// out what to ask by one configuration, so that the same one decides.
	Limits *Limits
}

// Decision is the answer to a Request. The zero value is ready for use; Decide
// overwrites it and reuses its memory, so a Decision can be pooled.
type Decision struct {
	Allowed bool
	// Waived says that the limits refused a request that is a shadow: it is allowed
	// and nothing was spent. Never, Binding and RetryAfter are those of the refusal.
	Waived bool
	// Replayed says that this decision was made before under the same
	// idempotency key and that nothing was spent now.
	Replayed bool
	// Never says that the cost exceeds a capacity: it can't pass at any time.
	Never bool
	// Override says that an operator decided, not the buckets: then there are no
	// Limits, and nothing was spent.
	Override OverrideKind
	// StandIn says that the store failed, and what decided instead. With
	// LocalBucket the Limits are this gateway's share; with AllowedUnasked there
	// are none.
	StandIn StandIn
	// StoreError is why the store did not decide; nil without a StandIn.
	StoreError error
	// Limits are the states of all limits of the resource after the decision,
	// in configuration order, shadow limits included.
	Limits []LimitState

	resource []byte // the resource's name, for limits named after it
	binding  int    // index into Limits; see Binding
	spared   int64  // what TokensLeft is without a bucket
}

// OverrideKind is what an operator's override made of a decision.
type OverrideKind uint8

// The kinds: none, or all is allowed, or all is denied.
const (
	NoOverride OverrideKind = iota
	Exempted
	Blocked
)

// LimitState is what a decision found in one bucket.
type LimitState struct {
	*Limit
	// Denied says that this limit refused (or, as a shadow, would have).
	Denied bool
	Level  Level
	// Unknown says that Level is not known: another limit was known to refuse, and
	// so the store was not asked.
	Unknown bool
	// leasedOut says that leases hold tokens of the bucket, which may come back.
	leasedOut bool
	// Wait is how long until the request's cost is available; 0 if allowed.
	Wait time.Duration
}

// Spend is what a Store is asked to do for one Request.
type Spend struct {
	Cost int64 // tokens; 0 writes nothing
	// Keys are the buckets' keys, one for each of Decision.Limits. The same key
	// twice is one bucket, charged once.
	Keys [][]byte
	// IdempotencyKey is the key under which an allowed decision is remembered
	// for IdempotencyTTL; empty for none.
	IdempotencyKey []byte
	IdempotencyTTL time.Duration
	// Leased says that a store may keep tokens in advance for this process.
	Leased bool
	// Owed says that the cost was spent already: it is debited in any case, down
	// to empty buckets.
	Owed bool
}

// Store keeps buckets. Implementations are safe for concurrent use.
type Store interface {
	// Decide spends s.Cost from every bucket of s or from none. The caller has
	// set d.Limits[i].Limit; Decide sets d.Allowed, d.Replayed, and Level and
	// Denied of each of d.Limits, as they are after the decision. A replayed
	// decision is allowed and shows the present state. It returns
	// ErrKeyReused, or what is wrong with the store; then d is void.
	Decide(ctx context.Context, s *Spend, d *Decision) error
	// Reset makes the buckets full again.
	Reset(ctx context.Context, keys [][]byte) error
	// Forget drops what this process remembers of buckets instead of asking:
	// their limits may have been changed, or they were reset.
	Forget()
	// Run does what the store does in the background, until ctx ends. It logs what
	// an operator must know of the store.
	Run(ctx context.Context, log zerolog.Logger)
	// Degraded says what of the store fails at the moment; nil if it works.
	Degraded() error
	// Fleet is what the gateways on this store share besides its buckets; the
	// same for each call. It ends with the store.
	Fleet() Fleet
	// Probe makes a real decision on a key of its own: nil if it works.
	Probe(ctx context.Context) error
	// ActiveKeys is the number of buckets that are not full, as far as this
	// process knows.
	ActiveKeys() int
	// WriteMetrics writes the store's own series in Prometheus text format.
	WriteMetrics(w io.Writer)
	// Close releases what the store holds. Decisions after it fail.
	Close() error
}
