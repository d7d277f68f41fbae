package proxy

import "bytes"

// versions are the starts of a status line.
var versions = [...]string{"HTTP/1.0 ", "HTTP/1.1 "}

// framing is what the fields say about the end of the body and of the connection.
type framing struct {
	minor           byte // of the version
	lengths         int  // number of Content-Length fields
	contentLength   int64
	codings         int // number of Transfer-Encoding fields
	close, keep     bool
	upgrade         bool // there is a protocol in Upgrade
	trailer         bool // there is a Trailer field
	sawStatus, done bool
}

// parse reads the lines of a head that are complete, and sets framing.done
// after the last. It returns how much of buf it is done with.
func (in *incoming) parse(buf []byte) (used int, err error) {
	for !in.framing.done {
		rest := buf[used:]
		if !in.framing.sawStatus && !mayBeHTTP(rest) {
			return used, errStatusLine
		}
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			return used, nil
		}
		if end == 0 || rest[end-1] != '\r' {
			return used, errLineEnd
		}
		if err := in.parseLine(rest[:end-1]); err != nil {
			return used, err
		}
		used += end + 1
	}
	return used, nil
}

// mayBeHTTP lets a fault be seen at once in what has no line end at all.
func mayBeHTTP(start []byte) bool {
	n := min(len(start), len(versions[0]))
	return string(start[:n]) == versions[0][:n] || string(start[:n]) == versions[1][:n]
}

func (in *incoming) parseLine(line []byte) error {
	switch {
	case !in.framing.sawStatus:
		in.framing.sawStatus = true
		return in.parseStatus(line)
	case len(line) == 0:
		in.framing.done = true
		return in.frame()
	}
	return in.parseField(line)
}

// parseStatus reads HTTP/1.x SP 3DIGIT SP [reason]. The space after the status
// is needed also where there is no reason (RFC 9112 section 4).
func (in *incoming) parseStatus(line []byte) error {
	const before, after = len("HTTP/1.x "), len("HTTP/1.x 200 ")
	if len(line) < after || line[after-1] != ' ' || !isFieldValue(line) {
		return errStatusLine
	}
	in.framing.minor = line[before-2] - '0'
	for _, c := range line[before : after-1] {
		if c < '0' || c > '9' {
			return errStatusLine
		}
		in.status = in.status*10 + int(c-'0')
	}
	if in.status < 100 || in.status > 599 {
		return errStatusLine
	}
	in.reason = line[after:]
	return nil
}

// parseField reads a field. A folded line begins with white space, which is in
// no token.
func (in *incoming) parseField(line []byte) error {
	colon := bytes.IndexByte(line, ':')
	if colon < 1 || !isToken(line[:colon]) {
		return errField
	}
	f := field{line[:colon], trimSpace(line[colon+1:])}
	if !isFieldValue(f.value) {
		return errField
	}
	if len(in.fields) == maxResponseFields {
		return errFields
	}
	in.fields = append(in.fields, f)
	switch len(f.name) {
	case len("Trailer"): // and Upgrade
		in.framing.trailer = in.framing.trailer || equalFold(f.name, "Trailer")
		in.framing.upgrade = in.framing.upgrade || equalFold(f.name, "Upgrade") && len(f.value) > 0
	case len("Connection"):
		if equalFold(f.name, "Connection") {
			in.framing.connection(f.value)
		}
	case len("Content-Length"):
		if equalFold(f.name, "Content-Length") {
			return in.framing.length(f.value)
		}
	case len("Transfer-Encoding"):
		if equalFold(f.name, "Transfer-Encoding") {
			return in.framing.coding(f.value)
		}
	}
	return nil
}

func (fr *framing) connection(list []byte) {
	fr.close = fr.close || lists(list, []byte("close"))
	fr.keep = fr.keep || lists(list, []byte("keep-alive"))
}

func (fr *framing) length(value []byte) error {
	fr.lengths++
	if len(value) == 0 || len(value) > maxLengthDigits {
		return errFraming
	}
	for _, c := range value {
		if c < '0' || c > '9' {
			return errFraming
		}
		fr.contentLength = fr.contentLength*10 + int64(c-'0')
	}
	return nil
}

func (fr *framing) coding(value []byte) error {
	fr.codings++
	if !equalFold(value, "chunked") {
		return errCoding
	}
	return nil
}

// frame checks that there is one way to find the end of the body. Two equal
// lengths are refused too: who sends them does not know what it sends.
func (in *incoming) frame() error {
	fr := &in.framing
	if fr.lengths+fr.codings > 1 || fr.codings > 0 && fr.minor == 0 {
		return errFraming
	}
	in.reuse = !fr.close && (fr.minor == 1 || fr.keep)
	switch {
	case fr.codings > 0:
		in.length = lengthChunked
	case fr.lengths > 0:
		in.length = fr.contentLength
	default:
		in.length = lengthUntilClose
	}
	return nil
}
