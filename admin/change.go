package admin

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/valyala/fasthttp"
)

// overrideBody is what PUT /admin/user/{user_id}/override takes: one of a
// limit for a resource, exempt, or block.
type overrideBody struct {
	Resource   string       `json:"resource"`
	Capacity   int64        `json:"capacity"`
	RefillRate limiter.Rate `json:"refill_rate"`
	Exempt     bool         `json:"exempt"`
	Block      bool         `json:"block"`
	TTL        string       `json:"ttl"`
	Reason     string       `json:"reason"`
}

// overrideState is an override as it is shown.
type overrideState struct {
	UserID     string   `json:"user_id"`
	Resource   string   `json:"resource,omitempty"`
	Capacity   int64    `json:"capacity,omitempty"`
	RefillRate string   `json:"refill_rate,omitempty"`
	Exempt     bool     `json:"exempt,omitempty"`
	Block      bool     `json:"block,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Left       *seconds `json:"seconds_left,omitempty"` // absent: for good
}

func shown(o *limiter.Override) overrideState {
	state := overrideState{
		UserID: o.User, Resource: o.Resource, Capacity: o.Capacity, RefillRate: o.RefillRate.String(),
		Exempt: o.Exempt, Block: o.Block, Reason: o.Reason,
	}
	if o.Left != 0 {
		left := seconds(o.Left)
		state.Left = &left
	}
	return state
}

func allShown(overrides []limiter.Override) []overrideState {
	states := make([]overrideState, len(overrides))
	for i := range overrides {
		states[i] = shown(&overrides[i])
	}
	return states
}

// overrides answers GET /admin/overrides: all that are in force.
func (s *Server) overrides(x *exchange) {
	if x.takesNoParams() {
		x.answerOverrides(s.Limiter.Overrides(""))
	}
}

func (x *exchange) answerOverrides(overrides []limiter.Override) {
	x.answerJSON(struct {
		Overrides []overrideState `json:"overrides"`
	}{allShown(overrides)})
}

// putOverride answers PUT /admin/user/{user_id}/override.
func (s *Server) putOverride(x *exchange) {
	user, ok := x.name("user_id")
	if !ok || !x.takesNoParams() {
		return
	}
	var body overrideBody
	if err := x.readJSON(&body); err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
		return
	}
	o := limiter.Override{
		User: user, Resource: body.Resource, Capacity: body.Capacity, RefillRate: body.RefillRate,
		Exempt: body.Exempt, Block: body.Block, Reason: body.Reason,
	}
	err := parseTTL(body.TTL, &o)
	if err == nil {
		err = o.Validate()
	}
	if err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	if x.changed(s.Limiter.SetOverride(ctx, o, s.actor(x)), "") {
		x.answerJSON(shown(&o))
	}
}

func parseTTL(text string, o *limiter.Override) error {
	if text == "" {
		return nil
	}
	ttl, err := time.ParseDuration(text)
	if err != nil || ttl <= 0 {
		return fmt.Errorf("ttl %s is not a duration: write a number and a unit, as in 10m or 24h", quote([]byte(text)))
	}
	o.Left = ttl
	return nil
}

// deleteOverride answers DELETE /admin/user/{user_id}/override?resource=.
func (s *Server) deleteOverride(x *exchange) {
	user, ok := x.name("user_id")
	resource, err := x.resourceParam()
	if !ok || x.refused(err) {
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	if x.changed(s.Limiter.DropOverrides(ctx, user, resource, s.actor(x)), "this user has no such override") {
		x.answerOverrides(s.Limiter.Overrides(user))
	}
}

// reset answers POST /admin/user/{user_id}/reset?resource=.
func (s *Server) reset(x *exchange) {
	user, ok := x.name("user_id")
	resource, err := x.resourceParam()
	if !ok || x.refused(err) {
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	names, err := s.Limiter.Reset(ctx, user, resource, s.actor(x))
	if x.changed(err, "") {
		x.answerJSON(struct {
			UserID string   `json:"user_id"`
			Reset  []string `json:"reset"` // resources whose buckets are full now
		}{user, append([]string{}, names...)}) // never null
	}
}

// putLimits answers PUT /admin/resources/{resource}.
func (s *Server) putLimits(x *exchange) {
	resource, ok := x.name("resource")
	if !ok || !x.takesNoParams() {
		return
	}
	if len(resource) > limiter.MaxName {
		x.refuse(fasthttp.StatusBadRequest, fmt.Sprintf("the resource is longer than %d bytes", limiter.MaxName))
		return
	}
	var c limiter.ResourceConfig
	err := x.readJSON(&c)
	if err == nil {
		err = c.Validate()
	}
	if x.refused(err) {
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	if x.changed(s.Limiter.SetLimits(ctx, resource, c, s.actor(x)), "") {
		s.answerResource(x, resource)
	}
}

// deleteLimits answers DELETE /admin/resources/{resource}.
func (s *Server) deleteLimits(x *exchange) {
	resource, ok := x.name("resource")
	if !ok || !x.takesNoParams() {
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	if x.changed(s.Limiter.DropLimits(ctx, resource, s.actor(x)), "this resource has no persisted limits: the file's are in force") {
		s.answerResource(x, resource)
	}
}

// audit answers GET /admin/audit?n=: who changed what, and when, newest first.
func (s *Server) audit(x *exchange) {
	n := 100
	err := x.params(map[string]func(string) error{"n": func(v string) error {
		if _, err := fmt.Sscanf(v, "%d", &n); err != nil || n < 1 || n > limiter.MaxAudit || fmt.Sprint(n) != v {
			return fmt.Errorf("n %s is not a whole number from 1 to %d", quote([]byte(v)), limiter.MaxAudit)
		}
		return nil
	}})
	if x.refused(err) {
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	entries, err := s.Limiter.Audit(ctx, n)
	if err != nil {
		x.storeTrouble(err)
		return
	}
	x.answerJSON(struct {
		Audit []limiter.AuditEntry `json:"audit"`
	}{append([]limiter.AuditEntry{}, entries...)})
}

// actor is who asks.
func (s *Server) actor(x *exchange) limiter.Actor {
	a := limiter.Actor{ClientIP: x.peer.String(), Auth: "loopback", RequestID: string(x.requestID())}
	if s.settings.Load().adminGuard.set {
		a.Auth = "token"
	}
	return a
}

// name is what the path names, a user or a resource. What is not UTF-8 can't be
// shown, nor told apart once it has been shown.
func (x *exchange) name(what string) (string, bool) {
	x.reserve(len(x.rest))
	name, err := x.decode(x.rest, '+')
	if err == nil && !utf8.Valid(name) {
		err = errors.New("it is not UTF-8")
	}
	if err != nil {
		x.refuse(fasthttp.StatusBadRequest, what+": "+err.Error())
		return "", false
	}
	return string(name), true
}

func (x *exchange) resourceParam() (resource string, err error) {
	err = x.params(map[string]func(string) error{"resource": func(v string) error {
		resource = v
		if v == "" || !utf8.ValidString(v) {
			return errors.New("parameter resource is empty or not UTF-8: leave it out for all resources")
		}
		return nil
	}})
	return resource, err
}

// refused answers 400 if there is an error.
func (x *exchange) refused(err error) bool {
	if err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
	}
	return err != nil
}

// changed answers what went wrong with a change, if anything. nothing is said
// where there was nothing to change.
func (x *exchange) changed(err error, nothing string) bool {
	switch {
	case err == nil:
		return true
	case errors.Is(err, limiter.ErrNothing):
		x.refuse(fasthttp.StatusNotFound, nothing)
	case errors.Is(err, limiter.ErrTooMany):
		x.refuse(fasthttp.StatusConflict, limiter.ErrTooMany.Error())
	default:
		x.storeTrouble(err)
	}
	return false
}
