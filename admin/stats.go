package admin

import "github.com/valyala/fasthttp"

// stats is the answer to GET /admin/stats.
type stats struct {
	AllowedTotal uint64 `json:"allowed_total"`
	DeniedTotal  uint64 `json:"denied_total"`
	ActiveKeys   int    `json:"active_keys"`
}

// stats answers what this gateway has decided since it started and how many
// buckets it knows that are not full.
func (s *Server) stats(x *exchange) {
	if !x.takesNoParams() {
		return
	}
	allowed, denied := s.Limiter.Totals()
	x.answerJSON(stats{AllowedTotal: allowed, DeniedTotal: denied, ActiveKeys: s.Limiter.ActiveKeys()})
}

// takesNoParams refuses a query, lest someone believes that it had an effect.
func (x *exchange) takesNoParams() bool {
	name, _, _, ok := cutPair(x.query)
	if ok {
		x.refuse(fasthttp.StatusBadRequest, "unknown parameter "+quote(name)+": there are none here")
	}
	return !ok
}
