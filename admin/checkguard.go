package admin

import (
	"bytes"
	"net"
	"strconv"

	"github.com/valyala/fasthttp"
)

// fieldCheckToken carries admin.allow_token to /check: Authorization is the
// described client's own there.
const fieldCheckToken = "X-R8limiter-Token"

// mayCheck guards /check and answers those it refuses.
//
// Without a token everyone who reaches the listener may ask, as at /allow, but web
// pages that make a browser on this machine ask are kept out. They can't be told by
// Origin, as at /allow: requests of browsers that a proxy describes have one,
// and a page's own GET has none. They are told by two other things.
//
// A page of another origin can send no X- field without a preflight, and none is
// ever granted here. So whoever asks must send at least one that describes or
// X-Forwarded-For; a question at /check without any lacks the URI anyway.
//
// A page whose name an attacker's DNS has pointed at this machine (rebinding) is of
// the same origin for its browser and may send any field. But the browser asks
// this very port by that name: as Host it sends a name, neither localhost nor an
// address, with the port of this listener. No proxy on the same machine has a
// reason to; one whose clients come to the same port number sets a token.
func (s *Server) mayCheck(x *exchange) bool {
	if g := &s.settings.Load().allowGuard; g.set {
		return s.demandForCheck(g, x)
	}
	if !x.peer.IsLoopback() {
		return true
	}
	if x.isRebound() || x.rest != nil && !x.isRelayed() {
		x.refuse(fasthttp.StatusForbidden, "/check is for proxies, not for web pages: send X-Forwarded-For, or set admin.allow_token and send it as "+fieldCheckToken)
		return false
	}
	return true
}

// isRelayed says whether some field says that a proxy sent the request.
func (x *exchange) isRelayed() bool {
	for name, _, rest, ok := nextField(x.ctx.Request.Header.RawHeaders()); ok; name, _, rest, ok = nextField(rest) {
		if describerNamed(name) != nil || equalFold(name, fasthttp.HeaderXForwardedFor) {
			return true
		}
	}
	return false
}

// isRebound says whether Host is a name with this listener's port.
func (x *exchange) isRebound() bool {
	host := x.ctx.Request.Header.Host()
	local, ok := x.ctx.LocalAddr().(*net.TCPAddr)
	return ok && x.portOf(host) == local.Port && !isLocalHost(host)
}

// portOf is the port that a Host field names, or stands for; -1 for none.
func (x *exchange) portOf(host []byte) int {
	colon := bytes.LastIndexByte(host, ':')
	switch {
	case colon >= 0 && bytes.IndexByte(host[colon:], ']') < 0:
		if port, err := strconv.ParseUint(string(host[colon+1:]), 10, 16); err == nil {
			return int(port)
		}
		return -1
	case x.ctx.IsTLS():
		return 443
	}
	return 80
}

// demandForCheck is demand for a token in a field of its own.
func (s *Server) demandForCheck(g *guard, x *exchange) bool {
	var token []byte
	given := 0
	for name, value, rest, ok := nextField(x.ctx.Request.Header.RawHeaders()); ok; name, value, rest, ok = nextField(rest) {
		if equalFold(name, fieldCheckToken) {
			token, given = value, given+1
		}
	}
	if given == 1 && g.is(token) {
		return true
	}
	return s.turnAway(x, []byte(fieldCheckToken), "send admin.allow_token in one "+fieldCheckToken+" field")
}
