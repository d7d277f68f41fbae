package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http/httputil"
	"strings"
	"testing"
)

// decodeAll decodes body in pieces of the given size, in place, as Read does.
func decodeAll(body string, size int) (data string, used int, done bool, err error) {
	var d chunkDecoder
	var out []byte
	for used < len(body) && !d.done() {
		p := []byte(body[used:min(used+size, len(body))])
		n, u, err := d.decode(p, p)
		out, used = append(out, p[:n]...), used+u
		if err != nil {
			return string(out), used, false, err
		}
	}
	return string(out), used, d.done(), nil
}

func TestChunksAreDecodedWhereverTheyAreCut(t *testing.T) {
	tests := []struct{ name, body, want string }{
		{"empty", "0\r\n\r\n", ""},
		{"one", "3\r\nabc\r\n0\r\n\r\n", "abc"},
		{"two", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde"},
		{"hex digits of both cases", "a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n", "01234567890123456789a"},
		{"leading zeros", "003\r\nabc\r\n000\r\n\r\n", "abc"},
		{"fifteen digits", "000000000000003\r\nabc\r\n0\r\n\r\n", "abc"},
		{"extension", "3;a=\"b c\"\tx\r\nabc\r\n0;last\r\n\r\n", "abc"},
		{"empty extension", "3;\r\nabc\r\n0\r\n\r\n", "abc"},
		{"trailers", "3\r\nabc\r\n0\r\nA: b\r\nC: \xc3\xa9\r\n\r\n", "abc"},
		{"data that looks like framing", "7\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n\r\n"},
		{"as many trailer fields as may be", "0\r\n" + strings.Repeat("A:\r\n", maxTrailerFields) + "\r\n", ""},
		{"largest extension", "1;" + strings.Repeat("x", maxChunkExtension-1) + "\r\na\r\n0\r\n\r\n", "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for size := 1; size <= len(tt.body); size++ {
				got, used, done, err := decodeAll(tt.body+"HTTP/1.1 200 OK", size)
				if err != nil || !done || got != tt.want || used != len(tt.body) {
					t.Fatalf("in pieces of %d: got %q, used %d, done %v, err %v; want %q, %d", size, got, used, done, err, tt.want, len(tt.body))
				}
			}
		})
	}
}

func TestMalformedChunksAreRefused(t *testing.T) {
	manyExtensions := strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n", 17)
	tests := []struct {
		name, body string
		want       error
	}{
		{"no digits", "\r\n\r\n", errChunkSize},
		{"no hex digit", "g\r\n", errChunkSize},
		{"sign", "+3\r\nabc\r\n0\r\n\r\n", errChunkSize},
		{"prefix", "0x3\r\nabc\r\n0\r\n\r\n", errChunkSize},
		{"underscore", "1_0\r\n", errChunkSize},
		{"space before the size", " 3\r\nabc\r\n0\r\n\r\n", errChunkSize},
		{"space after the size", "3 \r\nabc\r\n0\r\n\r\n", errChunkSize},
		{"sixteen digits", "0000000000000003\r\nabc\r\n0\r\n\r\n", errChunkSize},
		{"size line ends in LF", "3\nabc\r\n0\r\n\r\n", errChunkSize},
		{"size line ends in CR", "3\rabc\r\n0\r\n\r\n", errChunkSize},
		{"extension ends in LF", "3;a\nabc\r\n0\r\n\r\n", errChunkExtension},
		{"NUL in an extension", "3;\x00\r\nabc\r\n0\r\n\r\n", errChunkExtension},
		{"data longer than its size", "3\r\nabcd\r\n0\r\n\r\n", errChunkEnd},
		{"data ends in LF", "3\r\nabc\n0\r\n\r\n", errChunkEnd},
		{"data ends in CR CR", "3\r\nabc\r\r\n0\r\n\r\n", errChunkEnd},
		{"body ends in LF", "0\r\n\n", errTrailer},
		{"trailer ends in LF", "0\r\nA: b\n\r\n", errTrailer},
		{"trailer begins with a space", "0\r\n A: b\r\n\r\n", errTrailer},
		{"control byte in a trailer", "0\r\nA: \x01\r\n\r\n", errTrailer},
		{"space in a trailer name", "0\r\nA : b\r\n\r\n", errTrailer},
		{"trailer without a colon", "0\r\nA\r\n\r\n", errTrailer},
		{"trailer without a name", "0\r\n: b\r\n\r\n", errTrailer},
		{"folded trailer", "0\r\nA: b\r\n c\r\n\r\n", errTrailer},
		{"101 trailer fields", "0\r\n" + strings.Repeat("A:\r\n", maxTrailerFields+1) + "\r\n", errTrailer},
		{"extension over its bound", "1;" + strings.Repeat("x", maxChunkExtension) + "\r\na\r\n0\r\n\r\n", errChunkExtensions},
		{"extensions over their bound", manyExtensions + "0\r\n\r\n", errChunkExtensions},
		{"trailers over their bound", "0\r\nA: " + strings.Repeat("x", maxTrailerBytes) + "\r\n\r\n", errTrailer},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 7, len(tt.body)} {
				if got, _, _, err := decodeAll(tt.body, size); err != tt.want || !errors.Is(err, errChunk) {
					t.Errorf("in pieces of %d: got %q, %v; want %v", size, got, err, tt.want)
				}
			}
		})
	}
}

// A request's trailers are dropped: the decoder keeps them only when told.
func TestTrailersAreKeptOnlyWhenTold(t *testing.T) {
	body := []byte("1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n")
	for _, keep := range []bool{false, true} {
		d, want := chunkDecoder{keep: keep}, ""
		if keep {
			want = "A: b\r\nC:\r\n\r\n"
		}
		if n, used, err := d.decode(make([]byte, len(body)), body); n != 1 || used != len(body) || err != nil || !d.done() {
			t.Errorf("got %d bytes, used %d, done %v, %v", n, used, d.done(), err)
		}
		if string(d.kept) != want {
			t.Errorf("keep %v: got %q, want %q", keep, d.kept, want)
		}
	}
}

func TestTruncatedChunksAreNotDone(t *testing.T) {
	const body = "3;x\r\nabc\r\n0\r\nA: b\r\n\r\n"
	for n := range len(body) {
		if _, _, done, err := decodeAll(body[:n], 4); done || err != nil {
			t.Errorf("%q: got done %v, err %v", body[:n], done, err)
		}
	}
}

// FuzzChunked: however a body is cut it decodes to the same, and what we take
// for a whole body is that for net/http too.
func FuzzChunked(f *testing.F) {
	f.Add([]byte("3\r\nabc\r\n0\r\n\r\n"), 1)
	f.Add([]byte("a;x=y\r\n0123456789\r\n0\r\nA: b\r\n\r\nHTTP/1.1 200 OK"), 3)
	f.Add([]byte("fffffffffffffff\r\n"), 100)
	f.Add([]byte("1 \r\na\r\n0\n\n"), 5)
	f.Fuzz(func(t *testing.T, body []byte, size int) {
		size = max(1, min(size, 1<<16))
		whole := fmt.Sprint(decodeAll(string(body), 1<<20))
		if cut := fmt.Sprint(decodeAll(string(body), size)); cut != whole {
			t.Fatalf("in pieces of %d: %s, whole: %s", size, cut, whole)
		}
		got, used, done, _ := decodeAll(string(body), size)
		if !done {
			return
		}
		want, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(body)))
		if err != nil && !strings.Contains(err.Error(), "too much overhead") {
			t.Fatalf("we accept %q, net/http says %v", body[:used], err)
		}
		if err == nil && got != string(want) {
			t.Fatalf("got %q, net/http got %q", got, want)
		}
	})
}
