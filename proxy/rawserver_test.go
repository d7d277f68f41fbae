package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// peer is a connection as a raw upstream sees it.
type peer struct {
	net.Conn
	r      *bufio.Reader
	server *rawServer
	number int // of the connection, from 1
}

// rawServer is an upstream that sends whatever bytes its script says, and keeps
// the bytes of the requests that the script took.
type rawServer struct {
	listener net.Listener
	done     sync.WaitGroup
	stopped  chan struct{} // closed by stop

	mu       sync.Mutex
	requests []string
	conns    []net.Conn
}

// startRaw runs script on every connection, which is closed after it.
func startRaw(t testing.TB, script func(p *peer)) *rawServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveRaw(t, l, script)
}

func serveRaw(t testing.TB, l net.Listener, script func(p *peer)) *rawServer {
	s := &rawServer{listener: l, stopped: make(chan struct{})}
	s.done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			number := len(s.conns)
			s.mu.Unlock()
			s.done.Go(func() {
				defer conn.Close()
				p := newPeer(conn, s)
				p.number = number
				script(p)
			})
		}
	})
	t.Cleanup(s.stop)
	return s
}

func newPeer(conn net.Conn, s *rawServer) *peer {
	return &peer{Conn: conn, r: bufio.NewReader(conn), server: s}
}

func (s *rawServer) stop() {
	s.listener.Close()
	s.mu.Lock()
	select {
	case <-s.stopped:
	default:
		close(s.stopped)
	}
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
}

func (s *rawServer) target() string { return "http://" + s.listener.Addr().String() }

func (s *rawServer) recorded() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

func (s *rawServer) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// take reads a request and records its bytes; false at the end of the connection.
func (p *peer) take() (string, bool) {
	var raw strings.Builder
	length, chunked := 0, false
	for line := ""; line != "\r\n"; {
		var err error
		line, err = p.r.ReadString('\n')
		raw.WriteString(line)
		if err != nil {
			return raw.String(), false
		}
		if v, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			length, _ = strconv.Atoi(strings.TrimSpace(v))
		}
		chunked = chunked || line == "Transfer-Encoding: chunked\r\n"
	}
	whole := true
	if chunked {
		whole = p.copyChunks(&raw)
	}
	if _, err := io.CopyN(&raw, p.r, int64(length)); err != nil {
		whole = false
	}
	p.server.mu.Lock()
	p.server.requests = append(p.server.requests, raw.String())
	p.server.mu.Unlock()
	return raw.String(), whole
}

func (p *peer) copyChunks(raw *strings.Builder) bool {
	for {
		line, err := p.r.ReadString('\n')
		raw.WriteString(line)
		size, _ := strconv.ParseInt(strings.TrimSpace(line), 16, 64)
		if err != nil {
			return false
		}
		if _, err := io.CopyN(raw, p.r, size+2); err != nil {
			return false
		}
		if size == 0 {
			return true
		}
	}
}

func (p *peer) send(s string) { _, _ = io.WriteString(p, s) }

// ended waits for the other side to close.
func (p *peer) ended() { _, _ = io.Copy(io.Discard, p.r) }

// always answers every request with s.
func always(s string) func(p *peer) {
	return func(p *peer) {
		for {
			if _, ok := p.take(); !ok {
				return
			}
			p.send(s)
		}
	}
}

// upstreamTo is an upstream with short time-outs, without queue, retries and
// checks, all of which tests may change.
func upstreamTo(t testing.TB, targets ...string) *upstream {
	t.Helper()
	u, err := newUpstream(upstreamOptions{
		name: "api", urls: targets, connectTimeout: 2 * time.Second,
		responseTimeout: 5 * time.Second, idleTimeout: 5 * time.Second, maxConns: 8,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.close)
	return u
}

// roundTrip sends a request and reads the whole answer.
func roundTrip(u *upstream, out *outgoing) (status int, body string, err error) {
	var in incoming
	defer in.finish()
	if err := u.do(out, &in); err != nil {
		return 0, "", err
	}
	start, _ := in.buffered()
	body = string(start)
	rest, err := io.ReadAll(&in)
	return in.status, body + string(rest), err
}

// mustAnswer is a round trip of a GET that has to give 200 and body.
func mustAnswer(t *testing.T, u *upstream, body string) {
	t.Helper()
	status, got, err := roundTrip(u, &outgoing{head: []byte(getHead)})
	if status != 200 || got != body || err != nil {
		t.Fatalf("got %d %q, %v; want 200 %q", status, got, err, body)
	}
}

// eventually waits up to 3 s for ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in 3 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func wantFault(t *testing.T, err error, want fault) {
	t.Helper()
	var u *upstreamError
	if !errors.As(err, &u) || u.kind != want {
		t.Errorf("got error %v (%T), want fault %d", err, err, want)
	}
}
