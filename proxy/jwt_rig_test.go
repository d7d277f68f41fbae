package proxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/VictoriaMetrics/metrics"
	"github.com/golang-jwt/jwt/v5"
)

// testSecret is the secret of tests: 32 bytes.
const testSecret = "0123456789abcdef0123456789abcdef"

// jwtKeys are private keys by the algorithm that uses them. They take a second to
// make, once for all tests.
var jwtKeys = sync.OnceValue(func() map[string]crypto.Signer {
	keys := map[string]crypto.Signer{}
	for name, bits := range map[string]int{"RS256": 2048, "RS512": 3072, "other RSA": 2048} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			panic(err)
		}
		keys[name] = key
	}
	for _, name := range []string{"RS384", "PS256", "PS384", "PS512"} {
		keys[name] = keys["RS256"]
	}
	for name, curve := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			panic(err)
		}
		keys[name] = key
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	keys["EdDSA"] = key
	return keys
})

// jwkOf is the public half of the key of an algorithm as a JSON Web Key, with
// members added or, where they are nil, taken away.
func jwkOf(t testing.TB, algorithm string, members map[string]any) map[string]any {
	t.Helper()
	jwk, err := jwkset.NewJWKFromKey(jwtKeys()[algorithm].Public(), jwkset.JWKOptions{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(jwk.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	delete(all, "alg") // which the library adds to some
	maps.Copy(all, members)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return all
}

// jwksOf is a key set.
func jwksOf(t testing.TB, keys ...map[string]any) string {
	t.Helper()
	text, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func jwksFile(t testing.TB, set string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, []byte(set), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// everyKey is a set with a key for each algorithm, whose name is its own.
func everyKey(t testing.TB) string {
	t.Helper()
	var keys []map[string]any
	for _, algorithm := range publicAlgorithms {
		keys = append(keys, jwkOf(t, algorithm, map[string]any{"kid": algorithm, "alg": algorithm, "use": "sig"}))
	}
	return jwksOf(t, keys...)
}

// signed is a token. header adds to what the algorithm needs.
func signed(t testing.TB, algorithm string, key any, header, claims map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.GetSigningMethod(algorithm), jwt.MapClaims(claims))
	maps.Copy(token.Header, header)
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// secretToken is one of HS256 with testSecret.
func secretToken(t testing.TB, claims map[string]any) string {
	t.Helper()
	return signed(t, "HS256", []byte(testSecret), nil, claims)
}

// testTime is when tests of tokens take place.
var testTime = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// tokenClock is a verifier whose clock is the test's.
type tokenClock struct {
	*jwtVerifier
	at time.Time
}

func newVerifier(t testing.TB, c JWTConfig, claims ...string) *tokenClock {
	t.Helper()
	c.validate(func(key, problem string) { t.Fatalf("configuration: %s: %s", key, problem) })
	v, err := newJWTVerifier(&c, claims, newJWTMetrics(metrics.NewSet()))
	if err != nil {
		t.Fatal(err)
	}
	clock := &tokenClock{v, testTime}
	v.now = func() time.Time { return clock.at }
	return clock
}

// outcome is what a verifier says of a token: its claims in a row, or why not.
func (v *tokenClock) outcome(t testing.TB, token string) string {
	t.Helper()
	r := &request{fields: []field{{[]byte("Authorization"), []byte("Bearer " + token)}}}
	err := v.identify(r)
	var values []string
	for i := 0; err == nil && i < len(v.claims); i++ {
		var value []byte
		value, err = r.appendClaim(nil, i)
		values = append(values, string(value))
	}
	if err != nil {
		wantNoToken(t, token, err)
		return err.Error()
	}
	return "ok " + strings.Join(values, " ")
}

// wantNoToken checks that nothing of a token is in what is said about it.
func wantNoToken(t testing.TB, token string, err error) {
	t.Helper()
	said := err.Error()
	if fault, ok := err.(*authFault); ok {
		said += fault.challenge
	}
	for part := range strings.SplitSeq(token, ".") {
		if len(part) > 8 && strings.Contains(said, part[:8]) {
			t.Errorf("%q repeats the token %q", said, token)
		}
	}
}

// counted is how many tokens were looked at, by result, and how many came from the cache.
func (v *tokenClock) counted() map[string]int {
	n := map[string]int{}
	for result, name := range tokenResultNames {
		if c := v.metrics.results[result].Get(); c > 0 {
			n[name] = int(c)
		}
	}
	if hits := v.metrics.hits.Get(); hits > 0 {
		n["hit"] = int(hits)
	}
	return n
}
