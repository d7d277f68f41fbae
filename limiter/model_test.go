package limiter

import (
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// model is a token bucket store in rational numbers, written from the contract
// and not from bucket.go: what every store is compared with.
type model struct {
	now     int64
	buckets map[string]*modelBucket
}

// modelBucket owes debt tokens at the moment at, in microseconds.
type modelBucket struct {
	debt int64
	at   *big.Rat
	rate *big.Rat // tokens per microsecond
	// forgettable says that a store may have seen the bucket full.
	forgettable bool
}

// modelState is what the model knows of one limit after a decision.
type modelState struct {
	Denied   bool
	Debt     int64
	Progress string // of the next token, in tokens
	Wait     time.Duration
	Full     time.Duration
}

func newModel(now int64) *model {
	return &model{now: now, buckets: map[string]*modelBucket{}}
}

func ratOf(r Rate) *big.Rat { return big.NewRat(r.n, r.p) }

// floorRat and ceilRat round to whole numbers, those beyond int64 to 2^62.
func floorRat(x *big.Rat) int64 {
	q := new(big.Int).Div(x.Num(), x.Denom()) // Euclidean: floor, as Denom > 0
	if !q.IsInt64() {
		return int64(q.Sign()) << 62
	}
	return q.Int64()
}

func ceilRat(x *big.Rat) int64 { return -floorRat(new(big.Rat).Neg(x)) }

// settle brings the bucket up to now: whole tokens only, the moment of the
// last one is kept. It returns the progress towards the next.
func (b *modelBucket) settle(now int64) (progress *big.Rat) {
	at := new(big.Rat).SetInt64(now)
	if b.debt == 0 {
		b.at = at
	}
	gained := new(big.Rat).Mul(new(big.Rat).Sub(at, b.at), b.rate)
	if gained.Sign() <= 0 {
		return gained
	}
	whole := floorRat(gained)
	if whole >= b.debt {
		b.debt, b.at = 0, at
		return new(big.Rat)
	}
	b.debt -= whole
	moved := new(big.Rat).Quo(new(big.Rat).SetInt64(whole), b.rate)
	b.at = new(big.Rat).Add(b.at, moved)
	return gained.Sub(gained, new(big.Rat).SetInt64(whole))
}

// state describes the bucket of key as a limit sees it. Looking changes no
// bucket, but brings back one that lies too far in the future.
func (m *model) state(key string, l *Limit, cost int64) modelState {
	b := m.look(key, ratOf(l.Rate))
	progress := b.settle(m.now)
	return modelState{
		Denied:   cost > 0 && b.debt+cost > l.Capacity,
		Debt:     b.debt,
		Progress: progress.RatString(),
		Wait:     m.until(b.debt+cost-l.Capacity, progress, b.rate),
		Full:     m.until(b.debt, progress, b.rate),
	}
}

// look returns a copy of a bucket.
func (m *model) look(key string, rate *big.Rat) modelBucket {
	b, ok := m.buckets[key]
	if !ok {
		return modelBucket{at: new(big.Rat).SetInt64(m.now), rate: rate}
	}
	if b.debt > 0 && floorRat(b.at)-m.now > 60_000_000 {
		b.at = new(big.Rat).SetInt64(m.now)
	}
	return *b
}

func (m *model) until(tokens int64, progress, rate *big.Rat) time.Duration {
	if tokens <= 0 {
		return 0
	}
	missing := new(big.Rat).Sub(new(big.Rat).SetInt64(tokens), progress)
	return time.Duration(min(ceilRat(missing.Quo(missing, rate)), 1<<53)) * time.Microsecond
}

// decide is a decision on distinct or equal keys.
func (m *model) decide(cost int64, limits []keyedLimit) (allowed bool, states []modelState) {
	allowed = true
	for _, l := range limits {
		s := m.state(l.key, l.limit, cost)
		allowed = allowed && (!s.Denied || l.limit.Shadow)
		states = append(states, s)
	}
	charged := map[string]bool{}
	for i, l := range limits {
		if allowed && cost > 0 && !states[i].Denied && !charged[l.key] {
			charged[l.key] = true
			m.charge(l, cost)
		}
	}
	for i, l := range limits {
		denied := states[i].Denied
		states[i] = m.state(l.key, l.limit, cost)
		states[i].Denied = denied
	}
	return allowed, states
}

func (m *model) charge(l keyedLimit, cost int64) {
	b := m.look(l.key, ratOf(l.limit.Rate))
	b.settle(m.now)
	b.debt += cost
	b.forgettable = false
	m.buckets[l.key] = &b
}

// advance moves the clock and notes which buckets it finds full.
func (m *model) advance(d time.Duration) {
	m.now += d.Microseconds()
	for _, b := range m.buckets {
		look := *b
		look.settle(m.now)
		b.forgettable = b.forgettable || look.debt == 0
	}
}

// statesOf is what d says, in the model's terms.
func statesOf(d *Decision, cost int64) []modelState {
	var states []modelState
	for _, s := range d.Limits {
		states = append(states, modelState{
			Denied:   s.Denied,
			Debt:     s.Level.Debt,
			Progress: big.NewRat(s.Level.Progress, s.Rate.p).RatString(),
			Wait:     s.Level.Wait(cost, s.Capacity, s.Rate),
			Full:     s.Level.Full(s.Rate),
		})
	}
	return states
}

// sequence drives a store and the model through the same random decisions.
type sequence struct {
	t      *testing.T
	rnd    *rand.Rand
	store  testedStore
	model  *model
	limits []keyedLimit
	waits  []time.Duration // of earlier denials: moments worth going to
}

var (
	sequenceRates = []string{
		"1000000/s", "999999.5/s", "5/s", "0.5/s", "3/m", "7/h", "12345678/d", "0.0334/d", "33.333333/s", "0.7/s",
	}
	sequenceCapacities = []int64{1, 2, 3, 10, 99, 5000, MaxCapacity}
)

func newSequence(t *testing.T, store testedStore, seed uint64) *sequence {
	s := &sequence{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), store: store, model: newModel(store.now())}
	for i := range 6 {
		rate := pick(s.rnd, sequenceRates)
		s.limits = append(s.limits, keyedLimit{
			key: "sequence:{" + string(rune('a'+i)) + "}",
			limit: &Limit{
				Name: "l", Capacity: pick(s.rnd, sequenceCapacities), Rate: mustRate(t, rate), Shadow: i == 5,
			},
		})
	}
	return s
}

func pick[T any](rnd *rand.Rand, from []T) T { return from[rnd.IntN(len(from))] }

// step moves the clock and decides once.
func (s *sequence) step(i int) {
	s.t.Helper()
	s.move()
	count := 1 + s.rnd.IntN(3)
	var limits []keyedLimit
	for range count {
		limits = append(limits, pick(s.rnd, s.limits))
	}
	if s.rnd.IntN(20) == 0 { // another capacity on a live bucket
		changed := *limits[0].limit
		changed.Capacity = pick(s.rnd, sequenceCapacities)
		for j := range s.limits {
			if s.limits[j].key == limits[0].key {
				s.limits[j].limit = &changed
			}
		}
		return
	}
	s.decide(i, s.cost(limits[0].limit.Capacity), limits)
}

func (s *sequence) cost(capacity int64) int64 {
	return min(MaxCost, pick(s.rnd, []int64{0, 1, 1, 1, 2, capacity, capacity + 1, 1 + s.rnd.Int64N(capacity)}))
}

func (s *sequence) decide(i int, cost int64, limits []keyedLimit) {
	s.t.Helper()
	allowed, want := s.model.decide(cost, limits)
	d := s.store.decide(s.t, cost, limits...)
	if d.Allowed != allowed {
		s.t.Fatalf("step %d: cost %d allowed %v, want %v", i, cost, d.Allowed, allowed)
	}
	if diff := cmp.Diff(want, statesOf(d, cost)); diff != "" {
		s.t.Fatalf("step %d: cost %d (-want +got):\n%s", i, cost, diff)
	}
	for _, state := range want {
		s.waits = append(s.waits, state.Wait)
	}
}

// move moves both clocks, mostly to moments where something changes.
func (s *sequence) move() {
	by := time.Duration(s.rnd.Int64N(int64(time.Second)))
	switch s.rnd.IntN(10) {
	case 0, 1:
		by = 0
	case 2:
		by = time.Microsecond
	case 3:
		by = time.Duration(s.rnd.Int64N(int64(100 * time.Hour)))
	case 4, 5, 6:
		if len(s.waits) > 0 {
			by = min(s.waits[len(s.waits)-1], 1000*time.Hour)
		}
	case 7:
		if len(s.waits) > 0 {
			by = min(s.waits[len(s.waits)-1], 1000*time.Hour) - time.Microsecond
		}
	case 8:
		s.back(pick(s.rnd, []time.Duration{time.Microsecond, time.Second, time.Minute, 61 * time.Second, time.Hour}))
		return
	}
	s.advance(max(by, 0).Truncate(time.Microsecond))
}

// back moves the clock back. A bucket that was seen full may be forgotten or
// not, so each such bucket is charged first.
func (s *sequence) back(by time.Duration) {
	for _, l := range s.limits {
		if b := s.model.buckets[l.key]; b != nil && b.forgettable {
			s.decide(-1, 1, []keyedLimit{l})
		}
	}
	s.advance(-by)
}

func (s *sequence) advance(by time.Duration) {
	s.store.advance(by)
	s.model.advance(by)
}
