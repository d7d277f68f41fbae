//go:build !race

// The race detector makes sync.Pool lose what it holds, on purpose.

package simulate

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

func TestReadingTextAllocatesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		parse parser
		raw   string
	}{
		"combined": {new(combined).parse, `2001:db8::7 - ann [26/Nov/2026:10:00:01 +0530] "POST /\x22 HTTP/2.0" 200 17 "https://a" "b \"c\""`},
		"refused":  {new(combined).parse, `10.0.0.1 - - [26/Nov/2026:10:00:01 +0530] nothing`},
		"envoy":    {new(envoyText).parse, `[2026-11-26T10:00:01.250Z] "GET / HTTP/1.1" 200 - 0 0 0 - "10.0.0.1,10.0.0.2" "a" "b" "c" "d"`},
	} {
		raw := make([]byte, len(c.raw))
		l := &line{fields: make([]named, 0, 8)}
		if n := testing.AllocsPerRun(100, func() {
			copy(raw, c.raw)
			l.reset()
			_ = c.parse(raw, l)
		}); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}

// repeated gives a log again and again, each time a day later.
type repeated struct {
	log   string
	times int
	left  []byte
}

func (r *repeated) Read(p []byte) (int, error) {
	if len(r.left) == 0 {
		if r.times == 0 {
			return 0, io.EOF
		}
		r.left = []byte(strings.ReplaceAll(r.log, "[26/", fmt.Sprintf("[%02d/", 29-r.times)))
		r.times--
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

func TestALineOfKnownUsersAllocatesNothing(t *testing.T) {
	requests := []string{"GET /items/1 HTTP/1.1", "GET /search?cost=3 HTTP/1.1", "GET /whose HTTP/1.1", "GET /healthz HTTP/1.1"}
	log := strings.Join(crowd(5000, func(r *rand.Rand) string { return requests[r.IntN(len(requests))] }), "\n") + "\n"
	allocated := func(times int) uint64 {
		o := options(t)
		o.Files, o.Stdin = []string{"-"}, &repeated{log: log, times: times}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r, err := Run(context.Background(), o)
		if err != nil || r.Input.Requests != uint64(times*5000) || r.Input.Clamped != 0 {
			t.Fatalf("got %+v, %v", r.Input, err)
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	allocated(1)
	once, often := allocated(1), allocated(20)
	if more := float64(often-once) / (19 * 5000); more > 0.1 { // a bucket that was full for long is made anew
		t.Errorf("a line of known users makes %v allocations, want next to none", more)
	}
}
