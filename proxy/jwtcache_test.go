package proxy

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func (v *tokenClock) wantCounted(t *testing.T, what string, want map[string]int) {
	t.Helper()
	if diff := cmp.Diff(want, v.counted()); diff != "" {
		t.Errorf("%s: counted (-want +got):\n%s", what, diff)
	}
}

func TestTokenIsServedFromTheCacheUntilItExpires(t *testing.T) {
	v := newVerifier(t, JWTConfig{Secret: testSecret}, "sub")
	exp := testTime.Add(100 * time.Second)
	token := secretToken(t, map[string]any{"sub": "ann", "exp": exp.Unix()})
	for _, at := range []time.Time{testTime, testTime, exp.Add(-1)} {
		v.at = at
		want(t, at.String(), v.outcome(t, token), "ok ann")
	}
	v.wantCounted(t, "before exp", map[string]int{"ok": 1, "hit": 2})
	for _, at := range []time.Time{exp, exp.Add(time.Hour)} {
		v.at = at
		want(t, at.String(), v.outcome(t, token), errExpired.detail)
	}
	v.wantCounted(t, "after exp", map[string]int{"ok": 1, "hit": 2, "expired": 2})
}

// A leeway makes up for clocks; it is no reason to serve from the cache what has expired.
func TestTokenWithinLeewayIsVerifiedEachTime(t *testing.T) {
	v := newVerifier(t, JWTConfig{Secret: testSecret, Leeway: time.Minute}, "sub")
	exp, nbf := testTime.Add(10*time.Second), testTime.Add(-10*time.Second)
	token := secretToken(t, map[string]any{"sub": "ann", "exp": exp.Unix(), "nbf": nbf.Unix()})
	for _, c := range []struct {
		at   time.Time
		want string
		hits int
	}{
		{nbf.Add(-time.Minute - 1), errEarly.detail, 0},
		{nbf.Add(-time.Minute), "ok ann", 0},
		{nbf.Add(-1), "ok ann", 0},
		{nbf, "ok ann", 0},
		{nbf.Add(1), "ok ann", 1},
		{exp.Add(-1), "ok ann", 2},
		{exp, "ok ann", 2},
		{exp.Add(time.Minute - 1), "ok ann", 2},
		{exp.Add(time.Minute), errExpired.detail, 2},
	} {
		v.at = c.at
		want(t, c.at.String(), v.outcome(t, token), c.want)
		if hits := v.counted()["hit"]; hits != c.hits {
			t.Errorf("%v: %d hits, want %d", c.at, hits, c.hits)
		}
	}
}

func TestTokenIsVerifiedAgainAfterFiveMinutesOrABackwardClock(t *testing.T) {
	v := newVerifier(t, JWTConfig{Secret: testSecret}, "sub")
	token := secretToken(t, map[string]any{"sub": "ann", "exp": testTime.Add(24 * time.Hour).Unix()})
	endless := secretToken(t, map[string]any{"sub": "bob"})
	for _, c := range []struct {
		at   time.Duration
		hits int
	}{{0, 0}, {maxCached - 1, 2}, {maxCached, 2}, {maxCached + 1, 4}, {-time.Hour, 4}, {-time.Hour, 6}} {
		v.at = testTime.Add(c.at)
		want(t, "with exp", v.outcome(t, token), "ok ann")
		want(t, "without", v.outcome(t, endless), "ok bob")
		if hits := v.counted()["hit"]; hits != c.hits {
			t.Errorf("%v: %d hits, want %d", c.at, hits, c.hits)
		}
	}
}

func TestOtherKeysEmptyTheCache(t *testing.T) {
	v := newVerifier(t, JWTConfig{JWKSFile: jwksFile(t, everyKey(t))}, "sub")
	token := signed(t, "RS256", jwtKeys()["RS256"], map[string]any{"kid": "RS256"}, map[string]any{"sub": "ann"})
	for range 2 {
		want(t, "before", v.outcome(t, token), "ok ann")
	}
	other, err := parseKeys([]byte(jwksOf(t, jwkOf(t, "other RSA", map[string]any{"kid": "RS256"}))))
	if err != nil {
		t.Fatal(err)
	}
	v.ring.Store(other)
	want(t, "after", v.outcome(t, token), errSignature.detail)
	v.wantCounted(t, "in all", map[string]int{"ok": 1, "hit": 1, "signature": 1})
}

// size counts the tokens in all shards.
func (c *tokenCache) size() (n int) {
	for i := range c.shards {
		n += len(c.shards[i].tokens)
	}
	return n
}

func TestCacheIsBoundedAndBadTokensForgetNobody(t *testing.T) {
	v := newVerifier(t, JWTConfig{Secret: testSecret}, "sub")
	good := secretToken(t, map[string]any{"sub": "ann"})
	want(t, "good", v.outcome(t, good), "ok ann")
	for i := range 3 * cacheShards * tokensPerShard / 2 {
		v.outcome(t, hs256(`{"alg":"HS256"}`, fmt.Sprintf(`{"sub":"%d"}`, i), []byte("another secret")))
	}
	if n := v.cache.size(); n != 1 {
		t.Errorf("after a flood of bad tokens %d are kept, want 1", n)
	}
	want(t, "good", v.outcome(t, good), "ok ann")
	if hits := v.counted()["hit"]; hits != 1 {
		t.Errorf("%d hits, want 1", hits)
	}
	ring := v.ring.Load()
	for i := range 3 * cacheShards * tokensPerShard {
		sum := sha256.Sum256(fmt.Append(nil, i))
		v.cache.keep(&sum, &verifiedToken{ring: ring})
	}
	if n := v.cache.size(); n != 10_000 {
		t.Errorf("%d tokens are kept, want 10000", n)
	}
}

func TestVerifierServesManyAtATime(t *testing.T) {
	v := newVerifier(t, JWTConfig{Secret: testSecret}, "sub")
	keys := v.ring.Load()
	var tokens []string
	for i := range 50 {
		tokens = append(tokens, secretToken(t, map[string]any{"sub": fmt.Sprint("user", i)}))
	}
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for i := range 2000 {
				if i%100 == 0 {
					ring := *keys
					v.ring.Store(&ring)
				}
				if got := v.outcome(t, tokens[i%50]); got != fmt.Sprint("ok user", i%50) {
					t.Errorf("token of user %d: got %s", i%50, got)
				}
			}
		})
	}
	running.Wait()
}
