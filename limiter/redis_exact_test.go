package limiter

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// exactCase is a bucket, a moment and a question.
type exactCase struct {
	Debt, At, Frac int64 // stored; Debt 0 for no key
	Now            int64
	N, P           int64
	Cost, Capacity int64
}

// exactAnswer is what must come of it.
type exactAnswer struct {
	Denied         bool
	Debt, Progress int64 // the level afterwards
	Stored         string
	TTL            int64 // ms; 0 if nothing was written
}

// want computes the answer with big integers, by the definition: units of
// 1/(n*p), no shortcuts.
func (c exactCase) want() exactAnswer {
	b := func(x int64) *big.Int { return big.NewInt(x) }
	n, p := b(c.N), b(c.P)
	debt, progress, moved := b(c.Debt), b(0), false
	if c.Debt > 0 {
		at, frac := c.At, c.Frac
		if frac >= c.N {
			at, frac = at+1, 0
		}
		if at-c.Now > 60_000_000 {
			at, frac, moved = c.Now, 0, true
		}
		units := new(big.Int).Sub(new(big.Int).Mul(b(c.Now-at), n), b(frac))
		progress = units
		if units.Sign() >= 0 {
			whole, rest := new(big.Int).DivMod(units, p, new(big.Int))
			debt.Sub(debt, whole)
			progress = rest
		}
		if debt.Sign() <= 0 {
			debt, progress = b(0), b(0)
		}
	}
	a := exactAnswer{Denied: c.Cost > 0 && debt.Int64()+c.Cost > c.Capacity}
	if !a.Denied {
		debt.Add(debt, b(c.Cost))
	}
	a.Debt, a.Progress = debt.Int64(), progress.Int64()
	if moved || !a.Denied && c.Cost > 0 {
		a.Stored, a.TTL = c.stored(debt, progress), c.ttl(debt, progress)
	}
	return a
}

// stored is the value of the bucket's key.
func (c exactCase) stored(debt, progress *big.Int) string {
	back := ceilQuo(progress, big.NewInt(c.N))
	frac := new(big.Int).Sub(new(big.Int).Mul(back, big.NewInt(c.N)), progress)
	return packBucket(debt.Int64(), c.Now-back.Int64(), frac.Int64())
}

// ttl is the time to full in ms, rounded up.
func (c exactCase) ttl(debt, progress *big.Int) int64 {
	missing := new(big.Int).Sub(new(big.Int).Mul(debt, big.NewInt(c.P)), progress)
	ms := ceilQuo(missing, new(big.Int).Mul(big.NewInt(c.N), big.NewInt(1000)))
	if longestMs := big.NewInt(1 << 53 / 1000); ms.Cmp(longestMs) > 0 {
		ms = longestMs
	}
	return ms.Int64()
}

func ceilQuo(x, y *big.Int) *big.Int {
	q, rest := new(big.Int).DivMod(x, y, new(big.Int))
	if rest.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	return q
}

func packBucket(debt, at, frac int64) string {
	value := binary.BigEndian.AppendUint32(nil, uint32(debt))
	value = append(value, binary.BigEndian.AppendUint64(nil, uint64(at))[1:]...)
	if frac > 0 {
		value = binary.BigEndian.AppendUint32(value, uint32(frac))
	}
	return string(value)
}

// randomExactCase has every size of every number, extremes too.
func randomExactCase(r *rand.Rand) exactCase {
	p := 1 + r.Int64N(1<<(1+r.IntN(52))-1)
	n := 1 + r.Int64N(min(p, 1<<(1+r.IntN(27))-1))
	if r.IntN(4) == 0 {
		p, n = 1<<52-1-r.Int64N(1000), 1<<27-1-r.Int64N(1000)
	}
	const slowest = 30 * 86_400_000_000
	if p/n >= slowest {
		p = n * (slowest - 1)
	}
	now := int64(1_700_000_000_000_000) + r.Int64N(1<<48)
	elapsed := r.Int64N(1 << (1 + r.IntN(50)))
	if r.IntN(4) == 0 {
		elapsed = -r.Int64N(120_000_001)
	}
	c := exactCase{
		Debt: r.Int64N(1 << (1 + r.IntN(29))), At: now - elapsed, Frac: r.Int64N(n + n/8 + 1),
		Now: now, N: n, P: p,
		Cost: r.Int64N(1 << r.IntN(28)), Capacity: 1 + r.Int64N(MaxCapacity),
	}
	if r.IntN(3) == 0 {
		c.N, c.P = 1<<27-1-r.Int64N(1<<26), 1<<51+r.Int64N(1<<51)
		c.At = now - almostWhole(c.N, c.P, r.Int64N(5)-2, elapsed)
		c.Debt, c.Frac = MaxCapacity, 0
	}
	return c
}

// almostWhole is a time in which n/p tokens a microsecond bring whole tokens
// and rest/p of one, where rest is about 0: there a quotient that is rounded is
// wrong by one. It is otherwise if no time below p is so.
func almostWhole(n, p, rest, otherwise int64) int64 {
	bigP := big.NewInt(p)
	inverse := new(big.Int).ModInverse(big.NewInt(n), bigP)
	if inverse == nil {
		return otherwise
	}
	elapsed := inverse.Mul(inverse, big.NewInt(rest))
	if elapsed.Mod(elapsed, bigP).Cmp(big.NewInt(1_600_000_000_000_000)) > 0 {
		return otherwise
	}
	return elapsed.Int64()
}

func TestScriptIsExactAtAllRates(t *testing.T) {
	server := startRedis(t)
	store := server.clockedStore(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 3000 {
		checkExact(t, server, store, fmt.Sprint("bucket", i), randomExactCase(r))
		if t.Failed() {
			return
		}
	}
}

func checkExact(t *testing.T, server *redisServer, store *RedisStore, key string, c exactCase) {
	t.Helper()
	want := c.want()
	before := ""
	if c.Debt > 0 {
		before = packBucket(c.Debt, c.At, c.Frac)
		server.do(t, "SET", key, before)
	}
	server.setClock(t, c.Now)
	from := server.now(t) / 1000
	d, err := spendOne(store, key, c.Cost, &Limit{Capacity: c.Capacity, Rate: Rate{n: c.N, p: c.P}})
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	to := server.now(t) / 1000
	l := d.Limits[0]
	got := exactAnswer{Denied: l.Denied, Debt: l.Level.Debt, Progress: l.Level.Progress}
	stored, _ := server.do(t, "GET", key).(string)
	if stored != before {
		got.Stored = stored
	}
	expires := server.do(t, "PEXPIRETIME", key).(int64)
	late := int64(0) // what the script may add where its numbers are not exact
	if missing := new(big.Int).Mul(big.NewInt(got.Debt), big.NewInt(c.P)); missing.Sub(missing, big.NewInt(got.Progress)).BitLen() > 53 {
		late = 1
	}
	if expires > 0 && expires >= from+want.TTL && expires <= to+want.TTL+late {
		got.TTL = want.TTL
	}
	if expires == -2 && want.TTL < 1000 { // full and gone, perhaps between the two reads
		want.Stored, want.TTL, got.Stored = "", 0, ""
	}
	if want.Stored == before { // the same state written again shows only in its expiry
		want.Stored = ""
	}
	if diff := cmp.Diff(want, got); diff != "" || d.Allowed == l.Denied {
		t.Errorf("%+v: allowed %v, expires %d, asked between %d and %d (-want +got)\n%s", c, d.Allowed, expires, from, to, diff)
	}
}

func TestBucketExpiresWhenItIsFull(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	tests := []struct {
		rate string
		cost int64
		ms   int64
	}{
		{"10/s", 1, 100},
		{"3/s", 1, 334}, // rounded up
		{"1000000/s", 1, 1},
		{"1/h", 10, 36_000_000},
		{"0.04/d", 1_000_000_000, 1 << 53 / 1000}, // 68 million years are cut to 285
	}
	for _, test := range tests {
		t.Run(test.rate, func(t *testing.T) {
			from := server.now(t) / 1000
			if _, err := spendOne(store, test.rate, test.cost, &Limit{Capacity: MaxCapacity, Rate: rate(test.rate)}); err != nil {
				t.Fatal(err)
			}
			to := server.now(t) / 1000
			got, _ := server.do(t, "PEXPIRETIME", test.rate).(int64)
			if test.ms > 1 && (got < from+test.ms || got > to+test.ms) {
				t.Errorf("got %d ms, want %d", got-from, test.ms)
			}
		})
	}
}

func TestBucketIsGoneOnceItIsFull(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	if _, err := spendOne(store, "k", 2, &Limit{Capacity: 2, Rate: rate("100/s")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key expires", func() bool { return server.do(t, "EXISTS", "k") == int64(0) })
}

func TestIdempotencyRecordLivesForItsTime(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	sp := Spend{Cost: 3, Keys: [][]byte{[]byte("b")}, IdempotencyKey: []byte("i"), IdempotencyTTL: 90 * time.Second}
	for i := range 3 {
		d := Decision{Limits: []LimitState{{Limit: slowLimit(3)}}}
		if err := store.Decide(context.Background(), &sp, &d); err != nil {
			t.Fatal(err)
		}
		if want := i > 0; !d.Allowed || d.Replayed != want || d.Limits[0].Level.Debt != 3 {
			t.Errorf("decision %d: got %+v", i, d)
		}
	}
	if ms := server.do(t, "PTTL", "i").(int64); ms > 90_000 || ms < 80_000 {
		t.Errorf("the record lives for %d ms, want 90000", ms)
	}
}

func TestForeignValueIsAnErrorAndIsKept(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	server.do(t, "SET", "text", "not a bucket")
	server.do(t, "RPUSH", "list", "x")
	for _, key := range []string{"text", "list"} {
		_, err := spendOne(store, key, 1, slowLimit(1))
		if err == nil || kindOf(err) != kindScript {
			t.Errorf("%s: got error %v, want one of the script", key, err)
		}
	}
	if got := server.do(t, "GET", "text"); got != "not a bucket" {
		t.Errorf("the value is now %q", got)
	}
}

func TestHostileKeysAreBucketsOfTheirOwn(t *testing.T) {
	server := startRedis(t)
	store := server.store(t)
	keys := []string{
		"r8:{a}:x", "r8:{a}:x ", "\x00", "\x00\x00", "\r\n", "*1\r\n$8\r\nFLUSHALL\r\n", "{}", "{", "'", "\"]] os.exit()",
		"\xff\xfe", "%s%n", strings.Repeat("k", 1<<16), strings.Repeat("k", 1<<16) + "k",
	}
	for _, key := range keys {
		d, err := spendOne(store, key, 1, slowLimit(1))
		if err != nil || !d.Allowed {
			t.Errorf("%.20q: allowed %v, error %v", key, d.Allowed, err)
		}
	}
	for _, key := range keys {
		d, err := spendOne(store, key, 1, slowLimit(1))
		if err != nil || d.Allowed {
			t.Errorf("%.20q again: allowed %v, error %v", key, d.Allowed, err)
		}
	}
	if n := server.do(t, "DBSIZE"); n != int64(len(keys)) {
		t.Errorf("got %d keys, want %d", n, len(keys))
	}
}
