package proxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/rs/zerolog"
	"github.com/valyala/fasthttp"
)

// maxToken is the length of the longest token that is looked at, in bytes.
const maxToken = 8 << 10

// jwtVerifier verifies the tokens of Authorization: Bearer as proxy.jwt says.
// It is safe for concurrent use; a request never waits in it for anything.
type jwtVerifier struct {
	config     JWTConfig
	required   bool
	algorithms []string // that a token may name; all of one kind, see newJWTVerifier
	claims     []claim  // that routes read; templates hold the index
	parser     *jwt.Parser
	ring       atomic.Pointer[keyring] // what tokens are verified with; nil until there are keys
	source     *keySource              // who changes ring; nil where nobody does
	cache      tokenCache
	metrics    *jwtMetrics
	now        func() time.Time // time.Now but in tests
}

// publicAlgorithms and secretAlgorithms are what tokens may be signed with.
var (
	publicAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	secretAlgorithms = []string{"HS256", "HS384", "HS512"}
)

// newJWTVerifier makes the verifier of a configuration that has no fault, for the
// claims that its routes read. Where keys are fetched it has none before start.
//
// Which algorithms there are depends on where the keys are from, and each key has
// its own: a token can't have a public key taken for a secret (RFC 8725 section 3.1).
func newJWTVerifier(c *JWTConfig, claims []string, m *jwtMetrics) (*jwtVerifier, error) {
	v := &jwtVerifier{config: *c, required: c.Required, algorithms: publicAlgorithms, claims: newClaims(claims), metrics: m, now: time.Now}
	v.parser = c.parser(func() time.Time { return v.now() })
	switch {
	case c.Secret != "":
		v.algorithms = secretAlgorithms
		v.ring.Store(&keyring{keys: []tokenKey{{key: []byte(c.Secret), algorithms: secretAlgorithms}}})
	case c.JWKSFile != "":
		ring, err := readKeys(c.JWKSFile)
		if err != nil {
			return nil, err
		}
		v.ring.Store(ring)
	default:
		v.source = newKeySource(c.JWKSURL, &v.ring, m)
	}
	return v, nil
}

// parser checks what of a token is no matter of keys.
func (c *JWTConfig) parser(now func() time.Time) *jwt.Parser {
	options := []jwt.ParserOption{
		// A signature has one spelling, so that a token has one entry in the cache.
		jwt.WithStrictDecoding(),
		jwt.WithJSONNumber(), jwt.WithLeeway(c.Leeway), jwt.WithIssuedAt(), jwt.WithTimeFunc(now),
	}
	if c.Issuer != "" {
		options = append(options, jwt.WithIssuer(c.Issuer))
	}
	if len(c.Audience) > 0 {
		options = append(options, jwt.WithAudience(c.Audience...))
	}
	return jwt.NewParser(options...)
}

// start fetches keys in the background, where that is to be done, until ctx ends
// or close is called.
func (v *jwtVerifier) start(ctx context.Context, log zerolog.Logger) {
	if v.source != nil {
		v.source.start(ctx, log)
	}
}

// begin starts v, on which nil is nothing, in place of the verifier of old, which may
// be nil.
func (v *jwtVerifier) begin(old *Rules, log zerolog.Logger) {
	if v == nil {
		return
	}
	if old != nil {
		v.adopt(old.jwt)
	}
	v.start(context.Background(), log)
}

// isSame says whether old verifies the same tokens in the same way for the same claims.
func (v *jwtVerifier) isSame(old *jwtVerifier) bool {
	if old == nil || !reflect.DeepEqual(v.config, old.config) || !reflect.DeepEqual(v.claims, old.claims) {
		return false
	}
	return v.config.JWKSFile == "" || v.ring.Load().sum == old.ring.Load().sum
}

// close ends what start began, and waits for it. On nil it does nothing.
func (v *jwtVerifier) close() {
	if v != nil && v.source != nil {
		v.source.close()
	}
}

// adopt takes over the keys that another verifier, which may be running, has fetched
// from the same place, and when it did: so that a reload is not a start without keys,
// and many reloads are not as many fetches. It is called before start.
func (v *jwtVerifier) adopt(old *jwtVerifier) {
	if old == nil || v.source == nil || old.source == nil || v.source.url != old.source.url {
		return
	}
	if ring := old.ring.Load(); ring != nil {
		v.ring.Store(ring)
		v.source.resume(time.Unix(0, old.source.fetchedAt.Load()))
	}
}

// keys counts the keys that tokens are verified with; 0 on nil.
func (v *jwtVerifier) keys() int {
	if v == nil {
		return 0
	}
	if ring := v.ring.Load(); ring != nil {
		return len(ring.keys)
	}
	return 0
}

// tokenFault is an authFault of a token that does not verify (RFC 6750 section 3.1).
func tokenFault(result tokenResult, detail string) *authFault {
	return &authFault{fasthttp.StatusUnauthorized, result, detail, `Bearer error="invalid_token", error_description="` + described(detail) + `"`}
}

// described is text without what error_description can't hold.
func described(text string) string {
	safe := []byte(text)
	for i, c := range safe {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			safe[i] = '?'
		}
	}
	return string(safe)
}

var (
	errNoToken      = &authFault{fasthttp.StatusUnauthorized, tokenOK, "a token is needed, as Authorization: Bearer TOKEN", `Bearer realm="api"`}
	errNoKeys       = &authFault{fasthttp.StatusServiceUnavailable, tokenNoKeys, "the keys that tokens are verified with are not here yet", ""}
	errLongToken    = tokenFault(tokenMalformed, "the token is longer than 8192 bytes")
	errNoJWT        = tokenFault(tokenMalformed, "the token is no JSON Web Token of three parts")
	errCritical     = tokenFault(tokenMalformed, "the token demands extensions (crit) that are not known here")
	errAlgorithm    = tokenFault(tokenAlgorithm, "the token is signed with an algorithm (alg) that is not taken here, or not for its key")
	errUnknownKey   = tokenFault(tokenUnknownKey, "the token is signed with a key (kid) that is not known")
	errManyKeys     = tokenFault(tokenUnknownKey, "the token does not say with which key (kid) it is signed, and there are many")
	errSignature    = tokenFault(tokenSignature, "the token's signature is wrong")
	errExpired      = tokenFault(tokenExpired, "the token has expired (exp)")
	errEarly        = tokenFault(tokenEarly, "the token is not valid yet (nbf, or iat in the future)")
	errIssuer       = tokenFault(tokenIssuer, "the token is from another issuer (iss)")
	errAudience     = tokenFault(tokenAudience, "the token is for another audience (aud)")
	errMissingClaim = tokenFault(tokenBadClaims, "the token lacks the issuer (iss) or the audience (aud)")
	errClaimType    = tokenFault(tokenBadClaims, "one of the token's exp, nbf, iat, iss and aud is of the wrong type or out of range")
)

// faultsOf are the parser's errors, and what of them a client is told. The first
// that fits counts: the parser joins all that is wrong with the claims. Its own
// texts may repeat a piece of the token.
var faultsOf = []struct {
	err   error
	fault *authFault
}{
	{jwt.ErrTokenMalformed, errNoJWT},
	{jwt.ErrTokenUnverifiable, errAlgorithm}, // one that the library does not have: the others are ours, see keysFor
	{jwt.ErrTokenSignatureInvalid, errSignature},
	{jwt.ErrInvalidType, errClaimType},
	{jwt.ErrTokenExpired, errExpired},
	{jwt.ErrTokenNotValidYet, errEarly},
	{jwt.ErrTokenUsedBeforeIssued, errEarly},
	{jwt.ErrTokenInvalidIssuer, errIssuer},
	{jwt.ErrTokenInvalidAudience, errAudience},
	{jwt.ErrTokenRequiredClaimMissing, errMissingClaim},
}

// toldOf is what a client is told of an error of the parser.
func toldOf(err error) *authFault {
	if fault, ok := errors.AsType[*authFault](err); ok {
		return fault
	}
	for i := range faultsOf {
		if errors.Is(err, faultsOf[i].err) {
			return faultsOf[i].fault
		}
	}
	return errNoJWT
}

// identify verifies the token of r and hangs what it says on r. No token leaves
// r without.
func (v *jwtVerifier) identify(r *request) error {
	token, given, err := r.credentials("Bearer")
	switch {
	case err != nil:
		return err
	case !given && v.required:
		return errNoToken
	case !given:
		return nil
	}
	verify := v.verify
	if r.unseen {
		verify = v.inspect
	}
	verified, fault := verify(token)
	if fault != nil {
		return fault
	}
	r.token = verified
	return nil
}

// verify is what a token says, if it is to be believed now.
func (v *jwtVerifier) verify(token []byte) (*verifiedToken, *authFault) {
	ring := v.ring.Load()
	switch {
	case ring == nil:
		return nil, v.metrics.count(errNoKeys)
	case len(token) > maxToken:
		return nil, v.metrics.count(errLongToken)
	}
	now := v.now()
	sum := sha256.Sum256(token)
	if t := v.cache.find(&sum, ring, now.UnixNano()); t != nil {
		v.metrics.hits.Inc()
		return t, nil
	}
	claims, fault, stale := v.parse(string(token), ring)
	if stale && v.source != nil {
		v.source.wakeUp()
	}
	if fault != nil {
		return nil, v.metrics.count(fault)
	}
	v.metrics.results[tokenOK].Inc()
	t := &verifiedToken{ring: ring, values: v.read(claims)}
	if t.setLife(claims, now) {
		v.cache.keep(&sum, t)
	}
	return t, nil
}

// inspect is verify that leaves no trace: nothing is counted, kept or fetched.
func (v *jwtVerifier) inspect(token []byte) (*verifiedToken, *authFault) {
	ring := v.ring.Load()
	switch {
	case ring == nil:
		return nil, errNoKeys
	case len(token) > maxToken:
		return nil, errLongToken
	}
	claims, fault, _ := v.parse(string(token), ring)
	if fault != nil {
		return nil, fault
	}
	return &verifiedToken{ring: ring, values: v.read(claims)}, nil
}

// parse verifies a token with the keys of ring; stale says that it may be signed with
// a key that has come since.
func (v *jwtVerifier) parse(token string, ring *keyring) (_ tokenClaims, _ *authFault, stale bool) {
	claims, named := tokenClaims{}, false
	_, err := v.parser.ParseWithClaims(token, &claims, func(t *jwt.Token) (keys any, err error) {
		keys, named, err = v.keysFor(t, ring)
		return keys, err
	})
	if err == nil {
		return claims, nil, false
	}
	fault := toldOf(err)
	return nil, fault, fault == errUnknownKey || fault == errSignature && !named
}

// keysFor are the keys that may have signed the token; named says that it names
// its key, and there is one of that name.
func (v *jwtVerifier) keysFor(t *jwt.Token, ring *keyring) (set jwt.VerificationKeySet, named bool, err error) {
	algorithm := t.Method.Alg()
	if !slices.Contains(v.algorithms, algorithm) {
		return set, false, errAlgorithm
	}
	if _, has := t.Header["crit"]; has { // RFC 7515 section 4.1.11
		return set, false, errCritical
	}
	kid, isText := t.Header["kid"].(string)
	if _, has := t.Header["kid"]; has && !isText {
		return set, false, errNoJWT
	}
	keys, fault := ring.candidates(kid, algorithm)
	if fault != nil {
		return set, false, fault
	}
	for _, k := range keys {
		set.Keys = append(set.Keys, k.key)
		named = named || k.kid != "" && k.kid == kid
	}
	return set, named, nil
}
