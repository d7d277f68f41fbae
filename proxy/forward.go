package proxy

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
)

// smallBodyBytes is up to where a request body is read before an upstream
// connection is taken.
const smallBodyBytes = 64 << 10

// forward sends the request to the route's upstream and its answer to the client.
func (x *exchange) forward() {
	u := x.request.route.upstream
	defer func(began time.Time) { x.outside = time.Since(began) }(time.Now())
	if err := x.load(u); err != nil {
		x.refuseBody(err)
		return
	}
	if u.echo {
		x.echo()
		return
	}
	began := time.Now()
	err := u.do(&x.send, &x.resp)
	x.upstream = time.Since(began)
	if err != nil {
		u.metrics.failed(faultOf(err))
		x.upstreamProblem(err)
		return
	}
	if x.resp.status == fasthttp.StatusSwitchingProtocols {
		x.tunnel()
	} else {
		x.relay()
	}
	if x.resp.uploads() {
		x.client.flush() // nobody is to wait for the rest of the request
	}
	if x.resp.unsent() {
		x.abandon()
	}
	if e, ok := errors.AsType[*upstreamError](x.cause); ok { // amid the answer
		u.metrics.failed(e.kind)
		return
	}
	u.metrics.answered(x.status, x.upstream)
}

// load makes ready what is sent: the head, with a small body behind it, or a
// reader of a larger one.
func (x *exchange) load(u *upstream) error {
	r := &x.request
	x.send = outgoing{
		host: u.host, isHead: string(r.method) == "HEAD", upgrade: r.upgrade != nil,
		idempotent: r.length == 0 && isIdempotent(r.method), interim: x.onInterim, departure: x.client.departing(),
	}
	x.out = x.appendHead(x.out[:0])
	if r.length == 0 {
		x.send.head = x.out
		return nil
	}
	if r.expects {
		if err := x.client.proceed(x.start); err != nil {
			return err
		}
	}
	if r.length < 0 || r.length > smallBodyBytes {
		x.send.head, x.send.bodyLen = x.out, r.length
		x.send.body, x.send.stopBody = x.client.body(), x.client.interrupt
		return nil
	}
	err := x.loadBody(int(r.length))
	x.send.head = x.out
	return err
}

// firstBodyBytes is what there is room for behind the head before a byte of the
// body has come.
const firstBodyBytes = 2 << 10

// loadBody reads a body of so many bytes behind the head. Room is made as the
// bytes come: a length costs a client nothing, and whoever sends slowly must not
// hold memory for more than they have sent.
func (x *exchange) loadBody(left int) error {
	body := x.client.body()
	for left > 0 {
		if len(x.out) == cap(x.out) {
			x.out = slices.Grow(x.out, min(left, max(firstBodyBytes, len(x.out))))
		}
		room := x.out[len(x.out):min(cap(x.out), len(x.out)+left)]
		n, err := body.Read(room)
		x.out = x.out[:len(x.out)+n]
		left -= n
		switch {
		case left == 0:
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return nil
}

// refuseBody answers a client whose body could not be read.
func (x *exchange) refuseBody(err error) {
	if r, ok := errors.AsType[*refusal](err); ok {
		x.refuse(r)
		return
	}
	x.abandon()
	x.problem(fasthttp.StatusBadRequest, "the request body can't be read", err)
}

// upstreamProblem answers for an upstream that gave no answer to pass on.
func (x *exchange) upstreamProblem(err error) {
	name := x.request.route.upstream.name
	if x.send.body != nil {
		x.abandon()
	}
	switch faultOf(err) {
	case faultClient:
		switch {
		case errors.Is(err, errClientLeft):
			x.status, x.cause, x.closing = statusClientLeft, errClientLeft, true
		case errors.Is(err, errDrained):
			x.status, x.cause, x.closing = fasthttp.StatusServiceUnavailable, errDrained, true
		default:
			x.refuseBody(err)
		}
	case faultConnect:
		x.problem(fasthttp.StatusBadGateway, "upstream "+name+" can't be reached", err)
	case faultCertificate:
		x.problem(fasthttp.StatusBadGateway, "the certificate of upstream "+name+" is not trusted", err)
	case faultLocal:
		x.problem(fasthttp.StatusServiceUnavailable, "the gateway has no room for a connection to upstream "+name, err)
	case faultBusy:
		x.problem(fasthttp.StatusServiceUnavailable, "all connections to upstream "+name+" are in use", err)
	case faultUnhealthy:
		x.problem(fasthttp.StatusServiceUnavailable, "upstream "+name+" has no healthy target", err)
	case faultTimeout:
		x.problem(fasthttp.StatusGatewayTimeout, "upstream "+name+" did not answer in time", err)
	case faultProtocol:
		x.problem(fasthttp.StatusBadGateway, "upstream "+name+" gave an answer that is not proper HTTP/1.1", err)
	default:
		x.problem(fasthttp.StatusBadGateway, "upstream "+name+" closed the connection without an answer", err)
	}
}

// relay sends the upstream's answer as it came: status, reason and fields in
// their order, without what is hop-by-hop, and the body piece by piece.
func (x *exchange) relay() {
	resp := &x.resp
	x.status = resp.status
	chunked := resp.length < 0 && x.request.version == 11
	if resp.length < 0 && x.request.version == 10 {
		x.closing = true
	}
	body, whole := resp.buffered()
	if whole && x.request.version == 20 {
		resp.length = int64(len(body)) // known by now, which saves a frame
	}
	x.out = x.appendAnswerHead(x.out[:0], chunked)
	head := len(x.out)
	x.sent = int64(len(body))
	if chunked {
		x.out = appendChunk(x.out, body)
	} else {
		x.out = append(x.out, body...)
	}
	if !whole {
		x.stream(head, chunked)
		return
	}
	if chunked {
		x.out = appendLastChunk(x.out, resp.trailers)
	}
	x.write(x.out, head)
	x.client.trail(resp.trailers)
}

// appendAnswerHead appends the head of the answer that resp holds.
func (x *exchange) appendAnswerHead(dst []byte, chunked bool) []byte {
	resp := &x.resp
	dst = append(dst, "HTTP/1.1 "...)
	dst = append(strconv.AppendInt(dst, int64(resp.status), 10), ' ')
	dst = append(append(dst, resp.reason...), "\r\n"...)
	dropped := nominatedBy(resp.fields)
	bodiless := x.send.isHead || resp.status == fasthttp.StatusNotModified
	switched := resp.status == fasthttp.StatusSwitchingProtocols
	for i := range resp.fields {
		f := &resp.fields[i]
		if bodiless && equalFold(f.name, "Content-Length") || !isHopByHop(f.name) && !dropped.has(f.name) {
			dst = appendRaw(dst, f)
		}
	}
	switch {
	case switched:
		dst = appendField(append(dst, "Connection: Upgrade\r\n"...), "Upgrade", x.request.upgrade)
		return append(x.appendLimits(dst, resp.status), "\r\n"...)
	case bodiless || resp.status == fasthttp.StatusNoContent:
	case chunked:
		dst = x.appendTrailer(append(dst, "Transfer-Encoding: chunked\r\n"...))
	case resp.length >= 0:
		dst = append(strconv.AppendInt(append(dst, "Content-Length: "...), resp.length, 10), "\r\n"...)
	}
	dst = x.appendLimits(dst, resp.status)
	return x.appendEnd(dst)
}

// appendTrailer announces the trailer fields that may come.
func (x *exchange) appendTrailer(dst []byte) []byte {
	const name = "Trailer: "
	if with := x.resp.appendTrailerNames(append(dst, name...)); len(with) > len(dst)+len(name) {
		return append(with, "\r\n"...)
	}
	return dst
}

// interim passes a 1xx on. HTTP/1.0 knows none.
func (x *exchange) interim(status int, reason []byte, fields []field) {
	if x.request.version == 10 {
		return
	}
	dst := append(x.text[:0], "HTTP/1.1 "...)
	dst = append(strconv.AppendInt(dst, int64(status), 10), ' ')
	dst = append(append(dst, reason...), "\r\n"...)
	dropped := nominatedBy(fields)
	for i := range fields {
		if f := &fields[i]; !isHopByHop(f.name) && !dropped.has(f.name) {
			dst = appendRaw(dst, f)
		}
	}
	x.text = append(dst, "\r\n"...)
	x.write(x.text, len(x.text))
}

// appendEnd ends a head.
func (x *exchange) appendEnd(dst []byte) []byte {
	x.closing = x.closing || x.proxy.draining.Load()
	if x.closing && x.request.version != 20 {
		dst = append(dst, "Connection: close\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// stream sends the head and then each piece of the body as it comes. If the
// upstream fails in between, the connection is closed without a terminator:
// the client must not take a part for the whole.
func (x *exchange) stream(head int, chunked bool) {
	if !x.write(x.out, head) {
		return
	}
	buf := pieces.Get().(*piece)
	defer pieces.Put(buf)
	for {
		n, err := x.resp.Read(buf.room())
		x.sent += int64(n)
		data := buf.room()[:n]
		if chunked {
			data = buf.chunk(n)
		}
		if n > 0 && !x.write(data, 0) {
			return
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			x.closing, x.cut, x.cause = true, true, err
			return
		}
	}
	if chunked {
		x.write(appendLastChunk(x.out[:0], x.resp.trailers), 0)
	}
	x.client.trail(x.resp.trailers)
}

// write sends to the client, head bytes of head and then body, and says whether
// the client took it.
func (x *exchange) write(p []byte, head int) bool {
	if err := x.client.send(p, head, time.Now()); err != nil {
		x.closing = true
		x.cause = fmt.Errorf("write answer: %w", err)
		return false
	}
	return true
}
