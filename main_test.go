package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// noEnv is an empty environment.
func noEnv(string) (string, bool) { return "", false }

// command runs the program to its end.
func command(args ...string) (code int, stdout, stderr string) {
	return commandIn(noEnv, args...)
}

// commandIn is command in an environment.
func commandIn(env func(string) (string, bool), args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	p := &program{args: args, stdout: &out, stderr: &errs, env: env, listening: func(net.Addr, net.Addr) {}}
	code = p.run()
	return code, out.String(), errs.String()
}

func TestShippedConfigurationsAreValid(t *testing.T) {
	for _, file := range []string{"config.example.yaml", "deploy/docker/config.yaml"} {
		code, stdout, stderr := command("check", "-config", file)
		if code != exitFine || stdout != file+": ok\n" {
			t.Errorf("check %s: got %d %q %q", file, code, stdout, stderr)
		}
	}
}

func TestExampleWithRedisIsValid(t *testing.T) {
	data, err := os.ReadFile("config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, key := range []string{"redis:", "  url:", "  timeout:", "  key_prefix:"} {
		if !strings.Contains(text, "  # "+key) {
			t.Fatalf("the example does not show %q", key)
		}
		text = strings.Replace(text, "  # "+key, "  "+key, 1)
	}
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := command("check", "-config", file); code != exitFine {
		t.Errorf("got %d %q", code, stderr)
	}
}

func TestExampleShowsEveryKey(t *testing.T) {
	data, err := os.ReadFile("config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(typ.Elem())
		case reflect.Struct:
			for field := range typ.Fields() {
				key := field.Tag.Get("yaml")
				if key == "" {
					continue
				}
				if !strings.Contains(string(data), key+":") {
					t.Errorf("key %s of %s is missing", key, typ)
				}
				walk(field.Type)
			}
		}
	}
	walk(reflect.TypeFor[Config]())
}

func TestVariablesExpandInValues(t *testing.T) {
	env := func(name string) (string, bool) { return "blue", name == "SET" }
	for _, c := range []struct{ text, want, problem string }{
		{"plain", "plain", ""},
		{"a${SET}b", "ablueb", ""},
		{"${UNSET:-x}", "x", ""},
		{"${UNSET:-}", "", ""},
		{"$${SET}", "${SET}", ""},
		{"${UNSET}", "", "UNSET is not set"},
		{"${", "", "is no variable"},
		{"${1x}", "", "is no variable"},
	} {
		got, err := expand(c.text, env)
		if got != c.want || (err == nil) != (c.problem == "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%q: got %q, %v", c.text, got, err)
		}
	}
}

// stuckWriter blocks until it is let go.
type stuckWriter struct{ letGo chan struct{} }

func (w stuckWriter) Write(p []byte) (int, error) { <-w.letGo; return len(p), nil }

func TestLogNeverBlocksAndCountsWhatItDrops(t *testing.T) {
	to := stuckWriter{make(chan struct{})}
	w := newLogWriter(to)
	line := bytes.Repeat([]byte("x"), 1<<20)
	for range 12 { // one buffer's worth may be on its way, another may wait
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.dropped.Load(); got < 3 || got > 8 {
		t.Errorf("dropped %d lines of 12, want 3 to 8", got)
	}
	close(to.letGo)
	w.Close()
}

func TestLogIsWholeAfterClose(t *testing.T) {
	var out bytes.Buffer
	w := newLogWriter(&out)
	var want strings.Builder
	for i := range 10000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if _, err := w.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	if out.String() != want.String() {
		t.Errorf("got %d bytes, want %d", out.Len(), want.Len())
	}
}

// started is a program that serves on free ports.
type started struct {
	file           string // its configuration
	proxy, control string
	signals        chan os.Signal
	exit           chan int
	log            *bytes.Buffer // to be read once it has ended
}

func start(t *testing.T, config string) *started {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &started{file: file, signals: make(chan os.Signal, 2), exit: make(chan int, 1), log: new(bytes.Buffer)}
	addrs := make(chan [2]string, 1)
	p := &program{
		args: []string{"-config", file}, stdout: io.Discard, stderr: s.log, env: noEnv,
		signals: s.signals,
		listening: func(proxy, control net.Addr) {
			if proxy == nil { // it is off
				proxy = &net.TCPAddr{}
			}
			addrs <- [2]string{proxy.String(), control.String()}
		},
	}
	go func() { s.exit <- p.run() }()
	select {
	case a := <-addrs:
		s.proxy, s.control = "http://"+a[0], "http://"+a[1]
	case code := <-s.exit:
		t.Fatalf("exit code %d before serving: %s", code, s.log.String())
	}
	return s
}

func status(t *testing.T, method, url string) int {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

func TestProgramLimitsAndDrains(t *testing.T) {
	arrived, letGo := make(chan struct{}), make(chan struct{})
	upstream := httptestServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(arrived)
			<-letGo
		}
		fmt.Fprint(w, "fine")
	})
	s := start(t, `
proxy:
  listen: "127.0.0.1:0"
  drain_delay: 50ms
  upstreams: {api: {targets: ["`+upstream+`"]}}
  routes: [{name: all, upstream: api}]
limiter: {default: {capacity: 3, refill_rate: 1/h}}
admin: {listen: "127.0.0.1:0"}
`)
	for i, want := range []int{200, 200} {
		if got := status(t, "GET", s.proxy+"/x"); got != want {
			t.Errorf("request %d: got %d, want %d", i, got, want)
		}
	}
	slow := make(chan int, 1)
	go func() { slow <- status(t, "GET", s.proxy+"/slow") }()
	<-arrived
	if got := status(t, "GET", s.proxy+"/x"); got != 429 {
		t.Errorf("over the limit: got %d, want 429", got)
	}
	if got := status(t, "GET", s.control+"/readyz"); got != 200 {
		t.Errorf("readyz: got %d, want 200", got)
	}
	s.signals <- syscall.SIGTERM
	deadline := time.Now().Add(5 * time.Second)
	for status(t, "GET", s.control+"/readyz") != 503 {
		if time.Now().After(deadline) {
			t.Fatal("readyz did not turn 503")
		}
	}
	close(letGo)
	if got := <-slow; got != 200 {
		t.Errorf("request in flight: got %d, want 200", got)
	}
	if code := <-s.exit; code != exitFine {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestControlListenerShowsTheUpstreamsOfTheProxy(t *testing.T) {
	upstream := httptestServer(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "fine") })
	s := start(t, `
proxy:
  listen: "127.0.0.1:0"
  upstreams: {api: {targets: ["`+upstream+`", "http://127.0.0.1:1"]}}
  routes: [{name: all, action: bypass, upstream: api}]
admin: {listen: "127.0.0.1:0"}
`)
	for range 6 { // every other begins with the dead target, three faults eject it
		if got := status(t, "GET", s.proxy+"/x"); got != 200 {
			t.Errorf("got %d, want 200 by the other target", got)
		}
	}
	// How many connections there are depends on when the last one was given back.
	got := bodyOf(t, s.control+"/admin/upstreams")
	for _, want := range []string{
		`{"upstreams":[{"upstream":"api","targets":[{"target":"` + upstream + `","state":"healthy","connections":`,
		`{"target":"http://127.0.0.1:1","state":"ejected","connections":0,"idle":0}]}]}`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got %s, want %s in it", got, want)
		}
	}
	s.signals <- os.Interrupt
	<-s.exit
}

func TestControlListenerAloneShowsNoUpstreams(t *testing.T) {
	s := start(t, `
proxy: {listen: ""}
admin: {listen: "127.0.0.1:0"}
`)
	if got := bodyOf(t, s.control+"/admin/upstreams"); got != `{"upstreams":[]}` {
		t.Errorf("got %s", got)
	}
	s.signals <- os.Interrupt
	<-s.exit
}

// bodyOf is the answer to a GET.
func bodyOf(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// httptestServer serves h on a free port until the test ends.
func httptestServer(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return "http://" + l.Addr().String()
}

func FuzzConfig(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, "config.example.yaml") {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := defaultConfig()
		if _, problems := decodeYAML(data, noEnv, &c); len(problems) > 0 {
			for _, p := range problems {
				if p.line < 1 || p.line > 1+bytes.Count(data, []byte("\n")) || p.col < 1 || p.text == "" {
					t.Errorf("problem without a place or a text: %+v", p)
				}
			}
			return
		}
		c.validate(func(path, text string) {
			if path == "" || text == "" {
				t.Errorf("problem %q at %q", text, path)
			}
		})
	})
}
