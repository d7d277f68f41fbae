package proxy

import (
	"crypto/sha256"
	"strings"
	"testing"
	"time"
)

func TestProblemsOfTokensSayWhatToDo(t *testing.T) {
	missing := jwksFile(t, `{"keys":[]}`)
	for _, c := range []struct {
		what string
		is   JWTConfig
		want []string
	}{
		{"a secret", JWTConfig{Secret: testSecret, Leeway: 5 * time.Minute, Audience: []string{"api"}}, nil},
		{"a file", JWTConfig{JWKSFile: jwksFile(t, everyKey(t))}, nil},
		{"a URL", JWTConfig{JWKSURL: "https://login.example.com/jwks.json?v=1"}, nil},
		{"a URL of this machine", JWTConfig{JWKSURL: "http://localhost:8080/jwks.json"}, nil},
		{"one by address", JWTConfig{JWKSURL: "http://127.8.8.8/"}, nil},
		{"one of IPv6", JWTConfig{JWKSURL: "http://[::1]:1/"}, nil},
		{"nothing", JWTConfig{}, []string{"jwt: has no keys to verify tokens with; give one of jwks_url, jwks_file and secret"}},
		{"everything", JWTConfig{JWKSURL: "https://a", JWKSFile: missing, Secret: testSecret}, []string{
			"jwt.jwks_file: " + missing + ": holds no key",
			"jwt.jwks_file: is given beside jwks_url; keep one of jwks_url, jwks_file and secret",
		}},
		{"two", JWTConfig{JWKSURL: "https://a", Secret: testSecret}, []string{"jwt.secret: is given beside jwks_url; keep one of jwks_url, jwks_file and secret"}},
		{"a short secret", JWTConfig{Secret: testSecret[1:]}, []string{"jwt.secret: has 31 bytes, which can be guessed from any token; give at least 32, as from `openssl rand -hex 32`"}},
		{"plain http", JWTConfig{JWKSURL: "http://login.example.com/"}, []string{`jwt.jwks_url: is plain http to "login.example.com": whoever is on the way could put in keys of their own; use https (http is for this machine alone)`}},
		{"plain http to another machine", JWTConfig{JWKSURL: "http://10.0.0.1/"}, []string{`jwt.jwks_url: is plain http to "10.0.0.1": whoever is on the way could put in keys of their own; use https (http is for this machine alone)`}},
		{"a name that looks like this machine", JWTConfig{JWKSURL: "http://localhost.example.com/"}, []string{`jwt.jwks_url: is plain http to "localhost.example.com": whoever is on the way could put in keys of their own; use https (http is for this machine alone)`}},
		{"a user", JWTConfig{JWKSURL: "https://u:hush@a/"}, []string{"jwt.jwks_url: holds a user, which is not sent; take it out"}},
		{"another scheme", JWTConfig{JWKSURL: "file:///etc/passwd"}, []string{"jwt.jwks_url: is no URL of http or https; write it as in https://login.example.com/.well-known/jwks.json"}},
		{"a path", JWTConfig{JWKSURL: "/jwks.json"}, []string{"jwt.jwks_url: is no URL of http or https; write it as in https://login.example.com/.well-known/jwks.json"}},
		{"no URL", JWTConfig{JWKSURL: "https://a\x7f"}, []string{"jwt.jwks_url: is no URL; write it as in https://login.example.com/.well-known/jwks.json"}},
		{"leeway", JWTConfig{Secret: testSecret, Leeway: 5*time.Minute + 1}, []string{"jwt.leeway: is 5m0.000000001s; must be from 0s to 5m"}},
		{"no audience", JWTConfig{Secret: testSecret, Audience: []string{"a", ""}}, []string{"jwt.audience[1]: is empty; leave audience out to take tokens for anybody"}},
	} {
		wantProblems(t, c.what, func(to *Config) { to.JWT = &c.is }, c.want...)
	}
	for file, problem := range map[string]string{
		"/nonexistent/jwks.json":     "can't be read: stat /nonexistent/jwks.json: no such file or directory",
		jwksFile(t, "<html>"):        ": is no JSON Web Key Set: ",
		jwksFile(t, `{"keys":[{}]}`): ": holds no public key to verify tokens with: ",
	} {
		found := problemsOf(func(to *Config) { to.JWT = &JWTConfig{JWKSFile: file} })
		if len(found) != 1 || !strings.HasPrefix(found[0], "jwt.jwks_file: ") || !strings.Contains(found[0], problem) {
			t.Errorf("%s: got %q, want %s", file, found, problem)
		}
	}
}

func TestProblemsOfAPIKeysSayWhatToDo(t *testing.T) {
	a, b := Digest(sha256.Sum256([]byte("a"))), Digest(sha256.Sum256([]byte("b")))
	for _, c := range []struct {
		what string
		is   APIKeysConfig
		want []string
	}{
		{"two keys of a user", APIKeysConfig{Keys: []APIKeyConfig{{SHA256: a, UserID: "ann"}, {SHA256: b, UserID: "ann", Plan: "gold"}}}, nil},
		{"nothing", APIKeysConfig{}, []string{"api_keys.keys: there are none, so that every key would be unknown; list at least one"}},
		{"everything wrong", APIKeysConfig{Header: "X Key", Keys: []APIKeyConfig{{SHA256: a, UserID: "ann"}, {UserID: "bob"}, {SHA256: sha256.Sum256(nil), UserID: "eve"}, {SHA256: b}, {SHA256: a, UserID: "ann"}, {}}}, []string{
			`api_keys.header: "X Key" is no header name`,
			"api_keys.keys[1].sha256: is missing: give the SHA-256 of the key, as `printf %s KEY | sha256sum` shows it",
			"api_keys.keys[2].sha256: is the hash of nothing: hash the key itself, as in `printf %s KEY | sha256sum`",
			"api_keys.keys[3].user_id: is missing: say whose key this is",
			"api_keys.keys[4].sha256: is the hash of keys[0] too: a key is one user's; keep one of them",
			"api_keys.keys[5].sha256: is missing: give the SHA-256 of the key, as `printf %s KEY | sha256sum` shows it",
			"api_keys.keys[5].user_id: is missing: say whose key this is",
		}},
	} {
		wantProblems(t, c.what, func(to *Config) { to.APIKeys = &c.is }, c.want...)
	}
}

func TestTemplatesReadOnlyWhatIsConfigured(t *testing.T) {
	route := func(to *Config) {
		to.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://a.internal"}}}
		to.Routes = []RouteConfig{{
			Name: "r", Upstream: "api", UserID: []Template{template(t, "{header.A}"), template(t, "u-{jwt.sub|lower}"), template(t, "{basic_user}")},
			Resource: template(t, "{api_key.plan}"), Cost: template(t, "{jwt.cost}"),
		}}
	}
	noTokens := " reads a token, but proxy.jwt is absent, so that none is verified: add it, or take the placeholder out"
	wantProblems(t, "neither", route,
		`routes[0].cost: "{jwt.cost}"`+noTokens,
		`routes[0].resource: "{api_key.plan}" reads the table of API keys, but proxy.api_keys is absent: add it, or use {header.X-Api-Key|sha256}`,
		`routes[0].user_id[1]: "u-{jwt.sub|lower}"`+noTokens)
	wantProblems(t, "both", func(to *Config) {
		route(to)
		to.JWT, to.APIKeys = &JWTConfig{Secret: testSecret}, testKeys(false)
	})
}

func TestPlaceholdersOfIdentityAreParsed(t *testing.T) {
	for _, text := range []string{"{jwt.https://example.com/tenant}", "{jwt.a.b.c|sha256}", "{basic_user}", "{api_key.user_id}", "{api_key.plan|lower}"} {
		template(t, text)
	}
	all := "; there are {header.N} {query.N} {cookie.N} {path.N} {jwt.CLAIM} {api_key.user_id} {api_key.plan} {basic_user} {client_ip} {host} {method} {route}"
	for text, problem := range map[string]string{
		"{jwt}": "{jwt} needs a name, as in {jwt.NAME}", "{jwt.}": "{jwt.} needs a name, as in {jwt.NAME}",
		"{api_key.owner}": "unknown placeholder {api_key.owner}" + all, "{basic}": "unknown placeholder {basic}" + all,
	} {
		if _, err := ParseTemplate(text); err == nil || err.Error() != problem {
			t.Errorf("%s: got %v, want %s", text, err, problem)
		}
	}
}
