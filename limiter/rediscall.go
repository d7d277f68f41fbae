package limiter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// call is one EVALSHA of lua/decide.lua with the decisions of one or more
// tickets. It is a go-redis command that may never be sent again, whatever
// happens (a cluster client would, up to three times, also with MaxRetries -1):
// see NoRetry.
type call struct {
	*redis.StringCmd
	tickets []*ticket
	keys    []bytesArg // of the decisions, in their order
	params  bytesArg   // ARGV[1]
	args    []any      // what StringCmd sends; points into keys and params
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

// add takes a ticket into the call. Its bytes are only read until the call is over.
func (c *call) add(t *ticket) {
	c.tickets = append(c.tickets, t)
	for _, key := range t.spend.Keys {
		c.keys = append(c.keys, key)
	}
	if len(t.spend.IdempotencyKey) > 0 {
		c.keys = append(c.keys, t.spend.IdempotencyKey)
	}
	c.params = appendDecision(c.params, t)
}

// build makes the command of what was added. It begins with evalsha or eval and
// the script.
func (c *call) build(script []any) {
	c.args = append(append(c.args[:0], script...), numKeys(len(c.keys)))
	for i := range c.keys {
		c.args = append(c.args, &c.keys[i])
	}
	c.args = append(c.args, &c.params)
	// A new one each time: a command keeps the slot that it was first sent to.
	c.StringCmd = redis.NewStringCmd(context.Background(), c.args...)
}

// clear makes the call empty, in the memory that it has.
func (c *call) clear() {
	clear(c.tickets)
	clear(c.keys)
	c.StringCmd, c.tickets, c.keys, c.params, c.args = nil, c.tickets[:0], c.keys[:0], c.params[:0], c.args[:0]
}

// smallNumbers are the arguments that most calls need, as they stand in one.
var smallNumbers = func() (texts [257]any) {
	for i := range texts {
		texts[i] = strconv.Itoa(i)
	}
	return texts
}()

func numKeys(n int) any {
	if n < len(smallNumbers) {
		return smallNumbers[n]
	}
	return strconv.Itoa(n)
}

// What a decision is besides a spend, as lua/decide.lua names it.
const (
	flagRecord = 1 << iota
	flagOwed
	flagRefund
	flagLease
	flagReturn
	flagPeek
)

// appendDecision appends what lua/decide.lua documents as its ARGV.
func appendDecision(b []byte, t *ticket) []byte {
	sp, flags := t.spend, t.flags
	if len(sp.IdempotencyKey) > 0 {
		flags |= flagRecord
	}
	b = append(b, flags, byte(len(sp.Keys)))
	b = binary.BigEndian.AppendUint32(b, uint32(sp.Cost))
	if flags&flagRecord != 0 {
		b = appendWide(b, max(1, int64((sp.IdempotencyTTL+time.Millisecond-1)/time.Millisecond)), 6)
	}
	if flags&(flagLease|flagReturn) != 0 {
		b = appendWide(b, t.lease.id, 5)
	}
	if flags&flagLease != 0 {
		b = binary.BigEndian.AppendUint32(b, uint32(t.lease.held))
		b = binary.BigEndian.AppendUint32(b, uint32(t.lease.want))
		b = binary.BigEndian.AppendUint16(b, uint16(t.lease.share))
		b = binary.BigEndian.AppendUint32(b, uint32(t.lease.ttl/time.Millisecond))
	}
	for i := range t.decision.Limits {
		b = appendLimit(b, t.decision.Limits[i].Limit)
	}
	return b
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
	return appendWide(b, l.Rate.p, 7)
}

// appendWide appends the last bytes of n, size of them.
func appendWide(b []byte, n int64, size int) []byte {
	for ; size > 0; size-- {
		b = append(b, byte(n>>(8*(size-1))))
	}
	return b
}

// Errors of one decision in a call, which its neighbours do not share.
var (
	errAnswer  = errors.New("the script's answer has the wrong size")
	errForeign = errors.New("a key of the limit holds something that is no bucket: another program uses the same key_prefix")
)

// answerSize is the size of one limit in the script's answer: '>I1I4i8'.
const answerSize = 13

// read sets the tickets' decisions and errors to what the script returned.
func (c *call) read() {
	answer := c.Val()
	for _, t := range c.tickets {
		answer, t.err = t.read(answer)
		if errors.Is(t.err, errAnswer) {
			c.fail(t.err)
			return
		}
	}
	if answer != "" {
		c.fail(fmt.Errorf("%w: %d bytes more", errAnswer, len(answer)))
	}
}

// fail gives all tickets one error.
func (c *call) fail(err error) {
	for _, t := range c.tickets {
		t.err = err
	}
}

// read takes one decision off the answer and returns the rest.
func (t *ticket) read(answer string) (rest string, err error) {
	if answer == "" {
		return "", fmt.Errorf("%w: it ends early", errAnswer)
	}
	d, status := t.decision, answer[0]
	answer = answer[1:]
	switch status {
	case 'M':
		return answer, ErrKeyReused
	case 'X':
		return answer, errForeign
	case 'A', 'D', 'R':
	default:
		return "", fmt.Errorf("%w: %q is no decision", errAnswer, status)
	}
	size := answerSize * len(d.Limits)
	if t.flags&flagLease != 0 {
		size += 4
	}
	if len(answer) < size {
		return "", fmt.Errorf("%w: %d bytes for %d limits", errAnswer, len(answer), len(d.Limits))
	}
	if t.flags&flagLease != 0 {
		t.lease.got = bigEndian(answer[:4])
		answer, size = answer[4:], size-4
	}
	d.Replayed = status == 'R'
	d.Allowed = d.Replayed || status == 'A'
	d.readLimits(answer)
	return answer[size:], nil
}

func (d *Decision) readLimits(answer string) {
	for i := range d.Limits {
		part := answer[answerSize*i:][:answerSize]
		l := &d.Limits[i]
		l.Denied, l.leasedOut = part[0]&1 != 0, part[0]&2 != 0
		l.Level = Level{Debt: bigEndian(part[1:5]), Progress: bigEndian(part[5:])}
	}
}

// bigEndian reads s, 8 bytes of which make a signed number.
func bigEndian(s string) int64 {
	n := uint64(0)
	for i := range len(s) {
		n = n<<8 | uint64(s[i])
	}
	return int64(n)
}
