package limiter

import (
	"sync/atomic"
	"testing"
	"time"
)

// openMemory returns a memory store on a clock that starts at an hour.
func openMemory(t *testing.T) testedStore {
	t.Helper()
	m := NewMemoryStore()
	var clock atomic.Int64
	clock.Store(time.Hour.Microseconds())
	m.now = clock.Load
	return testedStore{
		Store:   m,
		now:     clock.Load,
		advance: func(d time.Duration) { clock.Add(d.Microseconds()) },
	}
}

func TestMemoryStore(t *testing.T) { testStore(t, openMemory) }
