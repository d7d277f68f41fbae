package proxy

import "errors"

// Bounds of what a chunked body may hold besides its data.
const (
	maxChunkDigits     = 15
	maxChunkExtension  = 1 << 10  // of one chunk
	maxChunkExtensions = 16 << 10 // of all chunks
	maxTrailerBytes    = 16 << 10
)

var errChunk = errors.New("the chunked body is malformed")

type chunkState uint8

const (
	inSize        chunkState = iota // the digits of a size
	inExtension                     // between the digits and CR
	atSizeLF                        // after the CR of the size line
	inData                          // left bytes of data follow
	atDataCR                        // after the data
	atDataLF                        // after its CR
	atTrailer                       // at the start of a trailer line, or of the empty one
	inTrailerName                   // in the name of a trailer
	inTrailer                       // behind its colon
	atTrailerLF                     // after the CR of a trailer line
	atEndLF                         // after the CR of the empty line
	chunksDone
)

// chunkDecoder takes the framing off a chunked body (RFC 9112 section 7.1),
// byte by byte wherever it is cut. It is stricter than the RFC: no white space
// after a size, no bare LF, no control bytes. Extensions and trailers are dropped.
// The zero value is at the start of a body.
type chunkDecoder struct {
	state      chunkState
	digits     int
	left       int64 // of the chunk: its size so far, then the data to come
	extension  int   // bytes of this chunk's extension
	extensions int   // bytes of all chunks' extensions
	trailer    int   // bytes of all trailers
}

// decode writes the data in src to dst, which may be the same memory and is at
// least as long. It uses all of src, unless the body ends before; then done is
// true. After an error the decoder must not be used again.
func (d *chunkDecoder) decode(dst, src []byte) (written, used int, err error) {
	for used < len(src) && d.state != chunksDone {
		if d.state == inData {
			n := copy(dst[written:], src[used:used+int(min(d.left, int64(len(src)-used)))])
			written, used, d.left = written+n, used+n, d.left-int64(n)
			if d.left == 0 {
				d.state = atDataCR
			}
			continue
		}
		if !d.step(src[used]) {
			return written, used, errChunk
		}
		used++
	}
	return written, used, nil
}

func (d *chunkDecoder) done() bool { return d.state == chunksDone }

// step takes one byte that is no data, and says whether it may stand there.
func (d *chunkDecoder) step(b byte) bool {
	switch d.state {
	case inSize:
		return d.sizeByte(b)
	case inExtension:
		d.extension++
		d.extensions++
		return d.lineByte(b, atSizeLF) && d.extension <= maxChunkExtension && d.extensions <= maxChunkExtensions
	case atSizeLF:
		d.state = inData
		if d.left == 0 {
			d.state = atTrailer
		}
		return b == '\n'
	case atDataCR:
		d.state = atDataLF
		return b == '\r'
	case atDataLF:
		d.state, d.digits, d.extension = inSize, 0, 0
		return b == '\n'
	}
	return d.trailerByte(b)
}

func (d *chunkDecoder) sizeByte(b byte) bool {
	if digit, ok := hexDigit(b); ok {
		d.digits++
		d.left = d.left<<4 | int64(digit)
		return d.digits <= maxChunkDigits
	}
	d.state = atSizeLF
	if b == ';' {
		d.state = inExtension
	}
	return d.digits > 0 && (b == ';' || b == '\r')
}

// lineByte takes a byte of a line whose content is dropped.
func (d *chunkDecoder) lineByte(b byte, end chunkState) bool {
	if b == '\r' {
		d.state = end
		return true
	}
	return b >= ' ' && b != 0x7f || b == '\t'
}

func (d *chunkDecoder) trailerByte(b byte) bool {
	d.trailer++
	if d.trailer > maxTrailerBytes {
		return false
	}
	switch d.state {
	case atTrailer:
		if b == '\r' {
			d.state = atEndLF
			return true
		}
		d.state = inTrailerName
		return tokenBytes[b]
	case inTrailerName:
		if b == ':' {
			d.state = inTrailer
			return true
		}
		return tokenBytes[b]
	case inTrailer:
		return d.lineByte(b, atTrailerLF)
	case atTrailerLF:
		d.state = atTrailer
		return b == '\n'
	}
	d.state = chunksDone
	return b == '\n'
}
