package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// reloadRig is a gateway that speaks TLS, in front of two servers, whose file a test
// changes all the time.
type reloadRig struct {
	*started
	t       *testing.T
	dir     string
	servers [2]string
	roots   *x509.CertPool

	stop    chan struct{} // ends the clients of a load
	running sync.WaitGroup
	asked   atomic.Int64

	mu       sync.Mutex // guards what follows
	fault    error      // the first
	faults   int
	admitted []ruled
}

// ruled is an admission, by the clock of the client, and the capacity it went by.
type ruled struct {
	from, to time.Duration
	capacity float64
}

// boundRate is the rate of the resource whose capacity each reload changes, a second.
const boundRate = 100

func newReloadRig(t *testing.T) *reloadRig {
	t.Helper()
	r := &reloadRig{t: t, dir: t.TempDir()}
	ca := newAuthority(t)
	r.roots = ca.pool
	for _, name := range []string{"a", "b"} {
		ca.pair(t, name+".test").save(t, r.dir, name)
	}
	for i := range r.servers {
		r.servers[i] = httptestServer(t, serveReloads)
	}
	r.started = start(t, r.config(0))
	return r
}

// serveReloads is what stands behind the gateway: what is sent comes back, /events
// streams numbers until the client leaves, /socket echoes.
func serveReloads(w http.ResponseWriter, req *http.Request) {
	switch req.URL.Path {
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		for n := 0; req.Context().Err() == nil; n++ {
			fmt.Fprintf(w, "data: %d\n\n", n)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-req.Context().Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	case "/socket":
		conn, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, in)
	default:
		_, _ = io.Copy(w, req.Body)
	}
}

// config is the configuration of a generation: a route and an upstream of its own, other
// targets, another capacity, other certificates.
func (r *reloadRig) config(generation int) string {
	certificate := func(name string) string {
		return fmt.Sprintf("{cert_file: %s/%s.crt, key_file: %s/%s.key}", r.dir, name, r.dir, name)
	}
	certificates := certificate("a")
	if generation%2 == 1 {
		certificates += ", " + certificate("b")
	}
	targets := []string{r.servers[0], r.servers[1], r.servers[0] + `", "` + r.servers[1]}[generation%3]
	return fmt.Sprintf(`
proxy:
  listen: "127.0.0.1:0"
  drain_delay: %[1]dms
  tls: {certificates: [%[2]s]}
  upstreams:
    main: {targets: ["%[3]s"], retries: %[4]d}
    same: {targets: ["%[5]s"], health_check: {path: /healthz, interval: 1s}}
    own-%[1]d: {targets: ["%[5]s"], health_check: {path: /healthz, interval: 1s}}
  routes:
    - {name: own-%[1]d, match: {path: /own/%[1]d}, upstream: own-%[1]d, resource: own}
    - {name: streams, match: {path: [/events, /socket]}, action: bypass, upstream: main}
    - {name: bound, match: {path: /bound}, user_id: ["{header.X-User-Id}"], upstream: same}
    - {name: all, upstream: main}
limiter:
  default: {capacity: 1000000, refill_rate: 1000000/s}
  resources:
    bound: {capacity: %[6]d, refill_rate: %[7]d/s}
    own: {limits: [{name: own-%[1]d, capacity: 1000000, refill_rate: 1000000/s}]}
admin: {listen: "127.0.0.1:0"}
log: {level: warn, requests: none}
`, generation, certificates, targets, generation%2, r.servers[0], []int{20, 60, 5, 40}[generation%4], boundRate)
}

func (r *reloadRig) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults++
	if r.fault == nil {
		r.fault = err
	}
}

// client works until the load ends, and then calls end; what it returns before is a
// fault.
func (r *reloadRig) client(name string, work func() error, end func()) {
	r.running.Go(func() {
		defer end()
		for {
			select {
			case <-r.stop:
				return
			default:
			}
			if err := work(); err != nil {
				r.fail(fmt.Errorf("%s: %w", name, err))
				return
			}
			r.asked.Add(1)
		}
	})
}

// rawClient is HTTP/1.1 over TLS that sends nothing twice.
type rawClient struct {
	rig    *reloadRig
	keep   bool // one connection for all
	conn   net.Conn
	reader *bufio.Reader
	dials  int
}

func (c *rawClient) dial() error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: wireWait}, "tcp", host(c.rig.proxy), &tls.Config{RootCAs: c.rig.roots, ServerName: "a.test"})
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	c.conn, c.reader, c.dials = conn, bufio.NewReader(conn), c.dials+1
	return nil
}

// ask sends a request and returns the answer, read to its end. A connection that is
// kept must stay.
func (c *rawClient) ask(text string) (*http.Response, string, error) {
	if c.conn == nil {
		if err := c.dial(); err != nil {
			return nil, "", err
		}
	}
	_ = c.conn.SetDeadline(time.Now().Add(wireWait))
	if _, err := io.WriteString(c.conn, text); err != nil {
		return nil, "", err
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return nil, "", fmt.Errorf("read head: %w", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.Close {
		err = errors.New("the connection is to close")
	}
	if !c.keep {
		c.close()
	}
	return resp, string(body), err
}

func (c *rawClient) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.conn = nil
}

// want asks for a 200 with a body.
func (c *rawClient) want(text, body string) error {
	resp, got, err := c.ask(text)
	if err == nil && (resp.StatusCode != 200 || got != body) {
		err = fmt.Errorf("got %d %.200q", resp.StatusCode, got)
	}
	return err
}

// load starts clients of every kind.
func (r *reloadRig) load() {
	r.stop = make(chan struct{})
	for i, keep := range []bool{true, true, true, false} {
		c := &rawClient{rig: r, keep: keep}
		text, body := "GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n", ""
		if i%2 == 1 {
			text, body = "POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello", "hello"
		}
		r.client(fmt.Sprintf("HTTP/1.1, kept %v", keep), func() error { return c.want(text, body) }, c.close)
	}
	r.loadHTTP2()
	r.client("upload", r.upload, func() {})
	for range 2 {
		c := &rawClient{rig: r, keep: true}
		r.client("bound", func() error { return r.spend(c) }, c.close)
	}
	r.stream()
	r.socket()
}

func (r *reloadRig) loadHTTP2() {
	tr := &http2.Transport{TLSClientConfig: &tls.Config{RootCAs: r.roots, ServerName: "a.test"}}
	client := &http.Client{Transport: tr, Timeout: wireWait}
	for range 2 {
		r.client("HTTP/2", func() error {
			resp, err := client.Post(secured(r.proxy)+"/x", "text/plain", strings.NewReader("hello"))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err == nil && (resp.StatusCode != 200 || string(body) != "hello") {
				err = fmt.Errorf("got %d %q", resp.StatusCode, body)
			}
			return err
		}, tr.CloseIdleConnections)
	}
}

// upload sends a body that takes longer than several reloads.
func (r *reloadRig) upload() error {
	c := &rawClient{rig: r}
	if err := c.dial(); err != nil {
		return err
	}
	defer c.close()
	_ = c.conn.SetDeadline(time.Now().Add(wireWait))
	const pieces = 20
	if _, err := io.WriteString(c.conn, "POST /upload HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"); err != nil {
		return err
	}
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for range pieces {
		<-pause.C
		if _, err := io.WriteString(c.conn, "5\r\nhello\r\n"); err != nil {
			return err
		}
	}
	return c.want("0\r\n\r\n", strings.Repeat("hello", pieces))
}

var policyQuota = regexp.MustCompile(`;q=(\d+);`)

// spend asks for more than the bound resource has, all as one user.
func (r *reloadRig) spend(c *rawClient) error {
	from := time.Since(reloadEpoch)
	resp, body, err := c.ask("GET /bound HTTP/1.1\r\nHost: a.test\r\nX-User-Id: ann\r\n\r\n")
	switch {
	case err != nil:
		return err
	case resp.StatusCode == 429:
		return nil
	case resp.StatusCode != 200:
		return fmt.Errorf("got %d %q", resp.StatusCode, body)
	}
	quota := policyQuota.FindStringSubmatch(resp.Header.Get("RateLimit-Policy"))
	if quota == nil {
		return fmt.Errorf("no policy in %v", resp.Header)
	}
	capacity, err := strconv.ParseFloat(quota[1], 64)
	r.mu.Lock()
	r.admitted = append(r.admitted, ruled{from, time.Since(reloadEpoch), capacity})
	r.mu.Unlock()
	return err
}

// reloadEpoch is when the tests' clock begins.
var reloadEpoch = time.Now()

// stream reads numbers that follow each other until the load ends.
func (r *reloadRig) stream() {
	c := &rawClient{rig: r}
	if err := c.dial(); err != nil {
		r.fail(err)
		return
	}
	if _, err := io.WriteString(c.conn, "GET /events HTTP/1.1\r\nHost: a.test\r\n\r\n"); err != nil {
		r.fail(err)
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		r.fail(err)
		return
	}
	lines, n := bufio.NewReader(resp.Body), 0
	r.client("event stream", func() error {
		_ = c.conn.SetDeadline(time.Now().Add(wireWait))
		line, err := lines.ReadString('\n')
		if err == nil && line != fmt.Sprintf("data: %d\n", n) {
			return fmt.Errorf("got %q, want %d", line, n)
		}
		n++
		if err == nil {
			_, err = lines.ReadString('\n')
		}
		return err
	}, c.close)
}

// socket says something through a tunnel, and hears it, until the load ends.
func (r *reloadRig) socket() {
	c := &rawClient{rig: r, keep: true}
	if err := c.dial(); err != nil {
		r.fail(err)
		return
	}
	if _, err := io.WriteString(c.conn, "GET /socket HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"); err != nil {
		r.fail(err)
	}
	if resp, err := http.ReadResponse(c.reader, nil); err != nil || resp.StatusCode != 101 {
		r.fail(fmt.Errorf("no tunnel: %v, %v", resp, err))
		return
	}
	said, heard := []byte("0123456789"), make([]byte, 10)
	r.client("tunnel", func() error {
		_ = c.conn.SetDeadline(time.Now().Add(wireWait))
		if _, err := c.conn.Write(said); err != nil {
			return err
		}
		_, err := io.ReadFull(c.reader, heard)
		if err == nil && !bytes.Equal(said, heard) {
			err = fmt.Errorf("heard %q", heard)
		}
		return err
	}, c.close)
}

// unload ends the load.
func (r *reloadRig) unload() {
	close(r.stop)
	r.running.Wait()
}

// reload puts a generation in force and makes sure of it: by a signal each 20th time, else
// by the control listener. The watch on the file may be faster than either.
func (r *reloadRig) reload(generation int) {
	r.t.Helper()
	replace(r.t, r.file, r.config(generation))
	if generation%20 == 0 {
		r.signals <- syscall.SIGHUP
		want := fmt.Sprintf(`"drain_delay":"%v"`, time.Duration(generation)*time.Millisecond)
		eventually(r.t, "the signal is heeded", func() bool { return strings.Contains(bodyOf(r.t, r.control+"/admin/config"), want) })
		return
	}
	if resp, body := fetch(r.t, "POST", r.control+"/admin/reload"); resp.StatusCode != 200 || !strings.Contains(body, `"needs_restart":[]`) {
		r.t.Fatalf("generation %d: got %d %s", generation, resp.StatusCode, body)
	}
}

// rounds reloads so often under load, and returns to generation 0. Each generation's
// own route answers, and that of the one before does not any more.
func (r *reloadRig) rounds(n int) {
	r.t.Helper()
	r.load()
	own := &rawClient{rig: r, keep: true}
	for i := 1; i < n; i++ {
		r.reload(i)
		if err := own.want(fmt.Sprintf("GET /own/%d HTTP/1.1\r\nHost: a.test\r\n\r\n", i), ""); err != nil {
			r.t.Fatalf("the route of generation %d: %v", i, err)
		}
	}
	r.reload(0)
	r.unload()
	if own.close(); own.dials != 1 {
		r.t.Errorf("a kept connection was made %d times", own.dials)
	}
	if r.faults > 0 {
		r.t.Errorf("%d faults in %d steps, the first: %v", r.faults, r.asked.Load(), r.fault)
	}
}

// held is what a process holds.
type held struct {
	goroutines, files, series int
	heap                      float64 // MiB
}

// holds is what this process holds when all is quiet, clients of the rig included.
func (r *reloadRig) holds() (h held) {
	http.DefaultClient.CloseIdleConnections()
	text := bodyOf(r.t, r.control+"/metrics")
	http.DefaultClient.CloseIdleConnections()
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			h.series++
		}
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		r.t.Skip("there is no /proc here:", err)
	}
	var m runtime.MemStats
	for range 3 { // pools let go of what they have at the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	h.goroutines, h.files, h.heap = runtime.NumGoroutine(), len(files), float64(m.HeapAlloc)/(1<<20)
	return h
}

// A thousand configurations one after the other, under every kind of load: nobody
// notices, nothing is left behind, and nobody gets more than the limits of their time.
func TestThousandReloadsUnderLoadDropNothingAndLeakNothing(t *testing.T) {
	const warming, reloads = 40, 1000
	r := newReloadRig(t)
	gateway := &process{control: r.control}
	r.rounds(warming)
	var before held
	eventually(t, "the gateway is at rest", func() bool {
		last := before
		before = r.holds()
		return last.goroutines == before.goroutines && last.files == before.files
	})
	applied := gateway.metric(t, `r8limiter_config_reloads_total{result="applied"}`)
	began := time.Now()
	r.rounds(reloads)
	t.Logf("%d reloads in %v, %d steps of clients, %d admitted", reloads, time.Since(began), r.asked.Load(), len(r.admitted))
	if got := gateway.metric(t, `r8limiter_config_reloads_total{result="applied"}`) - applied; got != reloads {
		t.Errorf("%v configurations were put in force, want %d", got, reloads)
	}
	if got := gateway.metric(t, `r8limiter_config_reloads_total{result="failed"}`); got != 0 {
		t.Errorf("%v reloads failed", got)
	}
	var after held
	eventually(t, fmt.Sprintf("it holds no more than before, %+v", before), func() bool {
		after = r.holds()
		return after.goroutines <= before.goroutines+10 && after.files <= before.files+10 && after.heap <= before.heap+2
	})
	if after.series != before.series {
		t.Errorf("%d series, before there were %d", after.series, before.series)
	}
	t.Logf("before %+v, after %+v", before, after)
	checkRuledWindows(t, r.admitted)
	r.started.stop(t)
}

// checkRuledWindows fails if any window admitted more than the largest capacity that an
// admission in it went by, and what the rate brings in its time.
func checkRuledWindows(t *testing.T, all []ruled) {
	t.Helper()
	if len(all) < 100 {
		t.Errorf("%d admitted: too few to say anything", len(all))
	}
	ends := slices.Clone(all)
	slices.SortFunc(ends, func(a, b ruled) int { return int(a.to - b.to) })
	for _, first := range all {
		n, capacity := 0, 0.0
		for _, a := range ends {
			if a.from < first.from {
				continue
			}
			n++
			capacity = max(capacity, a.capacity)
			if most := capacity + boundRate*(a.to-first.from).Seconds(); float64(n) > most {
				t.Fatalf("%d admitted in %v, at most %.1f may be: capacity %.0f", n, a.to-first.from, most, capacity)
			}
		}
	}
}
