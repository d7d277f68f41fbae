package simulate

import (
	"context"
	"errors"
	"math/big"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/r8limiter/r8limiter/limiter"
)

var errStopped = errors.New("stopped")

// search finds, for each limit alone, how small it may be for the target.
func (e *engine) search(ctx context.Context) (*TargetReport, error) {
	r := &TargetReport{Share: e.o.Target.String()}
	var tasks []func(*replayer) error
	for _, set := range e.sets.sorted() {
		for i := range set.limits {
			r.Limits = append(r.Limits, e.newTarget(set, i))
		}
	}
	at := 0
	for _, set := range e.sets.sorted() {
		for i := range set.limits {
			t := &r.Limits[at]
			at++
			run := trial{trace: e.trace, section: e.trace.sections[set.number], limit: set.rules[i].Limit, budget: t.Budget}
			tasks = append(tasks,
				func(p *replayer) error { return p.begin(run).findCapacity(t) },
				func(p *replayer) error { return p.begin(run).findRate(t) },
				func(p *replayer) error { return p.begin(run).findScale(t) })
		}
	}
	if e.o.Progress != nil {
		e.o.Progress.Steps.Store(int64(len(tasks)))
	}
	return r, e.work(ctx, tasks)
}

func (e *engine) newTarget(set *limitSet, i int) LimitTarget {
	return LimitTarget{
		LimitName: set.limitName(i), Requests: set.requests,
		Budget: e.o.Target.of(set.requests), Smallest: set.least == set.most,
	}
}

// work does the tasks, on as many processors as there are, and returns the first error.
func (e *engine) work(ctx context.Context, tasks []func(*replayer) error) error {
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()
	var next atomic.Int64
	var workers sync.WaitGroup
	errs := make([]error, min(runtime.GOMAXPROCS(0), len(tasks)))
	for w := range errs {
		workers.Go(func() {
			p := &replayer{stop: &stop, buffer: make([]byte, blockBytes)}
			for i := next.Add(1) - 1; i < int64(len(tasks)) && errs[w] == nil; i = next.Add(1) - 1 {
				if errs[w] = tasks[i](p); errs[w] != nil {
					stop.Store(true)
				}
				if e.o.Progress != nil {
					e.o.Progress.Done.Add(1)
				}
			}
		})
	}
	workers.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, err := range errs {
		if err != nil && err != errStopped {
			return err
		}
	}
	return nil
}

// trial is a limit whose requests are decided again, under another capacity or rate.
type trial struct {
	trace   *trace
	section *section
	limit   *limiter.Limit
	budget  uint64 // how many denials are allowed
}

// replayer decides the requests of a trial again. It is reused for the next.
type replayer struct {
	trial
	stop    *atomic.Bool
	buffer  []byte
	buckets []limiter.Bucket
	// marks say of each bucket what is known. Once a bucket is known to deny nothing
	// where others deny too much, it never will where they deny less: it is left out.
	marks []mark
	peaks []int64 // the largest debt of each bucket, where that is asked for
	last  uint64  // denials under what passed last
}

type mark uint8

const (
	denies mark = 1 << iota // in this run
	leftOut
)

// begin gets ready for a trial.
func (p *replayer) begin(t trial) *replayer {
	p.trial = t
	n := int(t.section.users)
	if t.limit.Scope == limiter.PerResource {
		n = int(t.section.resource)
	}
	p.buckets = slices.Grow(p.buckets[:0], n)[:n]
	p.marks = slices.Grow(p.marks[:0], n)[:n]
	clear(p.marks)
	return p
}

// run decides all requests under a capacity and a rate, and says how many it denies.
// Where there is but one bucket it is enough to know that they are too many.
func (p *replayer) run(capacity int64, rate limiter.Rate) (denied uint64, err error) {
	clear(p.buckets)
	for i := range p.marks {
		p.marks[i] &^= denies
	}
	err = p.trace.each(p.section, p.buffer, p.stop, func(block []byte) bool {
		denied += p.decide(block, capacity, rate)
		return denied <= p.budget || len(p.buckets) > 1
	})
	return denied, err
}

// decide decides the requests of a block, and says how many it denies. It is one loop:
// with a call for each request it took twice the time.
func (p *replayer) decide(block []byte, capacity int64, rate limiter.Rate) (denied uint64) {
	shared := p.limit.Scope == limiter.PerResource
	limit := &limiter.Limit{Capacity: capacity, Rate: rate}
	for ; len(block) > 0; block = block[recordBytes:] {
		r := readRecord(block)
		i := r.user
		if shared {
			i = r.resource
		}
		if p.marks[i]&leftOut != 0 {
			continue
		}
		if !p.buckets[i].Spend(r.at, int64(r.cost), limit) {
			denied++
			p.marks[i] |= denies
		}
		if p.peaks != nil {
			p.peaks[i] = max(p.peaks[i], p.buckets[i].Debt)
		}
	}
	return denied
}

// passes says whether a capacity and a rate deny as little as they may.
func (p *replayer) passes(capacity int64, rate limiter.Rate) (bool, error) {
	denied, err := p.run(capacity, rate)
	if err != nil {
		return false, err
	}
	if denied <= p.budget {
		p.last = denied
		return true, nil
	}
	for i := range p.marks {
		if len(p.marks) > 1 && p.marks[i]&denies == 0 {
			p.marks[i] |= leftOut
		}
	}
	return false, nil
}

// findCapacity finds the smallest capacity at the limit's own rate, and what the limit
// denies as it is.
func (p *replayer) findCapacity(t *LimitTarget) error {
	rate := p.limit.Rate
	var err error
	if t.Now, err = p.alone(); err != nil {
		return err
	}
	low, high, err := p.capacities()
	if err != nil || high == 0 {
		return err
	}
	found, ok, err := firstThat(low, high, min(max(p.limit.Capacity, low), high), func(n int64) (bool, error) {
		return p.passes(n, rate)
	})
	if err != nil || !ok {
		return err
	}
	t.Capacity = &Candidate{Capacity: found, RefillRate: rate.String(), Denied: p.last}
	return nil
}

// alone is what the limit does as it is, if there are no others.
func (p *replayer) alone() (Candidate, error) {
	budget := p.budget
	p.budget = ^uint64(0) // count them all
	denied, err := p.run(p.limit.Capacity, p.limit.Rate)
	p.budget = budget
	return Candidate{Capacity: p.limit.Capacity, RefillRate: p.limit.Rate.String(), Denied: denied}, err
}

// capacities are from and to which capacities it is worth to look. With the largest
// capacity there is, a bucket's largest debt is the capacity with which it would deny
// nothing. With less than the debt that more buckets have had than may deny, too many
// do; high is 0 if the largest capacity is too small.
func (p *replayer) capacities() (low, high int64, err error) {
	peaks := make([]int64, len(p.buckets))
	p.peaks = peaks
	beyond, err := p.run(limiter.MaxCapacity, p.limit.Rate)
	p.peaks = nil
	if err != nil || beyond > p.budget {
		return 0, 0, err
	}
	sorted := slices.Sorted(slices.Values(peaks))
	low, high = 1, max(sorted[len(sorted)-1], 1)
	if beyond > 0 {
		high = limiter.MaxCapacity
	}
	if p.budget < uint64(len(sorted)) {
		low = max(sorted[len(sorted)-1-int(p.budget)], 1)
	}
	for i := range peaks {
		if peaks[i] < low {
			p.marks[i] |= leftOut
		}
	}
	return low, high, nil
}

// findRate finds the smallest rate at the limit's own capacity.
func (p *replayer) findRate(t *LimitTarget) error {
	capacity, grid := p.limit.Capacity, ratesLike(p.limit.Rate)
	found, ok, err := firstThat(grid.first, grid.last, grid.start(), func(n int64) (bool, error) {
		rate, err := grid.at(n)
		if err != nil {
			return false, err
		}
		return p.passes(capacity, rate)
	})
	if err != nil || !ok {
		return err
	}
	rate, err := grid.at(found)
	t.Rate = &Candidate{Capacity: capacity, RefillRate: rate.String(), Denied: p.last}
	return err
}

// findScale finds the smallest factor for both.
func (p *replayer) findScale(t *LimitTarget) error {
	grid := ratesLike(p.limit.Rate)
	scaled := func(n int64) (int64, limiter.Rate, error) {
		factor := gridRat(n, scaleDecimals)
		rate, err := grid.scaled(factor)
		return scaledCapacity(p.limit.Capacity, factor), rate, err
	}
	last := gridAtLeast(new(big.Rat).SetInt64(limiter.MaxCapacity), scaleDecimals)
	one := gridAtLeast(big.NewRat(1, 1), scaleDecimals)
	found, ok, err := firstThat(1, last, one, func(n int64) (bool, error) {
		capacity, rate, err := scaled(n)
		if err != nil {
			return false, err
		}
		return p.passes(capacity, rate)
	})
	if err != nil || !ok {
		return err
	}
	capacity, rate, err := scaled(found)
	t.Scale = &Candidate{Factor: gridText(found, scaleDecimals), Capacity: capacity, RefillRate: rate.String(), Denied: p.last}
	return err
}
