package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/admin"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// fetch asks with header lines and returns the whole answer.
func fetch(t *testing.T, method, url string, lines ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// Tokens of the gateways here.
const (
	firstToken  = "first-token-of-these-tests"
	secondToken = "second-token-of-these-tests"
)

// reloadedBy is a configuration with a route /a that limits, and what is to differ: in
// order more routes, the limits below limiter, the token and the log block.
func reloadedBy(routes, limits, token, log string) string {
	return `
proxy:
  listen: "127.0.0.1:0"
  drain_delay: 0s
  upstreams: {api: {targets: ["echo:"]}}
  routes:
    - {name: a, match: {path: /a}, user_id: ["{header.X-User-Id}"], resource: read, plan: "{header.X-Plan}", upstream: api}
` + routes + `
limiter: ` + limits + `
admin: {listen: "127.0.0.1:0", token: ` + token + `}
log: ` + log + "\n"
}

// plainConfig is reloadedBy without anything special, but with more routes.
func plainConfig(routes string) string {
	return reloadedBy(routes, `{default: {capacity: 1000, refill_rate: 1/s}}`, firstToken, `{requests: none}`)
}

const blockB = `    - {name: b, match: {path: /b}, action: block}`

// replace puts another file in the place of one, in one step.
func replace(t *testing.T, file, text string) {
	t.Helper()
	write(t, file+".new", []byte(text))
	rename(t, file+".new", file)
}

// post reloads by the control listener.
func (p *process) post(t *testing.T, token string) (status int, answer string) {
	t.Helper()
	resp, body := fetch(t, "POST", p.control+"/admin/reload", "Authorization: Bearer "+token)
	return resp.StatusCode, body
}

func TestReloadPutsRoutesLimitsPlansTokensAndLogInForce(t *testing.T) {
	p := startProcess(t, reloadedBy("", `{resources: {read: {capacity: 2, refill_rate: 1/d}}}`, firstToken, `{level: info}`))
	asks := func(want int, policy, path string, lines ...string) {
		t.Helper()
		resp, _ := fetch(t, "GET", p.proxy+path, append(lines, "X-User-Id: ann")...)
		if resp.StatusCode != want || policy != "" && !strings.Contains(resp.Header.Get("RateLimit-Policy"), policy) {
			t.Errorf("%s %v: got %d %s, want %d %s", path, lines, resp.StatusCode, resp.Header.Get("RateLimit-Policy"), want, policy)
		}
	}
	asks(404, "", "/b")
	asks(200, "q=2;", "/a")
	asks(200, "q=2;", "/a")
	asks(429, "q=2;", "/a")
	if p.logged(`"/livez"`) > 0 {
		t.Error("there are debug lines before")
	}
	write(t, p.file, []byte(reloadedBy(blockB, `{resources: {read: {capacity: 5, refill_rate: 1/d}}, plans: {gold: {read: {capacity: 9, refill_rate: 1/d}}}, headers: [draft, legacy]}`, secondToken, `{level: debug}`)))
	p.signal(t, syscall.SIGHUP)
	p.awaitLog(t, "the configuration is reloaded")
	asks(403, "", "/b")
	// The two tokens that were spent stay spent, by every limit of the bucket.
	for range 3 {
		asks(200, "q=5;", "/a")
	}
	asks(429, "q=5;", "/a")
	for range 4 {
		asks(200, "q=9;", "/a", "X-Plan: gold")
	}
	asks(429, "q=9;", "/a", "X-Plan: gold")
	if resp, _ := fetch(t, "GET", p.proxy+"/a", "X-User-Id: bob"); resp.Header.Get("X-RateLimit-Limit") != "5" {
		t.Errorf("the fields of answers are %v", resp.Header)
	}
	if resp, _ := fetch(t, "POST", p.control+"/allow?user_id=cat&resource=read"); !strings.Contains(resp.Header.Get("RateLimit-Policy"), "q=5;") {
		t.Errorf("/allow goes by %v", resp.Header)
	}
	for token, want := range map[string]int{firstToken: 401, secondToken: 200} {
		resp, body := fetch(t, "GET", p.control+"/admin/config", "Authorization: Bearer "+token)
		if resp.StatusCode != want || want == 200 && (!strings.Contains(body, `"level":"debug"`) || strings.Contains(body, secondToken)) {
			t.Errorf("%s: got %d %s, want %d", token, resp.StatusCode, body, want)
		}
	}
	status(t, "GET", p.control+"/livez")
	p.awaitLog(t, `"/livez"`)

	write(t, p.file, []byte(reloadedBy("", `{}`, secondToken, `{level: info, requests: none}`)))
	if code, body := p.post(t, secondToken); code != 200 || !strings.Contains(body, `"needs_restart":[],"warnings":[{"line":7,"column":36,"path":"proxy.routes[0].user_id","message":"has no fallback`) {
		t.Errorf("got %d %s", code, body)
	}
	asks(404, "", "/b")
	asks(404, "", "/unlogged")
	p.signal(t, syscall.SIGHUP)
	p.awaitLog(t, "nothing in it has changed") // which is written after the line that is not
	if p.logged("/unlogged") > 0 {
		t.Error("a request was logged although log.requests is none")
	}
	if code := p.stop(t, syscall.SIGINT); code != exitFine {
		t.Errorf("exit code %d: %s", code, p.log.lines())
	}
}

// projected is a directory with the file as the kubelet mounts a ConfigMap.
func projected(t *testing.T, text string) (file string) {
	t.Helper()
	dir := t.TempDir()
	projectFile(t, dir, "..first", text)
	link(t, "..data/config.yaml", dir+"/config.yaml")
	return dir + "/config.yaml"
}

// projectFile swaps in another version of the directory and removes the one before.
func projectFile(t *testing.T, dir, version, text string) {
	t.Helper()
	old, _ := os.Readlink(dir + "/..data") // none at first
	mkdir(t, filepath.Join(dir, version))
	write(t, filepath.Join(dir, version, "config.yaml"), []byte(text))
	link(t, version, dir+"/..data")
	if old != "" {
		if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConfigurationFollowsItsFile(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, file, text string){
		"in place": func(t *testing.T, file, text string) { write(t, file, []byte(text)) },
		"rename":   replace,
		"removed and made again": func(t *testing.T, file, text string) {
			remove(t, file)
			write(t, file, nil)
			write(t, file, []byte(text))
		},
		"kubernetes": func(t *testing.T, file, text string) {
			projectFile(t, filepath.Dir(file), fmt.Sprintf("..%d", len(text)), text)
		},
	} {
		t.Run(name, func(t *testing.T) {
			file := projected(t, plainConfig(""))
			if name != "kubernetes" {
				file = filepath.Join(t.TempDir(), "config.yaml")
				write(t, file, []byte(plainConfig("")))
			}
			p := startProcessBy(t, "", func(c *exec.Cmd) { c.Args[2] = file })
			for i := range 3 {
				want, routes := 403, blockB+strings.Repeat(" ", i)
				if i == 1 {
					want, routes = 404, ""
				}
				change(t, file, plainConfig(routes))
				eventually(t, "the file is in force", func() bool { return status(t, "GET", p.proxy+"/b") == want })
			}
			if good, failed := p.metric(t, "r8limiter_config_last_reload_successful"), p.metric(t, `r8limiter_config_reloads_total{result="failed"}`); good != 1 || failed != 0 {
				t.Errorf("good is %v, %v failed: %s", good, failed, p.log.lines())
			}
		})
	}
}

// brokenFiles are faults with what is said of each.
var brokenFiles = map[string]struct{ text, want string }{
	"no YAML":      {"proxy: [", `"line":1,"column":8,"path":"","message":"is no YAML`},
	"empty":        {"", `"line":1,"column":1,"path":"","message":"the file is empty`},
	"unknown key":  {"limiter: {}\nproxi: {}\n", `"line":2,"column":1,"path":"proxi","message":"is no known key`},
	"two problems": {plainConfig("    - {name: b, upstream: nobody}\n    - {name: a, upstream: api}"), `"path":"proxy.routes[1].upstream","message":"\"nobody\" is not one of proxy.upstreams; there are api"},{"line":9,"column":14,"path":"proxy.routes[2].name","message":"\"a\" is the name of an earlier route`},
	"unset":        {strings.Replace(plainConfig(""), firstToken, `"${R8LIMITER_TEST_UNSET}"`, 1), `"path":"admin.token","message":"variable R8LIMITER_TEST_UNSET is not set`},
	// Sound on its own, but not while the listener that is to go is still there.
	"no upstream until a restart": {strings.NewReplacer(`"127.0.0.1:0"`+"\n", `""`+"\n", `, upstream: api`, ``, `{api: {targets: ["echo:"]}}`, `{}`).Replace(plainConfig("")), `"path":"proxy.routes[0].upstream","message":"\"\" is not one of proxy.upstreams, which has none; add it there; it would do after a restart, until which these stay as they are: proxy.listen"`},
}

func TestBrokenFileChangesNothingAndIsTold(t *testing.T) {
	p := startProcess(t, plainConfig(""))
	_, before := fetch(t, "GET", p.control+"/admin/config", "Authorization: Bearer "+firstToken)
	for name, broken := range brokenFiles {
		replace(t, p.file, broken.text)
		code, body := p.post(t, firstToken)
		if code != 422 || !strings.Contains(body, broken.want) || !strings.Contains(body, `"error":"the configuration can't be put in force`) {
			t.Errorf("%s: got %d %s, want %s", name, code, body, broken.want)
		}
		checkProblemLines(t, p, name, body)
		if good := p.metric(t, "r8limiter_config_last_reload_successful"); good != 0 {
			t.Errorf("%s: the metric says %v", name, good)
		}
		if resp, _ := fetch(t, "GET", p.proxy+"/a"); resp.StatusCode != 200 {
			t.Errorf("%s: the old configuration answers %d", name, resp.StatusCode)
		}
		if _, after := fetch(t, "GET", p.control+"/admin/config", "Authorization: Bearer "+firstToken); after != before {
			t.Errorf("%s: in force is %s, want %s", name, after, before)
		}
	}
	if failed := p.metric(t, `r8limiter_config_reloads_total{result="failed"}`); failed < float64(len(brokenFiles)) {
		t.Errorf("counted %v failures of %d", failed, len(brokenFiles))
	}
	replace(t, p.file, plainConfig(""))
	if code, body := p.post(t, firstToken); code != 200 || !strings.Contains(body, `"changed":false`) {
		t.Errorf("the first file again: got %d %s", code, body)
	}
	if good := p.metric(t, "r8limiter_config_last_reload_successful"); good != 1 {
		t.Errorf("then the metric says %v", good)
	}
}

// checkProblemLines checks that the log has a line for each problem of an answer.
func checkProblemLines(t *testing.T, p *process, name, answer string) {
	t.Helper()
	var said struct{ Problems []admin.Problem }
	if err := json.Unmarshal([]byte(answer), &said); err != nil || len(said.Problems) == 0 {
		t.Errorf("%s: %v in %s", name, err, answer)
		return
	}
	for _, want := range said.Problems {
		eventually(t, "the log tells of "+want.Message, func() bool {
			return slices.ContainsFunc(p.log.lines(), func(line string) bool {
				var got struct {
					Level, File, Cause, Path, Problem string
					Line, Column                      int
				}
				return json.Unmarshal([]byte(line), &got) == nil && got.Level == "error" && got.File == p.file && got.Cause == "POST /admin/reload" &&
					admin.Problem{Line: got.Line, Column: got.Column, Path: got.Path, Message: got.Problem} == want
			})
		})
	}
}

func TestWhatNeedsARestartIsNamedAndTheRestIsInForce(t *testing.T) {
	p := startProcess(t, plainConfig(""))
	text := strings.NewReplacer(
		`listen: "127.0.0.1:0"`+"\n", `listen: "127.0.0.1:1"`+"\n", `limiter: {`, `limiter: {redis: {url: "redis://127.0.0.1:1"}, `,
		`admin: {listen: "127.0.0.1:0"`, `admin: {listen: "127.0.0.1:2"`, `{requests: none}`, `{requests: none, format: console}`,
	).Replace(plainConfig(blockB))
	replace(t, p.file, text)
	names := []string{"proxy.listen", "admin.listen", "limiter.redis", "log.format"}
	want := `,"needs_restart":["` + strings.Join(names, `","`) + `"],`
	if code, body := p.post(t, firstToken); code != 200 || !strings.Contains(body, want) {
		t.Errorf("got %d %s, want %s", code, body, want)
	}
	if got := status(t, "GET", p.proxy+"/b"); got != 403 {
		t.Errorf("the new route answers %d, want 403", got)
	}
	for _, name := range names {
		p.awaitLog(t, `"key":"`+name+`"`)
	}
	if code, body := p.post(t, firstToken); code != 200 || !strings.HasPrefix(body, `{"reloaded":true,"changed":false`+want) {
		t.Errorf("again: got %d %s", code, body)
	}
	_, shown := fetch(t, "GET", p.control+"/admin/config", "Authorization: Bearer "+firstToken)
	for _, old := range []string{`"listen":"127.0.0.1:0"`, `"redis":null`, `"format":"json"`} {
		if !strings.Contains(shown, old) {
			t.Errorf("in force is %s, want %s", shown, old)
		}
	}
}

func TestOnlyARestartChangesWhatIsNamed(t *testing.T) {
	secured := func(c *Config) {
		c.Proxy.Listen, c.Proxy.TLS = ":1", &proxy.TLSConfig{Certificates: []proxy.CertificateConfig{{CertFile: "a", KeyFile: "b"}}}
		c.Admin.TLS = &admin.TLSConfig{CertFile: "a", KeyFile: "b", ClientCAFile: "c"}
		c.Limiter.Redis = &limiter.RedisConfig{URL: "redis://a"}
	}
	for _, each := range []struct {
		what   string
		change func(c *Config)
		want   string
	}{
		{"nothing", func(*Config) {}, ""},
		{"what is live", func(c *Config) {
			c.Proxy.TLS.Certificates = append(c.Proxy.TLS.Certificates, proxy.CertificateConfig{CertFile: "x", KeyFile: "y"})
			c.Admin.TLS.CertFile, c.Admin.TLS.ClientCAFile, c.Admin.Token, c.Log.Level = "other", "other", "token", "debug"
			c.Proxy.DrainDelay, c.Proxy.TLS.MinVersion = 0, "1.2" // the default
		}, ""},
		{"listeners", func(c *Config) { c.Proxy.Listen, c.Admin.Listen = "", ":3" }, "proxy.listen admin.listen"},
		{"PROXY protocol", func(c *Config) { c.Proxy.ProxyProtocol = true }, "proxy.proxy_protocol"},
		{"no TLS", func(c *Config) { c.Proxy.TLS, c.Admin.TLS = nil, nil }, "proxy.tls admin.tls"},
		{"versions", func(c *Config) { c.Proxy.TLS.MinVersion, c.Admin.TLS.MinVersion = "1.3", "1.3" }, "proxy.tls.min_version admin.tls.min_version"},
		{"no client certificates", func(c *Config) { c.Admin.TLS.ClientCAFile = "" }, "admin.tls.client_ca_file"},
		{"no Redis", func(c *Config) { c.Limiter.Redis = nil }, "limiter.redis"},
		{"another Redis", func(c *Config) { c.Limiter.Redis.KeyPrefix = "x" }, "limiter.redis"},
		{"format", func(c *Config) { c.Log.Format = "console" }, "log.format"},
	} {
		running, c := defaultConfig(), defaultConfig()
		secured(&running)
		secured(&c)
		each.change(&c)
		if got := strings.Join(c.keep(&running), " "); got != each.want {
			t.Errorf("%s: got %q, want %q", each.what, got, each.want)
		}
		c.Limiter.Redis = running.Limiter.Redis
		if each.want != "" && !c.isSame(&running) {
			t.Errorf("%s: something is not as it was: %s", each.what, cmp.Diff(fmt.Sprintf("%+v", running), fmt.Sprintf("%+v", c)))
		}
	}
	// Where the proxy listener is off, what is said about it waits for proxy.listen alone.
	running, c := defaultConfig(), defaultConfig()
	c.Proxy.ProxyProtocol, c.Proxy.TLS = true, &proxy.TLSConfig{}
	if got := c.keep(&running); len(got) > 0 {
		t.Errorf("without a listener: got %q", got)
	}
}

// The list of certificates changes in force, and so does what is watched.
func TestCertificateListIsReloaded(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	names := []string{"a", "b", "c"}
	pairs := map[string]pairPEM{}
	for _, name := range names {
		pairs[name] = ca.pair(t, name+".test")
		pairs[name].save(t, dir, name)
	}
	config := func(names ...string) string {
		var list []string
		for _, name := range names {
			list = append(list, fmt.Sprintf("{cert_file: %s/%s.crt, key_file: %s/%s.key}", dir, name, dir, name))
		}
		return strings.Replace(plainConfig(""), `listen: "127.0.0.1:0"`+"\n", `listen: "127.0.0.1:0"`+"\n  tls: {certificates: ["+strings.Join(list, ", ")+"]}\n", 1)
	}
	s := start(t, config("a"))
	shows := func(name, serial string) {
		t.Helper()
		eventually(t, "the certificate of "+name+" is shown", func() bool {
			got, _, err := shake(host(s.proxy), &tls.Config{RootCAs: ca.pool, ServerName: name + ".test"})
			return err == nil && got == serial
		})
	}
	shows("a", pairs["a"].serial)
	for _, list := range [][]string{{"a", "b"}, {"c"}, {"b", "c"}} {
		replace(t, s.file, config(list...))
		s.signals <- syscall.SIGHUP
		for _, name := range list {
			shows(name, pairs[name].serial)
		}
		renewed := list[len(list)-1]
		pairs[renewed] = ca.pair(t, renewed+".test")
		pairs[renewed].save(t, dir, renewed)
		shows(renewed, pairs[renewed].serial)
	}
	if _, _, err := shake(host(s.proxy), &tls.Config{RootCAs: ca.pool, ServerName: "a.test"}); err == nil {
		t.Error("the certificate of a is shown although it is not in the list any more")
	}
	s.stop(t)
}

func TestWatchGoesOnToAnotherListOfCertificates(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	ca.pair(t, "a.test").save(t, dir, "a")
	ca.pair(t, "b.test").save(t, dir, "b")
	c := testCredentials(t, dir, &processLog{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx)
	}()
	n, err := c.prepare(&tlsFiles{listener: "proxy", path: "proxy.tls", pairs: []pairFiles{{"proxy.tls.certificates[0]", dir + "/b.crt", dir + "/b.key"}}})
	if err != nil {
		t.Fatal(err)
	}
	n.commit()
	renewed := ca.pair(t, "b.test")
	renewed.save(t, dir, "b")
	eventually(t, "the new list is followed", func() bool { return c.ring.Load().pairs[0].Leaf.SerialNumber.String() == renewed.serial })
	cancel()
	<-done
}

// A reload that read the files before the watch did doesn't take back what it found.
func TestReloadDoesNotBringBackAnOlderCertificate(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	ca.pair(t, "a.test").save(t, dir, "a")
	c := testCredentials(t, dir, &processLog{})
	n, err := c.prepare(c.files)
	if err != nil {
		t.Fatal(err)
	}
	renewed := ca.pair(t, "a.test")
	renewed.save(t, dir, "a")
	c.reload()
	n.commit()
	if got := c.ring.Load().pairs[0].Leaf.SerialNumber.String(); got != renewed.serial {
		t.Errorf("certificate %s is in force, want %s", got, renewed.serial)
	}
}

// An upstream's files are read again although nothing in the configuration is another.
func TestReloadReadsTheFilesThatTheConfigurationNames(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t)
	write(t, dir+"/ca.pem", ca.ca())
	c := defaultConfig()
	c.Proxy.Upstreams = map[string]proxy.UpstreamConfig{"b": {TLS: &proxy.UpstreamTLSConfig{CAFile: dir + "/ca.pem"}}, "a": {}}
	before := c.digest()
	for range 10 {
		if !maps.Equal(c.digest(), before) {
			t.Fatal("the digest differs from call to call")
		}
	}
	write(t, dir+"/ca.pem", newAuthority(t).ca())
	if maps.Equal(c.digest(), before) {
		t.Error("another authority is not seen")
	}
	changed := c.digest()
	remove(t, dir+"/ca.pem")
	if maps.Equal(c.digest(), changed) {
		t.Error("a file that is gone is not seen")
	}
}

func TestFileThatStaysAwayIsToldOnceAndLate(t *testing.T) {
	dir := t.TempDir()
	for what, prepare := range map[string]func(file string){
		"missing": func(string) {},
		"empty":   func(file string) { write(t, file, nil) },
	} {
		file := filepath.Join(dir, what)
		prepare(file)
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			if !awaitFiles(t.Context(), []string{file}) || time.Since(began) != awayTime {
				t.Errorf("%s: waited %v, want %v", what, time.Since(began), awayTime)
			}
			time.AfterFunc(time.Second, func() { write(t, file, []byte("{}")) })
			began = time.Now()
			if !awaitFiles(t.Context(), []string{file}) || time.Since(began) > 2*time.Second {
				t.Errorf("%s: waited %v for a file that came after a second", what, time.Since(began))
			}
		})
	}
}

func TestFileThatIsAwayForAMomentIsNoFault(t *testing.T) {
	p := startProcess(t, plainConfig(""))
	remove(t, p.file)
	applied := func() float64 { return p.metric(t, `r8limiter_config_reloads_total{result="applied"}`) }
	// Longer than a burst of changes lasts: the watch has seen that it is away.
	timer := time.NewTimer(5 * settleTime)
	defer timer.Stop()
	<-timer.C
	write(t, p.file, []byte(plainConfig(blockB)))
	eventually(t, "the file is in force", func() bool { return applied() == 1 })
	if failed := p.metric(t, `r8limiter_config_reloads_total{result="failed"}`); failed != 0 || p.logged(`"error"`) > 0 {
		t.Errorf("%v failed: %s", failed, p.log.lines())
	}
}

func TestReloadIsRefusedInADrainAndWithoutAFile(t *testing.T) {
	g := &gateway{program: &program{env: noEnv}, log: zerolog.Nop()}
	g.reloads.begin(new(Config))
	if got := g.reload("test"); got.Refused != errNoFile {
		t.Errorf("without a file: got %+v", got)
	}
	p := startProcess(t, strings.NewReplacer("drain_delay: 0s", "drain_delay: 1s").Replace(plainConfig("")))
	p.signal(t, syscall.SIGTERM)
	p.awaitLog(t, `"draining"`)
	replace(t, p.file, plainConfig(blockB))
	p.signal(t, syscall.SIGHUP)
	p.awaitLog(t, errDraining)
	if code, body := p.post(t, firstToken); code != 409 || body != `{"error":"`+errDraining+`"}` {
		t.Errorf("got %d %s", code, body)
	}
	if got := status(t, "GET", p.proxy+"/b"); got != 404 {
		t.Errorf("the drain answers by another configuration: %d", got)
	}
	if code, _ := p.within(t, 10*time.Second); code != exitFine {
		t.Errorf("exit code %d: %s", code, p.log.lines())
	}
}

// Routes are read without a listener too: they are asked about.
func TestRoutesWithoutAProxyListenerNeedNoUpstream(t *testing.T) {
	config := func(routes string) string {
		return strings.NewReplacer(`listen: "127.0.0.1:0"`+"\n", `listen: ""`+"\n", `, upstream: api`, ``, `upstreams: {api: {targets: ["echo:"]}}`, `upstreams: {api: {targets: ["http://127.0.0.1:1"]}}`).Replace(plainConfig(routes))
	}
	p := startProcess(t, config(""))
	replace(t, p.file, config(blockB))
	if code, body := p.post(t, firstToken); code != 200 || !strings.HasPrefix(body, `{"reloaded":true,"changed":true,"needs_restart":[],`) {
		t.Errorf("got %d %s", code, body)
	}
	if _, shown := fetch(t, "GET", p.control+"/admin/upstreams", "Authorization: Bearer "+firstToken); shown != `{"upstreams":[]}` {
		t.Errorf("upstreams are %s", shown)
	}
}
