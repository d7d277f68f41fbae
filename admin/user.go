package admin

import (
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/valyala/fasthttp"
)

// userState is the answer to GET /admin/user/{user_id}.
type userState struct {
	UserID    string        `json:"user_id"`
	Resources []bucketState `json:"resources"`
	// Overrides are those in force for the user; left out where there are none.
	Overrides []overrideState `json:"overrides,omitempty"`
}

// bucketState is one limit of one resource, as it is for a user.
type bucketState struct {
	Resource    string    `json:"resource"`
	Limit       string    `json:"limit"`
	Per         string    `json:"per,omitempty"`    // "resource" for a bucket that all users share
	Shadow      bool      `json:"shadow,omitempty"` // decides nothing
	Capacity    int64     `json:"capacity"`
	RefillRate  perSecond `json:"refill_rate_per_sec"`
	Tokens      tokens    `json:"tokens"`
	NextToken   seconds   `json:"next_token_seconds"` // until one token is there; 0 if it is
	FullyFilled seconds   `json:"full_refill_seconds"`
}

// user answers GET /admin/user/{user_id}: the buckets of that user in every
// resource that is configured or was seen, with the limits of ?plan=, or without
// any. It spends nothing.
func (s *Server) user(x *exchange) {
	var plan []byte
	err := x.params(map[string]func(string) error{"plan": func(v string) error {
		plan = []byte(v)
		return notEmpty([]byte("plan"), plan)
	}})
	if err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
		return
	}
	x.reserve(len(x.rest))
	id, err := x.decode(x.rest, '+')
	if err != nil {
		x.refuse(fasthttp.StatusBadRequest, "user_id: "+err.Error())
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	decisions, err := s.Limiter.User(ctx, id, plan)
	if err != nil {
		x.storeTrouble(err)
		return
	}
	state := userState{UserID: string(id), Resources: []bucketState{}, Overrides: allShown(s.Limiter.Overrides(string(id)))}
	for i := range decisions {
		state.Resources = appendStates(state.Resources, &decisions[i])
	}
	x.answerJSON(state)
}

func appendStates(states []bucketState, d *limiter.Decision) []bucketState {
	for i := range d.Limits {
		l := &d.Limits[i]
		state := bucketState{
			Resource:    string(d.Resource()),
			Limit:       string(d.AppendLimitName(nil, l)),
			Shadow:      l.Shadow,
			Capacity:    l.Capacity,
			RefillRate:  perSecond(l.Rate.PerSecond()),
			Tokens:      tokens(l.Level.Tokens(l.Capacity, l.Rate)),
			NextToken:   seconds(l.Level.Wait(1, l.Capacity, l.Rate)),
			FullyFilled: seconds(l.Level.Full(l.Rate)),
		}
		if l.Scope == limiter.PerResource {
			state.Per = "resource"
		}
		states = append(states, state)
	}
	return states
}
