package limiter

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
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

// read is c with the files. It reports what can't be used by its path inside
// the tls block.
func (c *RedisTLSConfig) read(report func(path, problem string)) *tls.Config {
	config := c.system()
	if c.CAFile != "" {
		roots, err := readCertificates(c.CAFile)
		if err != nil {
			report("ca_file", err.Error())
		}
		config.RootCAs = roots
	}
	switch {
	case c.CertFile != "" && c.KeyFile != "":
		c.readPair(config, report)
	case c.CertFile != "":
		report("key_file", "is missing: give the private key of cert_file, or leave both out")
	case c.KeyFile != "":
		report("cert_file", "is missing: give the certificate of key_file, or leave both out")
	}
	return config
}

// readPair adds the certificate to show.
func (c *RedisTLSConfig) readPair(config *tls.Config, report func(path, problem string)) {
	if _, err := readCertificates(c.CertFile); err != nil {
		report("cert_file", err.Error())
		return
	}
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		report("key_file", fmt.Sprintf("%s can't be used with cert_file: %v; give its private key, in PEM without a pass phrase", c.KeyFile, err))
		return
	}
	config.Certificates = []tls.Certificate{pair}
}

// readCertificates reads a PEM file of one certificate or more. The error names
// the file. x509.CertPool would pass over a certificate that it can't read.
func readCertificates(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("can't be read: %w", err)
	}
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
