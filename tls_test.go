package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

var serial atomic.Int64

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	a.cert, a.key = sign(t, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: fmt.Sprintf("test authority %d", serial.Add(1))},
		IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a certificate from a template; without an authority it signs itself.
func sign(t *testing.T, by *authority, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(serial.Add(1))
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	template.NotBefore = template.NotAfter.Add(-2 * time.Hour)
	parent, parentKey := template, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// pairPEM is a certificate for some host names and its key as files hold them.
type pairPEM struct {
	cert, key []byte
	serial    string
	notAfter  time.Time
}

func (a *authority) pair(t *testing.T, names ...string) pairPEM {
	t.Helper()
	return a.pairUntil(t, time.Time{}, names...)
}

func (a *authority) pairUntil(t *testing.T, end time.Time, names ...string) pairPEM {
	t.Helper()
	cert, key := sign(t, a, &x509.Certificate{
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: end,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pairPEM{
		cert:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
		key:    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		serial: cert.SerialNumber.String(), notAfter: cert.NotAfter,
	}
}

// ca is the authority's certificate as a file holds it.
func (a *authority) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (p pairPEM) certificate(t *testing.T) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func write(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// save writes a pair as NAME.crt and NAME.key.
func (p pairPEM) save(t *testing.T, dir, name string) {
	t.Helper()
	write(t, filepath.Join(dir, name+".crt"), p.cert)
	write(t, filepath.Join(dir, name+".key"), p.key)
}

// shake shakes hands with a server; serial is the server certificate's.
func shake(addr string, config *tls.Config) (serial string, state tls.ConnectionState, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", state, err
	}
	defer conn.Close()
	state = conn.(*tls.Conn).ConnectionState()
	return state.PeerCertificates[0].SerialNumber.String(), state, nil
}

// secureClient is a client that trusts an authority and shows the certificates given.
func secureClient(t *testing.T, roots *x509.CertPool, shown ...tls.Certificate) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: shown}, DisableKeepAlives: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 5 * time.Second}
}

// statusBy is status of a GET by a client, 0 where there is no answer.
func statusBy(client *http.Client, url string) int {
	resp, err := client.Get(url)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// secureGateway has TLS on both listeners, with files in dir: a.crt, b.crt and
// c.crt, each with its key.
func secureGateway(t *testing.T, dir, more string) *started {
	t.Helper()
	return start(t, `
proxy:
  listen: "127.0.0.1:0"
  tls: {certificates: [{cert_file: `+dir+`/a.crt, key_file: `+dir+`/a.key}, {cert_file: `+dir+`/b.crt, key_file: `+dir+`/b.key}]`+more+`}
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: all, action: bypass, upstream: api}]
admin: {listen: "127.0.0.1:0", tls: {cert_file: `+dir+`/c.crt, key_file: `+dir+`/c.key`+more+`}}
`)
}

// stop ends the gateway; all of its clients must be done.
func (s *started) stop(t *testing.T) {
	t.Helper()
	s.signals <- syscall.SIGINT
	if code := <-s.exit; code != exitFine {
		t.Errorf("exit code %d, want 0", code)
	}
}

func secured(url string) string { return strings.Replace(url, "http:", "https:", 1) }

func host(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

func TestBothListenersSpeakTLS(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	ca.pair(t, "a.test").save(t, dir, "a")
	ca.pair(t, "b.test").save(t, dir, "b")
	ca.pair(t, "c.test").save(t, dir, "c")
	s := secureGateway(t, dir, "")
	client := secureClient(t, ca.pool)
	if got := statusBy(client, secured(s.control)+"/readyz"); got != 200 {
		t.Errorf("control: got %d, want 200", got)
	}
	resp, err := client.Get(secured(s.proxy) + "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil || resp.StatusCode != 200 {
		t.Errorf("proxy: got %d, %v", resp.StatusCode, err)
	}
	if !strings.Contains(body.String(), `["X-Forwarded-Proto","https"]`) {
		t.Errorf("the upstream is not told of https: %s", &body)
	}
	for _, url := range []string{s.proxy, s.control} {
		if got := statusBy(http.DefaultClient, url+"/readyz"); got == 200 {
			t.Errorf("%s answers without TLS", url)
		}
	}
	s.stop(t)
}

// secureMetrics is what /metrics shows of a gateway with TLS on both listeners.
func secureMetrics(t *testing.T) string {
	t.Helper()
	dir, ca := t.TempDir(), newAuthority(t)
	for _, name := range []string{"a", "b", "c"} {
		ca.pair(t, "a.test").save(t, dir, name)
	}
	s := secureGateway(t, dir, "")
	defer s.stop(t)
	resp, err := secureClient(t, ca.pool).Get(secured(s.control) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestMetricsOfCertificatesHaveHelpAndBothListeners(t *testing.T) {
	text := secureMetrics(t)
	if lines := withoutHelp(text); len(lines) > 0 {
		t.Errorf("without help:\n%s", strings.Join(lines, ""))
	}
	for _, listener := range []string{"proxy", "control"} {
		if want := `r8limiter_certificate_reload_successful{listener="` + listener + `"} 1`; !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
}

func TestClientBehindALoadBalancerSpeaksTLS(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	ca.pair(t, "a.test").save(t, dir, "a")
	s := start(t, `
proxy:
  listen: "127.0.0.1:0"
  proxy_protocol: true
  trusted_proxies: [127.0.0.1]
  tls: {certificates: [{cert_file: `+dir+`/a.crt, key_file: `+dir+`/a.key}]}
  upstreams: {api: {targets: ["echo:"]}}
  routes: [{name: all, action: bypass, upstream: api}]
admin: {listen: "127.0.0.1:0"}
`)
	client := secureClient(t, ca.pool)
	client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			_, err = conn.Write([]byte("PROXY TCP4 203.0.113.9 10.0.0.1 12345 443\r\n"))
		}
		return conn, err
	}
	resp, err := client.Get(secured(s.proxy) + "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil || !strings.Contains(body.String(), `["X-Forwarded-For","203.0.113.9"],["X-Forwarded-Proto","https"]`) {
		t.Errorf("got %d %s, %v", resp.StatusCode, &body, err)
	}
	if got := statusBy(secureClient(t, ca.pool), secured(s.proxy)+"/x"); got != 0 {
		t.Errorf("without a PROXY header: got %d, want no answer", got)
	}
	s.stop(t)
}

func TestCertificateIsChosenByName(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	a, b := ca.pair(t, "a.test"), ca.pair(t, "b.test", "*.b.test")
	a.save(t, dir, "a")
	b.save(t, dir, "b")
	a.save(t, dir, "c")
	s := secureGateway(t, dir, "")
	for name, want := range map[string]string{
		"a.test": a.serial, "b.test": b.serial, "x.b.test": b.serial,
		"":            a.serial, // none asked for
		"other.test":  a.serial,
		"x.y.b.test":  a.serial,
		"127.0.0.1":   a.serial, // crypto/tls sends no address as a name
		"B.TEST":      b.serial,
		"b.test.test": a.serial,
	} {
		if got, _, err := shake(host(s.proxy), &tls.Config{ServerName: name, InsecureSkipVerify: true}); err != nil || got != want {
			t.Errorf("%q: got certificate %s, %v, want %s", name, got, err, want)
		}
	}
	s.stop(t)
}

func TestOldTLSIsRefused(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	for _, name := range []string{"a", "b", "c"} {
		ca.pair(t, "a.test").save(t, dir, name)
	}
	for more, oldest := range map[string]uint16{"": tls.VersionTLS12, ", min_version: 1.2": tls.VersionTLS12, `, min_version: "1.3"`: tls.VersionTLS13} {
		s := secureGateway(t, dir, more)
		for _, url := range []string{s.proxy, s.control} {
			for version := uint16(tls.VersionTLS10); version <= tls.VersionTLS13; version++ {
				_, _, err := shake(host(url), &tls.Config{RootCAs: ca.pool, MinVersion: tls.VersionTLS10, MaxVersion: version})
				if taken := err == nil; taken != (version >= oldest) {
					t.Errorf("min_version%s: %s taken is %v: %v", more, tls.VersionName(version), taken, err)
				}
			}
		}
		s.stop(t)
	}
}

func TestWeakSuitesAreRefused(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	for _, name := range []string{"a", "b", "c"} {
		ca.pair(t, "a.test").save(t, dir, name)
	}
	s := secureGateway(t, dir, "")
	for suite, want := range map[uint16]bool{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       true,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: true,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA:          false,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA:          false,
	} {
		for _, url := range []string{s.proxy, s.control} {
			_, _, err := shake(host(url), &tls.Config{RootCAs: ca.pool, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite}})
			if (err == nil) != want {
				t.Errorf("%s: got %v, want taken %v", tls.CipherSuiteName(suite), err, want)
			}
		}
	}
	s.stop(t)
}

func TestControlListenerWantsClientCertificates(t *testing.T) {
	dir, ca, clients, strangers := t.TempDir(), newAuthority(t), newAuthority(t), newAuthority(t)
	ca.pair(t, "a.test").save(t, dir, "c")
	ours, theirs := clients.pair(t, "ops"), strangers.pair(t, "ops")
	write(t, dir+"/clients.pem", clients.ca())
	s := startControl(t, "{cert_file: "+dir+"/c.crt, key_file: "+dir+"/c.key, client_ca_file: "+dir+"/clients.pem}")
	known, unknown := secureClient(t, ca.pool, ours.certificate(t)), secureClient(t, ca.pool, theirs.certificate(t))
	want := func(when string, client *http.Client, status int) {
		t.Helper()
		if got := statusBy(client, s.control+"/readyz"); got != status {
			t.Errorf("%s: got %d, want %d", when, got, status)
		}
	}
	want("ours", known, 200)
	want("a stranger's", unknown, 0)
	want("none", secureClient(t, ca.pool), 0)
	write(t, dir+"/clients.pem", strangers.ca())
	eventually(t, "the other authority counts", func() bool { return statusBy(unknown, s.control+"/readyz") == 200 })
	want("ours, once their authority is gone", known, 0)
	s.stop(t)
}

// startControl starts the control listener alone, with that tls block.
func startControl(t *testing.T, block string) *started {
	t.Helper()
	s := start(t, `admin: {listen: "127.0.0.1:0", tls: `+block+`}`)
	s.control = secured(s.control)
	return s
}

// The files of a certificate are replaced in every way that is in use while
// clients keep connecting.
func TestCertificateFollowsItsFiles(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, dir string, p pairPEM){
		"in place": func(t *testing.T, dir string, p pairPEM) { p.save(t, dir, "a") },
		"rename": func(t *testing.T, dir string, p pairPEM) {
			p.save(t, dir, "new")
			for _, end := range []string{".crt", ".key"} {
				rename(t, dir+"/new"+end, dir+"/a"+end)
			}
		},
		"removed and made again": func(t *testing.T, dir string, p pairPEM) {
			remove(t, dir+"/a.crt", dir+"/a.key")
			p.save(t, dir, "a")
		},
		"kubernetes": func(t *testing.T, dir string, p pairPEM) {
			old, err := os.Readlink(dir + "/..data")
			if err != nil {
				t.Fatal(err)
			}
			project(t, dir, "..at"+p.serial, p)
			if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
				t.Fatal(err)
			}
		},
		"certbot": func(t *testing.T, dir string, p pairPEM) {
			p.save(t, dir+"/archive", p.serial)
			for _, end := range []string{".crt", ".key"} {
				link(t, "archive/"+p.serial+end, dir+"/a"+end)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { followsFiles(t, name, replace) })
	}
}

func followsFiles(t *testing.T, way string, replace func(*testing.T, string, pairPEM)) {
	dir, ca := t.TempDir(), newAuthority(t)
	first := ca.pair(t, "a.test")
	switch way {
	case "kubernetes":
		project(t, dir, "..first", first)
		link(t, "..data/a.crt", dir+"/a.crt")
		link(t, "..data/a.key", dir+"/a.key")
	case "certbot":
		if err := os.Mkdir(dir+"/archive", 0o700); err != nil {
			t.Fatal(err)
		}
		first.save(t, dir+"/archive", first.serial)
		link(t, "archive/"+first.serial+".crt", dir+"/a.crt")
		link(t, "archive/"+first.serial+".key", dir+"/a.key")
	default:
		first.save(t, dir, "a")
	}
	other := t.TempDir()
	ca.pair(t, "b.test").save(t, other, "b")
	link(t, other+"/b.crt", dir+"/b.crt")
	link(t, other+"/b.key", dir+"/b.key")
	ca.pair(t, "c.test").save(t, dir, "c")
	s := secureGateway(t, dir, "")
	clients := keepConnecting(host(s.proxy), &tls.Config{RootCAs: ca.pool, ServerName: "a.test", ClientSessionCache: tls.NewLRUClientSessionCache(1)})
	for range 3 {
		next := ca.pair(t, "a.test")
		replace(t, dir, next)
		eventually(t, "the new certificate is shown", func() bool {
			got, _, err := shake(host(s.proxy), &tls.Config{RootCAs: ca.pool, ServerName: "a.test"})
			return err == nil && got == next.serial
		})
	}
	if n, err := clients.end(); err != nil || n < 3 {
		t.Errorf("after %d connections: %v", n, err)
	}
	s.stop(t)
}

// connecting is a client that connects again and again.
type connecting struct {
	stop, done chan struct{}
	n          int
	err        error
}

func keepConnecting(addr string, config *tls.Config) *connecting {
	c := &connecting{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for c.err == nil {
			select {
			case <-c.stop:
				return
			default:
				_, _, c.err = shake(addr, config)
				c.n++
			}
		}
	}()
	return c
}

// end is how many connections there were, and what ended the last one early.
func (c *connecting) end() (int, error) {
	close(c.stop)
	<-c.done
	return c.n, c.err
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, files ...string) {
	t.Helper()
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// link puts a symbolic link in the place of whatever is there, in one step.
func link(t *testing.T, target, at string) {
	t.Helper()
	if err := os.Symlink(target, at+".new"); err != nil {
		t.Fatal(err)
	}
	rename(t, at+".new", at)
}

// project writes a pair as a.crt and a.key below a directory of its own, and
// then points ..data at that, as the kubelet does.
func project(t *testing.T, dir, version string, p pairPEM) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
		t.Fatal(err)
	}
	p.save(t, filepath.Join(dir, version), "a")
	link(t, version, dir+"/..data")
}

// Our own page is at https where the listener speaks TLS.
func TestOwnPageMaySpendByTLS(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	ca.pair(t, "localhost").save(t, dir, "c")
	s := startControl(t, "{cert_file: "+dir+"/c.crt, key_file: "+dir+"/c.key}")
	client := secureClient(t, ca.pool)
	for origin, want := range map[string]int{s.control: 200, "http://" + host(s.control): 403, "https://evil.test": 403, "null": 403} {
		req, err := http.NewRequest("POST", s.control+"/allow?user_id=a", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", origin)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Origin %s: got %d, want %d", origin, resp.StatusCode, want)
		}
	}
	s.stop(t)
}

func TestFailedHandshakesAreNoRequests(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	for _, name := range []string{"a", "b", "c"} {
		ca.pair(t, "a.test").save(t, dir, name)
	}
	s := secureGateway(t, dir, "")
	for _, url := range []string{s.proxy, s.control} {
		for _, text := range []string{"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", "\x16\x03", ""} {
			conn, err := net.Dial("tcp", host(url))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			_ = conn.(*net.TCPConn).CloseWrite()
			got, _ := io.ReadAll(conn) // a reset is fine too
			if strings.Contains(string(got), "HTTP/") {
				t.Errorf("%q: got %q", text, got)
			}
			conn.Close()
		}
	}
	if got := statusBy(secureClient(t, ca.pool), secured(s.control)+"/livez"); got != 200 {
		t.Errorf("afterwards: got %d, want 200", got)
	}
	s.stop(t)
	if text := s.log.String(); strings.Contains(text, `"status":400`) || !strings.Contains(text, "TLS handshake failed") {
		t.Errorf("the log is %s", text)
	}
}

func TestSessionsAreResumedAcrossAReload(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	for _, name := range []string{"a", "b", "c"} {
		ca.pair(t, "a.test").save(t, dir, name)
	}
	s := secureGateway(t, dir, "")
	config := &tls.Config{RootCAs: ca.pool, ServerName: "a.test", MaxVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	if _, _, err := shake(host(s.proxy), config); err != nil {
		t.Fatal(err)
	}
	next := ca.pair(t, "a.test")
	next.save(t, dir, "a")
	eventually(t, "the new certificate is shown", func() bool {
		got, _, _ := shake(host(s.proxy), &tls.Config{RootCAs: ca.pool, ServerName: "a.test"})
		return got == next.serial
	})
	if _, state, err := shake(host(s.proxy), config); err != nil || !state.DidResume {
		t.Errorf("resumed is %v, %v", state.DidResume, err)
	}
	s.stop(t)
}

// testCredentials are of one pair a in dir.
func testCredentials(t *testing.T, dir string, log *processLog) *credentials {
	t.Helper()
	files := &tlsFiles{listener: "proxy", path: "proxy.tls", pairs: []pairFiles{{"proxy.tls.certificates[0]", dir + "/a.crt", dir + "/a.key"}}}
	c, err := newCredentials(files, zerolog.New(log))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func exposed(c *credentials) string {
	var text bytes.Buffer
	c.WriteMetrics(&text)
	return text.String()
}

func TestBadCertificateLeavesTheOldInForce(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	first, second := ca.pair(t, "a.test"), ca.pair(t, "a.test")
	first.save(t, dir, "a")
	log := &processLog{}
	c := testCredentials(t, dir, log)
	inForce := func() string {
		pair, err := c.choose(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.String()
	}
	for what, damage := range map[string]struct {
		do  func()
		say string
	}{
		"another's key":      {func() { write(t, dir+"/a.key", second.key) }, "a.key does not go with cert_file"},
		"half a certificate": {func() { write(t, dir+"/a.crt", first.cert[:len(first.cert)/2]) }, "a.crt holds no certificate"},
		"no PEM":             {func() { write(t, dir+"/a.crt", []byte("x")) }, "a.crt holds no certificate"},
		"nothing":            {func() { remove(t, dir+"/a.crt") }, "a.crt: no such file"},
		"an empty key":       {func() { write(t, dir+"/a.key", nil) }, "a.key does not go with cert_file"},
	} {
		damage.do()
		c.reload()
		lines := log.lines()
		if last := lines[len(lines)-1]; !strings.Contains(last, damage.say) || !strings.Contains(last, `"listener":"proxy"`) || !strings.Contains(last, `"level":"error"`) {
			t.Errorf("%s: logged %s, want %q", what, last, damage.say)
		}
		if got := exposed(c); !strings.Contains(got, "r8limiter_certificate_reload_successful{listener=\"proxy\"} 0\n") {
			t.Errorf("%s: metrics say %s", what, got)
		}
		if inForce() != first.serial {
			t.Errorf("%s: certificate %s is in force, want the old one", what, inForce())
		}
		first.save(t, dir, "a")
	}
	second.save(t, dir, "a")
	c.reload()
	want := fmt.Sprintf("r8limiter_certificate_reload_successful{listener=\"proxy\"} 1\nr8limiter_certificate_not_after_seconds{listener=\"proxy\"} %d\n", second.notAfter.Unix())
	if got := exposed(c); got != want || inForce() != second.serial {
		t.Errorf("got %s with certificate %s, want %s with %s", got, inForce(), want, second.serial)
	}
}

// One bad pair of several does not hold up the others.
func TestGoodCertificateIsTakenBesideABadOne(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	a, b := ca.pair(t, "a.test"), ca.pair(t, "b.test")
	a.save(t, dir, "a")
	b.save(t, dir, "b")
	files := &tlsFiles{listener: "proxy", pairs: []pairFiles{{"", dir + "/a.crt", dir + "/a.key"}, {"", dir + "/b.crt", dir + "/b.key"}}}
	c, err := newCredentials(files, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	renewed := ca.pair(t, "b.test")
	renewed.save(t, dir, "b")
	write(t, dir+"/a.crt", nil)
	c.reload()
	var got []string
	for _, p := range c.ring.Load().pairs {
		got = append(got, p.Leaf.SerialNumber.String())
	}
	if want := []string{a.serial, renewed.serial}; !slices.Equal(got, want) || c.ring.Load().whole {
		t.Errorf("got %v, want %v and a fault", got, want)
	}
}

func TestExpiryOfTheFirstCertificateIsExposed(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	gone := time.Now().Add(-time.Minute).Truncate(time.Second)
	ca.pairUntil(t, gone, "a.test").save(t, dir, "a")
	log := &processLog{}
	c := testCredentials(t, dir, log)
	if got, want := exposed(c), fmt.Sprintf("not_after_seconds{listener=\"proxy\"} %d\n", gone.Unix()); !strings.HasSuffix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
	if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], "a certificate has expired") {
		t.Errorf("logged %s", lines)
	}
}

func TestCheckNamesWhatIsWrongWithTLS(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	good, other := ca.pair(t, "a.test"), ca.pair(t, "a.test")
	good.save(t, dir, "a")
	write(t, dir+"/other.key", other.key)
	write(t, dir+"/ca.crt", []byte("nothing"))
	for config, wants := range map[string][]string{
		"admin: {tls: {cert_file: DIR/a.crt, key_file: DIR/a.key}}":     nil,
		"admin: {tls: {cert_file: DIR/a.crt, key_file: DIR/none.key}}":  {"1:44: admin.tls.key_file: can't be read", "none.key"},
		"admin: {tls: {cert_file: DIR, key_file: DIR/a.key}}":           {"admin.tls.cert_file: can't be read"},
		"admin: {tls: {cert_file: /dev/zero, key_file: /dev/zero}}":     {"admin.tls.cert_file: can't be read: /dev/zero is no file"},
		"admin: {tls: {cert_file: DIR/a.crt, key_file: DIR/other.key}}": {"admin.tls.key_file: DIR/other.key does not go with cert_file DIR/a.crt"},
		"admin: {tls: {cert_file: DIR/a.key, key_file: DIR/a.key}}":     {"admin.tls.cert_file: DIR/a.key holds no certificate"},
		"admin: {tls: {}}": {"admin.tls.cert_file: is missing", "admin.tls.key_file: is missing"},
		"proxy: {tls: {}}": {"proxy.tls.certificates: is empty"},
		"proxy: {tls: {certificates: [{cert_file: DIR/a.crt}]}}":         {"proxy.tls.certificates[0].key_file: is missing"},
		"proxy: {tls: {certificates: [{cert_file: DIR/no.crt}]}}":        {"proxy.tls.certificates[0].key_file: is missing", "proxy.tls.certificates[0].cert_file: can't be read"},
		"admin: {tls: {cert_file: DIR/no.crt, key_file: DIR/no.key}}":    {"admin.tls.cert_file: can't be read", "admin.tls.key_file: can't be read"},
		"admin: {tls: {key_file: DIR/no.key}}":                           {"admin.tls.cert_file: is missing", "admin.tls.key_file: can't be read"},
		"proxy: {tls: {min_version: 1.1}}":                               {`proxy.tls.min_version: "1.1" is neither "1.2" nor "1.3"`},
		"proxy: {proxy_protocol: true}":                                  {"proxy.proxy_protocol: is true, but trusted_proxies is empty"},
		"proxy: {proxy_protocol: true, trusted_proxies: [10.0.0.0/8]}":   nil,
		"proxy: {tls: {certificates: [{cert_file: a, key_file: none}]}}": {"proxy.tls.certificates[0].cert_file: can't be read", "proxy.tls.certificates[0].key_file: can't be read"},
		"admin: {tls: {cert_file: DIR/a.crt, key_file: DIR/a.key, client_ca_file: DIR/ca.crt, min_version: 3}}": {
			"admin.tls.client_ca_file: DIR/ca.crt holds no certificate", `admin.tls.min_version: "3" is neither`,
		},
	} {
		file := filepath.Join(dir, "config.yaml")
		write(t, file, []byte(strings.ReplaceAll(config, "DIR", dir)))
		code, _, stderr := command("check", "-config", file)
		if (code == exitFine) != (wants == nil) {
			t.Errorf("%s: got %d %s", config, code, stderr)
		}
		for _, want := range wants {
			if strings.HasPrefix(want, "1:44") {
				want = fmt.Sprintf("1:%d%s", strings.Index(strings.ReplaceAll(config, "DIR", dir), "key_file: ")+len("key_file: ")+1, want[len("1:44"):])
			}
			if !strings.Contains(stderr, strings.ReplaceAll(want, "DIR", dir)) {
				t.Errorf("%s: got %s, want %s", config, stderr, want)
			}
		}
	}
}

func TestHealthAsksByTLS(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	ca.pair(t, "localhost").save(t, dir, "c")
	ca.pair(t, "ops").save(t, dir, "ops")
	write(t, dir+"/ca.pem", ca.ca())
	other := newAuthority(t)
	write(t, dir+"/other.pem", other.ca())
	other.pair(t, "ops").save(t, dir, "other")
	plain := startControl(t, "{cert_file: "+dir+"/c.crt, key_file: "+dir+"/c.key}")
	mutual := startControl(t, "{cert_file: "+dir+"/c.crt, key_file: "+dir+"/c.key, client_ca_file: "+dir+"/ca.pem}")
	file := filepath.Join(dir, "config.yaml")
	write(t, file, []byte(`admin: {listen: "`+host(plain.control)+`", tls: {cert_file: `+dir+`/c.crt, key_file: `+dir+`/c.key}}`))
	for _, c := range []struct {
		args []string
		want int
		say  string
	}{
		{[]string{"-url", plain.control + "/readyz"}, exitFine, ""}, // by a loopback address
		{[]string{"-config", file}, exitFine, ""},
		{[]string{"-url", plain.control + "/readyz", "-ca", dir + "/ca.pem"}, exitFine, ""},
		{[]string{"-url", plain.control + "/readyz", "-ca", dir + "/other.pem"}, exitFailure, "is r8limiter running there?"},
		{[]string{"-url", plain.control + "/readyz", "-ca", dir + "/none.pem"}, exitUsage, "-ca: can't be read"},
		{[]string{"-url", plain.control + "/readyz", "-ca", dir + "/other.pem", "-insecure"}, exitFine, ""},
		{[]string{"-url", mutual.control + "/readyz"}, exitFailure, "give -cert and -key"},
		{[]string{"-url", mutual.control + "/readyz", "-cert", dir + "/other.crt", "-key", dir + "/other.key"}, exitFailure, "is that of -cert one?"},
		{[]string{"-url", mutual.control + "/readyz", "-cert", dir + "/ops.crt", "-key", dir + "/ops.key"}, exitFine, ""},
		{[]string{"-url", mutual.control + "/readyz", "-cert", dir + "/ops.crt"}, exitUsage, "give both, or neither"},
		{[]string{"-url", mutual.control + "/readyz", "-cert", dir + "/no.crt", "-key", dir + "/no.key"}, exitUsage, "no.key: no such file"},
		{[]string{"-url", mutual.control + "/readyz", "-cert", dir + "/no.crt", "-key", dir + "/no.key"}, exitUsage, "-cert: can't be read"},
	} {
		if code, stdout, stderr := command(append([]string{"health"}, c.args...)...); code != c.want || !strings.Contains(stderr, c.say) {
			t.Errorf("health %v: got %d %s%s, want %d %s", c.args, code, stdout, stderr, c.want, c.say)
		}
	}
	plain.stop(t)
	mutual.stop(t)
	for name, want := range map[string]bool{"127.0.0.1": true, "::1": true, "localhost": true, "10.0.0.1": false, "localhost.test": false} {
		if got := isLoopbackHost(name); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}
