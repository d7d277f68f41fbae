package proxy

import (
	"crypto/sha256"
	"sync"
	"time"
)

// verifiedToken is what was read of a token that verified. It is not changed.
type verifiedToken struct {
	ring        *keyring     // of the keys that it was verified with
	from, until int64        // when it may be served without another look, in Unix nanoseconds; until is not part of it
	values      []claimValue // by the index of jwtVerifier.claims
}

// maxCached is how long a token is served without another look, at most.
const maxCached = 5 * time.Minute

// setLife says from when until when t may be served from the cache, and whether
// that is now. No leeway counts: in it a token is verified each time.
//
// It begins with now and not with nbf, so that a clock that is set back does not
// make it longer.
func (t *verifiedToken) setLife(claims tokenClaims, now time.Time) bool {
	until := now.Add(maxCached)
	if exp, _ := claims.GetExpirationTime(); exp != nil && exp.Before(until) {
		until = exp.Time
	}
	t.from, t.until = now.UnixNano(), until.UnixNano()
	nbf, _ := claims.GetNotBefore()
	return t.from < t.until && (nbf == nil || !now.Before(nbf.Time))
}

// A full shard forgets any one of its tokens for each new one: to know which is
// used least would cost every request something, and what is forgotten wrongly costs one
// verification. Only tokens that verified are here, so that a flood of bad ones forgets none.
const (
	cacheShards    = 16
	tokensPerShard = 625 // 10,000 in all
)

// tokenCache keeps what verified tokens said, by the SHA-256 of the token: not the
// tokens themselves. The zero value is empty; it is safe for concurrent use.
type tokenCache struct{ shards [cacheShards]cacheShard }

type cacheShard struct {
	mu     sync.Mutex // guards tokens
	tokens map[[sha256.Size]byte]*verifiedToken
}

func (c *tokenCache) shard(sum *[sha256.Size]byte) *cacheShard { return &c.shards[sum[0]%cacheShards] }

// find is what was kept of a token, if it may be served at now and was verified
// with ring; else nil.
func (c *tokenCache) find(sum *[sha256.Size]byte, ring *keyring, now int64) *verifiedToken {
	s := c.shard(sum)
	s.mu.Lock()
	t := s.tokens[*sum]
	s.mu.Unlock()
	if t == nil || t.ring != ring || now < t.from || now >= t.until {
		return nil
	}
	return t
}

// keep adds a token, or replaces it.
func (c *tokenCache) keep(sum *[sha256.Size]byte, t *verifiedToken) {
	s := c.shard(sum)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens == nil {
		s.tokens = map[[sha256.Size]byte]*verifiedToken{}
	}
	if _, has := s.tokens[*sum]; !has && len(s.tokens) >= tokensPerShard {
		for one := range s.tokens {
			delete(s.tokens, one)
			break
		}
	}
	s.tokens[*sum] = t
}
