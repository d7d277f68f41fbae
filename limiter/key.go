package limiter

import (
	"crypto/sha256"
	"encoding/base64"
)

// Keys look like this, with every part escaped by appendPart:
//
//	<prefix>:{<user>}:<resource>           the one limit of a resource
//	<prefix>:{<user>}:<resource>:<limit>   one of several
//	<prefix>:{:<resource>}:<limit>         a limit that all users share
//	<prefix>:{<user>}!<resource>:<key>     an idempotency key
//	<prefix>:{!<word>}...                  what belongs to no user
//
// The braces are the hash tag of Redis Cluster: what a user has is in one
// slot. A part holds none of the bytes around it, so two keys are equal only
// if all parts are. Keys are short because Redis keeps each of them: of up to 30
// bytes, as with a user of 20 and a resource of 4, a bucket takes 16 less.

// maxPart is how long an escaped part may be before its hash stands for it.
const maxPart = 64

// plainBytes are the bytes that stay as they are in a part.
var plainBytes = func() (plain [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.@=+~-" {
		plain[c] = true
	}
	return plain
}()

// appendPart appends text so that no other text looks the same: other bytes
// than plainBytes as %XX, and text that gets too long as # and a hash.
func appendPart[T string | []byte](dst []byte, text T) []byte {
	if isPlain(text) {
		return append(dst, text...)
	}
	start := len(dst)
	for i := range len(text) {
		c := text[i]
		if plainBytes[c] {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		}
		if len(dst)-start > maxPart {
			return appendHash(dst[:start], text)
		}
	}
	return dst
}

// isPlain says whether text stays as it is.
func isPlain[T string | []byte](text T) bool {
	if len(text) > maxPart {
		return false
	}
	for i := range len(text) {
		if !plainBytes[text[i]] {
			return false
		}
	}
	return true
}

// appendHash appends # and 128 bits of SHA-256, in which nobody can find a
// collision on purpose.
func appendHash[T string | []byte](dst []byte, text T) []byte {
	sum := sha256.Sum256([]byte(text))
	dst = append(dst, '#')
	return base64.RawURLEncoding.AppendEncode(dst, sum[:16])
}

// appendUserTag appends the part of a key that names the user. For the empty one
// it is an escape of nothing: Redis takes {} for no tag at all.
func (l *Limiter) appendUserTag(dst, user []byte) []byte {
	dst = append(dst, l.prefix...)
	dst = append(dst, ":{"...)
	if len(user) == 0 {
		dst = append(dst, '%')
	}
	return append(appendPart(dst, user), '}')
}

// appendResourceTag appends the start of a key that all users share.
func (l *Limiter) appendResourceTag(dst, part []byte) []byte {
	dst = append(dst, l.prefix...)
	dst = append(dst, ":{:"...)
	dst = append(dst, part...)
	return append(dst, '}')
}

// fillKeys sets the keys of w's Spend for a user's request to a resource.
func (l *Limiter) fillKeys(w *work, res *resource, req *Request) {
	w.buf = l.appendUserTag(w.buf[:0], req.User)
	tag := w.buf
	w.spend.Keys = w.spend.Keys[:0]
	for i := range res.rules.limits {
		start := len(w.buf)
		if res.rules.limits[i].Scope == PerResource {
			w.buf = l.appendResourceTag(w.buf, res.part)
		} else {
			w.buf = append(append(append(w.buf, tag...), ':'), res.part...)
		}
		w.buf = append(w.buf, res.rules.suffixes[i]...)
		w.spend.Keys = append(w.spend.Keys, w.buf[start:len(w.buf):len(w.buf)])
	}
	w.spend.IdempotencyKey = nil
	if len(req.IdempotencyKey) > 0 {
		start := len(w.buf)
		w.buf = append(append(append(w.buf, tag...), '!'), res.part...)
		w.buf = appendPart(append(w.buf, ':'), req.IdempotencyKey)
		w.spend.IdempotencyKey = w.buf[start:]
	}
}
