package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// bytesConn is a connection on which the given bytes arrive, at most size in
// one read, and then its end.
type bytesConn struct {
	net.Conn
	rest []byte
	size int
}

func (c *bytesConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.rest[:min(c.size, len(c.rest))])
	c.rest = c.rest[n:]
	return n, nil
}

func (c *bytesConn) SetReadDeadline(time.Time) error { return nil }
func (c *bytesConn) Close() error                    { return nil }

// connOf is an upstream connection on which raw arrives.
func connOf(raw []byte, size int) *upstreamConn {
	u := &upstream{upstreamOptions: upstreamOptions{idleTimeout: time.Minute}}
	return &upstreamConn{Conn: &bytesConn{rest: raw, size: size}, upstream: u, target: &target{upstream: u, open: 1}, buf: make([]byte, minReadBuffer)}
}

// answer is a response as a caller sees it.
type answer struct {
	Status int
	Reason string
	Fields []string
	Length int64
	Body   string
	Reuse  bool
	Err    string
}

func answerOf(raw string, size int, isHead bool) answer {
	c := connOf([]byte(raw), size)
	var in incoming
	if err := in.receive(c, &outgoing{isHead: isHead}, time.Minute); err != nil {
		return answer{Err: err.Error()}
	}
	a := answer{Status: in.status, Reason: string(in.reason), Length: in.length}
	for _, f := range in.fields {
		a.Fields = append(a.Fields, string(f.name)+"="+string(f.value))
	}
	start, whole := in.buffered()
	a.Body = string(start)
	rest, err := io.ReadAll(&in)
	a.Body += string(rest)
	if whole && len(rest) > 0 {
		err = errors.New("buffered said whole, but more came")
	}
	if err != nil {
		a.Err = err.Error()
	}
	a.Reuse = in.whole && in.reuse && c.read == c.end
	in.conn = nil // a bytesConn is of no use in the pool
	return a
}

func TestResponses(t *testing.T) {
	tests := []struct {
		name, raw string
		isHead    bool
		want      answer
	}{
		{name: "length", raw: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: \t a b \r\n\r\nabc",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"Content-Length=3", "X=a b"}, Length: 3, Body: "abc", Reuse: true}},
		{name: "no body", raw: "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
			want: answer{Status: 404, Reason: "Not Found", Fields: []string{"content-length=0"}, Reuse: true}},
		{name: "chunked", raw: "HTTP/1.1 200 OK\r\nTRANSFER-encoding: Chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nA: b\r\n\r\n",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"TRANSFER-encoding=Chunked"}, Length: -1, Body: "abc", Reuse: true}},
		{name: "until close", raw: "HTTP/1.1 200 \r\n\r\nabc", want: answer{Status: 200, Length: -2, Body: "abc"}},
		{name: "empty value, high bytes", raw: "HTTP/1.1 599 \xc3\xa9\r\nContent-Length: 0\r\nA:\r\nB:\xff\r\n\r\n",
			want: answer{Status: 599, Reason: "\xc3\xa9", Fields: []string{"Content-Length=0", "A=", "B=\xff"}, Reuse: true}},
		{name: "204 with a length and a body", raw: "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
			want: answer{Status: 204, Reason: "No Content", Fields: []string{"Content-Length=3"}}},
		{name: "304 with chunked", raw: "HTTP/1.1 304 x\r\nTransfer-Encoding: chunked\r\n\r\n",
			want: answer{Status: 304, Reason: "x", Fields: []string{"Transfer-Encoding=chunked"}, Reuse: true}},
		{name: "HEAD", isHead: true, raw: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"Content-Length=3"}, Reuse: true}},
		{name: "interim responses are skipped", raw: strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 9\r\n\r\n", 16) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"Content-Length=0"}, Reuse: true}},
		{name: "close", raw: "HTTP/1.1 200 OK\r\nConnection: Keep-Alive, x\r\nConnection: y, Close\r\nContent-Length: 0\r\n\r\n",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"Connection=Keep-Alive, x", "Connection=y, Close", "Content-Length=0"}}},
		{name: "HTTP/1.0 closes", raw: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"Content-Length=1"}, Length: 1, Body: "a"}},
		{name: "HTTP/1.0 with keep-alive", raw: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"Connection=keep-alive", "Content-Length=1"}, Length: 1, Body: "a", Reuse: true}},
		{name: "truncated", raw: "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"Content-Length=4"}, Length: 4, Body: "abc", Err: errTruncated.Error()}},
		{name: "chunked without its end", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"Transfer-Encoding=chunked"}, Length: -1, Body: "abc", Err: errTruncated.Error()}},
		{name: "bad chunk", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX",
			want: answer{Status: 200, Reason: "OK", Fields: []string{"Transfer-Encoding=chunked"}, Length: -1, Body: "abc", Err: errChunkEnd.Error()}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for size := 1; size <= len(tt.raw); size++ {
				if diff := cmp.Diff(tt.want, answerOf(tt.raw, size, tt.isHead)); diff != "" {
					t.Fatalf("in reads of %d bytes (-want +got):\n%s", size, diff)
				}
			}
		})
	}
}

func TestBytesAfterTheResponseForbidReuse(t *testing.T) {
	for _, raw := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n0",
		"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.1 304 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		if a := answerOf(raw, len(raw), false); a.Reuse || a.Err != "" {
			t.Errorf("%q: got %+v, want no reuse and no error", raw, a)
		}
	}
}

func TestMalformedHeadsAreRefused(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	tests := []struct {
		name, raw string
		want      error
	}{
		{"nothing", "", errNoAnswer},
		{"one byte", "H", errCutHead},
		{"cut after a line", ok, errCutHead},
		{"cut before the last LF", ok + "\r", errCutHead},
		{"HTTP/2", "HTTP/2 200\r\n\r\n", errStatusLine},
		{"HTTP/1.2", "HTTP/1.2 200 OK\r\n\r\n", errStatusLine},
		{"HTTP/0.9", "<html>", errStatusLine},
		{"lower case", "http/1.1 200 OK\r\n\r\n", errStatusLine},
		{"TLS alert", "\x15\x03\x01\x00\x02\x02\x46", errStatusLine},
		{"empty line first", "\r\n" + ok + "\r\n", errStatusLine},
		{"status 20", "HTTP/1.1 20 OK\r\n\r\n", errStatusLine},
		{"status 2000", "HTTP/1.1 2000 OK\r\n\r\n", errStatusLine},
		{"status 099", "HTTP/1.1 099 OK\r\n\r\n", errStatusLine},
		{"status 600", "HTTP/1.1 600 OK\r\n\r\n", errStatusLine},
		{"status +20", "HTTP/1.1 +20 OK\r\n\r\n", errStatusLine},
		{"no space after the status", "HTTP/1.1 200\r\n\r\n", errStatusLine},
		{"two spaces before the status", "HTTP/1.1  200 OK\r\n\r\n", errStatusLine},
		{"NUL in the reason", "HTTP/1.1 200 O\x00K\r\n\r\n", errStatusLine},
		{"CR in the reason", "HTTP/1.1 200 O\rK\r\n\r\n", errStatusLine},
		{"LF only", "HTTP/1.1 200 OK\n\n", errLineEnd},
		{"one field ends in LF", ok + "A: b\n\r\n", errLineEnd},
		{"head ends in LF", ok + "A: b\r\n\n", errLineEnd},
		{"folded line", ok + "A: b\r\n c\r\n\r\n", errField},
		{"folded first line", ok + "\tA: b\r\n\r\n", errField},
		{"no colon", ok + "A\r\n\r\n", errField},
		{"no name", ok + ": b\r\n\r\n", errField},
		{"space before the colon", ok + "A : b\r\n\r\n", errField},
		{"NUL in a name", ok + "A\x00: b\r\n\r\n", errField},
		{"NUL in a value", ok + "A: b\x00\r\n\r\n", errField},
		{"CR in a value", ok + "A: b\rc\r\n\r\n", errField},
		{"two lengths", ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", errFraming},
		{"two equal lengths", ok + "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", errFraming},
		{"list of lengths", ok + "Content-Length: 1, 1\r\n\r\n", errFraming},
		{"empty length", ok + "Content-Length:\r\n\r\n", errFraming},
		{"negative length", ok + "Content-Length: -1\r\n\r\n", errFraming},
		{"signed length", ok + "Content-Length: +1\r\n\r\n", errFraming},
		{"hexadecimal length", ok + "Content-Length: 0x1\r\n\r\n", errFraming},
		{"huge length", ok + "Content-Length: 9999999999999999999\r\n\r\n", errFraming},
		{"length and coding", ok + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", errFraming},
		{"coding and length, to HEAD too", ok + "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", errFraming},
		{"chunked twice", ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", errFraming},
		{"chunked in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", errFraming},
		{"gzip coding", ok + "Transfer-Encoding: gzip\r\n\r\n", errCoding},
		{"gzip and chunked", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n", errCoding},
		{"identity", ok + "Transfer-Encoding: identity\r\n\r\n", errCoding},
		{"vertical tab and chunked", ok + "Transfer-Encoding: \x0bchunked\r\n\r\n", errField},
		{"101", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", errSwitching},
		{"17 interim responses", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 17) + ok + "\r\n", errInterim},
		{"malformed interim response", "HTTP/1.1 103 x\r\nA\r\n\r\n" + ok + "\r\n", errField},
		{"257 fields", ok + strings.Repeat("A: b\r\n", 257) + "\r\n", errFields},
		{"1 MiB", ok + "A: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", errHeadTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 3, 1 << 20} {
				if got := answerOf(tt.raw, size, true); got.Err != tt.want.Error() {
					t.Errorf("in reads of %d bytes: got %+v, want error %q", size, got, tt.want)
				}
			}
		})
	}
}

func TestHeadsUpToTheBoundsAreTaken(t *testing.T) {
	raw := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + strings.Repeat("A: b\r\n", 255) + "\r\nok"
	if got := answerOf(raw, len(raw), false); got.Body != "ok" || len(got.Fields) != 256 || got.Err != "" {
		t.Errorf("256 fields: got %+v", got)
	}
	const before, after = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: ", "\r\nB: c\r\n\r\n"
	long := strings.Repeat("x", maxResponseHead-len(before)-len(after))
	got := answerOf(before+long+after+"ok", 1000, false)
	want := answer{Status: 200, Reason: "OK", Length: 2, Body: "ok", Fields: []string{"Content-Length=2", "A=" + long, "B=c"}, Reuse: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("64 KiB (-want +got):\n%s", diff)
	}
}

func TestZeroIncomingIsSafe(t *testing.T) {
	var in incoming
	in.finish()
	in.finish()
	if body, whole := in.buffered(); len(body) > 0 || whole {
		t.Errorf("buffered: got %q, %v", body, whole)
	}
	if n, err := in.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("Read: got %d, %v; want an error that is not io.EOF", n, err)
	}
}

// netHTTPAnswer is what net/http reads, in the same form as answerOf's.
func netHTTPAnswer(raw []byte, method string) (answer, http.Header, error) {
	r := bufio.NewReader(bytes.NewReader(raw))
	for {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return answer{}, nil, err
		}
		if resp.StatusCode < 200 {
			continue
		}
		a := answer{Status: resp.StatusCode, Length: resp.ContentLength}
		if _, reason, ok := strings.Cut(resp.Status, " "); ok {
			a.Reason = reason
		}
		switch {
		case method == "HEAD" || resp.Body == http.NoBody:
			a.Length = 0
		case len(resp.TransferEncoding) > 0:
			a.Length = lengthChunked
		case a.Length < 0:
			a.Length = lengthUntilClose
		}
		body, err := io.ReadAll(resp.Body)
		a.Body = string(body)
		return a, resp.Header, err
	}
}

// headerOf is our fields as net/http keeps them.
func headerOf(fields []string) http.Header {
	h := http.Header{}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		if key := textproto.CanonicalMIMEHeaderKey(name); key != "Transfer-Encoding" && key != "Trailer" {
			h[key] = append(h[key], value)
		}
	}
	if p := h["Pragma"]; len(p) > 0 && p[0] == "no-cache" && h["Cache-Control"] == nil {
		h["Cache-Control"] = []string{"no-cache"}
	}
	return h
}

// FuzzResponseHead: what we read doesn't depend on how it arrives, and where
// net/http takes a response too it reads the same.
func FuzzResponseHead(f *testing.F) {
	for _, raw := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204 No Content\r\nConnection: keep-alive\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nPragma: no-cache\r\n\r\n3;x\r\nabc\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 404 \r\nX:\t y \r\nx: z\r\n\r\nrest",
		"HTTP/1.1 200 OK\nContent-Length: 1\nContent-Length: 1\n\na",
	} {
		f.Add([]byte(raw), false, 5)
		f.Add([]byte(raw), true, 1)
	}
	f.Fuzz(func(t *testing.T, raw []byte, isHead bool, size int) {
		got := answerOf(string(raw), 1<<20, isHead)
		cut := answerOf(string(raw), max(1, min(size, 1<<16)), isHead)
		cut.Reuse = got.Reuse // bytes after the response may not have arrived
		if diff := cmp.Diff(got, cut); diff != "" {
			t.Fatalf("in reads of %d bytes (-whole +cut):\n%s", size, diff)
		}
		method := http.MethodGet
		if isHead {
			method = http.MethodHead
		}
		want, header, err := netHTTPAnswer(raw, method)
		if got.Err != "" || err != nil {
			return
		}
		if diff := cmp.Diff(header, headerOf(got.Fields)); diff != "" {
			t.Fatalf("fields (-net/http +ours):\n%s", diff)
		}
		got.Fields, got.Reuse, got.Reason = nil, false, strings.TrimLeft(got.Reason, " ")
		want.Reason = strings.TrimLeft(want.Reason, " ")
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("got %+v, net/http got %+v", got, want)
		}
	})
}
