package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// startGateway starts a gateway on Redis and waits until it is ready.
func startGateway(t *testing.T, upstream, socket string) *started {
	t.Helper()
	s := start(t, `
proxy:
  listen: "127.0.0.1:0"
  drain_delay: 50ms
  upstreams: {api: {targets: ["`+upstream+`"]}}
  routes: [{name: all, user_id: ["{header.X-User-Id}"], upstream: api}]
limiter:
  default: {capacity: 100, refill_rate: 1/h, on_store_error: deny}
  redis: {url: "unix://`+socket+`", timeout: 5s}
admin: {listen: "127.0.0.1:0"}
`)
	t.Cleanup(func() {
		s.signals <- syscall.SIGTERM
		if code := <-s.exit; code != exitFine {
			t.Errorf("exit code %d, want 0", code)
		}
	})
	eventually(t, "the gateway is ready", func() bool { return status(t, "GET", s.control+"/readyz") == 200 })
	return s
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to be that %s", what)
		}
	}
}

// ask sends a GET for ann and returns the answer with its body.
func ask(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-User-Id", "ann")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return &http.Response{}, ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp, string(body)
}

func TestGatewaysShareOneLimitAndSayWhenRedisIsGone(t *testing.T) {
	var arrived atomic.Int64
	upstream := httptestServer(t, func(http.ResponseWriter, *http.Request) { arrived.Add(1) })
	server := redistest.Start(t)
	gateways := make([]*started, 3)
	for i := range gateways {
		gateways[i] = startGateway(t, upstream, server.Socket())
	}
	var allowed, denied atomic.Int64
	var clients sync.WaitGroup
	for i := range 64 {
		clients.Go(func() {
			for range 5 {
				switch resp, _ := ask(t, gateways[i%3].proxy+"/x"); resp.StatusCode {
				case 200:
					allowed.Add(1)
				case 429:
					denied.Add(1)
				default:
					t.Errorf("got %d", resp.StatusCode)
				}
			}
		})
	}
	clients.Wait()
	if allowed.Load() != 100 || denied.Load() != 220 || arrived.Load() != 100 {
		t.Errorf("allowed %d, denied %d, at the upstream %d: want 100, 220, 100", allowed.Load(), denied.Load(), arrived.Load())
	}
	_, body := ask(t, gateways[0].control+"/admin/user/ann")
	var user struct{ Resources []struct{ Tokens float64 } }
	if err := json.Unmarshal([]byte(body), &user); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if len(user.Resources) == 0 || user.Resources[len(user.Resources)-1].Tokens >= 1 {
		t.Errorf("ann's buckets: got %s, want less than one token", body)
	}

	server.Kill()
	var resp *http.Response
	eventually(t, "the denial is no longer known, and nobody can be asked", func() bool {
		resp, body = ask(t, gateways[1].proxy+"/x")
		return resp.StatusCode != 429
	})
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" || !strings.Contains(body, "store of the limits") {
		t.Errorf("without Redis: got %d %q %s, want 503, Retry-After 1", resp.StatusCode, resp.Header, body)
	}
	if resp, body := ask(t, gateways[1].control+"/readyz"); resp.StatusCode != 503 {
		t.Errorf("readyz without Redis: got %d %s, want 503", resp.StatusCode, body)
	}
	if arrived.Load() != 100 {
		t.Errorf("at the upstream: %d, want still 100", arrived.Load())
	}
}
