package proxy

import (
	"bytes"
	"encoding/base64"
)

var errBasic = badRequest("Authorization: Basic does not hold the base64 of a user name, a colon and a password")

// appendBasicUser appends the user name of Authorization: Basic (RFC 7617). The
// password is nobody's business here: the upstream checks it.
func (r *request) appendBasicUser(dst []byte) ([]byte, error) {
	encoded, given, err := r.credentials("Basic")
	if err != nil || !given {
		return dst, err
	}
	start := len(dst)
	decoded, err := base64.StdEncoding.AppendDecode(dst, encoded)
	if err != nil {
		return dst, errBasic
	}
	pair := decoded[start:]
	colon := bytes.IndexByte(pair, ':')
	if colon < 0 {
		return dst, errBasic
	}
	clear(pair[colon:]) // the memory is used again
	if bytes.ContainsFunc(pair[:colon], isControl) {
		return dst, errBasic
	}
	return decoded[:start+colon], nil
}

// isControl says whether a user name must not hold c (RFC 7617 section 2).
func isControl(c rune) bool { return c < ' ' || c == 0x7f }
