package limiter

import (
	"crypto/sha256"
	"encoding/hex"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf8"
)

const (
	offenderShards = 16
	// offendersPerShard bounds the memory: 16 shards of 1,024 users with names of
	// at most maxOffenderName bytes are some 4 MB.
	offendersPerShard = 1024
	maxOffenderName   = 128
	// flushedOffenders are taken at each flush, so that statistics cost Redis half
	// a millisecond a second at most; the others wait for the next.
	flushedOffenders = 128
)

// offenders counts denials by user in bounded memory, after Misra and Gries
// ("Finding repeated elements", 1982): where there is no room for another user, a
// count goes down by one, and who has none left makes room. It is the least of
// some that are picked at random, as to lower all would take 20 us under the lock. So nobody is
// ever blamed for more than they did, and who is denied often stays.
//
// A library's sketches can't be drained one part at a time, which is what lets
// a flush be small.
type offenders struct {
	seed    maphash.Seed
	dropped atomic.Uint64 // denials that found no room
	shards  [offenderShards]offenderShard
}

type offenderShard struct {
	mu     sync.Mutex // guards denies
	denies map[string]*uint64
	_      [48]byte // to the size of a cache line
}

func newOffenders() *offenders {
	o := &offenders{seed: maphash.MakeSeed()}
	for i := range o.shards {
		o.shards[i].denies = map[string]*uint64{}
	}
	return o
}

// add counts a denial of user. It allocates only for one that is new.
func (o *offenders) add(user []byte) {
	if len(user) > maxOffenderName {
		user = shorten(user)
	}
	s := &o.shards[maphash.Bytes(o.seed, user)%offenderShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.denies[string(user)]; n != nil {
		*n++
		return
	}
	if len(s.denies) < offendersPerShard {
		n := uint64(1)
		s.denies[string(user)] = &n
		return
	}
	o.dropped.Add(1)
	least := s.leastLocked()
	if n := s.denies[least]; *n > 1 {
		*n--
		return
	}
	delete(s.denies, least)
	n := uint64(1)
	s.denies[string(user)] = &n
}

// leastLocked is the user with the fewest denials of a few: a map is walked from
// a random place.
func (s *offenderShard) leastLocked() (least string) {
	const few = 8
	seen, fewest := 0, uint64(0)
	for name, n := range s.denies {
		if seen == 0 || *n < fewest {
			least, fewest = name, *n
		}
		if seen++; seen == few {
			break
		}
	}
	return least
}

// shorten keeps the start of a long name and a hash of all of it.
func shorten(user []byte) []byte {
	sum := sha256.Sum256(user)
	cut := maxOffenderName - 2*8 - 1
	for cut > 0 && !utf8.RuneStart(user[cut]) {
		cut--
	}
	short := append(slices.Clone(user[:cut]), '#')
	return hex.AppendEncode(short, sum[:8])
}

// take removes the n users with most denials and returns them, most first.
func (o *offenders) take(n int) []Offender {
	top := leaders{n: n}
	for i := range o.shards {
		s := &o.shards[i]
		s.mu.Lock()
		for name, count := range s.denies {
			top.offer(name, *count)
		}
		s.mu.Unlock()
	}
	taken := worst(top.all, n)
	for i := range taken {
		taken[i].Denies = o.remove(taken[i].User)
	}
	return slices.DeleteFunc(taken, func(t Offender) bool { return t.Denies == 0 })
}

// leaders collects the n users with most denials out of many: those that can't
// be among them are passed over, which is nearly all.
type leaders struct {
	n     int
	all   []Offender // at most 2n
	least uint64     // what it takes to be among n of them
}

func (l *leaders) offer(user string, denies uint64) {
	if denies <= l.least {
		return
	}
	if l.all = append(l.all, Offender{user, denies}); len(l.all) == 2*l.n {
		l.all = worst(l.all, l.n)
		l.least = l.all[l.n-1].Denies
	}
}

// remove forgets a user and returns their count, which may have grown since.
func (o *offenders) remove(name string) uint64 {
	s := &o.shards[maphash.String(o.seed, name)%offenderShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.denies[name]
	if n == nil {
		return 0
	}
	delete(s.denies, name)
	return *n
}

// denials are the counts of one time bucket by user.
type denials map[string]uint64

// trim keeps the n users with most denials.
func (d denials) trim(n int) {
	if len(d) <= n {
		return
	}
	for _, o := range d.list()[n:] {
		delete(d, o.User)
	}
}

// list is d, most denials first.
func (d denials) list() []Offender {
	all := make([]Offender, 0, len(d))
	for user, n := range d {
		all = append(all, Offender{user, n})
	}
	return worst(all, len(all))
}
