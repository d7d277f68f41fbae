package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// wirePoll is how often a fleet asks for /readyz, as a load balancer does.
const wirePoll = 100 * time.Millisecond

// fleet is the instances that requests are spread over, in the way of a load
// balancer: those whose /readyz answered 200 when it was asked last.
type fleet struct {
	mu        sync.Mutex // guards what follows
	instances []*instance
}

// instance is one gateway of a fleet.
type instance struct {
	addr, ready string // where requests go, and the URL of /readyz
	serves      atomic.Bool
}

// startFleet asks the instances for their readiness until the test ends.
func startFleet(t *testing.T) *fleet {
	f := &fleet{}
	stop := make(chan struct{})
	var polling sync.WaitGroup
	polling.Go(func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
		tick := time.NewTicker(wirePoll)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			for _, i := range f.all() {
				i.serves.Store(isReady(client, i.ready))
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		polling.Wait()
	})
	return f
}

func isReady(client *http.Client, url string) bool {
	resp, err := client.Get(url)
	if err != nil {
		return false
	}
	drop(resp)
	return resp.StatusCode == 200
}

func (f *fleet) all() []*instance {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.instances)
}

// add waits until the process is ready and has the fleet use it.
func (f *fleet) add(t *testing.T, p *process) {
	t.Helper()
	p.awaitReady(t)
	i := &instance{addr: strings.TrimPrefix(p.proxy, "http://"), ready: p.control + "/readyz"}
	f.mu.Lock()
	f.instances = append(f.instances, i)
	f.mu.Unlock()
	eventually(t, "the fleet uses the instance", i.serves.Load)
}

// remove forgets an instance that is gone.
func (f *fleet) remove(p *process) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.instances = slices.DeleteFunc(f.instances, func(i *instance) bool { return i.ready == p.control+"/readyz" })
}

// pick is an instance that serves, one after the other; nil where none does.
func (f *fleet) pick(turn int) *instance {
	serving := slices.DeleteFunc(f.all(), func(i *instance) bool { return !i.serves.Load() })
	if len(serving) == 0 {
		return nil
	}
	return serving[turn%len(serving)]
}

// wireClient asks the instances of a fleet. It forgives nothing: no request is
// sent twice, and a kept connection on which one fails is a failed request.
type wireClient struct {
	fleet *fleet
	keep  bool // the connection, for as long as its instance serves; else each request has its own
	text  string
	turn  int

	conn   net.Conn // nil: none
	reader *bufio.Reader
	to     *instance
}

// wireWait bounds the wait for an answer.
const wireWait = 15 * time.Second

// ask sends a request and says whether the answer was as it should be.
func (c *wireClient) ask() error {
	if c.conn != nil && !c.to.serves.Load() {
		c.close()
	}
	if c.conn == nil {
		if err := c.dial(); err != nil {
			return err
		}
	}
	resp, err := c.exchange()
	if err != nil || resp.Close || !c.keep {
		c.close()
	}
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	return err
}

func (c *wireClient) dial() (err error) {
	c.turn++
	if c.to = c.fleet.pick(c.turn); c.to == nil {
		return fmt.Errorf("no instance is ready")
	}
	if c.conn, err = net.DialTimeout("tcp", c.to.addr, wireWait); err != nil {
		c.conn = nil
		return err
	}
	c.reader = bufio.NewReader(c.conn)
	return nil
}

// exchange sends the request and reads its answer to the end.
func (c *wireClient) exchange() (*http.Response, error) {
	_ = c.conn.SetDeadline(time.Now().Add(wireWait))
	if _, err := io.WriteString(c.conn, c.text); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return nil, fmt.Errorf("read head, keep-alive %v: %w", c.keep, err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp, err
}

func (c *wireClient) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.conn = nil
}

// wireLoad is requests at a steady pace, half over kept connections and half
// over fresh ones.
type wireLoad struct {
	sent    atomic.Int64
	began   time.Time
	stop    chan struct{}
	running sync.WaitGroup

	mu     sync.Mutex // guards what follows
	fault  error      // the first
	faults int
	took   []time.Duration
}

// The requests of a load.
const (
	wireGet  = "GET /x HTTP/1.1\r\nHost: a\r\nX-User-Id: load\r\n\r\n"
	wirePost = "POST /x HTTP/1.1\r\nHost: a\r\nX-User-Id: load\r\nContent-Length: 5\r\n\r\nhello"
)

// startLoad sends so many requests a second, by clients of which the first
// half keeps its connections, until it is told to end.
func startLoad(f *fleet, each time.Duration, clients int) *wireLoad {
	l := &wireLoad{stop: make(chan struct{}), began: time.Now()}
	turns := make(chan struct{})
	for i := range clients {
		c := &wireClient{fleet: f, keep: i < (clients+1)/2, text: []string{wireGet, wirePost}[i/2%2], turn: i}
		l.running.Go(func() { l.work(c, turns) })
	}
	l.running.Go(func() {
		defer close(turns)
		tick := time.NewTicker(each)
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
			select { // whoever is free takes it
			case <-l.stop:
				return
			case turns <- struct{}{}:
			}
		}
	})
	return l
}

func (l *wireLoad) work(c *wireClient, turns <-chan struct{}) {
	defer c.close()
	for range turns {
		start := time.Now()
		err := c.ask()
		l.sent.Add(1)
		l.note(time.Since(start), err)
	}
}

func (l *wireLoad) note(took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = append(l.took, took)
	if err != nil {
		l.faults++
		l.fault = cmp.Or(l.fault, fmt.Errorf("after %v: %w", time.Since(l.began).Round(time.Millisecond), err))
	}
}

// window is what the requests took that were answered while f ran, in order.
func (l *wireLoad) window(f func()) []time.Duration {
	l.mu.Lock()
	from := len(l.took)
	l.mu.Unlock()
	f()
	l.mu.Lock()
	defer l.mu.Unlock()
	took := slices.Clone(l.took[from:])
	slices.Sort(took)
	return took
}

// await waits for n more answers.
func (l *wireLoad) await(t *testing.T, n int64) {
	t.Helper()
	until := l.sent.Load() + n
	eventually(t, "the load is answered", func() bool { return l.sent.Load() >= until })
}

// end stops the load, says how much there was, and fails if a request failed.
func (l *wireLoad) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.running.Wait()
	took := time.Since(l.began)
	t.Logf("%d requests in %v, %.0f a second", l.sent.Load(), took.Round(time.Millisecond), float64(l.sent.Load())/took.Seconds())
	if l.faults > 0 {
		t.Errorf("%d of %d requests failed, the first %v", l.faults, l.sent.Load(), l.fault)
	}
	if l.sent.Load() == 0 {
		t.Error("nothing was sent: nothing was tested")
	}
}

// quantile is the q-th of sorted durations; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(float64(len(sorted))*q))]
}

// median is the middle one.
func median(durations []time.Duration) time.Duration {
	slices.Sort(durations)
	return quantile(durations, .5)
}
