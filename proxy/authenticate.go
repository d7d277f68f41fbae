package proxy

import (
	"bytes"
	"fmt"
	"slices"
)

// authFault is what is wrong with the credentials that a client showed, or did
// not show. Unlike after a refusal the connection goes on: the request is framed
// well, and the client may come again with better ones.
type authFault struct {
	status    int         // 401, or 503 where nobody can tell yet
	result    tokenResult // which series counts it, if it is about a token
	detail    string      // for the client's author and for the log: nothing of the credentials
	challenge string      // the value of WWW-Authenticate; "" for none
}

// Error is the detail that the answer gives.
func (e *authFault) Error() string { return e.detail }

// reads says which credentials the templates of a route read.
type reads struct{ token, key bool }

// note adds what t reads.
func (r *reads) note(t *Template) {
	for i := range t.parts {
		switch t.parts[i].from {
		case fromJWT:
			r.token = true
		case fromKeyUser, fromKeyPlan:
			r.key = true
		}
	}
}

// templates are all of a route.
func (c *RouteConfig) templates() []Template {
	return append(slices.Clone(c.UserID), c.Resource, c.Plan, c.Cost)
}

// claimsRead are the claims that routes read, each once: what is kept of a
// verified token, by index.
func claimsRead(routes []RouteConfig) (names []string) {
	for i := range routes {
		for _, t := range routes[i].templates() {
			for j := range t.parts {
				if p := &t.parts[j]; p.from == fromJWT && !slices.Contains(names, p.arg) {
					names = append(names, p.arg)
				}
			}
		}
	}
	return names
}

// bindClaims looks up the index of every {jwt.CLAIM} among claims.
func (t *Template) bindClaims(claims []string) {
	for i := range t.parts {
		if p := &t.parts[i]; p.from == fromJWT {
			p.index = slices.Index(claims, p.arg)
		}
	}
}

// checkSources reports placeholders for whose values the configuration names no source.
func (c *Config) checkSources(t *Template) error {
	var r reads
	r.note(t)
	switch {
	case r.token && c.JWT == nil:
		return fmt.Errorf("%q reads a token, but proxy.jwt is absent, so that none is verified: add it, or take the placeholder out", t.text)
	case r.key && c.APIKeys == nil:
		return fmt.Errorf("%q reads the table of API keys, but proxy.api_keys is absent: add it, or use {header.X-Api-Key|sha256}", t.text)
	}
	return nil
}

// authenticate verifies the credentials that the route reads or that every
// request must show. It does so before any template is made: a template that is
// tried earlier and has a value must not hide that they are wrong.
func (rs *Rules) authenticate(r *request) error {
	if err := rs.authenticateToken(r); err != nil {
		return err
	}
	return rs.authenticateKey(r)
}

func (rs *Rules) authenticateToken(r *request) error {
	if v := rs.jwt; v != nil && (v.required || r.route.reads.token) {
		return v.identify(r)
	}
	return nil
}

func (rs *Rules) authenticateKey(r *request) error {
	if k := rs.apiKeys; k != nil && (k.required || r.route.reads.key) {
		return k.identify(r)
	}
	return nil
}

// credentials are what the one Authorization field holds for a scheme, which is
// compared whatever the case (RFC 9110 section 11.1). Another scheme, and an empty
// field, count as none. Behind the scheme is a space: servers that take a tab or a
// comma for one would find credentials where we find none.
func (r *request) credentials(scheme string) (value []byte, given bool, err error) {
	field, err := r.header("Authorization")
	if err != nil {
		return nil, false, err
	}
	end := bytes.IndexAny(field, " \t,")
	if end < 0 {
		end = len(field)
	}
	switch {
	case !equalFold(field[:end], scheme):
		return nil, false, nil
	case end < len(field) && field[end] != ' ':
		return nil, false, badRequest("Authorization has something else than a space behind its scheme")
	}
	return trimSpace(field[end:]), true, nil
}
