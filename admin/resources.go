package admin

import (
	"context"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// resourceState is one resource of GET /admin/resources.
type resourceState struct {
	Resource string         `json:"resource"`
	Source   limiter.Source `json:"source"` // config, persisted or default
	Limits   []limitState   `json:"limits"`
	Allowed  uint64         `json:"allowed"` // over all gateways
	Denied   uint64         `json:"denied"`
	LastSeen *time.Time     `json:"last_seen"` // null if it was never asked for
}

// limitState is one limit as it is in force.
type limitState struct {
	Limit      string `json:"limit"`
	Per        string `json:"per"`
	Shadow     bool   `json:"shadow,omitempty"`
	Capacity   int64  `json:"capacity"`
	RefillRate string `json:"refill_rate"`
}

// resources answers GET /admin/resources.
func (s *Server) resources(x *exchange) {
	if !x.takesNoParams() {
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	states, err := s.resourceStates(ctx)
	if err != nil {
		x.storeTrouble(err)
		return
	}
	x.answerJSON(struct {
		Resources []resourceState `json:"resources"`
	}{states})
}

func (s *Server) resourceStates(ctx context.Context) ([]resourceState, error) {
	found, err := s.Limiter.Resources(ctx)
	if err != nil {
		return nil, err
	}
	states := make([]resourceState, len(found))
	for i := range found {
		states[i] = stateOf(&found[i])
	}
	return states, nil
}

func stateOf(r *limiter.ResourceState) resourceState {
	state := resourceState{Resource: r.Name, Source: r.Source, Allowed: r.Allowed, Denied: r.Denied}
	if !r.LastSeen.IsZero() {
		state.LastSeen = &r.LastSeen
	}
	for i := range r.Limits {
		l := &r.Limits[i]
		each := limitState{Limit: l.Name, Per: "user", Shadow: l.Shadow, Capacity: l.Capacity, RefillRate: l.Rate.String()}
		if each.Limit == "" {
			each.Limit = r.Name
		}
		if l.Scope == limiter.PerResource {
			each.Per = "resource"
		}
		state.Limits = append(state.Limits, each)
	}
	return state
}

// answerResource shows one resource after a change.
func (s *Server) answerResource(x *exchange, name string) {
	ctx, cancel := x.fleetContext()
	defer cancel()
	r, err := s.Limiter.Resource(ctx, name)
	if err != nil {
		x.storeTrouble(err)
		return
	}
	x.answerJSON(stateOf(&r))
}

// config answers GET /admin/config.
func (s *Server) config(x *exchange) {
	if x.takesNoParams() {
		x.answerJSON(s.settings.Load().terms.Config)
	}
}
