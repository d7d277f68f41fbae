package limiter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// testedLane is a lane whose flights take as long as their number says.
type testedLane struct {
	*lane
	mu      sync.Mutex
	sizes   []int // of the flights, in the order in which they left
	failing error
	cause   error // that opened the breaker
}

func newTestedLane(timeout time.Duration, takes func(flight int) time.Duration) *testedLane {
	l := &testedLane{lane: &lane{deadlines: newDeadlines(timeout), spread: timeout / 4}}
	l.failed = func(_ *lane, _ []byte, cause error) { l.cause = cause }
	l.send = func(ctx context.Context, f *flight) error {
		l.mu.Lock()
		l.sizes = append(l.sizes, len(f.tickets))
		n, err := len(l.sizes), l.failing
		l.mu.Unlock()
		select {
		case <-time.After(takes(n)):
		case <-ctx.Done():
			err = os.ErrDeadlineExceeded
		}
		f.fail(err)
		return err
	}
	return l
}

func always(d time.Duration) func(int) time.Duration { return func(int) time.Duration { return d } }

// ask makes one decision with a deadline and returns its error and how long it took.
func (l *testedLane) ask(deadline time.Duration) (error, time.Duration) {
	start := time.Now()
	t := newTicket() // those of the pool belong to no bubble
	t.spend, t.decision, t.deadline = &Spend{Keys: [][]byte{[]byte("k")}}, &Decision{}, start.Add(deadline)
	err := l.do(t)
	return err, time.Since(start)
}

func TestLoneDecisionLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestedLane(time.Second, always(300*time.Microsecond))
		for range 3 {
			if err, took := l.ask(time.Second); err != nil || took != 300*time.Microsecond {
				t.Errorf("took %v, %v", took, err)
			}
		}
		if !slices.Equal(l.sizes, []int{1, 1, 1}) {
			t.Errorf("flights of %v decisions", l.sizes)
		}
	})
}

func TestDecisionsTravelTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestedLane(time.Second, always(time.Millisecond))
		var group sync.WaitGroup
		for range 65 {
			group.Go(func() {
				if err, took := l.ask(time.Second); err != nil || took > 2*time.Millisecond {
					t.Errorf("took %v, %v", took, err)
				}
			})
		}
		group.Wait()
		if !slices.Equal(l.sizes, []int{1, 64}) {
			t.Errorf("flights of %v decisions, want one, and the others together", l.sizes)
		}
	})
}

func TestCrowdTravelsInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestedLane(time.Second, always(time.Millisecond))
		var group sync.WaitGroup
		for range 1 + 2*maxBatch + 10 {
			group.Go(func() { l.ask(time.Second) })
		}
		group.Wait()
		slices.Sort(l.sizes)
		if !slices.Equal(l.sizes, []int{1, 10, maxBatch, maxBatch}) {
			t.Errorf("flights of %v decisions", l.sizes)
		}
	})
}

func TestLateAnswerHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestedLane(50*time.Millisecond, func(n int) time.Duration {
			if n == 1 {
				return time.Hour
			}
			return time.Millisecond
		})
		var group sync.WaitGroup
		group.Go(func() {
			if err, took := l.ask(50 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) || took != 50*time.Millisecond {
				t.Errorf("the late one: took %v, %v", took, err)
			}
		})
		synctest.Wait()
		for range 10 {
			group.Go(func() {
				if err, took := l.ask(50 * time.Millisecond); err != nil || took != patience+time.Millisecond {
					t.Errorf("took %v, %v; want patience and an answer", took, err)
				}
			})
		}
		group.Wait()
	})
}

func TestDeadlineHoldsInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestedLane(50*time.Millisecond, always(time.Hour))
		var group sync.WaitGroup
		for i := range 500 {
			time.Sleep(100 * time.Microsecond)
			group.Go(func() {
				err, took := l.ask(50 * time.Millisecond)
				if err == nil || took > 50*time.Millisecond {
					t.Errorf("decision %d: took %v, %v", i, took, err)
				}
			})
		}
		group.Wait()
		if len(l.sizes) > maxFlights+3 || l.cause == nil {
			t.Errorf("%d flights, breaker %v", len(l.sizes), l.cause)
		}
	})
}

func TestCrowdBeyondTheBoundIsTurnedAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestedLane(time.Second, always(time.Millisecond))
		l.flying = maxFlights // all are out, and none will land
		var group sync.WaitGroup
		for range maxWaiting {
			group.Go(func() { l.ask(time.Second) })
		}
		synctest.Wait()
		if err, took := l.ask(time.Second); !errors.Is(err, errCrowded) || took != 0 {
			t.Errorf("took %v, %v", took, err)
		}
		for range maxFlights {
			wakeAll(l.land(&flight{}, nil))
		}
		group.Wait()
		if l.waiting != 0 || l.flying != 0 {
			t.Errorf("%d wait, %d fly", l.waiting, l.flying)
		}
	})
}

func TestOpenBreakerFailsAtOnceAndThoseThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestedLane(time.Second, always(time.Millisecond))
		l.failing = errors.New("down")
		for range 2 {
			l.ask(time.Second)
		}
		var group sync.WaitGroup
		for range 3 { // one flies and opens it, the others wait
			group.Go(func() {
				if err, took := l.ask(time.Second); err == nil || took != time.Millisecond {
					t.Errorf("took %v, %v", took, err)
				}
			})
		}
		group.Wait()
		if err, took := l.ask(time.Second); !errors.Is(err, errBreakerOpen) || took != 0 {
			t.Errorf("took %v, %v", took, err)
		}
		if len(l.sizes) != 3 || fmt.Sprint(l.cause) != "down" {
			t.Errorf("%d flights, cause %v", len(l.sizes), l.cause)
		}
		l.failing = nil
		l.reopen()
		if err, _ := l.ask(time.Second); err != nil {
			t.Error(err)
		}
	})
}

func TestBreakerOpensOnFailuresInARowOrHalf(t *testing.T) {
	down := errors.New("down")
	tests := map[string]int{ // x fails; after how many it opens, 0 for never
		"xxx": 3, "xx.xx.xx.": 0, ".x.x": 0, "xx.xxx": 6,
		"x.x.x.x.x.x.x.x.x.x.x.": 19, "x..x..x..x..x..x..x..x..x..x..x..x..": 0,
	}
	for outcomes, want := range tests {
		var b breaker
		got := 0
		for i, c := range outcomes {
			err := down
			if c == '.' {
				err = nil
			}
			if b.note(err) {
				got = i + 1
				break
			}
		}
		if got != want {
			t.Errorf("%s: opened after %d, want %d", outcomes, got, want)
		}
	}
}
