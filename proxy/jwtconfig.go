package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// JWTConfig says which JSON Web Tokens (RFC 7519) are believed. Exactly one of
// JWKSURL, JWKSFile and Secret is given.
type JWTConfig struct {
	// JWKSURL is where the issuer's public keys are, as a JSON Web Key Set; https,
	// or http on this machine. They are fetched in the background alone, again every
	// 5 minutes and when a token names a key that is not known.
	JWKSURL string `yaml:"jwks_url"`
	// JWKSFile holds such a set. It is read with the configuration: a changed one
	// wants a reload.
	JWKSFile string `yaml:"jwks_file"`
	// Secret is the key of HS256, HS384 and HS512, byte for byte; at least 32 bytes.
	Secret string `yaml:"secret"`
	// Issuer is what the claim iss must be; "" for any.
	Issuer string `yaml:"issuer"`
	// Audience are the values of which the claim aud must hold one; none for any.
	Audience []string `yaml:"audience"`
	// Leeway is how far the issuer's clock may be off ours when exp, nbf and iat
	// are checked, 0s (default) to 5m.
	Leeway time.Duration `yaml:"leeway" default:"0s"`
	// Required refuses requests without a token (401) on every route with action limit.
	Required bool `yaml:"required"`
}

const (
	// minSecret is how many bytes a secret has at least: those of a hash of HS256
	// (RFC 7518 section 3.2).
	minSecret = 32
	maxLeeway = 5 * time.Minute
)

// validate reports problems by their path below `jwt`. It never repeats the secret.
func (c *JWTConfig) validate(report func(path, problem string)) {
	c.validateSource(report)
	if n := len(c.Secret); n > 0 && n < minSecret {
		report("secret", fmt.Sprintf("has %d bytes, which can be guessed from any token; give at least %d, as from `openssl rand -hex 32`", n, minSecret))
	}
	if c.JWKSURL != "" {
		u, err := url.Parse(c.JWKSURL)
		if err == nil {
			err = checkKeysURL(u)
		} else {
			err = errors.New("is no URL; write it as in https://login.example.com/.well-known/jwks.json")
		}
		if err != nil {
			report("jwks_url", err.Error())
		}
	}
	if c.JWKSFile != "" {
		if _, err := readKeys(c.JWKSFile); err != nil {
			report("jwks_file", err.Error())
		}
	}
	if c.Leeway < 0 || c.Leeway > maxLeeway {
		report("leeway", fmt.Sprintf("is %v; must be from 0s to 5m", c.Leeway))
	}
	for i, audience := range c.Audience {
		if audience == "" {
			report(fmt.Sprintf("audience[%d]", i), "is empty; leave audience out to take tokens for anybody")
		}
	}
}

// validateSource checks that the keys come from one place.
func (c *JWTConfig) validateSource(report func(path, problem string)) {
	var given []string
	for _, source := range []struct{ key, value string }{{"jwks_url", c.JWKSURL}, {"jwks_file", c.JWKSFile}, {"secret", c.Secret}} {
		if source.value != "" {
			given = append(given, source.key)
		}
	}
	switch {
	case len(given) == 0:
		report("", "has no keys to verify tokens with; give one of jwks_url, jwks_file and secret")
	case len(given) > 1:
		report(given[1], "is given beside "+given[0]+"; keep one of jwks_url, jwks_file and secret")
	}
}

// checkKeysURL says whether keys that come from u can be believed: nobody on the
// way can have changed them.
func checkKeysURL(u *url.URL) error {
	switch {
	case u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return errors.New("is no URL of http or https; write it as in https://login.example.com/.well-known/jwks.json")
	case u.User != nil:
		return errors.New("holds a user, which is not sent; take it out")
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return fmt.Errorf("is plain http to %q: whoever is on the way could put in keys of their own; use https (http is for this machine alone)", u.Hostname())
	}
	return nil
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// readKeys reads a key set from a file. The error says what is wrong with the file.
func readKeys(file string) (*keyring, error) {
	data, err := limiter.ReadSmallFile(file)
	if err != nil {
		return nil, fmt.Errorf("can't be read: %w", err)
	}
	ring, err := parseKeys(data)
	if err == nil {
		err = ring.lack
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return ring, nil
}
