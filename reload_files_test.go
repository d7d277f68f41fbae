package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/admin"
)

// fifo makes a pipe that nobody ever writes to in the place of a file.
func fifo(t *testing.T, file string) {
	t.Helper()
	if err := syscall.Mkfifo(file+".new", 0o600); err != nil {
		t.Fatal(err)
	}
	rename(t, file+".new", file)
}

// Opening a pipe may never return: neither a reload nor the end may wait for that.
func TestPipeInTheFilesPlaceIsRefusedAndDelaysNoEnd(t *testing.T) {
	p := startProcess(t, plainConfig(""))
	fifo(t, p.file)
	code, body := p.post(t, firstToken)
	if want := p.file + " is no file of at most 1 MiB; the old configuration stays in force until there is a file again"; code != 422 || !strings.Contains(body, `"message":"read: `+want) {
		t.Errorf("got %d %s, want %s", code, body, want)
	}
	p.signal(t, syscall.SIGHUP)
	p.awaitLog(t, `"cause":"SIGHUP"`)
	replace(t, p.file, plainConfig(blockB))
	eventually(t, "the file is in force", func() bool { return status(t, "GET", p.proxy+"/b") == 403 })
	fifo(t, p.file)
	p.signal(t, syscall.SIGINT)
	if code, _ := p.within(t, 10*time.Second); code != exitFine {
		t.Errorf("exit code %d: %s", code, p.log.lines())
	}
}

func TestMissingFileOfAReloadIsToldWithWhatFollows(t *testing.T) {
	p := startProcess(t, plainConfig(""))
	remove(t, p.file)
	code, body := p.post(t, firstToken)
	if code != 422 || !strings.Contains(body, "no such file or directory; the old configuration stays in force until there is a file again that can be read") || strings.Contains(body, "-config") {
		t.Errorf("got %d %s", code, body)
	}
	if code, _, stderr := command("check", "-config", p.file); code != exitUsage || !strings.Contains(stderr, "name another file with -config") {
		t.Errorf("check: got %d %s", code, stderr)
	}
}

// At the start a pipe is as good as a file: there is nothing to fall back to.
func TestConfigurationOfTheStartMayComeByAPipe(t *testing.T) {
	for text, want := range map[string]string{
		"log: {level: warn}\n":                   ": ok\n",
		"#" + strings.Repeat("x", maxDocument):   ":1:1: the file is larger than 1 MiB\n",
		"#" + strings.Repeat("x", 64<<10) + "\n": ":1:1: the file is empty; ",
	} {
		file := filepath.Join(t.TempDir(), "pipe")
		fifo(t, file)
		written := make(chan struct{})
		go func() {
			defer close(written)
			_ = os.WriteFile(file, []byte(text), 0o600) // who reads may have enough before the end
		}()
		_, stdout, stderr := command("check", "-config", file)
		if got := stdout + stderr; !strings.HasPrefix(got, file+want) {
			t.Errorf("%.30q: got %.300q, want %q", text, got, want)
		}
		<-written
	}
}

// hungEnv is an environment that answers once it is let go, and says that it was asked.
func hungEnv() (env func(string) (string, bool), asked chan struct{}, letGo chan struct{}) {
	asked, letGo = make(chan struct{}), make(chan struct{})
	return func(string) (string, bool) {
		asked <- struct{}{}
		<-letGo
		return firstToken, true
	}, asked, letGo
}

// built is a gateway on a configuration whose listeners do not listen.
func built(t *testing.T, env func(string) (string, bool)) *gateway {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	write(t, file, []byte(strings.Replace(plainConfig(blockB), firstToken, `"${SECRET}"`, 1)))
	c := defaultConfig()
	c.Proxy.Listen = "127.0.0.1:0"
	g := &gateway{program: &program{env: env}, file: file, log: zerolog.Nop(), level: new(logLevel)}
	g.reloads.begin(&c)
	out := newLogWriter(io.Discard)
	t.Cleanup(out.Close)
	if err := g.build(&c, out); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.limiter.Close() })
	return g
}

// What a reload starts behind the end of the drain nobody would end.
func TestReloadThatADrainOvertakesChangesNothing(t *testing.T) {
	env, asked, letGo := hungEnv()
	g := built(t, env)
	before, done := g.rules.Load(), make(chan admin.Reloaded)
	go func() { done <- g.reload("test") }()
	<-asked
	g.reloads.end() // which waits for no reload
	close(letGo)
	if got := <-done; got.Refused != errDraining || got.Changed || len(got.Problems) > 0 {
		t.Errorf("got %+v, want a refusal", got)
	}
	if g.rules.Load() != before {
		t.Error("other rules are in force")
	}
}

func TestStoppingWaitsForAHungReloadForAWhileOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		env, asked, letGo := hungEnv()
		g := &gateway{program: &program{env: env}, file: filepath.Join(t.TempDir(), "c.yaml"), log: zerolog.Nop()}
		write(t, g.file, []byte(`{admin: {token: "${SECRET}"}, nonsense: 1}`))
		c := defaultConfig()
		g.reloads.begin(&c)
		stop := g.keepUp(nil)
		g.reloads.ask()
		<-asked
		g.reloads.end()
		began := time.Now()
		stop()
		if took := time.Since(began); took != stopTime {
			t.Errorf("stopping took %v, want %v", took, stopTime)
		}
		close(letGo)
	})
}
