package proxy

import (
	"crypto/tls"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// countingReader is an endless body of zeros.
type countingReader struct{ n atomic.Int64 }

func (r *countingReader) Read(p []byte) (int, error) {
	r.n.Add(int64(len(p)))
	return len(p), nil
}

// mustServe asks as another client would.
func (rg *h2Rig) mustServe(t *testing.T) {
	t.Helper()
	resp, err := rg.transport(t).Get("https://" + rg.addr + "/internal/x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Fatalf("another client got %d, want 403", resp.StatusCode)
	}
}

// slowRig has an upstream that works until nobody waits for it.
type slowRig struct {
	*h2Rig
	working, most atomic.Int64 // requests at the upstream, now and at once
}

func newSlowRig(t *testing.T, more func(c *Config)) *slowRig {
	t.Helper()
	rg := new(slowRig)
	rg.h2Rig = newH2Rig(t, 1_000_000, func(p *peer) {
		n := rg.working.Add(1)
		defer rg.working.Add(-1)
		for most := rg.most.Load(); n > most && !rg.most.CompareAndSwap(most, n); most = rg.most.Load() {
		}
		p.take()
		p.ended()
	}, more)
	return rg
}

func TestHTTP2StreamsAreBounded(t *testing.T) {
	rg := newSlowRig(t, func(c *Config) { c.Limits.Streams = 5 })
	c := rg.dialH2(t)
	f, err := c.ReadFrame()
	c.must(err)
	settings, ok := f.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("got %v, want SETTINGS", f)
	}
	for id, value := range map[http2.SettingID]uint32{
		http2.SettingMaxConcurrentStreams: 5, http2.SettingInitialWindowSize: streamWindow, http2.SettingMaxFrameSize: 16 << 10,
	} {
		if n, _ := settings.Value(id); n != value {
			t.Errorf("got %v %d, want %d", id, n, value)
		}
	}
	c.must(c.WriteSettingsAck())
	for id := uint32(1); id <= 11; id += 2 {
		c.get(id, "GET", "/")
	}
	want(t, "the sixth", c.next(), "RST PROTOCOL_ERROR")
	eventually(t, "5 requests at the upstream", func() bool { return rg.working.Load() == 5 })
}

func TestHTTP2RapidResetIsBounded(t *testing.T) {
	rg := newSlowRig(t, func(c *Config) { c.Limits.Streams = 10 })
	before := runtime.NumGoroutine()
	c := rg.dialH2(t)
	most := 0
	for id := uint32(1); id < 20_000; id += 2 {
		block := c.fields("GET", "/")
		if c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: true, EndHeaders: true}) != nil {
			break
		}
		if c.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
		most = max(most, runtime.NumGoroutine()-before)
	}
	if codes := c.ended(); len(codes) == 0 || codes[len(codes)-1] != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("got GOAWAY %v, want ENHANCE_YOUR_CALM", codes)
	}
	// A handler at the proxy, and its connection at the upstream, for each stream.
	if most > 10*4+20 {
		t.Errorf("%d goroutines for one client of 10 streams", most)
	}
	// The upstream learns a moment later that one has gone.
	if n := rg.most.Load(); n > 20 {
		t.Errorf("%d requests at once at the upstream, want 10 or little more", n)
	}
	eventually(t, "nothing is left of them", func() bool { return rg.working.Load() == 0 })
	rg.mustServe(t)
}

func TestHTTP2ContinuationFloodIsCutOff(t *testing.T) {
	rg := newSlowRig(t, nil)
	c := rg.dialH2(t)
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields("GET", "/"), EndStream: true}))
	piece := append([]byte(nil), c.fields("GET", "/", ":x", "", "x-a", strings.Repeat("z", 8000))...)
	sent := 0
	grown := heapGrowth(func() {
		for ; sent < 64<<20; sent += len(piece) {
			if c.WriteContinuation(1, false, piece) != nil {
				break
			}
		}
	})
	if sent >= 64<<20 {
		t.Error("the proxy took 64 MiB of one head")
	}
	if grown > 16<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	rg.mustServe(t)
}

func TestHTTP2HeadThatNeverEndsIsCutOff(t *testing.T) {
	rg := newSlowRig(t, func(c *Config) { c.Limits.HeaderTimeout = 100 * time.Millisecond })
	c := rg.dialH2(t)
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields("GET", "/"), EndStream: true}))
	began := time.Now()
	for time.Since(began) < 5*time.Second {
		if c.WriteContinuation(1, false, nil) != nil {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Error("a head may take 5 s with a header_timeout of 100 ms")
}

func TestHTTP2CompressionBombIs431(t *testing.T) {
	rg := newSlowRig(t, nil)
	c := rg.dialH2(t)
	// One field of 4000 bytes, which the table holds, and then a byte for each repetition.
	pairs := []string{"x-bomb", strings.Repeat("x", 4000)}
	for range 4000 {
		pairs = append(pairs, pairs[0], pairs[1])
	}
	c.get(1, "GET", "/", pairs...)
	want(t, "status", c.status(), "431")
	rg.mustServe(t)
}

func TestHTTP2ClientThatReadsNoPongsIsCutOff(t *testing.T) {
	rg := newSlowRig(t, func(c *Config) { c.Limits.WriteTimeout = 200 * time.Millisecond })
	c := rg.dialH2(t)
	due := time.Now().Add(time.Minute) // the answers fill the kernel's buffers first, some 10 MiB
	if err := c.SetDeadline(due); err != nil {
		t.Fatal(err)
	}
	for c.WritePing(false, [8]byte{}) == nil {
	}
	if !time.Now().Before(due) {
		t.Fatal("pings are still taken after a minute")
	}
	rg.mustServe(t)
}

func TestHTTP2SettingsFloodTakesNoMemory(t *testing.T) {
	rg := newSlowRig(t, nil)
	c := rg.dialH2(t)
	grown := heapGrowth(func() {
		for range 20_000 {
			c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}))
		}
		rg.mustServe(t)
	})
	if grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

// heapGrowth is how many bytes more of the heap are in use after f, garbage included.
func heapGrowth(f func()) int64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return int64(after.HeapInuse) - int64(before.HeapInuse)
}

func TestHTTP2ConnectionsOfOneClientAreBounded(t *testing.T) {
	rg := newSlowRig(t, func(c *Config) { c.Limits.ConnectionsPerClient = 1 })
	first := rg.dialH2(t)
	first.get(1, "GET", "/internal/x")
	want(t, "first", first.status(), "403")
	if second, err := tls.Dial("tcp", rg.addr, &tls.Config{InsecureSkipVerify: true}); err == nil {
		second.Close()
		t.Error("a second connection came to its handshake, which costs more than it is worth")
	}
	if got := rg.p.server.refused[refusedPerClient].Get(); got != 1 {
		t.Errorf("counted %d refused connections, want 1", got)
	}
}

func TestHTTP2ConnectionCountsUntilItsHandlersEnd(t *testing.T) {
	conn := &http2Conn{}
	if !conn.enter() {
		t.Fatal("a new connection takes no stream")
	}
	done := make(chan struct{})
	go func() { conn.wait(); close(done) }()
	eventually(t, "an ended connection takes no stream", func() bool {
		entered := conn.enter()
		if entered {
			conn.running.Done()
		}
		return !entered
	})
	select {
	case <-done:
		t.Error("the connection ended before its handler")
	default:
	}
	conn.running.Done()
	<-done
}
