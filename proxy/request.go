package proxy

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/valyala/fasthttp"
)

// refusal is a fault of the client: the status of the answer, and what is wrong,
// in words for the client's author.
type refusal struct {
	status int
	detail string
}

// Error is the detail that the answer gives.
func (e *refusal) Error() string { return e.detail }

func badRequest(detail string) error { return &refusal{fasthttp.StatusBadRequest, detail} }

func tooLargeHead(l *LimitsConfig) error {
	return &refusal{fasthttp.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the request head is larger than %d bytes", l.HeaderBytes)}
}

func tooManyFields(l *LimitsConfig) error {
	return &refusal{fasthttp.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the request has more than %d header fields", l.HeaderFields)}
}

func tooLongTarget(l *LimitsConfig) error {
	return &refusal{fasthttp.StatusRequestURITooLong, fmt.Sprintf("the request target is longer than %d bytes", l.TargetBytes)}
}

func tooSlowHead(l *LimitsConfig) error {
	return &refusal{fasthttp.StatusRequestTimeout, fmt.Sprintf("the request head did not arrive within %v", l.HeaderTimeout)}
}

func tooSlowBody(l *LimitsConfig) error {
	return &refusal{fasthttp.StatusRequestTimeout, fmt.Sprintf("no more of the request body arrived within %v", l.BodyTimeout)}
}

func tooThinBody(l *LimitsConfig) error {
	return &refusal{fasthttp.StatusRequestTimeout, fmt.Sprintf("the request body arrives at less than %d bytes per second", l.MinBodyRate)}
}

func tooLargeBody(l *LimitsConfig) error {
	return &refusal{fasthttp.StatusRequestEntityTooLarge, fmt.Sprintf("the request body is larger than %d bytes", l.BodyBytes)}
}

// request is what the rules see of a request: the client's bytes, cut into
// pieces and checked, none of them changed. It is valid until the exchange ends.
type request struct {
	method   []byte
	target   []byte // as the client sent it, without the authority of an absolute-form
	path     []byte // raw
	query    []byte // raw, without the question mark
	hostport []byte // the Host field, "" if an HTTP/1.0 client sent none
	host     []byte // lower case, without port
	fields   []field
	version  byte // of HTTP: 10, 11 or 20
	secure   bool // came over TLS
	close    bool // the client wants the connection closed after the answer

	length  int64  // of the body: bytes, 0 for none, -1 for chunked
	framed  bool   // the client gave a length or an encoding
	upgrade []byte // the protocol to change to, if the upstream will; see upgradeOf
	expects bool   // the client waits for a word before it sends the body
	peer    netip.Addr
	client  netip.Addr
	trusted bool // the peer's X-Forwarded-* are believed
	prefix6 int
	unseen  bool           // it is asked about: nothing is counted for it
	token   *verifiedToken // what the client's token says; nil: it showed none, or nobody reads it
	key     *apiKey        // whose API key it showed; nil as for token

	route    *route
	way      *way         // to the route
	segments [][]byte     // of the path, decoded
	roots    []*pathNode  // of the routes for host
	queries  []queryValue // those that matching reads; see router.queries

	scratch []byte // memory of host, queries and segments
}

// forget drops everything that belongs to the client's bytes, and keeps the memory.
func (r *request) forget() {
	clear(r.fields)
	clear(r.segments)
	clear(r.roots)
	clear(r.queries)
	*r = request{fields: r.fields[:0], segments: r.segments[:0], roots: r.roots[:0], queries: r.queries[:0], scratch: r.scratch[:0]}
}

// parseHead reads a request head of HTTP/1.x, from the request line to the
// empty line. What two parsers might read in two ways is refused.
func (r *request) parseHead(head []byte, l *LimitsConfig) error {
	end := bytes.IndexByte(head, '\n')
	if end < 1 || head[end-1] != '\r' {
		return badRequest("the request line does not end in CRLF")
	}
	target, err := r.parseLine(head[:end-1])
	if err != nil {
		return err
	}
	if err := r.parseFields(head[end+1:], l); err != nil {
		return err
	}
	if err := r.parseFraming(); err != nil {
		return err
	}
	if len(target) > l.TargetBytes {
		return tooLongTarget(l)
	}
	if err := r.parseTarget(target); err != nil {
		return err
	}
	return r.parseHost()
}

// parseLine reads METHOD SP target SP HTTP/1.x, with exactly one space each.
func (r *request) parseLine(line []byte) (target []byte, err error) {
	method, rest, _ := bytes.Cut(line, []byte{' '})
	target, version, ok := bytes.Cut(rest, []byte{' '})
	switch {
	case !ok || !isToken(method):
		return nil, badRequest("the request line is not a method, a target and HTTP/1.1")
	case string(method) == "CONNECT":
		return nil, errConnect
	case string(version) == "HTTP/1.1":
		r.version = 11
	case string(version) == "HTTP/1.0":
		r.version = 10
	case len(version) == len("HTTP/1.1") && string(version[:5]) == "HTTP/" && isDigit(version[5]) && version[6] == '.' && isDigit(version[7]):
		return nil, &refusal{fasthttp.StatusHTTPVersionNotSupported, "only HTTP/1.1 and HTTP/1.0 are spoken here, and HTTP/2 over TLS"}
	default:
		return nil, badRequest("the request line does not end in HTTP/1.1")
	}
	r.method = method
	return target, nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// parseFields cuts the lines of a head into fields. It refuses bare LF, folded
// lines, names that are no token, and control bytes in values.
func (r *request) parseFields(raw []byte, l *LimitsConfig) error {
	r.fields = r.fields[:0]
	for len(raw) > 0 {
		end := bytes.IndexByte(raw, '\n')
		if end < 1 || raw[end-1] != '\r' {
			return badRequest("a header line does not end in CRLF")
		}
		line := raw[:end-1]
		raw = raw[end+1:]
		if len(line) == 0 {
			break
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 1 || !isToken(line[:colon]) {
			return badRequest("a header line has no proper field name")
		}
		value := trimSpace(line[colon+1:])
		if !isFieldValue(value) {
			return badRequest("a header field holds control characters")
		}
		if len(r.fields) == l.HeaderFields {
			return tooManyFields(l)
		}
		r.fields = append(r.fields, field{line[:colon], value})
	}
	return nil
}

// framers counts the fields that say where a request belongs and ends.
type framers struct{ hosts, lengths, codings, options int }

// maxConnectionOptions bounds the names in Connection, for each is compared with each field.
const maxConnectionOptions = 100

// maxHostBytes is the longest name that DNS has.
const maxHostBytes = 253

// parseFraming finds the one length of the body and the one Host.
func (r *request) parseFraming() error {
	r.length, r.framed, r.hostport, r.close = 0, false, nil, r.version == 10
	var seen framers
	for i := range r.fields {
		f := &r.fields[i]
		switch len(f.name) {
		case len("Host"), len("Trailer"), len("Connection"), len("Content-Length"), len("Transfer-Encoding"):
			if err := r.parseFramer(f, &seen); err != nil {
				return err
			}
		}
	}
	if seen.lengths+seen.codings > 1 || seen.codings > 0 && r.version == 10 {
		return badRequest("the length of the body is ambiguous")
	}
	if seen.hosts > 1 || seen.hosts == 0 && r.version == 11 {
		return badRequest("there must be one Host field")
	}
	if seen.codings > 0 {
		r.length = -1
	}
	r.framed = seen.lengths+seen.codings > 0
	return nil
}

// parseFramer reads f if it is a field that seen counts, or is about the connection.
func (r *request) parseFramer(f *field, seen *framers) error {
	switch {
	case equalFold(f.name, "Host"):
		seen.hosts++
		r.hostport = f.value
	case equalFold(f.name, "Content-Length"):
		seen.lengths++
		n, err := strconv.ParseUint(string(f.value), 10, 63)
		if err != nil || f.value[0] == '+' {
			return badRequest("Content-Length is no number")
		}
		r.length = int64(n)
	case equalFold(f.name, "Transfer-Encoding"):
		seen.codings++
		if !equalFold(f.value, "chunked") {
			return badRequest("Transfer-Encoding other than chunked")
		}
	case equalFold(f.name, "Connection"):
		r.close = r.close || lists(f.value, []byte("close"))
		if seen.options += 1 + bytes.Count(f.value, []byte{','}); seen.options > maxConnectionOptions {
			return badRequest("Connection lists more than 100 options")
		}
	case equalFold(f.name, "Trailer") && announcesFraming(f.value):
		return badRequest("Trailer announces a field that frames the body")
	case resembles(f.name, "Content-Length"), resembles(f.name, "Transfer-Encoding"):
		// To CGI and WSGI servers this is another length.
		return badRequest("a field that frames the body is spelled with another sign than a dash")
	}
	return nil
}

// announcesFraming says whether Trailer lists what no trailer may be (RFC 9110
// section 6.5.1). net/http refuses it too.
func announcesFraming(list []byte) bool {
	return lists(list, []byte("Content-Length")) || lists(list, []byte("Transfer-Encoding")) || lists(list, []byte("Trailer"))
}

// parseTarget splits the target and takes the authority off an absolute-form,
// which must be the one that Host names.
func (r *request) parseTarget(target []byte) error {
	for _, c := range target {
		if c <= ' ' || c == 0x7f || c == '#' {
			return badRequest("the request target holds a space, a control character or a fragment")
		}
	}
	if len(target) > 0 && target[0] != '/' {
		var err error
		if target, err = r.parseAbsolute(target); err != nil {
			return err
		}
	}
	if len(target) == 0 {
		return badRequest("the request target is empty")
	}
	r.target = target
	r.path, r.query, _ = bytes.Cut(target, []byte{'?'})
	return nil
}

func (r *request) parseAbsolute(target []byte) ([]byte, error) {
	if len(target) == 1 && target[0] == '*' && string(r.method) == "OPTIONS" {
		return target, nil
	}
	scheme := "http://"
	if r.secure {
		scheme = "https://"
	}
	if len(target) < len(scheme) || !equalFold(target[:len(scheme)], scheme) {
		return nil, badRequest("the request target is neither a path nor a URL of this listener's scheme")
	}
	rest := target[len(scheme):]
	slash := bytes.IndexAny(rest, "/?")
	authority := rest
	if slash >= 0 {
		authority = rest[:slash]
	}
	if !equalFold(authority, string(r.hostport)) {
		return nil, badRequest("the request target names another host than the Host field")
	}
	if slash < 0 || rest[slash] != '/' {
		return nil, badRequest("the request target has no path")
	}
	return rest[slash:], nil
}

// parseHost checks Host and keeps its name in lower case.
func (r *request) parseHost() error {
	r.host = nil
	if len(r.hostport) == 0 {
		if r.version == 10 {
			return nil
		}
		return badRequest("the Host field is empty")
	}
	name, ok := splitHost(r.hostport)
	name = bytes.TrimSuffix(name, []byte(".")) // the same host, written as absolute
	if !ok || len(name) == 0 || len(name) > maxHostBytes || name[0] == '.' || bytes.HasSuffix(name, []byte(".")) {
		return badRequest("the Host field is no host with an optional port")
	}
	start := len(r.scratch)
	r.scratch = lowerFilter(append(r.scratch, name...), start)
	r.host = r.scratch[start:]
	return nil
}

// splitHost takes the port off host[:port]; the host may be [IPv6], without
// a zone, which means something on one machine only.
func splitHost(hostport []byte) (host []byte, ok bool) {
	host = hostport
	if hostport[0] == '[' {
		end := bytes.IndexByte(hostport, ']')
		if end < 0 {
			return nil, false
		}
		if addr, err := netip.ParseAddr(string(hostport[1:end])); err != nil || !addr.Is6() || addr.Zone() != "" {
			return nil, false
		}
		return hostport[:end+1], isPort(hostport[end+1:])
	}
	if colon := bytes.IndexByte(hostport, ':'); colon >= 0 {
		host = hostport[:colon]
		if !isPort(hostport[colon:]) {
			return nil, false
		}
	}
	for _, c := range host {
		if !isHostByte(c) {
			return nil, false
		}
	}
	return host, len(host) > 0
}

// isPort says whether s is empty or a colon and a port.
func isPort(s []byte) bool {
	if len(s) == 0 {
		return true
	}
	if s[0] != ':' || len(s) > 6 {
		return false
	}
	n := 0
	for _, c := range s[1:] {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}
