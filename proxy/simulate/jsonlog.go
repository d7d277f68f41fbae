package simulate

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/valyala/fastjson"

	"github.com/r8limiter/r8limiter/limiter"
)

// The JSON formats. What the parsers return lies in the memory of the fastjson.Parser,
// or of scratch, and is valid until the next line.

var (
	errNoJSON          = errors.New("is no JSON object")
	errNoEnvoyTime     = errors.New("the line begins with no time like [2006-01-02T15:04:05.000Z]")
	errNoEnvoyFields   = errors.New(`there is no "forwarded-for" "agent" "id" "authority" "upstream" at the end`)
	errForwarded       = errors.New("the last hop of X-Forwarded-For is no IP address")
	errNoCaddyRequest  = errors.New("there is no request object")
	errCaddyTime       = errors.New("ts is no time")
	errCaddyClient     = errors.New("request.client_ip and request.remote_ip are no IP addresses")
	errEnvoyJSONTime   = errors.New("start_time is no time")
	errEnvoyJSONNames  = errors.New("there is neither a response_code, nor a method and a path beside another of Envoy's names")
	errEnvoyJSONClient = errors.New("downstream_remote_address and the last hop of x_forwarded_for are no IP addresses")
	errOwnTime         = errors.New("time is no time")
	errOwnClient       = errors.New("client_ip is no IP address")
	errCost            = errors.New("the cost is no whole number from 0 to 1000000000")
)

// object parses JSON objects.
type object struct {
	moments moments
	parser  fastjson.Parser
	scratch []byte
}

func (o *object) read(raw []byte) (*fastjson.Value, error) {
	v, err := o.parser.ParseBytes(raw)
	if err != nil || v.Type() != fastjson.TypeObject {
		return nil, errNoJSON
	}
	return v, nil
}

// text is a string as it is, or a number as it is written; nil for anything else.
func (o *object) text(v *fastjson.Value) []byte {
	if v == nil {
		return nil
	}
	switch v.Type() {
	case fastjson.TypeString:
		return v.GetStringBytes()
	case fastjson.TypeNumber:
		start := len(o.scratch)
		o.scratch = v.MarshalTo(o.scratch)
		return o.scratch[start:len(o.scratch):len(o.scratch)]
	}
	return nil
}

// first is the text at the first of the names that has one.
func (o *object) first(v *fastjson.Value, names ...string) []byte {
	for _, name := range names {
		if text := o.text(v.Get(name)); !isNone(text) {
			return text
		}
	}
	return nil
}

// setCost reads what a log has as the cost. Some encoders write 2 as 2.0 or 2e0.
func (l *line) setCost(text []byte) error {
	n, ok := digits(text)
	switch {
	case ok && len(text) > 18: // more than digits reads
		return errCost
	case !ok && len(bytes.Trim(text, "0123456789.eE+-")) == 0:
		f, err := strconv.ParseFloat(string(text), 64)
		n, ok = int64(f), err == nil && f == math.Trunc(f) && math.Abs(f) <= limiter.MaxCost
	}
	if !ok || n < 0 || n > limiter.MaxCost {
		return errCost
	}
	l.cost = n
	return nil
}

// mappedJSON reads objects in which a FieldMap says what is where.
type mappedJSON struct {
	object
	fields *FieldMap
}

func (m *mappedJSON) parse(raw []byte, l *line) error {
	m.scratch = m.scratch[:0]
	v, err := m.read(raw)
	if err != nil {
		return err
	}
	var ok bool
	if l.at, ok = m.moments.read(m.find(v, "time")); !ok {
		return fmt.Errorf("there is no time at %s", m.fields.wanted("time"))
	}
	if !l.setClient(m.find(v, "client_ip")) {
		return fmt.Errorf("the client at %s is no IP address", m.fields.wanted("client_ip"))
	}
	if err := m.setRequest(v, l); err != nil {
		return err
	}
	for i := range m.fields.headers {
		m.addAll(v, &m.fields.headers[i], l)
	}
	for i := range m.fields.claims {
		f := &m.fields.claims[i]
		if text := m.text(v.Get(f.path...)); !isNone(text) {
			l.claims = append(l.claims, named{f.bytes, text})
		}
	}
	l.user, l.resource, l.plan = m.find(v, "user"), m.find(v, "resource"), m.find(v, "plan")
	if cost := m.find(v, "cost"); len(cost) > 0 {
		return l.setCost(cost)
	}
	return nil
}

// setRequest reads the method and target, apart or as one line. Where they are there,
// but empty, what came was no request.
func (m *mappedJSON) setRequest(v *fastjson.Value, l *line) error {
	l.host = m.find(v, "host")
	l.secure = string(m.find(v, "scheme")) == "https"
	method, uri := m.find(v, "method"), m.find(v, "uri")
	if len(method) > 0 && len(uri) > 0 {
		l.method, l.target = method, uri
		return nil
	}
	if request := m.find(v, "request"); request != nil {
		l.setRequest(request)
		return nil
	}
	if method == nil && uri == nil && m.isThere(v, "method") && m.isThere(v, "uri") || m.isThere(v, "request") {
		return nil
	}
	return fmt.Errorf("there is neither a method at %s and a uri at %s, nor a request at %s",
		m.fields.wanted("method"), m.fields.wanted("uri"), m.fields.wanted("request"))
}

// find is the text of what; nil where the line has none, or the dash or the nothing that
// logs write for none.
func (m *mappedJSON) find(v *fastjson.Value, what string) []byte {
	for _, path := range m.fields.paths[what] {
		if text := m.text(v.Get(path...)); !isNone(text) {
			return text
		}
	}
	return nil
}

// isThere says whether a line has a place for what, be it empty.
func (m *mappedJSON) isThere(v *fastjson.Value, what string) bool {
	for _, path := range m.fields.paths[what] {
		if m.text(v.Get(path...)) != nil {
			return true
		}
	}
	return false
}

// addAll adds a header field that may be a list of values.
func (m *mappedJSON) addAll(v *fastjson.Value, f *mapped, l *line) {
	found := v.Get(f.path...)
	if found == nil {
		return
	}
	if found.Type() == fastjson.TypeArray {
		for _, each := range found.GetArray() {
			l.addField(f.bytes, m.text(each))
		}
		return
	}
	l.addField(f.bytes, m.text(found))
}

// caddy reads the access log of Caddy.
type caddy struct{ object }

func (c *caddy) parse(raw []byte, l *line) error {
	c.scratch = c.scratch[:0]
	v, err := c.read(raw)
	if err != nil {
		return err
	}
	r := v.Get("request")
	if r == nil || r.Type() != fastjson.TypeObject {
		if v.Exists("logger") || v.Exists("level") { // Caddy's own messages
			return errSkipped
		}
		return errNoCaddyRequest
	}
	var ok bool
	if l.at, ok = c.moments.read(c.text(v.Get("ts"))); !ok {
		return errCaddyTime
	}
	if !l.setClient(c.first(r, "client_ip", "remote_ip")) {
		return errCaddyClient
	}
	l.method, l.target, l.host = c.text(r.Get("method")), c.text(r.Get("uri")), c.text(r.Get("host"))
	l.secure = r.Exists("tls")
	l.login = dashless(c.text(v.Get("user_id")))
	c.addHeaders(r, l)
	return nil
}

// addHeaders adds the header fields of a request. What Caddy hides is as good as not
// there: it would make one user of all.
func (c *caddy) addHeaders(r *fastjson.Value, l *line) {
	headers := r.GetObject("headers")
	if headers == nil {
		return
	}
	headers.Visit(func(name []byte, values *fastjson.Value) {
		for _, each := range values.GetArray() {
			if value := c.text(each); string(value) != "REDACTED" {
				l.addField(name, value)
			}
		}
	})
}

// envoyJSON reads Envoy's JSON log with the names that its documentation, Istio and
// Envoy Gateway use.
type envoyJSON struct{ object }

func (e *envoyJSON) parse(raw []byte, l *line) error {
	e.scratch = e.scratch[:0]
	v, err := e.read(raw)
	if err != nil {
		return err
	}
	var ok bool
	if l.at, ok = e.moments.read(e.text(v.Get("start_time"))); !ok {
		return errEnvoyJSONTime
	}
	l.method = e.first(v, "method", ":method")
	l.target = e.first(v, "x-envoy-original-path", "x-envoy-origin-path", "path", ":path")
	l.host = e.first(v, "authority", ":authority")
	if !v.Exists("response_code") && (len(l.method) == 0 || len(l.target) == 0 || !hasEnvoyName(v)) {
		return errEnvoyJSONNames
	}
	l.addField(nameUserAgent, e.first(v, "user_agent", "user-agent"))
	l.addField(nameReferer, e.first(v, "referer"))
	l.addField(nameRequestID, e.first(v, "request_id", "x-request-id"))
	if !e.setClient(v, l) {
		return errEnvoyJSONClient
	}
	return nil
}

// hasEnvoyName says whether an object has a name by which it is told from others that
// have a start_time, a method and a path.
func hasEnvoyName(v *fastjson.Value) bool {
	for _, name := range []string{":method", ":path", ":authority", "authority", "x_forwarded_for", "x-forwarded-for", "x-envoy-original-path",
		"x-envoy-origin-path", "downstream_remote_address", "downstream_direct_remote_address", "response_flags", "upstream_host"} {
		if v.Exists(name) {
			return true
		}
	}
	return false
}

// setClient takes who connected as the client: as it is logged, else the last hop of
// X-Forwarded-For, which Envoy appends, else the address that Envoy takes for the client's.
func (e *envoyJSON) setClient(v *fastjson.Value, l *line) bool {
	hops := e.first(v, "x_forwarded_for", "x-forwarded-for")
	if peer := e.first(v, "downstream_direct_remote_address"); len(peer) > 0 {
		l.addField(nameForwardedFor, hops)
		return l.setClient(peer)
	}
	if len(hops) > 0 {
		return l.setForwarded(hops) == nil
	}
	return l.setClient(e.first(v, "downstream_remote_address"))
}

// own reads the log of r8limiter itself. It has neither queries nor header fields nor
// hosts, but what they led to: user, resource, plan and cost.
type own struct{ object }

func (o *own) parse(raw []byte, l *line) error {
	o.scratch = o.scratch[:0]
	v, err := o.read(raw)
	if err != nil {
		return err
	}
	listener := string(v.GetStringBytes("listener"))
	if !v.Exists("status") || listener != "proxy" && listener != "control" { // "serving" and the like
		return errSkipped
	}
	path := o.text(v.Get("path"))
	l.user, l.resource, l.plan = o.text(v.Get("user_id")), o.text(v.Get("resource")), o.text(v.Get("plan"))
	if listener == "control" && string(v.GetStringBytes("endpoint")) != "/check" {
		if string(path) != "/allow" || len(l.user) == 0 {
			return aside(v)
		}
		l.direct = true
		l.replayed = v.GetBool("replayed")
		if status := v.GetInt("status"); string(v.GetStringBytes("decision")) == "error" && status < 500 {
			l.refused = status
		}
	}
	if err := o.setRest(v, l); err != nil {
		return err
	}
	if bytes.HasPrefix(path, []byte("/")) || string(path) == "*" {
		l.method, l.target = o.text(v.Get("method")), path
	}
	return nil
}

// aside is why a line of the control listener's is skipped.
func aside(v *fastjson.Value) error {
	if v.Exists("request_id") {
		return errAside
	}
	return errSkipped
}

func (o *own) setRest(v *fastjson.Value, l *line) error {
	if cost := v.Get("cost"); cost != nil {
		if err := l.setCost(o.text(cost)); err != nil {
			return err
		}
	}
	var ok bool
	if l.at, ok = o.moments.read(o.text(v.Get("time"))); !ok {
		return errOwnTime
	}
	if !l.setClient(o.text(v.Get("client_ip"))) {
		return errOwnClient
	}
	return nil
}

// ownHas says whether the own log has what a template's source, as in path.id, reads.
func ownHas(source string) bool {
	kind, _, _ := strings.Cut(source, ".")
	switch kind {
	case "client_ip", "method", "route", "path":
		return true
	}
	return false
}
