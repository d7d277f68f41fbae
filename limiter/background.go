package limiter

import "sync"

// background are goroutines that a store has started and waits for. The zero
// value is ready; it is safe for concurrent use.
type background struct {
	mu      sync.Mutex // guards ended
	ended   bool
	running sync.WaitGroup
}

// Go runs f, unless the end has come.
func (b *background) Go(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		b.running.Go(f)
	}
}

// end waits for what runs, and has nothing run after it.
func (b *background) end() {
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
	b.running.Wait()
}
