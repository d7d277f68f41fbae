package limiter

import (
	"fmt"
	"time"

	"github.com/rs/zerolog"
)

const (
	// tellEvery is how often the failures of one Redis are told at most: one that
	// comes and goes must not fill the log.
	tellEvery = 10 * time.Second
	// tellAgain is how often a failure is told that goes on: logs are rotated.
	tellAgain = time.Minute
)

// outage is a time in which one Redis fails, from the breaker's opening on. What
// is told outlives it: see told.
type outage struct {
	lane  *lane
	since time.Time
	told  bool // an operator has read of this one
}

// told is what was told of a lane last. One outage after another uses it.
type told struct {
	at    time.Time
	cause string
}

// found takes in why the Redis fails, now, and tells it: at once, unless that was
// done a moment ago, and again when the cause changes or the outage goes on.
func (o *outage) found(log *zerolog.Logger, cause error) {
	o.lane.setCause(cause)
	last, pause := &o.lane.told, tellEvery
	if o.told && last.cause == cause.Error() {
		pause = tellAgain
	}
	if log == nil || time.Since(last.at) < pause {
		return
	}
	log.Warn().Err(cause).Str("redis", o.lane.name).Int64("failed_ms", time.Since(o.since).Milliseconds()).
		Msg("Redis fails: until it works again, on_store_error decides. Check the server and limiter.redis")
	*last, o.told = told{time.Now(), cause.Error()}, true
}

// over tells the end of an outage that was told.
func (o *outage) over(log *zerolog.Logger) {
	if o.told {
		log.Info().Str("redis", o.lane.name).Int64("failed_ms", time.Since(o.since).Milliseconds()).Msg("Redis works again")
	}
}

// setCause says why decisions fail while the breaker is open.
func (l *lane) setCause(cause error) {
	err := fmt.Errorf("%w: %v", errBreakerOpen, cause)
	l.cause.Store(&err)
}

// closed is the error of decisions that come while the breaker is open.
func (l *lane) closed() error {
	if err := l.cause.Load(); err != nil {
		return *err
	}
	return errBreakerOpen
}
