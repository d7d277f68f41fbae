package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
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
