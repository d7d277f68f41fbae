package limiter

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// ruled is an admission and the limit that it went by.
type ruled struct {
	admission
	capacity, perSecond float64
}

// reloaded is a load while configurations change.
type reloaded struct {
	limits    [][2]string // capacities and rates, one after another
	precision string
	every     time.Duration // between two reloads
	pause     time.Duration // of a client, after what was admitted
	span      time.Duration
}

// saturate asks the gateways for more than any of the limits allows, reloads each
// of them at moments of its own all the time, and returns what was admitted.
func (r reloaded) saturate(t *testing.T, gateways []*Limiter) (all []ruled, reloads int) {
	var mu sync.Mutex
	var group sync.WaitGroup
	start := time.Now()
	for _, l := range gateways {
		group.Go(func() {
			for i := 1; time.Since(start) < r.span; i++ {
				l.Commit(l.Prepare(r.config(t, i)))
				mu.Lock()
				reloads++
				mu.Unlock()
				time.Sleep(r.every)
			}
		})
		for range 16 {
			group.Go(func() {
				for time.Since(start) < r.span {
					from := time.Since(start)
					d, err := l.ask("ann", "read", 1)
					if err != nil {
						t.Error(err)
						return
					}
					if !d.Allowed {
						time.Sleep(200 * time.Microsecond)
						continue
					}
					by := d.Limits[0]
					mu.Lock()
					all = append(all, ruled{admission{from, time.Since(start)}, float64(by.Capacity), by.Rate.PerSecond()})
					mu.Unlock()
					time.Sleep(r.pause)
				}
			})
		}
	}
	group.Wait()
	slices.SortFunc(all, func(a, b ruled) int { return int(a.from - b.from) })
	return all, reloads
}

func (r reloaded) config(t *testing.T, i int) Config {
	l := r.limits[i%len(r.limits)]
	return configOf(t, fmt.Sprintf("resources: {read: {capacity: %s, refill_rate: %s, precision: %s}}", l[0], l[1], r.precision))
}

// checkRuledWindows fails if any window admitted more than Commit promises: the
// largest capacity that a decision in it went by, and what the fastest of these
// rates brings in its time and in that of one token at the slowest, this only
// where they differ.
func checkRuledWindows(t *testing.T, all []ruled) {
	t.Helper()
	ends := slices.Clone(all)
	slices.SortFunc(ends, func(a, b ruled) int { return int(a.to - b.to) })
	for _, first := range all {
		n, capacity, fast, slow := 0, 0.0, first.perSecond, first.perSecond
		for _, a := range ends {
			if a.from < first.from {
				continue
			}
			n++
			capacity, fast, slow = max(capacity, a.capacity), max(fast, a.perSecond), min(slow, a.perSecond)
			most := capacity + fast*(a.to-first.from).Seconds()
			if fast > slow {
				most += fast / slow
			}
			if float64(n) > most {
				t.Fatalf("%d admitted in %v, at most %.1f may be: capacity %.0f, %.0f to %.0f a second", n, a.to-first.from, most, capacity, slow, fast)
			}
		}
	}
}

// TestNoWindowAdmitsMoreThanTheLargestLimitOfItAcrossReloads is the bound of
// Commit, under load, on gateways that reload each at its own time.
func TestNoWindowAdmitsMoreThanTheLargestLimitOfItAcrossReloads(t *testing.T) {
	capacities := [][2]string{{"50", "300/s"}, {"200", "300/s"}, {"10", "300/s"}, {"120", "300/s"}}
	large := [][2]string{{"3000", "1000/s"}, {"1500", "1000/s"}, {"4000", "1000/s"}}
	rates := [][2]string{{"100", "200/s"}, {"40", "400/s"}, {"100", "100/s"}}
	const often, seldom = 7 * time.Millisecond, 200 * time.Millisecond
	for _, test := range []struct {
		name           string
		load           reloaded
		reloads, least int // on each gateway, and tokens
	}{
		{"capacities", reloaded{capacities, "exact", often, 0, 1500 * time.Millisecond}, 40, 450},
		{"leased", reloaded{large, "leased", seldom, 5 * time.Millisecond, 2 * time.Second}, 5, 2000},
		{"rates", reloaded{rates, "exact", often, 0, 1500 * time.Millisecond}, 40, 150},
	} {
		check := func(t *testing.T, gateways []*Limiter) {
			all, reloads := test.load.saturate(t, gateways)
			t.Logf("%d admitted, %d reloads", len(all), reloads)
			if reloads < test.reloads*len(gateways) || len(all) < test.least {
				t.Errorf("%d admitted in %d reloads: too few to say anything", len(all), reloads)
			}
			checkRuledWindows(t, all)
		}
		t.Run("memory "+test.name, func(t *testing.T) {
			check(t, []*Limiter{startGateway(t, test.load.config(t, 0), NewMemoryStore())})
		})
		t.Run("redis "+test.name, func(t *testing.T) {
			server := startRedis(t)
			stores := gateways(t, server, 2)
			check(t, []*Limiter{startGateway(t, test.load.config(t, 0), stores[0]), startGateway(t, test.load.config(t, 1), stores[1])})
			if granted := stores[0].leases.granted.Load(); granted == 0 && test.load.precision == leased {
				t.Error("there was no lease: nothing was tested")
			}
		})
	}
}
