package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// What the kernel or timeout(1) deliver twice is one signal; a second one that
// somebody means ends the drain.
func TestSecondSignalEndsTheDrainUnlessItRepeatsTheFirst(t *testing.T) {
	type sent struct {
		after  time.Duration
		signal os.Signal
	}
	for _, c := range []struct {
		what    string
		signals []sent
		code    int
		took    time.Duration
	}{
		{"none", nil, exitFine, 10 * time.Second},
		{"the same at once", []sent{{0, syscall.SIGTERM}}, exitFine, 10 * time.Second},
		{"the same three times within a second", []sent{{0, syscall.SIGTERM}, {500 * time.Millisecond, syscall.SIGTERM}, {999 * time.Millisecond, syscall.SIGTERM}}, exitFine, 10 * time.Second},
		{"the same a second later", []sent{{time.Second, syscall.SIGTERM}}, exitFailure, time.Second},
		{"the same at once and later", []sent{{0, syscall.SIGTERM}, {3 * time.Second, syscall.SIGTERM}}, exitFailure, 3 * time.Second},
		{"another at once", []sent{{0, syscall.SIGINT}}, exitFailure, 0},
		{"hangups", []sent{{0, syscall.SIGHUP}, {5 * time.Second, syscall.SIGHUP}}, exitFine, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			signals, done := make(chan os.Signal), make(chan error, 1)
			g := &gateway{program: &program{signals: signals}, log: zerolog.Nop()}
			began := time.Now()
			go func() {
				for _, s := range c.signals {
					time.Sleep(s.after - time.Since(began)) // of the bubble's clock
					signals <- s.signal
				}
			}()
			time.AfterFunc(10*time.Second, func() { done <- errors.New("requests were cut") })
			if code := g.awaitDrain(done, syscall.SIGTERM); code != c.code || time.Since(began) != c.took {
				t.Errorf("%s: exit code %d after %v, want %d after %v", c.what, code, time.Since(began), c.code, c.took)
			}
		})
	}
}

func TestHangupReloadsAndEndsNothing(t *testing.T) {
	p := startProcess(t, activatedAnywhere)
	for range 3 {
		before := p.logged("the configuration is read again")
		p.signal(t, syscall.SIGHUP)
		eventually(t, "the log tells of the reload", func() bool { return p.logged("the configuration is read again") > before })
	}
	if got := status(t, "GET", p.proxy+"/x"); got != 200 {
		t.Errorf("after SIGHUP: got %d, want 200", got)
	}
	if got := status(t, "GET", p.control+"/readyz"); got != 200 {
		t.Errorf("readyz after SIGHUP: got %d, want 200", got)
	}
	if code := p.stop(t, syscall.SIGINT); code != exitFine {
		t.Errorf("exit code %d, want 0: %s", code, p.log.lines())
	}
}

// activatedAnywhere is activated on free ports.
var activatedAnywhere = strings.NewReplacer(`":1"`, `"127.0.0.1:0"`, `":2"`, `"127.0.0.1:0"`).Replace(activated)

func TestServingLineTellsWhatIsOn(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(*gateway, *Config)
		want   map[string]any
	}{
		{"nothing", func(*gateway, *Config) {}, map[string]any{}},
		{"PROXY protocol without a proxy listener", func(g *gateway, c *Config) { g.proxyListener, c.Proxy.ProxyProtocol = nil, true }, map[string]any{}},
		{"TLS of the control listener", func(g *gateway, _ *Config) { g.adminTLS = &credentials{} }, map[string]any{"control_tls": true}},
		{"all", func(g *gateway, c *Config) {
			g.proxyTLS, g.adminTLS, c.Proxy.ProxyProtocol = &credentials{}, &credentials{}, true
			g.inherited = []string{"proxy", "control"}
		}, map[string]any{"proxy_tls": true, "http2": true, "proxy_protocol": true, "control_tls": true, "inherited_sockets": []any{"proxy", "control"}}},
	} {
		var log bytes.Buffer
		config := defaultConfig()
		g := &gateway{log: zerolog.New(&log), proxyListener: listen(t), adminListener: listen(t)}
		c.change(g, &config)
		g.greet(&config, "")
		said := map[string]any{}
		if err := json.Unmarshal(log.Bytes(), &said); err != nil {
			t.Fatalf("%s: %v in %s", c.what, err, &log)
		}
		for _, always := range []string{"level", "message", "version", "config", "store", "control", "proxy", "routes"} {
			delete(said, always)
		}
		if diff := cmp.Diff(c.want, said); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
}

func TestOnlyAControlListenerThatOthersReachIsCalledOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	unix, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	for _, c := range []struct {
		addr net.Addr
		open bool
	}{
		{unix.Addr(), false},
		{&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, false},
		{&net.TCPAddr{IP: net.IPv6loopback, Port: 1}, false},
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 1}, true},
		{&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}, true},
	} {
		var log bytes.Buffer
		config := defaultConfig()
		g := &gateway{log: zerolog.New(&log), adminListener: at{addr: c.addr}}
		g.greet(&config, "")
		if open := strings.Contains(log.String(), "is open to other hosts"); open != c.open {
			t.Errorf("%v: the warning is there: %v, want %v", c.addr, open, c.open)
		}
	}
}

// at is a listener of which only the address is asked.
type at struct {
	net.Listener
	addr net.Addr
}

func (a at) Addr() net.Addr { return a.addr }
