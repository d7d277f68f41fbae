package proxy

// upgradeOf is the protocol that a request wants its connection to change to,
// or nil: none, or one that we don't pass on (RFC 9110 section 7.8).
//
// A tunnel to an upstream is blind, so what would be spoken in it must not be
// requests that ought to be limited: h2c and TLS stay out. A list of protocols
// is a choice that nobody needs to have. A request with a body stays as it is, for
// the upstream might take what follows the body for either.
func upgradeOf(r *request) []byte {
	var protocol []byte
	upgrades, asked := 0, false
	for i := range r.fields {
		f := &r.fields[i]
		switch {
		case equalFold(f.name, "Upgrade"):
			upgrades++
			protocol = f.value
		case equalFold(f.name, "Connection"):
			asked = asked || lists(f.value, "upgrade")
		}
	}
	if upgrades != 1 || !asked || r.version != 11 || r.length != 0 || !isProtocol(protocol) {
		return nil
	}
	return protocol
}

// isProtocol says whether s is a name[/version] that may be tunnelled.
func isProtocol(s []byte) bool {
	for i, c := range s {
		if !tokenBytes[c] && (c != '/' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	for _, name := range [...]string{"h2c", "h2", "http/2.0", "http/1.1", "tls/1.0", "tls/1.2", "tls/1.3"} {
		if equalFold(s, name) {
			return false
		}
	}
	return len(s) > 0
}
