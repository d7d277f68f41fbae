package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
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
