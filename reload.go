package main

import (
	"context"
	"fmt"
	"io"
	"maps"
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
	asked chan struct{} // holds the wish of a signal

	// ending is held while a configuration is put in force and while a drain
	// begins, so that nothing is put in force behind that. It is never held for long.
	ending   sync.Mutex
	draining atomic.Bool // set under ending

	applied, unchanged, failed atomic.Uint64
	lastFailed                 atomic.Bool
	lastGood                   atomic.Int64 // Unix time
	times                      atomic.Pointer[drainTimes]

	mu      sync.Mutex // one reload at a time; guards what follows
	running Config     // in force
	files   fileSums   // of those that it names
	follows fileSums   // of those whose change is a reason to reload
}

// drainTimes are proxy.drain_delay and proxy.drain_timeout.
type drainTimes struct{ delay, timeout time.Duration }

// begin takes note of the configuration of the start.
func (r *reloads) begin(c *Config) {
	r.asked = make(chan struct{}, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.goBy(c, c.digest())
}

// goBy takes note of what is in force now, and of the files that it was made of. r.mu
// is held.
func (r *reloads) goBy(c *Config, files fileSums) {
	r.running, r.files, r.follows = *c, files, c.followed(files)
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

// end lets no reload begin any more, nor one that is under way put anything in force,
// without waiting for it. It is how long the drain may take.
func (r *reloads) end() drainTimes {
	r.ending.Lock()
	defer r.ending.Unlock()
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
	done.Warnings = listed(c.warnings)
	files := c.digest()
	if len(problems) == 0 && maps.Equal(files, r.files) && c.isSame(&r.running) {
		r.unchanged.Add(1)
		r.succeed(log, &done)
		return done
	}
	n, problems := g.prepare(&c, problems)
	if len(problems) > 0 {
		maps.Copy(r.follows, c.followed(files)) // what is wrong may be one of these
		g.complain(log, problems)
		return admin.Reloaded{Problems: listed(problems)}
	}
	if !g.commit(n) {
		log.Warn().Msg(errDraining)
		return admin.Reloaded{Refused: errDraining}
	}
	c.logWarnings(log, g.file)
	r.goBy(&c, files)
	done.Changed = true
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

// commit puts n in force, which can't fail; it doesn't, and returns false, once a
// drain has begun, for nobody would end what n starts. A request goes to its end by the
// rules that it began with, and those by their own limits.
func (g *gateway) commit(n *next) bool {
	g.reloads.ending.Lock()
	defer g.reloads.ending.Unlock()
	if g.reloads.draining.Load() {
		return false
	}
	g.limiter.Commit(n.limits)
	g.proxy.Commit(n.rules)
	g.rules.Store(n.rules)
	g.admin.Commit(n.admin)
	for _, ring := range n.rings {
		ring.commit()
	}
	g.level.set(n.config.Log.Level)
	return true
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

// digest is of what the files hold that c names and that a reload reads again. It is
// never of a later state than what is then made of them.
func (c *Config) digest() fileSums {
	sums := fileSums{}
	eachFile(reflect.ValueOf(c.Proxy), sums.read)
	eachFile(reflect.ValueOf(c.Admin), sums.read)
	return sums
}

// followed are those of c's files, of which sums has the digests, whose change is a
// reason to reload: the keys of tokens, and with what upstreams are spoken to by TLS.
// Who shows the listeners' own certificates follows them without a reload; those for
// Redis are read at the start alone.
func (c *Config) followed(sums fileSums) fileSums {
	found, p := fileSums{}, c.Proxy
	p.TLS = nil
	eachFile(reflect.ValueOf(p), func(path string) { found[path] = sums[path] })
	return found
}

// eachFile calls f for every file that v names: the keys of files end in _file.
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
		for each := v.MapRange(); each.Next(); {
			eachFile(each.Value(), f)
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

// followFiles reloads whenever the file, or one that it names and that is followed, has
// become another, until ctx ends. One that is away is waited for; if it doesn't come
// that is told once, as what is wrong with it.
func (g *gateway) followFiles(ctx context.Context, w *fileWatch) {
	w.turnTo(g.file, g.reloads.watched())
	w.run(ctx, func() {
		if awaitFiles(ctx, append(g.reloads.needed(), g.file)) {
			g.reload("a file has changed")
		}
		w.turnTo(g.file, g.reloads.watched())
	})
}

// watched are the files whose change is a reason to reload, besides the configuration.
func (r *reloads) watched() fileSums {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.follows)
}

// needed are those of watched that the configuration in force was made of.
func (r *reloads) needed() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.running.followed(r.files)))
}

// awaitFiles returns when each file holds something, or after awayTime; false once ctx
// has ended.
func awaitFiles(ctx context.Context, files []string) bool {
	ctx, cancel := context.WithTimeout(ctx, awayTime)
	defer cancel()
	tick := time.NewTicker(awayPoll)
	defer tick.Stop()
	for {
		if !slices.ContainsFunc(files, isAway) {
			return true
		}
		select {
		case <-ctx.Done():
			return ctx.Err() == context.DeadlineExceeded
		case <-tick.C:
		}
	}
}

// isAway says whether a file is missing or empty, or what can't be read as one.
func isAway(file string) bool {
	data, err := limiter.ReadSmallFile(file)
	return err != nil || len(data) == 0
}
