package limiter

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	defaultRedisTimeout = 50 * time.Millisecond
	defaultKeyPrefix    = "r8"
	maxDatabase         = 1<<16 - 1
)

// The modes of RedisConfig.
const (
	modeSingle   = "single"
	modeSentinel = "sentinel"
	modeCluster  = "cluster"
)

// RedisConfig says where the buckets are kept. Without it they are in memory.
// Either URL or Addrs is given.
type RedisConfig struct {
	// Mode is single (default), sentinel or cluster.
	Mode string `yaml:"mode" enum:"single,sentinel,cluster" default:"single"`
	// URL is redis://user:password@host:6379/0, rediss:// for TLS, or
	// unix:///run/redis.sock?db=0; of a single Redis. User, password, port and
	// database may be left out.
	URL string `yaml:"url"`
	// Addrs are host:port: the one Redis, all sentinels, or some nodes of the
	// cluster, which name the others.
	Addrs []string `yaml:"addrs"`
	// MasterName is what the sentinels call the primary.
	MasterName string `yaml:"master_name"`
	// Username is the user of every Redis in Addrs; "" for the default user.
	Username string `yaml:"username"`
	// Password is that user's.
	Password string `yaml:"password"`
	// DB is the database of the Redis in Addrs; a cluster has only 0.
	DB int `yaml:"db"`
	// SentinelUsername is the user of the sentinels; "" for their default user.
	SentinelUsername string `yaml:"sentinel_username"`
	// SentinelPassword is that user's.
	SentinelPassword string `yaml:"sentinel_password"`
	// TLS turns TLS on for all Addrs, sentinels included, and says how; beside
	// URL it says how for rediss://. nil leaves it to URL.
	TLS *ClientTLS `yaml:"tls"`
	// Timeout bounds one decision, waiting for a connection and dialing
	// included: 1ms to 10s, 0 for 50ms.
	Timeout time.Duration `yaml:"timeout" default:"50ms"`
	// Leases are for resources of precision "leased".
	Leases LeaseConfig `yaml:"leases"`
	// KeyPrefix begins every key: at most 32 of A-Z a-z 0-9 _ . -, "" for r8.
	// Gateways with the same prefix share their buckets.
	KeyPrefix string `yaml:"key_prefix" default:"r8"`
}

// LeaseConfig bounds what a gateway may keep in advance of a bucket.
type LeaseConfig struct {
	// TTL is how long a gateway may spend a lease: 500ms to 10s, 0 for 1s. A
	// crash of the gateway loses what it had left of it.
	TTL time.Duration `yaml:"ttl" default:"1s"`
	// Share is how much of what a bucket has left one lease may be, in percent: 1
	// to 50, 0 for 20.
	Share int64 `yaml:"share" default:"20"`
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

// Validate reports every problem of c by its path inside the redis block, those
// of the files that it names included. No report shows the URL or an address,
// for it may hold a password.
func (c *RedisConfig) Validate(report func(path, problem string)) {
	c.place(report)
	if c.Timeout != 0 && (c.Timeout < time.Millisecond || c.Timeout > 10*time.Second) {
		report("timeout", fmt.Sprintf("%v is not between 1ms and 10s", c.Timeout))
	}
	c.Leases.validate(below("leases", report))
	if !validKeyPrefix.MatchString(c.KeyPrefix) {
		report("key_prefix", fmt.Sprintf("%q must be at most 32 of the characters A-Z a-z 0-9 _ . -", c.KeyPrefix))
	}
}

// mode is how the servers belong together.
func (c *RedisConfig) mode() string {
	if c.Mode == "" {
		return modeSingle
	}
	return c.Mode
}

// SetDefaults gives every key that was left out what it means.
func (c *RedisConfig) SetDefaults() {
	c.Mode, c.Timeout, c.KeyPrefix, c.Leases = c.mode(), c.timeout(), c.keyPrefix(), c.Leases.orDefault()
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

// redisPlace is where the servers are and how they are entered.
type redisPlace struct {
	network            string   // tcp or unix
	addrs              []string // host:port, or the one socket
	username, password string
	db                 int
	tls                *tls.Config // nil without TLS
}

// place is what c says, read. It reports every problem; with any, the place is
// not to be used.
func (c *RedisConfig) place(report func(path, problem string)) redisPlace {
	if !slices.Contains([]string{modeSingle, modeSentinel, modeCluster}, c.mode()) {
		report("mode", fmt.Sprintf("%q is unknown; write single, sentinel or cluster", c.Mode))
		return redisPlace{}
	}
	c.validateSentinel(report)
	if len(c.Addrs) > 0 || c.mode() != modeSingle {
		return c.placeOfAddrs(report)
	}
	return c.placeOfURL(report)
}

// validateSentinel reports on what only sentinels have.
func (c *RedisConfig) validateSentinel(report func(path, problem string)) {
	if c.mode() == modeSentinel {
		if c.MasterName == "" {
			report("master_name", "is missing: write the name that the sentinels monitor the primary by, as mymaster")
		}
		validateUser("sentinel_", c.SentinelUsername, c.SentinelPassword, report)
		return
	}
	for _, each := range []struct{ path, text string }{
		{"master_name", c.MasterName}, {"sentinel_username", c.SentinelUsername}, {"sentinel_password", c.SentinelPassword},
	} {
		if each.text != "" {
			report(each.path, "is for sentinels only: write mode: sentinel, or leave it out")
		}
	}
}

// validateUser reports a user without a password, as whom nobody would log in.
func validateUser(prefix, username, password string, report func(path, problem string)) {
	if username != "" && password == "" {
		report(prefix+"username", "has no password beside it: give "+prefix+"password, or leave both out")
	}
}

// placeOfAddrs reads what goes with addrs.
func (c *RedisConfig) placeOfAddrs(report func(path, problem string)) redisPlace {
	c.validateAddrs(report)
	switch {
	case c.DB != 0 && c.mode() == modeCluster:
		report("db", "is not 0, and a cluster has no other database: leave it out")
	case c.DB < 0 || c.DB > maxDatabase:
		report("db", fmt.Sprintf("%d is not between 0 and %d", c.DB, maxDatabase))
	}
	validateUser("", c.Username, c.Password, report)
	p := redisPlace{network: "tcp", addrs: c.Addrs, username: c.Username, password: c.Password, db: c.DB}
	if c.TLS != nil {
		p.tls = c.TLS.Read(below("tls", report))
	}
	return p
}

// validateAddrs reports on addrs, how many they are, and a url beside them.
func (c *RedisConfig) validateAddrs(report func(path, problem string)) {
	switch {
	case c.URL != "" && c.mode() == modeSingle:
		report("url", "stands beside addrs: keep one of the two")
	case c.URL != "":
		report("url", "names one Redis only: for mode "+c.mode()+" write addrs: [host:port, ...], username, password and tls instead")
	}
	switch {
	case len(c.Addrs) == 0 && c.mode() == modeSentinel:
		report("addrs", "is missing: write where the sentinels are, as [10.0.0.5:26379, 10.0.0.6:26379]")
	case len(c.Addrs) == 0:
		report("addrs", "is missing: write where some of the cluster's nodes are, as [10.0.0.5:6379, 10.0.0.6:6379]")
	case len(c.Addrs) > 1 && c.mode() == modeSingle:
		report("addrs", fmt.Sprintf("has %d addresses, of which mode single takes one: write mode: sentinel or mode: cluster, or keep one", len(c.Addrs)))
	}
	for i, addr := range c.Addrs {
		if !isHostPort(addr) {
			report(fmt.Sprintf("addrs[%d]", i), "is not host:port with a port from 1 to 65535: write it as 10.0.0.5:6379 or [fd00::5]:6379")
		}
	}
}

func isHostPort(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	return err == nil && host != "" && !strings.ContainsAny(host, "/@ ") && isPort(port)
}

func isPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n != 0
}

// placeOfURL reads what goes with url.
func (c *RedisConfig) placeOfURL(report func(path, problem string)) redisPlace {
	for _, each := range []struct {
		path  string
		given bool
	}{{"username", c.Username != ""}, {"password", c.Password != ""}, {"db", c.DB != 0}} {
		if each.given {
			report(each.path, "goes with addrs: beside url write it there, as redis://user:password@host:6379/0")
		}
	}
	p, err := parseRedisURL(c.URL)
	if err != nil {
		report("url", err.Error())
	}
	if c.TLS == nil {
		return p
	}
	config := c.TLS.Read(below("tls", report))
	switch {
	case p.tls != nil:
		p.tls = config
	case err == nil:
		report("tls", "stands beside a url without TLS: write rediss://host:6379/0 there, or leave tls out")
	}
	return p
}

// parseRedisURL reads a URL of one Redis. redis.ParseURL and url.Parse are not
// asked for their words: they quote what they read, passwords included.
func parseRedisURL(text string) (redisPlace, error) {
	const form = "write redis://user:password@host:6379/0, rediss:// for TLS, or unix:///path/to/redis.sock?db=0"
	if text == "" {
		return redisPlace{}, errors.New("is missing: " + form)
	}
	u, err := url.Parse(text)
	if err != nil {
		return redisPlace{}, errors.New("can't be read: " + form +
			"; in a user or password write % / ? # @ as %25 %2F %3F %23 %40")
	}
	if u.Fragment != "" || strings.HasSuffix(text, "#") {
		return redisPlace{}, errors.New("holds a #: in a password write %23")
	}
	p := redisPlace{username: u.User.Username()}
	p.password, _ = u.User.Password()
	switch u.Scheme {
	case "redis":
		return p.tcp(u)
	case "rediss":
		p.tls = (&ClientTLS{}).system()
		return p.tcp(u)
	case "unix":
		return p.unix(u)
	}
	return redisPlace{}, errors.New("has a scheme that is not known: " + form)
}

func (p redisPlace) tcp(u *url.URL) (redisPlace, error) {
	host, port := u.Hostname(), u.Port()
	if host == "" {
		return redisPlace{}, errors.New("names no host: write " + u.Scheme + "://host:6379/0")
	}
	if port == "" {
		port = "6379"
	}
	if !isPort(port) {
		return redisPlace{}, errors.New("has a port that is not between 1 and 65535")
	}
	if u.RawQuery != "" {
		return redisPlace{}, errors.New("has options after a ?: " + u.Scheme + ":// takes none; in a password write %3F")
	}
	db, err := parseDatabase(strings.TrimPrefix(u.Path, "/"))
	p.network, p.addrs, p.db = "tcp", []string{net.JoinHostPort(host, port)}, db
	return p, err
}

func (p redisPlace) unix(u *url.URL) (redisPlace, error) {
	if u.Host != "" || u.Path == "" || u.Path == "/" {
		return redisPlace{}, errors.New("names no socket: write unix:///path/to/redis.sock, with three slashes")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(query["db"]) != len(query) || len(query["db"]) > 1 {
		return redisPlace{}, errors.New("has options other than ?db=N")
	}
	db, err := parseDatabase(query.Get("db"))
	p.network, p.addrs, p.db = "unix", []string{u.Path}, db
	return p, err
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
