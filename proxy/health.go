package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of the wait after which an ejected target that nobody checks gets one
// request to show whether it works again. Each time it does not, the wait doubles.
const (
	minEjection = time.Second
	maxEjection = 30 * time.Second
)

// defaultUnhealthyAfter is how many faults in a row eject a target that nobody checks.
const defaultUnhealthyAfter = 3

// health is the account of a target's faults. Whether it is ejected is a bit of
// its upstream. The zero value is that of a healthy target; it is safe for
// concurrent use.
type health struct {
	faults atomic.Int32 // in a row, of requests; 0 while ejected

	mu           sync.Mutex // guards what follows, and the change between healthy and ejected
	fine, failed int        // checks in a row
	wait         time.Duration
	tryAt        time.Time // when one request may try it
	trying       bool      // one does
}

// answered notes that a request had an answer, whatever its status.
func (t *target) answered() {
	if t.health.faults.Load() != 0 {
		t.health.faults.Store(0)
	}
	if t.isEjected() && t.upstream.check == nil {
		t.restore("a request was answered")
	}
}

// account notes an attempt without an answer; fault is nil where that says
// nothing about the target.
func (t *target) account(fault error) {
	switch {
	case errors.Is(fault, errClosed):
	case t.isEjected():
		t.tried(fault)
	case fault == nil || len(t.upstream.targets) == 1 && t.upstream.check == nil:
		// There is nowhere else to go and nobody to say when it is back: to go on is best.
	case t.health.faults.Add(1) >= int32(t.upstream.unhealthyAfter()):
		t.eject(fmt.Sprintf("%d faults in a row, the last: %v", t.upstream.unhealthyAfter(), fault))
	}
}

// unhealthyAfter is how many faults in a row eject a target.
func (u *upstream) unhealthyAfter() int {
	if u.check != nil {
		return u.check.UnhealthyAfter
	}
	return defaultUnhealthyAfter
}

func (t *target) isEjected() bool { return t.upstream.ejected.Load()&t.bit != 0 }

// mayTry says whether an ejected target may have the present request to show
// that it works. Nobody else may until that has ended or, should nobody tell,
// could long have.
func (t *target) mayTry(now time.Time) bool {
	h, u := &t.health, t.upstream
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Before(h.tryAt) || !t.isEjected() {
		return false
	}
	h.tryAt, h.trying = now.Add(u.queueTimeout+u.connectTimeout+u.responseTimeout), true
	return true
}

// tried notes that a request to an ejected target had no answer. Requests from
// before the ejection, which may fail late, change nothing.
func (t *target) tried(fault error) {
	h := &t.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.trying {
		return
	}
	h.trying, h.tryAt = false, time.Now()
	if fault != nil {
		h.wait = min(2*h.wait, maxEjection)
		h.tryAt = h.tryAt.Add(h.wait)
	}
}

// eject takes the target out of the choice.
func (t *target) eject(reason string) {
	h, u := &t.health, t.upstream
	h.mu.Lock()
	defer h.mu.Unlock()
	if t.isEjected() {
		return
	}
	u.ejected.Or(t.bit)
	h.faults.Store(0)
	h.fine, h.failed = 0, 0
	h.wait, h.tryAt, h.trying = minEjection, time.Now().Add(minEjection), false
	u.log.Warn().Str("upstream", u.name).Str("target", t.url).Str("reason", reason).Msg("target ejected")
}

// restore takes it back.
func (t *target) restore(reason string) {
	h, u := &t.health, t.upstream
	h.mu.Lock()
	defer h.mu.Unlock()
	if !t.isEjected() {
		return
	}
	h.faults.Store(0)
	u.ejected.And(^t.bit)
	u.log.Info().Str("upstream", u.name).Str("target", t.url).Str("reason", reason).Msg("target is back")
}

// watch checks the target until ctx ends. The checks of several targets and
// gateways spread by themselves: each interval is up to a fifth off.
func (t *target) watch(ctx context.Context) {
	check := t.upstream.check
	next := time.NewTimer(rand.N(check.Interval))
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		}
		err := t.probe(ctx)
		if ctx.Err() != nil {
			return
		}
		if !isShortage(err) { // which is no fault of the target's
			t.checked(err)
		}
		next.Reset(check.Interval*4/5 + rand.N(check.Interval*2/5))
	}
}

// checked notes how a check went.
func (t *target) checked(err error) {
	h, check := &t.health, t.upstream.check
	h.mu.Lock()
	if err == nil {
		h.fine, h.failed = h.fine+1, 0
	} else {
		h.fine, h.failed = 0, h.failed+1
	}
	fine, failed := h.fine, h.failed
	h.mu.Unlock()
	switch {
	case failed >= check.UnhealthyAfter:
		t.eject(fmt.Sprintf("%d health checks in a row failed, the last: %v", failed, err))
	case fine >= check.HealthyAfter:
		t.restore(fmt.Sprintf("%d health checks in a row passed", fine))
	}
}

// probe asks for the path of the health check, over a connection of its own, so
// that a full pool is no ill health. It takes no longer than the check's time-out.
func (t *target) probe(ctx context.Context) error {
	check, due := t.upstream.check, time.Now().Add(t.upstream.check.Timeout)
	connecting, cancel := context.WithDeadline(ctx, due)
	defer cancel()
	c, err := t.connect(connecting)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	left := time.Until(due)
	c.upstream = &upstream{upstreamOptions: upstreamOptions{responseTimeout: left, idleTimeout: left}}
	var in incoming
	if err := converse(c, &outgoing{head: t.probeHead()}, &in); err != nil {
		return err
	}
	if in.status < 200 || in.status > 399 {
		return fmt.Errorf("GET %s: status %d", check.Path, in.status)
	}
	return nil
}

func (t *target) probeHead() []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: r8limiter-health\r\nConnection: close\r\n\r\n", t.upstream.check.Path, t.host)
}
