package simulate

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// parseAddr reads an IP address without zone, like netip.ParseAddr, which wants a
// string and so an allocation for each line. An IPv4 address in IPv6 is the IPv4 one.
func parseAddr(s []byte) (netip.Addr, bool) {
	if a, ok := parse4(s); ok {
		return netip.AddrFrom4(a), true
	}
	return parse6(s)
}

// parseClient reads an address that may have a port, brackets or a zone.
func parseClient(s []byte) (netip.Addr, bool) {
	if len(s) > 0 && s[0] == '[' {
		end := bytes.IndexByte(s, ']')
		if end < 0 {
			return netip.Addr{}, false
		}
		s = s[1:end]
	} else if colon := bytes.IndexByte(s, ':'); colon >= 0 && bytes.LastIndexByte(s, ':') == colon {
		s = s[:colon]
	}
	if zone := bytes.IndexByte(s, '%'); zone >= 0 {
		s = s[:zone]
	}
	return parseAddr(s)
}

// isNowhere says of a client's text that it stands for one without an address:
// nothing at all, or what nginx writes for a Unix socket.
func isNowhere(s []byte) bool { return len(s) == 0 || isDash(s) || string(s) == "unix:" }

func parse4(s []byte) (a [4]byte, ok bool) {
	part, digits, value := 0, 0, 0
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9':
			if digits > 0 && value == 0 { // a leading zero is octal to some
				return a, false
			}
			value = value*10 + int(c-'0')
			if digits++; value > 255 {
				return a, false
			}
		case c == '.' && digits > 0 && part < 3:
			a[part] = byte(value)
			part, digits, value = part+1, 0, 0
		default:
			return a, false
		}
	}
	if part != 3 || digits == 0 {
		return a, false
	}
	a[3] = byte(value)
	return a, true
}

func parse6(s []byte) (netip.Addr, bool) {
	var a [16]byte
	at, gap := 0, -1 // bytes so far; where :: stands for zeros
	if len(s) >= 2 && s[0] == ':' && s[1] == ':' {
		gap, s = 0, s[2:]
	}
	for len(s) > 0 {
		n, rest, more := putGroup(a[at:], s)
		if n == 0 {
			return netip.Addr{}, false
		}
		if at, s = at+n, rest; !more {
			break
		}
		if len(s) == 0 || s[0] == ':' && gap >= 0 {
			return netip.Addr{}, false
		}
		if s[0] == ':' {
			gap, s = at, s[1:]
		}
	}
	if gap < 0 && at < 16 || gap >= 0 && at == 16 {
		return netip.Addr{}, false
	}
	if gap >= 0 {
		copy(a[16-(at-gap):], a[gap:at])
		clear(a[gap : 16-(at-gap)])
	}
	return netip.AddrFrom16(a).Unmap(), true
}

// putGroup writes the first group of s, or the IPv4 address that ends it, to a, and says
// how many bytes that was; 0 if it can't. more says that a colon was behind it.
func putGroup(a, s []byte) (n int, rest []byte, more bool) {
	part, rest, more := bytes.Cut(s, []byte{':'})
	if v4, ok := parse4(part); ok && !more && len(a) >= 4 {
		return copy(a, v4[:]), nil, false
	}
	group, ok := parseGroup(part)
	if !ok || len(a) < 2 {
		return 0, nil, false
	}
	binary.BigEndian.PutUint16(a, group)
	return 2, rest, more
}

// parseGroup reads one to four hexadecimal digits.
func parseGroup(s []byte) (uint16, bool) {
	if len(s) == 0 || len(s) > 4 {
		return 0, false
	}
	var v uint16
	for _, c := range s {
		d, ok := hexDigit(c)
		if !ok {
			return 0, false
		}
		v = v<<4 | uint16(d)
	}
	return v, true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
