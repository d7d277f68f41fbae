package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/r8limiter/r8limiter/limiter/redistest"
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

// checkServed fails where Redis did not decide in the answers from one on. Where
// others use the processors a decision may be late at any time.
func (r *faultRun) checkServed(when string, from int) {
	r.t.Helper()
	if !allFaults {
		return
	}
	if a := r.stoodIn(r.answers[from:]); len(a) > 0 {
		r.t.Fatalf("%s, %d decisions of %d were not made by Redis, the first: %+v", when, len(a), len(r.answers)-from, a[0])
	}
}

// stoodIn are the answers that Redis had no part in.
func (r *faultRun) stoodIn(answers []faultAnswer) (found []faultAnswer) {
	for _, a := range answers {
		if !a.byRedis() {
			found = append(found, a)
		}
	}
	return found
}

// checkEffect fails where the fault did not do what it is said to.
func (r *faultRun) checkEffect(answers []faultAnswer) {
	r.t.Helper()
	found := r.stoodIn(answers)
	if r.effect == serves && len(found) > 0 {
		r.t.Errorf("Redis did not make %d decisions of %d, the first: %+v", len(found), len(answers), found[0])
	}
	if r.effect != fails {
		return
	}
	for _, resource := range []string{"deny", "local", "allow"} {
		if !slices.ContainsFunc(found, func(a faultAnswer) bool { return a.resource == resource }) {
			r.t.Errorf("of %d decisions on %s none was made without Redis: nothing was tested", len(answers), resource)
		}
	}
}

// checkPolicy fails at answers that are not as configured.
func (r *faultRun) checkPolicy() {
	r.t.Helper()
	for _, a := range r.answers {
		if !a.follows() {
			r.t.Errorf("not as configured: %+v", a)
		}
	}
}

// awaitHealed waits until each gateway has its decisions from Redis again and says
// that it is ready, and returns how long that took.
func (r *faultRun) awaitHealed() time.Duration {
	r.t.Helper()
	start := time.Now()
	r.until("the gateways have found Redis again", func() bool {
		from := len(r.answers)
		r.load(24)
		return len(r.stoodIn(r.answers[from:])) == 0 && r.ready() && r.sum("r8limiter_store_breaker_open") == 0
	})
	took := time.Since(start)
	if took > healsWithin {
		r.t.Errorf("the gateways took %v to find Redis again, want at most %v", took, healsWithin)
	}
	return took
}

func (r *faultRun) ready() bool {
	for _, p := range r.gateways {
		if status(r.t, "GET", p.control+"/readyz") != 200 {
			return false
		}
	}
	return true
}

// awaitSettled waits until what was spent locally is debited in Redis.
func (r *faultRun) awaitSettled() {
	r.t.Helper()
	eventually(r.t, "what was spent locally is debited", func() bool { return r.sum("r8limiter_store_owed_buckets") == 0 })
}

// sum is a metric of all gateways.
func (r *faultRun) sum(name string) (sum float64) {
	for _, p := range r.gateways {
		sum += p.metric(r.t, name)
	}
	return sum
}

// checkSpends compares what was spent in Redis with the answers: a request spends
// once at most, and once where Redis decided. What was allowed locally is debited
// later, unless Redis was asked and may have spent it.
func (r *faultRun) checkSpends() {
	r.t.Helper()
	debts := r.debts()
	cut, locally := 0, 0
	for _, a := range r.answers {
		if a.resource == "hot" {
			continue
		}
		least := 0
		if r.loses == 0 && a.status == 200 && a.Degraded == "" {
			least = 1
		}
		debt := debts[a.key()]
		if a.Degraded == "local" {
			locally += debt
		}
		if debt < least || debt > 1 {
			r.t.Errorf("spent %d in Redis, want %d to 1: %+v", debt, least, a)
		}
		if debt == 1 && !a.byRedis() && a.Degraded != "local" {
			cut++
		}
	}
	if r.loses == 0 && locally == 0 && r.sum("r8limiter_store_owed_tokens_settled_total") > 0 {
		r.t.Error("nothing is debited of what was spent locally, though the gateways say so")
	}
	if r.cuts && cut == 0 {
		r.t.Error("no request spent whose answer was cut off: nothing was tested")
	}
}

// debts is what is missing from each bucket in Redis.
func (r *faultRun) debts() map[string]int {
	r.t.Helper()
	if r.sentinel != nil {
		eventually(r.t, "there is one primary", func() bool { return r.primaries() == 1 })
	}
	all := map[string]int{}
	for _, s := range r.servers {
		if !isPrimary(s) {
			continue
		}
		for _, key := range s.Do(r.t, "KEYS", "r8:{*}:*").([]any) {
			key := key.(string)
			if strings.HasPrefix(key, "r8:{!") {
				continue
			}
			// The state begins with the debt, see lua/decide.lua. It is nil where the
			// bucket has become full since.
			if state, ok := s.Do(r.t, "GET", key).(string); ok {
				all[key] += int(binary.BigEndian.Uint32([]byte(state)))
			}
		}
	}
	return all
}

// primaries is how many servers take themselves for one.
func (r *faultRun) primaries() (n int) {
	for _, s := range r.servers {
		if isPrimary(s) {
			n++
		}
	}
	return n
}

// checkHot compares what the one hot bucket let pass with what it may: never more
// than its capacity and refill, once the capacity for each loss of Redis, and the
// refill of each primary where there are two.
func (r *faultRun) checkHot() {
	r.t.Helper()
	allowed, denied, last := 0, 0, r.started
	for _, a := range r.answers {
		switch {
		case a.resource != "hot":
		case a.status == 200:
			allowed, last = allowed+1, a.at
		case a.status == 429:
			denied++
		}
	}
	sides := 1.0
	if r.splits {
		sides = 2
	}
	bound := float64(hotCapacity*(1+r.loses)) + sides*hotRate*last.Sub(r.started).Seconds()
	if float64(allowed) > bound {
		r.t.Errorf("the hot bucket let %d pass, want at most %.1f", allowed, bound)
	}
	if denied == 0 {
		r.t.Error("the hot bucket denied nothing: nothing was tested")
	}
}

// holdings are what a gateway has in hand.
type holdings struct{ goroutines, files, bytes float64 }

func (r *faultRun) holdings() (all []holdings) {
	for _, p := range r.gateways {
		all = append(all, holdings{
			p.metric(r.t, "go_goroutines"), p.metric(r.t, "process_open_fds"), p.metric(r.t, "process_resident_memory_bytes"),
		})
	}
	return all
}

// checkUsage waits until the gateways hold no more than before, but for
// connections to Redis, which are kept for a while.
func (r *faultRun) checkUsage(before []holdings) {
	r.t.Helper()
	var now []holdings
	defer func() { r.t.Logf("before %v, after %v", before, now) }()
	eventually(r.t, "goroutines and files are back", func() bool {
		now = r.holdings()
		for i, u := range now {
			if u.goroutines > before[i].goroutines+5 || u.files > before[i].files+faultFDs {
				return false
			}
		}
		return true
	})
	for i, u := range now {
		if u.bytes > before[i].bytes+64<<20 {
			r.t.Errorf("gateway %d takes %.0f bytes, before the fault %.0f", i, u.bytes, before[i].bytes)
		}
	}
}

// checkEnd fails where a gateway panicked, lost lines of its log, which are
// read afterwards, or does not end as it should.
func (r *faultRun) checkEnd() {
	r.t.Helper()
	for _, name := range []string{"r8limiter_panics_total", "r8limiter_log_dropped_total"} {
		if n := r.sum(name); n != 0 {
			r.t.Errorf("%s is %v", name, n)
		}
	}
	for _, p := range r.gateways {
		if code := p.stop(r.t, syscall.SIGINT); code != exitFine {
			lines := p.log.lines()
			r.t.Errorf("exit code %d, want 0: %s", code, lines[max(0, len(lines)-100):])
		}
	}
}

// checkDeadline fails where decisions took too long. It goes by the gateways' own
// logs: the client shares its processors with Redis and with both gateways, so
// what it measures is mostly its own turn; and no bound of the histogram of
// r8limiter_store_latency_seconds is at the deadline.
func (r *faultRun) checkDeadline(healed time.Duration) {
	r.t.Helper()
	took, longest := r.durations()
	if len(took) != len(r.answers) {
		r.t.Errorf("%d answers, but the logs tell of %d", len(r.answers), len(took))
	}
	slices.Sort(took)
	p999, most := took[(len(took)*999+999)/1000-1], took[len(took)-1]
	r.t.Logf("%d requests, %d without Redis, p99.9 %v, longest %v, stalled %v, healed after %v",
		len(took), len(r.stoodIn(r.answers)), p999, most, time.Duration(r.stalled.Load()).Round(time.Millisecond), healed.Round(time.Millisecond))
	if allFaults && p999 > faultTimeout+faultGrace {
		r.t.Errorf("99.9%% of the decisions took up to %v, want at most %v: %s", p999, faultTimeout+faultGrace, longest)
	}
	if bound := r.timeout() + faultSlack + time.Duration(r.stalled.Load()); !allFaults && most > bound {
		r.t.Errorf("a decision took %v, want at most %v: %s", most, bound, longest)
	}
}

// durations are how long the gateways say that their answers took, with the line
// about the longest.
func (r *faultRun) durations() (all []time.Duration, longest string) {
	for _, p := range r.gateways {
		for _, line := range p.log.lines() {
			var said struct {
				Path       string
				DurationMS float64 `json:"duration_ms"`
			}
			if err := json.Unmarshal([]byte(line), &said); err != nil {
				r.t.Fatalf("%v in %s", err, line)
			}
			if said.Path != "/allow" {
				continue
			}
			took := time.Duration(said.DurationMS * float64(time.Millisecond))
			if len(all) == 0 || took > slices.Max(all) {
				longest = line
			}
			all = append(all, took)
		}
	}
	return all, longest
}

// countDials begins to count connections, once the breakers are open.
func (r *faultRun) countDials() {
	if r.dark {
		r.until("the breakers are open", func() bool {
			return !slices.ContainsFunc(r.gateways, func(p *process) bool { return p.metric(r.t, "r8limiter_store_breaker_open") == 0 })
		})
		r.dark0, r.dials0 = time.Now(), r.dials()
	}
}

// checkDials fails where gateways storm a Redis that fails with connections.
func (r *faultRun) checkDials() {
	r.t.Helper()
	if !r.dark {
		return
	}
	dials := float64(r.dials() - r.dials0)
	perSecond := dials / time.Since(r.dark0).Seconds() / float64(len(r.gateways)*len(r.servers))
	r.t.Logf("%.1f connections a second from each gateway to each server", perSecond)
	if perSecond > faultDials {
		r.t.Errorf("each gateway opened %.1f connections a second to each server, want at most %d", perSecond, faultDials)
	}
}

// dials is how many connections were made so far, by others than gateways too.
func (r *faultRun) dials() (n int) {
	if r.relay != nil {
		return r.relay.Dials()
	}
	received := regexp.MustCompile(`total_connections_received:(\d+)`)
	for _, s := range r.servers {
		text := received.FindStringSubmatch(s.Do(r.t, "INFO", "stats").(string))
		of, err := strconv.Atoi(text[1])
		if err != nil {
			r.t.Fatal(err)
		}
		n += of
	}
	return n
}
