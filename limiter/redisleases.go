package limiter

import (
	"context"
	"time"
)

// spendLease spends from a lease if it can; or it returns the lease that the
// call is to ask for, by the terms, if any.
func (s *RedisStore) spendLease(sp *Spend, d *Decision) (ask *lease, terms leaseTerms, done bool) {
	l := s.leaseFor(sp, d)
	if l == nil {
		return nil, terms, false
	}
	switch u, terms := s.leases.spend(l, sp.Cost, d); u {
	case useRenew:
		s.background.Go(func() { s.renew(l, terms) })
		return nil, terms, true
	case useDone:
		return nil, terms, true
	case useLease:
		return l, terms, false
	}
	return nil, terms, false
}

// leaseFor is the lease that can pay for sp, or nil. Where the buckets are in
// several slots of a cluster there is none: it could not be debited in one step.
func (s *RedisStore) leaseFor(sp *Spend, d *Decision) *lease {
	if !sp.Leased || sp.Cost == 0 || len(sp.IdempotencyKey) > 0 || s.cluster != nil && !oneSlot(sp) {
		return nil
	}
	return s.leases.of(sp, d)
}

// renew asks for a lease, apart from any request.
func (s *RedisStore) renew(l *lease, terms leaseTerms) {
	d := l.decision()
	sp := Spend{Keys: l.keys}
	sent := s.leases.now()
	t := takeTicket(&sp, &d, time.Now().Add(s.timeout))
	defer t.release()
	t.flags, t.lease = flagLease, terms
	err := s.ask(context.Background(), t)
	if back := s.leases.renewed(l, &t.lease, &d, sent, err); back.tokens > 0 {
		s.giveBack(back)
	}
	if err != nil {
		_ = s.trouble(err) // it counts
		return
	}
	s.metrics.byCall.Inc()
	s.noteActive(&sp, &d, time.Now())
}

// decision is one to be made of the lease's buckets.
func (l *lease) decision() Decision {
	d := Decision{}
	for _, limit := range l.limits {
		d.Limits = append(d.Limits, LimitState{Limit: limit})
	}
	return d
}

// giveBackLater gives tokens of a lease back, apart from any request.
func (s *RedisStore) giveBackLater(back giveBack) {
	if back.tokens > 0 {
		s.background.Go(func() { s.giveBack(back) })
	}
}

// returnsAtOnce is how many leases are given back at the same time: they must not
// crowd out decisions.
const returnsAtOnce = 64

// giveBack gives tokens back that nobody will spend. If the call fails, they
// stay debited: it is not known whether they are back.
func (s *RedisStore) giveBack(back giveBack) {
	s.returning <- struct{}{}
	defer func() { <-s.returning }()
	d := back.lease.decision()
	sp := Spend{Keys: back.lease.keys, Cost: back.tokens}
	t := takeTicket(&sp, &d, time.Now().Add(s.timeout))
	defer t.release()
	t.flags, t.lease = flagReturn, leaseTerms{id: back.id}
	if err := s.ask(context.Background(), t); err != nil {
		s.leases.lost.Add(uint64(back.tokens))
		return
	}
	s.leases.returned.Add(uint64(back.tokens))
	s.denials.drop(sp.Keys)
}
