package proxy

import (
	"bytes"
	"slices"
)

// neverTrailers are the fields that a trailer may not hold, in lower case: who
// takes up such a field at the end has decided without it before, and who merges it
// into the head may be led astray (RFC 9110 section 6.5.1). The hop-by-hop and framing
// fields are in isHopByHop.
var neverTrailers = []string{
	"age", "authentication-info", "authorization", "cache-control", "content-encoding", "content-location", "content-range",
	"content-security-policy", "content-type", "cookie", "date", "etag", "expect", "expires", "host", "last-modified",
	"location", "max-forwards", "pragma", "proxy-authentication-info", "proxy-status", "range", "ratelimit", "ratelimit-policy",
	"retry-after", "set-cookie", "strict-transport-security", "vary", "warning", "www-authenticate", "x-request-id",
}

// neverTrailerPrefixes begin names of whole families that no trailer may hold:
// conditions, what browsers grant by, forwarding fields, and our own limits.
var neverTrailerPrefixes = []string{"if-", "access-control-", "x-forwarded-", "x-ratelimit-"}

// mayTrail says whether a trailer field of this name may be passed on.
func mayTrail(name []byte) bool {
	if isHopByHop(name) || bytes.IndexByte(name, '_') >= 0 { // CGI's readers take an underscore for a dash
		return false
	}
	for _, prefix := range neverTrailerPrefixes {
		if len(name) >= len(prefix) && equalFold(name[:len(prefix)], prefix) {
			return false
		}
	}
	return !slices.ContainsFunc(neverTrailers, func(never string) bool { return equalFold(name, never) })
}

// announces says whether the head named the trailer field and it may be passed on.
func (in *incoming) announces(name []byte, dropped *nominations) bool {
	if !mayTrail(name) || dropped.has(name) {
		return false
	}
	for i := range in.fields {
		if f := &in.fields[i]; equalFold(f.name, "Trailer") && lists(f.value, name) {
			return true
		}
	}
	return false
}

// collectTrailers fills in.trailers from the lines that the decoder kept and checked.
func (in *incoming) collectTrailers() {
	dropped := nominatedBy(in.fields)
	for rest := in.chunks.kept; len(rest) > 0; {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte{':'})
		if ok && in.announces(name, &dropped) {
			in.trailers = append(in.trailers, field{name, trimSpace(value)})
		}
	}
}

// appendTrailerNames appends those names that the head announced as trailer
// fields and that may be passed on, as the value of a Trailer field; nothing if there
// are none. Not every one of them must come.
func (in *incoming) appendTrailerNames(dst []byte) []byte {
	if in.length != lengthChunked || !in.framing.trailer {
		return dst
	}
	dropped, start := nominatedBy(in.fields), len(dst)
	for i := range in.fields {
		if !equalFold(in.fields[i].name, "Trailer") {
			continue
		}
		for list := in.fields[i].value; len(list) > 0; {
			var name []byte
			name, list, _ = bytes.Cut(list, []byte{','})
			if name = trimSpace(name); !isToken(name) || !mayTrail(name) || dropped.has(name) {
				continue
			}
			if len(dst) > start {
				dst = append(dst, ", "...)
			}
			dst = append(dst, name...)
		}
	}
	return dst
}
