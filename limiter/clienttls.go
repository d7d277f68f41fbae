package limiter

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
)

// ClientTLS says how TLS to a server, as Redis or an upstream's target, is done:
// version 1.2 or later, and the server's certificate is always verified. Its files are
// PEM, read at the start alone; relative paths begin at the working directory. The zero
// value trusts the system's authorities and shows no certificate.
type ClientTLS struct {
	// CAFile holds the authorities that may sign the servers' certificates, in
	// place of the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile is the certificate that the gateway shows, intermediates after it;
	// with KeyFile, or neither.
	CertFile string `yaml:"cert_file"`
	// KeyFile is its private key.
	KeyFile string `yaml:"key_file"`
	// ServerName is the name in the servers' certificates; "" for the host by
	// which each of them is dialed. Replicas and the nodes of a cluster are
	// often dialed by address: their certificates must then hold it.
	ServerName string `yaml:"server_name"`
}

// system is c without the files.
func (c *ClientTLS) system() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
}

// Read is c with the files. It reports what can't be used by its path inside
// the tls block.
func (c *ClientTLS) Read(report func(path, problem string)) *tls.Config {
	config := c.system()
	if c.CAFile != "" {
		_, roots, err := ReadCertificates(c.CAFile)
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
func (c *ClientTLS) readPair(config *tls.Config, report func(path, problem string)) {
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

func (c *ClientTLS) readCertificate() ([]byte, error) {
	if c.CertFile == "" {
		return nil, errMissing("certificate of key_file")
	}
	data, _, err := ReadCertificates(c.CertFile)
	return data, err
}

func (c *ClientTLS) readKey() ([]byte, error) {
	if c.KeyFile == "" {
		return nil, errMissing("private key of cert_file")
	}
	data, err := ReadSmallFile(c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("can't be read: %w", err)
	}
	return data, nil
}

// ReadCertificates reads a PEM file of one certificate or more, for who shows them
// and for who believes them. The error names the file.
func ReadCertificates(file string) (pemBytes []byte, pool *x509.CertPool, err error) {
	pemBytes, err = ReadSmallFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("can't be read: %w", err)
	}
	pool, err = parseCertificates(file, pemBytes)
	return pemBytes, pool, err
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

// maxSmallFile bounds what ReadSmallFile reads, in bytes.
const maxSmallFile = 1 << 20

// ReadSmallFile reads a file of up to a MiB. A device or pipe, which may never
// end, is refused. The error names the file.
func ReadSmallFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSmallFile {
		return nil, fmt.Errorf("%s is no file of at most 1 MiB", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSmallFile))
}
