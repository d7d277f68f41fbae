package proxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// field is one line of a head: the name as it was written, the value without
// the white space around it.
type field struct{ name, value []byte }

// maxTargets is how many targets an upstream may have: sets of them are the
// bits of a word.
const maxTargets = 64

// upstreamOptions describe one upstream. The time-outs and maxConns must be
// above zero.
type upstreamOptions struct {
	name string   // for messages
	urls []string // of the targets: http://host[:port], https://host[:port] or unix:/path
	// leastConn chooses the target with the fewest requests, in place of the next.
	leastConn bool
	// connectTimeout bounds the look-up of the host, connecting to it, and TLS.
	connectTimeout time.Duration
	// responseTimeout bounds the wait for the head, from when the request was sent.
	responseTimeout time.Duration
	// idleTimeout bounds the wait for the upstream between two steps of a body.
	idleTimeout time.Duration
	// maxConns is the number of connections to a target at most, in use and idle
	// together, and of the requests that wait for one.
	maxConns int
	// queueTimeout bounds the wait for one of maxConns; 0: nobody waits.
	queueTimeout time.Duration
	// retries is how often a request that certainly was not served is tried again.
	retries int
	// check says how targets are checked; nil: they are not.
	check *HealthCheckConfig
	// tls is for the targets with https; nil is the zero value.
	tls *UpstreamTLSConfig
	// log hears of targets that are ejected and return. The zero value is silent.
	log zerolog.Logger
}

// upstream spreads requests over targets that can all serve them. It is safe
// for concurrent use.
type upstream struct {
	upstreamOptions
	echo    bool // there is no server; the proxy answers itself
	metrics *upstreamMetrics
	host    []byte // the Host for a request that came without one: the first target's
	targets []*target

	next    atomic.Uint64 // counts choices
	ejected atomic.Uint64 // a bit for each target that is out

	config UpstreamConfig    // what it was made from, with defaults
	files  [sha256.Size]byte // of TLS, as they were read; see digest

	halt    context.CancelFunc // ends the keepers; nil before start
	keepers sync.WaitGroup     // what checks targets and follows their names
}

// newUpstream reads the targets and the files of TLS. It neither dials nor
// starts anything; start does.
func newUpstream(o upstreamOptions) (*upstream, error) {
	var problems []error
	u := buildUpstream(o, func(key, problem string) { problems = append(problems, fmt.Errorf("%s: %s", key[1:], problem)) })
	return u, errors.Join(problems...)
}

// echoTarget is the target that needs no server: it mirrors the request as JSON.
const echoTarget = "echo:"

// buildUpstream is newUpstream that reports what is wrong by the key's path
// below the upstream, beginning with a dot.
func buildUpstream(o upstreamOptions, report func(key, problem string)) *upstream {
	u := &upstream{upstreamOptions: o, host: []byte("localhost")}
	if len(u.urls) == 0 || len(u.urls) > maxTargets {
		report(".targets", fmt.Sprintf("needs 1 to %d targets", maxTargets))
		return u
	}
	u.echo = len(u.urls) == 1 && u.urls[0] == echoTarget
	if !u.echo {
		u.addTargets(report)
	}
	if isSecure := func(t *target) bool { return t.secure }; slices.ContainsFunc(u.targets, isSecure) {
		u.secure(report)
	} else if u.tls != nil {
		report(".tls", "is for targets with https://, of which there is none; write one, or leave tls out")
	}
	return u
}

func (u *upstream) addTargets(report func(key, problem string)) {
	for i, url := range u.urls {
		t, err := newTarget(u, url, i)
		if err == nil && slices.ContainsFunc(u.targets, t.isSame) {
			err = errors.New("is there twice; keep one of them")
		}
		if err != nil {
			report(fmt.Sprintf(".targets[%d]", i), fmt.Sprintf("%q: %v", withoutUser(url), err))
			continue
		}
		u.targets = append(u.targets, t)
	}
	if len(u.targets) > 0 {
		u.host = u.targets[0].host
	}
}

// withoutUser is a target's URL as messages show it: a user is refused, and its
// password is nobody's business.
func withoutUser(url string) string {
	at := strings.LastIndexByte(url, '@')
	if at < 0 {
		return url
	}
	scheme := ""
	if end := strings.Index(url[:at], "://"); end >= 0 {
		scheme = url[:end+len("://")]
	}
	return scheme + "(hidden)" + url[at:]
}

// isIdempotent says whether a request with this method, and no body, may be
// sent again where it is not known that nothing was done about it.
func isIdempotent(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS":
		return true
	}
	return false
}

// Errors of an upstream that sent nothing.
var (
	errUnhealthy = errors.New("no healthy target: all are ejected")
	errBusy      = errors.New("all connections that max_conns allows are in use")
	errClosed    = errors.New("the upstream is closed")
)

// again says where a request may be sent after an attempt that failed.
type again uint8

const (
	never     again = iota // it may have been served, or it was
	elsewhere              // by another target
	anywhere               // also by the same, over a new connection
)

// do sends a request and reads the head of its answer into in. The caller
// calls in.finish when it is done with in, also after an error. The error is
// always an *upstreamError.
//
// A request is sent again, up to retries times, only if the upstream can't have
// begun with it: no byte of it was written; or it went, idempotent, over a used
// connection that was closed without a byte of an answer, as is usual where
// the upstream's idea of an idle connection is shorter than ours.
func (u *upstream) do(out *outgoing, in *incoming) error {
	in.finish()
	t := u.pick(0)
	if t == nil {
		in.clear()
		return &upstreamError{faultUnhealthy, errUnhealthy}
	}
	from, tried := pooled, uint64(0)
	for n := 0; ; n++ {
		in.clear()
		out.target = t.url
		more, err := t.ask(out, in, from)
		if more == never || n >= u.retries {
			return err
		}
		tried |= t.bit
		if other := u.pick(tried); other != nil {
			t = other
		} else if more == elsewhere || u.ejected.Load()&t.bit != 0 {
			return err
		}
		if from = pooled; faultOf(err) == faultClosed {
			from = fresh // where one connection was closed the others may be
		}
		u.metrics.retried()
	}
}

// pick chooses a target that was not tried, or is nil if there is none. A
// target that is out and may be tried again goes first.
func (u *upstream) pick(tried uint64) *target {
	out := u.ejected.Load()
	if len(u.targets) == 1 {
		if tried != 0 || out != 0 {
			return nil
		}
		return u.targets[0]
	}
	if out &^= tried; out != 0 && u.check == nil {
		if t := u.due(out, time.Now()); t != nil {
			return t
		}
	}
	left := (1<<len(u.targets) - 1) &^ (out | tried)
	if u.leastConn {
		left = u.leastBusy(left)
	}
	n := bits.OnesCount64(left)
	if n == 0 {
		return nil
	}
	for range u.next.Add(1) % uint64(n) {
		left &= left - 1
	}
	return u.targets[bits.TrailingZeros64(left)]
}

// leastBusy is the subset of the targets with the fewest requests.
func (u *upstream) leastBusy(set uint64) (best uint64) {
	least := 0
	for ; set != 0; set &= set - 1 {
		t := u.targets[bits.TrailingZeros64(set)]
		switch load := t.load(); {
		case best == 0 || load < least:
			best, least = t.bit, load
		case load == least:
			best |= t.bit
		}
	}
	return best
}

// due takes out of the set a target whose time has come for one request.
func (u *upstream) due(set uint64, now time.Time) *target {
	for ; set != 0; set &= set - 1 {
		if t := u.targets[bits.TrailingZeros64(set)]; t.mayTry(now) {
			return t
		}
	}
	return nil
}

// start begins to check the targets and to follow their names, until close.
func (u *upstream) start() {
	ctx, halt := context.WithCancel(context.Background())
	u.halt = halt
	for _, t := range u.targets {
		if u.check != nil {
			u.keepers.Go(func() { t.watch(ctx) })
		}
		if t.isNamed() {
			u.keepers.Go(func() { t.follow(ctx, resolveInterval) })
		}
	}
}

// close ends the checks, closes the idle connections and sends away who waits;
// connections in use are closed when their response is finished. It is safe to
// call twice.
func (u *upstream) close() {
	if u.halt != nil {
		u.halt()
	}
	for _, t := range u.targets {
		t.close()
	}
	u.keepers.Wait()
}

// retire ends the checks and lets the connections go one by one: requests that
// chose this upstream before a reload are still served, over connections that are
// closed behind them. It waits for the checks to end.
func (u *upstream) retire() {
	u.halt()
	for _, t := range u.targets {
		t.retire()
	}
	u.keepers.Wait()
}

// release gives a clean connection back to its pool.
func (u *upstream) release(c *upstreamConn) { c.target.release(c) }

// discard closes a connection that is in use.
func (u *upstream) discard(c *upstreamConn) { c.target.discard(c) }

// openConns counts the connections, in use or idle.
func (u *upstream) openConns() int {
	n := 0
	for _, t := range u.targets {
		open, _ := t.conns()
		n += open
	}
	return n
}

// idleConns counts the connections that wait for a request.
func (u *upstream) idleConns() int {
	n := 0
	for _, t := range u.targets {
		_, idle := t.conns()
		n += idle
	}
	return n
}

// ejectedTargets counts the targets that get no requests.
func (u *upstream) ejectedTargets() int { return bits.OnesCount64(u.ejected.Load()) }
