package redistest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a redis-server that runs, or has.
type process struct {
	command *exec.Cmd
	log     *tail
	exited  chan struct{} // closed when the process is gone and has been waited for
}

// startProcess runs redis-server with args.
func startProcess(args []string) (*process, error) {
	p := &process{command: exec.Command("redis-server", args...), log: &tail{}, exited: make(chan struct{})}
	p.command.Stdout, p.command.Stderr = p.log, p.log
	endWithParent(p.command)
	if err := p.command.Start(); err != nil {
		return nil, fmt.Errorf("these tests need a real redis-server, which `make test` installs: %w", err)
	}
	go func() {
		_ = p.command.Wait() // that it was killed
		close(p.exited)
	}()
	return p, nil
}

// awaitUp waits until up, while the process runs.
func (p *process) awaitUp(up func() bool) error {
	for deadline := time.Now().Add(30 * time.Second); !up(); {
		select {
		case <-p.exited:
			return p.failure()
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.New("redis-server did not answer within 30 seconds\n" + p.log.String())
		}
	}
	return nil
}

// failure is why the process ended by itself.
func (p *process) failure() error {
	log := p.log.String()
	if strings.Contains(log, "Address already in use") {
		return fmt.Errorf("start redis-server: %w\n%s", syscall.EADDRINUSE, log)
	}
	return errors.New("redis-server ended by itself\n" + log)
}

func (p *process) pid() int {
	if p == nil {
		return 0
	}
	return p.command.Process.Pid
}

// kill ends the process, if there is one, and waits until it is gone.
func (p *process) kill() {
	if p == nil {
		return
	}
	p.signal(syscall.SIGKILL)
	<-p.exited
}

// signal sends s to the process, if it still runs.
func (p *process) signal(s os.Signal) {
	_ = p.command.Process.Signal(s)
}

// pause stops the process and, where /proc tells, waits until it has stopped:
// a signal to a process that runs on another processor takes a moment.
func (p *process) pause() {
	p.signal(syscall.SIGSTOP)
	for range 1000 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid()) + "/stat")
		// The state follows the name, which is in brackets.
		if _, state, ok := bytes.Cut(stat, []byte(") ")); err != nil || ok && state[0] == 'T' {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex // guards text
	text []byte
}

const tailBytes = 8 << 10

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	l.text = l.text[max(0, len(l.text)-tailBytes):]
	return len(p), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// Ports are taken from below the range of which systems take the ports of
// outgoing connections. With one of that range a server that was killed might
// not get its port back, and a client that dials it meanwhile, on the same
// host, may even connect to itself.
const firstPort, lastPort = 10_000, 32_000

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// listen opens a listener on a free port.
func listen(t testing.TB) net.Listener {
	t.Helper()
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", address(firstPort+rand.IntN(lastPort-firstPort))); err == nil {
			return l
		}
	}
	t.Fatal(err)
	return nil
}

// freePort is a port that nobody listened on a moment ago.
func freePort(t testing.TB) int {
	t.Helper()
	l := listen(t)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
