package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A recipe is a proxy of another make in front of an application, configured by a
// file of deploy/recipes, with a gateway behind it that has no proxy listener.
type recipe struct {
	front   string // the address for clients
	gateway *process
	seen    atomic.Int64 // requests that reached the application
}

// recipeRules are the gateway's rules in each of these tests: 5 requests to the
// items of a user, who is the client's address unless a header says.
const recipeRules = `
proxy:
  routes:
    - {name: private, match: {path: /private/*}, action: block}
    - {name: free, match: {path: /free}, action: bypass}
    - {name: named, match: {path: /named}, resource: "{query.r}"}
    - {name: posts, match: {path: /items, methods: [POST], host: shop.example}, user_id: ["{header.X-User-Id}"]}
    - {name: items, match: {path: [/items, "/items/{id}"]}, user_id: ["{header.X-User-Id}"]}
limiter: {default: {capacity: 5, refill_rate: 1/d}}
admin: {listen: %q}
log: {requests: none}
`

// edited is a file of deploy/recipes with each old text, which must be there once,
// replaced by the new one behind it.
func edited(t *testing.T, file string, oldNew ...string) []byte {
	t.Helper()
	data, err := os.ReadFile("deploy/recipes/" + file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for i := 0; i < len(oldNew); i += 2 {
		if strings.Count(text, oldNew[i]) != 1 {
			t.Fatalf("%s does not have %q once", file, oldNew[i])
		}
		text = strings.Replace(text, oldNew[i], oldNew[i+1], 1)
	}
	return []byte(text)
}

// newRecipe starts a gateway and an application, which echoes, and what start
// makes of their addresses and a directory.
func newRecipe(t *testing.T, start func(r *recipe, dir, gateway, app string)) *recipe {
	t.Helper()
	r := &recipe{front: freeAddress(t)}
	app := httptestServer(t, func(w http.ResponseWriter, req *http.Request) {
		r.seen.Add(1)
		body, _ := io.ReadAll(req.Body)
		fmt.Fprintf(w, "%s %s %s\n%s", req.Method, req.RequestURI, req.Header.Get("X-Forwarded-For"), body)
	})
	control := freeAddress(t)
	r.gateway = startProcess(t, fmt.Sprintf(recipeRules, control))
	start(r, t.TempDir(), control, strings.TrimPrefix(app, "http://"))
	eventually(t, "the proxy listens", func() bool {
		c, err := net.Dial("tcp", r.front)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return r
}

// run runs a program of the distribution until the test ends.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	c := exec.Command(installed(t, name), args...)
	log := &processLog{}
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, log.lines())
		}
	})
}

// startNginx runs the recipe of nginx; each further pair of texts changes it.
func startNginx(t *testing.T, oldNew ...string) *recipe {
	t.Helper()
	return newRecipe(t, func(r *recipe, dir, gateway, app string) {
		file := filepath.Join(dir, "nginx.conf")
		write(t, file, edited(t, "nginx.conf", append([]string{
			"server 127.0.0.1:8000;", "server " + gateway + ";", "server 127.0.0.1:9000;", "server " + app + ";",
			"listen 8080;", "listen " + r.front + ";", "http {\n", "http {\naccess_log off;\n" + nginxPaths(dir),
		}, oldNew...)...))
		run(t, "nginx", "-e", "stderr", "-p", dir, "-c", file, "-g", "daemon off; master_process off; error_log stderr; pid "+dir+"/pid;")
	})
}

// nginxPaths keeps nginx inside of dir.
func nginxPaths(dir string) (lines string) {
	for _, what := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		lines += fmt.Sprintf("%s_temp_path %s/%s;\n", what, dir, what)
	}
	return lines
}

// startHAProxyRecipe runs the recipe of HAProxy; each further pair of texts changes it.
func startHAProxyRecipe(t *testing.T, oldNew ...string) *recipe {
	t.Helper()
	return newRecipe(t, func(r *recipe, dir, gateway, app string) {
		write(t, filepath.Join(dir, "r8limiter.lua"), edited(t, "r8limiter.lua"))
		file := filepath.Join(dir, "haproxy.cfg")
		write(t, file, edited(t, "haproxy.cfg", append([]string{
			"lua-load r8limiter.lua", "lua-load " + dir + "/r8limiter.lua", "R8LIMITER http://127.0.0.1:8000", "R8LIMITER http://" + gateway,
			"bind :8080", "bind " + r.front, "127.0.0.1:9000", app,
		}, oldNew...)...))
		run(t, "haproxy", "-db", "-f", file)
	})
}

// recipes are those that run here, as they stand and failing open.
var recipes = map[string]struct {
	start func(t *testing.T, oldNew ...string) *recipe
	open  []string
}{
	"nginx":   {startNginx, []string{"error_page 502 504 = @down;", "", "# error_page 502 504 = @open;", "error_page 502 504 = @open;"}},
	"HAProxy": {startHAProxyRecipe, []string{"R8LIMITER_DOWN closed", "R8LIMITER_DOWN open"}},
}

// eachRecipe runs f for each of them.
func eachRecipe(t *testing.T, f func(t *testing.T, r *recipe)) {
	for name, each := range recipes {
		t.Run(name, func(t *testing.T) { f(t, each.start(t)) })
	}
}

// from sends a request to the recipe's proxy from a local address, with a field for
// each pair of texts, and returns the answer with its body.
func (r *recipe) from(t *testing.T, address, method, target string, fields ...string) (*http.Response, string) {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
	req, err := http.NewRequest(method, "http://"+r.front, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque = target
	for i := 0; i < len(fields); i += 2 {
		switch fields[i] {
		case "body":
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader(fields[i+1])), int64(len(fields[i+1]))
		case "Host":
			req.Host = fields[i+1]
		default:
			req.Header.Add(fields[i], fields[i+1])
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestRecipePassesWhatIsAllowedAndDeniesTheRest(t *testing.T) {
	eachRecipe(t, func(t *testing.T, r *recipe) {
		for i := range 5 {
			resp, body := r.from(t, "127.0.0.2", "GET", "/items/a%20b?x=%2F", "X-User-Id", "ann")
			if resp.StatusCode != 200 || !strings.HasPrefix(body, "GET /items/a%20b?x=%2F ") || !strings.HasPrefix(resp.Header.Get("RateLimit"), fmt.Sprintf(`"items";r=%d;`, 4-i)) {
				t.Fatalf("request %d: got %d %q %v", i, resp.StatusCode, body, resp.Header)
			}
		}
		resp, body := r.from(t, "127.0.0.2", "GET", "/items/1", "X-User-Id", "ann")
		if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "86400" || !strings.HasPrefix(resp.Header.Get("RateLimit-Policy"), `"items";q=5;`) ||
			resp.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(body, `"status":429`) {
			t.Errorf("got %d %q %v, want 429 with Retry-After and the fields", resp.StatusCode, body, resp.Header)
		}
		for target, want := range map[string]int{"/private/x": 403, "/elsewhere": 404, "/items%2F1": 400, "/free": 200} {
			if resp, body := r.from(t, "127.0.0.2", "GET", target); resp.StatusCode != want {
				t.Errorf("%s: got %d %q, want %d", target, resp.StatusCode, body, want)
			}
		}
		if got := r.seen.Load(); got != 6 {
			t.Errorf("%d requests reached the application, want 6", got)
		}
	})
}

func TestRecipeBelievesNothingThatAClientSaysOfItself(t *testing.T) {
	spoofed := []string{
		"X-Forwarded-For", "192.0.2.77", "X-Forwarded-Uri", "/free", "X-Original-URI", "/free", "X-Original-URL", "http://elsewhere/free",
		"X-Forwarded-Method", "OPTIONS", "X-Original-Method", "OPTIONS", "X-Forwarded-Host", "elsewhere", "X-Forwarded-Proto", "ftp",
		"X-R8limiter-Token", "guess", "Connection", "X-Forwarded-For, close",
	}
	eachRecipe(t, func(t *testing.T, r *recipe) {
		for i := range 6 {
			want := 200
			if i == 5 {
				want = 429
			}
			if resp, body := r.from(t, "127.0.0.3", "GET", "/items", spoofed...); resp.StatusCode != want || want == 200 && !strings.Contains(body, " 127.0.0.3\n") {
				t.Fatalf("request %d: got %d %q, want %d", i, resp.StatusCode, body, want)
			}
		}
		if resp, _ := r.from(t, "127.0.0.4", "GET", "/items"); resp.StatusCode != 200 {
			t.Errorf("another address: got %d, want 200", resp.StatusCode)
		}
		if resp, _ := r.from(t, "127.0.0.4", "GET", "/items", "X-User-Id", "a", "X-User-Id", "b"); resp.StatusCode != 400 {
			t.Errorf("two identities: got %d, want 400", resp.StatusCode)
		}
	})
}

func TestRecipePassesBodiesIntact(t *testing.T) {
	eachRecipe(t, func(t *testing.T, r *recipe) {
		body := strings.Repeat("0123456789", 20_000)
		for range 5 {
			resp, got := r.from(t, "127.0.0.2", "POST", "/items", "Host", "shop.example", "X-User-Id", "ann", "body", body)
			if _, echoed, _ := strings.Cut(got, "\n"); resp.StatusCode != 200 || echoed != body || !strings.HasPrefix(resp.Header.Get("RateLimit"), `"posts"`) {
				t.Fatalf("got %d and %d bytes, want 200 and %d", resp.StatusCode, len(echoed), len(body))
			}
		}
		if resp, _ := r.from(t, "127.0.0.2", "POST", "/items", "Host", "shop.example", "X-User-Id", "ann", "body", body); resp.StatusCode != 429 {
			t.Errorf("got %d, want 429", resp.StatusCode)
		}
	})
}

func TestRecipeHoldsTheBoundUnderConcurrentClients(t *testing.T) {
	eachRecipe(t, func(t *testing.T, r *recipe) {
		const users, clients, each = 4, 16, 10
		var passed, denied atomic.Int64
		var running sync.WaitGroup
		client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
		for i := range clients {
			running.Go(func() {
				for range each {
					req, _ := http.NewRequest("GET", "http://"+r.front+"/items", nil)
					req.Header.Set("X-User-Id", fmt.Sprint(i%users))
					resp, err := client.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					drop(resp)
					switch resp.StatusCode {
					case 200:
						passed.Add(1)
					case 429:
						denied.Add(1)
					default:
						t.Errorf("got %d", resp.StatusCode)
					}
				}
			})
		}
		running.Wait()
		if passed.Load() != users*5 || r.seen.Load() != users*5 || denied.Load() != clients*each-users*5 {
			t.Errorf("%d passed, %d reached the application, %d denied; want %d, the same, and the rest", passed.Load(), r.seen.Load(), denied.Load(), users*5)
		}
	})
}

// A client that could keep the answer of the gateway from the proxy would pass
// unlimited where no answer lets requests pass.
func TestRecipeThatFailsOpenIsNotOpenedByClients(t *testing.T) {
	for name, each := range recipes {
		t.Run(name, func(t *testing.T) {
			r := each.start(t, each.open...)
			many := func(n int) (fields string) {
				for i := range n {
					fields += fmt.Sprintf("X-%d: y\r\n", i)
				}
				return fields
			}
			for _, bytes := range []int{10, 300, 2000, 4000, 6000, 7500, 9000, 13_000} {
				for i, fields := range []string{"", many(80), many(95), many(97), many(98), many(170), "X: " + strings.Repeat("x", 7000) + "\r\n"} {
					before := r.seen.Load()
					for range 7 {
						rawAnswer(r.front, fmt.Sprintf("GET /named?r=%s%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s\r\n", strings.Repeat(`"`, bytes), i, fields))
					}
					if got := r.seen.Load() - before; got > 5 || bytes == 10 && i < 2 && got != 5 {
						t.Errorf("%d bytes of a resource's name and %d of fields: %d requests passed, want 5 at most", bytes, len(fields), got)
					}
					if resp, _ := r.from(t, "127.0.0.2", "GET", "/private/x"); resp.StatusCode != 403 {
						t.Fatalf("after %d bytes of fields a blocked path gets %d, want 403", len(fields), resp.StatusCode)
					}
				}
			}
		})
	}
}

func TestRecipeWithoutTheGatewayFailsAsItSays(t *testing.T) {
	for name, each := range recipes {
		for _, open := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s open=%t", name, open), func(t *testing.T) {
				var change []string
				want := 503
				if open {
					change, want = each.open, 200
				}
				r := each.start(t, change...)
				if resp, _ := r.from(t, "127.0.0.2", "GET", "/private/x"); resp.StatusCode != 403 {
					t.Errorf("while it runs: got %d, want 403", resp.StatusCode)
				}
				var many []string // which the gateway refuses to read, and says so
				for i := range 300 {
					many = append(many, fmt.Sprint("X-", i), "y")
				}
				if resp, _ := r.from(t, "127.0.0.2", "GET", "/items", many[:400]...); resp.StatusCode < 400 {
					t.Errorf("200 fields: got %d, want no success", resp.StatusCode)
				}
				r.gateway.kill()
				resp, body := r.from(t, "127.0.0.2", "GET", "/private/x")
				if resp.StatusCode != want {
					t.Errorf("got %d %q, want %d", resp.StatusCode, body, want)
				}
			})
		}
	}
}

// A gateway that is told of no host takes that of the question, which is a name that no
// client sent.
func TestRecipeRefusesRequestsWithoutAHost(t *testing.T) {
	eachRecipe(t, func(t *testing.T, r *recipe) {
		for _, raw := range []string{"GET /items HTTP/1.0\r\n\r\n", "GET /items HTTP/1.0\r\nHost:\r\n\r\n", "GET /items HTTP/1.1\r\nConnection: close\r\nHost: \r\n\r\n"} {
			if answer := rawAnswer(r.front, raw); !strings.HasPrefix(answer, "HTTP/1.1 400 ") && !strings.HasPrefix(answer, "HTTP/1.0 400 ") {
				t.Errorf("%q: got %.200q, want 400", raw, answer)
			}
		}
		if answer := rawAnswer(r.front, "GET /items HTTP/1.0\r\nHost: a\r\n\r\n"); !strings.Contains(answer[:20], " 200 ") {
			t.Errorf("HTTP/1.0 with a Host: got %.200q, want 200", answer)
		}
		if got := r.seen.Load(); got != 1 {
			t.Errorf("%d requests reached the application, want 1", got)
		}
	})
}

func TestRecipeTellsWhatIsTheClientsFaultAndOnlyThat(t *testing.T) {
	eachRecipe(t, func(t *testing.T, r *recipe) {
		var many strings.Builder
		for i := range 150 {
			fmt.Fprintf(&many, "X-%d: y\r\n", i)
		}
		for what, fields := range map[string]string{"150 fields": many.String(), "a control character": "X: a\x01b\r\n"} {
			answer := rawAnswer(r.front, "GET /items HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+fields+"\r\n")
			if status := answer[:min(13, len(answer))]; !strings.HasPrefix(status, "HTTP/1.1 4") {
				t.Errorf("%s: got %.200q, want 400 or 431", what, answer)
			}
		}
	})
	token := "a-token-that-is-not-sent-at-all"
	for name, each := range recipes {
		t.Run(name+" without the token", func(t *testing.T) {
			r := each.start(t, each.open...)
			rules, err := os.ReadFile(r.gateway.file)
			if err != nil {
				t.Fatal(err)
			}
			replace(t, r.gateway.file, strings.Replace(string(rules), "admin: {", "admin: {allow_token: "+token+", ", 1))
			eventually(t, "the token is demanded", func() bool {
				resp, _ := fetch(t, "GET", r.gateway.control+"/check/items", "X-Forwarded-For: 192.0.2.1")
				return resp.StatusCode == 401
			})
			resp, body := r.from(t, "127.0.0.2", "GET", "/free")
			if resp.StatusCode != 503 || resp.Header.Get("WWW-Authenticate") != "" || strings.Contains(body, "token") || r.seen.Load() != 0 {
				t.Errorf("got %d %q %v, want 503 and no word of a token", resp.StatusCode, body, resp.Header)
			}
		})
	}
}
