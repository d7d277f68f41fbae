package admin

import (
	"fmt"
	"runtime"

	"github.com/VictoriaMetrics/metrics"
	"github.com/valyala/fasthttp"
)

// latencyBuckets are the upper bounds, in seconds, of request_latency_seconds.
// They begin where a decision in memory is and end where clients have given up.
var latencyBuckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// metrics answers GET /metrics. Prometheus 3 refuses an answer that doesn't
// name the format's version.
func (s *Server) metrics(x *exchange) {
	e := expositions.Get().(*exposition)
	w := &e.raw
	for _, write := range s.Metrics {
		write(w)
	}
	s.Limiter.WriteMetrics(w)
	s.set.WritePrometheus(w)
	metrics.WriteProcessMetrics(w)
	metrics.WriteFDMetrics(w)
	fmt.Fprintf(w, "r8limiter_build_info{version=%q,go=%q} 1\n", s.Version, runtime.Version())
	r := &x.ctx.Response
	r.Header.SetContentType("text/plain; version=0.0.4; charset=utf-8")
	r.SetBody(e.text())
	r.SetStatusCode(fasthttp.StatusOK)
	e.end()
}
