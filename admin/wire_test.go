package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/r8limiter/r8limiter/limiter"
)

func TestRequestsOfOneConnectionAreAnsweredInOrder(t *testing.T) {
	g := start(t, setup{})
	kept := "POST /allow?user_id=a&cost=%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxx"
	pipelined := fmt.Sprintf(kept+kept, 2, 3) + request("POST", "/allow?user_id=a&cost=4")
	var got []string
	for line := range strings.SplitSeq(g.send(t, pipelined), "\r\n") {
		if _, after, ok := strings.Cut(line, `"tokens_left": `); ok {
			got = append(got, after[:3])
		}
	}
	if diff := cmp.Diff([]string{"8.0", "5.0", "1.0"}, got); diff != "" {
		t.Errorf("tokens left (-want +got):\n%s", diff)
	}
}

func TestRequestThatArrivesByteByByteIsAnswered(t *testing.T) {
	g := start(t, setup{})
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw := request("POST", "/allow?user_id=a&cost=2", "Content-Length: 3") + "abc"
	for i := range len(raw) - 1 {
		if _, err := io.WriteString(c, raw[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if answer := talk(t, c, raw[len(raw)-1:]); !strings.HasSuffix(answer, `"tokens_left": 8.0}`) {
		t.Errorf("got %q", answer)
	}
}

func TestClientThatExpects100ContinueIsAnswered(t *testing.T) {
	g := start(t, setup{})
	answer := g.send(t, request("POST", "/allow?user_id=a", "Expect: 100-continue", "Content-Length: 3")+"abc")
	if !strings.HasPrefix(answer, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n") {
		t.Errorf("got %q", answer)
	}
}

func TestHTTP10IsAnsweredAndClosed(t *testing.T) {
	g := start(t, setup{})
	answer := g.send(t, "GET /livez HTTP/1.0\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(answer, `{"alive":true}`) {
		t.Errorf("got %q", answer)
	}
}

func TestConnectionsCloseAfterTheNextAnswerWhileDraining(t *testing.T) {
	g := start(t, setup{})
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for _, wantClose := range []bool{false, true} {
		if _, err := io.WriteString(c, "POST /allow?user_id=a HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != 200 || resp.Close != wantClose {
			t.Errorf("got %d, close %v; want 200, close %v", resp.StatusCode, resp.Close, wantClose)
		}
		g.Drain()
	}
}

// Whatever fasthttp reuses, nobody is shown another's answer.
func TestConcurrentClientsSeeOnlyTheirOwn(t *testing.T) {
	g := start(t, setup{})
	var wg sync.WaitGroup
	for client := range 8 {
		wg.Go(func() {
			for n := range 40 {
				id := fmt.Sprintf("c%d-%d-%s", client, n, strings.Repeat("x", n*client))
				if status, body := g.do(t, "GET", "/admin/user/"+id); status+body != `200{"user_id":"`+id+`","resources":[]}` {
					t.Errorf("%s: got %s %s", id, status, body)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "every request is logged", func() bool { return len(parseLog(t, g.log.String(), "info")) == 320 })
	seen := map[any]bool{}
	for _, line := range parseLog(t, g.log.String(), "info") {
		if path := line["path"]; seen[path] {
			t.Errorf("%v is logged twice", path)
		} else {
			seen[path] = true
		}
	}
}

func TestSeveralLimitsAreAllShownAndTheBindingOneDecides(t *testing.T) {
	limits := frozen(t, 10)
	limits.Headers = []string{"draft"}
	limits.Resources = map[string]limiter.ResourceConfig{"search": {Limits: []limiter.LimitConfig{
		{Name: "burst", Capacity: 20, RefillRate: rate(t, "0.034/d")},
		{Name: "everyone", Per: "resource", Capacity: 7, RefillRate: rate(t, "1/m")},
		{Name: "next", Shadow: true, Capacity: 1, RefillRate: rate(t, "1/m")},
	}}}
	g := start(t, setup{limits: limits})
	answer := g.send(t, request("POST", "/allow?user_id=a&resource=search&cost=6"))
	if got, want := field(answer, "RateLimit-Policy"), `"burst";q=20;w=50823530,"everyone";q=7;w=420`; got != want {
		t.Errorf("got RateLimit-Policy %s, want %s", got, want)
	}
	if got, want := field(answer, "RateLimit"), `"burst";r=14;t=35576471,"everyone";r=1;t=60`; got != want {
		t.Errorf("got RateLimit %s, want %s", got, want)
	}
	answer = g.send(t, request("POST", "/allow?user_id=b&resource=search&cost=2"))
	if answer[9:12] != "429" || field(answer, "Retry-After") != "60" {
		t.Errorf("the limit that all share: got %q, want 429 and 60 s", answer)
	}
	_, body := g.do(t, "POST", "/allow?user_id=a&resource=search&cost=8")
	if want := `{"error":"cost 8 exceeds the capacity 7 of limit \"everyone\": it can never pass"}`; body != want {
		t.Errorf("got %s, want %s", body, want)
	}
}

func TestRateLimitFieldsAreThoseConfigured(t *testing.T) {
	for _, c := range []struct {
		headers       []string
		draft, legacy bool
	}{{nil, false, false}, {[]string{"draft"}, true, false}, {[]string{"legacy"}, false, true}} {
		limits := frozen(t, 10)
		limits.Headers = c.headers
		answer := start(t, setup{limits: limits}).send(t, request("POST", "/allow?user_id=a"))
		for name, want := range map[string]bool{
			"RateLimit": c.draft, "RateLimit-Policy": c.draft,
			"X-RateLimit-Limit": c.legacy, "X-RateLimit-Remaining": c.legacy, "X-RateLimit-Reset": c.legacy,
		} {
			if got := field(answer, name); got != "" != want {
				t.Errorf("headers %q: got %s %q", c.headers, name, got)
			}
		}
	}
}

func TestHostileTextNeverEscapesAField(t *testing.T) {
	g := start(t, setup{})
	answer := g.send(t, request("POST", "/allow?user_id=a&resource=r%0D%0AX-Injected:%20y%22%5C%C3%BC"))
	if field(answer, "X-Injected") != "" || answer[9:12] != "200" {
		t.Errorf("got %q", answer)
	}
	_, body := g.do(t, "POST", "/allow?user_id=a&%22%0A%1B=1")
	if want := `{"error":"unknown parameter \"\\\"\\n\\x1b\": there are user_id, resource, plan, cost and idempotency"}`; body != want {
		t.Errorf("got %s, want %s", body, want)
	}
	long := strings.Repeat("u", 5000)
	g.do(t, "POST", "/allow?user_id="+long)
	eventually(t, "the long id is logged, cut", func() bool {
		lines := parseLog(t, g.log.String(), "info")
		return len(lines) == 3 && lines[2]["user_id"] == long[:maxLogged]
	})
}

// stuckStore is a store that gives no answer before it has to.
type stuckStore struct{ *limiter.MemoryStore }

func (stuckStore) Probe(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestReadyzWaitsASecondForTheStore(t *testing.T) {
	start(t, setup{}).do(t, "GET", "/livez") // fasthttp's clock must start outside the bubble
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, setup{store: stuckStore{limiter.NewMemoryStore()}})
		began := time.Now()
		answer := g.pipe(t, request("GET", "/readyz"))
		if !strings.HasSuffix(answer, `{"ready":false,"reason":"context deadline exceeded"}`) {
			t.Errorf("got %q", answer)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v, want a second", took)
		}
	})
}

// FuzzHead feeds the checks behind fasthttp with what it accepts: what passes
// has a framing that everyone reads alike.
func FuzzHead(f *testing.F) {
	for _, h := range []string{"Host: a\r\n\r\n", "Host: a\nX: y\r\n\r\n", "A: b\r\n c\r\n\r\n", "A b: c\r\n\r\n", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer-encoding:identity\r\n\r\n"} {
		f.Add([]byte(h))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if checkFields(raw) != nil {
			return
		}
		block, _, _ := strings.Cut("\r\n"+string(raw), "\r\n\r\n")
		if strings.Count(block, "\n") != strings.Count(block, "\r\n") {
			t.Errorf("%q: a bare line feed passed", raw)
		}
		if strings.Contains(block, "\n ") || strings.Contains(block, "\n\t") {
			t.Errorf("%q: a fold passed", raw)
		}
		lower := strings.ToLower(block)
		if strings.Contains(lower, "\ncontent-length:") && strings.Contains(lower, "\ntransfer-encoding:") {
			t.Errorf("%q: two lengths passed", raw)
		}
	})
}
