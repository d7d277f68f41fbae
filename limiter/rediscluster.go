package limiter

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// sendNode sends a flight to one primary of a cluster: a pipeline of one call
// for each decision, as a call can't have keys of two slots. What the primary
// does not have (any more) follows it to where it is.
func (s *RedisStore) sendNode(ctx context.Context, f *flight) error {
	f.calls = extend(f.calls, len(f.tickets))
	node := f.tickets[0].node
	for i, t := range f.tickets {
		f.calls[i].add(t)
		f.calls[i].build(s.byName)
	}
	all := make([]*call, len(f.calls))
	for i := range f.calls {
		all[i] = &f.calls[i]
	}
	again, err := s.exec(ctx, node.Pipeline(), all)
	if e := s.resend(ctx, again); e != nil {
		err = e
	}
	if err != nil {
		s.lookAround(ctx)
	}
	for _, t := range f.tickets {
		if t.err == nil {
			return nil // the primary works, if not for all slots
		}
	}
	return err
}

// lookPause is the least time between two looks at a cluster's nodes.
const lookPause = 200 * time.Millisecond

// lookAround has the cluster asked for its nodes, in the background: unless that
// was done a moment ago, which is the pause that go-redis itself makes after a
// look that succeeded. While nobody answers, each look dials all of them.
func (s *RedisStore) lookAround(ctx context.Context) {
	now, last := time.Now().UnixNano(), s.looked.Load()
	if now-last >= int64(lookPause) && s.looked.CompareAndSwap(last, now) {
		s.cluster.ReloadState(ctx)
	}
}

// exec sends calls in one pipeline and reads their answers. Those that were not
// run are to be sent again; the error is the last one of the others.
func (s *RedisStore) exec(ctx context.Context, p redis.Pipeliner, calls []*call) (again []*call, err error) {
	for _, c := range calls {
		_ = p.Process(ctx, c) // it only queues
	}
	_, failed := p.Exec(ctx)
	for _, c := range calls {
		c.unanswered(failed)
		switch e := c.Err(); {
		case e == nil:
			c.read()
		case notRun(e):
			again = append(again, c)
		default:
			c.fail(e)
			err = e
		}
	}
	return again, err
}

// unanswered gives a call that has neither an answer, which is never empty, nor
// an error that of its pipeline: go-redis does not, where it could connect but
// not log in.
func (c *call) unanswered(failed error) {
	if c.Err() == nil && c.Val() == "" {
		c.SetErr(failed)
	}
}

// notRun says whether Redis refused a call before it ran anything, because it
// is to be sent otherwise.
func notRun(err error) bool {
	for _, prefix := range []string{"NOSCRIPT", "MOVED", "ASK", "TRYAGAIN"} {
		if redis.HasErrorPrefix(err, prefix) {
			return true
		}
	}
	return false
}

// resendTries is how often a call that was not run is sent again. The pauses
// double from a millisecond.
const resendTries = 5

// resend sends calls that were not run again, to wherever their slots are, until
// they run or their time is over. Those that never run are no failure of a server.
func (s *RedisStore) resend(ctx context.Context, calls []*call) (err error) {
	pause := time.Millisecond
	for try := 0; len(calls) > 0; try++ {
		if try == resendTries || calls[0].pause(ctx, pause) != nil {
			for _, c := range calls {
				c.fail(c.Err())
			}
			return err
		}
		pause *= 2
		s.rebuild(calls)
		var e error
		if calls, e = s.exec(ctx, s.cluster.Pipeline(), calls); e != nil {
			err = e
		}
	}
	return err
}

// rebuild makes new commands of calls. The first that the script is not known
// to takes its text there.
func (s *RedisStore) rebuild(calls []*call) {
	taken := false
	for _, c := range calls {
		script := s.byName
		if redis.HasErrorPrefix(c.Err(), "NOSCRIPT") {
			s.metrics.noScript.Inc()
			if !taken {
				script, taken = s.byText, true
			}
		}
		c.build(script)
	}
}

// pause waits where the keys of c are on their way from one node to another; all
// else can be sent at once.
func (c *call) pause(ctx context.Context, d time.Duration) error {
	if !redis.HasErrorPrefix(c.Err(), "TRYAGAIN") {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
