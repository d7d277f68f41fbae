package proxy

import (
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
)

func TestTokensOfEveryAlgorithmVerify(t *testing.T) {
	public := newVerifier(t, JWTConfig{JWKSFile: jwksFile(t, everyKey(t))}, "sub")
	secret := newVerifier(t, JWTConfig{Secret: testSecret}, "sub")
	for _, algorithm := range append(publicAlgorithms, secretAlgorithms...) {
		v, key := public, any(jwtKeys()[algorithm])
		if strings.HasPrefix(algorithm, "HS") {
			v, key = secret, []byte(testSecret)
		}
		token := signed(t, algorithm, key, map[string]any{"kid": algorithm}, map[string]any{"sub": "ann"})
		want(t, algorithm, v.outcome(t, token), "ok ann")

		// Of a signature every bit counts: with the last one changed it is another.
		signature := token[strings.LastIndexByte(token, '.')+1:]
		bytes, err := base64.RawURLEncoding.DecodeString(signature)
		if err != nil {
			t.Fatal(err)
		}
		bytes[len(bytes)-1] ^= 1
		forged := token[:len(token)-len(signature)] + base64.RawURLEncoding.EncodeToString(bytes)
		want(t, algorithm+" with another signature", v.outcome(t, forged), "the token's signature is wrong")

		// So does every claim.
		parts := strings.Split(token, ".")
		parts[1] = base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"eve"}`))
		want(t, algorithm+" with other claims", v.outcome(t, strings.Join(parts, ".")), "the token's signature is wrong")
	}
}

// hs256 signs by hand, with whatever as the secret.
func hs256(header, claims string, secret []byte) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Who takes the algorithm from the token and the key from the set takes a public key
// for a secret that everybody knows (RFC 8725 section 2.1).
func TestPublicKeyIsNoSecret(t *testing.T) {
	set := jwksOf(t, jwkOf(t, "RS256", map[string]any{"kid": "k"}))
	v := newVerifier(t, JWTConfig{JWKSFile: jwksFile(t, set)}, "sub")
	key := jwtKeys()["RS256"].Public().(*rsa.PublicKey)
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := x509.MarshalPKCS1PublicKey(key)
	for what, secret := range map[string][]byte{
		"PKIX": der, "PEM of PKIX": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
		"PKCS 1": pkcs1, "PEM of PKCS 1": pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: pkcs1}),
		"modulus": key.N.Bytes(), "set": []byte(set), "nothing": nil,
	} {
		for _, header := range []string{`{"alg":"HS256"}`, `{"alg":"HS256","kid":"k"}`, `{"alg":"RS256","alg":"HS256"}`} {
			want(t, what, v.outcome(t, hs256(header, `{"sub":"eve"}`, secret)), errAlgorithm.detail)
		}
		want(t, what, v.outcome(t, hs256(`{"alg":"RS256","kid":"k"}`, `{"sub":"eve"}`, secret)), errSignature.detail)
	}
}

func TestAlgorithmIsThatOfTheKey(t *testing.T) {
	file := jwksFile(t, jwksOf(t,
		jwkOf(t, "RS256", map[string]any{"kid": "any RSA"}),
		jwkOf(t, "RS256", map[string]any{"kid": "RS256 alone", "alg": "RS256"}),
		jwkOf(t, "RS256", map[string]any{"kid": "verify", "key_ops": []string{"verify"}}),
		jwkOf(t, "RS256", map[string]any{"kid": "encrypt", "use": "enc"}),
		jwkOf(t, "RS256", map[string]any{"kid": "sign", "key_ops": []string{"sign"}}),
		jwkOf(t, "RS256", map[string]any{"kid": "OAEP", "alg": "RSA-OAEP"}),
		jwkOf(t, "RS256", map[string]any{"kid": "of another kind", "alg": "ES256"}),
		jwkOf(t, "ES256", map[string]any{"kid": "P-256"}),
		jwkOf(t, "EdDSA", map[string]any{"kid": "twice"}),
		jwkOf(t, "ES384", map[string]any{"kid": "twice"}),
		map[string]any{"kid": "secret", "kty": "oct", "k": base64.RawURLEncoding.EncodeToString([]byte(testSecret))},
	))
	v := newVerifier(t, JWTConfig{JWKSFile: file}, "sub")
	for _, c := range []struct{ kid, algorithm, signer, want string }{
		{"any RSA", "RS256", "RS256", "ok ann"},
		{"any RSA", "RS512", "RS256", "ok ann"},
		{"any RSA", "PS384", "RS256", "ok ann"},
		{"any RSA", "RS256", "other RSA", errSignature.detail},
		{"any RSA", "ES256", "ES256", errAlgorithm.detail},
		{"RS256 alone", "RS256", "RS256", "ok ann"},
		{"RS256 alone", "PS256", "RS256", errAlgorithm.detail},
		{"RS256 alone", "RS384", "RS256", errAlgorithm.detail},
		{"verify", "RS256", "RS256", "ok ann"},
		{"encrypt", "RS256", "RS256", errUnknownKey.detail},
		{"sign", "RS256", "RS256", errUnknownKey.detail},
		{"OAEP", "RS256", "RS256", errUnknownKey.detail},
		{"of another kind", "RS256", "RS256", errUnknownKey.detail},
		{"P-256", "ES256", "ES256", "ok ann"},
		{"P-256", "ES384", "ES384", errAlgorithm.detail},
		{"P-256", "EdDSA", "EdDSA", errAlgorithm.detail},
		{"twice", "EdDSA", "EdDSA", "ok ann"},
		{"twice", "ES384", "ES384", "ok ann"},
		{"other", "RS256", "RS256", errUnknownKey.detail},
		{"", "ES256", "ES256", "ok ann"}, // the one key that fits
		{"", "EdDSA", "EdDSA", "ok ann"},
		{"", "RS256", "RS256", "ok ann"},
		{"", "ES512", "ES512", errAlgorithm.detail},
	} {
		header := map[string]any{"kid": c.kid}
		if c.kid == "" {
			header = nil
		}
		token := signed(t, c.algorithm, jwtKeys()[c.signer], header, map[string]any{"sub": "ann"})
		want(t, c.kid+" "+c.algorithm, v.outcome(t, token), c.want)
	}
	want(t, "a secret in a set", v.outcome(t, hs256(`{"alg":"HS256","kid":"secret"}`, `{"sub":"eve"}`, []byte(testSecret))), errAlgorithm.detail)
	if v.keys() != 6 {
		t.Errorf("there are %d keys, want 6", v.keys())
	}
}

func TestUnsignedTokensAreRefused(t *testing.T) {
	file := jwksFile(t, everyKey(t))
	for what, c := range map[string]JWTConfig{"public": {JWKSFile: file}, "secret": {Secret: testSecret}} {
		v := newVerifier(t, c, "sub")
		none := signed(t, "none", jwt.UnsafeAllowNoneSignatureType, nil, map[string]any{"sub": "eve"})
		want(t, what, v.outcome(t, none), errAlgorithm.detail)
		for _, alg := range []string{"None", "NONE", "nOnE", "HS1", "ES256K", "dir", ""} {
			header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"` + alg + `"}`))
			want(t, what+" "+alg, v.outcome(t, header+none[strings.IndexByte(none, '.'):]), errAlgorithm.detail)
		}
	}
}

func TestTokenWithoutKidIsTriedWithFewKeys(t *testing.T) {
	set := func(n int) string {
		var keys []map[string]any
		for range n - 1 {
			keys = append(keys, jwkOf(t, "RS512", nil))
		}
		return jwksOf(t, append(keys, jwkOf(t, "RS256", nil))...)
	}
	token := signed(t, "RS256", jwtKeys()["RS256"], nil, map[string]any{"sub": "ann"})
	named := signed(t, "RS256", jwtKeys()["RS256"], map[string]any{"kid": "k"}, map[string]any{"sub": "ann"})
	v := newVerifier(t, JWTConfig{JWKSFile: jwksFile(t, set(4))}, "sub")
	want(t, "four keys", v.outcome(t, token), "ok ann")
	want(t, "keys without a name", v.outcome(t, named), "ok ann")
	v = newVerifier(t, JWTConfig{JWKSFile: jwksFile(t, set(5))}, "sub")
	want(t, "five keys", v.outcome(t, token), errManyKeys.detail)
}

func TestDatesOfTokensAreChecked(t *testing.T) {
	at := func(d time.Duration) float64 { return float64(testTime.Add(d).UnixMilli()) / 1000 }
	for _, c := range []struct {
		what   string
		leeway time.Duration
		claims map[string]any
		want   string
	}{
		{"no dates", 0, nil, "ok ann"},
		{"exp to come", 0, map[string]any{"exp": at(time.Millisecond)}, "ok ann"},
		{"exp now", 0, map[string]any{"exp": at(0)}, errExpired.detail},
		{"exp past", 0, map[string]any{"exp": at(-time.Hour)}, errExpired.detail},
		{"exp within leeway", time.Minute, map[string]any{"exp": at(-59 * time.Second)}, "ok ann"},
		{"exp at the end of leeway", time.Minute, map[string]any{"exp": at(-time.Minute)}, errExpired.detail},
		{"nbf now", 0, map[string]any{"nbf": at(0)}, "ok ann"},
		{"nbf to come", 0, map[string]any{"nbf": at(time.Millisecond)}, errEarly.detail},
		{"nbf within leeway", time.Minute, map[string]any{"nbf": at(time.Minute)}, "ok ann"},
		{"nbf beyond leeway", time.Minute, map[string]any{"nbf": at(61 * time.Second)}, errEarly.detail},
		{"iat past", 0, map[string]any{"iat": at(-time.Hour)}, "ok ann"},
		{"iat to come", 0, map[string]any{"iat": at(time.Second)}, errEarly.detail},
		{"iat within leeway", time.Minute, map[string]any{"iat": at(time.Second)}, "ok ann"},
		{"exp is text", 0, map[string]any{"exp": "1900000000"}, errClaimType.detail},
		{"exp is null", 0, map[string]any{"exp": nil}, errClaimType.detail},
		{"exp is negative", 0, map[string]any{"exp": -1}, errClaimType.detail},
		{"exp is 0", 0, map[string]any{"exp": 0}, errExpired.detail},
		{"exp is no date", 0, map[string]any{"exp": 1e300}, errClaimType.detail},
		{"exp in 9999", 0, map[string]any{"exp": lastDate}, "ok ann"},
		{"nbf is a list", 0, map[string]any{"nbf": []int{1}}, errClaimType.detail},
		{"iat is no date", 0, map[string]any{"iat": 1e20}, errClaimType.detail},
		{"expired, of another type too", 0, map[string]any{"exp": 1, "iat": "now"}, errClaimType.detail},
	} {
		claims := map[string]any{"sub": "ann"}
		maps.Copy(claims, c.claims)
		v := newVerifier(t, JWTConfig{Secret: testSecret, Leeway: c.leeway}, "sub")
		want(t, c.what, v.outcome(t, secretToken(t, claims)), c.want)
	}
}

func TestIssuerAndAudienceAreCheckedWhereTheyAreSet(t *testing.T) {
	iss, aud := "https://login.test", []string{"api", "web"}
	for _, c := range []struct {
		what     string
		issuer   string
		audience []string
		claims   map[string]any
		want     string
	}{
		{"nothing is set", "", nil, map[string]any{"iss": "anybody", "aud": "anything"}, "ok "},
		{"the issuer", iss, nil, map[string]any{"iss": iss}, "ok "},
		{"another issuer", iss, nil, map[string]any{"iss": iss + "/"}, errIssuer.detail},
		{"no issuer", iss, nil, map[string]any{"sub": "ann"}, errMissingClaim.detail},
		{"an empty issuer", iss, nil, map[string]any{"iss": ""}, errMissingClaim.detail},
		{"an issuer that is a list", iss, nil, map[string]any{"iss": []string{iss}}, errClaimType.detail},
		{"the audience", "", aud, map[string]any{"aud": "web"}, "ok "},
		{"one of several", "", aud, map[string]any{"aud": []string{"x", "api"}}, "ok "},
		{"another audience", "", aud, map[string]any{"aud": "ap"}, errAudience.detail},
		{"others", "", aud, map[string]any{"aud": []string{"x", "y"}}, errAudience.detail},
		{"no audience", "", aud, map[string]any{"sub": "ann"}, errMissingClaim.detail},
		{"none of an audience", "", aud, map[string]any{"aud": []string{}}, errMissingClaim.detail},
		{"an audience that is a number", "", aud, map[string]any{"aud": 1}, errClaimType.detail},
		{"an audience with a number", "", aud, map[string]any{"aud": []any{"api", 1}}, errClaimType.detail},
		{"expired, and of another issuer", iss, nil, map[string]any{"iss": "x", "exp": 1}, errExpired.detail},
	} {
		v := newVerifier(t, JWTConfig{Secret: testSecret, Issuer: c.issuer, Audience: c.audience})
		want(t, c.what, v.outcome(t, secretToken(t, c.claims)), c.want)
	}
}

func TestWhatIsNoTokenIsRefused(t *testing.T) {
	v := newVerifier(t, JWTConfig{Secret: testSecret}, "sub")
	good := secretToken(t, map[string]any{"sub": "ann"})
	parts := strings.Split(good, ".")
	secret := []byte(testSecret)
	long := secretToken(t, map[string]any{"sub": strings.Repeat("a", maxToken)})
	fits := secretToken(t, map[string]any{"sub": strings.Repeat("a", 6000)})
	// HS256 leaves two bits of the last character unused: only 0 is taken there.
	last := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", good[len(good)-1])
	respelled := good[:len(good)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last+1])
	for _, c := range []struct{ what, token, want string }{
		{"the good one", good, "ok ann"},
		{"nothing", "", errNoJWT.detail},
		{"a dot", ".", errNoJWT.detail},
		{"two dots", "..", errNoJWT.detail},
		{"an opaque token", "mF_9.B5f-4.1JqM", errNoJWT.detail},
		{"two parts", parts[0] + "." + parts[1], errNoJWT.detail},
		{"four parts", good + ".", errNoJWT.detail},
		{"five parts, as if encrypted", good + "." + parts[1] + "." + parts[2], errNoJWT.detail},
		{"something behind it", good + " x", errNoJWT.detail},
		{"padding", good + "=", errNoJWT.detail},
		{"another spelling of the signature", respelled, errNoJWT.detail},
		{"no signature", parts[0] + "." + parts[1] + ".", errSignature.detail},
		{"a header that is a list", hs256(`[]`, `{"sub":"eve"}`, secret), errNoJWT.detail},
		{"a header that is no JSON", hs256(`{"alg":`, `{"sub":"eve"}`, secret), errNoJWT.detail},
		{"no alg", hs256(`{"typ":"JWT"}`, `{"sub":"eve"}`, secret), errAlgorithm.detail},
		{"alg is a number", hs256(`{"alg":256}`, `{"sub":"eve"}`, secret), errAlgorithm.detail},
		{"kid is a number", hs256(`{"alg":"HS256","kid":1}`, `{"sub":"eve"}`, secret), errNoJWT.detail},
		{"crit", hs256(`{"alg":"HS256","crit":["b64"],"b64":false}`, `{"sub":"eve"}`, secret), errCritical.detail},
		{"claims that are a list", hs256(`{"alg":"HS256"}`, `["sub"]`, secret), errNoJWT.detail},
		{"claims that are no JSON", hs256(`{"alg":"HS256"}`, `{"sub"`, secret), errNoJWT.detail},
		{"no claims", hs256(`{"alg":"HS256"}`, `{}`, secret), "ok "},
		{"too long", long, errLongToken.detail},
		{"long", fits, "ok " + strings.Repeat("a", 6000)},
	} {
		want(t, c.what, v.outcome(t, c.token), c.want)
	}
	counted := map[string]int{"ok": 3, "malformed": 17, "signature": 1, "algorithm": 2}
	if diff := cmp.Diff(counted, v.counted()); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

// What a claim is as text, so that no two users become one.
func TestClaimsOfEachKind(t *testing.T) {
	const claims = `{
		"text": "Ann", "empty": "", "null": null, "integer": 9007199254740993, "negative": -7, "big": 123456789012345678901234567890,
		"yes": true, "no": false, "fraction": 1.5, "exponent": 1e3, "whole": 1.0, "one": ["a"], "one number": [7], "two": ["a", "b"], "none": [],
		"nested": [["a"]], "of null": [null], "object": {"a": 1}, "https://example.com/tenant": "acme", "a.b": "dotted", "a": {"b": "by path", "c": {"d": ["deep"]}},
		"realm_access": {"tenant": "t1", "roles": ["x", "y"]}, "unicode": "ä\u0000\n\"", "half": "x"
	}`
	token := hs256(`{"alg":"HS256"}`, claims, []byte(testSecret))
	for name, wanted := range map[string]string{
		"text": "ok Ann", "empty": "ok ", "null": "ok ", "integer": "ok 9007199254740993", "negative": "ok -7", "big": "ok 123456789012345678901234567890",
		"yes": "ok true", "no": "ok false", "fraction": "refused", "exponent": "refused", "whole": "refused", "one": "ok a", "one number": "ok 7", "two": "refused",
		"none": "refused", "nested": "refused", "of null": "refused", "object": "refused", "https://example.com/tenant": "ok acme", "a.b": "ok dotted", "a.c.d": "ok deep",
		"a": "refused", "a.c": "refused", "a.x": "ok ", "a.c.d.e": "ok ", "text.x": "ok ", "realm_access.tenant": "ok t1", "realm_access.roles": "refused",
		"unicode": "ok ä\x00\n\"", "absent": "ok ", "a.": "ok ", ".a": "ok ", "..": "ok ",
	} {
		if wanted == "refused" {
			wanted = "the token's claim " + name + " is neither text nor an integer nor a boolean, nor a list of one"
		}
		v := newVerifier(t, JWTConfig{Secret: testSecret}, name)
		want(t, name, v.outcome(t, token), wanted)
		want(t, name+" from the cache", v.outcome(t, token), wanted)
	}
}

// Only the claims that are read can be of the wrong kind.
func TestClaimsThatNobodyReadsMayBeAnything(t *testing.T) {
	v := newVerifier(t, JWTConfig{Secret: testSecret}, "sub", "plan")
	want(t, "outcome", v.outcome(t, secretToken(t, map[string]any{"sub": "ann", "roles": []string{"a", "b"}, "plan": 3})), "ok ann 3")
}

func TestDescriptionHoldsWhatAFieldCanHold(t *testing.T) {
	fault := newClaims([]string{"ä\"\\\r\nX: 1"})[0].fault
	want(t, "challenge", fault.challenge, `Bearer error="invalid_token", error_description="the token's claim ??????X: 1 is neither text nor an integer nor a boolean, nor a list of one"`)
}

func FuzzToken(f *testing.F) {
	v := newVerifier(f, JWTConfig{Secret: testSecret}, "sub", "a.b")
	f.Add(`{"alg":"HS256"}`, `{"sub":"ann","a":{"b":[1]}}`)
	f.Add(`{"alg":"HS512","kid":"k"}`, `{"exp":1e9,"aud":[],"iss":null}`)
	f.Add(`{"alg":"none"}`, `[]`)
	f.Fuzz(func(t *testing.T, header, claims string) {
		v.outcome(t, hs256(header, claims, []byte(testSecret))) // it must not panic
		if got := v.outcome(t, hs256(header, claims, []byte(testSecret+"x"))); strings.HasPrefix(got, "ok") {
			t.Errorf("%q, %q: verified with another secret", header, claims)
		}
		if got := v.outcome(t, header+"."+claims+"."); strings.HasPrefix(got, "ok") {
			t.Errorf("%q, %q: verified without a signature", header, claims)
		}
	})
}
