package admin

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	flood        = 20_000
	floodPerConn = 20
	// floodMemory are the bytes that a flood may leave. A quarter of it spends
	// tokens, which takes some 250 bytes each until the bucket is full again: here
	// that is never.
	floodMemory = 4 << 20
)

// randomRequest is one that nobody was given a token for. Of floodPerConn in a
// row fewer than freeGuesses go to /admin, so that none waits.
func randomRequest(r *rand.Rand, n int) string {
	text := fmt.Sprintf("%x-%x", r.Uint64(), r.Uint64())
	token := "Authorization: Bearer " + text
	methods := []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "X" + text}
	method := methods[r.IntN(len(methods))]
	target := []string{
		"/" + text, "/allow/" + text, "/metrics/" + text, "/metrics?" + text + "=" + text, "/readyz?" + text, "/%2e%2e/" + text, "/allow?" + text + "=1",
		"/allow?user_id=" + text, "/allow?user_id=" + text + "&resource=" + text, "/allow?user_id=" + text + "&cost=10&idempotency=" + text,
	}[r.IntN(10)]
	switch {
	case n%4 == 0:
		target = []string{"/admin/" + text, "/admin/user/" + text, "/admin/user/" + text + "/override", "/admin/stats", "/admin/resources/" + text}[r.IntN(5)]
	case strings.HasPrefix(target, "/allow?user_id"):
		method = "POST"
	}
	return method + " " + target + " HTTP/1.1\r\nHost: " + text + ".example\r\n" + token + "\r\nX-Request-Id: " + text + "\r\n"
}

// flood sends requests over connections from many addresses, and returns how
// many answers came.
func (g *gateway) flood(t *testing.T, seed uint64) (answers int) {
	t.Helper()
	var mu sync.Mutex // guards answers
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(client)))
			for conn := client; conn < flood/floodPerConn; conn += 8 {
				n := g.floodOnce(t, r, net.IPv4(127, byte(seed), byte(conn>>8), byte(conn)))
				mu.Lock()
				answers += n
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	return answers
}

func (g *gateway) floodOnce(t *testing.T, r *rand.Rand, from net.IP) int {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}
	c, err := dialer.Dial("tcp", g.addr)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer c.Close()
	var raw strings.Builder
	for n := range floodPerConn {
		raw.WriteString(randomRequest(r, n))
		if n == floodPerConn-1 {
			raw.WriteString("Connection: close\r\n")
		}
		raw.WriteString("\r\n")
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	go func() { _, _ = io.WriteString(c, raw.String()) }()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return strings.Count(string(got), "HTTP/1.1 ")
}

// series are the names, with labels, that /metrics shows.
func (g *gateway) series(t *testing.T) (all []string) {
	t.Helper()
	_, body := g.do(t, "GET", "/metrics")
	for _, m := range regexp.MustCompile(`(?m)^([a-zA-Z_:][^{\s]*(?:\{.*\})?) \S+$`).FindAllStringSubmatch(body, -1) {
		all = append(all, m[1])
	}
	slices.Sort(all)
	return all
}

// inUse is the memory that is still in use after what can be freed is.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestFloodOfStrangersAddsNoSeriesAndNoMemory(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken}, logRequests: "none"})
	for range 2 { // each outcome that a stranger can bring about has its series
		g.do(t, "POST", "/allow?user_id=a&cost=10&idempotency=k")
	}
	g.do(t, "POST", "/allow?user_id=a&cost=1")
	g.do(t, "POST", "/allow?user_id=a&cost=11")
	g.do(t, "POST", "/allow?user_id=a&cost=9&idempotency=k")
	before, memory := g.series(t), inUse()
	if len(before) < 50 {
		t.Fatalf("found %d series: are they looked for in the right way?", len(before))
	}
	for seed := range uint64(2) {
		if n := g.flood(t, seed+2); n != flood {
			t.Fatalf("%d answers to %d requests", n, flood)
		}
		if diff := cmp.Diff(before, g.series(t)); diff != "" {
			t.Errorf("series (-before +after):\n%s", diff)
		}
		now := inUse()
		if more := now - memory; more > floodMemory {
			t.Errorf("flood %d: %d KiB more are in use, want at most %d", seed+1, more>>10, floodMemory>>10)
		}
		memory = now
	}
}
