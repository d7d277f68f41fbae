package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
)

// tlsFiles is what the configuration says about TLS on one listener.
type tlsFiles struct {
	listener   string // "proxy" or "control": the label of metrics and log lines
	path       string // of the block in the configuration
	pairs      []pairFiles
	clientCA   string // "" where clients need no certificate
	minVersion uint16
}

// pairFiles are the PEM files of one certificate, intermediates after it, and
// of its private key.
type pairFiles struct{ path, cert, key string }

// tlsVersions are the values of min_version.
var tlsVersions = map[string]uint16{"": tls.VersionTLS12, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// proxyTLS is what holds for the proxy listener; nil without TLS.
func (c *Config) proxyTLS() *tlsFiles {
	if c.Proxy.TLS == nil {
		return nil
	}
	f := &tlsFiles{listener: "proxy", path: "proxy.tls", minVersion: tlsVersions[c.Proxy.TLS.MinVersion]}
	for i, each := range c.Proxy.TLS.Certificates {
		f.pairs = append(f.pairs, pairFiles{fmt.Sprintf("proxy.tls.certificates[%d]", i), each.CertFile, each.KeyFile})
	}
	return f
}

// adminTLS is what holds for the control listener; nil without TLS.
func (c *Config) adminTLS() *tlsFiles {
	if c.Admin.TLS == nil {
		return nil
	}
	return &tlsFiles{
		listener: "control", path: "admin.tls", minVersion: tlsVersions[c.Admin.TLS.MinVersion],
		pairs:    []pairFiles{{"admin.tls", c.Admin.TLS.CertFile, c.Admin.TLS.KeyFile}},
		clientCA: c.Admin.TLS.ClientCAFile,
	}
}

// names are all files that f reads.
func (f *tlsFiles) names() (names []string) {
	for _, p := range f.pairs {
		names = append(names, p.cert, p.key)
	}
	if f.clientCA != "" {
		names = append(names, f.clientCA)
	}
	return names
}

// keyring is what a listener shows and believes at one time. It is not changed.
type keyring struct {
	files   *tlsFiles          // that it was read from
	pairs   []*tls.Certificate // as in tlsFiles
	clients *x509.CertPool     // who signs the clients' certificates; nil for nobody asked
	whole   bool               // every file could be used when it was last read
}

// read reads all files. It reports, by the path of its key, each that can't be
// used; what old has in its place is kept. Empty names are the packages' to report.
func (f *tlsFiles) read(old keyring, report func(path, problem string)) keyring {
	k := keyring{files: f, pairs: make([]*tls.Certificate, len(f.pairs)), clients: old.clients, whole: true}
	copy(k.pairs, old.pairs)
	for i, p := range f.pairs {
		pair := p.read(func(key, problem string) { report(p.path+"."+key, problem) })
		if pair == nil {
			k.whole = false
			continue
		}
		k.pairs[i] = pair
	}
	if f.clientCA == "" {
		return k
	}
	_, pool, err := limiter.ReadCertificates(f.clientCA)
	if err != nil {
		k.whole = false
		report(f.path+".client_ca_file", err.Error())
		return k
	}
	k.clients = pool
	return k
}

// read reads a certificate with its key; nil if it can't. It reports what is wrong
// with each of the files, by its key in the configuration; empty names it passes over.
func (p pairFiles) read(report func(key, problem string)) *tls.Certificate {
	certificate, soundCert := p.readCertificate(report)
	key, soundKey := p.readKey(report)
	if !soundCert || !soundKey {
		return nil
	}
	both, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		report("key_file", fmt.Sprintf("%s does not go with cert_file %s: %v; give its private key, in PEM without a pass phrase", p.key, p.cert, err))
		return nil
	}
	return &both
}

func (p pairFiles) readCertificate(report func(key, problem string)) (data []byte, ok bool) {
	if p.cert == "" {
		return nil, false
	}
	data, _, err := limiter.ReadCertificates(p.cert)
	if err != nil {
		report("cert_file", err.Error())
	}
	return data, err == nil
}

func (p pairFiles) readKey(report func(key, problem string)) (data []byte, ok bool) {
	if p.key == "" {
		return nil, false
	}
	data, err := limiter.ReadSmallFile(p.key)
	if err != nil {
		report("key_file", "can't be read: "+err.Error())
	}
	return data, err == nil
}

// credentials keep what a listener shows as its files are now. A file that
// became unusable leaves in force what it held before.
type credentials struct {
	// files are those of the start. By their version, and by whether clients are asked
	// for certificates, the listener goes to its end; what the list is now the ring has.
	files *tlsFiles
	log   zerolog.Logger
	watch *fileWatch      // of the start; run goes on to those that come after it
	next  chan *fileWatch // of another list of files; it holds the last that run has not seen
	ring  atomic.Pointer[keyring]
}

// newCredentials reads the files for the first time; the error joins all that
// is wrong with them.
func newCredentials(files *tlsFiles, log zerolog.Logger) (*credentials, error) {
	c := &credentials{files: files, next: make(chan *fileWatch, 1), log: log.With().Str("listener", files.listener).Logger()}
	c.watch = newFileWatch(files.names(), c.log)
	var all error
	k := files.read(keyring{}, func(path, problem string) {
		all = errors.Join(all, fmt.Errorf("%s: %s", path, problem))
	})
	c.ring.Store(&k)
	c.warnOfExpired(&k)
	return c, all
}

// run reloads whenever files change, until ctx ends.
func (c *credentials) run(ctx context.Context) {
	for w := c.watch; ctx.Err() == nil; {
		watching, end := context.WithCancel(ctx)
		var running sync.WaitGroup
		now := w
		running.Go(func() { now.run(watching, c.reload) })
		select {
		case w = <-c.next:
		case <-ctx.Done():
		}
		end()
		running.Wait()
	}
}

// reload reads all files again.
func (c *credentials) reload() {
	var k keyring
	for done := false; !done; {
		old := c.ring.Load()
		k = old.files.read(*old, func(path, problem string) {
			c.log.Error().Str("key", path).Str("problem", problem).Msg("a changed file can't be used: what it held before stays in force")
		})
		done = c.ring.CompareAndSwap(old, &k) // else commit has put other files in force
	}
	if k.whole {
		c.log.Info().Time("not_after", k.notAfter().UTC()).Msg("certificates reloaded")
	}
	c.warnOfExpired(&k)
}

// nextRing is what credentials will show by another configuration.
type nextRing struct {
	of       *credentials
	was, now *keyring
	watch    *fileWatch // nil where the files have the same names
}

// prepare reads files in place of those in force. It has no side effect; the error
// joins all that is wrong with them.
func (c *credentials) prepare(files *tlsFiles) (*nextRing, error) {
	n := &nextRing{of: c, was: c.ring.Load()}
	if !slices.Equal(files.names(), n.was.files.names()) {
		n.watch = newFileWatch(files.names(), c.log)
	}
	var all error
	k := files.read(keyring{}, func(path, problem string) {
		all = errors.Join(all, fmt.Errorf("%s: %s", path, problem))
	})
	n.now = &k
	return n, all
}

// commit puts n, which prepare made, in force for every handshake from now on. Those
// who connected before stay. It can't fail; commits follow each other.
func (n *nextRing) commit() {
	c := n.of
	if n.watch == nil {
		// Where that fails the watch has just read the same files, and later.
		c.ring.CompareAndSwap(n.was, n.now)
		return
	}
	c.ring.Store(n.now)
	select {
	case <-c.next: // nobody watches that any more
	default:
	}
	c.next <- n.watch
	c.warnOfExpired(n.now)
}

func (c *credentials) warnOfExpired(k *keyring) {
	if end := k.notAfter(); !end.IsZero() && time.Now().After(end) {
		c.log.Warn().Time("not_after", end.UTC()).Msg("a certificate has expired: clients will refuse it")
	}
}

// notAfter is when the first certificate expires; zero if there is none.
func (k *keyring) notAfter() (first time.Time) {
	for _, p := range k.pairs {
		if p != nil && (first.IsZero() || p.Leaf.NotAfter.Before(first)) {
			first = p.Leaf.NotAfter
		}
	}
	return first
}

// choose is the first certificate that the client can use under the name that
// it asks for, else the first of all: what crypto/tls does with a fixed list.
func (c *credentials) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	pairs := c.ring.Load().pairs
	for _, p := range pairs {
		if hello.SupportsCertificate(p) == nil {
			return p, nil
		}
	}
	return pairs[0], nil
}

// config is the one configuration of the listener, whatever its files come to
// hold: so tickets of sessions go on working across a reload. The protocols are
// for whoever speaks them to add.
func (c *credentials) config() *tls.Config {
	base := &tls.Config{MinVersion: c.files.minVersion, CipherSuites: strongSuites(), GetCertificate: c.choose}
	if c.files.clientCA == "" {
		return base
	}
	base.ClientAuth = tls.RequireAndVerifyClientCert
	base.ClientCAs = c.ring.Load().clients
	// Each connection is to be judged by the authorities of now.
	base.SessionTicketsDisabled = true
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := base.Clone()
		now.GetConfigForClient = nil
		now.ClientCAs = c.ring.Load().clients
		return now, nil
	}
	return base
}

// strongSuites are those for TLS 1.2 with forward secrecy and authenticated
// encryption; Go's own choice has ECDHE with AES-CBC too. 1.3 has no others.
func strongSuites() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}

// WriteMetrics writes the state of the certificates in Prometheus' text format.
func (c *credentials) WriteMetrics(w io.Writer) {
	k, whole := c.ring.Load(), 0
	if k.whole {
		whole = 1
	}
	fmt.Fprintf(w, "r8limiter_certificate_reload_successful{listener=%q} %d\n", c.files.listener, whole)
	fmt.Fprintf(w, "r8limiter_certificate_not_after_seconds{listener=%q} %d\n", c.files.listener, k.notAfter().Unix())
}
