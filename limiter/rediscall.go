package limiter

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// call is one EVALSHA of lua/decide.lua. It is a go-redis command that may
// never be sent again, whatever happens (a cluster client would, up to three
// times, also with MaxRetries -1): see NoRetry.
type call struct {
	*redis.StringCmd
	keys   []bytesArg // of the buckets, then of the idempotency record
	params bytesArg   // ARGV[1]
	args   []any      // what StringCmd sends; points into keys and params
}

// NoRetry says that the command spends: once sent it is not sent again.
func (*call) NoRetry() bool { return true }

// bytesArg is an argument that go-redis writes without its bytes being boxed
// into an interface, which would allocate.
type bytesArg []byte

func (b *bytesArg) MarshalBinary() ([]byte, error) { return *b, nil }

// String is for a cluster client, which asks for the first key's text to find
// its slot.
func (b *bytesArg) String() string { return string(*b) }

// newCall has room for n keys.
func newCall(sha string, n int) *call {
	c := &call{keys: make([]bytesArg, n)}
	c.args = append(c.args, "evalsha", sha, strconv.Itoa(n))
	for i := range c.keys {
		c.args = append(c.args, &c.keys[i])
	}
	c.args = append(c.args, &c.params)
	c.StringCmd = redis.NewStringCmd(context.Background(), c.args...)
	return c
}

// forgetSlot makes a cluster client look for the slot of the keys that c has
// now: a go-redis command keeps the slot that it was first sent to.
func (c *call) forgetSlot() {
	if c.args != nil { // or it is new, by withText
		c.StringCmd = redis.NewStringCmd(context.Background(), c.args...)
	}
}

// withText is the same call with the script's text instead of its name.
func (c *call) withText(script string) *call {
	args := append([]any{"eval", script}, c.args[2:]...)
	return &call{StringCmd: redis.NewStringCmd(context.Background(), args...)}
}

// set fills in what lua/decide.lua documents as its KEYS and ARGV.
func (c *call) set(sp *Spend, limits []LimitState) {
	for i, key := range sp.Keys {
		c.keys[i] = key
	}
	ttl := int64(0)
	if len(sp.IdempotencyKey) > 0 {
		c.keys[len(sp.Keys)] = sp.IdempotencyKey
		ttl = max(1, int64((sp.IdempotencyTTL+time.Millisecond-1)/time.Millisecond))
	}
	b := binary.BigEndian.AppendUint32(c.params[:0], uint32(sp.Cost))
	b = binary.BigEndian.AppendUint16(b, uint16(ttl>>32))
	b = binary.BigEndian.AppendUint32(b, uint32(ttl))
	for i := range limits {
		b = appendLimit(b, limits[i].Limit)
	}
	c.params = b
}

// appendLimit packs l as '>I1I4I4I7'.
func appendLimit(b []byte, l *Limit) []byte {
	shadow := byte(0)
	if l.Shadow {
		shadow = 1
	}
	b = append(b, shadow)
	b = binary.BigEndian.AppendUint32(b, uint32(l.Capacity))
	b = binary.BigEndian.AppendUint32(b, uint32(l.Rate.n))
	p := uint64(l.Rate.p)
	b = append(b, byte(p>>48))
	b = binary.BigEndian.AppendUint16(b, uint16(p>>32))
	return binary.BigEndian.AppendUint32(b, uint32(p))
}

// callPool keeps calls for reuse, by the number of their keys: a go-redis
// command can't change how many arguments it has. The zero value is ready.
type callPool [maxLimits + 2]sync.Pool // 0 to maxLimits, and an idempotency record

// take returns the call that asks for sp.
func (p *callPool) take(sha string, sp *Spend, limits []LimitState) *call {
	n := len(sp.Keys)
	if len(sp.IdempotencyKey) > 0 {
		n++
	}
	c, _ := p[n].Get().(*call)
	if c == nil {
		c = newCall(sha, n)
	}
	c.set(sp, limits)
	return c
}

// release takes back a call that was answered. One that failed is left to the
// garbage collector: nothing here depends on what go-redis does after an error.
func (p *callPool) release(c *call) {
	clear(c.keys)
	c.SetErr(nil)
	c.SetVal("")
	p[len(c.keys)].Put(c)
}

// answerSize is the size of one limit in the script's answer: '>I1I4i8'.
const answerSize = 13

// readAnswer sets d to what the script returned.
func readAnswer(answer string, d *Decision) error {
	if answer == "M" {
		return ErrKeyReused
	}
	if len(answer) != 1+answerSize*len(d.Limits) {
		return fmt.Errorf("%w: %d bytes for %d limits", errAnswer, len(answer), len(d.Limits))
	}
	d.Replayed = answer[0] == 'R'
	d.Allowed = d.Replayed || answer[0] == 'A'
	for i := range d.Limits {
		part := answer[1+answerSize*i:][:answerSize]
		l := &d.Limits[i]
		l.Denied = part[0] != 0
		l.Level = Level{Debt: bigEndian(part[1:5]), Progress: bigEndian(part[5:])}
	}
	return nil
}

// bigEndian reads s, 8 bytes of which make a signed number.
func bigEndian(s string) int64 {
	n := uint64(0)
	for i := range len(s) {
		n = n<<8 | uint64(s[i])
	}
	return int64(n)
}
