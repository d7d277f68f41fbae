package simulate

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
)

// The trace keeps what is needed to decide again, under other limits: 20 bytes for each
// request that was charged, in a temporary file. The requests of one set of limits lie
// together in blocks, so that a search reads nothing else.
const (
	recordBytes  = 20
	blockRecords = 3276
	blockBytes   = blockRecords * recordBytes // just below 64 KiB
)

// record is one request: its time, who pays, and how much.
type record struct {
	at       int64  // microseconds since 1970
	user     uint32 // number of the bucket, if each user has one
	resource uint32 // number of the bucket, if a resource has one
	cost     uint32
}

// trace is written by one goroutine, and then read by several.
type trace struct {
	file     *os.File
	size     int64
	sections []*section // by the number of their set
}

// section are the records of one set of limits.
type section struct {
	blocks   []int64 // where they begin in the file; all but the last are full
	buffer   []byte  // of what follows them
	records  uint64
	users    uint32 // 1 + the largest number
	pairs    map[uint64]uint32
	resource uint32 // 1 + the largest number
}

// newTrace makes the file, which has no name: it is gone with the process, however that
// ends.
func newTrace() (*trace, error) {
	file, err := os.CreateTemp("", "r8limiter-simulate-*")
	if err != nil {
		return nil, fmt.Errorf("make a temporary file for the search (set TMPDIR to where there is room): %w", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("unlink the temporary file: %w", err)
	}
	return &trace{file: file}, nil
}

func (t *trace) close() { _ = t.file.Close() }

// add keeps a request under a set.
func (t *trace) add(set *limitSet, r record) error {
	for len(t.sections) <= set.number {
		t.sections = append(t.sections, &section{})
	}
	s := t.sections[set.number]
	if set.resources != nil {
		r.user = s.pair(r.user, r.resource)
	}
	s.users, s.resource = max(s.users, r.user+1), max(s.resource, r.resource+1)
	s.buffer = r.append(s.buffer)
	s.records++
	if len(s.buffer) < blockBytes {
		return nil
	}
	return t.write(s)
}

// pair numbers the users of different resources apart.
func (s *section) pair(user, resource uint32) uint32 {
	if s.pairs == nil {
		s.pairs = map[uint64]uint32{}
	}
	key := uint64(resource)<<32 | uint64(user)
	number, ok := s.pairs[key]
	if !ok {
		number = uint32(len(s.pairs))
		s.pairs[key] = number
	}
	return number
}

func (t *trace) write(s *section) error {
	if _, err := t.file.WriteAt(s.buffer, t.size); err != nil {
		return fmt.Errorf("write the temporary file for the search (set TMPDIR to where there is room): %w", err)
	}
	s.blocks = append(s.blocks, t.size)
	t.size += int64(len(s.buffer))
	s.buffer = s.buffer[:0]
	return nil
}

func (r *record) append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.at))
	dst = binary.LittleEndian.AppendUint32(dst, r.user)
	dst = binary.LittleEndian.AppendUint32(dst, r.resource)
	return binary.LittleEndian.AppendUint32(dst, r.cost)
}

func readRecord(b []byte) record {
	_ = b[recordBytes-1]
	return record{
		at:       int64(binary.LittleEndian.Uint64(b)),
		user:     binary.LittleEndian.Uint32(b[8:]),
		resource: binary.LittleEndian.Uint32(b[12:]),
		cost:     binary.LittleEndian.Uint32(b[16:]),
	}
}

// each calls f with the blocks of s in order, in memory, until f says false or stop is
// set. buffer is of blockBytes.
func (t *trace) each(s *section, buffer []byte, stop *atomic.Bool, f func(block []byte) bool) error {
	for _, at := range s.blocks {
		if stop.Load() {
			return errStopped
		}
		if _, err := t.file.ReadAt(buffer, at); err != nil {
			return fmt.Errorf("read the temporary file for the search: %w", err)
		}
		if !f(buffer) {
			return nil
		}
	}
	f(s.buffer)
	return nil
}
