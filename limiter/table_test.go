package limiter

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// checkShard fails if the parts of a shard contradict each other.
func checkShard(t *testing.T, s *shard, want map[string]int64) {
	t.Helper()
	if s.live != len(want) {
		t.Fatalf("%d entries, want %d", s.live, len(want))
	}
	for position, index := range s.heap[:s.live] {
		e := &s.entries[index]
		if int(e.heap) != position {
			t.Fatalf("%q thinks it is at %d, is at %d", e.key, e.heap, position)
		}
		if position > 0 && s.dueAt(int32((position-1)/2)) > e.due {
			t.Fatalf("%q is due before its parent", e.key)
		}
		if e.due > e.full {
			t.Fatalf("%q is due after it is full", e.key)
		}
		if full, ok := want[e.key]; !ok || full != e.full {
			t.Fatalf("%q is full at %d, want %d, %v", e.key, e.full, full, ok)
		}
		if got := s.find(uint64(e.hash)<<32, []byte(e.key)); got != index {
			t.Fatalf("%q is found at %d, want %d", e.key, got, index)
		}
	}
}

func TestShardKeepsWhatIsInIt(t *testing.T) {
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		s, want := &shard{}, map[string]int64{}
		for range 2000 {
			// Few hashes, so that probes run into each other.
			n := rnd.IntN(100)
			key, hash := fmt.Sprint("key", n), uint64(n%17)<<32
			index := s.find(hash, []byte(key))
			if _, ok := want[key]; ok != (index != none) {
				t.Fatalf("%q is found: %v, want %v", key, index != none, ok)
			}
			switch {
			case index == none:
				index = s.insert(hash, []byte(key))
			case rnd.IntN(3) == 0:
				s.remove(index)
				delete(want, key)
				checkShard(t, s, want)
				continue
			}
			want[key] = rnd.Int64N(1000)
			s.set(index, Bucket{Debt: 1}, want[key])
			checkShard(t, s, want)
		}
	}
}

func TestShardExpiresWhatIsFullAndNothingElse(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	s, want := &shard{}, map[string]int64{}
	for i := range 500 {
		key := fmt.Sprint("key", i)
		index := s.insert(uint64(i)<<32, []byte(key))
		for range 3 {
			want[key] = rnd.Int64N(1000)
			s.set(index, Bucket{Debt: 1}, want[key])
		}
	}
	for now := int64(0); now <= 1000; now += 50 {
		s.expire(now, 10_000)
		for key, full := range want {
			if full <= now {
				delete(want, key)
			}
		}
		checkShard(t, s, want)
	}
}

func TestShardForgetsTheFirstAfterSettling(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 4))
	s := &shard{}
	for i := range 300 {
		index := s.insert(uint64(i)<<32, []byte(fmt.Sprint("key", i)))
		s.set(index, Bucket{}, rnd.Int64N(1000))
		s.set(index, Bucket{}, rnd.Int64N(5000))
	}
	for last := int64(-1); s.live > 0; {
		s.settle()
		first := s.entries[s.heap[0]].full
		if first < last {
			t.Fatalf("%d comes after %d", first, last)
		}
		last = first
		s.remove(s.heap[0])
	}
}

func TestFreeEntriesAreUsedAgain(t *testing.T) {
	s := &shard{}
	for i := range 10_000 {
		index := s.insert(uint64(i)<<32, []byte(fmt.Sprint("key", i)))
		s.set(index, Bucket{}, 1)
		if s.live > 10 {
			s.remove(s.heap[0])
		}
	}
	if len(s.entries) != 11 || len(s.slots) > 16 {
		t.Errorf("%d entries and %d slots for 10 buckets", len(s.entries), len(s.slots))
	}
}

func TestShardSetIsLockedInOrder(t *testing.T) {
	var m table
	m.init(10)
	var set shardSet
	for _, i := range []uint64{255, 0, 64, 63, 64, 128, 1} {
		set.add(i)
	}
	m.lock(&set)
	var got []int
	m.each(&set, func(_ *table, s *shard) {
		if s.mu.TryLock() {
			t.Errorf("shard %d is not locked", s.index)
		}
	})
	for i := range m.shards {
		if !m.shards[i].mu.TryLock() {
			got = append(got, i)
		}
	}
	if fmt.Sprint(got) != "[0 1 63 64 128 255]" {
		t.Errorf("shards %v are locked", got)
	}
}
