package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/admin"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

const (
	// awayTime is how long the configuration file may be missing or empty before that
	// is a fault of it: an editor or a copy may be at work on it.
	awayTime = 5 * time.Second
	// awayPoll is how often it is looked for meanwhile.
	awayPoll = 50 * time.Millisecond
)

// Why a reload is not even tried.
const (
	errDraining = "this gateway drains: it takes in no other configuration"
	errNoFile   = "this gateway runs on its built-in defaults: there is no file to read again; start it with -config FILE"
)

// reloads is what there is of a gateway's reloads between them.
type reloads struct {
	asked    chan struct{} // holds the wish of a signal
	draining atomic.Bool

	applied, unchanged, failed atomic.Uint64
	lastFailed                 atomic.Bool
	lastGood                   atomic.Int64 // Unix time
	times                      atomic.Pointer[drainTimes]

	mu      sync.Mutex        // one reload at a time; guards what follows
	running Config            // in force
	files   [sha256.Size]byte // digest of what the files that it names held
}

// drainTimes are proxy.drain_delay and proxy.drain_timeout.
type drainTimes struct{ delay, timeout time.Duration }

// begin takes note of the configuration of the start.
func (r *reloads) begin(c *Config) {
	r.asked = make(chan struct{}, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files = c.digest()
	r.goBy(c)
}

// goBy takes note of what is in force now. r.mu is held.
func (r *reloads) goBy(c *Config) {
	r.running = *c
	r.times.Store(&drainTimes{c.Proxy.DrainDelay, c.Proxy.DrainTimeout})
	r.lastGood.Store(time.Now().Unix())
}

// ask wishes for a reload, without waiting for it. What is wished for while a reload
// runs is one more of them after it.
func (r *reloads) ask() {
	select {
	case r.asked <- struct{}{}:
	default:
	}
}

// end lets no reload begin any more, and is how long the drain may take.
func (r *reloads) end() drainTimes {
	r.draining.Store(true)
	return *r.times.Load()
}

// WriteMetrics writes what became of the reloads in Prometheus' text format.
func (r *reloads) WriteMetrics(w io.Writer) {
	good := 1
	if r.lastFailed.Load() {
		good = 0
	}
	fmt.Fprintf(w, "r8limiter_config_last_reload_successful %d\n", good)
	fmt.Fprintf(w, "r8limiter_config_last_reload_success_timestamp_seconds %d\n", r.lastGood.Load())
	for _, each := range []struct {
		result string
		count  *atomic.Uint64
	}{{"applied", &r.applied}, {"unchanged", &r.unchanged}, {"failed", &r.failed}} {
		fmt.Fprintf(w, "r8limiter_config_reloads_total{result=%q} %d\n", each.result, each.count.Load())
	}
}

// reload reads the configuration file again and puts it in force, all of it or
// nothing: until everything is made that it needs nothing is changed, and what then is
// left to do can't fail. cause is who asks, for the log. It returns when it is done;
// another waits for that.
func (g *gateway) reload(cause string) (done admin.Reloaded) {
	r := &g.reloads
	r.mu.Lock()
	defer r.mu.Unlock()
	log := g.log.With().Str("cause", cause).Logger()
	if done.Refused = g.refusesReload(); done.Refused != "" {
		log.Warn().Msg(done.Refused)
		return done
	}
	c, problems := g.program.loadBeside(g.file, func(c *Config) []string {
		done.NeedsRestart = c.keep(&r.running)
		return done.NeedsRestart
	})
	c.Limiter.Redis = r.running.Limiter.Redis
	files := c.digest()
	if len(problems) == 0 && files == r.files && c.isSame(&r.running) {
		r.unchanged.Add(1)
		r.succeed(log, &done)
		return done
	}
	n, problems := g.prepare(&c, problems)
	if len(problems) > 0 {
		g.complain(log, problems)
		return admin.Reloaded{Problems: listed(problems)}
	}
	g.commit(n)
	c.logWarnings(log, g.file)
	r.goBy(&c)
	r.files, done.Changed = files, true
	r.applied.Add(1)
	r.succeed(log, &done)
	return done
}

// refusesReload says why there is no reload; "" where there is one.
func (g *gateway) refusesReload() string {
	switch {
	case g.reloads.draining.Load():
		return errDraining
	case g.file == "":
		return errNoFile
	}
	return ""
}

// succeed takes note of a reload that found nothing wrong, and tells of it.
func (r *reloads) succeed(log zerolog.Logger, done *admin.Reloaded) {
	r.lastFailed.Store(false)
	r.lastGood.Store(time.Now().Unix())
	for _, key := range done.NeedsRestart {
		log.Warn().Str("key", key).Msg("needs a restart: until then it stays as it was")
	}
	said := "the configuration is reloaded"
	if !done.Changed {
		said = "the configuration is read again: nothing in it has changed"
	}
	log.Info().Bool("changed", done.Changed).Msg(said)
}

// complain takes note of a reload that failed, and tells why.
func (g *gateway) complain(log zerolog.Logger, problems []problem) {
	g.reloads.failed.Add(1)
	g.reloads.lastFailed.Store(true)
	for _, p := range problems {
		log.Error().Str("file", g.file).Int("line", p.line).Int("column", p.col).Str("path", p.path).Str("problem", p.text).
			Msg("the configuration can't be put in force: the old one stays as it is")
	}
}

// listed are problems as the answer has them.
func listed(problems []problem) []admin.Problem {
	all := make([]admin.Problem, len(problems))
	for i, p := range problems {
		all[i] = admin.Problem{Line: p.line, Column: p.col, Path: p.path, Message: p.text}
	}
	return all
}

// next is a configuration that only has to be put in force.
type next struct {
	config *Config
	limits *limiter.Limits
	rules  *proxy.Rules
	admin  *admin.Settings
	rings  []*nextRing
}

// prepare makes all that c needs, with no side effect. What goes wrong although c was
// found sound, as with a file that has just gone, is one more problem.
func (g *gateway) prepare(c *Config, problems []problem) (*next, []problem) {
	if len(problems) > 0 {
		return nil, problems
	}
	fail := func(path string, err error) {
		problems = append(problems, problem{line: 1, col: 1, path: path, text: err.Error()})
	}
	n := &next{
		config: c, limits: g.limiter.Prepare(c.Limiter),
		admin: admin.NewSettings(c.Admin, admin.Terms{LogRequests: c.Log.Requests, Config: redacted(c)}),
	}
	var err error
	if n.rules, err = g.proxy.Prepare(c.rulesConfig(), proxy.Terms{Limits: n.limits, LogRequests: c.Log.Requests}); err != nil {
		fail("proxy", err)
	}
	for _, each := range []struct {
		shown *credentials
		files *tlsFiles
	}{{g.proxyTLS, c.proxyTLS()}, {g.adminTLS, c.adminTLS()}} {
		if each.shown == nil {
			continue // it speaks no TLS until a restart
		}
		ring, err := each.shown.prepare(each.files)
		if err != nil {
			fail(each.files.path, err)
		}
		n.rings = append(n.rings, ring)
	}
	return n, problems
}

// commit puts n in force. It can't fail. A request goes to its end by the rules that
// it began with, and those by their own limits.
func (g *gateway) commit(n *next) {
	g.limiter.Commit(n.limits)
	g.proxy.Commit(n.rules)
	g.rules.Store(n.rules)
	g.admin.Commit(n.admin)
	for _, ring := range n.rings {
		ring.commit()
	}
	g.level.set(n.config.Log.Level)
}

// keep puts back into c what only a restart changes, as running has it, and names it.
// limiter.redis it only names: that is not to be judged once more, its files may be gone.
func (c *Config) keep(running *Config) (names []string) {
	putBack(&names, "proxy.listen", &c.Proxy.Listen, running.Proxy.Listen)
	if running.Proxy.Listen != "" { // else nothing of these is in use
		putBack(&names, "proxy.proxy_protocol", &c.Proxy.ProxyProtocol, running.Proxy.ProxyProtocol)
		if now, old := c.Proxy.TLS, running.Proxy.TLS; (now == nil) != (old == nil) {
			names, c.Proxy.TLS = append(names, "proxy.tls"), old
		} else if now != nil && tlsVersions[now.MinVersion] != tlsVersions[old.MinVersion] {
			putBack(&names, "proxy.tls.min_version", &now.MinVersion, old.MinVersion)
		}
	}
	putBack(&names, "admin.listen", &c.Admin.Listen, running.Admin.Listen)
	switch now, old := c.Admin.TLS, running.Admin.TLS; {
	case (now == nil) != (old == nil):
		names, c.Admin.TLS = append(names, "admin.tls"), old
	case now != nil:
		if tlsVersions[now.MinVersion] != tlsVersions[old.MinVersion] {
			putBack(&names, "admin.tls.min_version", &now.MinVersion, old.MinVersion)
		}
		if (now.ClientCAFile == "") != (old.ClientCAFile == "") {
			putBack(&names, "admin.tls.client_ca_file", &now.ClientCAFile, old.ClientCAFile)
		}
	}
	if !reflect.DeepEqual(c.Limiter.Redis, running.Limiter.Redis) {
		names = append(names, "limiter.redis")
	}
	putBack(&names, "log.format", &c.Log.Format, running.Log.Format)
	return names
}

// putBack makes *now what it was, and adds the name where it was something else.
func putBack[T comparable](names *[]string, name string, now *T, old T) {
	if *now != old {
		*names, *now = append(*names, name), old
	}
}

// isSame says whether c says just what o says.
func (c *Config) isSame(o *Config) bool {
	return reflect.DeepEqual(c.Proxy, o.Proxy) && reflect.DeepEqual(c.Limiter, o.Limiter) && c.Log == o.Log && reflect.DeepEqual(c.Admin, o.Admin)
}

// digest is of what the files hold that c names and that a reload reads again. One
// that can't be read counts as such.
func (c *Config) digest() (sum [sha256.Size]byte) {
	all := sha256.New()
	read := func(path string) {
		data, err := limiter.ReadSmallFile(path)
		fmt.Fprintf(all, "%q %d %t\n", path, len(data), err == nil)
		all.Write(data)
	}
	eachFile(reflect.ValueOf(c.Proxy), read)
	eachFile(reflect.ValueOf(c.Admin), read)
	all.Sum(sum[:0])
	return sum
}

// eachFile calls f for every file that v names, in an order that is always the same:
// the keys of files end in _file.
func eachFile(v reflect.Value, f func(path string)) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			eachFile(v.Elem(), f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachFile(v.Index(i), f)
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, key := range keys {
			eachFile(v.MapIndex(key), f)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			key, field := v.Type().Field(i).Tag.Get("yaml"), v.Field(i)
			if strings.HasSuffix(key, "_file") && field.Kind() == reflect.String && field.String() != "" {
				f(field.String())
			} else if key != "" {
				eachFile(field, f)
			}
		}
	}
}

// followHangups reloads whenever a signal wished for it, until ctx ends.
func (g *gateway) followHangups(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.reloads.asked:
			g.reload("SIGHUP")
		}
	}
}

// watchOf watches the configuration file; nil where there is none.
func watchOf(file string) *fileWatch {
	if file == "" {
		return nil
	}
	return newFileWatch([]string{file}, zerolog.Nop())
}

// followFile reloads whenever the file has become another, until ctx ends. One that is
// away is waited for; if it doesn't come that is told once, as what is wrong with it.
func (g *gateway) followFile(ctx context.Context, w *fileWatch) {
	w.run(ctx, func() {
		if awaitFile(ctx, g.file) {
			g.reload("the file has changed")
		}
	})
}

// awaitFile returns when the file holds something, or after awayTime; false once ctx
// has ended.
func awaitFile(ctx context.Context, file string) bool {
	ctx, cancel := context.WithTimeout(ctx, awayTime)
	defer cancel()
	tick := time.NewTicker(awayPoll)
	defer tick.Stop()
	for {
		if data, err := os.ReadFile(file); err == nil && len(data) > 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return ctx.Err() == context.DeadlineExceeded
		case <-tick.C:
		}
	}
}
