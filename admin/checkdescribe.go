package admin

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/valyala/fasthttp"
)

// description is what fields of a question at /check say about the described
// request. Proxies have no common name for any of it, and a client may have sent
// names that its proxy doesn't use; so there is no order of precedence: all that
// describe the same must say the same, or the question is refused.
type description struct {
	method, target, host, proto []byte
	own                         []byte // Host of the question itself, of which fasthttp takes one alone
}

// describer is a field that describes. It adds to d what the value says.
type describer struct {
	name string
	take func(d *description, value []byte) error
}

// describers are the fields that never belong to the described request.
var describers = []describer{
	{"X-Forwarded-Method", func(d *description, v []byte) error { return agree(&d.method, v, "method") }},
	{"X-Original-Method", func(d *description, v []byte) error { return agree(&d.method, v, "method") }},
	{"X-Forwarded-Uri", func(d *description, v []byte) error { return agree(&d.target, v, "URI") }},
	{"X-Original-URI", func(d *description, v []byte) error { return agree(&d.target, v, "URI") }},
	{"X-Original-URL", (*description).takeURL},
	{"X-Forwarded-Host", func(d *description, v []byte) error { return agree(&d.host, v, "host") }},
	{"X-Forwarded-Proto", (*description).takeProto},
}

// describerNamed is nil for a field that describes nothing.
func describerNamed(name []byte) *describer {
	if len(name) < len("X-Original-URI") || name[0]|0x20 != 'x' {
		return nil
	}
	for i := range describers {
		if equalFold(name, describers[i].name) {
			return &describers[i]
		}
	}
	return nil
}

// agree sets *what, or checks that it is the same as before. An empty value says
// nothing.
func agree(what *[]byte, value []byte, name string) error {
	switch {
	case len(value) == 0:
	case *what == nil:
		*what = value
	case !bytes.Equal(*what, value):
		return fmt.Errorf("two fields name different things as the described request's %s: let the proxy remove from the client's request what it doesn't set itself", name)
	}
	return nil
}

// takeURL takes scheme://host/target, or a target alone.
func (d *description) takeURL(value []byte) error {
	scheme, rest, whole := bytes.Cut(value, []byte("://"))
	if !whole || len(value) > 0 && value[0] == '/' {
		return agree(&d.target, value, "URI")
	}
	slash := bytes.IndexAny(rest, "/?")
	if slash < 1 || rest[slash] != '/' {
		return errors.New("X-Original-URL is neither a URL like https://host/path nor a path")
	}
	if err := d.takeProto(scheme); err != nil {
		return err
	}
	if err := agree(&d.host, rest[:slash], "host"); err != nil {
		return err
	}
	return agree(&d.target, rest[slash:], "URI")
}

var (
	protoHTTP  = []byte("http")
	protoHTTPS = []byte("https")
)

// takeProto takes the scheme; those of WebSocket are what they run over.
func (d *description) takeProto(value []byte) error {
	switch {
	case len(value) == 0:
		return nil
	case equalFold(value, "http"), equalFold(value, "ws"):
		value = protoHTTP
	case equalFold(value, "https"), equalFold(value, "wss"):
		value = protoHTTPS
	default:
		return errors.New("X-Forwarded-Proto is neither http nor https")
	}
	return agree(&d.proto, value, "scheme")
}

var errNoURI = errors.New("which request? Send its path and query as X-Forwarded-Uri or X-Original-URI, or behind /check as in /check/path, and its method as X-Forwarded-Method")

// describe reads the question into x.check.asked. What it can't take at its word is
// an error: it would decide about another request than the one that passes.
func (x *exchange) describe() error {
	d := &x.check.told
	if x.rest != nil {
		// The question's own line describes: fields may only repeat it.
		d.target = x.ctx.Request.Header.RequestURI()[len(checkPath):]
		d.method = x.ctx.Request.Header.Method()
	}
	raw := x.ctx.Request.Header.RawHeaders()
	options := countOptions(raw)
	if options > maxOptions {
		return errManyOptions
	}
	for name, value, rest, ok := nextField(raw); ok; name, value, rest, ok = nextField(rest) {
		if err := x.takeField(d, Field{name, value}); err != nil {
			return err
		}
		if options > 0 && isNominated(raw, name) {
			x.check.asked.drop(name)
		}
	}
	return x.conclude(d)
}

// takeField reads a field that describes, or is the described request's own.
func (x *exchange) takeField(d *description, f Field) error {
	if by := describerNamed(f.Name); by != nil {
		return by.take(d, f.Value)
	}
	switch {
	case equalFold(f.Name, fasthttp.HeaderHost):
		d.own = f.Value
	case isOfQuestion(f.Name):
	default:
		x.check.asked.Fields = append(x.check.asked.Fields, f)
	}
	return nil
}

// conclude fills in what no field said.
func (x *exchange) conclude(d *description) error {
	a := &x.check.asked
	if d.target == nil {
		return errNoURI
	}
	a.Method, a.Target, a.Host, a.Peer = d.method, d.target, d.host, x.peer
	if a.Method == nil {
		a.Method = x.ctx.Request.Header.Method()
	}
	if a.Host == nil {
		a.Host = d.own
	}
	a.Secure = bytes.Equal(d.proto, protoHTTPS)
	if d.proto == nil {
		a.Secure = x.ctx.IsTLS()
	}
	return nil
}

// drop takes the field that was added last away again, if it is of that name.
func (a *Described) drop(name []byte) {
	if n := len(a.Fields); n > 0 && bytes.EqualFold(a.Fields[n-1].Name, name) {
		a.Fields = a.Fields[:n-1]
	}
}

// isOfQuestion says whether a field is about the question or its connection: the
// proxy that asks sent it, for itself.
func isOfQuestion(name []byte) bool {
	switch len(name) {
	case 2:
		return equalFold(name, "TE")
	case 7:
		return equalFold(name, "Trailer") || equalFold(name, "Upgrade")
	case 10:
		return equalFold(name, "Connection") || equalFold(name, "Keep-Alive")
	case 14:
		return equalFold(name, "Content-Length")
	case 16:
		return equalFold(name, "Proxy-Connection")
	case 17:
		return equalFold(name, "Transfer-Encoding") || equalFold(name, fieldCheckToken)
	}
	return false
}

// nextField takes the first field off a header block that checkFields found
// nothing wrong with.
func nextField(raw []byte) (name, value, rest []byte, ok bool) {
	line, rest, _ := bytes.Cut(raw, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	name, value, ok = bytes.Cut(line, []byte(":"))
	return name, bytes.Trim(value, " \t"), rest, ok
}

// maxOptions bounds the names in Connection, for each is compared with each field.
const maxOptions = 100

var errManyOptions = errors.New("Connection lists more than 100 options")

// countOptions is about how many fields Connection names; nearly always none.
func countOptions(raw []byte) (n int) {
	for name, value, rest, ok := nextField(raw); ok; name, value, rest, ok = nextField(rest) {
		if equalFold(name, "Connection") && len(value) > 0 && !equalFold(value, "close") && !equalFold(value, "keep-alive") {
			n += 1 + bytes.Count(value, []byte(","))
		}
	}
	return n
}

// isNominated says whether a Connection field names the field (RFC 9110 section
// 7.6.1): it is then for this connection only.
func isNominated(raw, field []byte) bool {
	for name, value, rest, ok := nextField(raw); ok; name, value, rest, ok = nextField(rest) {
		if !equalFold(name, "Connection") {
			continue
		}
		for len(value) > 0 {
			var option []byte
			option, value, _ = bytes.Cut(value, []byte(","))
			if bytes.EqualFold(bytes.Trim(option, " \t"), field) {
				return true
			}
		}
	}
	return false
}
