package simulate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash/maphash"
	"unicode/utf8"
)

// maxName is how long a name is kept, in bytes; of a longer one the start and a hash.
const maxName = 128

// names numbers texts from 0 in the order in which they come. It takes some 24 bytes
// for each besides the text, and holds no pointer that the garbage collector would
// follow: a Go map of strings takes three times that and half of the time.
type names struct {
	seed  maphash.Seed
	slots []uint32 // 1 + a number, or 0; open addressing, a power of two
	all   []name
	text  []byte // of all, one after the other
}

// name is where a text is: it ends where the next begins.
type name struct {
	start int
	hash  uint32
}

func newNames() *names {
	return &names{seed: maphash.MakeSeed(), slots: make([]uint32, 1024)}
}

// number is the number of a text, which is new if it was not known.
func (n *names) number(text []byte) (number uint32, isNew bool) {
	if len(text) > maxName {
		text = shorten(text)
	}
	hash := uint32(maphash.Bytes(n.seed, text))
	mask := uint32(len(n.slots) - 1)
	i := hash & mask
	for ; n.slots[i] != 0; i = (i + 1) & mask {
		if number := n.slots[i] - 1; n.all[number].hash == hash && bytes.Equal(n.at(number), text) {
			return number, false
		}
	}
	number = uint32(len(n.all))
	n.slots[i] = number + 1
	n.all = append(n.all, name{len(n.text), hash})
	n.text = append(n.text, text...)
	if len(n.all)*4 > len(n.slots)*3 {
		n.grow()
	}
	return number, true
}

func (n *names) grow() {
	n.slots = make([]uint32, 2*len(n.slots))
	mask := uint32(len(n.slots) - 1)
	for number, each := range n.all {
		i := each.hash & mask
		for n.slots[i] != 0 {
			i = (i + 1) & mask
		}
		n.slots[i] = uint32(number) + 1
	}
}

// at is the text of a number that was given.
func (n *names) at(number uint32) []byte {
	end := len(n.text)
	if int(number)+1 < len(n.all) {
		end = n.all[number+1].start
	}
	return n.text[n.all[number].start:end]
}

// shorten keeps the start of a long text and a hash of all of it, in which nobody can
// find a collision on purpose.
func shorten(text []byte) []byte {
	sum := sha256.Sum256(text)
	cut := maxName - 2*16 - 1
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return hex.AppendEncode(append(bytes.Clone(text[:cut]), '#'), sum[:16])
}
