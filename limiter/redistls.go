package limiter

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
)

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
