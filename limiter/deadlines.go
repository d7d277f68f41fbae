package limiter

import (
	"context"
	"sync/atomic"
	"time"
)

// deadlines gives contexts that end at a deadline. Those whose deadlines are close
// share one: with thousands a second, one each would cost more than the rest of
// a call. They free themselves when they end.
type deadlines struct {
	slack  time.Duration // how much early a context may end
	shared atomic.Pointer[sharedDeadline]
}

type sharedDeadline struct {
	ctx  context.Context
	end  context.CancelFunc
	from time.Time // earliest deadline that it serves: its own
	to   time.Time // latest one
}

func newDeadlines(timeout time.Duration) *deadlines {
	return &deadlines{slack: min(timeout/50, time.Millisecond)}
}

// until returns a context that ends at deadline, or up to slack earlier.
func (d *deadlines) until(deadline time.Time) context.Context {
	if s := d.shared.Load(); s != nil && !deadline.Before(s.from) && deadline.Before(s.to) {
		return s.ctx
	}
	s := &sharedDeadline{from: deadline, to: deadline.Add(d.slack)}
	s.ctx, s.end = context.WithDeadline(context.Background(), deadline)
	d.shared.Store(s)
	return s.ctx
}
