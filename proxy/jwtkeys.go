package proxy

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/MicahParks/jwkset"
)

// keyring is a set of keys at one time. It is not changed: another set is another keyring.
type keyring struct {
	keys    []tokenKey
	skipped int               // keys of the set that can't verify tokens
	lack    error             // why there are no keys; nil where there are
	sum     [sha256.Size]byte // of the text it was read from
}

// tokenKey is a key that tokens are verified with.
type tokenKey struct {
	kid        string   // its name in the set; "" for none
	algorithms []string // what it may verify
	key        any      // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey; []byte for a secret
}

// maxTries is how many keys are tried on a token. Each try costs a request time, and
// who sends it need not have a token that is worth anything.
const maxTries = 4

// candidates are the keys that may have signed a token which names kid, or none if
// it is "", and algorithm. A key without a name may have signed any.
func (ring *keyring) candidates(kid, algorithm string) (fitting []*tokenKey, fault *authFault) {
	known := false
	for i := range ring.keys {
		k := &ring.keys[i]
		if kid != "" && k.kid != "" && k.kid != kid {
			continue
		}
		known = true
		if slices.Contains(k.algorithms, algorithm) {
			fitting = append(fitting, k)
		}
	}
	switch {
	case !known:
		return nil, errUnknownKey
	case len(fitting) == 0:
		return nil, errAlgorithm
	case len(fitting) > maxTries:
		return nil, errManyKeys
	}
	return fitting, nil
}

// maxKeys is how many keys a set may have.
const maxKeys = 100

// errNoSet says what a JSON Web Key Set is.
var errNoSet = errors.New("holds no list of keys: it should look like {\"keys\":[{\"kty\":\"RSA\", ...}]}")

// parseKeys reads a JSON Web Key Set. Keys that can't verify tokens are passed over
// (RFC 7517 section 5).
func parseKeys(data []byte) (*keyring, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("is no JSON Web Key Set: %w", err)
	}
	switch {
	case set.Keys == nil:
		return nil, errNoSet
	case len(set.Keys) > maxKeys:
		return nil, fmt.Errorf("holds %d keys; there may be %d", len(set.Keys), maxKeys)
	}
	ring := &keyring{sum: sha256.Sum256(data)}
	for _, raw := range set.Keys {
		k, err := parseKey(raw)
		if err != nil {
			ring.skipped, ring.lack = ring.skipped+1, fmt.Errorf("holds no public key to verify tokens with: %w", err)
			continue
		}
		ring.keys = append(ring.keys, k)
	}
	switch {
	case len(ring.keys) > 0:
		ring.lack = nil
	case ring.lack == nil:
		ring.lack = errors.New("holds no key")
	}
	return ring, nil
}

// parseKey reads one key. Of a private key it is the public half; secrets, which
// would be none in a place that everybody can read, are refused.
func parseKey(raw json.RawMessage) (tokenKey, error) {
	jwk, err := jwkset.NewJWKFromRawJSON(raw, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	if err != nil {
		return tokenKey{}, err
	}
	said := jwk.Marshal()
	k := tokenKey{kid: said.KID, key: jwk.Key()}
	if k.algorithms, err = algorithmsOf(k.key); err != nil {
		return k, err
	}
	switch {
	case said.USE != "" && said.USE != jwkset.UseSig:
		return k, fmt.Errorf("a key is for use %q, not for signatures", said.USE)
	case len(said.KEYOPS) > 0 && !slices.Contains(said.KEYOPS, jwkset.KeyOpsVerify):
		return k, errors.New("a key's key_ops lack verify")
	case said.ALG != "" && !slices.Contains(k.algorithms, said.ALG.String()):
		return k, fmt.Errorf("a key is for alg %q, which is not taken or not for its type", said.ALG)
	case said.ALG != "":
		k.algorithms = []string{said.ALG.String()}
	}
	return k, nil
}

// Bounds of RSA keys, in bits: RFC 7518 section 3.3, and what crypto/tls takes of others.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// algorithmsOf are those that a public key may verify; see RFC 7518 section 3.
func algorithmsOf(key any) ([]string, error) {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("an RSA key has %d bits; must be from %d to %d", bits, minRSABits, maxRSABits)
		}
		return publicAlgorithms[:6], nil
	case *ecdsa.PublicKey:
		return []string{map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[key.Curve.Params().BitSize]}, nil
	case ed25519.PublicKey:
		return []string{"EdDSA"}, nil
	}
	return nil, fmt.Errorf("a key of type %T signs nothing", key)
}
