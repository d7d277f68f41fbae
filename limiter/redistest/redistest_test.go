package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

func TestMain(m *testing.M) {
	redis.SetLogger(silence{})
	os.Exit(m.Run())
}

// silence is a log that keeps nothing: go-redis notes every lost connection.
type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// open opens a client that tries once and waits for timeout.
func open(t testing.TB, url string, timeout time.Duration) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	o.MaxRetries, o.DialerRetries, o.ReadTimeout, o.DialTimeout = -1, 1, timeout, timeout
	o.DisableIdentity, o.Protocol = true, 2
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

func ping(t testing.TB, c *redis.Client) error { return c.Ping(t.Context()).Err() }

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestServerIsReachedOnBothAddresses(t *testing.T) {
	s := Start(t, "--maxmemory", "7mb")
	for _, url := range []string{s.URL(), "unix://" + s.Socket()} {
		if err := ping(t, open(t, url, time.Minute)); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	if got := fmt.Sprint(s.Do(t, "CONFIG", "GET", "maxmemory")); got != "[maxmemory 7340032]" {
		t.Errorf("the options did not arrive: %s", got)
	}
	if got := s.Do(t, "GET", "nothing"); got != nil {
		t.Errorf("a missing key: got %v, want nil", got)
	}
	if n := s.Calls(t); n["get"] != 1 || n["config|get"] != 1 {
		t.Errorf("got calls %v", n)
	}
	if s.CPU(t) <= 0 {
		t.Errorf("it took %v of the processor", s.CPU(t))
	}
}

func TestServersEndWithTheTest(t *testing.T) {
	var pids []int
	var dirs []string
	t.Run("all kinds", func(t *testing.T) {
		paused := Start(t)
		paused.Pause()
		killed := Start(t)
		killed.Kill()
		restarted := Start(t)
		pids = append(pids, restarted.Pid())
		restarted.Restart(t)
		writing := Start(t)
		writing.Do(t, "CONFIG", "SET", "appendonly", "yes") // forks a child that writes
		for _, s := range []*Server{paused, killed, restarted, writing} {
			pids, dirs = append(pids, s.Pid()), append(dirs, s.dir)
		}
	})
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d still runs", pid)
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
}

func TestKilledServerRefusesAndRestartsEmpty(t *testing.T) {
	s := Start(t)
	c := open(t, s.URL(), time.Minute)
	s.Do(t, "SET", "k", 1)
	addr, socket, pid := s.Addr(), s.Socket(), s.Pid()
	s.Kill()
	s.Kill() // changes nothing
	if alive(pid) {
		t.Error("the process outlives Kill")
	}
	if err := ping(t, c); err == nil {
		t.Error("a dead server answers")
	}
	s.Restart(t)
	if s.Addr() != addr || s.Socket() != socket || s.Pid() == pid {
		t.Errorf("restarted on %s and %s as %d", s.Addr(), s.Socket(), s.Pid())
	}
	if n, err := c.Exists(t.Context(), "k").Result(); n != 0 || err != nil {
		t.Errorf("after the restart there are %d keys, %v", n, err)
	}
	if got := s.Do(t, "DBSIZE"); got != int64(0) {
		t.Errorf("after the restart DBSIZE is %v", got)
	}
}

func TestSavedServerRestartsWithItsData(t *testing.T) {
	s := Start(t)
	s.Do(t, "SET", "k", 1)
	s.Do(t, "SAVE")
	s.Restart(t)
	if got := s.Do(t, "GET", "k"); got != "1" {
		t.Errorf("got %v, want 1", got)
	}
}

func TestPausedServerIsSilentUntilResumed(t *testing.T) {
	s := Start(t)
	c := open(t, s.URL(), 50*time.Millisecond)
	s.Pause()
	var timeout net.Error
	if err := ping(t, c); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("paused: got %v, want a time-out", err)
	}
	s.Resume()
	poll(t, "it answers again", func() bool { return ping(t, c) == nil })
}

// A port that was free may be taken when Redis binds it.
func TestTakenPortIsToldFromOtherFailures(t *testing.T) {
	other := Start(t)
	s := &Server{dir: newDir(t), port: other.port, line: func() commandLine { return commandLine{} }}
	t.Cleanup(s.end)
	if err := s.start(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("taken port: got %v", err)
	}
	s.port = freePort(t)
	if err := s.start(); err != nil {
		t.Errorf("free port: got %v", err)
	}
	broken := &Server{dir: newDir(t), port: freePort(t), line: func() commandLine { return commandLine{options: []string{"--nonsense", "1"}} }}
	t.Cleanup(broken.end)
	if err := broken.start(); err == nil || errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("nonsense: got %v", err)
	}
}

func TestSentinelsElectAReplica(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := StartSentinel(t)
	if len(s.Addrs()) != 3 || len(s.Servers()) != 3 {
		t.Fatalf("got sentinels %v", s.Addrs())
	}
	c := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: s.MasterName, SentinelAddrs: s.Addrs(), Protocol: 2})
	t.Cleanup(func() { c.Close() })
	if err := c.Set(t.Context(), "k", 1, 0).Err(); err != nil {
		t.Fatal(err)
	}
	for _, server := range s.Servers() {
		poll(t, "the key is on each", func() bool { return server.Do(t, "GET", "k") == "1" })
	}
	old := s.KillPrimary(t)
	poll(t, "another is elected", func() bool { return s.Primary(t) != old })
	if got := s.Primary(t).info(t, "replication")["role"]; got != "master" {
		t.Errorf("the elected one's role is %s", got)
	}
	poll(t, "the client found it", func() bool { return c.Set(t.Context(), "k", 2, 0).Err() == nil })
	if got := s.Primary(t).Do(t, "GET", "k"); got != "2" {
		t.Errorf("at the elected one: got %v, want 2", got)
	}
}

// openCluster opens a client that tries each command once.
func openCluster(t testing.TB, c *Cluster) *redis.ClusterClient {
	t.Helper()
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: c.Addrs(), Protocol: 2, DisableIdentity: true})
	t.Cleanup(func() { client.Close() })
	return client
}

func TestClusterMovesASlotWithItsKeys(t *testing.T) {
	t.Parallel() // it waits more than it works
	c := StartCluster(t, 3, 0)
	client := openCluster(t, c)
	const keys = 3
	name := func(i int) string { return "{tag}" + strconv.Itoa(i) }
	for i := range keys {
		if err := client.Set(t.Context(), name(i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	from := c.NodeOf(t, name(0))
	to := c.Node(0)
	if to == from {
		to = c.Node(1)
	}
	if got := from.Do(t, "DBSIZE"); got != int64(keys) {
		t.Errorf("the owner has %v keys, want %d", got, keys)
	}
	var stages []Stage
	c.MoveSlot(t, c.Slot(t, name(0)), from, to, func(at Stage) {
		stages = append(stages, at)
		if got := from.Do(t, "DBSIZE").(int64) + to.Do(t, "DBSIZE").(int64); got != keys {
			t.Errorf("%s: there are %d keys", at, got)
		}
		_, err := from.ask("MGET", name(0), name(keys))
		asked := err != nil && strings.Contains(err.Error(), map[Stage]string{
			SlotOpen: "TRYAGAIN", KeyMoved: "", KeysMoved: "ASK", SlotMoved: "MOVED",
		}[at])
		if !asked {
			t.Errorf("%s: the old owner says %v", at, err)
		}
	})
	if got, want := fmt.Sprint(stages), "[slot open key moved key moved key moved keys moved slot moved]"; got != want {
		t.Errorf("stages: got %s, want %s", got, want)
	}
	if c.NodeOf(t, name(0)) != to {
		t.Error("the slot's owner is not the new one")
	}
	for i := range keys {
		if got, err := client.Get(t.Context(), name(i)).Int(); got != i || err != nil {
			t.Errorf("key %d: got %d, %v", i, got, err)
		}
	}
}

func TestClusterReplicaTakesOver(t *testing.T) {
	t.Parallel() // it waits more than it works
	c := StartCluster(t, 3, 1)
	if c.Nodes() != 6 || len(c.Addrs()) != 6 {
		t.Fatalf("got %v", c.Addrs())
	}
	owner := c.NodeOf(t, "k")
	i := 0
	for c.Node(i) != owner {
		i++
	}
	if i > 2 {
		t.Fatalf("node %d owns slots", i)
	}
	c.KillNode(i)
	poll(t, "its replica has taken over", func() bool { return c.NodeOf(t, "k") == c.Node(3+i) })
	c.AwaitUp(t)
	if got := c.Node(3+i).Do(t, "SET", "k", 1); got != "OK" {
		t.Errorf("got %v", got)
	}
	c.Node(i).Restart(t)
	poll(t, "the restarted one follows it", func() bool {
		return c.Node(i).info(t, "replication")["role"] == "slave"
	})
	awaitSync(t, c.Node(i))
	if got := c.Node(i).Do(t, "DBSIZE"); got != int64(1) {
		t.Errorf("the restarted one has %v keys, want 1", got)
	}
}
