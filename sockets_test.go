package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func TestSocketsFindTheirListeners(t *testing.T) {
	one, two, three := listen(t), listen(t), listen(t)
	at := func(l net.Listener) string { return l.Addr().String() }
	port := func(l net.Listener) string { return strconv.Itoa(l.Addr().(*net.TCPAddr).Port) }
	for _, c := range []struct {
		what           string
		sockets        []socket
		proxy, control string
		want           [2]net.Listener // of the proxy and of the control listener
		problem        string
	}{
		{"by name", []socket{{"control", one}, {"proxy", two}}, ":1", ":2", [2]net.Listener{two, one}, ""},
		{"one by name", []socket{{"control", one}}, ":1", ":2", [2]net.Listener{nil, one}, ""},
		{"by address", []socket{{"unknown", one}, {"x.socket", two}}, at(two), at(one), [2]net.Listener{two, one}, ""},
		{"one by address", []socket{{"unknown", one}}, ":1", at(one), [2]net.Listener{nil, one}, ""},
		{"by name before address", []socket{{"unknown", one}, {"control", two}}, ":1", at(one), [2]net.Listener{one, two}, ""},
		{"in order", []socket{{"r8limiter.socket", one}, {"r8limiter.socket", two}}, ":1", ":2", [2]net.Listener{one, two}, ""},
		{"the rest in order", []socket{{"x", one}, {"proxy", two}}, ":1", ":2", [2]net.Listener{two, one}, ""},
		{"none", nil, ":1", ":2", [2]net.Listener{}, ""},
		{"one too few for an order", []socket{{"x", one}}, ":1", ":2", [2]net.Listener{}, `"x" on ` + at(one)},
		{"one too many", []socket{{"proxy", one}, {"control", two}, {"x", three}}, ":1", ":2", [2]net.Listener{}, `"x" on ` + at(three)},
		{"a name twice", []socket{{"proxy", one}, {"proxy", two}}, ":1", ":2", [2]net.Listener{}, `"proxy" on ` + at(two)},
		{"another address of that port", []socket{{"x", one}}, ":1", "127.0.0.2:" + port(one), [2]net.Listener{}, `"x" on`},
	} {
		front, control := &place{name: "proxy", listen: c.proxy}, &place{name: "control", listen: c.control}
		err := seat(c.sockets, []*place{front, control})
		if err != nil || c.problem != "" {
			if err == nil || c.problem == "" || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%s: got %v, want %q", c.what, err, c.problem)
			}
			continue
		}
		if front.listener != c.want[0] || control.listener != c.want[1] {
			t.Errorf("%s: got %v and %v", c.what, front.listener, control.listener)
		}
	}
}

func TestAddressOfASocketIsRecognised(t *testing.T) {
	for _, c := range []struct {
		listen string
		ip     string
		want   bool
	}{
		{":80", "::", true}, {":80", "0.0.0.0", true}, {"0.0.0.0:80", "::", true}, {"[::]:80", "0.0.0.0", true},
		{"127.0.0.1:80", "127.0.0.1", true}, {"127.0.0.1:80", "::ffff:127.0.0.1", true}, {"[::1]:80", "::1", true},
		{"127.0.0.1:80", "::", false}, {":80", "127.0.0.1", false}, {":81", "::", false}, {"nonsense", "::", false},
	} {
		if got := isAddress(c.listen, &net.TCPAddr{IP: net.ParseIP(c.ip), Port: 80}); got != c.want {
			t.Errorf("%s and %s: got %v, want %v", c.listen, c.ip, got, c.want)
		}
	}
	if isAddress(":80", &net.UnixAddr{Name: "/x"}) {
		t.Error("a Unix socket is taken for port 80")
	}
}

func TestSocketsOfAnotherProcessAreLeftAlone(t *testing.T) {
	own := strconv.Itoa(os.Getpid())
	for _, env := range []map[string]string{
		{},
		{"LISTEN_PID": "1", "LISTEN_FDS": "2"},
		{"LISTEN_FDS": "2"},
		{"LISTEN_PID": own},
		{"LISTEN_PID": own, "LISTEN_FDS": "0"},
	} {
		sockets, err := inheritedSockets(func(name string) (string, bool) { v, ok := env[name]; return v, ok })
		if err != nil || sockets != nil {
			t.Errorf("%v: got %v, %v", env, sockets, err)
		}
	}
	for _, count := range []string{"x", "-1", "300", "999", "99999999999999999999"} {
		_, err := inheritedSockets(func(name string) (string, bool) {
			return map[string]string{"LISTEN_PID": own, "LISTEN_FDS": count}[name], true
		})
		say := count + " are too many sockets"
		if len(count) < 3 {
			say = "is no number of sockets"
		}
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("LISTEN_FDS=%s: got %v", count, err)
		}
	}
}

func TestWhatDoesNotListenIsNotInherited(t *testing.T) {
	file, err := os.Open("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", listen(t).Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for what, f := range map[string]struct {
		file *os.File
		say  string
	}{
		"a file":          {file, "pass listening sockets alone"},
		"a connection":    {descriptor(t, client.(*net.TCPConn)), "does not listen"},
		"a packet socket": {descriptor(t, packets.(*net.UDPConn)), "does not listen"},
	} {
		fd, err := syscall.Dup(int(f.file.Fd())) // inheritSocket closes what it is given
		if err != nil {
			t.Fatal(err)
		}
		_ = f.file.Close()
		if _, err := inheritSocket(fd, "x"); err == nil || !strings.Contains(err.Error(), f.say) {
			t.Errorf("%s: got %v, want %q", what, err, f.say)
		}
		if err := syscall.Close(fd); err == nil {
			t.Errorf("%s: the descriptor was left open", what)
		}
	}
}

func descriptor(t *testing.T, of interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := of.File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// startActivated starts the program as systemd does for a socket unit: with
// listeners from descriptor 3 on, and the pid of the program in LISTEN_PID.
func startActivated(t *testing.T, config, names string, sockets ...*net.TCPListener) *process {
	t.Helper()
	return startProcessBy(t, config, func(c *exec.Cmd) {
		for _, l := range sockets {
			f := descriptor(t, l)
			t.Cleanup(func() { f.Close() })
			c.ExtraFiles = append(c.ExtraFiles, f)
		}
		// The shell becomes the program, so that its pid is the program's.
		c.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
		c.Env = append(c.Env, "LISTEN_FDS="+strconv.Itoa(len(sockets)), "LISTEN_FDNAMES="+names)
	})
}

const activated = `
proxy:
  listen: ":1"
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: all, action: bypass, upstream: api}]
admin: {listen: ":2"}
`

func TestProcessServesOnInheritedSockets(t *testing.T) {
	front, control := listen(t), listen(t)
	p := startActivated(t, activated, "control:proxy", control, front)
	if p.proxy != "http://"+front.Addr().String() || p.control != "http://"+control.Addr().String() {
		t.Errorf("it serves on %s and %s", p.proxy, p.control)
	}
	if got := status(t, "GET", p.proxy+"/x"); got != 200 {
		t.Errorf("proxy: got %d, want 200", got)
	}
	if p.logged(`"inherited_sockets":["proxy","control"]`) != 1 {
		t.Errorf("the log doesn't tell of the sockets: %s", p.log.lines())
	}
	if code := p.stop(t, syscall.SIGINT); code != exitFine {
		t.Errorf("exit code %d, want 0: %s", code, p.log.lines())
	}
}

func TestInheritedSocketOfNobodyIsRefused(t *testing.T) {
	stray := listen(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/config.yaml"
	write(t, file, []byte(activated))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", program, "-config", file)
	c.Env = append(os.Environ(), beTheProgram+"=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=web")
	c.ExtraFiles = []*os.File{descriptor(t, stray)}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := c.CombinedOutput()
	if want := `the inherited socket \"web\" on ` + stray.Addr().String() + " is for no listener"; err == nil || !strings.Contains(string(out), want) || c.ProcessState.ExitCode() != exitFailure {
		t.Errorf("got %v: %s", err, out)
	}
}

// The service is restarted again and again under a client that opens a new
// connection for each request. The socket stays: nobody is refused.
func TestRestartOnInheritedSocketsRefusesNobody(t *testing.T) {
	front, control := listen(t), listen(t)
	config := strings.Replace(activated, `":1"`, `"`+front.Addr().String()+`"`, 1)
	begin := func() *process { return startActivated(t, config, "", front, control) }
	p := begin()
	stop, done := make(chan struct{}), make(chan error, 1)
	var answered atomic.Int64
	go func() { done <- askUntil(stop, p.proxy+"/x", &answered) }()
	for range 3 {
		before := answered.Load()
		eventually(t, "requests are answered", func() bool { return answered.Load() > before+10 })
		if code := p.stop(t, syscall.SIGINT); code != exitFine {
			t.Fatalf("exit code %d: %s", code, p.log.lines())
		}
		p = begin()
	}
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("after %d answers: %v", answered.Load(), err)
	}
}

// askUntil sends requests, each on a connection of its own, until stop is
// closed or one of them fails.
func askUntil(stop <-chan struct{}, url string, answered *atomic.Int64) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if resp.Body.Close(); err != nil || resp.StatusCode != 200 {
			return fmt.Errorf("status %d: %w", resp.StatusCode, err)
		}
		answered.Add(1)
	}
}
