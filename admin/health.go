package admin

import (
	"context"
	"encoding/json"
	"time"

	"github.com/valyala/fasthttp"
)

// probeTimeout is how long /readyz waits for the store. It is shorter than the
// time-outs that load balancers and Kubernetes commonly give a probe.
const probeTimeout = time.Second

// livez answers that the process can answer. It depends on nothing else: to
// restart it because Redis is down would help nobody.
func (s *Server) livez(x *exchange) {
	x.answer(fasthttp.StatusOK, []byte(`{"alive":true}`))
}

// readyz answers whether this gateway should get requests: it is not draining
// and a real decision on a key of its own succeeds in the store, or something
// stands in for it that the configuration deems good enough.
func (s *Server) readyz(x *exchange) {
	if s.draining.Load() {
		x.unready("draining")
		return
	}
	// Not the RequestCtx: that is cancelled as soon as a shutdown begins.
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	err := s.Limiter.Probe(ctx)
	if err != nil && s.settings.Load().readyWhenDegraded && s.Limiter.StandsIn() {
		x.cause = err
		x.answerJSON(struct {
			Ready    bool   `json:"ready"`
			Degraded string `json:"degraded"`
		}{true, err.Error()})
		return
	}
	if err != nil {
		x.cause = err
		x.unready(err.Error())
		return
	}
	x.answer(fasthttp.StatusOK, []byte(`{"ready":true}`))
}

func (x *exchange) unready(reason string) {
	body, err := json.Marshal(struct {
		Ready  bool   `json:"ready"`
		Reason string `json:"reason"`
	}{false, reason})
	if err != nil {
		panic(err)
	}
	x.answer(fasthttp.StatusServiceUnavailable, body)
}
