package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// checkRules are routes of every kind, for /check alone.
const checkRules = `
proxy:
  trusted_proxies: [10.0.0.0/8]
  routes:
    - {name: private, match: {path: /private/*}, action: block}
    - {name: free, match: {path: /free}, action: bypass}
    - {name: shadow, match: {path: /shadow}, shadow: true}
    - {name: nobody, match: {path: /enforced}, enforce: 0%}
    - {name: costly, match: {path: /cost}, cost: "{query.cost}"}
    - {name: search, match: {host: "*.shop.example", path: "/search/{term}"}, user_id: ["{header.X-Api-Key}"], plan: "{header.X-Plan}"}
    - {name: secure, match: {headers: {X-Beta: "1"}}, resource: beta}
    - {name: posts, match: {path: /items, methods: [POST]}}
    - {name: items, match: {path: ["/items", "/items/{id}"]}}
limiter:
  default: {capacity: 2, refill_rate: 1/d}
  plans: {gold: {search: {capacity: 1000, refill_rate: 1000/d}}}
admin: {listen: "127.0.0.1:0"}
`

// checker asks at /check of a gateway without a proxy listener.
type checker struct {
	*started
	t *testing.T
}

func startChecker(t *testing.T, config string) checker {
	t.Helper()
	g := start(t, config)
	t.Cleanup(func() {
		g.signals <- syscall.SIGINT
		if code := <-g.exit; code != exitFine {
			t.Errorf("exit code %d, want 0", code)
		}
	})
	return checker{g, t}
}

// checkRequest is a request to /check as it goes over the wire.
func checkRequest(line string, fields ...string) string {
	return line + " HTTP/1.1\r\nConnection: close\r\n" + strings.Join(append(fields, "\r\n"), "\r\n")
}

// want asks and fails unless the answer has the status and holds all of the texts.
func (c checker) want(status int, line string, fields []string, texts ...string) string {
	c.t.Helper()
	if !slices.ContainsFunc(fields, func(f string) bool { return strings.HasPrefix(f, "Host: ") }) {
		fields = append([]string{"Host: r8limiter"}, fields...)
	}
	answer := rawAnswer(c.control, checkRequest(line, fields...))
	if !strings.HasPrefix(answer, fmt.Sprintf("HTTP/1.1 %d ", status)) {
		c.t.Errorf("%s %.300q: got %.400q, want %d", line, fields, answer, status)
	}
	for _, text := range texts {
		if !strings.Contains(answer, text) {
			c.t.Errorf("%s %.300q: got %.600q, want %q in it", line, fields, answer, text)
		}
	}
	return answer
}

// about describes a GET of uri by a client.
func about(uri, client string, fields ...string) []string {
	return append([]string{"X-Forwarded-Method: GET", "X-Forwarded-Uri: " + uri, "X-Forwarded-For: " + client}, fields...)
}

func TestCheckAnswersAsTheProxyListenerWould(t *testing.T) {
	c := startChecker(t, checkRules)
	const line, ip = "GET /check", "192.0.2.1"
	c.want(200, line, about("/items/1?q", ip), "\r\nRateLimit-Policy: \"items\";q=2;w=172800\r\n", "\r\nRateLimit: \"items\";r=1;t=", "\r\n\r\n{\"allowed\": true}")
	c.want(200, line, about("/items/2", ip))
	c.want(429, line, about("/items/3", ip), "\r\nRetry-After: 86400\r\n", "\r\nRateLimit: \"items\";r=0;t=86400\r\n", "\r\nCache-Control: no-store\r\n", "\r\nContent-Type: application/problem+json\r\n",
		`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too Many Requests","status":429,"detail":"Limit \"items\" of resource \"items\" allows 1 per day.","violated-policies":["items"],"allowed":false,"retry_after":86`)
	c.want(403, "POST /check?deny_status=403", about("/items/3", ip), "\r\nRetry-After: 86400\r\n", "\r\nX-R8limiter-Status: 429\r\n", `"status":429`)
	c.want(403, line, about("/private/x", ip), `"detail":"this route is blocked"`)
	c.want(401, "GET /check?deny_status=401", about("/private/x", ip), "\r\nX-R8limiter-Status: 403\r\n")
	c.want(404, line, about("/nowhere", ip), `"detail":"no route matches this request"`)
	c.want(403, "GET /check?deny_status=403", about("/nowhere", ip), "\r\nX-R8limiter-Status: 404\r\n")
	for range 3 {
		c.want(200, line, about("/free", ip))
		c.want(200, line, about("/items/3", ip, "X-Original-Method: OPTIONS", "Origin: https://a.example", "Access-Control-Request-Method: GET")[1:])
		for _, uri := range []string{"/shadow", "/enforced"} {
			if answer := c.want(200, line, about(uri, ip)); strings.Contains(answer, "RateLimit") {
				t.Errorf("%s: got %q, want no fields of limits that don't hold", uri, answer)
			}
		}
	}
	c.want(429, line, about("/cost?cost=3", ip), `"retry_after":null`)
	c.want(400, line, about("/cost?cost=x", ip), `"detail":"the cost of the request is no integer`)
	if answer := c.want(429, line, about("/items/3", ip, "X-Forwarded-Method: HEAD")[1:]); !strings.HasSuffix(answer, "\r\n\r\n") {
		t.Errorf("HEAD: got %q, want no body", answer)
	}
	if answer := c.want(429, "HEAD /check", about("/items/3", ip)); !strings.HasSuffix(answer, "\r\n\r\n") {
		t.Errorf("asked by HEAD: got %q, want no body", answer)
	}
	_, metrics := ask(t, c.control+"/metrics")
	for _, want := range []string{
		`r8limiter_decisions_total{route="items",limit="default",outcome="allow",reason="tokens"} 2`,
		`r8limiter_decisions_total{route="shadow",limit="default",outcome="shadow_deny",reason="tokens"} 1`,
		`request_latency_seconds_count{endpoint="/check"} `,
	} {
		if !strings.Contains(metrics, "\n"+want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestCheckTakesEachWayToDescribe(t *testing.T) {
	c := startChecker(t, checkRules)
	user := 0
	for name, q := range map[string]struct {
		line   string
		fields []string
	}{
		"X-Forwarded":          {"GET /check", []string{"X-Forwarded-Method: POST", "X-Forwarded-Uri: /items"}},
		"X-Original":           {"GET /check", []string{"X-Original-Method: POST", "X-Original-URI: /items"}},
		"a URL":                {"GET /check", []string{"X-Original-Method: POST", "X-Original-URL: https://a.example:8443/items?x"}},
		"a URL that is a path": {"GET /check", []string{"X-Original-Method: POST", "X-Original-URL: /items?x=http://b"}},
		"its own method":       {"POST /check", []string{"X-Forwarded-Uri: /items"}},
		"its own line":         {"POST /check/items?token=1&deny_status=2", nil},
		"all that agree": {"POST /check/items?a", []string{"X-Forwarded-Method: POST", "X-Original-Method: POST", "X-Original-Uri: /items?a", "x-forwarded-uri: /items?a",
			"X-Original-URL: https://a.example/items?a", "X-Forwarded-Proto: wss", "X-Forwarded-Host: a.example", "X-Forwarded-Host:"}},
	} {
		user++
		ip := fmt.Sprintf("X-Forwarded-For: 192.0.2.%d", user)
		if answer := c.want(200, q.line, append(q.fields, ip)); !strings.Contains(answer, `RateLimit: "posts";r=1;`) {
			t.Errorf("%s: got %q, want the route posts", name, answer)
		}
	}
	search := about("/search/x", "192.0.2.1", "X-Api-Key: k")
	c.want(404, "GET /check", append(search, "Host: shop.example"))
	c.want(200, "GET /check", append(search, "Host: de.shop.example:8443", "X-Plan: gold"), `"search";q=1000;`)
	c.want(200, "GET /check", append(search, "X-Forwarded-Host: de.SHOP.example"), `"search";r=0;`) // the same bucket
	c.want(200, "GET /check/items", []string{"Host: a.example", "X-Forwarded-For: 2001:db8::1"}, `r=1;`)
	c.want(200, "GET /check/items", []string{"Host: a.example", "X-Forwarded-For: 2001:db8::2"}, `r=0;`)
}

// What the proxies that can't be run here send, by their own documentation.
func TestCheckUnderstandsTraefikCaddyAndEnvoy(t *testing.T) {
	c := startChecker(t, checkRules)
	traefik := []string{
		"Host: 127.0.0.1:8000", "User-Agent: curl/8.5.0", "Accept: */*", "X-Api-Key: traefik", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Host: de.shop.example",
		"X-Forwarded-Method: GET", "X-Forwarded-Port: 443", "X-Forwarded-Proto: https", "X-Forwarded-Server: edge", "X-Forwarded-Uri: /search/a%20b?page=2", "X-Real-Ip: 192.0.2.1", "Accept-Encoding: gzip",
	}
	caddy := []string{
		"Host: de.shop.example", "User-Agent: curl/8.5.0", "Accept: */*", "X-Api-Key: caddy", "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Host: de.shop.example",
		"X-Forwarded-Method: PUT", "X-Forwarded-Proto: http", "X-Forwarded-Uri: /search/a%20b?page=2", "Accept-Encoding: gzip",
	}
	envoy := []string{
		"host: de.shop.example", "x-api-key: envoy", "x-forwarded-for: 198.51.100.9,192.0.2.1", "x-forwarded-proto: https", "content-length: 0",
		"x-envoy-internal: true", "x-envoy-expected-rq-timeout-ms: 1000", "Host: de.shop.example",
	}[:7]
	for line, fields := range map[string][]string{"GET /check": traefik, "GET /check ": caddy, "PATCH /check/search/a%20b?page=2": envoy} {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(fields[0], "host") {
			fields[0] = "Host: de.shop.example"
		}
		for _, status := range []int{200, 200, 429} {
			c.want(status, line, fields)
		}
	}
	for _, spoofed := range []string{"X-Original-URI: /free", "X-Original-Method: OPTIONS", "X-Original-URL: http://elsewhere/free"} {
		c.want(400, "GET /check", append(traefik, spoofed), "let the proxy remove")
		c.want(400, "GET /check", append(caddy, spoofed), "let the proxy remove")
		c.want(400, "GET /check/items", append(envoy, spoofed), "let the proxy remove")
	}
}

func TestRecipesThatCannotRunAreSound(t *testing.T) {
	for _, file := range []string{"traefik.yaml", "envoy.yaml"} {
		data, err := os.ReadFile("deploy/recipes/" + file)
		if err == nil {
			err = yaml.Unmarshal(data, new(map[string]any))
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestCheckRefusesWhatIsHostile(t *testing.T) {
	c := startChecker(t, checkRules)
	const line, ip = "GET /check", "192.0.2.1"
	for _, uri := range []string{
		"/items%2F1", "/private%2fx", "/items/%2e%2e/private/x", "/items/../private/x", "//private/x", "/private\\x", "/private%5Cx", "/items/%00", "/items/.",
		"/items/a b", "/items#x", "http://elsewhere/items", "https://r8limiter/items", "items", "*",
	} {
		c.want(400, line, about(uri, ip))
		c.want(403, "GET /check?deny_status=403", about(uri, ip), "\r\nX-R8limiter-Status: 400\r\n")
	}
	c.want(200, line, about("http://r8limiter/items", ip)) // its own host
	c.want(405, line, about("a:443", ip, "X-Forwarded-Method: CONNECT")[1:], "\r\nAllow: GET, HEAD, POST")
	c.want(400, line, about("/items", ip, "X-Forwarded-Method: GET POST")[1:])
	c.want(400, line, about("/items/\x01", ip))
	c.want(400, line, about("/items/\x7f", ip))
	c.want(400, line, about("/items", ip, "X-Forwarded-Host: a, b"))
	c.want(400, line, about("/items", ip, "X-Forwarded-Proto: ftp"), "neither http nor https")
	c.want(400, line, about("/items", ip, "X-Original-URI: /free"), "two fields name different things as the described request's URI")
	c.want(400, line, about("/items", ip, "X-Forwarded-Uri: /free"), "URI")
	c.want(400, line, about("/items", ip, "X-Original-Method: POST"), "method")
	c.want(400, "GET /check/free", about("/items", ip), "URI")
	c.want(400, line, about("/items", ip, "Host: a", "Host: b"))
	c.want(400, line, []string{"X-Forwarded-For: " + ip}, `{"error":"which request? Send its path and query as X-Forwarded-Uri or X-Original-URI`)
	c.want(403, "GET /check?deny_status=403", nil, "\r\nX-R8limiter-Status: 400\r\n")
	for _, query := range []string{"deny_status=200", "deny_status=302", "deny_status=600", "deny_status=4x3", "deny_status=", "deny_status", "deny_status=403&deny_status=403", "x=1"} {
		c.want(400, "GET /check?"+query, about("/items", ip), `{"error":"`)
	}
	search := about("/search/x", ip, "X-Forwarded-Host: de.shop.example")
	c.want(400, line, append(search, "X-Api-Key: a", "X-Api-Key: b"), "X-Api-Key is there more than once")
	c.want(400, line, append(search, "X-Api-Key: a", "x-api-key: a"), "more than once")
	c.want(400, line, append(search, "X_Api_Key: a"), "X_Api_Key is X-Api-Key to some servers")
	long := "/items/" + strings.Repeat("x", 8<<10)
	c.want(200, line, about(long, "192.0.2.2", "X-Original-URI: "+long), "r=1;")
	c.want(431, line, about("/items", ip, "X: "+strings.Repeat("x", 64<<10)))
	c.want(431, line, about("/items", ip, strings.Repeat("X: y\r\n", 128)+"X: y"))
	for _, path := range []string{"/check.", "/checks", "/Check", "/check%2Fitems"} {
		c.want(404, "GET "+path, about("/items", ip))
	}
}

// A client is one however its address is written, and only hops that are no trusted
// proxy count.
func TestCheckKnowsAClientByItsAddress(t *testing.T) {
	c := startChecker(t, checkRules)
	c.want(200, "GET /check", about("/items", "::ffff:192.0.2.9"), "r=1;")
	c.want(200, "GET /check", about("/items", "203.0.113.1, 192.0.2.9:4711, 10.1.2.3"), "r=0;")
	c.want(429, "GET /check", about("/items", "[::ffff:c000:0209]:80", "X-Forwarded-For: 10.0.0.1"))
	c.want(200, "GET /check", about("/items", "203.0.113.1"), "r=1;")
	c.want(200, "GET /check/items", []string{"X-Forwarded-For: nonsense"}, "r=1;") // whoever asks
	c.want(200, "GET /check", []string{"X-Original-URI: /items"}, "r=0;")
}

// What Connection names is between the proxy and the gateway.
func TestCheckLeavesOutWhatIsOfTheConnection(t *testing.T) {
	c := startChecker(t, checkRules)
	c.want(200, "GET /check", about("/x", "192.0.2.1", "X-Beta: 1"), `"beta";r=1;`)
	answer := rawAnswer(c.control, "GET /check HTTP/1.1\r\nHost: a\r\n"+strings.Join(about("/x", "192.0.2.1", "X-Beta: 1", "Connection: keep-alive, x-beta", "Connection: close", "\r\n"), "\r\n"))
	c.want(400, "GET /check", about("/x", "192.0.2.1", "Connection: a"+strings.Repeat(",a", 100)), "more than 100 options")
	if !strings.HasPrefix(answer, "HTTP/1.1 404 ") {
		t.Errorf("got %q, want 404: X-Beta is the connection's", answer)
	}
}

func TestCheckIsGuardedByItsToken(t *testing.T) {
	c := startChecker(t, strings.Replace(checkRules, `0.0.1:0"`, `0.0.1:0", allow_token: sesame-allow-token-1`, 1))
	right, wrong := "X-R8limiter-Token: sesame-allow-token-1", "X-R8limiter-Token: sesame-allow-token-2"
	for _, fields := range [][]string{nil, {wrong}, {right, wrong}, {right, right}, {"Authorization: Bearer sesame-allow-token-1"}} {
		c.want(401, "GET /check", about("/items", "192.0.2.1", fields...), "\r\nWWW-Authenticate: X-R8limiter-Token\r\n")
	}
	c.want(200, "GET /check", about("/items", "192.0.2.1", right, "Authorization: Bearer of-the-client"), "r=1;")
	c.want(200, "POST /check/items", []string{right, "Origin: https://a.example", "Host: a.example"}, `"posts";r=1;`)
}

func TestCheckWithoutATokenIsNotForWebPages(t *testing.T) {
	c := startChecker(t, checkRules)
	port := c.control[strings.LastIndex(c.control, ":")+1:]
	c.want(403, "GET /check/items", []string{"Host: localhost:" + port}, "send X-Forwarded-For")
	c.want(403, "GET /check", about("/items", "192.0.2.1", "Host: rebound.example:"+port))
	c.want(403, "OPTIONS /check/items", []string{"Host: localhost:" + port, "Origin: https://evil.example", "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: x-forwarded-for"})
	c.want(200, "POST /check", about("/items", "192.0.2.1", "Host: localhost:"+port, "Origin: https://a.example"), "r=1;")
	c.want(200, "POST /check/items", []string{"Host: a.example", "Origin: https://a.example", "X-Forwarded-For: 192.0.2.1"}, "r=1;")
}

func TestCheckWithTheStoreDown(t *testing.T) {
	server := redistest.Start(t)
	config := strings.Replace(checkRules, "limiter:\n", fmt.Sprintf("limiter:\n  on_store_error: deny\n  redis: {url: \"unix://%s\"}\n", server.Socket()), 1)
	c := startChecker(t, config)
	c.want(200, "GET /check", about("/items", "192.0.2.1"))
	server.Kill()
	c.want(503, "GET /check", about("/items", "192.0.2.1"), "\r\nRetry-After: 1\r\n", "application/problem+json", "the store of the limits is unavailable")
	c.want(403, "GET /check?deny_status=403", about("/items", "192.0.2.1"), "\r\nRetry-After: 1\r\n", "\r\nX-R8limiter-Status: 503\r\n")
	c.want(200, "GET /check", about("/free", "192.0.2.1"))
}

func TestCheckGoesByOverridesAndIsLogged(t *testing.T) {
	var c checker
	t.Cleanup(func() {
		log := c.log.String() // it has ended
		line := regexp.MustCompile(`"listener":"control","endpoint":"/check","method":"GET","path":"/items","route":"items","user_id":"192.0.2.[34]","resource":"items","cost":1,"decision":"allow"`)
		if got := len(line.FindAllString(log, -1)); got != 2 || strings.Contains(log, "hush") {
			t.Errorf("got %d lines of the log, want 2 and no query: %s", got, log)
		}
	})
	c = startChecker(t, checkRules)
	put := func(user, body string) {
		t.Helper()
		raw := fmt.Sprintf("PUT /admin/user/%s/override HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", user, len(body), body)
		if answer := rawAnswer(c.control, raw); !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
			t.Fatalf("got %q", answer)
		}
	}
	put("192.0.2.1", `{"block":true}`)
	put("192.0.2.2", `{"exempt":true}`)
	c.want(403, "GET /check", about("/items", "192.0.2.1"), `"detail":"this user is blocked"`)
	for range 3 {
		c.want(200, "GET /check", about("/items", "192.0.2.2"))
	}
	c.want(200, "GET /check", about("/items?hush=1", "192.0.2.3"))
	c.want(200, "GET /check/items?hush=1", []string{"X-Forwarded-For: 192.0.2.4"})
}

// Both listeners go by the same rules and buckets.
func TestCheckAndTheProxyListenerShareTheirRules(t *testing.T) {
	g := startExample(t)
	c := checker{g, t}
	for range 3 {
		ask(t, g.proxy+"/v1/items/1")
	}
	direct, _ := ask(t, g.proxy+"/v1/items/1")
	described := c.want(200, "GET /check", []string{"X-Original-URI: /v1/items/1", "X-User-Id: ann", "X-Forwarded-For: 127.0.0.1"})
	if policy := direct.Header.Get("RateLimit-Policy"); policy == "" || !strings.Contains(described, "\r\nRateLimit-Policy: "+policy+"\r\n") || !strings.Contains(described, "\r\nRateLimit: ") {
		t.Errorf("got %q, want the policy %q", described, policy)
	}
}

// Credentials are the described client's, and so is the answer about them.
func TestCheckVerifiesTheCredentialsOfTheDescribed(t *testing.T) {
	c := startChecker(t, strings.Replace(checkRules, "proxy:\n", "proxy:\n  jwt: {secret: sesame-of-thirty-two-bytes-or-more, required: true}\n", 1))
	c.want(401, "GET /check", about("/items", "192.0.2.1"), "\r\nWWW-Authenticate: Bearer", "application/problem+json")
	c.want(401, "GET /check", about("/items", "192.0.2.1", "Authorization: Bearer a.b.c"), "\r\nWWW-Authenticate: Bearer")
	c.want(403, "GET /check?deny_status=403", about("/items", "192.0.2.1"), "\r\nWWW-Authenticate: Bearer", "\r\nX-R8limiter-Status: 401\r\n")
	c.want(200, "GET /check", about("/free", "192.0.2.1"))
}

func TestRoutesNeedAnUpstreamOnlyForTheProxyListener(t *testing.T) {
	for listen, want := range map[string]int{`""`: exitFine, `":8080"`: exitUsage} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		write(t, file, []byte("proxy: {listen: "+listen+", routes: [{name: all}]}\n"))
		if code, _, stderr := command("check", "-config", file); code != want || code != exitFine && !strings.Contains(stderr, "routes[0].upstream") {
			t.Errorf("listen %s: got %d %q, want %d", listen, code, stderr, want)
		}
	}
}
