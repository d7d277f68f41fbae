package proxy

import (
	"bytes"
	"strconv"
)

// isHopByHop says whether a field is about one connection only (RFC 9110
// section 7.6.1) or about framing, which we do ourselves.
func isHopByHop(name []byte) bool {
	switch len(name) {
	case 2:
		return equalFold(name, "TE")
	case 7:
		return equalFold(name, "Trailer") || equalFold(name, "Upgrade")
	case 10:
		return equalFold(name, "Connection") || equalFold(name, "Keep-Alive")
	case 14:
		return equalFold(name, "Content-Length") || equalFold(name, "HTTP2-Settings")
	case 16:
		return equalFold(name, "Proxy-Connection")
	case 17:
		return equalFold(name, "Transfer-Encoding")
	case 18:
		return equalFold(name, "Proxy-Authenticate")
	case 19:
		return equalFold(name, "Proxy-Authorization")
	}
	return false
}

// nominations are the fields that Connection names; nearly always none.
type nominations struct {
	fields []field
	some   bool
}

func nominatedBy(fields []field) nominations {
	n := nominations{fields: fields}
	for i := range fields {
		f := &fields[i]
		if equalFold(f.name, "Connection") && !equalFold(f.value, "keep-alive") && !equalFold(f.value, "close") {
			n.some = true
		}
	}
	return n
}

func (n *nominations) has(name []byte) bool {
	if !n.some {
		return false
	}
	for i := range n.fields {
		if f := &n.fields[i]; equalFold(f.name, "Connection") && lists(f.value, name) {
			return true
		}
	}
	return false
}

// lists says whether a comma-separated list holds the token, whatever the case.
// The token is ASCII: an item that only Unicode's folding takes for it is longer.
func lists(list, token []byte) bool {
	for len(list) > 0 {
		var item []byte
		item, list, _ = bytes.Cut(list, []byte{','})
		if item = trimSpace(item); len(item) == len(token) && bytes.EqualFold(item, token) {
			return true
		}
	}
	return false
}

// appendField appends a header line.
func appendField(dst []byte, name string, value []byte) []byte {
	dst = append(append(dst, name...), ": "...)
	return append(append(dst, value...), "\r\n"...)
}

func appendRaw(dst []byte, f *field) []byte {
	dst = append(append(dst, f.name...), ": "...)
	return append(append(dst, f.value...), "\r\n"...)
}

// appendHead appends the head that goes to the upstream: the client's own
// line and fields, without what is hop-by-hop, with the forwarding fields.
func (x *exchange) appendHead(dst []byte) []byte {
	r := &x.request
	dst = append(append(dst, r.method...), ' ')
	dst = append(append(dst, r.target...), " HTTP/1.1\r\n"...)
	host := r.hostport
	if len(host) == 0 {
		host = x.send.host
	}
	dst = appendField(dst, "Host", host)
	dropped := nominatedBy(r.fields)
	protoSeen, hostSeen, idSeen := false, false, false
	for i := range r.fields {
		f := &r.fields[i]
		if isHopByHop(f.name) || isOurs(f.name) || dropped.has(f.name) {
			continue
		}
		switch {
		case equalFold(f.name, "X-Forwarded-Proto"):
			if !r.trusted {
				continue
			}
			protoSeen = true
		case equalFold(f.name, "X-Forwarded-Host"):
			if !r.trusted {
				continue
			}
			hostSeen = true
		case equalFold(f.name, "X-Request-Id"):
			if len(f.value) == 0 {
				continue
			}
			idSeen = true
		}
		dst = appendRaw(dst, f)
	}
	dst = x.appendForwardedFor(dst)
	switch {
	case protoSeen:
	case r.secure:
		dst = append(dst, "X-Forwarded-Proto: https\r\n"...)
	default:
		dst = append(dst, "X-Forwarded-Proto: http\r\n"...)
	}
	if !hostSeen {
		dst = appendField(dst, "X-Forwarded-Host", host)
	}
	if !idSeen {
		dst = appendField(dst, "X-Request-Id", x.id)
	}
	return append(appendFraming(dst, r), "\r\n"...)
}

// isOurs says whether appendHead writes the field itself, or answers it. So it
// does with names in which another sign stands for a dash: to CGI and WSGI servers
// they are the same field.
func isOurs(name []byte) bool {
	switch len(name) {
	case len("Host"):
		return equalFold(name, "Host")
	case len("Expect"):
		return equalFold(name, "Expect")
	case len("X-Request-Id"):
		return isCopyOf(name, "X-Request-Id")
	case len("X-Forwarded-For"):
		return resembles(name, "X-Forwarded-For")
	case len("X-Forwarded-Host"):
		return isCopyOf(name, "X-Forwarded-Host")
	case len("X-Forwarded-Proto"):
		return isCopyOf(name, "X-Forwarded-Proto")
	}
	return false
}

// isCopyOf says whether name is another spelling of ours.
func isCopyOf(name []byte, ours string) bool { return resembles(name, ours) && !equalFold(name, ours) }

// appendForwardedFor appends the peer to the hops that a trusted peer sent.
func (x *exchange) appendForwardedFor(dst []byte) []byte {
	dst = append(dst, "X-Forwarded-For: "...)
	if x.request.trusted {
		for i := range x.request.fields {
			if f := &x.request.fields[i]; equalFold(f.name, "X-Forwarded-For") && len(f.value) > 0 {
				dst = append(append(dst, f.value...), ", "...)
			}
		}
	}
	if x.request.peer.IsValid() {
		dst = x.request.peer.AppendTo(dst)
	} else {
		dst = append(dst, "unknown"...)
	}
	return append(dst, "\r\n"...)
}

func appendFraming(dst []byte, r *request) []byte {
	switch {
	case r.upgrade != nil:
		return appendField(append(dst, "Connection: Upgrade\r\n"...), "Upgrade", r.upgrade)
	case r.length < 0:
		return append(dst, "Transfer-Encoding: chunked\r\n"...)
	case r.framed:
		dst = append(dst, "Content-Length: "...)
		return append(strconv.AppendInt(dst, r.length, 10), "\r\n"...)
	}
	return dst
}

// appendLimits appends the fields that tell the client its limits.
func (x *exchange) appendLimits(dst []byte, status int) []byte {
	d := &x.decision
	if !x.decided || x.ask.Shadow || status >= 300 && status < 400 || len(d.Limits) == 0 {
		return dst
	}
	if x.rules.headers.Draft {
		dst = append(d.AppendPolicy(append(dst, "RateLimit-Policy: "...)), "\r\n"...)
		dst = append(d.AppendRateLimit(append(dst, "RateLimit: "...)), "\r\n"...)
	}
	if binding := d.Binding(); x.rules.headers.Legacy && binding != nil {
		dst = append(strconv.AppendInt(append(dst, "X-RateLimit-Limit: "...), binding.Capacity, 10), "\r\n"...)
		dst = append(strconv.AppendInt(append(dst, "X-RateLimit-Remaining: "...), int64(d.TokensLeft()), 10), "\r\n"...)
		dst = append(strconv.AppendInt(append(dst, "X-RateLimit-Reset: "...), ceilSeconds(d.Reset()), 10), "\r\n"...)
	}
	return dst
}
