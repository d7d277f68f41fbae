package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// beTheProgram is the variable that makes the test binary the program: so it is
// built once, and with the race detector where the tests are.
const beTheProgram = "R8LIMITER_TEST_RUNS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beTheProgram) != "" {
		go func() { // the pipe ends with the tests, however they end
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(exitFailure)
		}()
		main()
		return
	}
	os.Exit(m.Run())
}

// process is the program as a process of its own, which can be killed, paused
// and measured.
type process struct {
	command        *exec.Cmd
	control, proxy string // base URLs; proxy is "" where that listener is off
	file           string // of the configuration
	log            *processLog
	exited         chan struct{} // closed when it is gone
}

// processLog takes what a process writes to standard error.
type processLog struct {
	mu   sync.Mutex // guards text
	text []byte
}

func (l *processLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

// lines are the whole lines so far.
func (l *processLog) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := l.text[:bytes.LastIndexByte(l.text, '\n')+1]
	return slices.Collect(strings.Lines(string(text)))
}

// startProcess starts the program on a configuration, whose listeners may be on
// port 0, and waits until it is alive. It ends with the test.
func startProcess(t *testing.T, config string) *process {
	t.Helper()
	return startProcessBy(t, config, func(*exec.Cmd) {})
}

// startProcessBy is startProcess with a command that is changed before.
func startProcessBy(t *testing.T, config string, change func(*exec.Cmd)) *process {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{file: file, command: exec.Command(program, "-config", file), log: &processLog{}, exited: make(chan struct{})}
	p.command.Env = append(os.Environ(), beTheProgram+"=1")
	p.command.Stderr = p.log
	if _, err := p.command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	change(p.command)
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.command.Wait() // the exit code is in the command
		close(p.exited)
	}()
	t.Cleanup(p.kill)
	eventually(t, "the process serves", func() bool { return p.serves(t) })
	eventually(t, "the process is alive", func() bool { return status(t, "GET", p.control+"/livez") == 200 })
	return p
}

// serves says whether the log tells the listeners' addresses, and keeps them.
func (p *process) serves(t *testing.T) bool {
	t.Helper()
	select {
	case <-p.exited:
		t.Fatalf("exit code %d before serving: %s", p.command.ProcessState.ExitCode(), p.log.lines())
	default:
	}
	for _, line := range p.log.lines() {
		var said struct{ Message, Control, Proxy string }
		if err := json.Unmarshal([]byte(line), &said); err != nil || said.Message != "serving" {
			continue
		}
		p.control = "http://" + said.Control
		if said.Proxy != "" {
			p.proxy = "http://" + said.Proxy
		}
		return true
	}
	return false
}

// awaitReady waits until /readyz answers 200.
func (p *process) awaitReady(t *testing.T) {
	t.Helper()
	eventually(t, "the process is ready", func() bool { return status(t, "GET", p.control+"/readyz") == 200 })
}

// metric is the value of a series of /metrics, or, of a name without labels, the
// sum of its series. A series that isn't there counts as 0, but there must be
// one of its family.
func (p *process) metric(t *testing.T, name string) float64 {
	t.Helper()
	_, text := ask(t, p.control+"/metrics")
	family, _, labelled := strings.Cut(name, "{")
	known, sum := false, 0.0
	for line := range strings.Lines(text) {
		space := strings.LastIndexByte(line, ' ')
		series := line[:max(space, 0)]
		of, _, _ := strings.Cut(series, "{")
		known = known || of == family
		if series != name && (labelled || of != family) {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[space+1:]), 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		sum += value
	}
	if !known {
		t.Fatalf("there is no metric %s", family)
	}
	return sum
}

// stop sends a signal, waits until the process is gone and returns its exit
// code. At SIGTERM it serves for some seconds yet, at SIGINT it drains at once.
func (p *process) stop(t *testing.T, signal syscall.Signal) int {
	t.Helper()
	if err := p.command.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	return p.command.ProcessState.ExitCode()
}

// kill ends the process as a crash would.
func (p *process) kill() {
	_ = p.command.Process.Kill()
	<-p.exited
}

func TestProcessLimitsOnRedis(t *testing.T) {
	p := startProcess(t, `
proxy:
  listen: "127.0.0.1:0"
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: all, user_id: ["{header.X-User-Id}"], upstream: api}]
limiter:
  default: {capacity: 2, refill_rate: 1/h}
  redis: {url: "`+redistest.Start(t).URL()+`", timeout: 5s}
admin: {listen: "127.0.0.1:0"}
`)
	p.awaitReady(t)
	for i, want := range []int{200, 200, 429} {
		if resp, body := ask(t, p.proxy+"/x"); resp.StatusCode != want {
			t.Errorf("request %d: got %d %s, want %d", i, resp.StatusCode, body, want)
		}
	}
	if got := p.metric(t, "requests_total"); got != 3 {
		t.Errorf("counted %v requests, want 3", got)
	}
	if got := p.metric(t, `r8limiter_store_errors_total{kind="timeout"}`); got != 0 {
		t.Errorf("counted %v time-outs, want none", got)
	}
	if code := p.stop(t, syscall.SIGINT); code != exitFine {
		t.Errorf("exit code %d, want 0: %s", code, p.log.lines())
	}
	if last := p.log.lines(); !strings.Contains(last[len(last)-1], `"stopped"`) {
		t.Errorf("the last line of the log is %s", last[len(last)-1])
	}
}
