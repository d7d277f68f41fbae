package redistest

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Relay passes bytes between clients and a server over TCP, and spoils that as
// tests say. Unless said otherwise, what is switched takes effect at once, on
// open connections too.
type Relay struct {
	t      testing.TB
	target string
	addr   string
	group  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	listener net.Listener
	links    map[*link]bool // those that aren't over; true while the client has it open
	dials    int
	latency  time.Duration
	hole     chan struct{} // not nil in a black hole, closed when that ends
	garbage  bool
	budget   func() int64 // answer bytes that a new connection passes; nil is all
	reset    bool         // what comes then; else the connection stalls
}

// NewRelay starts a relay to target, a server's Addr or Socket. It ends with the
// test.
func NewRelay(t testing.TB, target string) *Relay {
	t.Helper()
	l := listen(t)
	r := &Relay{t: t, target: target, addr: l.Addr().String(), listener: l, links: map[*link]bool{}}
	r.group.Go(func() { r.accept(l) })
	t.Cleanup(r.end)
	return r
}

func (r *Relay) end() {
	r.refuse()
	r.group.Wait()
}

// Addr is the relay's host and port.
func (r *Relay) Addr() string { return r.addr }

// URL is the relay's address as clients of Redis are given it.
func (r *Relay) URL() string { return "redis://" + r.addr + "/0" }

// SetLatency makes a round trip take d longer: half is added to what the client
// sends and half to the answers. Bytes that are on their way keep their delay.
// Connecting takes no longer, for that is between client and kernel.
func (r *Relay) SetLatency(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.latency = d
}

// BlackHole, while on, lets nothing through: no byte, and no end of a connection
// either. New connections are accepted, and the server never sees them. What was
// held is delivered afterwards, as TCP would send it again.
func (r *Relay) BlackHole(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on && r.hole == nil {
		r.hole = make(chan struct{})
	}
	if !on && r.hole != nil {
		close(r.hole)
		r.hole = nil
	}
}

// Refuse, when switched on, resets all open connections and has the kernel
// refuse new ones; switched off, the relay listens on the same address again.
func (r *Relay) Refuse(on bool) {
	if on {
		r.refuse()
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		return
	}
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Errorf("listen again: %v", err)
		return
	}
	r.listener = l
	r.group.Go(func() { r.accept(l) })
}

func (r *Relay) refuse() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		_ = r.listener.Close()
		r.listener = nil
	}
	for l := range r.links {
		l.reset()
	}
}

// ResetAnswersAfter has each new connection pass as many bytes of answers as
// bytes says when it opens, and then resets it towards the client. The answer to
// go-redis' greeting is part of them. A nil bytes ends it for new connections.
func (r *Relay) ResetAnswersAfter(bytes func() int64) { r.cutAnswers(bytes, true) }

// HoldAnswersAfter is ResetAnswersAfter, but the connection stays open, takes
// what is sent and answers nothing any more.
func (r *Relay) HoldAnswersAfter(bytes func() int64) { r.cutAnswers(bytes, false) }

func (r *Relay) cutAnswers(bytes func() int64, reset bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.budget, r.reset = bytes, reset
}

// Garbage, while on, puts bytes that are no Redis protocol in the place of each
// answer.
func (r *Relay) Garbage(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.garbage = on
}

// Connections is how many connections clients have open.
func (r *Relay) Connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, open := range r.links {
		if open {
			n++
		}
	}
	return n
}

// Dials is how many connections the relay has accepted.
func (r *Relay) Dials() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dials
}

func (r *Relay) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		if l := r.open(listener, client.(*net.TCPConn)); l != nil {
			r.group.Go(l.serve)
		}
	}
}

// open registers a connection, or resets it where the relay just began to
// refuse.
func (r *Relay) open(listener net.Listener, client *net.TCPConn) *link {
	gone := make(chan struct{})
	l := &link{r: r, client: client, gone: gone, over: sync.OnceFunc(func() { close(gone) }), budget: -1}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != listener {
		l.reset()
		return nil
	}
	r.dials++
	r.links[l] = true
	if r.budget != nil {
		l.budget, l.cutReset = r.budget(), r.reset
	}
	return l
}

// link is one connection of a client and the one to the server that belongs to
// it.
type link struct {
	r        *Relay
	client   *net.TCPConn
	gone     chan struct{} // closed when the link is over
	over     func()        // closes gone
	budget   int64         // answer bytes that still pass; negative is all
	cutReset bool          // what comes then is a reset
}

// chunk is what was read at once, and when it may be passed on. The end of a
// connection is one without data.
type chunk struct {
	data []byte
	due  time.Time
}

// reset ends the client's connection with a RST.
func (l *link) reset() {
	_ = l.client.SetLinger(0)
	_ = l.client.Close()
	l.over()
}

// serve passes bytes until one of both ends closes.
func (l *link) serve() {
	defer l.r.forget(l)
	defer l.client.Close()
	defer l.over()
	requests := make(chan chunk, 64)
	l.r.group.Go(func() { l.read(clientEnd{l}, requests) })
	if !l.awaitPassage(time.Time{}) {
		return
	}
	server, err := dial(l.r.target)
	if err != nil {
		l.reset()
		return
	}
	defer server.Close()
	answers := make(chan chunk, 64)
	l.r.group.Go(func() { l.read(server, answers) })
	l.r.group.Go(func() {
		l.pass(requests, server.Write)
		server.Close()
	})
	l.pass(answers, l.answer)
}

func dial(target string) (net.Conn, error) {
	if strings.Contains(target, "/") {
		return net.Dial("unix", target)
	}
	return net.Dial("tcp", target)
}

func (r *Relay) forget(l *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.links, l)
}

// clientEnd reads from the client, and takes note of its end at once: that
// reaches the server when the wire lets it.
type clientEnd struct{ *link }

func (e clientEnd) Read(p []byte) (int, error) {
	n, err := e.client.Read(p)
	if err != nil {
		e.r.mu.Lock()
		defer e.r.mu.Unlock()
		if _, ok := e.r.links[e.link]; ok {
			e.r.links[e.link] = false
		}
	}
	return n, err
}

// read reads from until its end, and tells that too.
func (l *link) read(from io.Reader, to chan<- chunk) {
	for {
		data := make([]byte, 16<<10)
		n, err := from.Read(data)
		l.r.mu.Lock()
		due := time.Now().Add(l.r.latency / 2)
		l.r.mu.Unlock()
		for _, c := range []chunk{{data[:n], due}, {nil, due}} {
			if len(c.data) == 0 && err == nil {
				continue
			}
			select {
			case to <- c:
			case <-l.gone:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass writes what was read when it is due, up to the end or an error.
func (l *link) pass(from <-chan chunk, write func([]byte) (int, error)) {
	for {
		select {
		case c := <-from:
			if !l.awaitPassage(c.due) || len(c.data) == 0 {
				return
			}
			if _, err := write(c.data); err != nil {
				return
			}
		case <-l.gone:
			return
		}
	}
}

// awaitPassage waits until due and until no black hole swallows. It says false
// where the link is over before.
func (l *link) awaitPassage(due time.Time) bool {
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.gone:
		return false
	}
	for {
		l.r.mu.Lock()
		hole := l.r.hole
		l.r.mu.Unlock()
		if hole == nil {
			return true
		}
		select {
		case <-hole:
		case <-l.gone:
			return false
		}
	}
}

// answer writes to the client what of an answer it may have.
func (l *link) answer(data []byte) (int, error) {
	l.r.mu.Lock()
	garbage := l.r.garbage
	l.r.mu.Unlock()
	if garbage {
		data = []byte("\x00\xff this is no Redis \xfe\r\n")
	}
	if l.budget < 0 || l.budget > int64(len(data)) {
		l.budget = max(-1, l.budget-int64(len(data)))
		return l.client.Write(data)
	}
	n, err := l.client.Write(data[:l.budget])
	l.budget = 0
	if err == nil && l.cutReset {
		l.reset()
		return n, net.ErrClosed
	}
	return n, err
}
