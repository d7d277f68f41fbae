package limiter

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/rs/zerolog"
)

// watch looks at once and then every minute, and logs what it finds, until ctx
// ends. A warning is repeated as long as it holds: logs are rotated, and who
// reads them today was not there when it began.
func (c *redisCondition) watch(ctx context.Context, log zerolog.Logger) {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	told := conditionLog{log: log}
	for {
		warnings, err := c.check(ctx)
		if ctx.Err() != nil {
			return
		}
		told.tell(warnings, err)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// conditionLog writes the log of one watch.
type conditionLog struct {
	log    zerolog.Logger
	held   map[conditionWarning]bool // what was told and is not known to be over, without messages
	failed [errorKinds]bool          // kinds of errors told since the last look without one
}

// tell logs the outcome of a look. After one that failed nothing is over: the
// servers that it is about may be those that did not answer.
func (c *conditionLog) tell(warnings []conditionWarning, err error) {
	before := c.held
	c.held = map[conditionWarning]bool{}
	for _, w := range warnings {
		c.log.Warn().Str("kind", w.kind).Str("node", w.node).Msg(w.message)
		c.held[conditionWarning{kind: w.kind, node: w.node}] = true
	}
	if err != nil {
		maps.Copy(c.held, before)
		c.tellError(err)
		return
	}
	c.failed = [errorKinds]bool{}
	c.tellEnds(before)
}

// tellEnds logs which of those that held before hold no more.
func (c *conditionLog) tellEnds(before map[conditionWarning]bool) {
	over := slices.SortedFunc(maps.Keys(before), func(a, b conditionWarning) int {
		return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.kind, b.kind))
	})
	for _, w := range over {
		if !c.held[w] {
			c.log.Info().Str("kind", w.kind).Str("node", w.node).Msg("this is no longer the matter with Redis")
		}
	}
}

// tellError logs an error of a kind that is new: a Redis that is down is told
// elsewhere, and one that refuses INFO goes on doing so.
func (c *conditionLog) tellError(err error) {
	kind := kindOf(err)
	if c.failed[kind] || kind == kindConnection || kind == kindTimeout {
		return
	}
	c.failed[kind] = true
	c.log.Warn().Err(err).Msg("can't look at Redis: whether it is set up to keep buckets is not known; a user of an ACL needs +info")
}
