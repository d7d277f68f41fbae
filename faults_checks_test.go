package main

import (
	"encoding/binary"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

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
