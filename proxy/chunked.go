package proxy

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
)

// Bounds of what a chunked body may hold besides its data.
const (
	maxChunkDigits     = 15
	maxChunkExtension  = 1 << 10  // of one chunk
	maxChunkExtensions = 16 << 10 // of all chunks
	maxTrailerBytes    = 16 << 10
	maxTrailerFields   = 100
)

// What may be wrong with a chunked body; every one is an errChunk.
var (
	errChunk           = errors.New("the chunked body is malformed")
	errChunkSize       = fmt.Errorf("%w: a size line is no hexadecimal number with CRLF, or too long", errChunk)
	errChunkExtension  = fmt.Errorf("%w: an extension holds a control byte", errChunk)
	errChunkExtensions = fmt.Errorf("%w: extensions over 1 KiB for a chunk or 16 KiB for all", errChunk)
	errChunkEnd        = fmt.Errorf("%w: no CRLF where the size of a chunk says its end is", errChunk)
	errTrailer         = fmt.Errorf("%w: the trailer is no header fields, or over 16 KiB or 100 fields", errChunk)
)

type chunkState uint8

const (
	inSize        chunkState = iota // the digits of a size
	inExtension                     // between the digits and CR
	atSizeLF                        // after the CR of the size line
	inData                          // left bytes of data follow
	atDataCR                        // after the data
	atDataLF                        // after its CR
	atTrailer                       // at the start of a trailer line, or of the empty one
	inTrailerName                   // in the name of a trailer field
	inTrailer                       // in its value
	atTrailerLF                     // after the CR of a trailer line
	atEndLF                         // after the CR of the empty line
	chunksDone
)

// chunkDecoder takes the framing off a chunked body (RFC 9112 section 7.1),
// byte by byte wherever it is cut. It is stricter than the RFC: no white space
// after a size, no bare LF, no control bytes, names of trailer fields that are
// tokens. Extensions are dropped, and trailers are unless they are to be kept. The
// zero value is at the start of a body.
type chunkDecoder struct {
	state      chunkState
	digits     int
	left       int64 // of the chunk: its size so far, then the data to come
	extension  int   // bytes of this chunk's extension
	extensions int   // bytes of all chunks' extensions
	trailer    int   // bytes of all trailers
	fields     int   // of the trailer, so far
	keep       bool  // append the trailer's lines, each with its CRLF, to kept
	kept       []byte
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
		if state := d.state; !d.step(src[used]) {
			return written, used, d.faultIn(state)
		}
		used++
	}
	return written, used, nil
}

func (d *chunkDecoder) done() bool { return d.state == chunksDone }

// faultIn is the error for a byte that may not stand where state was.
func (d *chunkDecoder) faultIn(state chunkState) error {
	switch state {
	case inSize, atSizeLF:
		return errChunkSize
	case inExtension:
		if d.extension > maxChunkExtension || d.extensions > maxChunkExtensions {
			return errChunkExtensions
		}
		return errChunkExtension
	case atDataCR, atDataLF:
		return errChunkEnd
	}
	return errTrailer
}

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
	if d.keep {
		d.kept = append(d.kept, b)
	}
	switch d.state {
	case atTrailer:
		if b == '\r' {
			d.state = atEndLF
			return true
		}
		d.state = inTrailerName
		d.fields++
		return tokenBytes[b] && d.fields <= maxTrailerFields
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

const lastChunk = "0\r\n\r\n"

// appendChunk appends data as a chunk; nothing for no data, which would be the last one.
func appendChunk(dst, data []byte) []byte {
	if len(data) == 0 {
		return dst
	}
	dst = append(appendChunkSize(dst, len(data)), data...)
	return append(dst, "\r\n"...)
}

func appendChunkSize(dst []byte, n int) []byte {
	return append(strconv.AppendUint(dst, uint64(n), 16), "\r\n"...)
}

// appendLastChunk ends a chunked body.
func appendLastChunk(dst []byte, trailers []field) []byte {
	dst = append(dst, "0\r\n"...)
	for i := range trailers {
		dst = appendRaw(dst, &trailers[i])
	}
	return append(dst, "\r\n"...)
}

// The parts of a piece, in bytes.
const (
	pieceFront = 10 // the size of a chunk, up to 8 digits, and its CRLF
	pieceBytes = 32 << 10
	pieceBack  = len("\r\n" + lastChunk)
)

// piece is what a body is copied through, with room to frame what is in it.
type piece [pieceFront + pieceBytes + pieceBack]byte

var pieces = sync.Pool{New: func() any { return new(piece) }}

// room is where the data of a piece goes.
func (p *piece) room() []byte { return p[pieceFront : pieceFront+pieceBytes] }

// chunk makes a chunk of the first n bytes of room, in place; nothing for n of
// 0, as appendChunk does. What is appended to it has room for lastChunk.
func (p *piece) chunk(n int) []byte {
	if n == 0 {
		return p[pieceFront:pieceFront]
	}
	var digits [pieceFront]byte
	size := appendChunkSize(digits[:0], n)
	start := pieceFront - len(size)
	copy(p[start:], size)
	return append(p[start:pieceFront+n], "\r\n"...)
}
