package proxy

import (
	"bytes"
	"net"
	"sync"
	"time"
)

// hasBody says whether out carries a body, be it a small one behind the head.
func hasBody(out *outgoing) bool {
	const end = "\r\n\r\n"
	return out.body != nil || bytes.Index(out.head, []byte(end)) != len(out.head)-len(end)
}

// switchProtocols takes a 101 as the answer, if out asked for one and has been
// sent whole: what the upstream sends from now on is no HTTP any more.
func (in *incoming) switchProtocols(c *upstreamConn, out *outgoing) error {
	fr := &in.framing
	switch {
	case !out.upgrade:
		return &upstreamError{faultProtocol, errSwitching}
	case fr.minor == 0 || !fr.upgrade || fr.lengths+fr.codings > 0:
		return &upstreamError{faultProtocol, errBadSwitch}
	case in.upload != nil && (!in.upload.endsWithin(uploadGrace) || in.upload.err != nil):
		return &upstreamError{faultProtocol, errSwitchEarly}
	}
	in.conn = c
	in.length, in.whole, in.reuse, in.switched = 0, true, false, true
	return nil
}

// switchedTo says whether a 101 is to the protocol that was asked for.
func (in *incoming) switchedTo(protocol []byte) bool {
	for i := range in.fields {
		if f := &in.fields[i]; equalFold(f.name, "Upgrade") && !bytes.EqualFold(f.value, protocol) {
			return false
		}
	}
	return in.switched
}

// tunnel hands over the connection after a 101: it and the bytes that came
// behind the head. From now on the caller owns it and has to close it, which also
// gives its place in the pool back; finish does nothing. It is called once at most,
// after do with status 101.
func (in *incoming) tunnel() (conn *switchedConn, early []byte, err error) {
	c := in.conn
	if c == nil || !in.switched {
		return nil, nil, errNotSwitched
	}
	if err := c.Conn.SetDeadline(time.Time{}); err != nil {
		return nil, nil, brokenBy("take over the connection", err)
	}
	in.conn = nil
	in.departure.end()
	return &switchedConn{Conn: c.Conn, c: c}, c.buf[c.read:c.end], nil
}

// switchedConn is a connection to an upstream that speaks another protocol now.
type switchedConn struct {
	net.Conn
	c     *upstreamConn
	close sync.Once
}

// Close closes the connection and gives its place in the pool back. It is
// safe for concurrent use and to call twice.
func (s *switchedConn) Close() error {
	s.close.Do(func() { s.c.upstream.discard(s.c) })
	return nil
}

// CloseWrite ends our side of the connection only.
func (s *switchedConn) CloseWrite() error {
	half, ok := s.Conn.(halfConn)
	if !ok {
		return errNoHalfClose
	}
	return half.CloseWrite()
}

// tunnel passes the upstream's 101 on, and from then on whatever either side
// sends, until both have ended. The request was decided about before; what is
// said inside is not.
func (x *exchange) tunnel() {
	u, c := x.request.route.upstream, x.client.(*clientConn) // HTTP/2 has no upgrades
	client, ok := c.Conn.(halfConn)
	if !ok || !x.resp.switchedTo(x.request.upgrade) {
		x.upstreamProblem(&upstreamError{faultProtocol, errOtherProtocol})
		return
	}
	x.status, x.closing = x.resp.status, true
	x.out = x.appendAnswerHead(x.out[:0], false)
	if !x.write(x.out, len(x.out)) {
		return
	}
	up, early, err := x.resp.tunnel()
	if err == nil {
		defer up.Close()
		err = client.SetDeadline(time.Time{})
	}
	if err != nil {
		x.cause = err
		return
	}
	_, x.sent, x.cause = tunnel(client, c.buf[c.read:c.end], up, early, u.idleTimeout)
}

// upgradeOf is the protocol that a request wants its connection to change to,
// or nil: none, or one that we don't pass on (RFC 9110 section 7.8).
//
// A tunnel to an upstream is blind, so what would be spoken in it must not be
// requests that ought to be limited: h2c and TLS stay out. A list of protocols
// is a choice that nobody needs to have. A request with a body stays as it is, for
// the upstream might take what follows the body for either.
func upgradeOf(r *request) []byte {
	var protocol []byte
	upgrades, asked := 0, false
	for i := range r.fields {
		f := &r.fields[i]
		switch {
		case equalFold(f.name, "Upgrade"):
			upgrades++
			protocol = f.value
		case equalFold(f.name, "Connection"):
			asked = asked || lists(f.value, []byte("upgrade"))
		}
	}
	if upgrades != 1 || !asked || r.version != 11 || r.length != 0 || !isProtocol(protocol) {
		return nil
	}
	return protocol
}

// isProtocol says whether s is a name[/version] that may be tunnelled.
func isProtocol(s []byte) bool {
	for i, c := range s {
		if !tokenBytes[c] && (c != '/' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	family, _, _ := bytes.Cut(s, []byte{'/'})
	for _, name := range [...]string{"h2c", "h2", "http", "https", "tls"} {
		if equalFold(family, name) {
			return false
		}
	}
	return len(s) > 0
}
