package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter/redistest"
	"github.com/redis/go-redis/v9/logging"
)

// allFaults says that all faults are tried, not only the quick ones, and that
// decisions are held to their deadline to the letter: `make test-faults`, which
// takes minutes and wants the machine for itself.
var allFaults = os.Getenv("FAULTS") == "all"

const (
	faultTimeout = 50 * time.Millisecond // limiter.redis.timeout, its default
	// faultGrace is what a decision may take beyond that, in 999 of 1000.
	faultGrace = 10 * time.Millisecond
	// faultSlack is what any may take beyond it where faultGrace is not tested: with
	// the race detector, and on processors that others use (see watchStalls).
	faultSlack = 100 * time.Millisecond
	// healsWithin is how long gateways may take to find that Redis works again.
	healsWithin = 2 * time.Second

	faultPace    = 2500 * time.Microsecond // between two requests: 400 a second
	faultClients = 16                      // of each gateway, each with a connection of its own
	faultFDs     = 32                      // connections to Redis that may be left more than before
	faultDials   = 10                      // connections a second that a gateway may try to a server while none works

	hotCapacity, hotRate = 20, 20 // of the one bucket that many requests are for
)

// faultRequests is how many requests a fault lasts for: with two thousand a
// thousandth is more than one.
func faultRequests() int {
	if allFaults {
		return 2000
	}
	return 400
}

// effect is what a fault does to decisions.
type effect int

const (
	fails  effect = iota // something stands in for Redis, for some time at least
	shakes               // now and then something does
	serves               // nothing ever does
)

// fault is something that happens to Redis while gateways ask it.
type fault struct {
	name    string
	effect  effect
	quick   bool     // it is tried without allFaults too
	wire    bool     // it is one of the relay, through which gateways ask then
	dark    bool     // no decision is answered, and connections can be counted
	options []string // of redis-server, where it is the only one
	// replicas is how many each primary of a cluster has.
	replicas int
	// loses is how often Redis may lose what was spent.
	loses int
	// splits says that gateways may use two primaries for a while, as one hears of
	// the new one before the other does: each admits what it may.
	splits bool
	// cuts says that requests spend whose answers don't arrive.
	cuts bool
	// prepare is called before there are gateways, begin when they serve, and end
	// after another second or more: it returns when Redis works. Without an end
	// the fault is over when begin returns.
	prepare, begin, end func(*faultRun)
}

// faultRun is one fault on its way.
type faultRun struct {
	fault
	t        *testing.T
	servers  []*redistest.Server // that may keep buckets; the first is the one that faults hit
	relay    *redistest.Relay    // nil where the fault is none of the wire
	sentinel *redistest.Sentinel // or nil
	cluster  *redistest.Cluster  // or nil
	gateways []*process
	clients  []*faultClient
	requests atomic.Int64 // so far, which numbers the buckets
	stalled  atomic.Int64 // see watchStalls
	started  time.Time
	dark0    time.Time // when the breakers were open,
	dials0   int       // and how often the relay had been dialed then
	stop     func()    // ends what begin began

	mu      sync.Mutex // guards answers
	answers []faultAnswer
}

// faultClient asks one gateway over one connection.
type faultClient struct {
	http    http.Client
	gateway *process
}

// faultAnswer is what a gateway answered about one bucket.
type faultAnswer struct {
	user, resource string
	status         int
	retryAfter     string
	at             time.Time // when it had come
	Degraded       string
}

// byRedis says whether Redis decided, now or, for a denial, in the second before.
func (a *faultAnswer) byRedis() bool { return a.Degraded == "" && a.status != 503 }

// key is the bucket's in Redis.
func (a *faultAnswer) key() string { return "r8:{" + a.user + "}:" + a.resource }

// follows says whether the answer is one that the resource's policy, which is
// its name, allows while Redis fails.
func (a *faultAnswer) follows() bool {
	switch {
	case a.status == 200 && a.Degraded == "", a.status == 429 && a.resource == "hot":
		return true
	case a.resource == "deny", a.resource == "hot":
		return a.status == 503 && a.retryAfter == "1"
	}
	return a.status == 200 && a.Degraded == a.resource
}

// config is the gateways' configuration on a Redis. The first three
// resources are named for their policies.
func (r *faultRun) config(redis string) string {
	return fmt.Sprintf(`
limiter:
  resources:
    deny: {capacity: 10, refill_rate: 1/h, on_store_error: deny}
    local: {capacity: 10, refill_rate: 1/h, on_store_error: local}
    allow: {capacity: 10, refill_rate: 1/h, on_store_error: allow}
    hot: {capacity: %d, refill_rate: %d/s, on_store_error: deny}
  redis: {%s, timeout: %v}
admin: {listen: "127.0.0.1:0"}
log: {requests: all}
`, hotCapacity, hotRate, redis, r.timeout())
}

// timeout is limiter.redis.timeout. Where nothing may stand in for Redis, it is
// long enough to be none of that on processors that others use.
func (r *faultRun) timeout() time.Duration {
	if r.effect == serves && !allFaults {
		return 5 * time.Second
	}
	return faultTimeout
}

// tryFaults tries those of the faults that are to be tried.
func tryFaults(t *testing.T, faults []fault, open func(*faultRun) (redis string)) {
	logging.Disable() // of go-redis, which notes each of our own lost connections
	for _, f := range faults {
		if f.quick || allFaults {
			t.Run(f.name, func(t *testing.T) {
				r := &faultRun{fault: f, t: t}
				r.start(open(r))
				r.run()
			})
		}
	}
}

// start starts two gateways, and clients that are connected to them.
func (r *faultRun) start(redis string) {
	r.t.Helper()
	if r.prepare != nil {
		r.prepare(r)
	}
	for range 2 {
		p := startProcess(r.t, r.config(redis))
		p.awaitReady(r.t)
		r.gateways = append(r.gateways, p)
	}
	for i := range 2 * faultClients {
		c := &faultClient{gateway: r.gateways[i%2], http: http.Client{Transport: &http.Transport{}}}
		r.t.Cleanup(c.http.CloseIdleConnections)
		r.clients = append(r.clients, c)
		resp, err := c.http.Get(c.gateway.control + "/livez")
		if err != nil {
			r.t.Fatal(err)
		}
		drop(resp)
	}
	r.started = time.Now()
}

// drop reads what is left of an answer, so that its connection is used again.
func drop(resp *http.Response) {
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

// run has the fault happen and checks all that must hold.
func (r *faultRun) run() {
	defer r.watchStalls()()
	r.load(200)
	r.checkServed("before the fault", 0)
	before := r.holdings()
	from := len(r.answers)
	r.begin(r)
	if r.end != nil {
		r.countDials()
		r.load(faultRequests())
		r.checkDials()
		r.end(r)
	}
	healed := r.awaitHealed()
	until := len(r.answers)
	r.load(100)
	r.checkServed("afterwards", until)
	r.load(max(0, faultRequests()-len(r.answers))) // for a thousandth to be some
	r.awaitSettled()
	r.checkEffect(r.answers[from:until])
	r.checkPolicy()
	r.checkSpends()
	r.checkHot()
	r.checkUsage(before)
	r.checkEnd()
	r.checkDeadline(healed)
}

// watchStalls notes for how long at most this process, which does almost nothing,
// waited for a processor, until it is told to stop: so long may a gateway have.
func (r *faultRun) watchStalls() (stop func()) {
	over := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		const each = 5 * time.Millisecond
		tick := time.NewTicker(each)
		defer tick.Stop()
		for last := time.Now(); ; last = time.Now() {
			select {
			case <-over:
				return
			case <-tick.C:
				r.stalled.Store(max(r.stalled.Load(), int64(time.Since(last)-each)))
			}
		}
	})
	return func() {
		close(over)
		watching.Wait()
	}
}

// load sends n requests, one each faultPace, or later where all clients still wait
// for an answer.
func (r *faultRun) load(n int) {
	turns := make(chan int64)
	var clients sync.WaitGroup
	for _, c := range r.clients {
		clients.Go(func() {
			for i := range turns {
				r.ask(c, fmt.Sprint("k", i), [...]string{"deny", "local", "allow", "hot"}[i%4])
			}
		})
	}
	pace := time.NewTicker(faultPace)
	defer pace.Stop()
	for range n {
		<-pace.C
		turns <- r.requests.Add(1)
	}
	close(turns)
	clients.Wait()
}

// until goes on with the load until something holds.
func (r *faultRun) until(what string, holds func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); r.load(4) {
		if time.Now().After(deadline) {
			r.t.Fatalf("it never came to be that %s", what)
		}
	}
}

// during goes on with the load until f returns.
func (r *faultRun) during(f func()) {
	var over atomic.Bool
	var loading sync.WaitGroup
	loading.Go(func() {
		for !over.Load() {
			r.load(10)
		}
	})
	defer loading.Wait()
	defer over.Store(true)
	f()
}

// ask asks for a token of a bucket and keeps the answer. All users of the hot
// resource are one.
func (r *faultRun) ask(c *faultClient, user, resource string) {
	a := faultAnswer{user: user, resource: resource}
	if resource == "hot" {
		a.user = "hot"
	}
	resp, err := c.http.Post(c.gateway.control+"/allow?user_id="+a.user+"&resource="+resource, "", nil)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer drop(resp)
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		r.t.Errorf("the answer to %s is no JSON: %v", a.key(), err)
	}
	a.status, a.retryAfter, a.at = resp.StatusCode, resp.Header.Get("Retry-After"), time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = append(r.answers, a)
}
