package proxy

import (
	"fmt"

	"github.com/VictoriaMetrics/metrics"
)

// tokenResult is how the verification of a token ended.
type tokenResult uint8

const (
	tokenOK tokenResult = iota
	tokenMalformed
	tokenAlgorithm
	tokenUnknownKey
	tokenSignature
	tokenExpired
	tokenEarly
	tokenIssuer
	tokenAudience
	tokenBadClaims
	tokenNoKeys
	tokenResults
)

var tokenResultNames = [tokenResults]string{
	"ok", "malformed", "algorithm", "unknown_key", "signature", "expired", "not_yet_valid", "issuer", "audience", "claims", "no_keys",
}

// jwtMetrics are the series of tokens. They are the proxy's and outlive a verifier.
type jwtMetrics struct {
	results       [tokenResults]*metrics.Counter
	hits          *metrics.Counter
	refreshErrors *metrics.Counter
}

func newJWTMetrics(set *metrics.Set) *jwtMetrics {
	m := &jwtMetrics{
		hits:          set.NewCounter("r8limiter_jwt_cache_hits_total"),
		refreshErrors: set.NewCounter("r8limiter_jwt_refresh_errors_total"),
	}
	for result, name := range tokenResultNames {
		m.results[result] = set.NewCounter(fmt.Sprintf("r8limiter_jwt_verifications_total{result=%q}", name))
	}
	return m
}

// count counts a token that did not verify, and returns its fault.
func (m *jwtMetrics) count(fault *authFault) *authFault {
	m.results[fault.result].Inc()
	return fault
}
