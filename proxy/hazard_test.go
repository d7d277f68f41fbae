package proxy

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// Answers that an attacker or a broken upstream sends, each on a real
// connection: it costs one attempt and one connection, and the next request gets the
// answer that is for it.
func TestBadAnswersCostOneAttemptAndOneConnection(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	tests := []struct {
		name, raw string
		want      error
	}{
		{"two lengths", ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", errFraming},
		{"two equal lengths", ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nab", errFraming},
		{"length and chunked", ok + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errFraming},
		{"gzip", ok + "Transfer-Encoding: gzip\r\n\r\nab", errCoding},
		{"gzip, chunked", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", errCoding},
		{"bad chunk size", ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", errChunkSize},
		{"chunk longer than its size", ok + "Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n", errChunkEnd},
		{"NUL in a value", ok + "A: \x00\r\n\r\n", errField},
		{"NUL in a name", ok + "A\x00: b\r\n\r\n", errField},
		{"HTTP/2 200", "HTTP/2 200\r\n\r\n", errStatusLine},
		{"HTTP/2.0 200 OK", "HTTP/2.0 200 OK\r\n\r\n", errStatusLine},
		{"HTTP/2 preface's answer", "\x00\x00\x12\x04\x00\x00\x00\x00\x00", errStatusLine},
		{"status 20", "HTTP/1.1 20 OK\r\n\r\n", errStatusLine},
		{"status 2000", "HTTP/1.1 2000 OK\r\n\r\n", errStatusLine},
		{"status 099", "HTTP/1.1 099 OK\r\n\r\n", errStatusLine},
		{"no space behind the status", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", errStatusLine},
		{"head of 1 MiB", ok + "A: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", errHeadTooLarge},
		{"LF only", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", errLineEnd},
		{"150 interim responses", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 150) + ok + "\r\n", errInterim},
		{"101 unasked", switching + answerOK, errSwitching},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startRaw(t, func(p *peer) {
				if _, whole := p.take(); whole && p.number == 1 {
					p.send(tt.raw)
					p.ended()
					return
				}
				p.send(answerOK)
				p.ended()
			})
			u := upstreamTo(t, s.target())
			_, _, err := roundTrip(u, &outgoing{head: []byte(getHead)})
			wantFault(t, err, faultProtocol)
			if !errors.Is(err, tt.want) || len(s.recorded()) != 1 || u.openConns() != 0 {
				t.Errorf("got %v, %d requests, %d connections open; want %v, 1, 0", err, len(s.recorded()), u.openConns(), tt.want)
			}
			mustAnswer(t, u, "ok")
		})
	}
}

// What a bodiless answer has behind its head, at once or later, is never read
// as the answer to the next request.
func TestBytesBehindAnAnswerAreNobodysAnswer(t *testing.T) {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	firsts := []struct {
		raw    string
		status int
	}{
		{"HTTP/1.1 204 No Content\r\nContent-Length: 51\r\n\r\n", 204},
		{"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204},
		{"HTTP/1.1 304 Not Modified\r\nContent-Length: 51\r\n\r\n", 304},
		{"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 102 x\r\n\r\nHTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n0\r\nA: b\r\n\r\n", 200},
	}
	for _, late := range []time.Duration{0, 10 * time.Millisecond, time.Second} {
		for _, first := range firsts {
			t.Run(late.String()+" "+first.raw, func(t *testing.T) {
				t.Parallel()
				sent := make(chan bool, 1)
				s := startRaw(t, func(p *peer) {
					if _, whole := p.take(); whole && p.number > 1 {
						p.send(answerOK)
						p.ended()
						return
					}
					if late == 0 {
						p.send(first.raw + evil)
					} else {
						p.send(first.raw)
						time.Sleep(late) // the case itself: bytes that come later
						p.send(evil)
					}
					sent <- true
					p.ended()
				})
				u := upstreamTo(t, s.target())
				status, body, err := roundTrip(u, &outgoing{head: []byte(getHead)})
				if status != first.status || body != "" || err != nil {
					t.Fatalf("got %d %q, %v; want %d without a body", status, body, err, first.status)
				}
				<-sent
				mustAnswer(t, u, "ok")
				if s.connections() != 2 {
					t.Errorf("got %d connections, want 2", s.connections())
				}
			})
		}
	}
}

// A 304 may name a length and keeps its connection. A 204 may not: what it
// announces might come yet, as the next client's answer.
func TestBodilessAnswersWithALengthKeepTheirConnection(t *testing.T) {
	for line, most := range map[string]int{"204 No Content": 3, "304 Not Modified": 1} {
		s := startRaw(t, always("HTTP/1.1 "+line+"\r\nContent-Length: 5\r\n\r\n"))
		u := upstreamTo(t, s.target())
		for range 3 {
			if _, body, err := roundTrip(u, &outgoing{head: []byte(getHead)}); body != "" || err != nil {
				t.Errorf("%s: got %q, %v", line, body, err)
			}
		}
		if s.connections() != most {
			t.Errorf("%s: got %d connections, want %d", line, s.connections(), most)
		}
	}
}
