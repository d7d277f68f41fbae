package admin

// Upstream is where the proxy sends requests, and how that fares at present.
type Upstream struct {
	Name    string   `json:"upstream"`
	Targets []Target `json:"targets"` // at least one
}

// Target is one server of an upstream.
type Target struct {
	URL         string `json:"target"`      // without credentials
	State       string `json:"state"`       // healthy or ejected
	Connections int    `json:"connections"` // open ones, in use or idle
	Idle        int    `json:"idle"`
}

// Of Target.State.
const (
	TargetHealthy = "healthy"
	TargetEjected = "ejected"
)

// upstreams is the answer to GET /admin/upstreams, of this gateway.
type upstreams struct {
	Upstreams []Upstream `json:"upstreams"`
}

// upstreams answers how each upstream fares; without a proxy there is none.
func (s *Server) upstreams(x *exchange) {
	if !x.takesNoParams() {
		return
	}
	all := []Upstream{}
	if s.Upstreams != nil {
		all = append(all, s.Upstreams()...)
	}
	x.answerJSON(upstreams{all})
}
