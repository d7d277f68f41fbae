package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/admin"
	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// Config is the whole file: each top-level key belongs to the package of its name.
type Config struct {
	Proxy   proxy.Config   `yaml:"proxy"`
	Limiter limiter.Config `yaml:"limiter"`
	Admin   admin.Config   `yaml:"admin"`
	Log     LogConfig      `yaml:"log"`
}

// LogConfig is what the file may say under `log`.
type LogConfig struct {
	// Level is debug, info (default), warn or error.
	Level string `yaml:"level"`
	// Format is json (default) or console.
	Format string `yaml:"format"`
	// Requests says which requests get a line: all (default), denied or none.
	Requests string `yaml:"requests"`
}

func defaultConfig() Config {
	return Config{
		Proxy: proxy.DefaultConfig(), Limiter: limiter.DefaultConfig(), Admin: admin.DefaultConfig(),
		Log: LogConfig{Level: "info", Format: "json", Requests: proxy.LogAll},
	}
}

// validate reports every problem by its path.
func (c *LogConfig) validate(report func(path, problem string)) {
	oneOf := func(path, value string, values ...string) {
		if !slices.Contains(values, value) {
			report(path, fmt.Sprintf("%q is none of %q", value, values))
		}
	}
	oneOf("level", c.Level, zerolog.LevelDebugValue, zerolog.LevelInfoValue, zerolog.LevelWarnValue, zerolog.LevelErrorValue)
	oneOf("format", c.Format, "json", "console")
	oneOf("requests", c.Requests, proxy.LogAll, proxy.LogDenied, proxy.LogNone)
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

// load reads and checks the configuration. Without a file it is the default.
func (p *program) load(file string) (Config, []problem) {
	c := defaultConfig()
	if file == "" {
		return c, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return c, []problem{{1, 1, "", fmt.Sprintf("read: %v; name another file with -config", err)}}
	}
	at, problems := decodeYAML(data, p.env, &c)
	if len(at) == 0 { // nothing could be read at all
		return c, problems
	}
	// What could not be decoded is not judged a second time by what it then means.
	broken := problems
	c.validate(func(path, text string) {
		if slices.ContainsFunc(broken, func(b problem) bool { return b.covers(path) }) {
			return
		}
		line, col := at.of(path)
		problems = append(problems, problem{line, col, path, text})
	})
	slices.SortStableFunc(problems, comparePlaces)
	if c.Limiter.Redis != nil {
		c.Limiter.Redis.SetDefaults()
	}
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
		report("admin.listen", "is the address of the proxy listener too; give each its own")
	}
}
