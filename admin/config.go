// Package admin is the control listener: decisions asked for directly
// (/allow), the administrator's view (/admin), metrics and health.
package admin

import (
	"net"
	"strconv"
	"strings"
)

// MinTokenLength is how many bytes a token has at least. A shorter one can be
// guessed over the network.
const MinTokenLength = 16

// Config is the `admin` section of the configuration file.
type Config struct {
	// Listen is the control listener's address as host:port. An empty host
	// listens on all addresses, as containers need.
	Listen string `yaml:"listen"`
	// Token is the bearer token that guards everything under /admin. Empty:
	// only peers on the loopback interface are answered there.
	Token string `yaml:"token"`
	// AllowToken is the bearer token that guards /allow, and /check in a field
	// X-R8limiter-Token. Empty: anyone who can reach the listener may ask for decisions.
	AllowToken string `yaml:"allow_token"`
	// ReadyWhenDegraded keeps /readyz at 200 while the store is down and
	// limiter.on_store_error is not deny.
	ReadyWhenDegraded bool `yaml:"ready_when_degraded"`
	// TLS turns TLS on; nil for a listener that speaks plain HTTP.
	TLS *TLSConfig `yaml:"tls"`
}

// TLSConfig is the `tls` block of the control listener. Its files are PEM,
// read again when they change; relative paths begin at the working directory.
type TLSConfig struct {
	// CertFile is the certificate, intermediates after it; needed.
	CertFile string `yaml:"cert_file"`
	// KeyFile is its private key; needed.
	KeyFile string `yaml:"key_file"`
	// MinVersion is the oldest version of TLS that is spoken: 1.2 (default) or 1.3.
	MinVersion string `yaml:"min_version" enum:"1.2,1.3" default:"1.2"`
	// ClientCAFile holds the authorities of which every client must show a
	// certificate, whatever it asks for; "" for no such demand.
	ClientCAFile string `yaml:"client_ca_file"`
}

// DefaultConfig listens on the loopback interface, without tokens.
func DefaultConfig() Config {
	return Config{Listen: "127.0.0.1:8000"}
}

// Validate reports every problem of c with the path of its key relative to
// `admin`. It never repeats a token, since reports end up in logs.
func (c *Config) Validate(report func(path, problem string)) {
	if problem := listenProblem(c.Listen); problem != "" {
		report("listen", problem)
	}
	if problem := tokenProblem(c.Token); problem != "" {
		report("token", problem)
	}
	if problem := tokenProblem(c.AllowToken); problem != "" {
		report("allow_token", problem)
	}
	if c.TLS != nil {
		c.TLS.validate(func(key, problem string) { report("tls."+key, problem) })
	}
}

// validate looks at the texts alone; whoever reads the files reports those.
func (c *TLSConfig) validate(report func(key, problem string)) {
	if c.CertFile == "" {
		report("cert_file", "is missing: give the PEM file of the listener's certificate, or leave tls out")
	}
	if c.KeyFile == "" {
		report("key_file", "is missing: give the PEM file of the certificate's private key, or leave tls out")
	}
	if c.MinVersion != "" && c.MinVersion != "1.2" && c.MinVersion != "1.3" {
		report("min_version", strconv.Quote(c.MinVersion)+` is neither "1.2" nor "1.3"`)
	}
}

func listenProblem(addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return strconv.Quote(addr) + ` is not host:port; write "127.0.0.1:8000", or ":8000" for all addresses`
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return strconv.Quote(port) + " is not a port; write a number from 0 to 65535"
	}
	return ""
}

// tokenProblem says what is wrong with a token; the empty one, which is no
// token, is fine.
func tokenProblem(token string) string {
	if token == "" {
		return ""
	}
	// RFC 6750 section 2.1: what a client can't put in a field would lock
	// everyone out.
	if strings.IndexFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) >= 0 {
		return "holds white space, a control character or a character outside ASCII; use letters and digits"
	}
	if len(token) < MinTokenLength {
		return "is shorter than " + strconv.Itoa(MinTokenLength) + " characters; make one with `openssl rand -hex 32`"
	}
	return ""
}
