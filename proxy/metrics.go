package proxy

import (
	"fmt"
	"io"
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
}

// problemStatuses are those of our own answers.
var problemStatuses = []int{400, 401, 403, 404, 405, 408, 413, 414, 417, 431, statusClientLeft, 500, 502, 503, 504, 505}

func newProxyMetrics() *proxyMetrics {
	m := &proxyMetrics{set: metrics.NewSet(), problems: map[int]*metrics.Counter{}}
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
	latency  *metrics.PrometheusHistogram
	overhead *metrics.PrometheusHistogram
	outcomes *limiter.Outcomes
}

func newRouteMetrics(set *metrics.Set, name string, outcomes *limiter.Outcomes) *routeMetrics {
	return &routeMetrics{
		latency:  set.NewPrometheusHistogramExt(fmt.Sprintf(`request_latency_seconds{endpoint=%q}`, name), latencyBuckets),
		overhead: set.NewPrometheusHistogramExt(fmt.Sprintf(`r8limiter_overhead_seconds{endpoint=%q}`, name), latencyBuckets),
		outcomes: outcomes,
	}
}

// upstreamMetrics are the series of one upstream.
type upstreamMetrics struct {
	byClass [6]*metrics.Counter // by the first digit of the status
	faults  [faultCount]*metrics.Counter
	latency *metrics.PrometheusHistogram
	retries *metrics.Counter
}

func newUpstreamMetrics(set *metrics.Set, name string, u *upstream) *upstreamMetrics {
	m := &upstreamMetrics{latency: set.NewPrometheusHistogramExt(fmt.Sprintf(`r8limiter_upstream_latency_seconds{upstream=%q}`, name), latencyBuckets)}
	for class := 2; class < len(m.byClass); class++ {
		m.byClass[class] = set.NewCounter(fmt.Sprintf(`r8limiter_upstream_requests_total{upstream=%q,code="%dxx"}`, name, class))
	}
	for f := range faultCount {
		m.faults[f] = set.NewCounter(fmt.Sprintf(`r8limiter_upstream_errors_total{upstream=%q,kind=%q}`, name, f))
	}
	m.retries = set.NewCounter(fmt.Sprintf(`r8limiter_upstream_retries_total{upstream=%q}`, name))
	if !u.echo {
		set.NewGauge(fmt.Sprintf(`r8limiter_upstream_connections{upstream=%q,state="open"}`, name), func() float64 { return float64(u.openConns()) })
		set.NewGauge(fmt.Sprintf(`r8limiter_upstream_connections{upstream=%q,state="idle"}`, name), func() float64 { return float64(u.idleConns()) })
		set.NewGauge(fmt.Sprintf(`r8limiter_upstream_targets{upstream=%q,state="healthy"}`, name), func() float64 { return float64(len(u.targets) - u.ejectedTargets()) })
		set.NewGauge(fmt.Sprintf(`r8limiter_upstream_targets{upstream=%q,state="ejected"}`, name), func() float64 { return float64(u.ejectedTargets()) })
	}
	return m
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
	p.metrics.set.WritePrometheus(w)
	metrics.WriteGaugeUint64(w, `r8limiter_connections{listener="proxy"}`, uint64(p.server.connections()))
	metrics.WriteGaugeUint64(w, "r8limiter_jwt_keys", uint64(p.jwt.keys()))
}
