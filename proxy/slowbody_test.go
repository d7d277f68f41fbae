package proxy

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
)

// A client that says it will send 64 KiB and sends a byte takes up the room of
// what it has sent, not of what it has announced.
func TestAnnouncedBodyTakesNoRoomBeforeItComes(t *testing.T) {
	rg, _ := rawRig(t, 1000, always(okAnswer), nil)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const clients = 200
	before := heap()
	for range clients { // the proxy is about to read the body when it says 100
		c := rg.dial(t)
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", smallBodyBytes))
		if line, err := c.r.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
			t.Fatalf("got %q, %v, want 100", line, err)
		}
	}
	if each := (heap() - before) / clients; each > 24<<10 {
		t.Errorf("each takes %d bytes, want at most %d", each, 24<<10)
	}
}

func TestSmallBodyInPiecesArrivesWhole(t *testing.T) {
	for _, size := range []int{1, firstBodyBytes - 1, firstBodyBytes, firstBodyBytes + 1, 10_000, smallBodyBytes} {
		rg, up := rawRig(t, 10, always(okAnswer), nil)
		body := strings.Repeat("0123456789", size/10+1)[:size]
		c := rg.dial(t)
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", size))
		for rest := body; rest != ""; rest = rest[min(len(rest), 1500):] {
			c.send(rest[:min(len(rest), 1500)])
		}
		if got := c.answer("POST"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("%d bytes: got %q, want 200", size, got)
		}
		if got := up.recorded(); len(got) != 1 || !strings.HasSuffix(got[0], "\r\n\r\n"+body) {
			t.Errorf("%d bytes: the upstream got %.200q", size, got)
		}
	}
}

func TestSmallBodyCutShortReachesNoUpstream(t *testing.T) {
	rg, up := rawRig(t, 10, always(okAnswer), nil)
	c := rg.dial(t)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + strings.Repeat("x", 4999))
	_ = c.Conn.(interface{ CloseWrite() error }).CloseWrite()
	if got, _ := io.ReadAll(c.r); !strings.HasPrefix(string(got), "HTTP/1.1 400 ") {
		t.Errorf("got %q, want 400", got)
	}
	if got := up.recorded(); len(got) != 0 {
		t.Errorf("the upstream got %q", got)
	}
}
