package limiter

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/rs/zerolog"
)

const (
	// pollEvery is how often a gateway asks whether the settings changed; every
	// other time it also flushes its figures. Changes are pushed too: this is for
	// those that the push missed, and still within the second that is promised.
	pollEvery = 400 * time.Millisecond
	// settleEvery is how soon after the store is back what is owed is debited.
	settleEvery = 100 * time.Millisecond
	// fleetTimeout bounds one exchange with the fleet's store.
	fleetTimeout = 2 * time.Second
)

// fleetSync is a gateway's part in the fleet: it sends figures and takes in
// settings, in the background.
type fleetSync struct {
	gateway string
	stop    context.CancelFunc // nil until Start
	running sync.WaitGroup

	mu      sync.Mutex    // one flush or refresh at a time
	pending chan struct{} // a push came

	flushErrors, settingsErrors *metrics.Counter
	set                         *metrics.Set
}

func (y *fleetSync) init() {
	host, _ := os.Hostname() // what stays "" is still unique
	y.gateway = fmt.Sprintf("%s-%08x", host, rand.Uint32())
	y.pending = make(chan struct{}, 1)
	y.set = metrics.NewSet()
	y.flushErrors = y.set.NewCounter("r8limiter_figures_flush_errors_total")
	y.settingsErrors = y.set.NewCounter("r8limiter_settings_errors_total")
}

// Start takes in what operators changed before, and keeps up with the fleet
// until Close. The error says why nothing could be taken in yet; it is tried
// again all the time, and until then the file alone holds.
func (l *Limiter) Start(ctx context.Context, log zerolog.Logger) error {
	err := l.refresh(ctx)
	background, stop := context.WithCancel(context.Background())
	l.sync.stop = stop
	l.sync.running.Go(func() { l.keepUp(background) })
	l.sync.running.Go(func() { l.fleet.Watch(background, l.sync.push) })
	l.sync.running.Go(func() { l.store.Run(background, log) })
	l.sync.running.Go(func() { l.keepSettling(background) })
	return err
}

// keepSettling debits what is owed, until ctx ends.
func (l *Limiter) keepSettling(ctx context.Context) {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.settle(ctx)
			if turn%50 == 0 {
				l.local.ActiveKeys() // which forgets what is full, and gives memory back
			}
		}
	}
}

// end stops what Start began. The last figures have been sent then.
func (y *fleetSync) end() {
	if y.stop != nil {
		y.stop()
		y.running.Wait()
	}
}

// push says that the settings changed.
func (y *fleetSync) push() {
	select {
	case y.pending <- struct{}{}:
	default: // one is waiting already
	}
}

// keepUp polls, flushes and takes in, until ctx ends.
func (l *Limiter) keepUp(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for flush := true; ; flush = !flush {
		select {
		case <-ctx.Done():
			// What was counted and not yet sent is not lost with us.
			l.withFleet(func(ctx context.Context) error {
				_, err := l.flushWith(ctx, offenderShards*offendersPerShard)
				return err
			})
			return
		case <-l.sync.pending:
			l.withFleet(l.refresh)
		case <-tick.C:
			l.withFleet(func(ctx context.Context) error { return l.poll(ctx, flush) })
		}
	}
}

// withFleet gives f its time. What went wrong was counted where it did.
func (l *Limiter) withFleet(f func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), fleetTimeout)
	defer cancel()
	_ = f(ctx)
}

// poll takes in the settings if their version is another, and flushes if told.
func (l *Limiter) poll(ctx context.Context, flush bool) error {
	ask := l.fleet.Version
	if flush {
		ask = l.flush
	}
	version, err := ask(ctx)
	if err != nil {
		if !flush { // a failed flush is counted as such
			l.sync.settingsErrors.Inc()
		}
		return err
	}
	if version == l.Current().inForce.Load().settings.Version {
		return nil
	}
	return l.refresh(ctx)
}

// refresh reads the settings and puts them in force.
func (l *Limiter) refresh(ctx context.Context) error {
	l.sync.mu.Lock() // of two, the later one reads and applies later
	defer l.sync.mu.Unlock()
	s, err := l.fleet.Settings(ctx)
	if err != nil {
		l.sync.settingsErrors.Inc()
		return fmt.Errorf("read persisted limits and overrides: %w", err)
	}
	l.changing.Lock()
	defer l.changing.Unlock()
	l.enforceLocked(l.Current(), settingsAt{s, time.Now()})
	l.store.Forget()
	return nil
}

// flush sends what was counted since the last one. What fails is lost, at most
// a second of statistics.
func (l *Limiter) flush(ctx context.Context) (version int64, err error) {
	return l.flushWith(ctx, flushedOffenders)
}

// flushWith sends that many offenders at most.
func (l *Limiter) flushWith(ctx context.Context, offenders int) (version int64, err error) {
	l.sync.mu.Lock()
	defer l.sync.mu.Unlock()
	f := Figures{Gateway: l.sync.gateway, At: time.Now(), Resources: l.unsent(), Offenders: l.offenders.take(offenders)}
	version, err = l.fleet.Flush(ctx, &f)
	if err != nil {
		l.sync.flushErrors.Inc()
		return 0, fmt.Errorf("flush figures: %w", err)
	}
	return version, nil
}

// unsent is what was counted since it was last called.
func (l *Limiter) unsent() (figures []ResourceFigures) {
	l.changing.Lock()
	defer l.changing.Unlock()
	l.foldLocked()
	for name, k := range *l.known.Load() {
		figures = k.counts.appendUnsent(figures, name)
	}
	// Resources that are not known count in the totals alone.
	return l.unknown.appendUnsent(figures, "")
}

// Stats are the totals of the fleet and its worst offenders in a window. The
// figures of this gateway are up to date in them, those of others up to a
// second old.
func (l *Limiter) Stats(ctx context.Context, w Window, n int) (Totals, []Offender, error) {
	offenders, err := l.Offenders(ctx, w, n)
	if err != nil {
		return Totals{}, nil, err
	}
	t, err := l.fleet.Totals(ctx)
	if err != nil {
		return Totals{}, nil, fmt.Errorf("read totals: %w", err)
	}
	return t, offenders, nil
}

// Offenders are the users with most denials in a window, most first.
func (l *Limiter) Offenders(ctx context.Context, w Window, n int) ([]Offender, error) {
	if _, err := l.flush(ctx); err != nil {
		return nil, err
	}
	offenders, err := l.fleet.Offenders(ctx, w, n)
	if err != nil {
		return nil, fmt.Errorf("read top offenders: %w", err)
	}
	return offenders, nil
}

// ResourceState is a resource, its limits here, and its figures in the fleet.
type ResourceState struct {
	ResourceFigures
	Source Source
	Limits []Limit // a name of "" is the resource's own
}

// Resources are all that are configured, persisted or were asked for, by name.
func (l *Limiter) Resources(ctx context.Context) ([]ResourceState, error) {
	if _, err := l.flush(ctx); err != nil {
		return nil, err
	}
	figures, err := l.fleet.Resources(ctx)
	if err != nil {
		return nil, fmt.Errorf("read resources: %w", err)
	}
	n, known := l.Current(), *l.known.Load()
	states := make([]ResourceState, 0, len(known)+len(figures))
	counted := map[string]bool{}
	for _, each := range figures {
		counted[each.Name] = true
		states = append(states, n.state(each))
	}
	for name := range known {
		if !counted[name] {
			states = append(states, n.state(ResourceFigures{Name: name}))
		}
	}
	slices.SortFunc(states, func(a, b ResourceState) int { return cmp.Compare(a.Name, b.Name) })
	return states, nil
}

// Resource is one of Resources; one that nobody knows has the default limits.
func (l *Limiter) Resource(ctx context.Context, name string) (ResourceState, error) {
	all, err := l.Resources(ctx)
	if err != nil {
		return ResourceState{}, err
	}
	for _, each := range all {
		if each.Name == name {
			return each, nil
		}
	}
	return l.Current().state(ResourceFigures{Name: name}), nil
}

func (n *Limits) state(figures ResourceFigures) ResourceState {
	if res, ok := n.inForce.Load().resources[figures.Name]; ok {
		return ResourceState{figures, res.source, res.rules.limits}
	}
	return ResourceState{figures, FromDefault, n.byDefault.limits}
}

// resourceNames are the resources known to any gateway.
func (l *Limiter) resourceNames(ctx context.Context) ([]string, error) {
	names := map[string]bool{}
	for name := range *l.known.Load() {
		names[name] = true
	}
	figures, err := l.fleet.Resources(ctx)
	if err != nil {
		return nil, fmt.Errorf("read resources: %w", err)
	}
	for _, each := range figures {
		names[each.Name] = true
	}
	return sortedKeys(names), nil
}

// writeMetrics writes the series of the fleet in Prometheus text format.
func (y *fleetSync) writeMetrics(w io.Writer, l *Limiter) {
	metrics.WriteCounterUint64(w, "r8limiter_figures_dropped_total", l.offenders.dropped.Load())
	metrics.WriteGaugeUint64(w, "r8limiter_settings_version", uint64(l.Current().inForce.Load().settings.Version))
	y.set.WritePrometheus(w)
}
