package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/r8limiter/r8limiter/admin"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// Config is the whole file: each top-level key belongs to the package of its name.
type Config struct {
	// Proxy is the proxy listener: routes, and the upstreams behind.
	Proxy proxy.Config `yaml:"proxy"`
	// Limiter is who may take how much, and where that is kept.
	Limiter limiter.Config `yaml:"limiter"`
	// Admin is the control listener.
	Admin admin.Config `yaml:"admin"`
	// Log is what is written to standard error.
	Log LogConfig `yaml:"log"`

	// warnings are of the file that it was read from.
	warnings []problem
}

// LogConfig is what the file may say under `log`.
type LogConfig struct {
	// Level is debug, info (default), warn or error.
	Level string `yaml:"level" enum:"debug,info,warn,error"`
	// Format is json (default) or console.
	Format string `yaml:"format" enum:"json,console"`
	// Requests says which requests get a line: all (default), denied or none.
	Requests string `yaml:"requests" enum:"all,denied,none"`
}

func defaultConfig() Config {
	return Config{
		Proxy: proxy.DefaultConfig(), Limiter: limiter.DefaultConfig(), Admin: admin.DefaultConfig(),
		Log: LogConfig{Level: "info", Format: "json", Requests: proxy.LogAll},
	}
}

// validate reports every problem by its path.
func (c *LogConfig) validate(report func(path, problem string)) {
	for _, each := range []struct{ key, value string }{{"level", c.Level}, {"format", c.Format}, {"requests", c.Requests}} {
		field, _ := fieldOf(reflect.TypeFor[LogConfig](), each.key)
		if words := strings.Split(field.Tag.Get("enum"), ","); !slices.Contains(words, each.value) {
			report(each.key, fmt.Sprintf("%q is none of %s", each.value, strings.Join(words, ", ")))
		}
	}
}

// fallbackFile is read where no other file is named, if it is there.
const fallbackFile = "config.yaml"

// configFile is the file to read: the named one, $R8LIMITER_CONFIG, or
// ./config.yaml; "" for none.
func (p *program) configFile(named string) string {
	if named != "" {
		return named
	}
	if file, ok := p.env("R8LIMITER_CONFIG"); ok && file != "" {
		return file
	}
	if _, err := os.Stat(fallbackFile); !errors.Is(err, fs.ErrNotExist) {
		return fallbackFile
	}
	return ""
}

// load reads and checks the configuration. Without a file it is the default. The
// problems are errors alone; the warnings are the Config's.
func (p *program) load(file string) (Config, []problem) {
	if file == "" {
		return defaultConfig(), nil
	}
	data, err := readOnce(file)
	if err != nil {
		return defaultConfig(), unread(err, "name another file with -config")
	}
	return p.understand(data, func(*Config) []string { return nil })
}

// loadBeside is load for a gateway that runs: what is no regular file by now is a
// problem, for it might never come to an end. keep, called where the file has no
// problem, puts back what keeps its value until a restart and is the names of that:
// what would then be in force is judged once more, for a part of it is not the file's.
func (p *program) loadBeside(file string, keep func(*Config) []string) (Config, []problem) {
	data, err := limiter.ReadSmallFile(file)
	if err != nil {
		return defaultConfig(), unread(err, "the old configuration stays in force until there is a file again that can be read")
	}
	return p.understand(data, keep)
}

// readOnce reads a file that may be a pipe, as with -config /dev/stdin, but no more of
// it than shows that it is too large.
func readOnce(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDocument+1))
}

// unread is the problem of a file that could not be read, with what follows from that.
func unread(err error, advice string) []problem {
	return []problem{{line: 1, col: 1, text: fmt.Sprintf("read: %v; %s", err, advice)}}
}

// understand decodes and judges what a file holds; keep is that of loadBeside.
func (p *program) understand(data []byte, keep func(*Config) []string) (Config, []problem) {
	c := defaultConfig()
	doc, problems := decodeYAML(data, p.env, &c)
	if len(doc.at) == 0 { // nothing could be read at all
		return c, problems
	}
	// What could not be decoded is not judged a second time by what it then means.
	broken, remark := problems, ""
	judge := func(path, text string) {
		isBelow := func(top string) bool { _, given := doc.at[top]; return !given && isAtOrBelow(path, top) }
		if slices.ContainsFunc(broken, func(b problem) bool { return b.covers(path) }) || slices.ContainsFunc(doc.meant, isBelow) {
			return
		}
		problems = append(problems, doc.problem(path, text+remark))
	}
	c.validate(judge)
	slices.SortStableFunc(problems, comparePlaces)
	c.warnings = warningsOf(&c, doc, problems)
	if c.Limiter.Redis != nil {
		c.Limiter.Redis.SetDefaults()
	}
	if len(problems) == 0 {
		if kept := keep(&c); len(kept) > 0 {
			remark = "; it would do after a restart, until which these stay as they are: " + strings.Join(kept, ", ")
			c.validate(judge)
		}
	}
	slices.SortStableFunc(problems, comparePlaces)
	return c, problems
}

func (c *Config) validate(report func(path, problem string)) {
	below := func(key string) func(path, problem string) {
		return func(path, problem string) { report(key+"."+path, problem) }
	}
	var unsound []string // resources whose limits are wrong, so that no cost can be judged by them
	c.Limiter.Validate(func(path, problem string) {
		unsound = append(unsound, path)
		report("limiter."+path, problem)
	})
	c.Admin.Validate(below("admin"))
	c.Log.validate(below("log"))
	l := limiter.New(c.Limiter, nil)
	c.Proxy.Validate(func(resource string) int64 {
		place := "default"
		if _, ok := c.Limiter.Resources[resource]; ok {
			place = "resources." + resource
		}
		if slices.ContainsFunc(unsound, func(path string) bool { return isAtOrBelow(path, place) }) {
			return limiter.MaxCapacity
		}
		return max(1, l.Capacity([]byte(resource)))
	}, below("proxy"))
	for _, files := range []*tlsFiles{c.proxyTLS(), c.adminTLS()} {
		if files != nil {
			files.read(keyring{}, report)
		}
	}
	if c.Proxy.Listen != "" && c.Proxy.Listen == c.Admin.Listen && !strings.HasSuffix(c.Admin.Listen, ":0") {
		report("proxy.listen", "is the address of the control listener too (admin.listen); give each its own")
	}
}
