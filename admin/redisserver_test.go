package admin

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// redisServer is a real redis-server on a socket of its own. Nothing it holds
// is kept.
type redisServer struct {
	socket string
	kill   func() // as a crash would
}

// startRedis starts a redis-server that ends with the test.
func startRedis(t testing.TB) *redisServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "r8") // t.TempDir() may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &redisServer{socket: filepath.Join(dir, "redis.sock")}
	process := exec.Command("redis-server", "--port", "0", "--unixsocket", s.socket, "--save", "", "--appendonly", "no", "--dir", dir)
	if err := process.Start(); err != nil {
		t.Fatalf("these tests need a real redis-server, which `make test` installs: %v", err)
	}
	s.kill = sync.OnceFunc(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	})
	t.Cleanup(s.kill)
	eventually(t, "redis-server listens", func() bool {
		c, err := net.Dial("unix", s.socket)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return s
}

// store opens a store on s with a time-out that a busy machine keeps.
func (s *redisServer) store(t testing.TB) limiter.Store {
	t.Helper()
	store, err := limiter.NewRedisStore(limiter.RedisConfig{URL: "unix://" + s.socket, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return store
}
