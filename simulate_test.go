package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/r8limiter/r8limiter/proxy/simulate"
)

// simulated runs the command on what is piped in.
func simulated(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	p := &program{
		args: append([]string{"simulate", "-config", "testdata/simulate.yaml"}, args...), stdin: strings.NewReader(stdin),
		stdout: &out, stderr: &errs, env: noEnv, listening: func(net.Addr, net.Addr) {},
	}
	code = p.run()
	return code, out.String(), errs.String()
}

// madeUp is some traffic in combined form.
func madeUp(t *testing.T, requests int) string {
	t.Helper()
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	traffic{requests: requests, users: 1000, seed: 3, span: time.Duration(requests) * 2 * time.Millisecond}.each(func(v *visit) { v.combined(w) })
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestMadeUpTrafficIsAlwaysTheSame(t *testing.T) {
	first, second := madeUp(t, 2000), madeUp(t, 2000)
	if first != second || strings.Count(first, "\n") != 2000 {
		t.Error("the same values made up other traffic")
	}
	users := map[string]int{}
	for line := range strings.Lines(first) {
		users[line[:strings.IndexByte(line, ' ')]]++
	}
	if users["10.0.0.0"] < 100 || len(users) < 200 {
		t.Errorf("of %d users the first asks %d times: not few for much and many for little", len(users), users["10.0.0.0"])
	}
}

func TestSimulateReadsPipesAndFilesAlike(t *testing.T) {
	log := madeUp(t, 3000)
	code, piped, stderr := simulated(log, "-output", "json")
	if code != exitFine || stderr != "" {
		t.Fatalf("got %d %q", code, stderr)
	}
	dir := t.TempDir()
	file, report, decisions := filepath.Join(dir, "access.log"), filepath.Join(dir, "report.json"), filepath.Join(dir, "decisions")
	if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := simulated("", "-output", "json", "-o", report, "-decisions", decisions, file)
	if code != exitFine || stdout != "" || stderr != "" {
		t.Fatalf("got %d %q %q", code, stdout, stderr)
	}
	written, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(piped, `"-"`, strconv.Quote(file), 1); string(written) != want {
		t.Errorf("got %s, want %s", written, want)
	}
	var r simulate.Report
	if err := json.Unmarshal(written, &r); err != nil {
		t.Fatal(err)
	}
	lines, err := os.ReadFile(decisions)
	if err != nil {
		t.Fatal(err)
	}
	denied := strings.Count(string(lines), `"decision":"deny"`)
	if n := strings.Count(string(lines), "\n"); n != 3000 || uint64(denied) != r.Total.Denied || denied == 0 {
		t.Errorf("there are decisions about %d lines, %d of them denied; the report says %d", n, denied, r.Total.Denied)
	}
}

func TestSimulateWritesEachForm(t *testing.T) {
	log := madeUp(t, 300)
	for form, begin := range map[string]string{"text": "testdata/simulate.yaml on standard input\n", "json": "{\n", "html": "<!doctype html>"} {
		code, stdout, stderr := simulated(log, "-output", form, "-target", "1%", "-top", "3", "-")
		if code != exitFine || !strings.HasPrefix(stdout, begin) || stderr != "" {
			t.Errorf("%s: got %d %.100s %s", form, code, stdout, stderr)
		}
	}
}

func TestSimulateSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-format", "iis"}, exitUsage, `-format "iis" is none of auto, combined, json, caddy, envoy, r8limiter`},
		{[]string{"-output", "pdf"}, exitUsage, `-output "pdf" is none of text, json, html`},
		{[]string{"-target", "all"}, exitUsage, `-target: "all" is no share`},
		{[]string{"-fields", "x"}, exitUsage, `-fields: "x" is no pair`},
		{[]string{"-fields", "time=ts", "-format", "caddy"}, exitUsage, "-fields says what is where in JSON: leave it out, or -format caddy"},
		{[]string{"-top", "-1"}, exitUsage, "-top: -1 users"},
		{[]string{"access.log", "-output", "json"}, exitUsage, "-output stands behind a log"},
		{[]string{"-config", "testdata/bad_values.yaml"}, exitUsage, "bad_values.yaml:"},
		{[]string{filepath.Join(dir, "none.log")}, exitFailure, "no such file"},
		{[]string{"-"}, exitFailure, "no line could be read as a request"},
		{[]string{"-o", filepath.Join(dir, "none", "report")}, exitFailure, "no such file"},
		{[]string{"-decisions", filepath.Join(dir, "none", "decisions")}, exitFailure, "no such file"},
	} {
		if code, _, stderr := simulated("nonsense\n", c.args...); code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: got %d %q, want %d %q", c.args, code, stderr, c.code, c.want)
		}
	}
	// What could not be read is told all the same.
	if _, stdout, _ := simulated("nonsense\n"); !strings.Contains(stdout, "standard input:1: the first line is no JSON") {
		t.Errorf("got %q", stdout)
	}
}

func TestSimulateDestroysNothingThatItReads(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	log := madeUp(t, 10)
	config, err := os.ReadFile("testdata/simulate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("access.log", log)
	write("new.yaml", string(config))
	write("old", "what was here")
	for name, target := range map[string]string{"link.log": "access.log", "dangling": "absent"} {
		if err := os.Symlink(target, path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(path("access.log"), path("hard.log")); err != nil {
		t.Fatal(err)
	}
	here, other := path("access.log"), path("old")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-o", here, here}, exitUsage, "simulate: -o and the log " + here + " are the same file\n"},
		{[]string{"-decisions", here, path("link.log")}, exitUsage, "-decisions and the log " + path("link.log")},
		{[]string{"-decisions", path("link.log"), "-", here}, exitUsage, "-decisions and the log " + here},
		{[]string{"-o", path("hard.log"), here}, exitUsage, "-o and the log " + here},
		{[]string{"-o", path("new.yaml"), here}, exitUsage, "-o and the configuration are the same file"},
		{[]string{"-decisions", path("new.yaml"), here}, exitUsage, "-decisions and the configuration"},
		{[]string{"-o", other, "-decisions", dir + "/./old", here}, exitUsage, "-o and -decisions are the same file"},
		{[]string{"-o", path("absent"), "-decisions", path("dangling"), here}, exitUsage, "-o and -decisions are the same file"},
		{[]string{"-o", other, "-decisions", path("new"), here, path("none.log")}, exitFailure, "no such file"},
		{[]string{"-decisions", other, "-o", path("new"), path("none.log")}, exitFailure, "no such file"},
		{[]string{"-o", os.DevNull, "-decisions", os.DevNull, here}, exitFine, ""},
	} {
		code, _, stderr := simulated(log, append([]string{"-config", path("new.yaml")}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: got %d %q, want %d %q", c.args, code, stderr, c.code, c.want)
		}
		for name, want := range map[string]string{"access.log": log, "new.yaml": string(config), "old": "what was here"} {
			if got, err := os.ReadFile(path(name)); err != nil || string(got) != want {
				t.Fatalf("%q: %s is now %q, %v", c.args, name, got, err)
			}
		}
	}
}

func TestSimulateReplacesTheWholeOfAnOldFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "decisions.jsonl")
	if err := os.WriteFile(file, []byte(strings.Repeat("x", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := simulated(madeUp(t, 10), "-config", "testdata/simulate.yaml", "-decisions", file); code != exitFine {
		t.Fatalf("got %d %q", code, stderr)
	}
	if got, err := os.ReadFile(file); err != nil || strings.Count(string(got), "\n") != 10 || len(got) > 1<<19 {
		t.Errorf("got %.200q, %v", got, err)
	}
}

func TestSimulateDoesNotOverwriteStandardInput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "access.log")
	log := madeUp(t, 10)
	if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	stdin, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	var out, errs bytes.Buffer
	p := &program{args: []string{"simulate", "-config", "testdata/simulate.yaml", "-o", file}, stdin: stdin, stdout: &out, stderr: &errs, env: noEnv}
	if code := p.run(); code != exitUsage || !strings.Contains(errs.String(), "-o and the log on standard input are the same file") {
		t.Errorf("got %d %q", code, errs.String())
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != log {
		t.Errorf("it is now %q, %v", got, err)
	}
}

func TestSimulateFailsWhereALogBreaksOffAndReportsTheRest(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := io.WriteString(w, madeUp(t, 5000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cut := packed.String()[:packed.Len()/2]
	for form, want := range map[string]string{"text": "standard input: can't be read on behind line ", "json": `"why": "unexpected EOF"`, "html": "can&#39;t be read on behind line"} {
		code, stdout, stderr := simulated(cut, "-output", form)
		if code != exitFailure || !strings.Contains(stdout, want) || !strings.HasPrefix(stderr, "simulate: a log could not be read to its end: standard input: can't") {
			t.Errorf("%s: got %d %.300q %q", form, code, stdout, stderr)
		}
	}
}

func TestFieldsMeanJSON(t *testing.T) {
	const line = `{"ts":1.5,"at":"2026-11-26T10:00:01Z","method":"GET","uri":"/healthz","request":{"method":"GET","uri":"/"}}` + "\n"
	code, stdout, stderr := simulated(line, "-fields", "time=at")
	if code != exitFine || !strings.Contains(stdout, "from 2026-11-26 10:00:01 to") {
		t.Errorf("got %d %q %q", code, stdout, stderr)
	}
}

// terminal is a pseudo-terminal. What is written to tty is in shown.
func terminal(t *testing.T) (tty *os.File, shown *processLog) {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	shown = &processLog{}
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(shown, ptmx) }) // ends with an error when tty is closed
	t.Cleanup(func() {
		tty.Close()
		reading.Wait()
		ptmx.Close()
	})
	return tty, shown
}

func (l *processLog) ends(with string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.HasSuffix(string(l.text), with)
}

func TestProgressIsShownOnATerminalOnly(t *testing.T) {
	tty, shown := terminal(t)
	reader, writer := io.Pipe()
	ended := make(chan int, 1)
	var out bytes.Buffer
	p := &program{args: []string{"simulate", "-config", "testdata/simulate.yaml"}, stdin: reader, stdout: &out, stderr: tty, env: noEnv}
	go func() { ended <- p.run() }()
	log := madeUp(t, 5000)
	if _, err := io.WriteString(writer, log); err != nil {
		t.Fatal(err)
	}
	eventually(t, "progress is shown", func() bool { return shown.ends(" lines/s") })
	writer.Close()
	if code := <-ended; code != exitFine {
		t.Errorf("exit code %d", code)
	}
	eventually(t, "it is taken away", func() bool { return shown.ends("\r\x1b[K") })
	if _, _, stderr := simulated(log); stderr != "" {
		t.Errorf("where there is no terminal it shows %q", stderr)
	}
}

func TestProgressFitsALine(t *testing.T) {
	b := &progressBar{progress: &simulate.Progress{}, total: 700 << 20}
	b.progress.Bytes.Store(350 << 20)
	b.progress.Lines.Store(2_400_000)
	if got, want := b.text(3*time.Second), "[##########..........]  50 % of 700 MB, 2400000 lines, 800000 lines/s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	b.total = 0
	if got, want := b.text(3*time.Second), "350 MB, 2400000 lines, 800000 lines/s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	b.progress.Steps.Store(9)
	b.progress.Done.Store(3)
	if got, want := b.text(time.Second), "searching for limits [######..............] 3 of 9"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestInterruptedSimulationLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "pipe.log")
	if err := syscall.Mkfifo(log, 0o600); err != nil {
		t.Fatal(err)
	}
	temporary := filepath.Join(dir, "tmp")
	if err := os.Mkdir(temporary, 0o700); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(program, "simulate", "-config", "testdata/simulate.yaml", "-target", "1%", log)
	c.Env = append(os.Environ(), beTheProgram+"=1", "TMPDIR="+temporary)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if _, err := c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	feed, err := os.OpenFile(log, os.O_WRONLY, 0) // once the program reads
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Close()
	if _, err := io.WriteString(feed, madeUp(t, 5000)); err != nil { // more than a pipe holds
		t.Fatal(err)
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != exitFailure || stdout.Len() > 0 || stderr.String() != "simulate: interrupted\n" {
		t.Errorf("got %d %q %q", code, stdout.String(), stderr.String())
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

func TestSimulateWantsAConfiguration(t *testing.T) {
	t.Chdir(t.TempDir()) // where no config.yaml is
	code, stdout, stderr := command("simulate", "access.log")
	if code != exitUsage || stdout != "" || !strings.Contains(stderr, "name one with -config FILE") {
		t.Errorf("got %d %q %q", code, stdout, stderr)
	}
}
