package simulate

import (
	"errors"
	"net/netip"
)

// line is what a line of a log says of one request. Its bytes lie in the reader's
// memory, until the next line of the same log.
type line struct {
	at     int64 // microseconds since 1970
	client netip.Addr
	// method is empty where the log says that what came was no request.
	method, target []byte
	host           []byte // the Host field; empty where the log lacks it
	secure         bool   // came over TLS
	fields         []named
	claims         []named
	login          []byte // who logged in by HTTP authentication; empty for nobody

	// What a gateway made of the request before. It stands where a route reads
	// what the log lacks; empty, and a negative cost, for what is not known.
	user, resource, plan []byte
	cost                 int64
	// direct says that the limiter was asked without a request, by /allow. It was not
	// charged if it was replayed for its idempotency key, or refused with a status.
	direct, replayed bool
	refused          int
}

// named is a header field or a claim.
type named struct{ name, value []byte }

func (l *line) reset() {
	*l = line{fields: l.fields[:0], claims: l.claims[:0], cost: -1}
}

// parser reads one line into l, which is reset. It may change raw. errSkipped and
// errAside say that the line is about no request; any other error that it can't be read,
// and why.
type parser func(raw []byte, l *line) error

var (
	errSkipped   = errors.New("is about no request")
	errAside     = errors.New("is about no request, but shows its format") // to choose
	errEmpty     = errors.New("the line is empty")
	errLongLine  = errors.New("the line is longer than 1 MiB")
	errNoTime    = errors.New("there is no time like [02/Jan/2006:15:04:05 -0700] behind the client")
	errNoClient  = errors.New("the line begins with no IP address")
	errNoRequest = errors.New("there is no quoted request behind the time")
	errNoStatus  = errors.New("there is no status behind the request")
)

// isSkip says of a parser's error that the line need not be a request.
func isSkip(why error) bool { return why == errSkipped || why == errAside }

// setRequest takes METHOD SP target SP HTTP/x apart. What has another form is no
// request that was served: method stays empty. Spaces inside stay in the target.
func (l *line) setRequest(request []byte) {
	last := -1
	first := -1
	for i, c := range request {
		if c == ' ' {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	if first <= 0 || last == first || len(request)-last < len(" HTTP/1") || string(request[last+1:last+6]) != "HTTP/" {
		return
	}
	l.method, l.target = request[:first], request[first+1:last]
}

// setClient reads the client's address; false if it is none. It need not be there.
func (l *line) setClient(text []byte) (ok bool) {
	if isNowhere(text) {
		return true
	}
	l.client, ok = parseClient(text)
	return ok
}

// addField adds a header field, unless it is the dash that logs write for none.
func (l *line) addField(name, value []byte) {
	if !isNone(value) {
		l.fields = append(l.fields, named{name, value})
	}
}

func isDash(value []byte) bool { return len(value) == 1 && value[0] == '-' }

// isNone says whether a value is what logs write for none.
func isNone(value []byte) bool { return len(value) == 0 || isDash(value) }

// dashless is value, or nothing for a dash.
func dashless(value []byte) []byte {
	if isDash(value) {
		return nil
	}
	return value
}
