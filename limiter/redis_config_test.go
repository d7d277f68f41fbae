package limiter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
)

// problems are what Validate reports of c, as path: problem.
func (c RedisConfig) problems() (all []string) {
	c.Validate(func(path, problem string) { all = append(all, path+": "+problem) })
	return all
}

func TestRedisConfigReportsEveryProblem(t *testing.T) {
	c := RedisConfig{URL: "http://x", Timeout: 11 * time.Second, KeyPrefix: "a:b"}
	want := []string{
		"url: has a scheme that is not known: write redis://user:password@host:6379/0 or unix:///path/to/redis.sock?db=0",
		"timeout: 11s is not between 1ms and 10s",
		`key_prefix: "a:b" must be at most 32 of the characters A-Z a-z 0-9 _ . -`,
	}
	if diff := cmp.Diff(want, c.problems()); diff != "" {
		t.Errorf("problems (-want +got)\n%s", diff)
	}
}

func TestRedisConfigBounds(t *testing.T) {
	tests := []struct {
		timeout time.Duration
		prefix  string
		good    bool
	}{
		{0, "", true},
		{time.Millisecond, "A-z_0.9", true},
		{10 * time.Second, strings.Repeat("x", 32), true},
		{time.Millisecond - 1, "", false},
		{10*time.Second + 1, "", false},
		{-1, "", false},
		{0, strings.Repeat("x", 33), false},
		{0, "{a}", false},
		{0, "a\n", false},
		{0, "é", false},
	}
	for _, test := range tests {
		c := RedisConfig{URL: "redis://h", Timeout: test.timeout, KeyPrefix: test.prefix}
		if got := c.problems(); (len(got) == 0) != test.good {
			t.Errorf("%v %q: got problems %q", test.timeout, test.prefix, got)
		}
	}
}

func TestRedisURL(t *testing.T) {
	type server struct {
		network, addr, user, password string
		db                            int
	}
	tests := map[string]server{
		"redis://h":                        {"tcp", "h:6379", "", "", 0},
		"redis://h:7000/":                  {"tcp", "h:7000", "", "", 0},
		"redis://u:p%40%2F%23@h:1/3":       {"tcp", "h:1", "u", "p@/#", 3},
		"redis://:p@[::1]":                 {"tcp", "[::1]:6379", "", "p", 0},
		"unix:///run/redis.sock":           {"unix", "/run/redis.sock", "", "", 0},
		"unix://u:p@/run/redis.sock?db=15": {"unix", "/run/redis.sock", "u", "p", 15},
	}
	for text, want := range tests {
		o, err := (&RedisConfig{URL: text}).options()
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := server{o.Network, o.Addr, o.Username, o.Password, o.DB}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
	}
}

func TestRedisURLProblemsSayWhatIsWrongWithoutThePassword(t *testing.T) {
	tests := map[string]string{
		"":                                  "is missing",
		"rediss://u:secret@h":               "TLS to Redis is not served yet",
		"http://u:secret@h":                 "scheme",
		"u:secret@h":                        "scheme",
		"redis://u:secret@":                 "names no host",
		"redis://u:secret@h:0":              "port",
		"redis://u:secret@h:65536":          "port",
		"redis://u:secret@h:x":              "can't be read",
		"redis://u:secret@h/zero":           "database",
		"redis://u:secret@h/-1":             "database",
		"redis://u:secret@h/1/2":            "database",
		"redis://u:secret@h?max_retries=9":  "options",
		"redis://u:sec#secret@h":            "can't be read",
		"redis://:1#secret@h":               "holds a #",
		"redis://u:sec/secret@h":            "can't be read",
		"redis://u:%secret@h":               "can't be read",
		"redis://u:secret\x00@h":            "can't be read",
		"redis://u:secret@h#":               "holds a #",
		"unix://run/redis.sock":             "names no socket",
		"unix://":                           "names no socket",
		"unix:///s?db=1&password=secret":    "options",
		"unix:///s?db=secret":               "database",
		"unix:///s?db=1&db=2":               "options",
		"unix://u:secret@/run/r.sock?a=%zz": "options",
	}
	for text, want := range tests {
		err := (&RedisConfig{URL: text}).problem()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sec") {
			t.Errorf("%q: got %v, want something with %q", text, err, want)
		}
		if _, err := NewRedisStore(RedisConfig{URL: text}); err == nil || strings.Contains(err.Error(), "sec") {
			t.Errorf("NewRedisStore of %q: got %v", text, err)
		}
	}
}

func (c *RedisConfig) problem() error {
	_, err := c.options()
	return err
}

func TestStoreSendsNothingTwice(t *testing.T) {
	o, err := (&RedisConfig{URL: "redis://h"}).options()
	if err != nil {
		t.Fatal(err)
	}
	if o.MaxRetries != -1 || o.DialerRetries != 1 || !o.ContextTimeoutEnabled {
		t.Errorf("options allow retries or forget deadlines: %+v", o)
	}
	var command redis.Cmder = new(call)
	if !command.NoRetry() {
		t.Error("a cluster client would send a call again")
	}
}

func TestErrorsAreCountedByKind(t *testing.T) {
	tests := []struct {
		err  error
		want errorKind
	}{
		{context.DeadlineExceeded, kindTimeout},
		{redis.ErrPoolTimeout, kindTimeout},
		{&net.OpError{Op: "read", Err: &net.DNSError{IsTimeout: true}}, kindTimeout},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, kindConnection},
		{io.EOF, kindConnection},
		{io.ErrUnexpectedEOF, kindConnection},
		{net.ErrClosed, kindConnection},
		{redis.ErrClosed, kindConnection},
		{errAnswer, kindScript},
		{context.Canceled, kindOther},
		{errors.New("odd"), kindOther},
	}
	for _, test := range tests {
		if got := kindOf(fmt.Errorf("wrapped: %w", test.err)); got != test.want {
			t.Errorf("%v: got %v, want %v", test.err, got, test.want)
		}
	}
}

// refusal is an error that Redis answered.
type refusal string

func (r refusal) Error() string { return string(r) }
func (refusal) RedisError()     {}

func TestRefusalsAreCountedByKind(t *testing.T) {
	tests := map[refusal]errorKind{
		"ERR something script: 1df94, on @user_script:51.":                                     kindScript,
		"OOM allow-oom flag is not set on the script, can not run it":                          kindOther,
		"LOADING Redis is loading the dataset in memory":                                       kindOther,
		"ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'": kindScript,
	}
	for err, want := range tests {
		if got := kindOf(explain(err)); got != want {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
		if told, old := strings.Contains(explain(err).Error(), "7.0"), strings.Contains(string(err), "#"); told != old {
			t.Errorf("told of the version: %v", explain(err))
		}
	}
}

func TestAnswerOfTheWrongSizeIsAnError(t *testing.T) {
	limit := "A" + strings.Repeat("x", 13)
	tests := map[string][2]error{
		"": {errAnswer, errAnswer}, "A": {errAnswer, errAnswer}, "M": {errAnswer, errAnswer},
		limit: {errAnswer, errAnswer}, limit + limit + "A": {errAnswer, errAnswer},
		limit + limit[:13]: {errAnswer, errAnswer}, "Z" + limit[1:] + limit: {errAnswer, errAnswer},
		"M" + limit: {ErrKeyReused, nil}, limit + "X": {nil, errForeign}, limit + limit: {nil, nil},
	}
	for answer, want := range tests {
		c := call{StringCmd: redis.NewStringCmd(t.Context())}
		for range want {
			c.add(&ticket{spend: &Spend{}, decision: &Decision{Limits: []LimitState{{Limit: slowLimit(1)}}}})
		}
		c.SetVal(answer)
		c.read()
		for i, t1 := range c.tickets {
			if !errors.Is(t1.err, want[i]) || (t1.err == nil) != (want[i] == nil) {
				t.Errorf("%q: decision %d: got %v, want %v", answer, i, t1.err, want[i])
			}
		}
	}
}

func TestActiveKeysAreForgottenWhenTheyAreFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newActiveKeys()
		a.set([]byte("a"), time.Second)
		a.set([]byte("b"), time.Minute)
		a.set([]byte("b"), time.Minute)
		a.set([]byte("c"), time.Hour)
		a.set([]byte("c"), 0)
		if n := a.count(); n != 2 {
			t.Errorf("got %d active keys, want 2", n)
		}
		time.Sleep(time.Second)
		if n := a.count(); n != 1 {
			t.Errorf("a second later got %d, want 1", n)
		}
	})
}

func TestActiveKeysAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newActiveKeys()
		for i := range activeShards * activeShardMax * 11 / 10 {
			a.set(fmt.Append(nil, i), time.Second)
		}
		if n := a.count(); n > activeShards*activeShardMax || n < activeShards*activeShardMax*9/10 {
			t.Errorf("got %d active keys", n)
		}
		time.Sleep(2 * time.Second)
		for i := range 1000 {
			a.set(fmt.Append(nil, i), time.Second)
		}
		if n := a.count(); n != 1000 {
			t.Errorf("got %d active keys, want 1000: full ones took their room", n)
		}
	})
}

func TestDecisionInRedisAllocatesLittle(t *testing.T) {
	store := startRedis(t).store(t)
	limit := slowLimit(MaxCapacity)
	d := Decision{Limits: []LimitState{{Limit: limit}}}
	sp := Spend{Cost: 1, Keys: [][]byte{[]byte("k")}}
	n := testing.AllocsPerRun(1000, func() {
		if err := store.Decide(context.Background(), &sp, &d); err != nil {
			t.Error(err)
		}
	})
	// 3 are go-redis's look at the connection, 1 the answer, the others a
	// deadline now and then; the race detector empties pools.
	if n > 8 {
		t.Errorf("%v allocations, want at most 8", n)
	}
}
