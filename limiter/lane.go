package limiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// maxBatch is how many decisions travel together at most: Redis is busy
	// with them for less than a millisecond.
	maxBatch = 128
	// maxFlights is how many batches of a lane are under way at most. One is the
	// rule; the others are for an answer that is late.
	maxFlights = 8
	// maxWaiting is how many decisions wait for the next batch at most: those of
	// a second at 80,000 a second and a deadline of 50 ms.
	maxWaiting = 4096
	// patience is how long decisions wait for an answer that others are
	// waiting for, before a batch of their own leaves.
	patience = 2 * time.Millisecond
)

// Reasons why a decision was never sent: nothing was spent.
var (
	errBreakerOpen = errors.New("Redis failed just now and is being probed")
	errCrowded     = errors.New("too many decisions wait for Redis")
	errWaited      = fmt.Errorf("no turn to ask Redis came in time: %w", os.ErrDeadlineExceeded)
)

// ticket is one decision on its way to Redis.
type ticket struct {
	spend    *Spend
	decision *Decision
	flags    byte // see appendDecision
	lease    leaseTerms
	node     *redis.Client // of a cluster, which has the keys; else nil
	deadline time.Time
	err      error

	wake     chan signal
	timer    *time.Timer
	next     *ticket
	waiting  bool
	promoted bool
	flight   *flight // that this ticket leads
}

// signal tells a waiting ticket what became of it.
type signal uint8

const (
	landed   signal = iota // its decision is made, or failed
	lead                   // it leads the next flight
	promoted               // it is the first that waits now
)

var tickets = sync.Pool{New: func() any { return newTicket() }}

func newTicket() *ticket {
	t := &ticket{wake: make(chan signal, 2), timer: time.NewTimer(time.Hour)}
	t.timer.Stop()
	return t
}

// takeTicket returns a ticket for one decision, to be given back with release.
func takeTicket(sp *Spend, d *Decision, deadline time.Time) *ticket {
	t := tickets.Get().(*ticket)
	t.spend, t.decision, t.deadline = sp, d, deadline
	return t
}

func (t *ticket) release() {
	t.spend, t.decision, t.node, t.flight, t.next, t.err = nil, nil, nil, nil, nil, nil
	t.flags, t.lease = 0, leaseTerms{}
	tickets.Put(t)
}

// flight is a batch of decisions. The first ticket's goroutine sends it.
type flight struct {
	tickets []*ticket
	calls   []call
}

var flights = sync.Pool{New: func() any { return new(flight) }}

func (f *flight) release() {
	clear(f.tickets)
	f.tickets = f.tickets[:0]
	for i := range f.calls {
		f.calls[i].clear()
	}
	flights.Put(f)
}

// clean says whether all decisions were made.
func (f *flight) clean() bool {
	for _, t := range f.tickets {
		if t.err != nil {
			return false
		}
	}
	return true
}

// fail gives all tickets one error.
func (f *flight) fail(err error) {
	for _, t := range f.tickets {
		t.err = err
	}
}

// lane brings the decisions of all requests to one Redis, those that come while
// an answer is awaited together in the next batch. A decision that comes when
// nothing is under way leaves at once. There is no goroutine for it: of the
// decisions that travel together, the oldest one's sends for all.
//
// Own batches instead of go-redis's AutoPipeline: that one keeps a decision
// beyond its deadline once it is queued, and a batch of it is a pipeline of
// EVALSHAs, where one EVALSHA with all decisions costs Redis half.
type lane struct {
	name      string // address of the server, for the log
	send      func(ctx context.Context, f *flight) error
	deadlines *deadlines
	spread    time.Duration // between the deadlines of a flight's decisions, at most
	// failed is called when the breaker opens, with a key of a failed decision.
	failed func(l *lane, key []byte, cause error)
	told   told                  // used by one outage after another
	cause  atomic.Pointer[error] // see closed

	mu          sync.Mutex // guards the rest
	first, last *ticket    // that wait
	waiting     int
	flying      int
	breaker     breaker
	open        atomic.Bool // copy of the breaker's, to be read without the lock
	failures    atomic.Bool // the breaker knows of some; kept by note alone
}

// do makes the decision of t. It returns when t's deadline has passed at the
// latest, or little later.
func (l *lane) do(t *ticket) error {
	l.mu.Lock()
	switch {
	case l.breaker.open:
		l.mu.Unlock()
		return l.closed()
	case l.flying == 0:
		l.flying++
		l.mu.Unlock()
		f := flights.Get().(*flight)
		f.tickets = append(f.tickets, t)
		l.fly(f)
		return t.err
	case l.waiting >= maxWaiting:
		l.mu.Unlock()
		return errCrowded
	}
	first := l.pushLocked(t)
	l.mu.Unlock()
	if l.await(t, first) == lead {
		l.fly(t.flight)
	}
	return t.err
}

// pushLocked appends a ticket, and says whether it is the first that waits.
func (l *lane) pushLocked(t *ticket) (first bool) {
	t.waiting, t.promoted, t.next = true, false, nil
	l.waiting++
	if l.first == nil {
		t.promoted = true
		l.first, l.last = t, t
		return true
	}
	l.last.next, l.last = t, t
	return false
}

// popLocked takes the oldest ticket off.
func (l *lane) popLocked() *ticket {
	t := l.first
	l.first, t.next, t.waiting = t.next, nil, false
	l.waiting--
	return t
}

// await waits for a signal. The first that waits loses its patience for all.
func (l *lane) await(t *ticket, first bool) signal {
	if !first {
		if s := <-t.wake; s != promoted {
			return s
		}
	}
	t.timer.Reset(patience)
	select {
	case s := <-t.wake:
		t.timer.Stop()
		return s
	case <-t.timer.C:
	}
	l.mu.Lock()
	var late *ticket
	if t.waiting {
		late = l.launchAllLocked(nil)
	}
	l.mu.Unlock()
	wakeAll(late)
	return <-t.wake
}

// launchAllLocked launches what waits, as far as flights are free: one batch, and
// more where one can't take them all.
func (l *lane) launchAllLocked(late *ticket) *ticket {
	for whole := false; !whole && l.first != nil && l.flying < maxFlights; {
		late, whole = l.launchLocked(late)
	}
	if l.first != nil && !l.first.promoted {
		l.first.promoted = true
		l.first.wake <- promoted
	}
	return late
}

// launchLocked sends the oldest of the waiting tickets on a flight, whose
// leader it wakes. Those whose time is over are added to late. A flight ends at
// the deadline of its oldest: it takes nobody along who has much more time. It
// says whether what is left is no more than a batch that can wait for others.
func (l *lane) launchLocked(late *ticket) (_ *ticket, whole bool) {
	now := time.Now()
	for l.first != nil && !now.Before(l.first.deadline) {
		t := l.popLocked()
		t.err, t.next, late = errWaited, late, t
	}
	if l.first == nil {
		return late, true
	}
	f, latest := flights.Get().(*flight), l.first.deadline.Add(l.spread)
	for l.first != nil && len(f.tickets) < maxBatch && !l.first.deadline.After(latest) {
		f.tickets = append(f.tickets, l.popLocked())
	}
	l.flying++
	leader := f.tickets[0]
	leader.flight = f
	leader.wake <- lead
	return late, l.first == nil || len(f.tickets) == maxBatch && l.waiting < maxBatch
}

// wakeAll wakes tickets that have their error.
func wakeAll(list *ticket) {
	for list != nil {
		t := list
		list, t.next = t.next, nil
		t.wake <- landed
	}
}

// fly sends a flight and wakes all but its leader, whose goroutine this is.
// The next flight starts before that.
func (l *lane) fly(f *flight) {
	err := l.send(l.deadlines.until(f.tickets[0].deadline), f)
	clean := err == nil && f.clean()
	wakeAll(l.land(f, err))
	for _, t := range f.tickets[1:] {
		t.wake <- landed
	}
	if clean { // else: nothing depends on what go-redis does after an error
		f.release()
	}
}

// land takes a flight off those under way and launches what waited for it.
// When the breaker opens, all that wait fail.
func (l *lane) land(f *flight, err error) (late *ticket) {
	l.mu.Lock()
	l.flying--
	opened := l.breaker.note(err)
	if opened {
		l.open.Store(true)
	}
	if l.breaker.open {
		late = l.rejectLocked()
	}
	late = l.launchAllLocked(late)
	l.mu.Unlock()
	if opened {
		l.failed(l, f.tickets[0].spend.firstKey(), err)
	}
	return late
}

// rejectLocked takes all waiting tickets off: they fail at once.
func (l *lane) rejectLocked() (late *ticket) {
	for l.first != nil {
		t := l.popLocked()
		t.err, t.next, late = l.closed(), late, t
	}
	return late
}

// reopen lets decisions through again.
func (l *lane) reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breaker = breaker{}
	l.open.Store(false)
}
