package limiter

import (
	"bytes"
	"context"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
)

// watchLog is a log that can be read while it is written.
type watchLog struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (w *watchLog) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(line)
}

// count is how often pattern is in the log.
func (w *watchLog) count(pattern string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(regexp.MustCompile(pattern).FindAllIndex(w.text.Bytes(), -1))
}

// watched watches c a thousand times a second until the test ends, or end is called.
func (c testedCondition) watched(t testing.TB) (log *watchLog, end func()) {
	t.Helper()
	log = new(watchLog)
	c.every = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { c.watch(ctx, zerolog.New(log)) })
	end = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(end)
	return log, end
}

const (
	policyLine  = `"level":"warn","kind":"eviction_policy","node":"[^"]+","message":"maxmemory-policy is allkeys-lru`
	policyEnds  = `"level":"info","kind":"eviction_policy","node":"[^"]+","message":"this is no longer`
	missingLine = `"level":"warn","error":"info of redis [^"]+","message":"can't look at Redis`
)

func TestConditionWarningsAreRepeatedUntilTheyEnd(t *testing.T) {
	server := startRedis(t)
	server.do(t, "CONFIG", "SET", "maxmemory", "200mb", "maxmemory-policy", "allkeys-lru")
	log, end := server.condition(t, "").watched(t)
	eventually(t, "the warning is there three times", func() bool { return log.count(policyLine) >= 3 })

	server.do(t, "CONFIG", "SET", "maxmemory-policy", "noeviction")
	eventually(t, "the warning is over", func() bool { return log.count(policyEnds) == 1 })
	warnings, others := log.count(policyLine), log.count(`"kind":"persistence"`)
	eventually(t, "the other one goes on", func() bool { return log.count(`"kind":"persistence"`) >= others+3 })
	if got := log.count(policyLine); got != warnings {
		t.Errorf("it was logged %d times more", got-warnings)
	}

	server.do(t, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
	eventually(t, "it is there again", func() bool { return log.count(policyLine) > warnings })
	server.do(t, "CONFIG", "SET", "maxmemory-policy", "noeviction")
	eventually(t, "it is over again", func() bool { return log.count(policyEnds) == 2 })
	end()
	if n := log.count(`"error"|"kind":"persistence","node":"[^"]+","message":"this is no longer`); n > 0 {
		t.Errorf("there are %d lines too many", n)
	}
}

// countingDials is the condition of s, and how often it dialed.
func (s *redisServer) countingDials(t testing.TB) (testedCondition, *atomic.Int64) {
	t.Helper()
	dials := new(atomic.Int64)
	client := redis.NewClient(&redis.Options{
		Addr: s.socket, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			dials.Add(1)
			return net.Dial("unix", s.socket)
		},
	})
	t.Cleanup(func() { client.Close() })
	return conditionOf(client), dials
}

// A Redis that does not answer is told of where its decisions fail.
func TestConditionOfADeadRedisIsNotTold(t *testing.T) {
	server := startRedis(t)
	c, dials := server.countingDials(t)
	log, _ := c.watched(t)
	persistence := `"level":"warn","kind":"persistence"`
	for round := 1; round <= 2; round++ {
		before := log.count(persistence)
		eventually(t, "it looks", func() bool { return log.count(persistence) > before })
		server.kill()
		before = int(dials.Load())
		eventually(t, "it goes on looking", func() bool { return int(dials.Load()) >= before+5 })
		if got := log.count(missingLine); got != 0 {
			t.Errorf("round %d: the error was logged %d times", round, got)
		}
		server.start(t)
	}
	if n := log.count(`"level":"info"`); n > 0 {
		t.Errorf("%d times it was taken to be over when Redis was not there", n)
	}
}

func TestConditionThatRedisRefusesToTellIsToldOnce(t *testing.T) {
	server := startRedis(t)
	server.do(t, "ACL", "SETUSER", "none", "on", ">none", "~*", "+@all", "-info")
	log, _ := server.condition(t, "none").watched(t)
	eventually(t, "it was refused five times", func() bool { return server.errors(t, "NOPERM") >= 5 })
	if got := log.count(missingLine); got != 1 || log.count("NOPERM.*needs \\+info") != 1 {
		t.Errorf("the error was logged %d times, want once with its cause", got)
	}
}

// errors is how often s has answered with an error of this kind.
func (s *redisServer) errors(t testing.TB, kind string) int {
	t.Helper()
	n, _ := strconv.Atoi(strings.TrimPrefix(infoOf(t, s, "errorstats")["errorstat_"+kind], "count="))
	return n
}
