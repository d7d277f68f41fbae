package proxy

import "bytes"

// This file finds what rules read of a request: a header field, a query
// parameter, a cookie. What servers would find differently is the client's
// fault and refused, so that nobody is counted as somebody whom the upstream
// does not see. Only names that a rule reads are looked at; the rest of a
// request may be as odd as it likes.

// maxParameters is how many query parameters a request may have where a rule
// reads one: servers ignore those behind their own bound, mostly 1000.
const maxParameters = 1000

// header is the value of the one field of that name. Several make it
// ambiguous which of them the upstream would read; so do X_Api_Key and
// X.Api.Key for X-Api-Key, which CGI and WSGI servers take for one field. One that
// Connection names would not reach the upstream.
func (r *request) header(name string) ([]byte, error) {
	var value []byte
	seen := false
	for i := range r.fields {
		f := &r.fields[i]
		if !resembles(f.name, name) {
			continue
		}
		switch {
		case !equalFold(f.name, name):
			return nil, badRequest("header field " + string(f.name) + " is " + name + " to some servers")
		case seen:
			return nil, badRequest("header field " + name + " is there more than once")
		}
		value, seen = f.value, true
	}
	if !seen {
		return nil, nil
	}
	return value, r.checkForwarded(name)
}

// checkForwarded refuses r if Connection takes the field of that name away.
func (r *request) checkForwarded(name string) error {
	if dropped := nominatedBy(r.fields); dropped.some && dropped.has([]byte(name)) {
		return badRequest("Connection names the header field " + name)
	}
	return nil
}

// resembles compares names of header fields as CGI does: whatever the case,
// and what is no letter or digit is all the same.
func resembles(a []byte, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i, c := range a {
		if c != b[i] && lowerByte(c) != lowerByte(b[i]) && (isAlphanumeric(c) || isAlphanumeric(b[i])) {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || lowerByte(c) >= 'a' && lowerByte(c) <= 'z'
}

// parameter is the fault of a query parameter that a rule reads.
func parameter(name, fault string) error {
	return badRequest("query parameter " + name + " " + fault)
}

// appendQuery appends the decoded value of the one parameter of that name.
func (r *request) appendQuery(dst []byte, name string) ([]byte, error) {
	dst, _, err := r.findQuery(dst, name)
	return dst, err
}

// findQuery is appendQuery that says whether there is such a parameter.
func (r *request) findQuery(dst []byte, name string) (out []byte, seen bool, err error) {
	start := len(dst)
	if bytes.Count(r.query, []byte{'&'})+bytes.Count(r.query, []byte{';'}) >= maxParameters {
		return dst, false, parameter(name, "is read, but there are more than 1000 parameters")
	}
	for query := r.query; len(query) > 0; {
		var pair []byte
		pair, query, _ = bytes.Cut(query, []byte{'&'})
		key, value, _ := bytes.Cut(pair, []byte{'='})
		match, err := isParameter(key, name)
		if err == nil && bytes.IndexByte(pair, ';') >= 0 {
			err = checkSemicolons(pair, name)
		}
		switch {
		case err != nil:
			return dst[:start], false, err
		case !match:
			continue
		case seen:
			return dst[:start], false, parameter(name, "is there more than once")
		}
		seen = true
		end := len(dst)
		var ok bool
		if dst, ok = appendUnescaped(dst, value); !ok {
			return dst[:start], false, parameter(name, "can't be decoded")
		}
		if bytes.IndexByte(dst[end:], 0) >= 0 {
			return dst[:start], false, parameter(name, "holds a NUL")
		}
	}
	return dst, seen, nil
}

// isParameter says whether key is name once it is decoded. A key that can't be
// decoded, or that only some servers take for name, is an error.
func isParameter(key []byte, name string) (bool, error) {
	var memory [64]byte
	decoded, ok := appendUnescaped(memory[:0], key)
	if !ok {
		return false, parameter(name, "is read, but the name of another can't be decoded")
	}
	if string(decoded) == name {
		return true, nil
	}
	if isMangled(decoded, name) {
		return false, parameter(name, "is there in a spelling that only some servers take for it")
	}
	return false, nil
}

// isMangled says whether some server takes key for name: ASP.NET whatever the
// case; PHP also behind spaces, with _ for what it allows in no variable, and up to a
// bracket, as do those who make lists of name[]; others up to a NUL.
func isMangled(key []byte, name string) bool {
	key = bytes.TrimLeft(key, " ")
	if len(key) < len(name) {
		return false
	}
	for i := range len(name) {
		c := key[i]
		if lowerByte(c) != lowerByte(name[i]) && (name[i] != '_' || c != '.' && c != ' ' && c != '[') {
			return false
		}
	}
	rest := key[len(name):]
	return len(rest) == 0 || rest[0] == '[' || rest[0] == 0
}

// checkSemicolons refuses a pair that holds the parameter if semicolons
// separate parameters, as they do for some servers, or that is the parameter
// and holds one.
func checkSemicolons(pair []byte, name string) error {
	for len(pair) > 0 {
		var part []byte
		part, pair, _ = bytes.Cut(pair, []byte{';'})
		key, _, _ := bytes.Cut(part, []byte{'='})
		match, err := isParameter(key, name)
		if err != nil {
			return err
		}
		if match {
			return parameter(name, "stands beside a semicolon, which separates parameters for some servers")
		}
	}
	return nil
}

// appendUnescaped decodes percent-escapes and + of a query.
func appendUnescaped(dst, s []byte) ([]byte, bool) {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '+':
			dst = append(dst, ' ')
		case '%':
			c, ok := unhex(s[i:])
			if !ok {
				return dst, false
			}
			dst = append(dst, c)
			i += 2
		default:
			dst = append(dst, s[i])
		}
	}
	return dst, true
}

// cookieFault is what is wrong about a cookie that a rule reads.
func cookieFault(name, fault string) error { return badRequest("cookie " + name + " " + fault) }

// appendCookie appends the value of the one cookie of that name, without the
// quotes around it and with its escapes decoded: servers differ in both, and
// what is one user to one of them must be one here. HTTP/2 allows a client to
// send a Cookie field in pieces: they must be joined before (RFC 9113 8.2.3).
func (r *request) appendCookie(dst []byte, name string) ([]byte, error) {
	var all, found []byte
	for i := range r.fields {
		if f := &r.fields[i]; equalFold(f.name, "Cookie") && len(f.value) > 0 {
			if all != nil {
				return dst, cookieFault(name, "is read, but there is more than one Cookie field")
			}
			all = f.value
		}
	}
	seen := false
	for rest := all; len(rest) > 0; {
		var pair []byte
		pair, rest, _ = bytes.Cut(rest, []byte{';'})
		value, match, err := cookieIn(trimSpace(pair), name)
		switch {
		case err != nil:
			return dst, err
		case match && seen:
			return dst, cookieFault(name, "is there more than once")
		case match:
			found, seen = value, true
		}
	}
	if !seen {
		return dst, nil
	}
	if err := r.checkForwarded("Cookie"); err != nil {
		return dst, err
	}
	start := len(dst)
	if dst = appendCookieValue(dst, found); bytes.IndexByte(dst[start:], 0) >= 0 {
		return dst[:start], cookieFault(name, "holds a NUL")
	}
	return dst, nil
}

// cookieIn is the value of the cookie if pair holds it, without quotes. An error: some
// server would find another one in the pair, or the pair in a value before.
func cookieIn(pair []byte, name string) (value []byte, match bool, err error) {
	key, value, _ := bytes.Cut(pair, []byte{'='})
	match = string(key) == name
	value, whole := unquoted(trimSpace(value))
	switch {
	case !whole:
		return nil, false, cookieFault(name, "is read, but a quoted value has no clear end")
	case match && bytes.ContainsAny(value, "\", \t\\"):
		return nil, false, cookieFault(name, "holds a comma, a space, a quote or a backslash")
	case match:
		return value, true, nil
	case hidesCookie(pair, name):
		return nil, false, cookieFault(name, "is there in a spelling that only some servers take for it")
	}
	return nil, false, nil
}

// unquoted takes the quotes off a value that begins with one. False: it does not end with the
// next, so that servers which know quotes read on behind the semicolon.
func unquoted(value []byte) (inner []byte, ok bool) {
	if len(value) == 0 || value[0] != '"' {
		return value, true
	}
	if len(value) < 2 || value[len(value)-1] != '"' {
		return nil, false
	}
	inner = value[1 : len(value)-1]
	return inner, !bytes.ContainsAny(inner, `"\`)
}

// hidesCookie says whether some server finds the cookie in a pair that is
// another one: behind a comma, with space before the equals sign, without a
// name, in another case, or escaped.
func hidesCookie(pair []byte, name string) bool {
	for len(pair) > 0 {
		var part []byte
		part, pair, _ = bytes.Cut(pair, []byte{','})
		key, _, _ := bytes.Cut(bytes.TrimLeft(part, "= \t\""), []byte{'='})
		key = trimSpace(key)
		key = key[:min(len(key), 3*len(name)+3)] // enough for the name, escaped, and what follows it
		var memory [64]byte
		if isMangled(appendCookieValue(memory[:0], key), name) {
			return true
		}
	}
	return false
}

// appendCookieValue decodes the percent-escapes that are whole; + is a plus.
func appendCookieValue(dst, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		c, ok := unhex(s[i:])
		if s[i] != '%' || !ok {
			dst = append(dst, s[i])
			continue
		}
		dst = append(dst, c)
		i += 2
	}
	return dst
}
