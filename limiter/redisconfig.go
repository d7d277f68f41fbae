package limiter

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	defaultRedisTimeout = 50 * time.Millisecond
	defaultKeyPrefix    = "r8"
)

// RedisConfig says where the buckets are kept. Without it they are in memory.
type RedisConfig struct {
	// URL is redis://user:password@host:6379/0 or unix:///run/redis.sock?db=0.
	// User, password, port and database may be left out.
	URL string `yaml:"url"`
	// Timeout bounds one decision, waiting for a connection and dialing
	// included: 1ms to 10s, 0 for 50ms.
	Timeout time.Duration `yaml:"timeout"`
	// Leases are for resources of precision "leased".
	Leases LeaseConfig `yaml:"leases"`
	// KeyPrefix begins every key: at most 32 of A-Z a-z 0-9 _ . -, "" for r8.
	// Gateways with the same prefix share their buckets.
	KeyPrefix string `yaml:"key_prefix"`
}

// LeaseConfig bounds what a gateway may keep in advance of a bucket.
type LeaseConfig struct {
	// TTL is how long a gateway may spend a lease: 500ms to 10s, 0 for 1s. A
	// crash of the gateway loses what it had left of it.
	TTL time.Duration `yaml:"ttl"`
	// Share is how much of what a bucket has left one lease may be, in percent: 1
	// to 50, 0 for 20.
	Share int64 `yaml:"share"`
}

func (c *LeaseConfig) validate(report func(path, problem string)) {
	if c.TTL != 0 && (c.TTL < 500*time.Millisecond || c.TTL > 10*time.Second) {
		report("ttl", fmt.Sprintf("%v is not between 500ms and 10s", c.TTL))
	}
	if c.Share < 0 || c.Share > 50 {
		report("share", fmt.Sprintf("must be from 1 to 50 percent, is %d", c.Share))
	}
}

// orDefault is c with what it leaves open.
func (c LeaseConfig) orDefault() LeaseConfig {
	if c.TTL == 0 {
		c.TTL = time.Second
	}
	if c.Share == 0 {
		c.Share = 20
	}
	return c
}

var validKeyPrefix = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,32}$`)

// Validate reports every problem of c by its path inside the redis block. No
// report shows the URL, for it may hold a password.
func (c *RedisConfig) Validate(report func(path, problem string)) {
	if _, err := c.options(); err != nil {
		report("url", err.Error())
	}
	if c.Timeout != 0 && (c.Timeout < time.Millisecond || c.Timeout > 10*time.Second) {
		report("timeout", fmt.Sprintf("%v is not between 1ms and 10s", c.Timeout))
	}
	c.Leases.validate(below("leases", report))
	if !validKeyPrefix.MatchString(c.KeyPrefix) {
		report("key_prefix", fmt.Sprintf("%q must be at most 32 of the characters A-Z a-z 0-9 _ . -", c.KeyPrefix))
	}
}

// timeout is what one decision may take.
func (c *RedisConfig) timeout() time.Duration {
	if c.Timeout == 0 {
		return defaultRedisTimeout
	}
	return c.Timeout
}

// keyPrefix begins every key.
func (c *RedisConfig) keyPrefix() string {
	if c.KeyPrefix == "" {
		return defaultKeyPrefix
	}
	return c.KeyPrefix
}

// options are go-redis's for c. A command goes out once: whether a script ran
// is not known after a time-out, and running it again could spend twice.
func (c *RedisConfig) options() (*redis.Options, error) {
	o, err := parseRedisURL(c.URL)
	if err != nil {
		return nil, err
	}
	o.MaxRetries = -1   // none; 0 would be 3
	o.DialerRetries = 1 // one attempt; 0 would be 5, 100 ms apart
	o.ContextTimeoutEnabled = true
	o.DialTimeout = c.timeout()
	o.ReadTimeout = c.timeout()
	o.WriteTimeout = c.timeout()
	o.PoolTimeout = c.timeout()
	// Many balancers and firewalls forget a connection after some minutes.
	o.ConnMaxIdleTime = time.Minute
	// RESP3 would bring pushes: with maintenance notifications they stretch the
	// read time-out to 10 s. Redis 7.0 doesn't know CLIENT SETINFO (identity).
	o.Protocol = 2
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return o, nil
}

// parseRedisURL reads a redis:// or unix:// URL. redis.ParseURL and url.Parse
// are not asked for their words: they quote what they read, passwords included.
func parseRedisURL(text string) (*redis.Options, error) {
	const form = "write redis://user:password@host:6379/0 or unix:///path/to/redis.sock?db=0"
	if text == "" {
		return nil, errors.New("is missing: " + form)
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("can't be read: " + form +
			"; in a user or password write % / ? # @ as %25 %2F %3F %23 %40")
	}
	if u.Fragment != "" || strings.HasSuffix(text, "#") {
		return nil, errors.New("holds a #: in a password write %23")
	}
	switch u.Scheme {
	case "redis":
		return tcpOptions(u)
	case "unix":
		return unixOptions(u)
	case "rediss":
		return nil, errors.New("TLS to Redis is not served yet: use redis:// or unix://")
	}
	return nil, errors.New("has a scheme that is not known: " + form)
}

func tcpOptions(u *url.URL) (*redis.Options, error) {
	host, port := u.Hostname(), u.Port()
	if host == "" {
		return nil, errors.New("names no host: write redis://host:6379/0")
	}
	if port == "" {
		port = "6379"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, errors.New("has a port that is not between 1 and 65535")
	}
	if u.RawQuery != "" {
		return nil, errors.New("has options after a ?: redis:// takes none; in a password write %3F")
	}
	db, err := parseDatabase(strings.TrimPrefix(u.Path, "/"))
	if err != nil {
		return nil, err
	}
	o := &redis.Options{Network: "tcp", Addr: net.JoinHostPort(host, port), DB: db}
	setCredentials(o, u.User)
	return o, nil
}

func unixOptions(u *url.URL) (*redis.Options, error) {
	if u.Host != "" || u.Path == "" || u.Path == "/" {
		return nil, errors.New("names no socket: write unix:///path/to/redis.sock, with three slashes")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(query["db"]) != len(query) || len(query["db"]) > 1 {
		return nil, errors.New("has options other than ?db=N")
	}
	db, err := parseDatabase(query.Get("db"))
	if err != nil {
		return nil, err
	}
	o := &redis.Options{Network: "unix", Addr: u.Path, DB: db}
	setCredentials(o, u.User)
	return o, nil
}

// parseDatabase reads a database number; "" is 0.
func parseDatabase(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	db, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, errors.New("has a database that is not a number")
	}
	return int(db), nil
}

func setCredentials(o *redis.Options, user *url.Userinfo) {
	if user == nil {
		return
	}
	o.Username = user.Username()
	o.Password, _ = user.Password()
}
