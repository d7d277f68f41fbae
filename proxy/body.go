package proxy

import (
	"errors"
	"io"
	"os"
	"time"
)

// wireOverhead is what the framing of a chunked request body may cost besides
// twice its size.
const wireOverhead = 64 << 10

var (
	errBodyOverhead = &refusal{413, "the framing of the request body is larger than what it holds"}
	errUnread       = errors.New("a request body was left unread")
)

// requestBody reads the body of the request that a clientConn serves: what
// there is in the connection's buffer first. The zero value is an empty body.
type requestBody struct {
	conn    *clientConn
	chunked bool
	chunks  chunkDecoder
	left    int64 // bytes to come of a body of known length
	size    int64 // bytes that came
	wire    int64 // of a chunked body: bytes that came, with the framing
	waited  time.Duration
	stored  bool  // the last bytes were in the connection's buffer
	err     error // stays
}

// begin gets ready to read a body of length bytes, or a chunked one if length is -1.
func (b *requestBody) begin(length int64) {
	b.chunked, b.left = length < 0, max(length, 0)
	if length != 0 {
		b.err = nil
	}
}

func (b *requestBody) reset() { *b = requestBody{conn: b.conn, err: io.EOF} }

// Read reads the body without its framing; io.EOF is its proper end. An error
// that is a *refusal says what the client did wrong.
func (b *requestBody) Read(p []byte) (int, error) {
	for b.err == nil && len(p) > 0 {
		if n := b.readSome(p); n > 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// readSome reads once; it may give no data and no error.
func (b *requestBody) readSome(p []byte) int {
	if !b.chunked {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.receive(p)
	if err != nil {
		b.err = bodyError(err, b.conn.limits)
		return 0
	}
	if b.chunked {
		return b.decode(p[:n])
	}
	b.left -= int64(n)
	b.size += int64(n)
	if b.left == 0 {
		b.err = io.EOF
	}
	return n
}

// receive reads what is in the buffer, else from the connection.
func (b *requestBody) receive(p []byte) (int, error) {
	c := b.conn
	if b.stored = c.read < c.end; b.stored {
		n := copy(p, c.buf[c.read:c.end])
		c.read += n
		return n, nil
	}
	limits, start := c.limits, time.Now()
	n, err := c.receive(p, start.Add(limits.BodyTimeout))
	b.waited += time.Since(start)
	if limits.tooThin(b.size, b.waited) {
		return 0, tooThinBody(limits)
	}
	return n, err
}

// decode takes the framing off raw, in place. Chunk extensions hold nothing
// for us and are bounded, so that one byte of data can't cost kilobytes.
func (b *requestBody) decode(raw []byte) int {
	limits := b.conn.limits
	n, used, err := b.chunks.decode(raw, raw)
	b.size += int64(n)
	b.wire += int64(used)
	switch {
	case err != nil:
		b.err = badRequest("the chunked request body is malformed")
	case b.size > limits.BodyBytes:
		b.err = tooLargeBody(limits)
	case b.wire > 2*limits.BodyBytes+wireOverhead:
		b.err = errBodyOverhead
	case b.chunks.done():
		b.putBack(raw[used:])
		b.err = io.EOF
	default:
		return n
	}
	if b.err != io.EOF {
		return 0
	}
	return n
}

// putBack gives back what came behind the body: the next request.
func (b *requestBody) putBack(rest []byte) {
	if b.stored {
		b.conn.read -= len(rest)
		return
	}
	b.conn.unread(rest)
}

func bodyError(err error, limits *LimitsConfig) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return tooSlowBody(limits)
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// discard reads the rest of a body that nobody wanted, if it is small.
func (b *requestBody) discard() error {
	if b.err == io.EOF {
		return nil
	}
	if b.err != nil || b.chunked || b.left > smallBodyBytes {
		return errUnread
	}
	_, err := io.Copy(io.Discard, b)
	return err
}
