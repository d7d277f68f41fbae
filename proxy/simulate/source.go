package simulate

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
)

const (
	sourceBuffer = 64 << 10
	maxLine      = 1 << 20
)

// source is one log, read line by line.
type source struct {
	name   string
	closer io.Closer
	in     *bufio.Reader
	format format
	parse  parser
	number int64 // of the last line, from 1
	line   line  // the last that could be read
	long   []byte
	index  int
}

// counted counts what is read of a log as it lies on the disk. After an error there is
// nothing but that: a bufio.Reader that only peeked forgets it.
type counted struct {
	io.Reader
	progress *Progress
	err      error
}

func (c *counted) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.Reader.Read(p)
	c.progress.read(n)
	c.err = err
	return n, err
}

// byteOrderMark is what some programs begin UTF-8 with.
const byteOrderMark = "\xef\xbb\xbf"

// standardInput is what "-" is called.
const standardInput = "standard input"

// open opens the log called name, "-" for standard input, and finds out whether it is
// compressed and what format it has.
func open(name string, o *Options) (*source, error) {
	s := &source{name: name, closer: io.NopCloser(nil)}
	var raw io.Reader = o.Stdin
	if name == "-" {
		s.name = standardInput
	} else {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		raw, s.closer = file, file
	}
	if err := s.begin(&counted{Reader: raw, progress: o.Progress}, o); err != nil {
		_ = s.closer.Close()
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	return s, nil
}

// begin looks at the first bytes. An empty log has any format.
func (s *source) begin(raw io.Reader, o *Options) error {
	s.in = bufio.NewReaderSize(raw, sourceBuffer)
	if magic, _ := s.in.Peek(3); bytes.Equal(magic, []byte{0x1f, 0x8b, 8}) {
		unpacked, err := gzip.NewReader(s.in)
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		s.in = bufio.NewReaderSize(unpacked, sourceBuffer)
	}
	if mark, _ := s.in.Peek(len(byteOrderMark)); string(mark) == byteOrderMark {
		_, _ = s.in.Discard(len(byteOrderMark))
	}
	sample, err := s.in.Peek(sourceBuffer)
	if len(sample) == 0 && err != io.EOF {
		return err
	}
	if len(sample) == 0 {
		s.format = formats[0]
	} else if s.format, err = choose(o.Format, sample, &o.Fields); err != nil {
		// Others may be readable: this one is, but not a line of it.
		s.format = unreadable(err)
	}
	s.parse = s.format.new(&o.Fields)
	return nil
}

// unreadable is the format of a log that has none of those there are.
func unreadable(why error) format {
	return format{name: "unknown", new: func(*FieldMap) parser { return func([]byte, *line) error { return why } }, has: hasAll}
}

// next reads the next line into s.line. err is io.EOF at the end, a readError, or what
// is wrong with the line.
func (s *source) next() error {
	raw, err := s.readLine()
	if err == nil || err == errLongLine {
		s.number++
	}
	if err != nil {
		return err
	}
	s.line.reset()
	if len(raw) == 0 || raw[0] == '#' {
		return errSkipped
	}
	return s.parse(raw, &s.line)
}

// readError says that a log can't be read on.
type readError struct{ error }

// readLine is the next line without its end. The last one needs no end.
func (s *source) readLine() ([]byte, error) {
	raw, err := s.in.ReadSlice('\n')
	tooLong := false
	if err == bufio.ErrBufferFull {
		raw, err = s.readLong(raw)
		tooLong = len(raw) > maxLine
	}
	switch {
	case err == io.EOF && len(raw) == 0:
		return nil, io.EOF
	case err != nil && err != io.EOF:
		return nil, readError{err}
	case tooLong:
		return nil, errLongLine
	}
	return trimEnd(raw), nil
}

func trimEnd(raw []byte) []byte {
	if n := len(raw); n > 0 && raw[n-1] == '\n' {
		raw = raw[:n-1]
	}
	if n := len(raw); n > 0 && raw[n-1] == '\r' {
		raw = raw[:n-1]
	}
	return raw
}

// readLong reads on a line that does not fit into the buffer, to its end. Of one that is
// longer than maxLine it keeps a little more than that.
func (s *source) readLong(start []byte) (raw []byte, err error) {
	s.long = append(s.long[:0], start...)
	for {
		piece, err := s.in.ReadSlice('\n')
		if len(s.long) <= maxLine {
			s.long = append(s.long, piece...)
		}
		if err != bufio.ErrBufferFull {
			return s.long, err
		}
	}
}
