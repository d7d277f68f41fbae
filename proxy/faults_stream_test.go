package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The time-outs of an answer are of its pieces: a stream of events outlives them
// all, and each event passes at once.
func TestFaultsOfTimeDoNotEndAStreamOfEvents(t *testing.T) {
	t.Parallel()
	each, n := longOr(200*time.Millisecond, 20*time.Millisecond), longOr(300, 50)
	wait := longOr(10*time.Second, 200*time.Millisecond)
	headSeen := make(chan struct{})
	rg, _ := rawRig(t, 10, func(p *peer) {
		p.take()
		p.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
		<-headSeen // the client has the head before there is any event
		tick := time.NewTicker(each)
		defer tick.Stop()
		for range n {
			<-tick.C
			p.send(fmt.Sprintf("data: %020d\n\n", time.Now().UnixNano()))
		}
	}, func(c *Config) {
		bypassing(c)
		c.Limits.WriteTimeout = wait
		c.Upstreams["api"] = UpstreamConfig{Targets: c.Upstreams["api"].Targets, ResponseTimeout: wait / 2, IdleTimeout: wait}
	})
	c := rg.dial(t)
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	c.send(plainGet)
	want(t, "head", c.head(), "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	close(headSeen)
	began := time.Now()
	var late []time.Duration
	for range n {
		var sent int64
		if event := c.until("\n\n\r\n"); !strings.HasPrefix(event, "1c\r\ndata: ") {
			t.Fatalf("got %q", event)
		} else if _, err := fmt.Sscanf(event, "1c\r\ndata: %d", &sent); err != nil {
			t.Fatal(err)
		}
		late = append(late, time.Since(time.Unix(0, sent)))
	}
	want(t, "end", c.until("0\r\n\r\n"), "0\r\n\r\n")
	slices.Sort(late)
	if took := time.Since(began); took < 2*wait {
		t.Errorf("the stream took %v, which the time-outs of %v allow anyway", took, wait)
	}
	if most := quantile(late, 1); most > longOr(50*time.Millisecond, time.Second) {
		t.Errorf("an event came %v late", most)
	}
	t.Logf("events were late by: %s", spread(late))
}

// echoing is an upstream that answers with what it got, and keeps the ids. What
// does not fit together in a request it answers with 400.
type echoing struct {
	mu  sync.Mutex
	ids map[string]int
}

// bodyOf is the body that goes with an id.
func bodyOf(id string, size int) []byte {
	return bytes.Repeat([]byte(id+" "), size/(len(id)+1)+1)[:size]
}

func (e *echoing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("X-Request-Id")
	body, err := io.ReadAll(r.Body)
	if err != nil || r.URL.Path != "/"+id || r.URL.RawQuery != "id="+id || r.Header.Get("X-User-Id") != "u"+id || !bytes.Equal(body, bodyOf(id, len(body))) {
		http.Error(w, fmt.Sprintf("%q %q %q %v", id, r.URL, r.Header, err), http.StatusBadRequest)
		return
	}
	e.mu.Lock()
	e.ids[id]++
	e.mu.Unlock()
	w.Header().Set("X-Echo", id)
	if len(id)%2 == 0 {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	}
	_, _ = w.Write(body)
}

// echoSizes are around all bounds of how bodies are carried.
var echoSizes = []int{0, 1, 100, 5000, 33_000, smallBodyBytes, smallBodyBytes + 1, 200 << 10}

// Many requests at a time over shared connections: each answer is that of its
// request, and the upstream and the log see what was sent, all of it, once.
func TestFaultsOfMixedUpRequestsDoNotHappen(t *testing.T) {
	const workers = 64
	n := longOr(10_000, 2_000)
	e := &echoing{ids: map[string]int{}}
	up := httptest.NewServer(e)
	defer up.Close()
	rg, _ := rawRig(t, 10, func(*peer) {}, func(c *Config) {
		c.Upstreams["api"] = UpstreamConfig{Targets: []string{up.URL}}
		c.Routes[0].UserID = []Template{template(t, "{header.X-User-Id}")}
	})
	clients := &http.Client{Transport: &http.Transport{MaxConnsPerHost: workers / 2, MaxIdleConnsPerHost: workers / 2}, Timeout: time.Minute}
	defer clients.CloseIdleConnections()
	sent := map[string]int{}
	turns := make(chan string, n)
	for i := range n {
		id := fmt.Sprintf("%x", 1<<(4*(i%5))*1_000_003+i) // of different lengths
		sent[id]++
		turns <- id
	}
	close(turns)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for id := range turns {
				if err := rg.echo(clients, id); err != nil && !t.Failed() {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if !maps.Equal(e.ids, sent) {
		t.Errorf("the upstream saw %d ids, %d were sent", len(e.ids), len(sent))
	}
	eventually(t, "all is logged", func() bool { return strings.Count(rg.log.String(), "\n") >= n })
	logged := map[string]int{}
	for _, line := range rg.lines(t) {
		id := line["request_id"].(string)
		logged[id]++
		if line["user_id"] != "u"+id || line["status"] != 200. {
			t.Fatalf("logged %v", line)
		}
	}
	if !maps.Equal(logged, sent) {
		t.Errorf("the log holds %d ids, %d were sent", len(logged), len(sent))
	}
}

// echo sends the request that goes with id, and checks its answer.
func (rg *rig) echo(clients *http.Client, id string) error {
	var sum int
	for _, c := range id {
		sum += int(c)
	}
	body := bodyOf(id, echoSizes[sum%len(echoSizes)])
	var from io.Reader = bytes.NewReader(body)
	if sum%3 == 0 { // of unknown length: chunked
		from = io.MultiReader(bytes.NewReader(body))
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", "http://"+rg.addr+"/"+id+"?id="+id, from)
	if err != nil {
		return err
	}
	req.Header.Set("X-Request-Id", id)
	req.Header.Set("X-User-Id", "u"+id)
	resp, err := clients.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("X-Echo") != id || !bytes.Equal(got, body) {
		return fmt.Errorf("%s: got %d for %q, %d bytes for %d, %v: %.100q", id, resp.StatusCode, resp.Header.Get("X-Echo"), len(got), len(body), err, got)
	}
	return nil
}

// tempers are what the upstream of the soak does, by the path.
var tempers = map[string]func(p *peer){
	"/well":    func(p *peer) { p.send(okAnswer) },
	"/chunked": func(p *peer) { p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n") },
	"/cut":     func(p *peer) { p.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi"); p.Close() },
	"/nothing": func(p *peer) { p.Close() },
	"/reset":   func(p *peer) { _ = p.Conn.(*net.TCPConn).SetLinger(0); p.Close() },
	"/nonsense": func(p *peer) {
		p.send("nonsense\r\n\r\n")
	},
	"/more": func(p *peer) { p.send(okAnswer + okAnswer) },
}

// A long time with all faults mixed leaves nothing behind, and every request has
// been counted once.
func TestFaultsOfALongDayLeaveNothing(t *testing.T) {
	const workers = 32
	n := longOr(200_000, 4_000)
	up := startSoaked(t)
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{up}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api"}}
	rg := startRig(t, c, nil, newLimiter(t, 1<<20))
	paths := slices.Sorted(maps.Keys(tempers))
	before := inHand(t)
	heap := heapBytes()
	half := int64(0)
	for round := range 10 {
		var all sync.WaitGroup
		for w := range workers {
			all.Go(func() {
				for i := range n / 10 / workers {
					if err := rg.live(paths[(i+w)%len(paths)], i*workers+w); err != nil && !t.Failed() {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		rg.log.forget()
		if round == 4 {
			half = heapBytes()
		}
	}
	eventually(t, "all connections of clients are gone", func() bool { return rg.p.server.connections() == 0 })
	eventually(t, "nothing is left over", func() bool {
		now := inHand(t)
		open := 2 * rg.p.rules.Load().upstreams["api"].openConns() // both ends are of this process
		return now.goroutines <= before.goroutines+open/2+4 && now.files <= before.files+open+4
	})
	if grown := heapBytes() - half; grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes in the second half", grown)
	}
	sum := rg.tally()
	if want := n / 10 / workers * workers * 10; sum.decisions != want || sum.panics != 0 {
		t.Errorf("counted %d decisions, %d panics; want %d, 0", sum.decisions, sum.panics, want)
	}
	t.Logf("%d requests; in hand before and after: %v, %v; heap %d, %d, %d KiB", n, before, inHand(t), heap>>10, half>>10, heapBytes()>>10)
}

// startSoaked is an upstream with all tempers, which keeps nothing.
func startSoaked(t *testing.T) (target string) {
	l := listenLoopback(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				s := &rawServer{}
				p := newPeer(conn, s)
				for request, ok := p.take(); ok; request, ok = p.take() {
					tempers[strings.Fields(request)[1]](p)
					s.requests = nil
				}
			})
		}
	})
	t.Cleanup(func() { l.Close() })
	return "http://" + l.Addr().String()
}

// live sends a request of a kind that number chooses, and takes what comes. It
// says what was wrong with it.
func (rg *rig) live(path string, number int) error {
	conn, err := net.Dial("tcp", rg.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	request := "GET " + path + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	switch number % 4 {
	case 1:
		request = "POST " + path + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde"
	case 2:
		request = "POST " + path + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	if number%16 == 3 { // it leaves, but only when the request is read: else nothing was counted
		one := make([]byte, 1)
		_, _ = conn.Read(one)
		return nil
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) && !bytes.HasPrefix(answer, []byte("HTTP/1.1 502 ")) {
		return errors.Join(fmt.Errorf("%s: got %q", path, answer), err)
	}
	return nil
}
