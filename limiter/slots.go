package limiter

import (
	"context"
	"hash/maphash"
	"sync/atomic"
	"time"
)

// A limit that users share is in another slot of a cluster than the user's own,
// and no call can have keys of both. Such a decision takes two calls: the part
// that refused last time goes first, and what it spent goes back if the second
// refuses. Between the two, tokens are debited that may come back: others can be
// refused who would not have been, by no more than what is under way; nobody is
// ever admitted beyond a limit. If the call that gives back is lost, they stay debited.
//
// With an idempotency key the shared part goes first always, so that the record,
// which is the user's, is written only by a decision that holds.

// slotOrder remembers whether it was the user's part that refused last, by the key
// of the shared one.
type slotOrder struct {
	seed      maphash.Seed
	userFirst [256]atomic.Bool
}

func (o *slotOrder) of(key []byte) *atomic.Bool {
	return &o.userFirst[maphash.Bytes(o.seed, key)%uint64(len(o.userFirst))]
}

// part is the part of a decision that is in one slot.
type part struct {
	spend    Spend
	decision Decision
	limits   []int // index of each of decision's limits in the whole
}

func (p *part) add(sp *Spend, d *Decision, i int) {
	p.spend.Keys = append(p.spend.Keys, sp.Keys[i])
	p.decision.Limits = append(p.decision.Limits, LimitState{Limit: d.Limits[i].Limit})
	p.limits = append(p.limits, i)
}

// copyTo copies the states to the whole decision.
func (p *part) copyTo(d *Decision) {
	for i, at := range p.limits {
		d.Limits[at] = p.decision.Limits[i]
	}
}

// askSlots makes a decision whose keys are in two slots: the user's and the
// resource's.
func (s *RedisStore) askSlots(ctx context.Context, t *ticket) error {
	var user, shared part
	for i := range t.spend.Keys {
		p := &user
		if t.decision.Limits[i].Scope == PerResource {
			p = &shared
		}
		p.add(t.spend, t.decision, i)
	}
	user.spend.IdempotencyKey, user.spend.IdempotencyTTL = t.spend.IdempotencyKey, t.spend.IdempotencyTTL
	order := s.order.of(shared.spend.Keys[0])
	first, second := &shared, &user
	if order.Load() && len(t.spend.IdempotencyKey) == 0 {
		first, second = second, first
	}
	d := t.decision
	refused, err := s.askBoth(ctx, t, first, second)
	if err != nil {
		return err
	}
	first.copyTo(d)
	second.copyTo(d)
	d.Allowed, d.Replayed = refused == nil, user.decision.Replayed
	if refused != nil {
		order.Store(refused == &user)
	}
	return nil
}

// askBoth asks for both parts and returns the one that refused, if any: its
// cost is spent in both or in none.
func (s *RedisStore) askBoth(ctx context.Context, t *ticket, first, second *part) (refused *part, err error) {
	cost := t.spend.Cost
	if err := s.askPart(ctx, first, cost, t, 0); err != nil {
		return nil, err
	}
	if !first.decision.Allowed {
		return s.peek(ctx, t, first, second)
	}
	err = s.askPart(ctx, second, cost, t, 0)
	if err == nil && second.decision.Allowed && !second.decision.Replayed {
		return nil, nil
	}
	s.refund(first, cost)
	if err != nil || second.decision.Allowed {
		return nil, err
	}
	return second, nil
}

// peek asks for the state of the second part after the first refused; and if the
// decision was made before under the same idempotency key, that stands.
func (s *RedisStore) peek(ctx context.Context, t *ticket, first, second *part) (refused *part, err error) {
	if err := s.askPart(ctx, second, t.spend.Cost, t, flagPeek); err != nil {
		return nil, err
	}
	if !second.decision.Replayed {
		return first, nil
	}
	for i := range first.decision.Limits {
		first.decision.Limits[i].Denied = false
	}
	return nil, nil
}

// askPart asks for one part.
func (s *RedisStore) askPart(ctx context.Context, p *part, cost int64, whole *ticket, flags byte) error {
	p.spend.Cost = cost
	t := takeTicket(&p.spend, &p.decision, whole.deadline)
	defer t.release()
	t.flags = flags
	return s.ask(ctx, t)
}

// refund gives back what a part spent, apart from the request: its answer does
// not wait for that.
func (s *RedisStore) refund(p *part, cost int64) {
	if cost == 0 {
		return
	}
	back := part{spend: Spend{Cost: cost}}
	for i := range p.spend.Keys {
		if state := &p.decision.Limits[i]; !state.Denied {
			back.spend.Keys = append(back.spend.Keys, append([]byte(nil), p.spend.Keys[i]...))
			back.decision.Limits = append(back.decision.Limits, LimitState{Limit: state.Limit})
		}
	}
	s.background.Go(func() {
		t := takeTicket(&back.spend, &back.decision, time.Now().Add(s.timeout))
		defer t.release()
		t.flags = flagRefund
		if err := s.ask(context.Background(), t); err != nil {
			s.metrics.refundsLost.Inc()
			return
		}
		s.denials.drop(back.spend.Keys)
	})
}
