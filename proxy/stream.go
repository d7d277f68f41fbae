package proxy

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"
)

// stream is one request of HTTP/2 and its answer.
type stream struct {
	conn    *http2Conn
	r       *http.Request
	w       http.ResponseWriter
	control *http.ResponseController
	limits  *LimitsConfig // those in force when the request began

	size   int64 // bytes of the body that came
	waited time.Duration
	err    error // of the body; stays

	departure departure

	begun bool  // the head of the answer is out
	left  int64 // of the answer's body: bytes to come, -1 if nobody knows
	cut   bool  // the answer is not whole, and the client must see that
}

// parse holds the client to what a head of HTTP/1.1 is held to. x/net has refused
// pseudo fields that are amiss, fields of connections, and an :authority other than Host.
func (s *stream) parse(r *request, l *LimitsConfig) error {
	r.version, r.secure = 20, true
	s.limits = l
	size, err := s.measure(l)
	if err != nil {
		return err
	}
	target, err := s.copyHead(r, size)
	switch {
	case err != nil:
		return err
	case s.r.Method == http.MethodConnect:
		return errConnect
	case !isToken(r.method):
		return badRequest("the :method is no token")
	case s.r.TLS == nil:
		return badRequest("the :scheme is not https, which is spoken here")
	case len(target) > l.TargetBytes:
		return tooLongTarget(l)
	}
	if err := s.frame(r); err != nil {
		return err
	}
	if err := r.parseTarget(target); err != nil {
		return err
	}
	return r.parseHost()
}

// measure is the size of the head if HTTP/1.1 had written it, which is bounded.
func (s *stream) measure(l *LimitsConfig) (size int, err error) {
	size = len(s.r.Method) + len(s.r.RequestURI) + len("  HTTP/1.1\r\nHost: \r\n\r\n") + len(s.r.Host)
	count := 1 // Host
	for name, values := range s.r.Header {
		count += len(values)
		for _, value := range values {
			size += len(name) + len(value) + len(": \r\n")
		}
	}
	switch {
	case size > l.HeaderBytes:
		return size, tooLargeHead(l)
	case count > l.HeaderFields:
		return size, tooManyFields(l)
	}
	return size, nil
}

var hostName = []byte("Host")

// copyHead takes over the parts of the head, and checks the fields. x/net keeps the
// order of fields of one name only; the names are put in order, so that equal
// requests stay equal.
func (s *stream) copyHead(r *request, size int) (target []byte, err error) {
	text := make([]byte, 0, size)
	take := func(part string) []byte {
		start := len(text)
		text = append(text, part...)
		return text[start:len(text):len(text)]
	}
	r.method, r.hostport, target = take(s.r.Method), take(s.r.Host), take(s.r.RequestURI)
	r.fields = append(r.fields[:0], field{hostName, r.hostport})
	for _, name := range slices.Sorted(maps.Keys(s.r.Header)) {
		for _, value := range s.r.Header[name] {
			f := field{take(name), take(value)}
			switch {
			case !isToken(f.name):
				return target, badRequest("a header field has no proper name")
			case !isFieldValue(f.value) || len(trimSpace(f.value)) < len(f.value):
				return target, badRequest("a header field holds control characters, or begins or ends with a space")
			}
			r.fields = append(r.fields, f)
		}
	}
	return target, nil
}

// frame finds the length of the body. x/net holds the DATA frames to the first
// Content-Length, but reads it leniently, and not at all if there is no DATA.
func (s *stream) frame(r *request) error {
	if err := r.parseFraming(); err != nil {
		return err
	}
	switch {
	case r.framed && r.length != s.r.ContentLength:
		return badRequest("there is no body of the length that Content-Length says")
	case s.r.ContentLength < 0:
		r.length, r.framed = -1, true
	}
	return nil
}

func (s *stream) body() io.Reader { return s }

func (s *stream) interrupt() { _ = s.control.SetReadDeadline(longAgo) }

func (s *stream) departing() *departure { return &s.departure }

// Read reads the body as requestBody.Read does.
func (s *stream) Read(p []byte) (int, error) {
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	limits, start := s.limits, time.Now()
	if s.err = s.control.SetReadDeadline(start.Add(limits.BodyTimeout)); s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Body.Read(p)
	s.size += int64(n)
	s.waited += time.Since(start)
	switch {
	case s.size > limits.BodyBytes:
		s.err = tooLargeBody(limits)
	case limits.tooThin(s.size, s.waited):
		s.err = tooThinBody(limits)
	case err == io.EOF:
		s.err = io.EOF
		return n, s.err
	case err != nil:
		s.err = bodyError(err, limits)
	default:
		return n, nil
	}
	return 0, s.err
}

// proceed has nothing to do: x/net sends the word when the body is first read.
func (s *stream) proceed(time.Time) error { return nil }

// send writes to the client, which has write_timeout to open its window for it.
// What completes an answer is left to x/net to send when the handler returns, because
// it then needs no frame of its own to end the stream; all else is out at once.
func (s *stream) send(p []byte, head int, now time.Time) error {
	err := s.control.SetWriteDeadline(now.Add(s.limits.WriteTimeout))
	if err == nil && head > 0 {
		s.sendHead(p[:head])
		p = p[head:]
	}
	if err == nil && len(p) > 0 {
		_, err = s.w.Write(p)
	}
	if s.left > 0 {
		s.left -= int64(len(p))
	}
	if err == nil && (!s.begun || s.left != 0) {
		err = s.pass()
	}
	s.cut = s.cut || err != nil
	return err
}

// pass sends what is buffered. Nothing is due until the next piece.
func (s *stream) pass() error {
	if s.begun {
		if err := s.control.Flush(); err != nil {
			return err
		}
	}
	return s.control.SetWriteDeadline(time.Time{})
}

// sendHead takes a head of HTTP/1.1 apart. x/net is kept from adding fields. An
// interim head is out when it returns; 100 is x/net's to send.
func (s *stream) sendHead(head []byte) {
	line, lines, _ := bytes.Cut(head, []byte("\r\n"))
	status, _ := strconv.Atoi(string(line[len("HTTP/1.1 "):][:3]))
	h := s.w.Header()
	clear(h)
	for len(lines) > len("\r\n") {
		line, lines, _ = bytes.Cut(lines, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(": "))
		if !isHopByHop(name) || equalFold(name, "Content-Length") {
			key := http.CanonicalHeaderKey(string(name))
			h[key] = append(h[key], string(value))
		}
	}
	if status < 200 {
		if status != fasthttp.StatusContinue {
			s.w.WriteHeader(status)
		}
		clear(h)
		return
	}
	for _, name := range [...]string{"Date", "Content-Type"} {
		if _, ok := h[name]; !ok {
			h[name] = nil
		}
	}
	if s.conn.server.proxy.draining.Load() {
		h["Connection"] = []string{"close"} // x/net makes it a GOAWAY
	}
	s.begun, s.left = true, s.bodyLength(status, h)
	s.w.WriteHeader(status)
}

// bodyLength is how many bytes of body follow a final head; -1 if it doesn't say.
func (s *stream) bodyLength(status int, h http.Header) int64 {
	if s.r.Method == http.MethodHead || status == fasthttp.StatusNoContent || status == fasthttp.StatusNotModified {
		return 0
	}
	n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func (s *stream) flush() { _ = s.control.Flush() }

// trail keeps trailers for x/net to send when the handler returns.
func (s *stream) trail(trailers []field) {
	h := s.w.Header()
	for i := range trailers {
		key := http.TrailerPrefix + http.CanonicalHeaderKey(string(trailers[i].name))
		h[key] = append(h[key], string(trailers[i].value))
	}
}

func (s *stream) finish(x *exchange) {
	s.cut = s.cut || x.cut || !s.begun || s.left > 0
}
