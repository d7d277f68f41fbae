package admin

import (
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/r8limiter/r8limiter/limiter"
)

func TestAllowAnswersInTheBytesOfTheContract(t *testing.T) {
	limits := limiter.DefaultConfig()
	limits.Headers = []string{"draft", "legacy"}
	start(t, setup{}).do(t, "GET", "/livez") // fasthttp's clock must start outside the bubble
	steps := []struct {
		after  time.Duration
		target string
		want   string
	}{
		{0, "/allow?user_id=a&cost=3", `HTTP/1.1 200 OK
Content-Type: application/json
Content-Length: 57
RateLimit-Policy: "default";q=10;w=2
RateLimit: "default";r=7;t=2
X-RateLimit-Limit: 10
X-RateLimit-Remaining: 7
X-RateLimit-Reset: 1
Cache-Control: no-store
Connection: close

{"allowed": true, "retry_after": 0.0, "tokens_left": 7.0}`},
		{80 * time.Millisecond, "/allow?user_id=a&cost=0", `"tokens_left": 7.4}`},
		{0, "/allow?user_id=a&cost=7", `"tokens_left": 0.4}`},
		{0, "/allow?user_id=a&cost=7", `HTTP/1.1 429 Too Many Requests
Content-Type: application/json
Content-Length: 59
RateLimit-Policy: "default";q=10;w=2
RateLimit: "default";r=0;t=2
X-RateLimit-Limit: 10
X-RateLimit-Remaining: 0
X-RateLimit-Reset: 2
Retry-After: 2
Cache-Control: no-store
Connection: close

{"allowed": false, "retry_after": 1.32, "tokens_left": 0.4}`},
		{119999 * time.Microsecond, "/allow?user_id=a", `{"allowed": false, "retry_after": 0.001, "tokens_left": 0.999995}`},
		{time.Microsecond, "/allow?user_id=a", `{"allowed": true, "retry_after": 0.0, "tokens_left": 0.0}`},
	}
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, setup{limits: limits})
		for _, s := range steps {
			time.Sleep(s.after)
			got := strings.ReplaceAll(g.pipe(t, request("POST", s.target)), "\r\n", "\n")
			if !strings.HasPrefix(s.want, "HTTP/") {
				got = got[max(0, len(got)-len(s.want)):]
			}
			if diff := cmp.Diff(s.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", s.target, diff)
			}
		}
	})
}

// pipe is send over a connection in memory, for use where time is made up.
func (g *gateway) pipe(t *testing.T, raw string) string {
	t.Helper()
	client, server := net.Pipe()
	go func() { _ = g.http.ServeConn(server); _ = server.Close() }()
	return talk(t, client, raw)
}

func TestAllowRefusesWhatItCannotTakeAtItsWord(t *testing.T) {
	g := start(t, setup{})
	for target, want := range map[string]string{
		"/allow":                                      `parameter user_id is missing: say whose tokens to spend, as in /allow?user_id=alice`,
		"/allow?":                                     `parameter user_id is missing: say whose tokens to spend, as in /allow?user_id=alice`,
		"/allow?user_id=":                             `parameter \"user_id\" is empty`,
		"/allow?user_id":                              `parameter \"user_id\" is empty`,
		"/allow?user_id=a&resource=":                  `parameter \"resource\" is empty`,
		"/allow?user_id=a&user_id=b":                  `parameter \"user_id\" is given more than once`,
		"/allow?user_id=a&user%5Fid=b":                `parameter \"user_id\" is given more than once`,
		"/allow?user_id=a&cost=1&cost=1":              `parameter \"cost\" is given more than once`,
		"/allow?user_id=a&plan=":                      `parameter \"plan\" is empty`,
		"/allow?user_id=a&plan=gold&plan=gold":        `parameter \"plan\" is given more than once`,
		"/allow?user_id=a&Plan=gold":                  `unknown parameter \"Plan\": there are user_id, resource, plan, cost and idempotency`,
		"/allow?user_id=a&Cost=1":                     `unknown parameter \"Cost\": there are user_id, resource, plan, cost and idempotency`,
		"/allow?user_id=a&=1":                         `unknown parameter \"\": there are user_id, resource, plan, cost and idempotency`,
		"/allow?user_id=a%2":                          `parameter \"user_id\": malformed escape \"%2\": write %25 for a percent sign`,
		"/allow?user_id=%zz":                          `parameter \"user_id\": malformed escape \"%zz\": write %25 for a percent sign`,
		"/allow?user_id=a&%":                          `malformed escape \"%\": write %25 for a percent sign`,
		"/allow?user_id=a&cost=":                      `cost \"\" is not a whole number from 0 to 1000000000`,
		"/allow?user_id=a&cost=-1":                    `cost \"-1\" is not a whole number from 0 to 1000000000`,
		"/allow?user_id=a&cost=%2B1":                  `cost \"+1\" is not a whole number from 0 to 1000000000`,
		"/allow?user_id=a&cost=1.5":                   `cost \"1.5\" is not a whole number from 0 to 1000000000`,
		"/allow?user_id=a&cost=NaN":                   `cost \"NaN\" is not a whole number from 0 to 1000000000`,
		"/allow?user_id=a&cost=1e308":                 `cost \"1e308\" is not a whole number from 0 to 1000000000`,
		"/allow?user_id=a&cost=1000000001":            `cost \"1000000001\" is not a whole number from 0 to 1000000000`,
		"/allow?user_id=a&cost=18446744073709551617":  `cost \"18446744073709551617\" is not a whole number from 0 to 1000000000`,
		"/allow?user_id=a&cost=11":                    `cost 11 exceeds the capacity 10 of limit \"default\": it can never pass`,
		"/allow?user_id=a&idempotency=":               `the idempotency key is malformed: write 1 to 255 printable ASCII characters, bare or in double quotes`,
		"/allow?user_id=a&idempotency=%22x":           `the idempotency key is malformed: write 1 to 255 printable ASCII characters, bare or in double quotes`,
		"/allow?user_id=a&idempotency=%C3%BC":         `the idempotency key is malformed: write 1 to 255 printable ASCII characters, bare or in double quotes`,
		"/allow?user_id=a&cost=1&user_id=a#&resource": `the request target holds the byte 0x23: write it as %23`,
	} {
		status, body := g.do(t, "POST", target)
		if got, want := status+" "+body, `400 {"error":"`+want+`"}`; got != want {
			t.Errorf("POST %s\n got %s\nwant %s", target, got, want)
		}
	}
	if allowed, denied := g.Limiter.Totals(); allowed != 0 || denied != 1 {
		t.Errorf("got %d allowed and %d denied, want 0 and 1, the cost that can't pass", allowed, denied)
	}
}

func TestAllowDecodesItsParameters(t *testing.T) {
	g := start(t, setup{})
	for _, spelling := range []string{"a+b%2Fc&resource=x%26y", "a%20b/c&&resource=x%26y&", "%61%20b%2fc&resource=x%26y&cost=1"} {
		g.do(t, "POST", "/allow?user_id="+spelling)
	}
	_, body := g.do(t, "POST", "/allow?cost=007&resource=x%26y&user_id=a+b/c")
	if want := `{"allowed": true, "retry_after": 0.0, "tokens_left": 0.0}`; body != want {
		t.Errorf("got %s, want %s: spellings of one user must share a bucket", body, want)
	}
}

func TestIdempotencyKeySpendsOnce(t *testing.T) {
	g := start(t, setup{})
	const target = "/allow?user_id=a&cost=4"
	replays := 0
	for _, r := range []string{
		request("POST", target, `Idempotency-Key: "k\"1"`),
		request("POST", target, `Idempotency-Key: k"1`),
		request("POST", target+"&idempotency=k%221"),
		request("POST", target+"&idempotency=%22k%5C%221%22", `Idempotency-Key: k"1`),
	} {
		answer := g.send(t, r)
		if !strings.HasSuffix(answer, `{"allowed": true, "retry_after": 0.0, "tokens_left": 6.0}`) {
			t.Errorf("%q: got %q", r, answer)
		}
		if field(answer, "Idempotency-Replayed") == "true" {
			replays++
		}
	}
	if replays != 3 {
		t.Errorf("got %d replays, want 3", replays)
	}
	status, body := g.do(t, "POST", "/allow?user_id=a&cost=5", `Idempotency-Key: k"1`)
	if want := `422 {"error":"idempotency key was used before with another cost"}`; status+" "+body != want {
		t.Errorf("got %s %s, want %s", status, body, want)
	}
}

func TestConcurrentDuplicatesSpendOnce(t *testing.T) {
	g := start(t, setup{})
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { g.do(t, "POST", "/allow?user_id=a&cost=3&idempotency=k") })
	}
	wg.Wait()
	_, body := g.do(t, "POST", "/allow?user_id=a&cost=0")
	if want := `{"allowed": true, "retry_after": 0.0, "tokens_left": 7.0}`; body != want {
		t.Errorf("got %s, want %s", body, want)
	}
}

func TestIdempotencyKeyFieldIsCheckedLikeTheParameter(t *testing.T) {
	g := start(t, setup{})
	long := strings.Repeat("k", MaxIdempotencyKey)
	for _, c := range []struct {
		status, query string
		fields        []string
	}{
		{"200", "", []string{"Idempotency-Key: " + long}},
		{"200", "", []string{`Idempotency-Key: "` + long + `"`}},
		{"200", "", []string{"idempotency-key: one two"}},
		{"400", "", []string{"Idempotency-Key: " + long + "k"}},
		{"400", "", []string{"Idempotency-Key:"}},
		{"400", "", []string{`Idempotency-Key: ""`}},
		{"400", "", []string{`Idempotency-Key: "a"b"`}},
		{"400", "", []string{`Idempotency-Key: "a\b"`}},
		{"400", "", []string{"Idempotency-Key: a\tb"}},
		{"400", "", []string{"Idempotency-Key: \xc3\xbc"}},
		{"400", "", []string{"Idempotency-Key: a", "Idempotency-Key: a"}},
		{"400", "&idempotency=b", []string{"Idempotency-Key: a"}},
	} {
		if status, body := g.do(t, "POST", "/allow?cost=0&user_id=a"+c.query, c.fields...); status != c.status {
			t.Errorf("%q %.60q: got %s %s, want %s", c.query, c.fields, status, body, c.status)
		}
	}
}

func TestAllowIsOnlyPostAndIgnoresABodyOfBoundedSize(t *testing.T) {
	g := start(t, setup{})
	for _, c := range []struct {
		status, method string
		fields         []string
		body           string
	}{
		{"200", "POST", []string{"Content-Length: 4"}, "cost"},
		{"200", "POST", []string{"Transfer-Encoding: chunked"}, "4\r\ncost\r\n0\r\n\r\n"},
		{"200", "POST", []string{"Content-Length: 65536"}, strings.Repeat("x", 65536)},
		{"413", "POST", []string{"Content-Length: 65537"}, strings.Repeat("x", 65537)},
		{"413", "POST", []string{"Content-Length: 10485760"}, ""},
		{"413", "POST", []string{"Transfer-Encoding: chunked"}, "ffffff\r\nx"},
		{"405", "GET", nil, ""},
		{"405", "HEAD", nil, ""},
		{"405", "PUT", nil, ""},
		{"405", "OPTIONS", nil, ""},
		{"405", "post", nil, ""},
		{"405", "GET", []string{"X-HTTP-Method-Override: POST"}, ""},
	} {
		answer := g.send(t, request(c.method, "/allow?user_id=a", c.fields...)+c.body)
		if got := answer[9:12]; got != c.status {
			t.Errorf("%s %q: got %.200q, want %s", c.method, c.fields, answer, c.status)
		}
		if got := field(answer, "Allow"); c.status == "405" && got != "POST" {
			t.Errorf("%s: got Allow %q, want POST", c.method, got)
		}
	}
	if allowed, _ := g.Limiter.Totals(); allowed != 3 {
		t.Errorf("got %d decisions, want 3", allowed)
	}
}

func TestStoreTroubleIs503(t *testing.T) {
	limits := frozen(t, 10)
	limits.OnStoreError = limiter.StandInDeny
	g := start(t, setup{limits: limits, store: brokenStore{limiter.NewMemoryStore()}})
	want := "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 62\r\nRetry-After: 1\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n" +
		`{"error":"the store of the limits gives no answer: try again"}`
	for _, r := range []string{request("POST", "/allow?user_id=a"), request("GET", "/admin/user/a")} {
		if diff := cmp.Diff(want, g.send(t, r)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", r, diff)
		}
	}
	eventually(t, "the cause is logged", func() bool { return strings.Contains(g.log.String(), errDown.Error()) })
}

// FuzzAllowQuery compares with net/url: whatever this reader accepts, that one
// reads as the same.
func FuzzAllowQuery(f *testing.F) {
	for _, q := range []string{"user_id=a", "user_id=a%2Fb+c&resource=r&cost=10&idempotency=%22k%22", "user_id=a&user_id=b", "%", "a=%zz", "user_id=%00&&cost=0", "user_id=a;cost=2"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		x := newExchange()
		x.query = []byte(query)
		if err := x.readAllow(); err != nil {
			return
		}
		values, err := url.ParseQuery(strings.ReplaceAll(query, ";", "%3B"))
		if err != nil {
			t.Fatalf("%q was accepted; net/url says %v", query, err)
		}
		want := map[string]string{"user_id": values.Get("user_id"), "resource": "default"}
		if values.Has("resource") {
			want["resource"] = values.Get("resource")
		}
		got := map[string]string{"user_id": string(x.request.User), "resource": string(x.request.Resource)}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", query, diff)
		}
		if c := x.request.Cost; c < 0 || c > limiter.MaxCost || len(x.request.User) == 0 {
			t.Errorf("%q: got cost %d for user %q", query, c, x.request.User)
		}
	})
}

func FuzzIdempotencyKey(f *testing.F) {
	for _, k := range []string{"k", `"k"`, `"`, `""`, `"a\"b\\"`, `a"b`, "\"\\\"", strings.Repeat("x", 256), "\x00", "ü"} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := appendIdempotencyKey([]byte("before"), []byte(text))
		if !strings.HasPrefix(string(key), "before") {
			t.Fatalf("%q: overwrote what was there: %q", text, key)
		}
		if key = key[len("before"):]; err != nil {
			return
		}
		if len(key) == 0 || len(key) > MaxIdempotencyKey || strings.Trim(string(key), printable) != "" {
			t.Fatalf("%q: got %q", text, key)
		}
		quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(string(key)) + `"`
		again, err := appendIdempotencyKey(nil, []byte(quoted))
		if err != nil || string(again) != string(key) {
			t.Errorf("%q, quoted as %s: got %q, %v", key, quoted, again, err)
		}
	})
}

var printable = func() string {
	var b strings.Builder
	for c := byte(' '); c <= '~'; c++ {
		b.WriteByte(c)
	}
	return b.String()
}()

func TestPlanOfTheCallerReplacesTheLimits(t *testing.T) {
	limits := frozen(t, 2)
	limits.Plans = map[string]map[string]limiter.ResourceConfig{"gold": {"read": {Capacity: 20, RefillRate: rate(t, "0.034/d")}}}
	g := start(t, setup{limits: limits})
	for _, step := range []struct{ target, want string }{
		{"/allow?user_id=a&resource=read&plan=gold&cost=5", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 15.0}`},
		{"/allow?user_id=a&resource=read&plan=g%6Fld&cost=0", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 15.0}`},
		{"/allow?user_id=a&resource=read&plan=silver&cost=0", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 0.0}`},
		{"/allow?user_id=a&resource=write&plan=gold&cost=0", `200 {"allowed": true, "retry_after": 0.0, "tokens_left": 2.0}`},
		{"/allow?user_id=a&resource=read&plan=gold&cost=21", `400 {"error":"cost 21 exceeds the capacity 20 of limit \"read\": it can never pass"}`},
	} {
		if status, body := g.do(t, "POST", step.target); status+" "+body != step.want {
			t.Errorf("POST %s\n got %s %s\nwant %s", step.target, status, body, step.want)
		}
	}
	for query, want := range map[string]string{"": `"capacity":2,`, "?plan=gold": `"capacity":20,`, "?plan=silver": `"capacity":2,`} {
		if status, body := g.do(t, "GET", "/admin/user/a"+query); status != "200" || !strings.Contains(body, `"resource":"read","limit":"read",`+want) {
			t.Errorf("%q: got %s %s, want %s", query, status, body, want)
		}
	}
	for query, want := range map[string]string{"?plan=": `parameter \"plan\" is empty`, "?tier=gold": `unknown parameter \"tier\": there is plan`} {
		if status, body := g.do(t, "GET", "/admin/user/a"+query); status+" "+body != `400 {"error":"`+want+`"}` {
			t.Errorf("%q: got %s %s, want 400 %s", query, status, body, want)
		}
	}
}
