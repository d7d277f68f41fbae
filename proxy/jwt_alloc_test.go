//go:build !race

// As in alloc_test.go: the race detector makes sync.Pool forget.

package proxy

import (
	"crypto/sha256"
	"fmt"
	"io"
	"testing"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
)

// identityAllocRig is a proxy whose route reads a token, an API key and a user of Basic.
func identityAllocRig(tb testing.TB) *rig {
	tb.Helper()
	l := listenLoopback(tb)
	go answerAll(l)
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://" + l.Addr().String()}}}
	c.JWT = &JWTConfig{Secret: testSecret, Required: true}
	c.APIKeys = &APIKeysConfig{Keys: []APIKeyConfig{{SHA256: sha256.Sum256([]byte("key")), UserID: "ann", Plan: "gold"}}}
	var templates []Template
	for _, text := range []string{"{basic_user}", "{jwt.absent}", "{jwt.realm.tenant}:{jwt.sub|lower}", "{api_key.plan}"} {
		t, err := ParseTemplate(text)
		if err != nil {
			tb.Fatal(err)
		}
		templates = append(templates, t)
	}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api", UserID: templates[:3], Resource: templates[3]}}
	lc := limiter.DefaultConfig()
	lc.Default.Capacity = limiter.MaxCapacity
	p, err := New(c, Options{Limiter: limiter.New(lc, limiter.NewMemoryStore()), Log: zerolog.New(io.Discard)})
	if err != nil {
		tb.Fatal(err)
	}
	front := listenLoopback(tb)
	go func() { _ = p.Serve(front) }()
	return &rig{addr: front.Addr().String(), p: p}
}

func TestRequestWithACachedTokenAllocatesNothing(t *testing.T) {
	rg := identityAllocRig(t)
	conn := dialLoopback(t, rg.addr)
	token := secretToken(t, map[string]any{"sub": "Ann", "realm": map[string]any{"tenant": "acme"}})
	request := []byte("GET /v1/7 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + token + "\r\nX-Api-Key: key\r\n\r\n")
	buf := make([]byte, 4096)
	once := func() {
		if _, err := conn.Write(request); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); err != nil || string(buf[:15]) != "HTTP/1.1 200 OK" {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
	}
	for range 200 {
		once()
	}
	if got := testing.AllocsPerRun(2000, once); got != 0 {
		t.Errorf("%v allocations a request, want none", got)
	}
	if hits, verified := rg.p.rules.Load().jwt.metrics.hits.Get(), rg.p.rules.Load().jwt.metrics.results[tokenOK].Get(); hits < 2000 || verified != 1 {
		t.Errorf("%d hits and %d verifications: this is no test of the cache", hits, verified)
	}
}

func TestBasicUserAllocatesNothing(t *testing.T) {
	r := &request{fields: []field{{[]byte("Authorization"), []byte("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")}}}
	dst := make([]byte, 0, 200)
	if got := testing.AllocsPerRun(1000, func() {
		if user, err := r.appendBasicUser(dst); err != nil || len(user) != len("Aladdin") {
			t.Fatal(user, err)
		}
	}); got != 0 {
		t.Errorf("%v allocations, want none", got)
	}
}

// BenchmarkToken is what a token costs a request: verified anew, or from the cache.
func BenchmarkToken(b *testing.B) {
	claims := map[string]any{
		"iss": "https://login.example.com", "aud": "api", "sub": "f3b2a1c4-5d6e-7f80-91a2-b3c4d5e6f708", "iat": testTime.Unix(), "exp": testTime.Unix() + 3600,
		"scope": "openid profile email", "realm_access": map[string]any{"tenant": "acme", "roles": []string{"user"}},
	}
	public := newVerifier(b, JWTConfig{JWKSFile: jwksFile(b, everyKey(b)), Issuer: "https://login.example.com", Audience: []string{"api"}}, "sub", "realm_access.tenant")
	secret := newVerifier(b, JWTConfig{Secret: testSecret, Issuer: "https://login.example.com", Audience: []string{"api"}}, "sub", "realm_access.tenant")
	for _, algorithm := range []string{"HS256", "RS256", "ES256", "EdDSA"} {
		v, key := public, any(jwtKeys()[algorithm])
		if algorithm == "HS256" {
			v, key = secret, []byte(testSecret)
		}
		token := []byte(signed(b, algorithm, key, map[string]any{"kid": algorithm}, claims))
		for _, cached := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/cached=%t", algorithm, cached), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if !cached {
						v.cache = tokenCache{}
					}
					if _, fault := v.verify(token); fault != nil {
						b.Fatal(fault)
					}
				}
			})
		}
	}
}

// BenchmarkTokenInParallel is the cache under many goroutines and 1,000 tokens.
func BenchmarkTokenInParallel(b *testing.B) {
	v := newVerifier(b, JWTConfig{Secret: testSecret}, "sub")
	var tokens [][]byte
	for i := range 1000 {
		tokens = append(tokens, []byte(secretToken(b, map[string]any{"sub": fmt.Sprint("user", i), "exp": testTime.Unix() + 3600})))
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, fault := v.verify(tokens[i%len(tokens)]); fault != nil {
				b.Error(fault)
				return
			}
		}
	})
}
