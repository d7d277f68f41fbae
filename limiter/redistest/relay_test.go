package redistest

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRelayPassesBothWays(t *testing.T) {
	s := Start(t)
	for _, target := range []string{s.Addr(), s.Socket()} {
		r := NewRelay(t, target)
		c := open(t, r.URL(), time.Minute)
		long := strings.Repeat("x", 1<<20)
		if err := c.Set(t.Context(), "k", long, 0).Err(); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Get(t.Context(), "k").Result(); got != long || err != nil {
			t.Errorf("%s: got %d bytes, %v", target, len(got), err)
		}
		if r.Connections() != 1 || r.Dials() != 1 {
			t.Errorf("%d connections, %d dials, want 1 and 1", r.Connections(), r.Dials())
		}
		c.Close()
		poll(t, "the connection is gone", func() bool { return r.Connections() == 0 })
	}
}

func TestRelaySlowsARoundTrip(t *testing.T) {
	r := NewRelay(t, Start(t).Addr())
	c := open(t, r.URL(), time.Minute)
	if err := ping(t, c); err != nil {
		t.Fatal(err)
	}
	const d = 60 * time.Millisecond
	for _, want := range []time.Duration{d, 0} {
		r.SetLatency(want)
		start := time.Now()
		if err := ping(t, c); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < want {
			t.Errorf("a round trip with %v took %v", want, took)
		}
	}
}

func TestRelayBlackHoleHoldsEverythingAndResetsNothing(t *testing.T) {
	s := Start(t)
	r := NewRelay(t, s.Addr())
	old, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	exchange(t, old, "PING\r\n", "+PONG\r\n")
	r.BlackHole(true)
	fresh, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatalf("a new connection was refused: %v", err)
	}
	defer fresh.Close()
	for _, c := range []net.Conn{old, fresh} {
		if _, err := c.Write([]byte("INCR k\r\n")); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
		var timeout net.Error
		if n, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %d bytes, %v; want silence", n, err)
		}
	}
	poll(t, "both are counted", func() bool { return r.Connections() == 2 && r.Dials() == 2 })
	if got := s.Do(t, "GET", "k"); got != nil {
		t.Errorf("the server was reached: k is %v", got)
	}
	r.BlackHole(false)
	poll(t, "what was held arrives", func() bool { return s.Do(t, "GET", "k") == "2" })
	if got := read(t, old, 4)[:1]; got != ":" {
		t.Errorf("the held answer: got %q", got)
	}
	exchange(t, old, "PING\r\n", "+PONG\r\n")
}

func TestRelayInABlackHoleEnds(t *testing.T) {
	r := NewRelay(t, Start(t).Addr())
	for _, on := range []bool{false, true} {
		r.BlackHole(on)
		c, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		poll(t, "it is accepted", func() bool { return r.Connections() == 1 })
		c.Close()
		poll(t, "its end is noticed", func() bool { return r.Connections() == 0 })
	}
	if _, err := net.Dial("tcp", r.Addr()); err != nil { // left open
		t.Fatal(err)
	}
}

func TestRelayRefusesAndResets(t *testing.T) {
	r := NewRelay(t, Start(t).Addr())
	c, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange(t, c, "PING\r\n", "+PONG\r\n")
	r.Refuse(true)
	r.Refuse(true) // changes nothing
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the open connection: got %v, want a reset", err)
	}
	if _, err := net.Dial("tcp", r.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: got %v, want a refusal", err)
	}
	r.Refuse(false)
	if err := ping(t, open(t, r.URL(), time.Minute)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestRelayCutsAnswers(t *testing.T) {
	r := NewRelay(t, Start(t).Addr())
	dial := func() net.Conn {
		c, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	r.ResetAnswersAfter(func() int64 { return 10 })
	c := dial()
	exchange(t, c, "PING\r\n", "+PONG\r\n")
	exchange(t, c, "PING\r\n", "+PO")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the budget: got %v, want a reset", err)
	}

	r.HoldAnswersAfter(func() int64 { return 7 })
	c = dial()
	exchange(t, c, "PING\r\n", "+PONG\r\n")
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	var timeout net.Error
	if n, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("after the budget: got %d bytes, %v; want silence", n, err)
	}
	c.Close()
	poll(t, "the stalled connection is gone", func() bool { return r.Connections() == 0 })

	r.HoldAnswersAfter(nil)
	c = dial()
	exchange(t, c, "PING\r\nPING\r\n", "+PONG\r\n+PONG\r\n")
}

func TestRelayAnswersGarbage(t *testing.T) {
	r := NewRelay(t, Start(t).Addr())
	c := open(t, r.URL(), time.Minute)
	if err := ping(t, c); err != nil {
		t.Fatal(err)
	}
	r.Garbage(true)
	if err := ping(t, c); err == nil {
		t.Error("garbage was taken for an answer")
	}
	r.Garbage(false)
	poll(t, "answers are right again", func() bool { return ping(t, c) == nil })
}

// exchange sends a request and wants that answer.
func exchange(t *testing.T, c net.Conn, request, want string) {
	t.Helper()
	if _, err := c.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	if got := read(t, c, len(want)); got != want {
		t.Errorf("%q: got %q, want %q", request, got, want)
	}
}

func read(t *testing.T, c net.Conn, n int) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	data := make([]byte, n)
	if _, err := io.ReadFull(c, data); err != nil {
		t.Fatal(err)
	}
	return string(data)
}
