package limiter

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/r8limiter/r8limiter/lua"
)

// redisServer is a real redis-server on a socket of its own. Nothing it holds
// is kept.
type redisServer struct {
	socket  string
	process *exec.Cmd
	admin   *redis.Client // for what tests do behind a store's back
}

// startRedis starts a redis-server that ends with the test.
func startRedis(t testing.TB) *redisServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "r8") // t.TempDir() may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	quiet()
	s := &redisServer{socket: filepath.Join(dir, "redis.sock")}
	s.admin = redis.NewClient(&redis.Options{Network: "unix", Addr: s.socket, MaxRetries: -1, DialerRetries: 1, Protocol: 2})
	s.start(t)
	t.Cleanup(func() {
		s.admin.Close()
		s.kill()
		os.RemoveAll(dir)
	})
	return s
}

func (s *redisServer) start(t testing.TB) {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatalf("these tests need a real redis-server, which `make test` installs: %v", err)
	}
	s.process = exec.Command(program, "--port", "0", "--unixsocket", s.socket,
		"--save", "", "--appendonly", "no", "--dir", filepath.Dir(s.socket))
	if err := s.process.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "redis-server answers", func() bool {
		return s.admin.Ping(context.Background()).Err() == nil
	})
}

// kill ends the server as a crash would.
func (s *redisServer) kill() {
	s.process.Process.Kill()
	s.process.Wait()
}

func (s *redisServer) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.process.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// do sends a command and returns the reply.
func (s *redisServer) do(t testing.TB, args ...any) any {
	t.Helper()
	reply, err := s.admin.Do(context.Background(), args...).Result()
	if err != nil && err != redis.Nil {
		t.Fatalf("%v: %v", args, err)
	}
	return reply
}

// calls is how often Redis ran each command, by its name.
func (s *redisServer) calls(t testing.TB) map[string]int64 {
	t.Helper()
	n := map[string]int64{}
	info := s.do(t, "INFO", "commandstats").(string)
	for _, m := range regexp.MustCompile(`cmdstat_(\S+):calls=(\d+)`).FindAllStringSubmatch(info, -1) {
		n[m[1]], _ = strconv.ParseInt(m[2], 10, 64)
	}
	return n
}

// now is Redis' clock in microseconds.
func (s *redisServer) now(t testing.TB) int64 {
	t.Helper()
	now, err := s.admin.Time(context.Background()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return now.UnixMicro()
}

// store opens a store on s with a time-out that a busy machine keeps.
func (s *redisServer) store(t testing.TB) *RedisStore {
	t.Helper()
	return openRedis(t, RedisConfig{URL: "unix://" + s.socket, Timeout: 5 * time.Second}, lua.Decide)
}

// clockKey holds the seconds and microseconds of a store that has a clock.
const clockKey = "test:clock"

// clockedStore opens a store whose script takes the time from clockKey.
// Expiry stays with Redis' own clock.
func (s *redisServer) clockedStore(t testing.TB) *RedisStore {
	t.Helper()
	return openRedis(t, RedisConfig{URL: "unix://" + s.socket, Timeout: 5 * time.Second}, withClock(t, lua.Decide))
}

// withClock is script with the time from clockKey.
func withClock(t testing.TB, script string) string {
	t.Helper()
	return replaceOnce(t, script, "redis.call('TIME')", "redis.call('HMGET', '"+clockKey+"', 's', 'us')")
}

func replaceOnce(t testing.TB, text, old, replacement string) string {
	t.Helper()
	if strings.Count(text, old) != 1 {
		t.Fatalf("the script doesn't hold %s once", old)
	}
	return strings.Replace(text, old, replacement, 1)
}

// setClock sets the time of clocked stores, in microseconds.
func (s *redisServer) setClock(t testing.TB, now int64) {
	t.Helper()
	s.do(t, "HSET", clockKey, "s", now/1_000_000, "us", now%1_000_000)
}

func openRedis(t testing.TB, c RedisConfig, script string) *RedisStore {
	t.Helper()
	store, err := newRedisStore(c, script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// eventually polls until ok, for ten seconds at most.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 seconds: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// spendOne asks store for cost tokens of the bucket key.
func spendOne(store Store, key string, cost int64, l *Limit) (Decision, error) {
	d := Decision{Limits: []LimitState{{Limit: l}}}
	err := store.Decide(context.Background(), &Spend{Cost: cost, Keys: [][]byte{[]byte(key)}}, &d)
	return d, err
}

// slowLimit gains nothing while a test runs.
func slowLimit(capacity int64) *Limit {
	return &Limit{Name: "slow", Capacity: capacity, Rate: rate("0.04/d")}
}

// rate reads a rate that is known to be right.
func rate(text string) Rate {
	r, err := ParseRate(text)
	if err != nil {
		panic(err)
	}
	return r
}
