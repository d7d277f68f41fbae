package limiter

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// testedCondition is a condition with its series. The client ends with the test.
type testedCondition struct {
	*redisCondition
	set *metrics.Set
}

// condition is that of s, by a client that waits longer than a look may take.
func (s *redisServer) condition(t testing.TB, user string) testedCondition {
	t.Helper()
	client := redis.NewClient(&redis.Options{
		Network: "unix", Addr: s.socket, Username: user, Password: user, Protocol: 2, DisableIdentity: true,
		MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, ReadTimeout: time.Minute,
	})
	t.Cleanup(func() { client.Close() })
	return conditionOf(client)
}

func conditionOf(client redis.UniversalClient) testedCondition {
	set := metrics.NewSet()
	return testedCondition{newRedisCondition(client, set), set}
}

// wants looks once, and returns the messages by kind. The warnings must be of
// these kinds, in this order, and the gauges must say the same.
func (c testedCondition) wants(t testing.TB, kinds ...string) map[string]string {
	t.Helper()
	warnings, err := c.check(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	messages := map[string]string{}
	for _, w := range warnings {
		got = append(got, w.kind)
		messages[w.kind] = w.message
	}
	if diff := cmp.Diff(append([]string{}, kinds...), got); diff != "" {
		t.Fatalf("kinds of warnings (-want +got):\n%s", diff)
	}
	c.wantGauges(t, kinds...)
	return messages
}

// wantGauges fails unless the gauges of these kinds are 1 and the others 0.
func (c testedCondition) wantGauges(t testing.TB, kinds ...string) {
	t.Helper()
	for _, each := range conditions {
		want := 0
		if slices.Contains(kinds, each.kind) {
			want = 1
		}
		c.wantSeries(t, fmt.Sprintf("r8limiter_store_condition{kind=%q} %d", each.kind, want))
	}
}

func (c testedCondition) wantEvicted(t testing.TB, n int64) {
	t.Helper()
	c.wantSeries(t, "r8limiter_store_evicted_keys_total "+strconv.FormatInt(n, 10))
}

func (c testedCondition) wantSeries(t testing.TB, line string) {
	t.Helper()
	var text strings.Builder
	c.set.WritePrometheus(&text)
	if !strings.Contains("\n"+text.String(), "\n"+line+"\n") {
		t.Errorf("the series lack %s:\n%s", line, text.String())
	}
}

// wantWords fails unless message holds all words.
func wantWords(t testing.TB, message string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(message, word) {
			t.Errorf("the message lacks %q: %s", word, message)
		}
	}
}

func TestConditionOfADurableRedisIsFine(t *testing.T) {
	server := startRedis(t)
	server.do(t, "CONFIG", "SET", "appendonly", "yes")
	c := server.condition(t, "")
	c.wantGauges(t)
	c.wants(t)
	c.wantEvicted(t, 0)
}

func TestConditionEvictionPolicy(t *testing.T) {
	server := startRedis(t)
	server.do(t, "CONFIG", "SET", "appendonly", "yes")
	c := server.condition(t, "")
	for _, policy := range []string{"allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"} {
		server.do(t, "CONFIG", "SET", "maxmemory", "200mb", "maxmemory-policy", policy)
		m := c.wants(t, "eviction_policy")
		wantWords(t, m["eviction_policy"], "maxmemory-policy is "+policy+":", "(209715200 bytes)", "more than their limits", "set maxmemory-policy noeviction")
		server.do(t, "CONFIG", "SET", "maxmemory", "0")
		c.wants(t)
	}
	server.do(t, "CONFIG", "SET", "maxmemory", "200mb", "maxmemory-policy", "noeviction")
	c.wants(t)
}

func TestConditionReplica(t *testing.T) {
	server := startRedis(t)
	c := server.condition(t, "")
	server.do(t, "REPLICAOF", "127.0.0.1", "1")
	m := c.wants(t, "replica") // and not persistence, which is its primary's
	wantWords(t, m["replica"], "scripts can't write", "name the primary", "REPLICAOF NO ONE")
	server.do(t, "REPLICAOF", "NO", "ONE")
	c.wants(t, "persistence")
}

func TestConditionPersistence(t *testing.T) {
	server := startRedis(t)
	c := server.condition(t, "")
	m := c.wants(t, "persistence")
	wantWords(t, m["persistence"], "neither an AOF nor a replica", "forgets every debt ", "set appendonly yes (appendfsync everysec) or add a replica")

	server.do(t, "CONFIG", "SET", "appendonly", "yes")
	c.wants(t)
}

func TestConditionIsFineWithAReplica(t *testing.T) {
	server, replica := startRedis(t), startRedis(t)
	server.do(t, "CONFIG", "SET", "repl-diskless-sync-delay", "0")
	replica.do(t, "REPLICAOF", "127.0.0.1", server.openPort(t))
	eventually(t, "the replica is connected", func() bool {
		return strings.Contains(server.do(t, "INFO", "replication").(string), "connected_slaves:1")
	})
	server.condition(t, "").wants(t)
	replica.condition(t, "").wants(t, "replica")
}

// openPort makes s listen on loopback, and returns the port.
func (s *redisServer) openPort(t testing.TB) string {
	t.Helper()
	for range 20 {
		port := freePort(t)
		if s.admin.ConfigSet(context.Background(), "port", port).Err() == nil { // or another was quicker
			return port
		}
	}
	t.Fatal("found no port for redis-server")
	return ""
}

// freePort is a port that nobody listens on now.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// fill writes until Redis has evicted keys for want of memory, then gives it
// plenty, and returns how many it has evicted in all.
func (s *redisServer) fill(t testing.TB) int64 {
	t.Helper()
	evicted := func() int64 {
		n, _ := infoOf(t, s, "stats").number("evicted_keys")
		return n
	}
	used, _ := infoOf(t, s, "memory").number("used_memory")
	before := evicted()
	s.do(t, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "maxmemory", used+1<<20)
	eventually(t, "Redis evicts", func() bool {
		p := s.admin.Pipeline()
		for range 1000 {
			fills++
			p.Set(context.Background(), fmt.Sprintf("fill:%d", fills), strings.Repeat("x", 1000), time.Hour)
		}
		if _, err := p.Exec(context.Background()); err != nil {
			t.Fatal(err)
		}
		return evicted() > before
	})
	s.do(t, "CONFIG", "SET", "maxmemory", "0")
	return evicted()
}

var fills int // names what fill writes

// infoOf reads a section with all its fields.
func infoOf(t testing.TB, s *redisServer, section string) redisInfo {
	t.Helper()
	info := redisInfo{}
	for line := range strings.Lines(s.do(t, "INFO", section).(string)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		info[name] = value
	}
	return info
}

func TestConditionEvictedKeysAreCounted(t *testing.T) {
	server := startRedis(t)
	earlier := server.fill(t)
	server.do(t, "CONFIG", "SET", "appendonly", "yes")
	c := server.condition(t, "")
	c.wants(t) // what was before is not news
	c.wantEvicted(t, 0)

	later := server.fill(t)
	m := c.wants(t, "evicted")
	wantWords(t, m["evicted"], fmt.Sprintf("evicted %d keys since the last look", later-earlier), "more memory", "noeviction")
	c.wantEvicted(t, later-earlier)
	c.wants(t)

	// Redis counts anew: all of it is new, though it may be less than before.
	server.do(t, "CONFIG", "RESETSTAT")
	again := server.fill(t)
	c.wants(t, "evicted")
	c.wantEvicted(t, later-earlier+again)
}

func TestConditionEvictionsOfARestartedRedisAreCounted(t *testing.T) {
	server := startRedis(t)
	c := server.condition(t, "")
	c.wants(t, "persistence")
	first := server.fill(t)
	c.wants(t, "evicted", "persistence")

	server.kill()
	if _, err := c.check(context.Background()); err == nil {
		t.Error("got no error from a dead Redis")
	}
	c.wantGauges(t, "evicted", "persistence") // not known to be over
	server.start(t)
	second := server.fill(t)
	c.wants(t, "evicted", "persistence")
	c.wantEvicted(t, first+second)
}

func TestConditionWithoutConfigOrInfo(t *testing.T) {
	server := startRedis(t)
	server.do(t, "ACL", "SETUSER", "few", "on", ">few", "~*", "+@all", "-@admin", "-@dangerous", "+info")
	m := server.condition(t, "few").wants(t, "persistence")
	wantWords(t, m["persistence"], "a restart forgets every debt ")

	server.do(t, "ACL", "SETUSER", "none", "on", ">none", "~*", "+@all", "-@dangerous")
	warnings, err := server.condition(t, "none").check(context.Background())
	if err == nil || !strings.Contains(err.Error(), "NOPERM") || len(warnings) > 0 {
		t.Errorf("got %v and error %v, want NOPERM alone", warnings, err)
	}
}

func TestConditionNamesTheServer(t *testing.T) {
	server := startRedis(t)
	warnings, err := server.condition(t, "").check(context.Background())
	if err != nil || len(warnings) != 1 || warnings[0].node != server.socket {
		t.Errorf("got %v and error %v, want a warning about %s", warnings, err, server.socket)
	}
	server.kill()
	_, err = server.condition(t, "").check(context.Background())
	if err == nil || !strings.Contains(err.Error(), "info of redis "+server.socket) {
		t.Errorf("got error %v, want one that names %s", err, server.socket)
	}
}

func TestConditionOfAStoppedRedisIsKnownInTime(t *testing.T) {
	server := startRedis(t)
	c := server.condition(t, "")
	server.signal(t, syscall.SIGSTOP)
	start := time.Now()
	_, err := c.check(context.Background())
	if took := time.Since(start); err == nil || kindOf(err) != kindTimeout || took > 2*lookTimeout {
		t.Errorf("got error %v after %v, want a time-out after %v", err, took, lookTimeout)
	}
}

// oldRedis refuses an INFO of several sections in the words of the server
// itself, as those before 7.0 do.
type oldRedis struct{ refused atomic.Int64 }

func (*oldRedis) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*oldRedis) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (o *oldRedis) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "info" && len(cmd.Args()) > 2 {
			o.refused.Add(1)
			err := next(ctx, redis.NewCmd(ctx, "set", "a", "b", "nonsense"))
			cmd.SetErr(err)
			return err
		}
		return next(ctx, cmd)
	}
}

func TestConditionOfARedisThatTakesOneSection(t *testing.T) {
	server := startRedis(t)
	c := server.condition(t, "")
	old := new(oldRedis)
	c.client.AddHook(old)
	server.do(t, "CONFIG", "SET", "maxmemory", "200mb", "maxmemory-policy", "allkeys-lru")
	c.wants(t, "eviction_policy", "persistence")
	if n := old.refused.Load(); n != 1 {
		t.Errorf("it was asked for several sections %d times, want once", n)
	}
}

func TestConditionOfAClusterIsThatOfEachPrimary(t *testing.T) {
	cluster := redistest.StartCluster(t, 3, 0)
	first, second, third := cluster.Node(0), cluster.Node(1), cluster.Node(2)
	client := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: cluster.Addrs(), Protocol: 2, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
	})
	t.Cleanup(func() { client.Close() })
	c := conditionOf(client)
	wants := func(failing string, nodes ...*redistest.Server) {
		t.Helper()
		warnings, err := c.check(context.Background())
		if (err != nil) != (failing != "") || err != nil && !strings.Contains(err.Error(), "info of redis "+failing) {
			t.Errorf("got error %v, want one of %q", err, failing)
		}
		got, want := []string{}, []string{}
		for _, w := range warnings {
			got = append(got, w.kind+" "+w.node)
		}
		for _, n := range nodes {
			want = append(want, "persistence "+n.Addr())
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("warnings (-want +got):\n%s", diff)
		}
	}
	wants("", first, second, third)
	c.wantGauges(t, "persistence")
	second.Do(t, "CONFIG", "SET", "appendonly", "yes")
	wants("", first, third)
	c.wantGauges(t, "persistence")
	first.Kill()
	wants(first.Addr(), third)
	c.wantGauges(t, "persistence") // not known to be over
}
