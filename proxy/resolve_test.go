package proxy

import (
	"context"
	"encoding/binary"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// nameServer answers every question after an A record with its addresses.
type nameServer struct {
	mu        sync.Mutex
	addresses [][4]byte // none: it fails
}

func (n *nameServer) set(addresses ...[4]byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses = addresses
}

// startNames starts a name server on UDP, and gives a resolver that asks it.
func startNames(t *testing.T) (*nameServer, *net.Resolver) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{}
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(n.answer(buf[:size]), from)
		}
	})
	t.Cleanup(func() { conn.Close(); done.Wait() })
	return n, &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// answer is what RFC 1035 section 4 wants for a message of one question.
func (n *nameServer) answer(query []byte) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	end := 12
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5
	isA := binary.BigEndian.Uint16(query[end-4:]) == 1
	reply := append([]byte(nil), query[:end]...)
	binary.BigEndian.PutUint16(reply[2:], 0x8180)
	binary.BigEndian.PutUint64(reply[4:], 1<<48) // one question, nothing else yet
	if len(n.addresses) == 0 {
		reply[3] |= 2 // SERVFAIL
		return reply
	}
	if !isA {
		return reply
	}
	reply[7] = byte(len(n.addresses))
	for _, a := range n.addresses {
		reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		reply = append(reply, a[:]...)
	}
	return reply
}

var here, there = [4]byte{127, 0, 0, 1}, [4]byte{127, 0, 0, 2}

// startMoving starts servers at both addresses, with one port, and an upstream
// by a name that is here.
func startMoving(t *testing.T) (*nameServer, *rawServer, *rawServer, *upstream) {
	t.Helper()
	first := startRaw(t, always(answerOK))
	_, port, _ := net.SplitHostPort(first.listener.Addr().String())
	l, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		t.Fatal(err)
	}
	second := serveRaw(t, l, always(answerOK))
	names, resolver := startNames(t)
	names.set(here)
	u := upstreamTo(t, "http://api.moving.test:"+port)
	u.targets[0].dialer.Resolver = resolver
	return names, first, second, u
}

func TestIdleConnectionsToAnAddressThatIsGoneAreClosed(t *testing.T) {
	names, first, second, u := startMoving(t)
	target := u.targets[0]
	mustAnswer(t, u, "ok")
	target.resolve(t.Context())
	mustAnswer(t, u, "ok")
	names.set(here, there)
	target.resolve(t.Context())
	mustAnswer(t, u, "ok")
	if first.connections() != 1 || u.idleConns() != 1 {
		t.Fatalf("got %d connections, %d idle, want the same one", first.connections(), u.idleConns())
	}
	names.set() // it fails: the old address is all there is
	target.resolve(t.Context())
	if u.idleConns() != 1 {
		t.Error("a failing name server closed a connection")
	}
	names.set(there)
	target.resolve(t.Context())
	if u.idleConns() != 0 || u.openConns() != 0 {
		t.Errorf("got %d idle, %d open, want none", u.idleConns(), u.openConns())
	}
	mustAnswer(t, u, "ok")
	if len(first.recorded()) != 3 || len(second.recorded()) != 1 {
		t.Errorf("got %d and %d requests, want 3 and 1", len(first.recorded()), len(second.recorded()))
	}
}

// A connection that is never idle when names are looked up must go as well.
func TestBusyConnectionToAnAddressThatIsGoneIsClosedAfterItsAnswer(t *testing.T) {
	names, first, second, u := startMoving(t)
	var busy incoming
	if err := u.do(&outgoing{head: []byte(getHead)}, &busy); err != nil {
		t.Fatal(err)
	}
	names.set(there)
	u.targets[0].resolve(t.Context())
	busy.buffered()
	busy.finish()
	if u.openConns() != 0 {
		t.Errorf("%d connections are open", u.openConns())
	}
	mustAnswer(t, u, "ok")
	mustAnswer(t, u, "ok")
	if len(first.recorded()) != 1 || len(second.recorded()) != 2 || second.connections() != 1 {
		t.Errorf("got %d and %d requests", len(first.recorded()), len(second.recorded()))
	}
}

func TestNamesAreFollowedUntilTheUpstreamIsClosed(t *testing.T) {
	names, _, _, u := startMoving(t)
	mustAnswer(t, u, "ok")
	names.set(there)
	ctx, halt := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() { u.targets[0].follow(ctx, 10*time.Millisecond); close(done) }()
	eventually(t, "the old connection is closed", func() bool { return u.openConns() == 0 })
	halt()
	<-done
}

func TestUnknownNameIsAConnectFault(t *testing.T) {
	names, _, _, u := startMoving(t)
	names.set()
	_, _, err := roundTrip(u, &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultConnect)
	if !strings.Contains(err.Error(), "lookup api.moving.test") {
		t.Errorf("got %v", err)
	}
}
