package simulate

import (
	"errors"
	"io"
)

// logs are several logs read as one, in the order of their times: rotated files may be
// given in any order, and those of several servers together. Within a log lines stay in
// their order.
type logs struct {
	// heap has the log whose line is the earliest first; of equal ones the log that
	// was given first.
	heap []*source
	// bad is told of each line that is no request, with the reason; see isSkip
	// for those that need not be one.
	bad func(s *source, why error)
	// broken is told of each log that can't be read on.
	broken func(s *source, why error)
}

// openAll opens all logs, or none.
func openAll(o *Options) (*logs, error) {
	m := &logs{}
	for i, name := range o.Files {
		s, err := open(name, o)
		if err != nil {
			m.close()
			return nil, err
		}
		s.index = i
		m.heap = append(m.heap, s)
	}
	return m, nil
}

// begin reads the first line of each log. It comes before first.
func (m *logs) begin() {
	all := m.heap
	m.heap = nil
	for _, s := range all {
		if m.advance(s) {
			m.heap = append(m.heap, s)
			m.up(len(m.heap) - 1)
		}
	}
}

// first is the log with the earliest line, or nil at the end of all.
func (m *logs) first() *source {
	if len(m.heap) == 0 {
		return nil
	}
	return m.heap[0]
}

// pop goes on behind the earliest line.
func (m *logs) pop() {
	if !m.advance(m.heap[0]) {
		last := len(m.heap) - 1
		m.heap[0] = m.heap[last]
		m.heap = m.heap[:last]
	}
	m.down(0)
}

// advance reads the next request of a log; false at its end, where it is closed.
func (m *logs) advance(s *source) bool {
	for {
		err := s.next()
		if err == nil {
			return true
		}
		fault, broken := errors.AsType[readError](err)
		switch {
		case broken:
			m.broken(s, fault.error)
		case err != io.EOF:
			m.bad(s, err)
			continue
		}
		_ = s.closer.Close()
		return false
	}
}

func (m *logs) less(i, j int) bool {
	a, b := m.heap[i], m.heap[j]
	return a.line.at < b.line.at || a.line.at == b.line.at && a.index < b.index
}

func (m *logs) up(i int) {
	for parent := (i - 1) / 2; i > 0 && m.less(i, parent); i, parent = parent, (parent-1)/2 {
		m.heap[i], m.heap[parent] = m.heap[parent], m.heap[i]
	}
}

func (m *logs) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(m.heap) {
			return
		}
		if child+1 < len(m.heap) && m.less(child+1, child) {
			child++
		}
		if !m.less(child, i) {
			return
		}
		m.heap[i], m.heap[child] = m.heap[child], m.heap[i]
		i = child
	}
}

// close closes what is still open.
func (m *logs) close() {
	for _, s := range m.heap {
		_ = s.closer.Close()
	}
	m.heap = nil
}
