package limiter

import (
	"context"
	"errors"
	"hash/maphash"
	"math/big"
	"math/bits"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Policy says what decides while the store does not answer.
type Policy string

// The policies: a bucket of this process stands in, or all is allowed, or
// nothing is.
const (
	StandInLocal Policy = "local"
	StandInAllow Policy = "allow"
	StandInDeny  Policy = "deny"
)

// StandIn is what a decision was made by when the store could not make it.
type StandIn uint8

// The stand-ins: none, or the bucket of this process, or nothing at all.
const (
	NoStandIn StandIn = iota
	LocalBucket
	AllowedUnasked
)

// String is the word for logs; "" for NoStandIn.
func (s StandIn) String() string {
	return [...]string{"", string(StandInLocal), string(StandInAllow)}[s]
}

// standIn decides in place of a store that could not, by the resource's policy.
// It returns err where that says that nothing is allowed, which a shadow always is.
func (l *Limiter) standIn(w *work, res *resource, req *Request, d *Decision, err error) error {
	l.troubled.Store(time.Now().UnixNano())
	d.StoreError = err
	policy := res.rules.policy
	if policy == StandInDeny && req.Shadow {
		policy = StandInAllow
	}
	switch policy {
	case StandInAllow:
		d.Limits, d.binding = d.Limits[:0], 0
		d.Allowed, d.Replayed, d.StandIn, d.spared = !d.Never, false, AllowedUnasked, res.rules.smallest
		return nil
	case StandInLocal:
		return l.standInLocally(w, res, req, d, unspent(err))
	}
	return err
}

// unspent says that a decision that failed with err has surely spent nothing: Redis
// was not asked, could not be reached, or refused to run the script. It is not
// known of an answer that did not come.
func unspent(err error) bool {
	var refusal redis.Error
	var network *net.OpError
	return kindOf(err) == kindUnsent || errors.As(err, &refusal) && kindOf(err) != kindScript ||
		errors.As(err, &network) && network.Op == "dial"
}

// standInLocally decides by this gateway's share of each limit. What it spends is
// owed to the store, unless that may have spent it already.
func (l *Limiter) standInLocally(w *work, res *resource, req *Request, d *Decision, owed bool) error {
	for i := range d.Limits {
		d.Limits[i] = LimitState{Limit: &res.rules.local[i]}
	}
	d.StandIn = LocalBucket
	if err := l.local.Decide(context.Background(), &w.spend, d); err != nil {
		return describe(err)
	}
	if owed && d.Allowed && !d.Replayed && w.spend.Cost > 0 {
		l.owed.add(&w.spend, d, res.rules.limits)
	}
	d.finish(req.Cost)
	return nil
}

// share is a limit divided among gateways, rounded down but never to nothing.
func (l *Limit) share(gateways int64) Limit {
	s := *l
	if gateways > 1 {
		s.Capacity = max(1, l.Capacity/gateways)
		s.Rate = l.Rate.share(gateways)
	}
	return s
}

// share is the rate divided by a number; where that takes too many digits,
// rounded down to whole microseconds a token. The slowest rate is not divided.
func (r Rate) share(by int64) Rate {
	exact := new(big.Rat).Quo(big.NewRat(r.n, r.p), new(big.Rat).SetInt64(by))
	s, err := newRate(exact)
	if err != nil {
		hi, lo := bits.Mul64(uint64(r.p), uint64(by))
		s = Rate{n: 1, p: min(ceilDiv(hi, lo, uint64(r.n)), slowest)}
	}
	s.text = perSecond(s)
	return s
}

// perSecond is the text of a rate that nobody wrote.
func perSecond(r Rate) string {
	return strconv.FormatFloat(r.PerSecond(), 'g', 6, 64) + "/s"
}

const (
	debtShards = 16
	// debtShardMax bounds the buckets whose local spends are remembered.
	debtShardMax = 100_000 / debtShards
)

// debts are what was spent locally while the store was away, to be debited from
// its buckets when it is back. Bounded: what finds no room is not debited.
type debts struct {
	seed    maphash.Seed
	count   atomic.Int64  // of buckets
	dropped atomic.Uint64 // tokens that found no room
	settled atomic.Uint64 // tokens that were debited
	shards  [debtShards]debtShard
}

type debtShard struct {
	mu   sync.Mutex // guards owed
	owed map[string]*debt
	_    [48]byte // neighbours don't share a cache line
}

// debt is what is owed to one bucket.
type debt struct {
	key    []byte
	limit  *Limit // of the store, not the share
	tokens int64
}

func (o *debts) init() {
	o.seed = maphash.MakeSeed()
	for i := range o.shards {
		o.shards[i].owed = map[string]*debt{}
	}
}

// add notes a local spend, of limits as the store has them.
func (o *debts) add(sp *Spend, d *Decision, limits []Limit) {
	for i, key := range sp.Keys {
		if d.Limits[i].Denied { // a shadow
			continue
		}
		sh := &o.shards[maphash.Bytes(o.seed, key)%debtShards]
		sh.mu.Lock()
		owed, ok := sh.owed[string(key)]
		if !ok && len(sh.owed) < debtShardMax {
			owed = &debt{key: append([]byte(nil), key...), limit: &limits[i]}
			sh.owed[string(key)] = owed
			o.count.Add(1)
		}
		if owed == nil {
			o.dropped.Add(uint64(sp.Cost))
		} else {
			owed.tokens += sp.Cost
		}
		sh.mu.Unlock()
	}
}

// take removes at most n debts. They are counted until done is told of them.
func (o *debts) take(n int) []*debt {
	var taken []*debt
	for i := range o.shards {
		sh := &o.shards[i]
		sh.mu.Lock()
		for key, owed := range sh.owed {
			if len(taken) == n {
				break
			}
			delete(sh.owed, key)
			taken = append(taken, owed)
		}
		sh.mu.Unlock()
	}
	return taken
}

// done says that a debt that was taken is none any more.
func (o *debts) done() { o.count.Add(-1) }

const (
	settleBatch = 256
	// settleCalm is how long the store must have answered before what is owed is
	// debited.
	settleCalm = 300 * time.Millisecond
	// settleTTL is how long Redis remembers that a debit was made, so that it is
	// not made again.
	settleTTL = 10 * time.Minute
)

// debit is what is taken from one bucket for what was spent locally.
type debit struct {
	spend Spend
	limit *Limit
	sent  time.Time // when it may have been made first; zero if it was never sent
}

// settle debits what was spent locally from the store's buckets, once the store
// has answered for a moment. What fails is tried again with the next turn.
func (l *Limiter) settle(ctx context.Context) {
	for ctx.Err() == nil && l.calm() {
		debits := l.unsettled
		l.unsettled = nil
		for _, owed := range l.owed.take(max(0, settleBatch-len(debits))) {
			if d := l.debit(owed); d != nil {
				debits = append(debits, d)
			} else {
				l.owed.done()
			}
		}
		if len(debits) == 0 {
			return
		}
		l.settleAll(debits)
	}
}

// calm says whether the store seems to work.
func (l *Limiter) calm() bool {
	return l.store.Degraded() == nil && time.Since(time.Unix(0, l.troubled.Load())) > settleCalm
}

// debit is what to take from a bucket: as much of what was spent as the local
// bucket is still short of, since the rest has been refilled. It is nil for nothing.
func (l *Limiter) debit(owed *debt) *debit {
	share := owed.limit.share(l.Current().config.Replicas)
	look := Decision{Limits: []LimitState{{Limit: &share}}}
	if err := l.local.Decide(context.Background(), &Spend{Keys: [][]byte{owed.key}}, &look); err != nil {
		return nil
	}
	cost := min(owed.tokens, look.Limits[0].Level.Debt, owed.limit.Capacity)
	if cost <= 0 {
		return nil
	}
	l.settlements++
	id := append(append(append([]byte(nil), hashTag(owed.key)...), "!owed:"...), l.sync.gateway...)
	return &debit{limit: owed.limit, spend: Spend{
		Cost: cost, Keys: [][]byte{owed.key}, Owed: true, IdempotencyTTL: settleTTL,
		IdempotencyKey: strconv.AppendInt(append(id, ':'), l.settlements, 10),
	}}
}

// settleAll makes debits, and keeps those that failed.
func (l *Limiter) settleAll(debits []*debit) {
	var batch sync.WaitGroup
	failed := make([]bool, len(debits))
	for i, d := range debits {
		batch.Go(func() { failed[i] = !l.settleOne(d) })
	}
	batch.Wait()
	for i, d := range debits {
		switch {
		case !failed[i]:
			l.owed.settled.Add(uint64(d.spend.Cost))
			l.owed.done()
		case !d.sent.IsZero() && time.Since(d.sent) > settleTTL/2: // Redis might have made it, and forgotten
			l.owed.dropped.Add(uint64(d.spend.Cost))
			l.owed.done()
		default:
			l.unsettled = append(l.unsettled, d)
		}
	}
}

// settleOne makes one debit.
func (l *Limiter) settleOne(d *debit) bool {
	decision := Decision{Limits: []LimitState{{Limit: d.limit}}}
	err := l.store.Decide(context.Background(), &d.spend, &decision)
	if err == nil {
		return true
	}
	l.troubled.Store(time.Now().UnixNano())
	if d.sent.IsZero() && kindOf(err) != kindUnsent {
		d.sent = time.Now()
	}
	return false
}
