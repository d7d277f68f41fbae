package proxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// An answer that must not have a body has none, whatever the upstream sent
// behind its head, and what it sent is nobody else's answer either.
func TestBodilessAnswersAreBodilessToTheClient(t *testing.T) {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for _, c := range []struct{ name, method, answer, want string }{
		{"HEAD with a length", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"},
		{"HEAD, chunked", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"},
		{"HEAD without a length", "HEAD", "HTTP/1.1 200 OK\r\nX: 1\r\n\r\n", "HTTP/1.1 200 OK\r\nX: 1\r\n\r\n"},
		{"HEAD with a body", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 43\r\n\r\n" + evil, "HTTP/1.1 200 OK\r\nContent-Length: 43\r\n\r\n"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"204 with a body", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 43\r\n\r\n" + evil, "HTTP/1.1 204 No Content\r\n\r\n"},
		{"204, chunked", "GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2b\r\n" + evil + "\r\n0\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 1000\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 1000\r\n\r\n"},
		{"304 with a body", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 43\r\n\r\n" + evil, "HTTP/1.1 304 Not Modified\r\nContent-Length: 43\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rg, _ := rawRig(t, 100, func(p *peer) {
				for {
					request, ok := p.take()
					switch {
					case !ok:
						return
					case strings.HasPrefix(request, "GET /next "):
						p.send(okAnswer)
					default:
						p.send(c.answer)
					}
				}
			}, bypassing)
			client := rg.dial(t)
			for range 3 {
				client.send(c.method + " /x HTTP/1.1\r\nHost: a\r\n\r\n")
				want(t, "answer", client.answer("HEAD"), c.want)
				client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
				want(t, "the next", client.answer("GET"), okAnswer)
			}
		})
	}
}

// untilClose is an answer whose body ends with the connection.
const untilClose = "HTTP/1.1 200 OK\r\n\r\nhalf."

// A body that ends with the upstream's connection is chunked to HTTP/1.1, so
// that its end shows, and ends with the connection of HTTP/1.0.
func TestAnswerUntilCloseEndsWhereItEnds(t *testing.T) {
	rg, _ := rawRig(t, 100, func(p *peer) { p.take(); p.send(untilClose) }, bypassing)
	client := rg.dial(t)
	for range 2 {
		client.send(plainGet)
		if got := client.answer("GET"); got != "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf.\r\n0\r\n\r\n" {
			t.Errorf("HTTP/1.1: got %q", got)
		}
	}
	for _, keep := range []string{"", "Connection: keep-alive\r\n"} {
		old := rg.dial(t)
		old.send("GET /x HTTP/1.0\r\n" + keep + "\r\n")
		want(t, "HTTP/1.0", old.ended(), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf.")
	}
}

// A connection that was reset, or a TLS one that ended without a word, was cut:
// its part of an answer must not look like the whole.
func TestAnswerThatWasCutHasNoEnd(t *testing.T) {
	a := newAuthority(t)
	files := a.issue(t, "server")
	cut := func(p *peer) { // amid a TLS stream, or by a reset
		if secure, ok := p.Conn.(*tls.Conn); ok {
			_ = secure.NetConn().Close()
			return
		}
		_ = p.Conn.(*net.TCPConn).SetLinger(0)
	}
	answers := []string{untilClose, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf.\r\n"}
	for _, secure := range []bool{false, true} {
		for i, answer := range answers {
			seen := make(chan bool)
			script := func(p *peer) {
				p.take()
				p.send(answer)
				<-seen // the client has the half: a reset must not overtake it
				cut(p)
			}
			rg, _ := rawRig(t, 100, script, bypassing)
			if secure {
				s := serveRaw(t, a.listen(t, files), script)
				rg, _ = rawRig(t, 100, script, func(c *Config) {
					bypassing(c)
					c.Upstreams["api"] = UpstreamConfig{Targets: []string{"https://" + s.listener.Addr().String()}, TLS: &UpstreamTLSConfig{CAFile: a.file}}
				})
			}
			c := rg.dial(t)
			c.send(plainGet)
			if got := c.until("half."); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
				t.Fatalf("got %q", got)
			}
			close(seen)
			rest, err := io.ReadAll(c.r)
			if strings.Contains(string(rest), "0\r\n") || err != nil {
				t.Errorf("answer %d, TLS %v: then %q, %v; want the end of the connection alone", i, secure, rest, err)
			}
			eventually(t, "the fault is counted", func() bool { return rg.faults(faultClosed) == 1 })
		}
	}
}

// The proper end of TLS is the end of a body that has no other.
func TestAnswerUntilCloseEndsWithTLS(t *testing.T) {
	a := newAuthority(t)
	s := serveRaw(t, a.listen(t, a.issue(t, "server")), func(p *peer) { p.take(); p.send(untilClose) })
	rg, _ := rawRig(t, 100, func(*peer) {}, func(c *Config) {
		bypassing(c)
		c.Upstreams["api"] = UpstreamConfig{Targets: []string{"https://" + s.listener.Addr().String()}, TLS: &UpstreamTLSConfig{CAFile: a.file}}
	})
	c := rg.dial(t)
	c.send(plainGet)
	if got := c.answer("GET"); !strings.HasSuffix(got, "\r\n\r\n5\r\nhalf.\r\n0\r\n\r\n") {
		t.Errorf("got %q", got)
	}
}

// until reads up to text, which is part of an answer.
func (c *rawClient) until(text string) string {
	c.t.Helper()
	var got strings.Builder
	for !strings.HasSuffix(got.String(), text) {
		b, err := c.r.ReadByte()
		if err != nil {
			c.t.Fatalf("%v after %q", err, got.String())
		}
		got.WriteByte(b)
	}
	return got.String()
}

// faults counts the faults of the upstream api in the middle of answers or
// before them, by kind.
func (rg *rig) faults(kind fault) uint64 {
	return rg.p.rules.Load().upstreams["api"].metrics.faults[kind].Get()
}

// An upstream that refuses an upload early is heard by a client that sends all
// before it reads, whether it reads on or closes, and in whatever framing.
func TestEarlyRefusalOfAnUploadIsReadWhole(t *testing.T) {
	const size = 8 << 20
	const answer = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge"
	for name, script := range map[string]func(p *peer){
		"and closes":   func(p *peer) { p.takeHead(); p.send(answer) },
		"and waits":    func(p *peer) { p.takeHead(); p.send(answer); <-p.server.stopped },
		"and reads on": func(p *peer) { p.takeHead(); p.send(answer); p.ended() },
		"amid it": func(p *peer) {
			p.takeHead()
			_, _ = io.CopyN(io.Discard, p.r, 1<<20)
			p.send(answer)
		},
	} {
		rg, _ := rawRig(t, 1000, script, bypassing)
		for head, body := range map[string]string{
			fmt.Sprintf("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", size): rawPiece,
			"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n":            chunk64K,
		} {
			for range 10 {
				c := rg.dial(t)
				stop := c.upload(head, body, size)
				got := c.answer("POST")
				if !strings.HasPrefix(got, "HTTP/1.1 413 ") || !strings.HasSuffix(got, "\r\n\r\nlarge") {
					t.Errorf("%s: got %q, want the upstream's 413", name, got)
				}
				stop()
				c.Close()
			}
		}
	}
}

// A request that one target refuses goes to the other whole, with one word to
// a client that waits for it.
func TestBodyGoesWholeToTheOtherTarget(t *testing.T) {
	for _, size := range []int{0, 5, smallBodyBytes, smallBodyBytes + 1, 1 << 20} {
		for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
			dead := refusing(t)
			rg, up := rawRig(t, 1000, always(okAnswer), func(c *Config) {
				bypassing(c)
				c.Upstreams["api"] = UpstreamConfig{Targets: append([]string{dead}, c.Upstreams["api"].Targets...)}
			})
			body := strings.Repeat("0123456789abcdef", size/16+1)[:size]
			for range 4 {
				c := rg.dial(t)
				c.send(fmt.Sprintf("POST /x HTTP/1.1\r\nHost: a\r\n%sContent-Length: %d\r\n\r\n", expect, size))
				if expect != "" && size > 0 {
					want(t, "a word", c.head(), "HTTP/1.1 100 Continue\r\n\r\n")
				}
				c.send(body)
				if got := c.answer("POST"); got != okAnswer {
					t.Errorf("%d bytes: got %q", size, got)
				}
			}
			for _, text := range up.recorded() {
				if head, got, _ := strings.Cut(text, "\r\n\r\n"); got != body || strings.Contains(head, "Expect") {
					t.Errorf("%d bytes: the upstream got %d behind %q", size, len(got), head)
				}
			}
			if got := len(up.recorded()); got != 4 {
				t.Errorf("%d bytes: the upstream got %d requests, want 4", size, got)
			}
		}
	}
}

// A request that one target has begun to read is nobody else's, even where that
// target closes without an answer: it may have done what it was asked.
func TestBodyThatWasBegunIsNotSentAgain(t *testing.T) {
	for _, size := range []int{5, smallBodyBytes, 1 << 20} {
		var targets [2]*rawServer
		for i := range targets {
			targets[i] = startRaw(t, func(p *peer) {
				p.takeHead()
				p.server.mu.Lock()
				p.server.requests = append(p.server.requests, "")
				p.server.mu.Unlock()
			})
		}
		rg, _ := rawRig(t, 1000, always(okAnswer), func(c *Config) {
			c.Upstreams["api"] = UpstreamConfig{Targets: []string{targets[0].target(), targets[1].target()}, Retries: new(10)}
		})
		c := rg.dial(t)
		stop := c.upload(fmt.Sprintf("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", size), strings.Repeat("x", size), size)
		if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 502 ") {
			t.Errorf("%d bytes: got %q, want 502", size, got)
		}
		stop()
		if got := len(targets[0].recorded()) + len(targets[1].recorded()); got != 1 {
			t.Errorf("%d bytes: the request was sent %d times", size, got)
		}
	}
}

// Stray bytes and closes of one client's exchange never show in another's, on
// the connection that both use.
func TestAnswerBehindAnAnswerIsNobodysThroughTheListener(t *testing.T) {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	for _, late := range []time.Duration{0, 10 * time.Millisecond, time.Second} {
		t.Run(late.String(), func(t *testing.T) {
			t.Parallel()
			sent := make(chan bool, 10)
			rg, up := rawRig(t, 100, func(p *peer) {
				p.take()
				if p.number > 1 {
					p.send(okAnswer)
					p.ended()
					return
				}
				if late == 0 {
					p.send(okAnswer + evil)
				} else {
					p.send(okAnswer)
					time.Sleep(late) // the case itself
					p.send(evil)
				}
				sent <- true
				p.ended()
			}, bypassing)
			for range 2 {
				c := rg.dial(t)
				c.send(plainGet)
				want(t, "answer", c.answer("GET"), okAnswer)
				if len(up.recorded()) == 1 {
					<-sent
				}
			}
			if up.connections() != 2 {
				t.Errorf("got %d connections to the upstream, want another for the second", up.connections())
			}
		})
	}
}
