package proxy

// Tables of the bytes that RFC 9110 allows in a token and RFC 3986 in a
// registered name. A name has no escapes here: a%2eb would be a.b to those only
// who decode it.
var tokenBytes, hostBytes = func() (token, host [256]bool) {
	for c := '0'; c <= 'z'; c++ {
		alnum := c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a'
		token[c], host[c] = alnum, alnum
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		token[c] = true
	}
	for _, c := range "-._~!$&'()*+;=" {
		host[c] = true
	}
	return token, host
}()

func isHostByte(c byte) bool { return hostBytes[c] }

// isToken says whether s is a token (RFC 9110 section 5.6.2).
func isToken(s []byte) bool {
	for _, c := range s {
		if !tokenBytes[c] {
			return false
		}
	}
	return len(s) > 0
}

// isFieldValue says whether s holds no control byte but tab.
func isFieldValue(s []byte) bool {
	for _, c := range s {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func lowerByte(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

// equalFold compares in ASCII, whatever the case.
func equalFold(a []byte, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i, c := range a {
		if c != b[i] && lowerByte(c) != lowerByte(b[i]) {
			return false
		}
	}
	return true
}

// trimSpace takes spaces and tabs off both ends.
func trimSpace(s []byte) []byte {
	for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// unhex decodes the escape %XX at the start of s.
func unhex(s []byte) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	hi, ok1 := hexDigit(s[1])
	lo, ok2 := hexDigit(s[2])
	return hi<<4 | lo, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case lowerByte(c) >= 'a' && lowerByte(c) <= 'f':
		return lowerByte(c) - 'a' + 10, true
	}
	return 0, false
}
