package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// bulk is an upstream that takes and gives any number of bytes, at which the
// gateway is measured. ?n= asks for n bytes; POST / answers with the SHA-256 of the
// body, and waits for open before it reads on.
type bulk struct {
	open     chan struct{}
	inFlight atomic.Int64
}

// pattern is a stream of bytes that repeats nowhere near a buffer's size.
type pattern struct{ at uint64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at ^ p.at>>8 ^ p.at>>17)
		p.at++
	}
	return len(b), nil
}

// patternSum is the SHA-256 of the first n bytes of a pattern.
func patternSum(n int64) string {
	h := sha256.New()
	_, _ = io.CopyN(h, &pattern{}, n)
	return sumOf(h)
}

func sumOf(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

func (b *bulk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64); err == nil {
		if r.URL.Query().Has("sized") {
			w.Header().Set("Content-Length", fmt.Sprint(n))
		}
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(&pattern{}, n), make([]byte, 64<<10))
		return
	}
	b.inFlight.Add(1)
	defer b.inFlight.Add(-1)
	select {
	case <-b.open:
	case <-r.Context().Done():
	}
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_, _ = fmt.Fprintf(w, "%d %s", n, sumOf(h))
}

// startBuilt starts the program as `go build` makes it, without what the tests
// have in them, with variables added to its environment.
func startBuilt(t *testing.T, config string, env ...string) *process {
	t.Helper()
	program := filepath.Join(t.TempDir(), "r8limiter")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return startProcessBy(t, config, func(c *exec.Cmd) {
		c.Path = program
		c.Env = append(c.Env, env...)
	})
}

// memory is a line of /proc/PID/status in bytes: VmRSS, or VmHWM, its highest.
func (p *process) memory(t *testing.T, line string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), line+":")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// forgetHighest makes the present size of the process its highest (proc(5),
// clear_refs).
func (p *process) forgetHighest(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.command.Process.Pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// A body of a gibibyte, each way, with a length and in chunks, plain and by TLS,
// arrives as it was sent and costs next to no memory.
func TestFaultsOfBulkNeedNoMemory(t *testing.T) {
	size := int64(64 << 20)
	if allFaults {
		size = 1 << 30
	}
	b := &bulk{open: make(chan struct{})}
	close(b.open)
	dir, ca := t.TempDir(), newAuthority(t)
	ca.pair(t, "a.test").save(t, dir, "a")
	want := patternSum(size)
	for _, secure := range []bool{false, true} {
		block, client := "", &http.Client{Transport: &http.Transport{}}
		if secure {
			block = "tls: {certificates: [{cert_file: " + dir + "/a.crt, key_file: " + dir + "/a.key}]}"
			client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool, ServerName: "a.test"}}
		}
		p := startBuilt(t, bulkConfig(httptestServer(t, b.ServeHTTP), block, 2<<30))
		url := p.proxy
		if secure {
			url = secured(url)
		}
		for _, way := range []string{"down", "down in chunks", "up", "up in chunks"} {
			p.forgetHighest(t)
			before, began := p.memory(t, "VmRSS"), time.Now()
			if got := carry(t, client, url, way, size); got != want {
				t.Errorf("TLS %v, %s: the bytes are others: %s", secure, way, got)
			}
			took, grown := time.Since(began), p.memory(t, "VmHWM")-before
			t.Logf("TLS %v, %s: %d MiB in %.1f s, RSS grew from %d by %d KiB", secure, way, size>>20, took.Seconds(), before>>10, grown>>10)
			if grown > 32<<20 {
				t.Errorf("TLS %v, %s: RSS grew by %d KiB", secure, way, grown>>10)
			}
		}
		client.CloseIdleConnections()
		if got := p.metric(t, "r8limiter_upstream_errors_total"); got != 0 {
			t.Errorf("counted %v faults", got)
		}
	}
}

// bulkConfig is one of a gateway that takes bodies of that many bytes.
func bulkConfig(upstream, block string, bodyBytes int64) string {
	return fmt.Sprintf(`
proxy:
  listen: "127.0.0.1:0"
  limits: {body_bytes: %d}
  upstreams: {api: {targets: ["%s"]}}
  routes: [{name: all, action: bypass, upstream: api}]
  %s
admin: {listen: "127.0.0.1:0"}
log: {requests: none}
`, bodyBytes, upstream, block)
}

// carry has size bytes carried one way, and returns the SHA-256 of what arrived.
func carry(t *testing.T, client *http.Client, url, way string, size int64) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	direction, chunked, _ := strings.Cut(way, " ")
	method, query, body := "GET", fmt.Sprintf("/?n=%d", size), io.Reader(nil)
	if chunked == "" {
		query += "&sized"
	}
	if direction == "up" {
		method, query, body = "POST", "/", io.LimitReader(&pattern{}, size)
	}
	req, err := http.NewRequestWithContext(ctx, method, url+query, body)
	if err != nil {
		t.Fatal(err)
	}
	if direction == "up" && chunked == "" {
		req.ContentLength = size
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if chunked == "" && direction == "down" && resp.ContentLength != size {
		t.Errorf("%s: the answer's length is %d", way, resp.ContentLength)
	}
	if direction == "down" {
		h := sha256.New()
		if n, err := io.Copy(h, resp.Body); n != size || err != nil {
			t.Errorf("%s: got %d bytes, %v", way, n, err)
		}
		return sumOf(h)
	}
	text, err := io.ReadAll(resp.Body)
	if got := fmt.Sprint(size); err != nil || !strings.HasPrefix(string(text), got+" ") {
		t.Fatalf("%s: got %d %q, %v", way, resp.StatusCode, text, err)
	}
	return string(text[len(fmt.Sprint(size))+1:])
}

// A thousand large bodies at a time for an upstream that does not read them yet
// wait in their clients, not here.
func TestFaultsOfManyBodiesNeedLittleMemory(t *testing.T) {
	n, size := 100, int64(1<<20)
	if allFaults {
		n, size = 1000, 10<<20
	}
	const most = 256 << 20
	b := &bulk{open: make(chan struct{})}
	p := startBuilt(t, bulkConfig(httptestServer(t, b.ServeHTTP), "", size), fmt.Sprint("GOMEMLIMIT=", most*3/4))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}, Timeout: 4 * time.Minute}
	defer client.CloseIdleConnections()
	before, want := p.memory(t, "VmRSS"), fmt.Sprintf("%d %s", size, patternSum(size))
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			req, err := http.NewRequest("POST", p.proxy+"/", io.LimitReader(&pattern{}, size))
			if err != nil {
				t.Error(err)
				return
			}
			if i%2 == 0 {
				req.ContentLength = size
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if text, err := io.ReadAll(resp.Body); string(text) != want || err != nil {
				t.Errorf("got %d %.200q, %v; want the sum of the whole body", resp.StatusCode, text, err)
			}
		})
	}
	eventually(t, "all have reached the upstream", func() bool { return b.inFlight.Load() == int64(n) })
	waiting := p.memory(t, "VmHWM")
	close(b.open)
	all.Wait()
	highest := p.memory(t, "VmHWM")
	t.Logf("%d bodies of %d MiB: RSS %d KiB before, %d while the upstream did not read, %d at most", n, size>>20, before>>10, waiting>>10, highest>>10)
	if highest > most {
		t.Errorf("RSS was %d KiB at most", highest>>10)
	}
}
