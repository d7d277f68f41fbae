package simulate

import "bytes"

// The text formats. None of the parsers allocates; all that they return lies in the
// line, where escapes are decoded in place.

var (
	nameReferer      = []byte("Referer")
	nameUserAgent    = []byte("User-Agent")
	nameForwardedFor = []byte("X-Forwarded-For")
	nameRequestID    = []byte("X-Request-Id")
)

// combined reads the common, combined and vhost_combined formats of Apache and nginx:
//
//	[host[:port] ]client ident login [time] "request" status bytes[ "referer" "agent"]...
//
// where the client may be a list as X-Forwarded-For has it.
type combined struct{ moments moments }

func (c *combined) parse(raw []byte, l *line) error {
	rest, err := l.cutClient(raw)
	if err != nil {
		return err
	}
	login, rest, ok := c.cutTime(rest, l)
	if !ok {
		return errNoTime
	}
	l.login = dashless(login)
	request, rest, ok := cutQuoted(rest)
	if !ok {
		return errNoRequest
	}
	if rest, ok = cutStatus(rest); !ok {
		return errNoStatus
	}
	l.setRequest(request)
	l.setAgent(rest)
	return nil
}

var space = []byte{' '}

// cutClient reads what is in front of the ident, and returns what is behind it: the
// client alone, or a host, which may be an address too, and the client; or a list.
func (l *line) cutClient(s []byte) (rest []byte, err error) {
	first, rest, ok := bytes.Cut(s, space)
	if !ok {
		return nil, errNoClient
	}
	if l.client, ok = parseAddr(first); ok && len(rest) > 1 && rest[0] == '-' && rest[1] == ' ' { // nearly always
		return rest, nil
	}
	if bytes.IndexByte(first, ',') >= 0 {
		return l.cutForwarded(s)
	}
	second, after, _ := bytes.Cut(rest, space)
	if client, ok := parseAddr(second); ok {
		l.host, l.client = dashless(first), client
		return after, nil
	}
	if !ok && !isNowhere(first) {
		return nil, errNoClient
	}
	return rest, nil
}

// cutForwarded reads a list that begins s: commas, with a space behind them or not, hold
// it together.
func (l *line) cutForwarded(s []byte) (rest []byte, err error) {
	end := 0
	for {
		space := bytes.IndexByte(s[end:], ' ')
		if space < 0 {
			return nil, errNoClient
		}
		if end += space; s[end-1] != ',' {
			return s[end+1:], l.setForwarded(s[:end])
		}
		end++
	}
}

// cutTime reads `ident login [time] ` and returns what is behind it. A login is the
// client's to choose and may hold brackets, so the first that hold a time count.
func (c *combined) cutTime(s []byte, l *line) (login, rest []byte, ok bool) {
	for from := 0; ; {
		open := bytes.IndexByte(s[from:], '[')
		if open < 0 {
			return nil, nil, false
		}
		open += from
		end := bytes.IndexByte(s[open:min(len(s), open+48)], ']')
		if end > 0 && open > 0 && s[open-1] == ' ' {
			if l.at, ok = c.moments.read(s[open+1 : open+end]); ok {
				_, login, _ = bytes.Cut(s[:open-1], space)
				return login, bytes.TrimLeft(s[open+end+1:], " "), true
			}
		}
		from = open + 1
	}
}

// cutStatus reads ` 200`.
func cutStatus(s []byte) (rest []byte, ok bool) {
	if len(s) < 4 || s[0] != ' ' || !isDigit(s[1]) || !isDigit(s[2]) || !isDigit(s[3]) {
		return nil, false
	}
	return s[4:], len(s) == 4 || s[4] == ' '
}

// setAgent reads `bytes "referer" "agent"`, as far as they are there.
func (l *line) setAgent(s []byte) {
	open := bytes.IndexByte(s, '"')
	if open < 0 {
		return
	}
	referer, rest, ok := cutQuoted(s[open:])
	if !ok {
		return
	}
	l.addField(nameReferer, referer)
	if len(rest) > 0 && rest[0] == ' ' {
		if agent, _, ok := cutQuoted(rest[1:]); ok {
			l.addField(nameUserAgent, agent)
		}
	}
}

// cutQuoted reads a text in quotes that s begins with, and decodes it in place.
func cutQuoted(s []byte) (text, rest []byte, ok bool) {
	if len(s) == 0 || s[0] != '"' {
		return nil, nil, false
	}
	s = s[1:]
	end := bytes.IndexByte(s, '"')
	if end < 0 {
		return nil, nil, false
	}
	if bytes.IndexByte(s[:end], '\\') < 0 {
		return s[:end], s[end+1:], true
	}
	for end = 0; end < len(s) && s[end] != '"'; end++ {
		if s[end] == '\\' {
			end++
		}
	}
	if end >= len(s) {
		return nil, nil, false
	}
	return unescape(s[:end]), s[end+1:], true
}

// unescape decodes, in place, what Apache and nginx write for bytes that might break a
// line: \xHH, \", \\ and C's letters. A backslash before anything else is itself.
func unescape(s []byte) []byte {
	out := s[:0]
	for i := 0; i < len(s); i++ {
		c, wide := s[i], 1
		if c == '\\' {
			c, wide = unescapeOne(s[i:])
		}
		out = append(out, c)
		i += wide - 1
	}
	return out
}

// unescapeOne decodes the escape that s begins with, and says how many bytes it has.
func unescapeOne(s []byte) (c byte, wide int) {
	if len(s) < 2 {
		return s[0], 1
	}
	switch s[1] {
	case '"', '\\':
		return s[1], 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'b':
		return '\b', 2
	case 'v':
		return '\v', 2
	case 'f':
		return '\f', 2
	case 'a':
		return '\a', 2
	case 'x':
		if len(s) >= 4 {
			high, ok1 := hexDigit(s[2])
			low, ok2 := hexDigit(s[3])
			if ok1 && ok2 {
				return high<<4 | low, 4
			}
		}
	}
	return s[0], 1
}

// envoyText reads Envoy's default format:
//
//	[time] "request" status flags received sent duration upstream-time "forwarded-for" "agent" "id" "authority" "upstream"
type envoyText struct{ moments moments }

func (e *envoyText) parse(raw []byte, l *line) error {
	end := bytes.IndexByte(raw, ']')
	if end < 0 || raw[0] != '[' {
		return errNoEnvoyTime
	}
	var ok bool
	if l.at, ok = e.moments.read(raw[1:end]); !ok {
		return errNoEnvoyTime
	}
	// Envoy escapes no quotes: the request ends where a status follows.
	rest := bytes.TrimLeft(raw[end+1:], " ")
	if len(rest) == 0 || rest[0] != '"' {
		return errNoRequest
	}
	if end = endOfRequest(rest); end < 0 {
		return errNoStatus
	}
	l.setRequest(rest[1:end])
	return l.setEnvoyFields(rest[end+1:])
}

// endOfRequest is where the quote is behind which a status follows, or negative.
func endOfRequest(s []byte) int {
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			continue
		}
		rest := s[i+1:]
		if _, ok := cutStatus(rest); ok || bytes.HasPrefix(rest, []byte(" 0 ")) { // 0: the client went away
			return i
		}
	}
	return -1
}

// setEnvoyFields reads what stands in quotes at the end of a line: from the front what
// is in front of the agent, which may hold anything, and from the back what is behind it.
func (l *line) setEnvoyFields(s []byte) error {
	open := bytes.IndexByte(s, '"')
	if open < 0 {
		return errNoEnvoyFields
	}
	s = bytes.TrimRight(s[open+1:], " ")
	var last [3][]byte // upstream, authority, request id
	for i := range last {
		at := bytes.LastIndex(s, quoteQuote)
		if at < 0 || i == 0 && s[len(s)-1] != '"' {
			return errNoEnvoyFields
		}
		last[i], s = s[at+3:], s[:at]
	}
	forwarded, agent, ok := bytes.Cut(s, quoteQuote)
	if !ok {
		return errNoEnvoyFields
	}
	l.host = dashless(last[1])
	l.addField(nameUserAgent, agent)
	l.addField(nameRequestID, last[2])
	return l.setForwarded(dashless(forwarded))
}

var quoteQuote = []byte(`" "`)

// setForwarded takes X-Forwarded-For as a proxy logs it that appends its client: the
// last hop is who connected, and the others are what that client sent.
func (l *line) setForwarded(hops []byte) error {
	if len(hops) == 0 {
		return nil
	}
	last := hops
	if comma := bytes.LastIndexByte(hops, ','); comma >= 0 {
		last, hops = hops[comma+1:], bytes.TrimRight(hops[:comma], " ")
		l.addField(nameForwardedFor, hops)
	}
	var ok bool
	if l.client, ok = parseClient(bytes.TrimSpace(last)); !ok {
		return errForwarded
	}
	return nil
}
