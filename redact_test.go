package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestShownConfigurationHasNoSecrets(t *testing.T) {
	var c = defaultConfig()
	_, problems := decodeYAML([]byte(`
proxy:
  listen: ":8080"
  trusted_proxies: [10.0.0.0/8]
  upstreams: {api: {targets: ["http://10.0.0.5:9000"], idle_timeout: 3s}}
  routes: [{name: all, match: {headers: {X-Key: hush-1, X-Any: "*"}}, user_id: ["{header.X-Key|sha256}"], upstream: api}]
limiter:
  resources: {read: {capacity: 9, refill_rate: 2/s}}
  redis: {url: "redis://ann:hush-2@10.0.0.9:6379/1"}
admin: {token: hush-3-hush-3-hush-3, allow_token: hush-4-hush-4-hush-4}
`), noEnv, &c)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	text, err := json.Marshal(redacted(&c))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "hush") {
		t.Errorf("a secret is shown: %s", text)
	}
	for _, want := range []string{
		`"listen":":8080"`, `"trusted_proxies":["10.0.0.0/8"]`, `"idle_timeout":"3s"`, `"X-Any":"*"`, `"X-Key":"(hidden)"`,
		`"user_id":["{header.X-Key|sha256}"]`, `"refill_rate":"2/s"`, `"url":"redis://ann:hidden@10.0.0.9:6379/1"`, `"token":"(hidden)"`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	bare := defaultConfig()
	text, _ = json.Marshal(redacted(&bare))
	if !strings.Contains(string(text), `"token":""`) || !strings.Contains(string(text), `"redis":null`) {
		t.Errorf("got %s", text)
	}
}

func TestShownURLHasNoPassword(t *testing.T) {
	for url, want := range map[string]string{
		"redis://10.0.0.9:6379":            "redis://10.0.0.9:6379",
		"redis://:hush@10.0.0.9":           "redis://:hidden@10.0.0.9",
		"unix://u:hush@/run/redis.sock":    "unix://u:hidden@/run/redis.sock",
		"redis://u:hu%zzsh@10.0.0.9:6379/": hidden,
	} {
		if got := redactURL(url); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
