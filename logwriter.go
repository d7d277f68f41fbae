package main

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Bounds of the log's buffer.
const (
	logBufferBytes = 4 << 20 // what waits to be written at most; lines beyond are dropped
	logFlushBytes  = 64 << 10
	logFlushEvery  = 100 * time.Millisecond
	logCloseWithin = 2 * time.Second
)

// logLevel is the level from which on lines are written. A logger has it as its
// sampler, which all that are made of the logger share: so it can be set while they
// are in use, and a line that nobody wants is not even begun.
type logLevel struct{ least atomic.Int32 }

// set takes over a level by its name; one that is unknown is info.
func (l *logLevel) set(name string) {
	level, err := zerolog.ParseLevel(name)
	if err != nil {
		level = zerolog.InfoLevel
	}
	l.least.Store(int32(level))
}

// Sample says whether a line of this level is written.
func (l *logLevel) Sample(level zerolog.Level) bool { return int32(level) >= l.least.Load() }

// logWriter takes log lines without ever waiting for where they go: a slow
// disk or a stopped terminal costs lines, which are counted, never a request.
type logWriter struct {
	to      io.Writer
	dropped atomic.Uint64
	wake    chan struct{}
	closing chan struct{}
	done    chan struct{}

	mu      sync.Mutex // guards waiting
	waiting []byte
}

// newLogWriter writes to to, from a goroutine that Close ends.
func newLogWriter(to io.Writer) *logWriter {
	w := &logWriter{to: to, wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{})}
	go w.flush()
	return w
}

// Write keeps a copy of line, or drops it where the buffer is full.
func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	if len(w.waiting)+len(line) > logBufferBytes {
		w.mu.Unlock()
		w.dropped.Add(1)
		return len(line), nil
	}
	w.waiting = append(w.waiting, line...)
	full := len(w.waiting) >= logFlushBytes
	w.mu.Unlock()
	if full {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	return len(line), nil
}

// flush writes what waits, in large pieces, until Close.
func (w *logWriter) flush() {
	defer close(w.done)
	tick := time.NewTicker(logFlushEvery)
	defer tick.Stop()
	var spare []byte
	for last := false; ; {
		w.mu.Lock()
		out := w.waiting
		w.waiting = spare[:0]
		w.mu.Unlock()
		if len(out) > 0 {
			// There is nowhere left to report a log that can't be written.
			_, _ = w.to.Write(out)
		}
		spare = out
		if last {
			return
		}
		select {
		case <-w.wake:
		case <-tick.C:
		case <-w.closing:
			last = true
		}
	}
}

// Close writes what waits, for logCloseWithin at most. It is called once.
func (w *logWriter) Close() {
	close(w.closing)
	select {
	case <-w.done:
	case <-time.After(logCloseWithin):
	}
}

// WriteMetrics writes the number of dropped lines in Prometheus text format.
func (w *logWriter) WriteMetrics(to io.Writer) {
	fmt.Fprintf(to, "r8limiter_log_dropped_total %d\n", w.dropped.Load())
}
