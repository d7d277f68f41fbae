package proxy

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// startFixed is an upstream that allocates nothing: it answers every read.
func startFixed(t testing.TB, answer string) *upstream {
	raw := []byte(answer)
	s := startRaw(t, func(p *peer) {
		buf := make([]byte, 4096)
		for {
			if _, err := p.Conn.Read(buf); err != nil {
				return
			}
			if _, err := p.Conn.Write(raw); err != nil {
				return
			}
		}
	})
	return upstreamTo(t, s.target())
}

// exchangeInto is one request whose body is taken from memory.
func exchangeInto(u *upstream, out *outgoing, in *incoming) error {
	defer in.finish()
	if err := u.do(out, in); err != nil {
		return err
	}
	if _, whole := in.buffered(); !whole {
		return os.ErrInvalid
	}
	return nil
}

func TestPooledRequestAllocatesNothing(t *testing.T) {
	for _, raw := range []string{answerOK, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"} {
		u := startFixed(t, raw)
		out, in := &outgoing{head: []byte(getHead)}, new(incoming)
		allocs := testing.AllocsPerRun(500, func() {
			if err := exchangeInto(u, out, in); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%.60q: got %v allocations a request, want 0", raw, allocs)
		}
	}
}

func BenchmarkDo(b *testing.B) {
	fields := "Content-Type: application/json\r\nDate: Tue, 24 Nov 2026 00:00:00 GMT\r\nServer: raw\r\nCache-Control: no-store\r\nX-Request-Id: 0123456789abcdef\r\n"
	u := startFixed(b, "HTTP/1.1 200 OK\r\nContent-Length: 256\r\n"+fields+"\r\n"+strings.Repeat("x", 256))
	out, in := &outgoing{head: bytes.Repeat([]byte("x"), 512)}, new(incoming)
	b.ReportAllocs()
	for b.Loop() {
		if err := exchangeInto(u, out, in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResponseHead(b *testing.B) {
	raw := []byte("HTTP/1.1 200 OK\r\nContent-Length: 256\r\nContent-Type: application/json\r\nDate: Tue, 24 Nov 2026 00:00:00 GMT\r\nServer: raw\r\nCache-Control: no-store\r\nX-Request-Id: 0123456789abcdef\r\n\r\n")
	var in incoming
	b.ReportAllocs()
	for b.Loop() {
		in.clear()
		if _, err := in.parse(raw); err != nil || !in.framing.done {
			b.Fatal(err)
		}
	}
}
