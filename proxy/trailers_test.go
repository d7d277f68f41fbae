package proxy

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// trailersOf reads the answer raw in reads of size and returns its trailers.
func trailersOf(t *testing.T, in *incoming, raw string, size int) (body, names string, trailers []string, err error) {
	t.Helper()
	in.clear()
	if err := in.receive(connOf([]byte(raw), size), &outgoing{}, 1<<30); err != nil {
		t.Fatal(err)
	}
	names = string(in.appendTrailerNames(nil))
	start, _ := in.buffered()
	body = string(start)
	rest, err := io.ReadAll(in)
	for _, f := range in.trailers {
		trailers = append(trailers, fmt.Sprintf("%s=%s", f.name, f.value))
	}
	in.conn = nil
	return body + string(rest), names, trailers, err
}

func TestAnnouncedTrailersAreCollected(t *testing.T) {
	tests := []struct {
		name, head, trailer, names string
		want                       []string
	}{
		{"announced", "Trailer: Checksum\r\n", "Checksum: \t abc \r\n", "Checksum", []string{"Checksum=abc"}},
		{"other case", "trailer: checkSUM\r\n", "CHECKsum: abc\r\n", "checkSUM", []string{"CHECKsum=abc"}},
		{"a list in two fields", "Trailer: A,, B ,\r\nTrailer: C\r\n", "C: 3\r\nA: 1\r\nB:\r\nA: 2\r\n", "A, B, C", []string{"C=3", "A=1", "B=", "A=2"}},
		{"not announced", "Trailer: A\r\n", "B: 1\r\nAA: 2\r\n", "A", nil},
		{"nothing announced", "", "A: 1\r\n", "", nil},
		{"announced, none came", "Trailer: A\r\n", "", "A", nil},
		{"nominated by Connection", "Trailer: A, B\r\nConnection: a\r\n", "A: 1\r\nB: 2\r\n", "B", []string{"B=2"}},
		{"no token", "Trailer: a b, \"c\"\r\n", "A: 1\r\n", "", nil},
		{"forbidden ones", "Trailer: Content-Length, Set-Cookie, A, x-ratelimit-limit\r\n",
			"Content-Length: 5\r\nSet-Cookie: a\r\nX-RateLimit-Limit: 9\r\nA: 1\r\n", "A", []string{"A=1"}},
	}
	var in incoming
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + tt.head + "\r\n2\r\nok\r\n0\r\n" + tt.trailer + "\r\n"
			for size := 1; size <= len(raw); size++ {
				body, names, got, err := trailersOf(t, &in, raw, size)
				if body != "ok" || names != tt.names || err != nil {
					t.Fatalf("in reads of %d bytes: got %q, names %q, %v; want names %q", size, body, names, err, tt.names)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Fatalf("in reads of %d bytes (-want +got):\n%s", size, diff)
				}
			}
		})
	}
}

// RFC 9110 section 6.5.1, and what would speak for us.
func TestFieldsThatMayNotTrail(t *testing.T) {
	const never = "Transfer-Encoding Content-Length Host Trailer TE Connection Keep-Alive Proxy-Connection Upgrade " +
		"Authorization Proxy-Authenticate Proxy-Authorization WWW-Authenticate Set-Cookie Cookie " +
		"Cache-Control Expires Age Vary Date Location Retry-After Warning Pragma Expect Max-Forwards Range If-Match If-None-Match " +
		"Content-Type Content-Encoding Content-Range Access-Control-Allow-Origin " +
		"RateLimit RateLimit-Policy X-RateLimit-Limit X-RateLimit-Remaining X-Forwarded-For X-Request-Id X_Checksum"
	for name := range strings.FieldsSeq(never) {
		for _, spelt := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			if mayTrail([]byte(spelt)) {
				t.Errorf("%s may be a trailer field, want it forbidden", spelt)
			}
		}
	}
	for _, name := range []string{"Checksum", "Digest", "Server-Timing", "Grpc-Status", "ETags", "X-Rate", "Iff"} {
		if !mayTrail([]byte(name)) {
			t.Errorf("%s may be no trailer field, want it allowed", name)
		}
	}
}

func TestTrailersDoNotOutliveTheirAnswer(t *testing.T) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
	answers := []string{
		chunked + "Trailer: A\r\n\r\n2\r\nok\r\n0\r\nA: one\r\n\r\n", chunked + "Trailer: A\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		answerOK, chunked + "Trailer: A\r\n\r\n2\r\nok\r\n0\r\nA: four\r\n\r\n",
	}
	s := startRaw(t, func(p *peer) {
		for _, raw := range answers {
			p.take()
			p.send(raw)
		}
		p.ended()
	})
	u := upstreamTo(t, s.target())
	var in incoming
	for i, want := range []string{"one", "", "", "four"} {
		mustDo(t, u, &outgoing{head: []byte(getHead)}, &in, 200)
		in.buffered()
		if _, err := io.ReadAll(&in); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range in.trailers {
			got = append(got, string(f.value))
		}
		in.finish()
		if strings.Join(got, ",") != want || len(in.trailers) != 0 {
			t.Errorf("answer %d: got %q, want %q; %d after finish", i, got, want, len(in.trailers))
		}
	}
	if s.connections() != 1 {
		t.Errorf("got %d connections, want 1", s.connections())
	}
}

func TestMalformedTrailersAreRefused(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n2\r\nok\r\n0\r\n"
	for name, trailer := range map[string]string{
		"folded": "A: b\r\n c\r\n\r\n", "no colon": "A\r\n\r\n", "no name": ": b\r\n\r\n", "space before the colon": "A : b\r\n\r\n",
		"NUL in a value": "A: \x00\r\n\r\n", "LF only": "A: b\n\r\n", "over 16 KiB": "A: " + strings.Repeat("x", maxTrailerBytes) + "\r\n\r\n",
		"101 fields": strings.Repeat("A: b\r\n", maxTrailerFields+1) + "\r\n",
	} {
		var in incoming
		for _, size := range []int{1, 1 << 20} {
			_, _, got, err := trailersOf(t, &in, head+trailer, size)
			wantFault(t, err, faultProtocol)
			if err == nil || !strings.Contains(err.Error(), errTrailer.Error()) || len(got) > 0 || in.reuse && in.whole {
				t.Errorf("%s: got %q, %v; want none, %v", name, got, err, errTrailer)
			}
		}
	}
}

func TestTrailersAllocateNothingLater(t *testing.T) {
	in, raw := new(incoming), []byte("2\r\nok\r\n0\r\nA: b\r\nB: c\r\n\r\n")
	head := []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A, B\r\n\r\n")
	allocs := testing.AllocsPerRun(100, func() {
		in.clear()
		if _, err := in.parse(head); err != nil {
			t.Fatal(err)
		}
		in.begin(&outgoing{})
		body := append(in.reason[:0:0], raw...)
		in.take(body)
	})
	if len(in.trailers) != 2 || allocs > 1 { // the one is the copy of raw here
		t.Errorf("got %d trailers, %v allocations", len(in.trailers), allocs)
	}
}
