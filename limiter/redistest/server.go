package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Server is a redis-server, a process of its own, on a TCP port of 127.0.0.1
// and on a unix socket. It keeps nothing: no snapshot, no append-only file.
type Server struct {
	dir  string
	port int
	line func() commandLine

	mu      sync.Mutex // guards what follows
	process *process
	admin   *redis.Client // for what tests do behind the product's back
}

// commandLine is what one kind of server adds to the line that starts it.
type commandLine struct {
	config  string // a file, which Redis takes as its first argument only; "" is none
	options []string
}

// Start starts a server that ends with the test. The options are arguments of
// redis-server, say "--maxmemory", "1mb"; they win over what Start sets.
func Start(t testing.TB, options ...string) *Server {
	t.Helper()
	return launch(t, newDir(t), func() commandLine { return commandLine{options: options} })
}

// newDir makes a directory that is removed with the test. t.TempDir() may be
// too long for a socket.
func newDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "r8")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A child that a killed server left may still write its snapshot.
		poll(t, "the directory of a server is removed", func() bool { return os.RemoveAll(dir) == nil })
	})
	return dir
}

// launch starts a server, on other ports where those that were free no longer
// are. It asks line at each attempt and each restart.
func launch(t testing.TB, dir string, line func() commandLine) *Server {
	t.Helper()
	s := &Server{dir: dir, line: line}
	t.Cleanup(s.end)
	for range 10 {
		s.port = freePort(t)
		err := s.start()
		if err == nil {
			return s
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Fatal("start redis-server: ten times in a row its port was taken")
	return nil
}

// end kills the server for good.
func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process.kill()
	s.closeAdminLocked()
}

// start runs the server and waits until it answers. It returns EADDRINUSE where
// somebody else has a port of it.
func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := s.line()
	var args []string
	if line.config != "" {
		args = append(args, line.config)
	}
	args = append(args, "--bind", "127.0.0.1", "--port", strconv.Itoa(s.port), "--unixsocket", s.Socket(), "--dir", s.dir,
		"--save", "", "--appendonly", "no")
	p, err := startProcess(append(args, line.options...))
	if err != nil {
		return err
	}
	s.process = p
	s.closeAdminLocked()
	s.admin = redis.NewClient(&redis.Options{
		Network: "unix", Addr: s.Socket(), Protocol: 2, MaxRetries: -1, DialerRetries: 1, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	// Redis opens the socket last, and nobody else has this one: where it
	// answers, the ports are ours.
	return p.awaitUp(func() bool { return answers(s.Socket()) })
}

func (s *Server) closeAdminLocked() {
	if s.admin != nil {
		_ = s.admin.Close()
	}
}

// answers says whether a server on socket answers a ping, be it with an error.
func answers(socket string) bool {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	_, err = c.Read(make([]byte, 1))
	return err == nil
}

// Addr is the server's host and port, the same after a restart.
func (s *Server) Addr() string { return address(s.port) }

// Socket is the path of the server's unix socket, the same after a restart.
func (s *Server) Socket() string { return filepath.Join(s.dir, "redis.sock") }

// URL is the server's address as clients are given it.
func (s *Server) URL() string { return "redis://" + s.Addr() + "/0" }

// Pid is the process that is, or was last, the server.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.pid()
}

// Kill ends the server as a crash would: it returns when the process is gone.
// A server that is gone stays so.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process.kill()
}

// Restart kills the server, if it still runs, and starts it on the same
// addresses. It is empty then, unless a test had it SAVE; it returns when the
// server answers, which one that still loads its data does with LOADING.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Kill()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}

// Pause stops the server in its tracks, until Resume: its connections stay
// open, and new ones are accepted by the kernel, but nothing is answered.
func (s *Server) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process.pause()
}

// Resume ends a Pause.
func (s *Server) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process.signal(syscall.SIGCONT)
}

// ask sends a command on a connection that is not the product's.
func (s *Server) ask(args ...any) (any, error) {
	s.mu.Lock()
	admin := s.admin
	s.mu.Unlock()
	reply, err := admin.Do(context.Background(), args...).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%v: %w", args, err)
	}
	return reply, nil
}

// Do sends a command and returns the reply, nil for none; an error fails the
// test. It has connections of its own, to the socket.
func (s *Server) Do(t testing.TB, args ...any) any {
	t.Helper()
	reply, err := s.ask(args...)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// Calls is how often Redis ran each command since it started or since CONFIG
// RESETSTAT, by its name in lower case, a subcommand's being "config|get". What
// Do sent counts too.
func (s *Server) Calls(t testing.TB) map[string]int64 {
	t.Helper()
	n := map[string]int64{}
	for name, text := range s.info(t, "commandstats") {
		calls := regexp.MustCompile(`^calls=(\d+)`).FindStringSubmatch(text)
		if command, ok := strings.CutPrefix(name, "cmdstat_"); ok && calls != nil {
			n[command], _ = strconv.ParseInt(calls[1], 10, 64)
		}
	}
	return n
}

// CPU is the processor time that the server has taken since it started.
func (s *Server) CPU(t testing.TB) time.Duration {
	t.Helper()
	info := s.info(t, "cpu")
	sum := 0.0
	for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
		seconds, err := strconv.ParseFloat(info[name], 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sum += seconds
	}
	return time.Duration(sum * float64(time.Second))
}

// info is a section of INFO.
func (s *Server) info(t testing.TB, section string) map[string]string {
	t.Helper()
	return fields(s.Do(t, "INFO", section))
}

// fields reads the `name:text` lines of a reply.
func fields(reply any) map[string]string {
	m := map[string]string{}
	text, _ := reply.(string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			m[name] = value
		}
	}
	return m
}

// poll waits until ok, for half a minute at most.
func poll(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 seconds: %s", what)
		}
	}
}
