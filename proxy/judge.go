package proxy

import (
	"errors"
	"net/netip"

	"github.com/valyala/fasthttp"

	"github.com/r8limiter/r8limiter/limiter"
)

// Asked is a request that rules are asked about without any connection: one that
// another proxy has, one of a log, or one that an operator thinks of. The zero value
// is ready; it is used again after Reset, by one goroutine.
type Asked struct {
	// Method, Target and Host are as a client sends them: the target is the path with
	// the query, the host may have a port. Host may be empty, as for HTTP/1.0.
	Method, Target, Host []byte
	// Peer is who connected. Where it is a trusted proxy the client is who
	// X-Forwarded-For says.
	Peer netip.Addr
	// Believed says that the peer is believed whether it is a trusted proxy or not.
	Believed bool
	// Secure says that the request came over TLS.
	Secure bool

	request request
	ids     []byte
	claims  []givenClaim
}

// givenClaim is what a token would say.
type givenClaim struct{ name, value string }

// Reset forgets everything but the memory.
func (a *Asked) Reset() {
	a.request.forget()
	*a = Asked{request: a.request, ids: a.ids, claims: a.claims[:0]}
}

// AddField adds a header field, which is read until Reset. Host is not one of them.
func (a *Asked) AddField(name, value []byte) {
	a.request.fields = append(a.request.fields, field{name, value})
}

// SetClaim says what {jwt.NAME} is: the request is judged as if it had a token that
// verifies and says no more than what was set.
func (a *Asked) SetClaim(name string, value []byte) {
	a.claims = append(a.claims, givenClaim{name, string(value)})
}

// claimed is a token that says what is given; nil where nobody reads tokens.
func (v *jwtVerifier) claimed(given []givenClaim) *verifiedToken {
	if v == nil {
		return nil
	}
	t := &verifiedToken{values: make([]claimValue, len(v.claims))}
	for i := range v.claims {
		for _, g := range given {
			if g.name == v.claims[i].name {
				t.values[i].text = g.value
			}
		}
	}
	return t
}

// Judgement is what rules say about a request, before the limiter is asked.
type Judgement struct {
	// Refused says why the gateway answers by itself, with Status: the request is
	// amiss, no route matches, or the route blocks. nil otherwise.
	Refused error
	Status  int
	// Challenge is the value of the answer's WWW-Authenticate; "" for none.
	Challenge string
	// Index and Route are those of the route that matched; -1 and "" for none.
	Index int
	Route string
	// Charged says that the limiter is asked: neither bypass nor a CORS preflight.
	Charged bool
	// Ask is what the limiter is asked. Its bytes are the Asked's, until it is judged or
	// reset again.
	Ask limiter.Request
	// Outcomes counts the route's decisions; nil for no route, and in rules that no
	// Proxy has put in force.
	Outcomes *limiter.Outcomes
}

// Judge says what becomes of a request, as the proxy listener would: the same route,
// user, resource, plan and cost. It changes a's memory only.
func (rs *Rules) Judge(a *Asked, j *Judgement) {
	*j = Judgement{Index: -1}
	if err := rs.judge(a, j); err != nil {
		j.Refused, j.Status = err, statusOf(err)
		if f, ok := errors.AsType[*authFault](err); ok {
			j.Challenge = f.challenge
		}
	}
}

func (rs *Rules) judge(a *Asked, j *Judgement) error {
	r := &a.request
	if err := rs.read(a); err != nil {
		return err
	}
	rt, err := rs.find(r)
	switch {
	case err != nil:
		return err
	case rt == nil:
		return errNoRoute
	}
	r.route = rt
	j.Index, j.Route = rt.index, rt.name
	if rt.metrics != nil {
		j.Outcomes = rt.metrics.outcomes
	}
	switch {
	case rt.action == blockAction:
		return errBlocked
	case rt.action == bypassAction || r.isPreflight():
		return nil
	}
	j.Charged, j.Ask.Limits = true, rs.limits
	if len(a.claims) > 0 {
		r.token = rs.jwt.claimed(a.claims)
	} else if err := rs.authenticate(r); err != nil {
		return err
	}
	a.ids, err = r.identify(a.ids[:0], &j.Ask)
	return err
}

// read holds a to what the head of a request is held to, as far as it has one.
func (rs *Rules) read(a *Asked) error {
	r := &a.request
	r.scratch, r.version, r.secure = r.scratch[:0], 11, a.Secure
	if len(a.Host) == 0 {
		r.version = 10
	}
	r.method, r.hostport = a.Method, a.Host
	switch {
	case !isToken(r.method):
		return badRequest("the method is no token")
	case string(r.method) == "CONNECT":
		return errConnect
	}
	for i := range r.fields {
		if f := &r.fields[i]; !isToken(f.name) || !isFieldValue(f.value) {
			return badRequest("a header field has no proper name, or holds control characters")
		}
	}
	if err := r.parseTarget(a.Target); err != nil {
		return err
	}
	if err := r.parseHost(); err != nil {
		return err
	}
	r.peer = a.Peer.Unmap().WithZone("")
	if a.Believed {
		r.client = forwardedFor(r, r.peer, rs.trusted)
		return nil
	}
	r.client, r.trusted = clientAddress(r, rs.trusted)
	return nil
}

// statusOf is the status of the answer to a request that was refused for err.
func statusOf(err error) int {
	switch err {
	case errNoRoute:
		return fasthttp.StatusNotFound
	case errBlocked:
		return fasthttp.StatusForbidden
	}
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.status
	}
	if f, ok := errors.AsType[*authFault](err); ok {
		return f.status
	}
	return fasthttp.StatusBadRequest
}
