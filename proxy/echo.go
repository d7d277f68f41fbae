package proxy

import (
	"bytes"
	"io"
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/r8limiter/r8limiter/limiter"
)

// echo answers for an `echo:` upstream: the request as an upstream would get
// it, as JSON.
func (x *exchange) echo() {
	var size int64
	text := x.send.head
	if x.send.body != nil {
		n, err := io.Copy(io.Discard, x.send.body)
		if err != nil {
			x.refuseBody(err)
			return
		}
		size = n
	}
	head, small, _ := bytes.Cut(text, []byte("\r\n\r\n"))
	size += int64(len(small))
	x.status = fasthttp.StatusOK
	x.body = appendMirror(x.body[:0], head, small)
	x.body = append(strconv.AppendInt(append(x.body, `,"body_bytes":`...), size, 10), "}\n"...)
	x.answer("application/json", "")
}

// appendMirror appends a request as JSON, without the brace at the end.
func appendMirror(dst, head, body []byte) []byte {
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	method, line, _ := bytes.Cut(line, []byte{' '})
	target, _, _ := bytes.Cut(line, []byte{' '})
	dst = limiter.AppendJSON(append(dst, `{"method":`...), method)
	dst = limiter.AppendJSON(append(dst, `,"target":`...), target)
	dst = append(dst, `,"headers":[`...)
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(": "))
		dst = limiter.AppendJSON(append(dst, '['), name)
		dst = append(limiter.AppendJSON(append(dst, ','), value), "],"...)
	}
	dst = append(bytes.TrimSuffix(dst, []byte{','}), ']')
	return limiter.AppendJSON(append(dst, `,"body":`...), body)
}
