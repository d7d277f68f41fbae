package proxy

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/r8limiter/r8limiter/limiter"
)

// latencyBuckets are upper bounds in seconds.
var latencyBuckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

type proxyMetrics struct {
	set    *metrics.Set
	panics *metrics.Counter
	// problems counts the answers of our own by status; see problemStatuses.
	problems map[int]*metrics.Counter
	jwt      *jwtMetrics

	mu        sync.Mutex // guards what follows
	routes    map[string]*routeMetrics
	upstreams map[string]*upstreamMetrics
}

// problemStatuses are those of our own answers.
var problemStatuses = []int{400, 401, 403, 404, 405, 408, 413, 414, 417, 431, statusClientLeft, 500, 502, 503, 504, 505}

func newProxyMetrics() *proxyMetrics {
	m := &proxyMetrics{
		set: metrics.NewSet(), problems: map[int]*metrics.Counter{},
		routes: map[string]*routeMetrics{}, upstreams: map[string]*upstreamMetrics{},
	}
	m.panics = m.set.NewCounter(`r8limiter_panics_total{listener="proxy"}`)
	m.jwt = newJWTMetrics(m.set)
	for _, status := range problemStatuses {
		m.problems[status] = m.set.NewCounter(fmt.Sprintf(`r8limiter_problems_total{status="%d"}`, status))
	}
	return m
}

// routeMetrics are the series of one route. latency is from the end of the
// head to the end of the answer; overhead is that without the upstream's part.
type routeMetrics struct {
	set      *metrics.Set
	latency  *metrics.PrometheusHistogram
	overhead *metrics.PrometheusHistogram
	outcomes *limiter.Outcomes
}

func newRouteMetrics(name string, outcomes *limiter.Outcomes) *routeMetrics {
	set := metrics.NewSet()
	return &routeMetrics{
		set:      set,
		latency:  set.NewPrometheusHistogramExt(fmt.Sprintf(`request_latency_seconds{endpoint=%q}`, name), latencyBuckets),
		overhead: set.NewPrometheusHistogramExt(fmt.Sprintf(`r8limiter_overhead_seconds{endpoint=%q}`, name), latencyBuckets),
		outcomes: outcomes,
	}
}

// dress gives the routes and upstreams of rs, which nobody uses yet, their series:
// those of old for the names that go on.
func (m *proxyMetrics) dress(rs *Rules, p *Proxy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, rt := range rs.routes {
		if m.routes[rt.name] == nil {
			m.routes[rt.name] = newRouteMetrics(rt.name, p.options.Limiter.Outcomes(rt.name))
		}
		rt.metrics = m.routes[rt.name]
	}
	for name, u := range rs.upstreams {
		if m.upstreams[name] == nil {
			m.upstreams[name] = newUpstreamMetrics(name)
		}
		if u.metrics == nil { // else it is in use already, and has just these
			u.metrics = m.upstreams[name]
		}
	}
}

// forget drops the series of what rs has no more.
func (m *proxyMetrics) forget(rs *Rules, l *limiter.Limiter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := map[string]bool{}
	for _, rt := range rs.routes {
		used[rt.name] = true
	}
	for name := range m.routes {
		if !used[name] {
			delete(m.routes, name)
			l.DropOutcomes(name)
		}
	}
	for name := range m.upstreams {
		if rs.upstreams[name] == nil {
			delete(m.upstreams, name)
		}
	}
}

// upstreamMetrics are the series of one upstream.
type upstreamMetrics struct {
	set     *metrics.Set
	byClass [6]*metrics.Counter // by the first digit of the status
	faults  [faultCount]*metrics.Counter
	latency *metrics.PrometheusHistogram
	retries *metrics.Counter
}

func newUpstreamMetrics(name string) *upstreamMetrics {
	set := metrics.NewSet()
	m := &upstreamMetrics{set: set, latency: set.NewPrometheusHistogramExt(fmt.Sprintf(`r8limiter_upstream_latency_seconds{upstream=%q}`, name), latencyBuckets)}
	for class := 2; class < len(m.byClass); class++ {
		m.byClass[class] = set.NewCounter(fmt.Sprintf(`r8limiter_upstream_requests_total{upstream=%q,code="%dxx"}`, name, class))
	}
	for f := range faultCount {
		m.faults[f] = set.NewCounter(fmt.Sprintf(`r8limiter_upstream_errors_total{upstream=%q,kind=%q}`, name, f))
	}
	m.retries = set.NewCounter(fmt.Sprintf(`r8limiter_upstream_retries_total{upstream=%q}`, name))
	return m
}

// writeState writes what an upstream has of connections and targets now.
func (u *upstream) writeState(w io.Writer, name string) {
	if u.echo {
		return
	}
	ejected := u.ejectedTargets()
	for _, g := range []struct {
		family, state string
		value         int
	}{
		{"connections", "open", u.openConns()}, {"connections", "idle", u.idleConns()},
		{"targets", "healthy", len(u.targets) - ejected}, {"targets", "ejected", ejected},
	} {
		metrics.WriteGaugeUint64(w, fmt.Sprintf(`r8limiter_upstream_%s{upstream=%q,state=%q}`, g.family, name, g.state), uint64(g.value))
	}
}

func (m *upstreamMetrics) answered(status int, took time.Duration) {
	if class := status / 100; class >= 2 && class < len(m.byClass) {
		m.byClass[class].Inc()
	}
	m.latency.Update(took.Seconds())
}

// retried counts one more attempt; on nil it does nothing.
func (m *upstreamMetrics) retried() {
	if m != nil {
		m.retries.Inc()
	}
}

func (m *upstreamMetrics) failed(f fault) { m.faults[f].Inc() }

// WriteMetrics writes the proxy's series in Prometheus text format.
func (p *Proxy) WriteMetrics(w io.Writer) {
	m := p.metrics
	m.set.WritePrometheus(w)
	m.writeNamed(w)
	rs := p.rules.Load()
	for _, name := range sortedKeys(rs.upstreams) {
		rs.upstreams[name].writeState(w, name)
	}
	metrics.WriteGaugeUint64(w, `r8limiter_connections{listener="proxy"}`, uint64(p.server.connections()))
	metrics.WriteGaugeUint64(w, "r8limiter_jwt_keys", uint64(rs.jwt.keys()))
}

// writeNamed writes the series of routes and upstreams, each by their names.
func (m *proxyMetrics) writeNamed(w io.Writer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range sortedKeys(m.routes) {
		m.routes[name].set.WritePrometheus(w)
	}
	for _, name := range sortedKeys(m.upstreams) {
		m.upstreams[name].set.WritePrometheus(w)
	}
}
