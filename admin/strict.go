package admin

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/valyala/fasthttp"
)

// maxFields is how many header lines a request may have: those that the proxy
// listener takes by default, and what describes a request at /check.
const maxFields = 128

// What fasthttp v1.78.0 lets pass and RFC 9112 does not. Each is a way in which
// a front proxy and this server could disagree about where a request ends.
var (
	errBareLF      = errors.New("a header line ends in a bare line feed")
	errFold        = errors.New("a header line begins with white space (obsolete folding)")
	errFieldName   = errors.New("a header field name is not a token")
	errBothLengths = errors.New("Content-Length and Transfer-Encoding together")
	errCoding      = errors.New("the Transfer-Encoding is not chunked")
	errManyFields  = errors.New("too many header fields")
	errHTTPVersion = errors.New("the HTTP version is not 1.0 or 1.1")
	errTarget      = errors.New("the request target is not a path: write it as in GET /livez")
)

// checkRequest finds what is malformed in the head of a request that fasthttp
// has accepted. A request line that ends in a bare LF can't be seen here; as
// nothing is forwarded from this listener, it misleads no one.
func checkRequest(h *fasthttp.RequestHeader) error {
	switch string(h.Protocol()) {
	case "HTTP/1.1", "HTTP/1.0":
	default:
		return errHTTPVersion
	}
	if err := checkFields(h.RawHeaders()); err != nil {
		return err
	}
	return checkTarget(h.RequestURI())
}

// checkTarget refuses absolute-form, authority-form and asterisk-form targets,
// which have no meaning here, and bytes that RFC 9112 keeps out of targets.
func checkTarget(target []byte) error {
	if len(target) == 0 || target[0] != '/' {
		return errTarget
	}
	for _, c := range target {
		if c <= ' ' || c == 0x7f || c == '#' {
			return fmt.Errorf("the request target holds the byte %#02x: write it as %%%02X", c, c)
		}
	}
	return nil
}

// checkFields walks over a header block as it came, up to its empty line.
func checkFields(raw []byte) error {
	length, coding := false, false
	for n := 0; len(raw) > 0; n++ {
		line, rest, err := cutLine(raw)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		if n == maxFields {
			return errManyFields
		}
		name, value, err := cutField(line)
		if err != nil {
			return err
		}
		length = length || equalFold(name, "Content-Length")
		if equalFold(name, "Transfer-Encoding") {
			coding = true
			if !equalFold(bytes.Trim(value, " \t"), "chunked") {
				return errCoding
			}
		}
		raw = rest
	}
	if length && coding {
		return errBothLengths
	}
	return nil
}

func cutLine(raw []byte) (line, rest []byte, err error) {
	line, rest, found := bytes.Cut(raw, []byte("\n"))
	line, crlf := bytes.CutSuffix(line, []byte("\r"))
	if found && !crlf {
		return nil, nil, errBareLF
	}
	return line, rest, nil
}

func cutField(line []byte) (name, value []byte, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return nil, nil, errFold
	}
	name, value, found := bytes.Cut(line, []byte(":"))
	if !found || !isToken(name) {
		return nil, nil, errFieldName
	}
	return name, value, nil
}

// isToken says whether s is a token (RFC 9110 section 5.6.2).
func isToken(s []byte) bool {
	for _, c := range s {
		alnum := c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
		if !alnum && bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) < 0 {
			return false
		}
	}
	return len(s) > 0
}

// equalFold compares in ASCII, whatever the case.
func equalFold(s []byte, name string) bool {
	return len(s) == len(name) && bytes.EqualFold(s, []byte(name))
}
