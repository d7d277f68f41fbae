package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
	"github.com/r8limiter/r8limiter/proxy/simulate"
)

// traffic makes up requests: the same ones for the same values. Users come by Zipf's
// law, so that few ask for much and many for little.
type traffic struct {
	requests, users int
	seed            uint64
	span            time.Duration // from the first to the last, about
}

// visit is one request of made-up traffic.
type visit struct {
	at           time.Time
	number       int // of the user, from 0
	address      string
	user         string // who asks, as X-User-Id has it; "" for nobody in particular
	plan         string // "gold" for some users
	method, path string
	agent        string
}

// trafficStart is when the first request of all traffic comes.
var trafficStart = time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)

// each calls f with all requests in order. The visit is reused.
func (t traffic) each(f func(*visit)) {
	random := rand.New(rand.NewPCG(t.seed, 1))
	zipf := rand.NewZipf(random, 1.2, 3, uint64(t.users-1))
	gap := float64(t.span) / float64(t.requests)
	v := &visit{at: trafficStart}
	for range t.requests {
		v.at = v.at.Add(time.Duration(random.ExpFloat64() * gap))
		v.number = int(zipf.Uint64())
		v.address = fmt.Sprintf("10.%d.%d.%d", v.number>>16&255, v.number>>8&255, v.number&255)
		v.user, v.plan = "", ""
		if v.number%3 == 1 {
			v.plan = "gold"
		}
		if v.number%4 != 0 {
			v.user = "user-" + strconv.Itoa(v.number)
		}
		v.method, v.path = "GET", paths[int(random.Uint32())%len(paths)]
		if strings.HasSuffix(v.path, "/") {
			v.path += strconv.Itoa(int(random.Uint32() % 5000))
		}
		if random.Uint32()%8 == 0 {
			v.method = "POST"
		}
		v.agent = agents[v.number%len(agents)]
		f(v)
	}
}

// paths are what made-up traffic asks for; one that ends in a slash gets a number.
var paths = []string{
	"/v1/items/", "/v1/items/", "/v1/items/", "/v1/items?page=2&sort=price", "/v1/search?q=red+shoes", "/v1/search?q=a%20b&limit=50",
	"/v1/orders/", "/v1/orders", "/v1/users/", "/v1/carts/", "/v1/carts/", "/static/app.js", "/static/app.css", "/healthz",
	"/v2/catalog/", "/v2/catalog/", "/login", "/", "/favicon.ico", "/wp-login.php", "/internal/secret", "/v1/items/..%2F7",
}

var agents = []string{
	"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
	"Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.0 Mobile/15E148 Safari/604.1",
	"curl/8.9.1", "okhttp/4.12.0", "python-requests/2.32.3",
}

// combined writes v as nginx's combined format has it.
func (v *visit) combined(w *bufio.Writer) {
	_, _ = w.WriteString(v.address + " - - [" + v.at.Format("02/Jan/2006:15:04:05 -0700") + `] "` + v.method + " " + v.path +
		` HTTP/1.1" 200 ` + strconv.Itoa(len(v.path)*37) + ` "-" "` + v.agent + "\"\n")
}

// json writes v as a log in JSON might have it, with user and plan, to the microsecond.
func (v *visit) json(w *bufio.Writer) {
	fmt.Fprintf(w, `{"ts":%q,"client_ip":%q,"method":%q,"uri":%q,"user":%q,"plan":%q}`+"\n",
		v.at.Format("2006-01-02T15:04:05.000000Z"), v.address, v.method, v.path, v.user, v.plan)
}

// jsonFields are the -fields for it.
const jsonFields = "time=ts,header.X-User-Id=user,header.X-Plan=plan"

// write writes the whole traffic to a file, each request by form.
func (t traffic) write(file string, form func(*visit, *bufio.Writer)) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	t.each(func(v *visit) { form(v, w) })
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// TestSimulateOfManyLines writes, if it is asked to, a log of SIMULATE_LINES lines of
// SIMULATE_USERS users to SIMULATE_LOG, to measure the command with.
func TestSimulateOfManyLines(t *testing.T) {
	lines, _ := strconv.Atoi(os.Getenv("SIMULATE_LINES"))
	users, _ := strconv.Atoi(os.Getenv("SIMULATE_USERS"))
	if lines == 0 || users == 0 {
		t.Skip("writes a large file, if SIMULATE_LINES, SIMULATE_USERS and SIMULATE_LOG say so")
	}
	many := traffic{requests: lines, users: users, seed: 1, span: time.Duration(lines) * time.Millisecond}
	if err := many.write(os.Getenv("SIMULATE_LOG"), (*visit).combined); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkSimulate is what a line costs, from the file to the report.
func BenchmarkSimulate(b *testing.B) {
	for _, form := range []struct {
		name  string
		write func(*visit, *bufio.Writer)
		args  []string
	}{
		{"combined", (*visit).combined, nil},
		{"json", (*visit).json, []string{"-format", "json", "-fields", jsonFields}},
	} {
		b.Run(form.name, func(b *testing.B) {
			file := filepath.Join(b.TempDir(), "access.log")
			made := traffic{requests: max(b.N, 1000), users: 100_000, seed: 1, span: time.Duration(b.N) * time.Millisecond}
			if err := made.write(file, form.write); err != nil {
				b.Fatal(err)
			}
			args := append([]string{"simulate", "-config", "testdata/simulate.yaml"}, form.args...)
			b.ReportAllocs()
			b.ResetTimer()
			if code, _, stderr := command(append(args, file)...); code != exitFine {
				b.Fatal(stderr)
			}
		})
	}
}

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
	// What is no input is replaced as a whole.
	write("old", strings.Repeat("x", 1<<20))
	if code, _, stderr := simulated("", "-decisions", other, here); code != exitFine {
		t.Fatalf("got %d %q", code, stderr)
	}
	if got, err := os.ReadFile(other); err != nil || strings.Count(string(got), "\n") != 10 || strings.Contains(string(got), "x") && len(got) > 1<<19 {
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

// shifted is a gateway on a real listener, whose limits go by a clock that a test sets.
type shifted struct {
	url string
	now atomic.Int64 // microseconds since 1970
	log processLog
	// asked numbers the requests: what ends its connection may be logged after the next.
	asked int
}

// decisions are the lines of the log in the order of the requests.
func (s *shifted) decisions(t *testing.T) []string {
	t.Helper()
	eventually(t, "all is logged", func() bool { return len(s.log.lines()) == s.asked })
	lines := s.log.lines()
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(requestID(a), requestID(b)) })
	return lines
}

func requestID(line string) string {
	_, id, _ := strings.Cut(line, `"request_id":"`)
	return id[:8]
}

func startShifted(t *testing.T) *shifted {
	t.Helper()
	c, problems := (&program{env: noEnv}).load("testdata/simulate.yaml")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var here proxy.Prefix
	if err := here.UnmarshalText([]byte("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	c.Proxy.TrustedProxies = []proxy.Prefix{here} // the test tells the clients' addresses
	s := &shifted{}
	l := limiter.New(c.Limiter, limiter.NewMemoryStoreAt(s.now.Load))
	p, err := proxy.New(c.Proxy, proxy.Options{Limiter: l, Log: zerolog.New(&s.log)})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + listener.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(listener) }()
	t.Cleanup(func() {
		_ = p.Shutdown(context.Background())
		<-ended
		_ = l.Close()
	})
	return s
}

// ask sends v at its time, or at the full second before, and is the answer's status.
func (s *shifted) ask(t *testing.T, client *http.Client, v *visit, fields bool) int {
	t.Helper()
	req, err := http.NewRequest(v.method, s.url+v.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", v.address)
	req.Header.Set("User-Agent", v.agent)
	s.asked++
	req.Header.Set("X-Request-Id", fmt.Sprintf("%08d", s.asked))
	at := v.at.Truncate(time.Second)
	if fields {
		at = v.at
		req.Header["X-User-Id"], req.Header["X-Plan"] = []string{v.user}, []string{v.plan}
	}
	s.now.Store(at.UnixMicro())
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// decision is what the gateway's log and the simulation's decisions both have.
type decision struct {
	Route      string          `json:"route"`
	User       string          `json:"user_id"`
	Resource   string          `json:"resource"`
	Cost       int64           `json:"cost"`
	Decision   string          `json:"decision"`
	Limit      string          `json:"limit"`
	RetryAfter json.RawMessage `json:"retry_after"`
	Shadow     string          `json:"shadow_denied"`
	Status     int             `json:"status"`
}

// decisionsIn reads them, with what only one of the two has left out.
func decisionsIn(t *testing.T, lines []string) []decision {
	t.Helper()
	all := make([]decision, len(lines))
	for i, line := range lines {
		d := &all[i]
		if err := json.Unmarshal([]byte(line), d); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if d.Status < 400 || d.Status == 429 {
			d.Status = 0
		}
		if d.Decision != "deny" {
			d.RetryAfter = nil
		}
		if d.Decision == "pass" || d.Decision == "refuse" {
			d.Decision = ""
		}
	}
	return all
}

// TestSimulationDecidesAsTheGatewayDoes sends the same traffic, of many users of whom few
// ask for much, to a gateway with a clock that is shifted and, as a log, through simulate.
func TestSimulationDecidesAsTheGatewayDoes(t *testing.T) {
	for name, c := range map[string]struct {
		write  func(*visit, *bufio.Writer)
		args   []string
		fields bool // the log has header fields, and fractions of seconds
	}{
		"combined": {(*visit).combined, nil, false},
		"json":     {(*visit).json, []string{"-format", "json", "-fields", jsonFields}, true},
	} {
		t.Run(name, func(t *testing.T) {
			made := traffic{requests: 20_000, users: 5000, seed: 42, span: 10 * time.Second}
			gateway, statuses := startShifted(t), map[int]int{}
			client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
			defer client.CloseIdleConnections()
			var times []int64
			made.each(func(v *visit) {
				statuses[gateway.ask(t, client, v, c.fields)]++
				times = append(times, gateway.now.Load())
			})
			file := filepath.Join(t.TempDir(), "access.log")
			if err := made.write(file, c.write); err != nil {
				t.Fatal(err)
			}
			logged := gateway.decisions(t)
			compareDecisions(t, logged, simulatedDecisions(t, append(c.args, file)...))
			// And so does the gateway's own log, at the time by which it decided.
			own := filepath.Join(t.TempDir(), "own.log")
			var text bytes.Buffer
			for i, line := range logged {
				fmt.Fprintf(&text, `{"time":%d,%s`, times[i], line[1:])
			}
			if err := os.WriteFile(own, text.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			compareDecisions(t, logged, simulatedDecisions(t, own))
			if statuses[200] < 5000 || statuses[429] < 2000 || statuses[400] == 0 || statuses[403] == 0 {
				t.Errorf("the answers are %v: too much the same to tell anything", statuses)
			}
		})
	}
}

// simulatedDecisions simulates and is the lines of the decisions.
func simulatedDecisions(t *testing.T, args ...string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "decisions")
	if code, _, stderr := simulated("", append([]string{"-decisions", file}, args...)...); code != exitFine {
		t.Fatal(stderr)
	}
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(strings.Lines(string(written)))
}

func compareDecisions(t *testing.T, logged, simulated []string) {
	t.Helper()
	want, got := decisionsIn(t, logged), decisionsIn(t, simulated)
	if len(want) != len(got) {
		t.Fatalf("the gateway decided %d times, the simulation %d", len(want), len(got))
	}
	different, shadows, bound := 0, 0, map[string]int{}
	for i := range want {
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			if different++; different < 4 {
				t.Errorf("request %d: -gateway +simulation\n%s%s%s", i+1, diff, logged[i], simulated[i])
			}
		}
		if want[i].Decision == "deny" {
			bound[want[i].Limit]++
		}
		if want[i].Shadow != "" {
			shadows++
		}
	}
	if different > 0 || len(bound) < 3 || shadows < 100 {
		t.Errorf("%d decisions differ; denials were by %v, and %d by shadows", different, bound, shadows)
	}
}

// TestLogOfCheckAndAllowIsSimulatedAsItWasDecided asks a gateway without a proxy listener,
// and runs its log through its own rules.
func TestLogOfCheckAndAllowIsSimulatedAsItWasDecided(t *testing.T) {
	g := start(t, checkRules)
	for _, uri := range []string{"/items/1?q", "/items/2", "/items/3", "/private/x", "/nowhere", "/free", "/shadow", "/cost?cost=2", "https://r8limiter/items/4"} {
		for _, client := range []string{"192.0.2.1", "192.0.2.2, 10.0.0.1", "2001:db8::1"} {
			rawAnswer(g.control, checkRequest("GET /check?deny_status=403", append([]string{"Host: r8limiter", "X-Forwarded-Proto: https"}, about(uri, client)...)...))
		}
	}
	for _, query := range []string{"user_id=ann&resource=search&plan=gold&cost=900&idempotency=k", "user_id=ann&resource=search&plan=gold&cost=900&idempotency=k",
		"user_id=ann&resource=search&plan=gold&cost=50", "user_id=ann&resource=search&plan=gold&cost=51", "user_id=ann&cost=x"} {
		status(t, "POST", g.control+"/allow?"+query)
	}
	status(t, "GET", g.control+"/admin/user/ann")
	g.signals <- syscall.SIGINT
	<-g.exit
	file := filepath.Join(t.TempDir(), "own.log")
	if err := os.WriteFile(file, g.log.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	decisions := filepath.Join(t.TempDir(), "decisions")
	if code, _, stderr := simulated("", "-config", g.file, "-decisions", decisions, file); code != exitFine {
		t.Fatal(stderr)
	}
	written, err := os.ReadFile(decisions)
	if err != nil {
		t.Fatal(err)
	}
	logged, got := slices.Collect(strings.Lines(g.log.String())), slices.Collect(strings.Lines(string(written)))
	compared := 0
	for i := range logged {
		want, ok := asSimulated(logged[i])
		if !ok {
			continue
		}
		compared++
		if short := shortDecision(t, got[i]); short != want {
			t.Errorf("%s\nsimulated %s, want %s", logged[i], short, want)
		}
	}
	if len(got) != len(logged) || compared != 9*3+5 {
		t.Errorf("compared %d lines; of %d there are %d decisions", compared, len(logged), len(got))
	}
}

// loggedDecision is what the line of a decision is compared by.
type loggedDecision struct {
	Listener  string `json:"listener"`
	Path      string `json:"path"`
	Decision  string `json:"decision"`
	Route     string `json:"route"`
	User      string `json:"user_id"`
	Plan      string `json:"plan"`
	Limit     string `json:"limit"`
	Shadow    string `json:"shadow_denied"`
	Status    int    `json:"status"`
	OwnStatus int    `json:"own_status"`
	Replayed  bool   `json:"replayed"`
}

func (d *loggedDecision) String() string {
	if d.Decision == "pass" || d.Decision == "refuse" {
		return fmt.Sprint(d.Decision, d.Status)
	}
	return fmt.Sprintln(d.Decision, d.Route, d.User, d.Plan, d.Limit, d.Shadow)
}

// asSimulated is what a line of the gateway's should be simulated as; false for one that is
// not simulated.
func asSimulated(line string) (string, bool) {
	var d loggedDecision
	if json.Unmarshal([]byte(line), &d) != nil || d.Listener != "control" || d.Status == 0 || strings.HasPrefix(d.Path, "/admin") {
		return "", false
	}
	if d.OwnStatus > 0 {
		d.Status = d.OwnStatus
	}
	if d.Status >= 400 && d.Status != 429 {
		d.Decision = "refuse"
	}
	if d.Decision == "" || d.Replayed {
		d.Decision, d.Status = "pass", 0
	}
	if d.Path == "/allow" {
		d.Route = "(/allow)"
	}
	return d.String(), true
}

func shortDecision(t *testing.T, line string) string {
	t.Helper()
	var d loggedDecision
	if err := json.Unmarshal([]byte(line), &d); err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestSimulateWantsAConfiguration(t *testing.T) {
	t.Chdir(t.TempDir()) // where no config.yaml is
	code, stdout, stderr := command("simulate", "access.log")
	if code != exitUsage || stdout != "" || !strings.Contains(stderr, "name one with -config FILE") {
		t.Errorf("got %d %q %q", code, stdout, stderr)
	}
}
