package admin

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// startRedis starts a real redis-server that ends with the test, and returns
// its socket.
func startRedis(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "r8") // t.TempDir() may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "redis.sock")
	server := exec.Command("redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", dir)
	if err := server.Start(); err != nil {
		t.Fatalf("these tests need a real redis-server, which `make test` installs: %v", err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	eventually(t, "redis-server listens", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return socket
}

// openRedis opens a store with a time-out that a busy machine keeps.
func openRedis(t *testing.T, socket string) limiter.Store {
	t.Helper()
	store, err := limiter.NewRedisStore(limiter.RedisConfig{URL: "unix://" + socket, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return store
}
