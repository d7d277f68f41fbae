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
	// Direct says that it comes to the proxy listener itself: then it is also held to
	// what that bounds, the size of heads and bodies, and to how it frames them.
	Direct bool
	// ExcuseToken and ExcuseKey say that a token or an API key is not missed. What they
	// would say is empty.
	ExcuseToken, ExcuseKey bool

	request       request
	ids           []byte
	claims        []givenClaim
	hosted        bool // Host is among the fields
	authenticated bool // nothing is wrong with the credentials
}

// givenClaim is what a token would say.
type givenClaim struct{ name, value string }

// Reset forgets everything but the memory.
func (a *Asked) Reset() {
	a.request.forget()
	*a = Asked{request: a.request, ids: a.ids, claims: a.claims[:0]}
}

// AddField adds a header field, which is read until Reset. One called Host stands for
// Host, where that is empty.
func (a *Asked) AddField(name, value []byte) {
	if equalFold(name, "Host") {
		if len(a.Host) == 0 {
			a.Host = value
		}
		return
	}
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
	// LacksToken says that Refused is for want of a token, or of keys to verify one, or
	// for one that has expired; LacksKey that it is for want of an API key.
	LacksToken, LacksKey bool
	// Index and Route are those of the route that matched; -1 and "" for none.
	Index int
	Route string
	// Client is the client's address; invalid where it has none, or where the request is
	// too much amiss to tell.
	Client netip.Addr
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
			j.LacksToken = f == errNoToken || f == errExpired || f == errNoKeys
			j.LacksKey = rs.apiKeys != nil && f == rs.apiKeys.missing
		}
	}
}

func (rs *Rules) judge(a *Asked, j *Judgement) error {
	r := &a.request
	if err := rs.read(a); err != nil {
		return err
	}
	j.Client = r.client
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
	if err := rs.authenticateAsked(a); err != nil {
		return err
	}
	a.authenticated = true
	a.ids, err = r.identify(a.ids[:0], &j.Ask)
	return err
}

// authenticateAsked is authenticate, save for what a says of the credentials itself.
func (rs *Rules) authenticateAsked(a *Asked) error {
	r := &a.request
	if len(a.claims) > 0 || a.ExcuseToken {
		r.token = rs.jwt.claimed(a.claims)
	} else if err := rs.authenticateToken(r); err != nil {
		return err
	}
	if a.ExcuseKey {
		return nil
	}
	return rs.authenticateKey(r)
}

// read holds a to what the head of a request is held to, as far as it has one.
func (rs *Rules) read(a *Asked) error {
	r := &a.request
	r.scratch, r.version, r.secure = r.scratch[:0], 11, a.Secure
	switch {
	case len(a.Host) == 0:
		r.version = 10
	case !a.hosted:
		r.fields, a.hosted = append(r.fields, field{hostName, a.Host}), true
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
	if a.Direct {
		if err := r.checkDirect(a.Target, &rs.client); err != nil {
			return err
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

// checkDirect holds r to what the proxy listener bounds, and its framing.
func (r *request) checkDirect(target []byte, l *LimitsConfig) error {
	size := len(r.method) + len(target) + len("  HTTP/1.1\r\n\r\n")
	for i := range r.fields {
		size += len(r.fields[i].name) + len(": \r\n") + len(r.fields[i].value)
	}
	switch {
	case size > l.HeaderBytes:
		return tooLargeHead(l)
	case len(r.fields) > l.HeaderFields:
		return tooManyFields(l)
	}
	if err := r.parseFraming(); err != nil {
		return err
	}
	if len(target) > l.TargetBytes {
		return tooLongTarget(l)
	}
	return r.checkBody(l)
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
