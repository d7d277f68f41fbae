package main

import (
	"encoding/json"
	"maps"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// secretive is a configuration with a secret in every place that can hold one.
// Each of them contains "sesame".
const secretive = `
proxy:
  listen: ":8080"
  trusted_proxies: [10.0.0.0/8]
  jwt: {secret: sesame-jwt-sesame-jwt-sesame-jwt-, issuer: "https://login.example.com", audience: [api]}
  api_keys: {keys: [{sha256: 2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683, user_id: alice, plan: gold}]}
  upstreams: {api: {targets: ["http://127.0.0.1:9000"], connect_timeout: 2s}}
  routes:
    - name: partner
      match: {host: api.example.com, path: "/v1/{id}", methods: [GET], headers: {X-Partner-Key: sesame-route, X-Present: "*"}}
      user_id: ["{header.X-User-Id}"]
      upstream: api
    - {name: other, match: {headers: {Authorization: "Basic sesame-basic"}}, upstream: api}
limiter:
  resources:
    read: {capacity: 100, refill_rate: 50/s}
    search: {limits: [{name: burst, capacity: 20, refill_rate: 0.5/m}]}
  redis: {url: "redis://gateway:p%2Fsesame-redis@10.0.0.9:6379/3", timeout: 40ms}
admin: {listen: ":8000", token: sesame-admin-token-1, allow_token: sesame-allow-token-1}
`

func redactedText(t *testing.T, text string) string {
	t.Helper()
	c := defaultConfig()
	if _, problems := decodeYAML([]byte(text), noEnv, &c); len(problems) > 0 {
		t.Fatalf("%v in %s", problems, text)
	}
	c.validate(func(path, problem string) { t.Errorf("%s: %s", path, problem) })
	shown, err := json.MarshalIndent(redacted(&c), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(shown)
}

func TestNoSecretOfAFullConfigurationIsShown(t *testing.T) {
	shown := redactedText(t, secretive)
	if i := strings.Index(shown, "sesame"); i >= 0 {
		t.Errorf("a secret is shown: %s", shown[max(0, i-100):min(len(shown), i+100)])
	}
	if n := strings.Count(shown, hidden); n != 5 {
		t.Errorf("%d secrets are hidden, want 5: two tokens, the secret of others and two header values", n)
	}
	for _, text := range []string{
		`"token": "(hidden)"`, `"allow_token": "(hidden)"`, `"exact": "(hidden)"`, `"secret": "(hidden)"`,
		`"url": "redis://gateway:hidden@10.0.0.9:6379/3"`,
	} {
		if !strings.Contains(shown, text) {
			t.Errorf("there is no %s in %s", text, shown)
		}
	}
}

func TestNoPasswordOfSentinelsIsShown(t *testing.T) {
	shown := redactedText(t, `
limiter:
  redis:
    mode: sentinel
    addrs: [10.0.0.5:26379, 10.0.0.6:26379]
    master_name: main
    username: gateway
    password: sesame-redis
    db: 2
    sentinel_username: watcher
    sentinel_password: sesame-sentinel
    tls: {server_name: redis.internal}
`)
	if strings.Contains(shown, "sesame") {
		t.Errorf("a password is shown in %s", shown)
	}
	for _, text := range []string{
		`"password": "(hidden)"`, `"sentinel_password": "(hidden)"`, `"mode": "sentinel"`, `"10.0.0.6:26379"`, `"master_name": "main"`,
		`"username": "gateway"`, `"db": 2`, `"server_name": "redis.internal"`, `"url": ""`,
	} {
		if !strings.Contains(shown, text) {
			t.Errorf("there is no %s in %s", text, shown)
		}
	}
}

func TestWhatIsNoSecretIsShownAsInTheFile(t *testing.T) {
	shown := redactedText(t, secretive)
	for _, text := range []string{
		`"listen": ":8080"`, `"10.0.0.0/8"`, `"http://127.0.0.1:9000"`, `"connect_timeout": "2s"`, `"name": "partner"`, `"api.example.com"`,
		`"/v1/{id}"`, `"present": true`, `"{header.X-User-Id}"`, `"refill_rate": "50/s"`, `"refill_rate": "0.5/m"`, `"capacity": 100`,
		`"timeout": "40ms"`, `"idempotency_ttl": "1m0s"`, `"level": "info"`, `"ipv6_prefix": 64`,
		`"issuer": "https://login.example.com"`, `"jwks_url": ""`, `"leeway": "0s"`, `"sha256": "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"`, `"user_id": "alice"`,
	} {
		if !strings.Contains(shown, text) {
			t.Errorf("there is no %s in %s", text, shown)
		}
	}
	var sections map[string]any
	if err := json.Unmarshal([]byte(redactedText(t, "log: {level: info}")), &sections); err != nil {
		t.Fatal(err)
	}
	var admin any = map[string]any{"listen": "127.0.0.1:8000", "token": "", "allow_token": "", "ready_when_degraded": false, "tls": nil}
	if diff := cmp.Diff(admin, sections["admin"]); diff != "" {
		t.Errorf("an empty token is shown as empty, for it guards nothing (-want +got):\n%s", diff)
	}
	redis := sections["limiter"].(map[string]any)["redis"]
	if len(sections) != 4 || redis != nil {
		t.Errorf("got sections %v and redis %v", sections, redis)
	}
}

func TestPasswordOfEveryKindOfRedisURLIsHidden(t *testing.T) {
	for url, want := range map[string]string{
		"redis://:sesame@h:1/0":           "redis://:hidden@h:1/0",
		"redis://u:@h:1/0":                "redis://u:hidden@h:1/0",
		"redis://h:1/0":                   "redis://h:1/0",
		"rediss://u:sesame@h:1/0":         "rediss://u:hidden@h:1/0",
		"unix://u:sesame@/run/redis.sock": "unix://u:hidden@/run/redis.sock",
		"unix:///run/redis.sock?db=2":     "unix:///run/redis.sock?db=2",
		"redis://u:ses%ame@h":             hidden, // no URL, so that nobody knows where the password is
		"redis://u:a@sesame@h:1/0":        "redis://u:hidden@h:1/0",
		"redis://u:pass word sesame@h:1":  hidden,
		"redis://u:sesame\x00@h":          hidden,
	} {
		if got := redactURL(url); got != want {
			t.Errorf("%q: got %q, want %q", url, got, want)
		}
	}
}

// The program shows what redacted returns: no more, and under the same names.
func TestServedConfigurationHoldsNoSecret(t *testing.T) {
	socket := redistest.Start(t).Socket()
	s := start(t, `
proxy:
  listen: "127.0.0.1:0"
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: partner, match: {headers: {X-Partner-Key: sesame-route}}, upstream: api}]
limiter: {redis: {url: "unix://`+socket+`"}}
admin: {listen: "127.0.0.1:0", allow_token: sesame-allow-token-1}
`)
	resp, shown := ask(t, s.control+"/admin/config")
	if resp.StatusCode != 200 || strings.Contains(shown, "sesame") || !strings.Contains(shown, `"allow_token":"(hidden)"`) || !strings.Contains(shown, socket) {
		t.Errorf("got %d %s", resp.StatusCode, shown)
	}
	s.signals <- syscall.SIGTERM
	if code := <-s.exit; code != exitFine {
		t.Errorf("exit code %d, want 0", code)
	}
}

// What is shown is what is in force, not what the file says of it.
func TestDefaultsAreShownWhereTheFileLeavesThemOut(t *testing.T) {
	var shown struct {
		Proxy struct {
			APIKeys   map[string]any            `json:"api_keys"`
			Upstreams map[string]map[string]any `json:"upstreams"`
			Routes    []map[string]any          `json:"routes"`
			TLS       any                       `json:"tls"`
		} `json:"proxy"`
		Limiter struct {
			Resources map[string]map[string]any `json:"resources"`
		} `json:"limiter"`
	}
	text := redactedText(t, `
proxy:
  listen: ":8080"
  api_keys: {keys: [{sha256: 2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683, user_id: alice}]}
  upstreams:
    a: {targets: ["http://127.0.0.1:1"], health_check: {interval: 500ms}}
    b: {targets: ["http://127.0.0.1:1"], retries: 0, queue_timeout: 0s, balance: least_conn}
  routes:
    - {name: first, upstream: a}
    - {name: second, upstream: b, shadow: false, enforce: 0%, cost: 2, resource: other, user_id: "{host}"}
limiter: {resources: {read: {capacity: 1, refill_rate: 1/s}}}
`)
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		t.Fatal(err)
	}
	common := map[string]any{"connect_timeout": "2s", "response_timeout": "30s", "idle_timeout": "1m0s", "max_conns": 1024.0, "tls": nil}
	with := func(fields map[string]any) map[string]any {
		maps.Copy(fields, common)
		return fields
	}
	target := []any{"http://127.0.0.1:1"}
	check := map[string]any{"path": "/healthz", "interval": "500ms", "timeout": "500ms", "unhealthy_after": 3.0, "healthy_after": 2.0}
	for i := range shown.Proxy.Routes {
		delete(shown.Proxy.Routes[i], "match")
	}
	for what, each := range map[string]struct{ want, got any }{
		"upstream a": {with(map[string]any{"targets": target, "balance": "round_robin", "queue_timeout": "100ms", "retries": 1.0, "health_check": check}), shown.Proxy.Upstreams["a"]},
		"upstream b": {with(map[string]any{"targets": target, "balance": "least_conn", "queue_timeout": "0s", "retries": 0.0, "health_check": nil}), shown.Proxy.Upstreams["b"]},
		"first": {map[string]any{"name": "first", "user_id": []any{"{client_ip}"}, "resource": "first", "plan": "", "cost": "1", "upstream": "a", "action": "limit",
			"shadow": false, "enforce": "100%"}, shown.Proxy.Routes[0]},
		"second": {map[string]any{"name": "second", "user_id": []any{"{host}"}, "resource": "other", "plan": "", "cost": "2", "upstream": "b", "action": "limit",
			"shadow": false, "enforce": "0%"}, shown.Proxy.Routes[1]},
		"header":    {"X-Api-Key", shown.Proxy.APIKeys["header"]},
		"precision": {"exact", shown.Limiter.Resources["read"]["precision"]},
		"tls":       {nil, shown.Proxy.TLS},
	} {
		if diff := cmp.Diff(each.want, each.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}
