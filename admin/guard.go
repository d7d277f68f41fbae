package admin

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"github.com/valyala/fasthttp"
	"net"
	"net/netip"
)

// guard admits those who know a token. The zero value is a guard without one.
type guard struct {
	set    bool
	digest [sha256.Size]byte
}

func newGuard(token string) guard {
	return guard{set: token != "", digest: sha256.Sum256([]byte(token))}
}

// knows says whether the request names the token in its one Authorization
// field.
func (g *guard) knows(x *exchange) bool {
	fields := x.ctx.Request.Header.PeekAll(fasthttp.HeaderAuthorization)
	if len(fields) != 1 || namesToken(x.query) {
		return false
	}
	scheme, token, _ := bytes.Cut(fields[0], []byte(" "))
	if !equalFold(scheme, "Bearer") {
		return false
	}
	return g.is(bytes.TrimLeft(token, " "))
}

// is compares digests, since ConstantTimeCompare returns at once on different
// lengths, which would tell the token's.
func (g *guard) is(token []byte) bool {
	digest := sha256.Sum256(token)
	return subtle.ConstantTimeCompare(digest[:], g.digest[:]) == 1
}

// namesToken says whether a query carries a token. One there ends up in logs
// and histories, so it is refused even beside a good one (RFC 6750 section 5.3).
func namesToken(query []byte) bool {
	for name, _, rest, ok := cutPair(query); ok; name, _, rest, ok = cutPair(rest) {
		if equalFold(name, "token") || equalFold(name, "access_token") {
			return true
		}
	}
	return false
}

// mayAdminister guards everything under /admin and answers those it refuses.
func (s *Server) mayAdminister(x *exchange) bool {
	if g := &s.settings.Load().adminGuard; g.set {
		h := &x.ctx.Request.Header
		return isPage(x.path) && (h.IsGet() || h.IsHead()) || s.demand(g, x)
	}
	if x.peer.IsLoopback() && isLocalHost(x.ctx.Request.Header.Host()) {
		return s.isNoPage(x, "/admin")
	}
	x.refuse(fasthttp.StatusForbidden, "without admin.token only this machine may use /admin, by the name localhost or an IP address: set admin.token and send it as Authorization: Bearer")
	return false
}

// mayAsk guards /allow and answers those it refuses. Without a token the one
// thing refused is a web page that makes its visitor's browser spend tokens on
// the visitor's own machine; browsers send Origin with every POST.
func (s *Server) mayAsk(x *exchange) bool {
	if g := &s.settings.Load().allowGuard; g.set {
		return s.demand(g, x)
	}
	return !x.peer.IsLoopback() || s.isNoPage(x, "/allow")
}

// isNoPage refuses what a web page from elsewhere made a browser on this machine
// send: it would spend and change things in the visitor's name. Browsers send
// Origin with everything but GET and HEAD, which change nothing here. Our own page
// is of the very address that is asked.
func (s *Server) isNoPage(x *exchange, what string) bool {
	h := &x.ctx.Request.Header
	origins := h.PeekAll(fasthttp.HeaderOrigin)
	if h.IsGet() || h.IsHead() || len(origins) == 0 {
		return true
	}
	scheme := "http://"
	if x.ctx.IsTLS() {
		scheme = "https://"
	}
	if host, ok := bytes.CutPrefix(origins[0], []byte(scheme)); ok && len(origins) == 1 && isLocalHost(h.Host()) && bytes.Equal(host, h.Host()) {
		return true
	}
	x.refuse(fasthttp.StatusForbidden, what+" is not for web pages: set its token and send it as Authorization: Bearer")
	return false
}

// demand lets pass who knows the token of g; wrong ones wait for their answer.
func (s *Server) demand(g *guard, x *exchange) bool {
	return g.knows(x) || s.turnAway(x, []byte("Bearer"), "send the token in one Authorization: Bearer field")
}

// turnAway answers who does not know a token, and returns false: which way to show
// one is the challenge, and in words the reason.
func (s *Server) turnAway(x *exchange, challenge []byte, reason string) bool {
	if s.guesses.crowded(x.peer) {
		x.ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, "1")
		x.refuse(fasthttp.StatusTooManyRequests, "too many wrong tokens from this address: wait before the next")
		return false
	}
	s.guesses.slowDown(x.peer, s.stop)
	if !x.hasDenyStatus() { // else see coverStatus
		x.ctx.Response.Header.SetCanonical(nameAuthenticate, challenge)
	}
	x.refuse(fasthttp.StatusUnauthorized, reason)
	return false
}

// isLocalHost says whether a Host field is localhost or an IP address. Any
// other name may be one that an attacker's DNS has pointed at this machine, so
// that a browser here takes the attacker's page to be of the same origin.
func isLocalHost(host []byte) bool {
	name := string(host)
	if h, _, err := net.SplitHostPort(name); err == nil {
		name = h
	} else if n := len(name); n > 2 && name[0] == '[' && name[n-1] == ']' {
		name = name[1 : n-1]
	}
	if equalFold([]byte(name), "localhost") {
		return true
	}
	_, err := netip.ParseAddr(name)
	return err == nil
}
