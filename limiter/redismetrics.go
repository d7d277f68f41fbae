package limiter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"
	"github.com/redis/go-redis/v9"
)

// errorKind says what kind of trouble a decision met; it labels a series.
type errorKind int

const (
	kindTimeout    errorKind = iota // no answer in time; it may have spent
	kindConnection                  // refused, reset, closed
	kindScript                      // the script stopped, or its answer makes no sense
	kindUnsent                      // the breaker is open, or too many wait: Redis was not asked
	kindOther                       // Redis refused: OOM, READONLY, LOADING, NOAUTH; or the caller gave up
	errorKinds
)

func (k errorKind) String() string {
	return [errorKinds]string{"timeout", "connection", "script", "unsent", "other"}[k]
}

// kindOf sorts an error of go-redis. A context's deadline comes back from a
// socket as a net.Error, from the pool as itself.
func kindOf(err error) errorKind {
	var refusal redis.Error
	var network net.Error
	switch {
	case errors.Is(err, errBreakerOpen), errors.Is(err, errCrowded), errors.Is(err, errWaited):
		return kindUnsent
	case errors.Is(err, errAnswer), errors.Is(err, errForeign):
		return kindScript
	case errors.As(err, &refusal):
		return kindOfRefusal(refusal.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, redis.ErrPoolTimeout), errors.As(err, &network) && network.Timeout():
		return kindTimeout
	case network != nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, net.ErrClosed), errors.Is(err, redis.ErrClosed):
		return kindConnection
	}
	return kindOther
}

// kindOfRefusal sorts an error that Redis answered. It ends the message of an
// error inside a script with the script's name.
func kindOfRefusal(message string) errorKind {
	if strings.Contains(message, "script: ") || strings.Contains(message, tooOld) {
		return kindScript
	}
	return kindOther
}

// tooOld is in what a Redis before 7.0 answers to a script that begins with #!.
const tooOld = "near '#'"

// explain says what was asked when err came, and what to do if it is known.
func explain(err error) error {
	var refusal redis.Error
	if errors.As(err, &refusal) && strings.Contains(refusal.Error(), tooOld) {
		return fmt.Errorf("decide in redis: it must be version 7.0 or later: %w", err)
	}
	return fmt.Errorf("decide in redis: %w", err)
}

// redisMetrics are the series of one RedisStore.
type redisMetrics struct {
	set      *metrics.Set
	latency  *metrics.PrometheusHistogram // seconds of one decision, failed ones included
	errors   [errorKinds]*metrics.Counter
	told     [errorKinds]atomic.Int64 // when one was logged last, in nanoseconds of Unix time
	noScript *metrics.Counter         // how often Redis had forgotten the script
	opened   *metrics.Counter         // how often a breaker opened
	// Decisions by who made them: Redis, a remembered denial, or a lease.
	byCall, byDenial, byLease *metrics.Counter
	refundsLost               *metrics.Counter // of decisions in two slots
}

// latencyBounds are in seconds: a healthy Redis in the same network answers
// within one millisecond, and the default time-out is 50.
var latencyBounds = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1}

func newRedisMetrics(s *RedisStore) *redisMetrics {
	set := metrics.NewSet()
	m := &redisMetrics{
		set:      set,
		latency:  set.NewPrometheusHistogramExt("r8limiter_store_latency_seconds", latencyBounds),
		noScript: set.NewCounter("r8limiter_store_noscript_total"),
		opened:   set.NewCounter("r8limiter_store_breaker_opened_total"),
		byCall:   set.NewCounter(`r8limiter_store_decisions_total{by="call"}`),
		byDenial: set.NewCounter(`r8limiter_store_decisions_total{by="denial"}`),
		byLease:  set.NewCounter(`r8limiter_store_decisions_total{by="lease"}`),

		refundsLost: set.NewCounter("r8limiter_store_refunds_lost_total"),
	}
	set.NewGauge("r8limiter_store_breaker_open", func() float64 { return float64(s.lanes.failing()) })
	set.NewGauge("r8limiter_lease_tokens", func() float64 { return float64(s.leases.tokens()) })
	for k := range errorKinds {
		m.errors[k] = set.NewCounter(fmt.Sprintf(`r8limiter_store_errors_total{kind=%q}`, k))
	}
	pool := func(name string, value func(*redis.PoolStats) uint32) {
		set.NewGauge(name, func() float64 { return float64(value(s.client.PoolStats())) })
	}
	pool(`r8limiter_store_connections{state="idle"}`, func(s *redis.PoolStats) uint32 { return s.IdleConns })
	pool(`r8limiter_store_connections{state="used"}`, func(s *redis.PoolStats) uint32 { return s.TotalConns - s.IdleConns })
	return m
}
