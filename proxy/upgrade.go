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
