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
		"url: has a scheme that is not known: write redis://user:password@host:6379/0, rediss:// for TLS, or unix:///path/to/redis.sock?db=0",
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
		tls                           bool
	}
	tests := map[string]server{
		"redis://h":                        {"tcp", "h:6379", "", "", 0, false},
		"redis://h:7000/":                  {"tcp", "h:7000", "", "", 0, false},
		"redis://u:p%40%2F%23@h:1/3":       {"tcp", "h:1", "u", "p@/#", 3, false},
		"redis://:p@[::1]":                 {"tcp", "[::1]:6379", "", "p", 0, false},
		"rediss://u:p@h/2":                 {"tcp", "h:6379", "u", "p", 2, true},
		"unix:///run/redis.sock":           {"unix", "/run/redis.sock", "", "", 0, false},
		"unix://u:p@/run/redis.sock?db=15": {"unix", "/run/redis.sock", "u", "p", 15, false},
	}
	for text, want := range tests {
		c := RedisConfig{URL: text}
		p := c.place(func(path, problem string) { t.Errorf("%s: %s %s", text, path, problem) })
		got := server{p.network, strings.Join(p.addrs, " "), p.username, p.password, p.db, p.tls != nil}
		if got != want {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
	}
}

func TestRedisURLProblemsSayWhatIsWrongWithoutThePassword(t *testing.T) {
	tests := map[string]string{
		"":                                  "is missing",
		"rediss://u:secret@h/x":             "database",
		"rediss://u:secret@":                "rediss://host",
		"rediss://u:secret@h?secret":        "options",
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
		got := strings.Join(RedisConfig{URL: text}.problems(), "; ")
		if !strings.HasPrefix(got, "url: ") || !strings.Contains(got, want) || strings.Contains(got, "sec") {
			t.Errorf("%q: got %q, want something with %q", text, got, want)
		}
		if _, err := NewRedisStore(RedisConfig{URL: text}); err == nil || strings.Contains(err.Error(), "sec") {
			t.Errorf("NewRedisStore of %q: got %v", text, err)
		}
	}
}

func TestRedisConfigOfSeveralServersReportsEveryProblem(t *testing.T) {
	const beside = "stands beside a url without TLS: write rediss://host:6379/0 there, or leave tls out"
	const elsewhere = "is for sentinels only: write mode: sentinel, or leave it out"
	const goesWith = "goes with addrs: beside url write it there, as redis://user:password@host:6379/0"
	const form = "is not host:port with a port from 1 to 65535: write it as 10.0.0.5:6379 or [fd00::5]:6379"
	tests := []struct {
		config RedisConfig
		want   []string
	}{
		{RedisConfig{Mode: "ring", URL: "redis://h"}, []string{`mode: "ring" is unknown; write single, sentinel or cluster`}},
		{RedisConfig{Mode: "single", Addrs: []string{"h:1"}, Username: "u", Password: "p", DB: 3}, nil},
		{RedisConfig{URL: "redis://h", Addrs: []string{"h:1"}}, []string{"url: stands beside addrs: keep one of the two"}},
		{RedisConfig{Addrs: []string{"h:1", "i:1"}}, []string{"addrs: has 2 addresses, of which mode single takes one: write mode: sentinel or mode: cluster, or keep one"}},
		{RedisConfig{Addrs: []string{"redis://u:secret@h:1"}}, []string{"addrs[0]: " + form}},
		{RedisConfig{Mode: "cluster", Addrs: []string{"h:1", "h", ":1", "h:0", "u:secret@h:1", "[::1]:6379"}},
			[]string{"addrs[1]: " + form, "addrs[2]: " + form, "addrs[3]: " + form, "addrs[4]: " + form}},
		{RedisConfig{Mode: "cluster"}, []string{"addrs: is missing: write where some of the cluster's nodes are, as [10.0.0.5:6379, 10.0.0.6:6379]"}},
		{RedisConfig{Mode: "cluster", URL: "redis://u:secret@h", Addrs: []string{"h:1"}, DB: 1}, []string{
			"url: names one Redis only: for mode cluster write addrs: [host:port, ...], username, password and tls instead",
			"db: is not 0, and a cluster has no other database: leave it out"}},
		{RedisConfig{Mode: "sentinel"}, []string{
			"master_name: is missing: write the name that the sentinels monitor the primary by, as mymaster",
			"addrs: is missing: write where the sentinels are, as [10.0.0.5:26379, 10.0.0.6:26379]"}},
		{RedisConfig{Mode: "sentinel", MasterName: "m", Addrs: []string{"h:1"}, DB: -1, SentinelUsername: "u", Username: "u"}, []string{
			"sentinel_username: has no password beside it: give sentinel_password, or leave both out",
			"db: -1 is not between 0 and 65535",
			"username: has no password beside it: give password, or leave both out"}},
		{RedisConfig{Mode: "sentinel", MasterName: "m", Addrs: []string{"h:1", "i:1"}, DB: 65535, SentinelPassword: "p", Password: "q"}, nil},
		{RedisConfig{URL: "redis://h", MasterName: "m", SentinelUsername: "u", SentinelPassword: "secret"}, []string{
			"master_name: " + elsewhere, "sentinel_username: " + elsewhere, "sentinel_password: " + elsewhere}},
		{RedisConfig{URL: "redis://h", Username: "u", Password: "secret", DB: 1}, []string{
			"username: " + goesWith, "password: " + goesWith, "db: " + goesWith}},
		{RedisConfig{URL: "redis://h", TLS: &ClientTLS{}}, []string{"tls: " + beside}},
		{RedisConfig{URL: "unix:///s", TLS: &ClientTLS{ServerName: "h"}}, []string{"tls: " + beside}},
		{RedisConfig{URL: "rediss://h", TLS: &ClientTLS{ServerName: "h"}}, nil},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, test.config.problems()); diff != "" {
			t.Errorf("%+v (-want +got)\n%s", test.config, diff)
		}
		client, err := test.config.client(time.Second, 1)
		if (err == nil) != (test.want == nil) || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: client says %v", test.config, err)
		}
		if err == nil {
			client.Close()
		}
	}
}

func TestStoreSendsNothingTwice(t *testing.T) {
	p := redisPlace{network: "tcp", addrs: []string{"h:1"}}
	o, f, k := p.options(time.Second, 3), (&RedisConfig{}).sentinelOptions(p, time.Second, 3), p.clusterOptions(time.Second, 3)
	type promises struct {
		MaxRetries, DialerRetries, PoolSize, PipelinePoolSize, Protocol int
		ContextTimeoutEnabled, DisableIdentity                          bool
		ReadTimeout, WriteTimeout, PoolTimeout, ConnMaxIdleTime         time.Duration
	}
	want := promises{-1, 1, 3, -1, 2, true, true, time.Second, time.Second, time.Second, time.Minute}
	for _, got := range []promises{
		{o.MaxRetries, o.DialerRetries, o.PoolSize, o.PipelinePoolSize, o.Protocol, o.ContextTimeoutEnabled, o.DisableIdentity, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout, o.ConnMaxIdleTime},
		{f.MaxRetries, f.DialerRetries, f.PoolSize, f.PipelinePoolSize, f.Protocol, f.ContextTimeoutEnabled, f.DisableIdentity, f.ReadTimeout, f.WriteTimeout, f.PoolTimeout, f.ConnMaxIdleTime},
		{k.MaxRetries, k.DialerRetries, k.PoolSize, k.PipelinePoolSize, k.Protocol, k.ContextTimeoutEnabled, k.DisableIdentity, k.ReadTimeout, k.WriteTimeout, k.PoolTimeout, k.ConnMaxIdleTime},
	} {
		if got != want {
			t.Errorf("options allow retries or forget deadlines: got %+v, want %+v", got, want)
		}
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
		a.set([]byte("a"), time.Second, time.Now())
		a.set([]byte("b"), time.Minute, time.Now())
		a.set([]byte("b"), time.Minute, time.Now())
		a.set([]byte("c"), time.Hour, time.Now())
		a.set([]byte("c"), 0, time.Now())
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
			a.set(fmt.Append(nil, i), time.Second, time.Now())
		}
		if n := a.count(); n > activeShards*activeShardMax || n < activeShards*activeShardMax*9/10 {
			t.Errorf("got %d active keys", n)
		}
		time.Sleep(2 * time.Second)
		for i := range 1000 {
			a.set(fmt.Append(nil, i), time.Second, time.Now())
		}
		if n := a.count(); n != 1000 {
			t.Errorf("got %d active keys, want 1000: full ones took their room", n)
		}
	})
}
