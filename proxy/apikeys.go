package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/valyala/fasthttp"
)

// APIKeysConfig is the table of API keys: whose a key is, by its hash.
type APIKeysConfig struct {
	// Header is the field that holds the key; default X-Api-Key.
	Header string `yaml:"header" default:"X-Api-Key"`
	// Required refuses requests without a key (401) on every route with action limit.
	Required bool `yaml:"required"`
	// Keys are at least one.
	Keys []APIKeyConfig `yaml:"keys"`
}

// APIKeyConfig is one key. A user may have several.
type APIKeyConfig struct {
	// SHA256 is the hash of the key, as `printf %s KEY | sha256sum` shows it.
	SHA256 Digest `yaml:"sha256"`
	// UserID is the value of {api_key.user_id}.
	UserID string `yaml:"user_id"`
	// Plan is the value of {api_key.plan}; "" is none.
	Plan string `yaml:"plan"`
}

// defaultKeyHeader is the default of api_keys.header.
const defaultKeyHeader = "X-Api-Key"

// Digest is a SHA-256 hash. The zero value is not set.
type Digest [sha256.Size]byte

// UnmarshalText parses 64 hexadecimal digits.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("has %d characters; write the SHA-256 of the key as 64 hexadecimal digits, as `printf %%s KEY | sha256sum` shows it", len(text))
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return fmt.Errorf("holds something else than hexadecimal digits; write the SHA-256 of the key as `printf %%s KEY | sha256sum` shows it")
	}
	return nil
}

// MarshalText writes 64 hexadecimal digits.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// validate reports problems by their path below `api_keys`.
func (c *APIKeysConfig) validate(report func(path, problem string)) {
	if c.Header != "" && !isToken([]byte(c.Header)) {
		report("header", fmt.Sprintf("%q is no header name", c.Header))
	}
	if len(c.Keys) == 0 {
		report("keys", "there are none, so that every key would be unknown; list at least one")
	}
	first := map[Digest]int{}
	for i, k := range c.Keys {
		at := func(key, problem string) { report(fmt.Sprintf("keys[%d].%s", i, key), problem) }
		if k.UserID == "" {
			at("user_id", "is missing: say whose key this is")
		}
		earlier, twice := first[k.SHA256]
		switch {
		case k.SHA256 == Digest{}:
			at("sha256", "is missing: give the SHA-256 of the key, as `printf %s KEY | sha256sum` shows it")
			continue
		case k.SHA256 == sha256.Sum256(nil):
			at("sha256", "is the hash of nothing: hash the key itself, as in `printf %s KEY | sha256sum`")
		case twice:
			at("sha256", fmt.Sprintf("is the hash of keys[%d] too: a key is one user's; keep one of them", earlier))
		default:
			first[k.SHA256] = i
		}
	}
}

// apiKey is what the table says about one key; nil is no key.
type apiKey struct{ user, plan string }

func (k *apiKey) userID() string {
	if k == nil {
		return ""
	}
	return k.user
}

func (k *apiKey) planName() string {
	if k == nil {
		return ""
	}
	return k.plan
}

// apiKeys is the table as it runs. It is immutable.
//
// Keys are found by their digest in a map, whose time may tell how far digests
// are equal, but not keys: who wants a key with a given digest must invert SHA-256.
// So there is nothing to compare in constant time.
type apiKeys struct {
	header           string
	required         bool
	users            map[Digest]*apiKey
	missing, unknown *authFault
}

// newAPIKeys makes the table; nil for nil.
func newAPIKeys(c *APIKeysConfig) *apiKeys {
	if c == nil {
		return nil
	}
	k := &apiKeys{header: c.Header, required: c.Required, users: make(map[Digest]*apiKey, len(c.Keys))}
	if k.header == "" {
		k.header = defaultKeyHeader
	}
	for _, each := range c.Keys {
		k.users[each.SHA256] = &apiKey{user: each.UserID, plan: each.Plan}
	}
	// No scheme is registered for keys in fields of their own, but a 401 has to
	// name one (RFC 9110 section 15.5.2).
	challenge := fmt.Sprintf("ApiKey header=%q", k.header)
	k.missing = &authFault{status: fasthttp.StatusUnauthorized, detail: "an API key is needed, in the header field " + k.header, challenge: challenge}
	k.unknown = &authFault{status: fasthttp.StatusUnauthorized, detail: "the API key in the header field " + k.header + " is unknown", challenge: challenge}
	return k
}

// identify finds whose key r shows and hangs that on r. No key leaves r without.
func (k *apiKeys) identify(r *request) error {
	value, err := r.header(k.header)
	switch {
	case err != nil:
		return err
	case len(value) == 0 && k.required:
		return k.missing
	case len(value) == 0:
		return nil
	}
	if r.key = k.users[sha256.Sum256(value)]; r.key == nil {
		return k.unknown
	}
	return nil
}
