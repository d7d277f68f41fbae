package limiter

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	shards = 256
	// none is the index of no entry.
	none = -1
	// expireSteps is how many due entries an insertion looks at: more than it
	// adds, so that full buckets don't pile up.
	expireSteps = 4
	never       = math.MaxInt64
)

// table is a bounded hash table of buckets in shards. Each shard knows which
// of its buckets is full first, so that room is made by forgetting the one
// that costs least: a full one, wherever it is, else the nearest to full.
type table struct {
	max  int64
	size atomic.Int64
	_    [48]byte
	// first is when the first bucket of each shard is full at the earliest;
	// never if it has none. Written under the shard's lock.
	first  [shards]atomic.Int64
	shards [shards]shard
}

func (t *table) init(most int64) {
	t.max = most
	for i := range t.shards {
		t.shards[i].index = i
		t.first[i].Store(never)
	}
}

func (t *table) shard(hash uint64) *shard { return &t.shards[hash%shards] }

// shardSet is a set of shards, for locking several in order of their index:
// two decisions on the same buckets can't wait for each other.
type shardSet [shards / 64]uint64

func (s *shardSet) add(hash uint64) {
	i := hash % shards
	s[i/64] |= 1 << (i % 64)
}

// each calls f with the shards of s in ascending order.
func (t *table) each(s *shardSet, f func(*table, *shard)) {
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			f(t, &t.shards[i*64+bits.TrailingZeros64(word)])
		}
	}
}

func (t *table) lock(s *shardSet) {
	t.each(s, func(_ *table, sh *shard) { sh.mu.Lock() })
}

func (t *table) unlockAll(s *shardSet) { t.each(s, (*table).unlock) }

// unlock publishes when the shard's first bucket is full, and unlocks it.
func (t *table) unlock(sh *shard) {
	t.publishLocked(sh)
	sh.mu.Unlock()
}

func (t *table) publishLocked(sh *shard) {
	if first := sh.firstDue(); t.first[sh.index].Load() != first {
		t.first[sh.index].Store(first)
	}
	if sh.removed > 0 {
		t.size.Add(-sh.removed)
		sh.removed = 0
	}
}

// put returns the entry of key, which it adds if it is not there. The caller
// holds the shard's lock and sets the bucket.
func (t *table) put(sh *shard, hash uint64, key []byte) (entry int32, added bool) {
	if i := sh.find(hash, key); i != none {
		return i, false
	}
	t.size.Add(1)
	return sh.insert(hash, key), true
}

// expire forgets some full buckets of locked shards.
func (t *table) expire(s *shardSet, now int64) {
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			t.shards[i*64+bits.TrailingZeros64(word)].expire(now, expireSteps)
		}
	}
}

// sweep forgets all full buckets and returns how many are left.
func (t *table) sweep(now int64) (left int) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		sh.expire(now, math.MaxInt)
		left += sh.live
		t.unlock(sh)
	}
	return left
}

// shrink makes the table no larger than it may be, and returns how many
// buckets it forgot that were not full. The caller holds no lock of the table:
// it takes one shard's at a time. Between an insertion and the shrink that follows it the
// table is too large by what is being inserted at that moment.
func (t *table) shrink(now func() int64) (lost uint64) {
	for t.size.Load() > t.max {
		index, bound := t.earliest()
		if index == none {
			return lost
		}
		if t.evict(&t.shards[index], bound, now()) {
			lost++
		}
	}
	return lost
}

// earliest is the shard whose first bucket is full first, and when the next
// shard's is.
func (t *table) earliest() (index int, next int64) {
	index, first, next := none, int64(never), int64(never)
	for i := range t.first {
		due := t.first[i].Load()
		if due < first {
			index, first, next = i, due, first
		} else if due < next {
			next = due
		}
	}
	return index, next
}

// evict forgets the shard's first bucket, unless it turns out to be full later
// than bound; then the caller looks again. It says whether a debt was lost.
func (t *table) evict(sh *shard, bound, now int64) (lost bool) {
	sh.mu.Lock()
	defer t.unlock(sh)
	sh.settle()
	first := sh.firstDue()
	if sh.live == 0 || first > bound && first > now {
		return false
	}
	sh.remove(sh.heap[0])
	return first > now
}

// shard is a part of a table with a lock of its own.
type shard struct {
	mu    sync.Mutex // guards all but index
	index int
	// slots are the hash table, open with linear probing: 1 + an index into
	// entries, or 0. Its length is a power of two.
	slots   []uint32
	entries []entry
	// heap holds the indices of entries: the first live ones are a min-heap by
	// due, the rest are free.
	heap    []int32
	live    int
	removed int64 // not yet taken off the table's size
	_       [24]byte
}

// entry is a bucket: 64 bytes, one cache line.
type entry struct {
	key    string
	bucket Bucket
	full   int64 // when the bucket is full, in microseconds
	// due is at most full. It orders the heap: a bucket that is charged stays
	// where it is until its due is looked at.
	due  int64
	hash uint32
	heap int32 // position in the heap
}

// slotHash is the part of a hash that the shard's choice does not use.
func slotHash(hash uint64) uint32 { return uint32(hash >> 32) }

// find returns the index of key's entry, or none.
func (s *shard) find(hash uint64, key []byte) int32 {
	if len(s.slots) == 0 {
		return none
	}
	h, mask := slotHash(hash), uint32(len(s.slots)-1)
	for i := h & mask; s.slots[i] != 0; i = (i + 1) & mask {
		e := &s.entries[s.slots[i]-1]
		if e.hash == h && e.key == string(key) {
			return int32(s.slots[i] - 1)
		}
	}
	return none
}

// insert adds an entry that is not there, at the end of the heap: set, which
// must follow, puts it in its place.
func (s *shard) insert(hash uint64, key []byte) int32 {
	if s.live == len(s.heap) {
		s.heap = append(s.heap, int32(len(s.entries)))
		s.entries = append(s.entries, entry{})
	}
	if (s.live+1)*4 > len(s.slots)*3 {
		s.grow()
	}
	index := s.heap[s.live]
	s.entries[index] = entry{key: string(key), hash: slotHash(hash), due: never, heap: int32(s.live)}
	s.link(index)
	s.live++
	return index
}

// grow doubles the slots.
func (s *shard) grow() {
	s.slots = make([]uint32, max(8, 2*len(s.slots)))
	for _, index := range s.heap[:s.live] {
		s.link(index)
	}
}

// link puts an entry into the first free slot.
func (s *shard) link(index int32) {
	mask := uint32(len(s.slots) - 1)
	i := s.entries[index].hash & mask
	for s.slots[i] != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = uint32(index) + 1
}

// unlink empties the slot of an entry and moves those behind it up, so that
// probing needs no tombstones.
func (s *shard) unlink(index int32) {
	mask := uint32(len(s.slots) - 1)
	hole := s.entries[index].hash & mask
	for s.slots[hole] != uint32(index)+1 {
		hole = (hole + 1) & mask
	}
	for i := (hole + 1) & mask; s.slots[i] != 0; i = (i + 1) & mask {
		home := s.entries[s.slots[i]-1].hash & mask
		if (i-home)&mask >= (i-hole)&mask {
			s.slots[hole] = s.slots[i]
			hole = i
		}
	}
	s.slots[hole] = 0
}

// set stores a bucket and when it is full.
func (s *shard) set(index int32, b Bucket, full int64) {
	e := &s.entries[index]
	e.bucket, e.full = b, full
	if full < e.due {
		e.due = full
		s.up(e.heap)
	}
}

// remove forgets an entry and its key.
func (s *shard) remove(index int32) {
	s.unlink(index)
	s.live--
	s.removed++
	position, last := s.entries[index].heap, int32(s.live)
	s.swap(position, last)
	s.entries[index] = entry{heap: last}
	if position < last {
		s.down(position)
		s.up(position)
	}
}

// expire removes entries that are full, in at most so many steps.
func (s *shard) expire(now int64, steps int) {
	for ; steps > 0 && s.live > 0; steps-- {
		first := s.heap[0]
		e := &s.entries[first]
		if e.due > now {
			return
		}
		if e.full > now {
			e.due = e.full
			s.down(0)
		} else {
			s.remove(first)
		}
	}
}

// settle makes the heap's first entry the one that is full first.
func (s *shard) settle() {
	for s.live > 0 {
		e := &s.entries[s.heap[0]]
		if e.due == e.full {
			return
		}
		e.due = e.full
		s.down(0)
	}
}

func (s *shard) firstDue() int64 {
	if s.live == 0 {
		return never
	}
	return s.entries[s.heap[0]].due
}

func (s *shard) dueAt(position int32) int64 { return s.entries[s.heap[position]].due }

func (s *shard) up(position int32) {
	for position > 0 {
		parent := (position - 1) / 2
		if s.dueAt(parent) <= s.dueAt(position) {
			return
		}
		s.swap(parent, position)
		position = parent
	}
}

func (s *shard) down(position int32) {
	for {
		child := 2*position + 1
		if child >= int32(s.live) {
			return
		}
		if other := child + 1; other < int32(s.live) && s.dueAt(other) < s.dueAt(child) {
			child = other
		}
		if s.dueAt(position) <= s.dueAt(child) {
			return
		}
		s.swap(position, child)
		position = child
	}
}

func (s *shard) swap(a, b int32) {
	s.heap[a], s.heap[b] = s.heap[b], s.heap[a]
	s.entries[s.heap[a]].heap, s.entries[s.heap[b]].heap = a, b
}
