package proxy

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"
)

// Bounds of a response head.
const (
	maxResponseHead   = maxReadBuffer // with the interim responses before it
	maxResponseFields = 256
	maxInterim        = 16
	maxLengthDigits   = 18
)

// Values of incoming.length that are no number of bytes.
const (
	lengthChunked    = -1
	lengthUntilClose = -2
)

var (
	errHeadTooLarge = errors.New("the response head is larger than 64 KiB")
	errStatusLine   = errors.New("the status line is malformed")
	errLineEnd      = errors.New("a line of the response head does not end in CRLF")
	errField        = errors.New("a field of the response head is malformed")
	errFields       = errors.New("the response head has more than 256 fields")
	errFraming      = errors.New("the length of the response body is ambiguous")
	errCoding       = errors.New("the transfer coding of the response is not chunked")
	errInterim      = errors.New("more than 16 interim responses")
	errSwitching    = errors.New("unsolicited 101 Switching Protocols")
	errBadSwitch    = errors.New("a 101 that names no protocol, is not HTTP/1.1 or has a body")
	errSwitchEarly  = errors.New("a 101 before the whole request was sent")
	errTruncated    = errors.New("the upstream closed the connection amid the response body")
	errNoAnswer     = errors.New("the upstream closed the connection without an answer")
	errCutHead      = errors.New("the upstream closed the connection amid the response head")
	errDoneWith     = errors.New("the response was finished before")
)

// incoming is a response. It is reused: do sets everything anew. The slices
// point into the connection's buffer and are valid until finish.
type incoming struct {
	status int
	reason []byte  // as sent, may be empty
	fields []field // all, in order, framing and hop-by-hop fields too
	// length of the body: 0 none, above 0 bytes, lengthChunked, lengthUntilClose.
	// The Content-Length of an answer to HEAD or of a 304 is only in fields.
	length int64
	// trailers are those fields after a chunked body that the head announced and
	// that may be passed on, in order; see mayTrail. They are there when Read gave
	// io.EOF, or buffered said whole.
	trailers []field
	// early says that the request was not sent whole: the rest of the client's body
	// was not read. It is right after do when sending failed before the answer came;
	// else unsent says how it ended.
	early bool

	upload   *upload // that of the request's body; nil for none
	switched bool    // to another protocol; see tunnel
	interims int     // before this head

	departure *departure // told of conn until finish or tunnel

	framing framing
	conn    *upstreamConn // nil when there is none to give back
	left    int64         // of a body of known length: bytes to come
	chunks  chunkDecoder
	whole   bool  // the body was read to its end
	reuse   bool  // the connection may carry another request after this response
	err     error // of the body; stays
}

// receive reads the head of the final response, within wait.
func (in *incoming) receive(c *upstreamConn, out *outgoing, wait time.Duration) error {
	if err := in.receiveFinal(c, out, time.Now().Add(wait)); err != nil {
		return headFault(err, c, wait)
	}
	return nil
}

// receiveFinal reads heads until the final one. After an error that is a
// time-out it may be called again and goes on where it was.
func (in *incoming) receiveFinal(c *upstreamConn, out *outgoing, due time.Time) error {
	for {
		if err := in.receiveHead(c, due); err != nil {
			return err
		}
		switch {
		case in.status >= 200:
			in.conn = c
			in.begin(out)
			return nil
		case in.status == 101:
			return in.switchProtocols(c, out)
		case in.interims == maxInterim:
			return &upstreamError{faultProtocol, errInterim}
		case in.status != 100 && out.interim != nil: // 100 is for who sent Expect, which we never do
			out.interim(in.status, in.reason, in.fields)
		}
		in.interims++
		in.forgetHead()
	}
}

// receiveHead reads one head, interim or final.
func (in *incoming) receiveHead(c *upstreamConn, due time.Time) error {
	for {
		used, err := in.parse(c.buf[c.read:c.end])
		c.read += used
		if err != nil {
			return &upstreamError{faultProtocol, err}
		}
		if in.framing.done {
			return nil
		}
		if err := c.fill(due); err != nil {
			return err
		}
	}
}

// headFault says what an error while waiting for the head means.
func headFault(err error, c *upstreamConn, wait time.Duration) error {
	_, known := errors.AsType[*upstreamError](err)
	switch {
	case known:
		return err
	case err == errHeadTooLarge:
		return &upstreamError{faultProtocol, err}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &upstreamError{faultTimeout, fmt.Errorf("no response head within %v: %w", wait, err)}
	case err == io.EOF && c.end == 0:
		return &upstreamError{faultClosed, errNoAnswer}
	case err == io.EOF:
		return &upstreamError{faultClosed, errCutHead}
	}
	return brokenBy("read response head", err)
}

// clear forgets everything of the last response but the memory of fields.
func (in *incoming) clear() {
	clear(in.fields)
	clear(in.trailers)
	*in = incoming{fields: in.fields[:0], trailers: in.trailers[:0], chunks: chunkDecoder{kept: in.chunks.kept[:0]}}
}

// forgetHead makes room for the head after an interim one.
func (in *incoming) forgetHead() {
	clear(in.fields)
	in.status, in.reason, in.fields, in.framing = 0, nil, in.fields[:0], framing{}
}

// begin gets ready to read the body of a final response to out.
func (in *incoming) begin(out *outgoing) {
	if in.status == 204 && in.length > 0 || in.status == 204 && in.framing.codings > 0 {
		in.reuse = false // it announces what must not come, and may come as the next answer
	}
	if out.isHead || in.status == 204 || in.status == 304 {
		in.length = 0
	}
	if out.upgrade && hasBody(out) {
		in.reuse = false // who mistook the body for the new protocol would answer to it
	}
	switch {
	case in.length == 0:
		in.whole = true
	case in.length > 0:
		in.left = in.length
	case in.length == lengthChunked:
		in.chunks.keep = in.framing.trailer
	case in.length == lengthUntilClose:
		in.left, in.reuse = math.MaxInt64, false
	}
}

// buffered returns what of the body has come already, and says whether that is
// all of it. What it returned, Read doesn't return again. It is valid until finish.
func (in *incoming) buffered() (body []byte, whole bool) {
	c := in.conn
	if c == nil || in.whole {
		return nil, in.whole
	}
	body = c.buf[c.read:c.end]
	if in.length != lengthChunked {
		body = body[:min(int64(len(body)), in.left)]
	}
	c.read += len(body)
	n := in.take(body)
	return body[:n:n], in.whole
}

// Read reads the body, without its framing; io.EOF is its proper end. Any
// other error is an *upstreamError.
func (in *incoming) Read(p []byte) (int, error) {
	for {
		switch {
		case in.err != nil:
			return 0, in.err
		case in.whole:
			return 0, io.EOF
		case in.conn == nil:
			return 0, errDoneWith
		case len(p) == 0:
			return 0, nil
		}
		n, err := in.readRaw(p[:min(int64(len(p)), in.limit())])
		data := in.take(p[:n])
		if err != nil {
			in.fail(err)
		}
		if data > 0 {
			return data, nil
		}
	}
}

// limit is how much may be read at once. Chunks are decoded in place and may
// be read past their end: what follows the body then shows.
func (in *incoming) limit() int64 {
	if in.length == lengthChunked {
		return math.MaxInt64
	}
	return in.left
}

// readRaw reads what is in the buffer, else from the connection, into p itself.
// The upstream may wait for the rest of the request before it goes on, so its silence
// counts from the end of the upload, which has time-outs of its own.
func (in *incoming) readRaw(p []byte) (int, error) {
	c := in.conn
	if c.read < c.end {
		n := copy(p, c.buf[c.read:c.end])
		c.read += n
		return n, nil
	}
	for {
		sending := in.upload != nil && !in.upload.endsWithin(0)
		n, err := c.receive(p, time.Now().Add(c.upstream.idleTimeout))
		if !sending || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
}

// take counts raw as received, and returns how many bytes of body are at its
// start now that the framing is gone.
func (in *incoming) take(raw []byte) int {
	if in.length != lengthChunked {
		in.left -= int64(len(raw))
		in.whole = in.left == 0
		return len(raw)
	}
	n, used, err := in.chunks.decode(raw, raw)
	if err != nil {
		in.err = &upstreamError{faultProtocol, err}
	}
	in.whole = err == nil && in.chunks.done()
	if in.whole && in.chunks.keep {
		in.collectTrailers()
	}
	if used < len(raw) {
		in.reuse = false
	}
	return n
}

// fail keeps an error of the connection. The end of the connection is the end
// of a body that has no other; a body that was whole before is not harmed.
func (in *incoming) fail(err error) {
	in.reuse = false
	switch {
	case in.err != nil || in.whole:
	case err == io.EOF && in.length == lengthUntilClose && !in.conn.wasCut():
		in.whole = true
	case err == io.EOF:
		in.err = &upstreamError{faultClosed, errTruncated}
	case in.upload.brokeOff(err):
		in.err = in.upload.err
	default:
		in.err = brokenBy("read response body", err)
		if why := in.departure.end(); why != nil {
			in.err = &upstreamError{faultClient, why}
		}
	}
}

// uploads says whether the request's body is still being sent.
func (in *incoming) uploads() bool { return in.upload != nil && !in.upload.endsWithin(0) }

// unsent says whether the client's body was left unread, in whole or in part.
// It ends its sending, see uploadGrace, and is called when the answer was relayed,
// or when that broke off.
func (in *incoming) unsent() bool {
	if in.upload == nil {
		return in.early
	}
	if !in.upload.endsWithin(lastByteGrace) {
		// Who has answered and doesn't read on may take the rest for the next request.
		in.reuse = false
		if !in.whole || !in.upload.endsWithin(uploadGrace) {
			in.upload.stop()
		}
	}
	if in.upload.err != nil {
		in.early, in.reuse = true, false
	}
	return in.early
}

// finish gives the connection back to the pool if the response was read to its
// end and nothing came after, else closes it. It ends the sending of the request's
// body, like unsent. Afterwards the fields and trailers are gone. It is safe on the
// zero value and to call twice.
func (in *incoming) finish() {
	c := in.conn
	if c == nil {
		return
	}
	in.unsent()
	left := in.departure.end()
	in.conn, in.reason = nil, nil
	clear(in.fields)
	clear(in.trailers)
	in.fields, in.trailers = in.fields[:0], in.trailers[:0]
	if in.whole && in.reuse && left == nil && c.read == c.end {
		c.upstream.release(c)
		return
	}
	c.upstream.discard(c)
}
