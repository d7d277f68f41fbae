package limiter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
)

// RedisTLSConfig says how TLS to Redis is done: version 1.2 or later, and the
// server's certificate is always verified. Its files are PEM, read at the start
// alone; relative paths begin at the working directory. The zero value trusts
// the system's authorities and shows no certificate.
type RedisTLSConfig struct {
	// CAFile holds the authorities that may sign the servers' certificates, in
	// place of the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile, with intermediates after it, and KeyFile are the certificate
	// that the gateway shows; both or neither.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ServerName is the name in the servers' certificates; "" for the host by
	// which each of them is dialed. Replicas and the nodes of a cluster are
	// often dialed by address: their certificates must then hold it.
	ServerName string `yaml:"server_name"`
}

// system is c without the files.
func (c *RedisTLSConfig) system() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
}

// Read is c with the files. It reports what can't be used by its path inside
// the tls block.
func (c *RedisTLSConfig) Read(report func(path, problem string)) *tls.Config {
	config := c.system()
	if c.CAFile != "" {
		roots, err := readAuthorities(c.CAFile)
		if err != nil {
			report("ca_file", err.Error())
		}
		config.RootCAs = roots
	}
	if c.CertFile != "" || c.KeyFile != "" {
		c.readPair(config, report)
	}
	return config
}

// errMissing is of a file that has no name.
func errMissing(what string) error {
	return fmt.Errorf("is missing: give the %s, or leave both out", what)
}

// readPair adds the certificate to show.
func (c *RedisTLSConfig) readPair(config *tls.Config, report func(path, problem string)) {
	certificate, err := c.readCertificate()
	if err != nil {
		report("cert_file", err.Error())
	}
	key, keyErr := c.readKey()
	if keyErr != nil {
		report("key_file", keyErr.Error())
	}
	if err != nil || keyErr != nil {
		return
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		report("key_file", fmt.Sprintf("%s does not go with cert_file: %v; give its private key, in PEM without a pass phrase", c.KeyFile, err))
		return
	}
	config.Certificates = []tls.Certificate{pair}
}

func (c *RedisTLSConfig) readCertificate() ([]byte, error) {
	if c.CertFile == "" {
		return nil, errMissing("certificate of key_file")
	}
	data, err := readPEM(c.CertFile)
	if err == nil {
		_, err = parseCertificates(c.CertFile, data)
	}
	return data, err
}

func (c *RedisTLSConfig) readKey() ([]byte, error) {
	if c.KeyFile == "" {
		return nil, errMissing("private key of cert_file")
	}
	return readPEM(c.KeyFile)
}

// readAuthorities reads a PEM file of one certificate or more.
func readAuthorities(file string) (*x509.CertPool, error) {
	data, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	return parseCertificates(file, data)
}

// readPEM reads a file of up to a MiB. A device or pipe, which may never end,
// is refused. The error names the file.
func readPEM(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("can't be read: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > 1<<20 {
		return nil, fmt.Errorf("can't be read: %s is no file of at most 1 MiB", file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("can't be read: %w", err)
	}
	return data, nil
}

// parseCertificates reads the PEM in data; errors name its file.
// x509.CertPool's own would pass over a certificate that it can't read.
func parseCertificates(file string, data []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s holds a certificate that can't be read: %w", file, err)
		}
		pool.AddCert(certificate)
		n++
	}
	if n == 0 {
		return nil, fmt.Errorf("%s holds no certificate: it must be PEM, with -----BEGIN CERTIFICATE-----", file)
	}
	return pool, nil
}

// tlsDialer connects and shakes hands within the dialer's time-out and ctx.
// go-redis' own dialer forgets ctx where there is TLS.
type tlsDialer struct {
	net    *net.Dialer
	config *tls.Config
}

func (d tlsDialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	asked := false
	config := d.config.Clone()
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		if len(config.Certificates) == 0 {
			return new(tls.Certificate), nil // for the server may do without
		}
		return &config.Certificates[0], nil
	}
	conn, err := (&tls.Dialer{NetDialer: d.net, Config: config}).DialContext(ctx, network, addr)
	if err != nil || !asked {
		return conn, err
	}
	return &askedConn{Conn: conn}, nil
}

// errAsked stands beside the error that it explains: go-redis unwraps the error
// of a connection that it begins, once, and this it can't.
var errAsked = errors.New("the server asked for a certificate: tls.cert_file must hold one of an authority that it trusts")

// askedConn is a connection whose server asked for the gateway's certificate.
// With TLS 1.3 a server that doesn't like it says so after the handshake, and
// what it says is often lost: a bare reset would leave an operator guessing.
type askedConn struct {
	net.Conn
	heard atomic.Bool // the server has answered something
}

func (c *askedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(true)
	}
	return n, c.explain(err)
}

func (c *askedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.explain(err)
}

func (c *askedConn) explain(err error) error {
	if err == nil || c.heard.Load() {
		return err
	}
	return fmt.Errorf("%w: %w", err, errAsked)
}
