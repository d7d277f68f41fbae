package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// keyServer is an issuer's server of keys whose answer is the test's.
type keyServer struct {
	*httptest.Server
	asked atomic.Int64

	mu     sync.Mutex // guards answer
	answer http.HandlerFunc
}

func startKeyServer(t *testing.T, answer http.HandlerFunc) *keyServer {
	t.Helper()
	s := &keyServer{answer: answer}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		answer := s.answer
		s.mu.Unlock()
		s.asked.Add(1)
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) serve(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
}

// quickPlan is a plan for tests, which fetches a lot more often.
var quickPlan = fetchPlan{period: time.Hour, gap: time.Millisecond, firstWait: time.Millisecond, maxWait: 5 * time.Millisecond}

// followed is a verifier that fetches its keys from url.
func followed(t *testing.T, url string, plan fetchPlan) (*tokenClock, *logBuffer) {
	t.Helper()
	v, log := newVerifier(t, JWTConfig{JWKSURL: url}, "sub"), new(logBuffer)
	v.source.plan = plan
	v.start(context.Background(), zerolog.New(log))
	t.Cleanup(v.close)
	return v, log
}

func rsaToken(t *testing.T, kid, signer string) string {
	t.Helper()
	return signed(t, "RS256", jwtKeys()[signer], map[string]any{"kid": kid}, map[string]any{"sub": "ann"})
}

func TestUnknownKeyBringsTheIssuersNewKeys(t *testing.T) {
	old := jwksOf(t, jwkOf(t, "RS256", map[string]any{"kid": "old"}))
	both := jwksOf(t, jwkOf(t, "RS256", map[string]any{"kid": "old"}), jwkOf(t, "other RSA", map[string]any{"kid": "new"}))
	fresh := jwksOf(t, jwkOf(t, "other RSA", map[string]any{"kid": "new"}))
	issuer := startKeyServer(t, text(old))
	v, log := followed(t, issuer.URL, quickPlan)
	oldToken, newToken := rsaToken(t, "old", "RS256"), rsaToken(t, "new", "other RSA")
	eventually(t, "the keys are here", func() bool { return v.keys() == 1 })
	want(t, "old", v.outcome(t, oldToken), "ok ann")

	issuer.serve(text(both))
	want(t, "new, at once", v.outcome(t, newToken), errUnknownKey.detail)
	eventually(t, "the new key is known", func() bool { return v.outcome(t, newToken) == "ok ann" })
	want(t, "old, beside it", v.outcome(t, oldToken), "ok ann")

	issuer.serve(text(fresh)) // the old key was withdrawn
	eventually(t, "the old key is gone", func() bool {
		v.outcome(t, rsaToken(t, "unheard of", "other RSA"))
		return v.outcome(t, oldToken) != "ok ann"
	})
	want(t, "old, withdrawn", v.outcome(t, oldToken), errUnknownKey.detail)
	want(t, "new", v.outcome(t, newToken), "ok ann")
	if n := strings.Count(log.String(), "tokens are verified with the keys"); n != 3 {
		t.Errorf("%d changes are logged, want 3:\n%s", n, log)
	}
}

// Where neither keys nor tokens have names nobody can tell that a key is unknown
// but by the signature.
func TestWrongSignatureWithoutANameBringsNewKeys(t *testing.T) {
	issuer := startKeyServer(t, text(jwksOf(t, jwkOf(t, "RS256", nil))))
	v, _ := followed(t, issuer.URL, quickPlan)
	token := signed(t, "RS256", jwtKeys()["other RSA"], nil, map[string]any{"sub": "ann"})
	eventually(t, "the keys are here", func() bool { return v.keys() == 1 })
	issuer.serve(text(jwksOf(t, jwkOf(t, "other RSA", nil))))
	want(t, "at once", v.outcome(t, token), errSignature.detail)
	eventually(t, "the new key is known", func() bool { return v.outcome(t, token) == "ok ann" })
}

// A wrong signature by a key that is known asks for nothing: anybody can make one.
func TestForgedTokensDoNotReachTheIssuer(t *testing.T) {
	issuer := startKeyServer(t, text(everyKey(t)))
	v, _ := followed(t, issuer.URL, quickPlan)
	eventually(t, "the keys are here", func() bool { return v.keys() > 0 })
	forged := rsaToken(t, "RS256", "other RSA")
	for range 100 {
		want(t, "forged", v.outcome(t, forged), errSignature.detail)
	}
	if len(v.source.wake) > 0 || issuer.asked.Load() != 1 {
		t.Errorf("the issuer was asked %d times, want once", issuer.asked.Load())
	}
}

func TestKeysThatCannotBeFetchedAtTheStartAreFetchedLater(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close() // nobody listens there for now
	v, log := followed(t, "http://"+address, quickPlan)
	token := rsaToken(t, "RS256", "RS256")
	eventually(t, "it was tried in vain", func() bool { return v.metrics.refreshErrors.Get() >= 3 })
	want(t, "before", v.outcome(t, token), errNoKeys.detail)
	if v.keys() != 0 || strings.Count(log.String(), "can't be fetched: until they are, requests with a token get 503") != 1 {
		t.Errorf("%d keys, log:\n%s", v.keys(), log)
	}
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: text(everyKey(t))}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	eventually(t, "the keys are here", func() bool { return v.outcome(t, token) == "ok ann" })
	eventually(t, "it is logged", func() bool { return strings.Contains(log.String(), "can be fetched again") })
}

func TestKeysStayInForceWhileTheIssuerFails(t *testing.T) {
	all := everyKey(t)
	issuer := startKeyServer(t, text(all))
	plan := quickPlan
	plan.period = time.Millisecond
	v, log := followed(t, issuer.URL, plan)
	token := rsaToken(t, "RS256", "RS256")
	eventually(t, "the keys are here", func() bool { return v.keys() > 0 })
	garbage := strings.Repeat("{", 1000)
	for _, c := range []struct {
		what   string
		answer http.HandlerFunc
		says   string
	}{
		{"500", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = io.WriteString(w, all)
		}, "the answer is 500 Internal Server Error"},
		{"404", http.NotFound, "the answer is 404 Not Found"},
		{"garbage", text(garbage), "the answer is no JSON Web Key Set: "},
		{"nothing", text(""), "the answer is no JSON Web Key Set: "},
		{"HTML", text("<html>login</html>"), "the answer is no JSON Web Key Set: "},
		{"no set", text(`{"issuer":"x"}`), "the answer holds no list of keys: "},
		{"null", text(`{"keys":null}`), "the answer holds no list of keys: "},
		{"too large", text(all + strings.Repeat(" ", maxKeySet)), "the answer is larger than 1048576 bytes"},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, garbage); err != nil {
					return
				}
			}
		}, "the answer is larger than 1048576 bytes"},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, all)
		}, "read the answer: unexpected EOF"},
		{"a long head", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("a", 2*maxKeySetHead))
			_, _ = io.WriteString(w, all)
		}, "exceeded"},
		{"plain http elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://keys.invalid/", http.StatusFound)
		}, `is plain http to \"keys.invalid\"`},
		{"redirects without end", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }, "there are more than 3 redirects"},
	} {
		log.forget()
		before := v.metrics.refreshErrors.Get()
		issuer.serve(c.answer)
		eventually(t, c.what+" is an error", func() bool { return v.metrics.refreshErrors.Get() >= before+3 })
		want(t, c.what, v.outcome(t, token), "ok ann")
		if told := log.String(); strings.Count(told, "can't be fetched: those from before stay in force") != 1 || !strings.Contains(told, c.says) {
			t.Errorf("%s: logged\n%swant once, with %s", c.what, told, c.says)
		}
		issuer.serve(text(all))
		eventually(t, "it is fine again", func() bool { return strings.Contains(log.String(), "can be fetched again") })
	}
	if n := v.counted()["ok"]; n != 1 {
		t.Errorf("the token was verified %d times: the same keys must not empty the cache", n)
	}
}

// What an issuer withdraws is withdrawn, also if nothing usable is left.
func TestKeysThatAreWithdrawnVerifyNothing(t *testing.T) {
	for set, says := range map[string]string{
		`{"keys":[]}`: "holds no key",
		`{"keys":[{"kty":"oct","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}]}`: "holds no public key to verify tokens with: ",
	} {
		issuer := startKeyServer(t, text(everyKey(t)))
		plan := quickPlan
		plan.period = time.Millisecond
		v, log := followed(t, issuer.URL, plan)
		token := rsaToken(t, "RS256", "RS256")
		eventually(t, "the keys are here", func() bool { return v.keys() > 0 })
		want(t, "before", v.outcome(t, token), "ok ann")
		issuer.serve(text(set))
		eventually(t, "the keys are gone", func() bool { return v.keys() == 0 })
		want(t, set, v.outcome(t, token), errUnknownKey.detail)
		if told := log.String(); strings.Count(told, "every token is refused") != 1 || !strings.Contains(told, says) {
			t.Errorf("%s: logged\n%s", set, told)
		}
		issuer.serve(text(everyKey(t)))
		eventually(t, "they are back", func() bool { return v.outcome(t, token) == "ok ann" })
	}
}

func TestKeysComeThroughARedirectOnThisMachine(t *testing.T) {
	issuer := startKeyServer(t, text(everyKey(t)))
	door := startKeyServer(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, issuer.URL+"/jwks.json", http.StatusMovedPermanently)
	})
	v, _ := followed(t, door.URL, quickPlan)
	eventually(t, "the keys are here", func() bool { return v.keys() > 0 })
}

func TestClosingWaitsForNoAnswer(t *testing.T) {
	asked, over := make(chan bool, 1), make(chan bool)
	issuer := startKeyServer(t, func(_ http.ResponseWriter, r *http.Request) {
		asked <- true
		<-r.Context().Done()
		close(over)
	})
	v, log := followed(t, issuer.URL, quickPlan)
	<-asked
	v.close()
	<-over // the issuer sees that nobody waits any more
	if log.String() != "" || v.metrics.refreshErrors.Get() != 0 {
		t.Errorf("a fetch that we ended is no failure:\n%s", log)
	}
	unstarted := newVerifier(t, JWTConfig{JWKSURL: issuer.URL})
	unstarted.close()
}

// A reload must not be a start without keys.
func TestKeysAreTakenOverFromAVerifierOfTheSameIssuer(t *testing.T) {
	issuer := startKeyServer(t, text(everyKey(t)))
	old, _ := followed(t, issuer.URL, quickPlan)
	eventually(t, "the keys are here", func() bool { return old.keys() > 0 })
	same, other, secret := newVerifier(t, JWTConfig{JWKSURL: issuer.URL}), newVerifier(t, JWTConfig{JWKSURL: issuer.URL + "/other"}), newVerifier(t, JWTConfig{Secret: testSecret})
	for _, v := range []*tokenClock{same, other, secret} {
		v.adopt(nil)
		v.adopt(old.jwtVerifier)
	}
	if same.keys() != old.keys() || other.keys() != 0 || secret.keys() != 1 {
		t.Errorf("got %d, %d and %d keys, want %d, 0 and 1", same.keys(), other.keys(), secret.keys(), old.keys())
	}
	eventually(t, "the fetch is noted", func() bool { return old.source.fetchedAt.Load() > 0 })
	last := old
	for range 50 { // a reload is no reason to ask the issuer
		next := newVerifier(t, JWTConfig{JWKSURL: issuer.URL}, "sub")
		next.source.plan = quickPlan
		next.adopt(last.jwtVerifier)
		next.start(context.Background(), zerolog.Nop())
		last.close()
		last = next
	}
	defer last.close()
	if n := issuer.asked.Load(); n != 1 {
		t.Errorf("the issuer was asked %d times, want once", n)
	}
	last.source.wakeUp()
	eventually(t, "it still can be", func() bool { return issuer.asked.Load() == 2 })
}

func TestPlanOfFetches(t *testing.T) {
	now, failure := testTime, errors.New("down")
	within := func(what string, got, least, most time.Duration) {
		t.Helper()
		if got < least || got > most {
			t.Errorf("%s: in %v, want %v to %v", what, got, least, most)
		}
	}
	p := defaultPlan
	for i, wait := range []time.Duration{500, 1000, 2000, 4000, 8000, 16000, 30000, 30000} {
		p.fetched(now, failure)
		wait *= time.Millisecond
		within("after failures", p.due.Sub(now), wait*9/10, wait*11/10)
		if i == 0 {
			p.asked()
			within("asked after a failure", p.due.Sub(now), wait*9/10, wait*11/10)
		}
	}
	p.asked()
	within("asked after many failures", p.due.Sub(now), 10*time.Second, 10*time.Second)
	p.fetched(now, nil)
	within("after a success", p.due.Sub(now), 270*time.Second, 330*time.Second)
	for range 3 {
		p.asked()
		within("asked", p.due.Sub(now), 10*time.Second, 10*time.Second)
	}
	p.fetched(now, failure)
	within("after the next failure", p.due.Sub(now), 450*time.Millisecond, 550*time.Millisecond)
}

func TestUnusableKeysArePassedOver(t *testing.T) {
	good := jwkOf(t, "ES256", map[string]any{"kid": "good"})
	for what, key := range map[string]map[string]any{
		"an unknown type":       {"kty": "XYZ"},
		"no type":               {"kid": "x"},
		"an unknown curve":      {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
		"a point off the curve": jwkOf(t, "ES256", map[string]any{"x": "AQAB"}),
		"a short Ed25519 key":   jwkOf(t, "EdDSA", map[string]any{"x": "AQAB"}),
		"X25519":                jwkOf(t, "EdDSA", map[string]any{"crv": "X25519"}),
		"a short RSA key":       {"kty": "RSA", "e": "AQAB", "n": strings.Repeat("_", 170)},
		"a huge RSA key":        {"kty": "RSA", "e": "AQAB", "n": strings.Repeat("_", 2000)},
		"an RSA key without e":  jwkOf(t, "RS256", map[string]any{"e": nil}),
		"an RSA key with e 1":   jwkOf(t, "RS256", map[string]any{"e": "AQ"}),
		"a huge e":              jwkOf(t, "RS256", map[string]any{"e": strings.Repeat("_", 100)}),
		"x5c of the wrong type": jwkOf(t, "RS256", map[string]any{"x5c": "text"}),
		"a bad certificate":     jwkOf(t, "RS256", map[string]any{"x5c": []string{"AAAA"}}),
		"alg none":              jwkOf(t, "RS256", map[string]any{"alg": "none"}),
		"a secret":              {"kty": "oct", "k": "AAAA"},
	} {
		ring, err := parseKeys([]byte(jwksOf(t, key, good)))
		if err != nil || len(ring.keys) != 1 || ring.keys[0].kid != "good" || ring.skipped != 1 {
			t.Errorf("%s: got %+v, %v, want the good key alone", what, ring, err)
		}
		ring, err = parseKeys([]byte(jwksOf(t, key)))
		if err != nil || len(ring.keys) > 0 || !strings.HasPrefix(fmt.Sprint(ring.lack), "holds no public key to verify tokens with: ") {
			t.Errorf("%s alone: got %+v, %v", what, ring, err)
		}
	}
	if _, err := parseKeys([]byte(jwksOf(t, make([]map[string]any, maxKeys+1)...))); err == nil || err.Error() != "holds 101 keys; there may be 100" {
		t.Errorf("101 keys: got %v", err)
	}
}

// A set with private keys is a blunder of the issuer's, but of no harm here.
func TestOfPrivateKeysThePublicHalfIsUsed(t *testing.T) {
	file := jwksFile(t, jwksOf(t, jwkOf(t, "ES256", map[string]any{"d": strings.Repeat("A", 42) + "E"})))
	v := newVerifier(t, JWTConfig{JWKSFile: file}, "sub")
	want(t, "token", v.outcome(t, signed(t, "ES256", jwtKeys()["ES256"], nil, map[string]any{"sub": "ann"})), "ok ann")
}

func FuzzKeySet(f *testing.F) {
	f.Add([]byte(everyKey(f)))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":""},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"},null,1,[],{"use":"sig","x5c":["AA"],"x5u":"https://a/"}]}`))
	f.Fuzz(func(t *testing.T, set []byte) {
		ring, err := parseKeys(set)
		if (err == nil) != (ring != nil) || err == nil && (len(ring.keys) == 0) != (ring.lack != nil) {
			t.Errorf("%q: got %+v, %v", set, ring, err)
		}
		if err != nil {
			return
		}
		for i := range ring.keys {
			v := &jwtVerifier{algorithms: publicAlgorithms, metrics: nil, now: time.Now}
			v.parser = new(JWTConfig).parser(time.Now)
			for _, algorithm := range ring.keys[i].algorithms {
				if _, fault, _ := v.parse(forgedToken(algorithm), ring); fault == nil {
					t.Errorf("%q: a forged token of %s verifies", set, algorithm)
				}
			}
		}
	})
}

// forgedToken is one whose signature nobody made.
func forgedToken(algorithm string) string {
	token := hs256(`{"alg":"`+algorithm+`"}`, `{"sub":"eve"}`, nil)
	return token[:strings.LastIndexByte(token, '.')+1] + strings.Repeat("A", 342)
}
