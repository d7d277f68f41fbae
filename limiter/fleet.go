package limiter

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

// Fleet is what all gateways on one store share besides its buckets: the
// figures of their decisions, the settings that operators changed while they
// ran, and who changed what. None of it is ever asked for on a request's way.
// Implementations are safe for concurrent use.
type Fleet interface {
	// Flush adds what one gateway counted since its last flush, and returns the
	// version of the settings. What fails to be added is lost: a retry could
	// count it twice.
	Flush(ctx context.Context, f *Figures) (version int64, err error)
	// Version is the version of the settings: it grows with every change.
	Version(ctx context.Context) (int64, error)
	// Watch calls changed soon after any gateway changed something, until ctx
	// ends. It may miss changes while the store is away; Version does not.
	Watch(ctx context.Context, changed func())

	// Totals are the sums over all gateways.
	Totals(ctx context.Context) (Totals, error)
	// Offenders are the users with most denials in a window, most first.
	Offenders(ctx context.Context, w Window, n int) ([]Offender, error)
	// Resources are those that were asked for, by name.
	Resources(ctx context.Context) ([]ResourceFigures, error)

	// Settings are what operators changed.
	Settings(ctx context.Context) (Settings, error)
	// Change makes one change and its audit entry, both or none.
	Change(ctx context.Context, c Change) error
	// Audit is the newest n entries, newest first.
	Audit(ctx context.Context, n int) ([]AuditEntry, error)
}

// Bounds of what a fleet keeps.
const (
	MaxOverrides = 10_000 // at any time
	MaxAudit     = 1_000  // entries; older ones are dropped
	MaxOffenders = 100    // users of a window that can be asked for
	// maxFleetResources is how many resources have figures, and how many may
	// have persisted limits; the one that was unused longest gives way.
	maxFleetResources = maxSeen
)

// ErrTooMany says that a change would keep more than a fleet can hold.
var ErrTooMany = errors.New("there are too many already: remove some first")

// Figures are what one gateway counted since its last flush.
type Figures struct {
	Gateway   string
	At        time.Time // of the flush, by the gateway's clock
	Resources []ResourceFigures
	Offenders []Offender
}

// Totals are the decisions of all gateways since the first one started, and
// the buckets that are not full now, by an estimate that is right within 2 %.
type Totals struct {
	Allowed, Denied uint64
	ActiveKeys      int
}

// Offender is a user and how often they were denied.
type Offender struct {
	User   string
	Denies uint64
}

// ResourceFigures are the decisions about one resource.
type ResourceFigures struct {
	Name            string
	Allowed, Denied uint64
	LastSeen        time.Time // zero if it was never asked for
}

// Window is a time back from now in which denials are counted, in whole
// buckets: the one that has begun, and as many as it takes to cover Span.
type Window struct {
	Span   time.Duration
	Bucket Bucketing
}

// Bucketing is the length of the time buckets that denials are counted in.
type Bucketing struct {
	Name string // minute, hour or day
	Each time.Duration
	Keep int // how many are kept
	// Users are how many of the worst offenders a bucket keeps once it is over.
	Users int
}

// Bucketings are all there are. While its time runs a bucket may have
// liveOffenders users; then the fifth with the fewest denials is dropped.
var Bucketings = [...]Bucketing{
	{"minute", time.Minute, 6*60 + 1, 100},
	{"hour", time.Hour, 7*24 + 1, 100},
	{"day", 24 * time.Hour, 32, 200},
}

const liveOffenders = 5000

// Longest is the longest window that b can answer for.
func (b Bucketing) Longest() time.Duration { return time.Duration(b.Keep-1) * b.Each }

// index numbers the buckets; they begin at whole units of UTC.
func (b Bucketing) index(t time.Time) int64 { return t.Unix() / int64(b.Each/time.Second) }

// indexes are the first and the last bucket of the window at now.
func (w Window) indexes(now time.Time) (first, last int64) {
	return w.Bucket.index(now.Add(-w.Span)), w.Bucket.index(now)
}

// worst sorts offenders, most denials first and equals by name, and keeps n.
func worst(all []Offender, n int) []Offender {
	slices.SortFunc(all, func(a, b Offender) int {
		return cmp.Or(cmp.Compare(b.Denies, a.Denies), cmp.Compare(a.User, b.User))
	})
	return all[:min(n, len(all))]
}

// AuditEntry is one change by an operator.
type AuditEntry struct {
	Time time.Time `json:"time"`
	// Action is limits.set, limits.drop, override.set, override.drop, user.reset or config.reload.
	Action   string `json:"action"`
	User     string `json:"user_id,omitempty"`
	Resource string `json:"resource,omitempty"`
	// By says who asked.
	By      Actor  `json:"by"`
	Gateway string `json:"gateway"`
	// Detail is what was set.
	Detail any `json:"detail,omitempty"`
}

// Actor is who asks for a change, as far as a gateway can know.
type Actor struct {
	ClientIP  string `json:"client_ip"`
	Auth      string `json:"auth"` // token or loopback
	RequestID string `json:"request_id,omitempty"`
}
