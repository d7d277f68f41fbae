package proxy

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
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// testAuthority signs certificates for tests.
type testAuthority struct {
	dir  string
	file string // its own certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// pairFiles are a certificate and its key.
type pairFiles struct{ cert, key string }

func newAuthority(t *testing.T) *testAuthority {
	t.Helper()
	a := &testAuthority{dir: t.TempDir()}
	a.file = a.issue(t, "authority", func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	}).cert
	return a
}

// issue makes a certificate for 127.0.0.1 and name.test, as change makes it.
func (a *testAuthority) issue(t *testing.T, name string, change ...func(c *x509.Certificate)) pairFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name + ".test"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	for _, f := range change {
		f(c)
	}
	if a.cert == nil {
		a.cert, a.key = c, key
	}
	signed, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if c == a.cert {
		if a.cert, err = x509.ParseCertificate(signed); err != nil {
			t.Fatal(err)
		}
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := pairFiles{filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")}
	for file, block := range map[string]*pem.Block{files.cert: {Type: "CERTIFICATE", Bytes: signed}, files.key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// listen is a TLS listener that shows a certificate.
func (a *testAuthority) listen(t *testing.T, files pairFiles, change ...func(c *tls.Config)) net.Listener {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files.cert, files.key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}}
	for _, f := range change {
		f(config)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return tls.NewListener(l, config)
}

// upstream is one that trusts a, to s.
func (a *testAuthority) upstream(t *testing.T, s *rawServer) *upstream {
	t.Helper()
	return secureUpstream(t, s, &UpstreamTLSConfig{CAFile: a.file})
}

func secureUpstream(t *testing.T, s *rawServer, c *UpstreamTLSConfig) *upstream {
	t.Helper()
	u, err := newUpstream(upstreamOptions{
		name: "api", urls: []string{"https://" + s.listener.Addr().String()}, tls: c, connectTimeout: 2 * time.Second,
		responseTimeout: 5 * time.Second, idleTimeout: 5 * time.Second, maxConns: 8,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.close)
	return u
}

// With TLS 1.3 session tickets come before the first answer; with 1.2 in the handshake.
func TestSecureConnectionsAreUsedAgain(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		a := newAuthority(t)
		s := serveRaw(t, a.listen(t, a.issue(t, "server"), func(c *tls.Config) { c.MaxVersion = version }), always(answerOK))
		u := a.upstream(t, s)
		for range 5 {
			mustAnswer(t, u, "ok")
		}
		if s.connections() != 1 || u.openConns() != 1 || u.idleConns() != 1 {
			t.Errorf("%s: got %d connections, %d open, %d idle; want 1", tls.VersionName(version), s.connections(), u.openConns(), u.idleConns())
		}
	}
}

// A server that asked for a certificate sends its tickets after the handshake.
func TestUnreadSessionTicketsLeaveAConnectionQuiet(t *testing.T) {
	a := newAuthority(t)
	asks := func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }
	s := serveRaw(t, a.listen(t, a.issue(t, "server"), asks), func(p *peer) {
		_ = p.Conn.(*tls.Conn).Handshake()
		p.ended()
	})
	c, err := a.upstream(t, s).targets[0].connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	eventually(t, "a ticket lies in the socket", func() bool {
		return c.raw.Control(c.peek) == nil && c.peekErr == nil && c.peekN > 0
	})
	for range 3 {
		if !c.isQuiet() {
			t.Error("the connection can't be used for a session ticket")
		}
	}
	if c.raw.Control(c.peek); c.peekErr == nil {
		t.Error("the ticket was not taken in")
	}
}

func TestSecureConnectionThatTheUpstreamClosedIsNotUsed(t *testing.T) {
	a := newAuthority(t)
	closed := make(chan bool)
	for name, end := range map[string]func(c *tls.Conn) error{
		"with a word": (*tls.Conn).Close,
		"only a word": (*tls.Conn).CloseWrite, // the TCP connection stays
		"without":     func(c *tls.Conn) error { return c.NetConn().Close() },
	} {
		s := serveRaw(t, a.listen(t, a.issue(t, "server")), func(p *peer) {
			if _, ok := p.take(); !ok {
				return
			}
			p.send(answerOK)
			_ = end(p.Conn.(*tls.Conn))
			closed <- true
			p.ended()
		})
		u := a.upstream(t, s)
		for range 3 {
			status, _, err := roundTrip(u, &outgoing{head: []byte(postHead)})
			if status != 200 || err != nil {
				t.Errorf("%s: got %d, %v", name, status, err)
			}
			<-closed
		}
		if len(s.recorded()) != 3 || s.connections() != 3 {
			t.Errorf("%s: got %d requests over %d connections, want 3 over 3", name, len(s.recorded()), s.connections())
		}
	}
}

// corked keeps what is written until it is flushed.
type corked struct {
	net.Conn
	mu   sync.Mutex
	held *bytes.Buffer
}

func (c *corked) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		return c.Conn.Write(p)
	}
	return c.held.Write(p)
}

// The TLS layer reads ahead: what came along with the answer is in no socket.
func TestSecureExtraBytesAreNobodysAnswer(t *testing.T) {
	a := newAuthority(t)
	pair := a.issue(t, "server")
	certificate, err := tls.LoadX509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	s := startRaw(t, func(p *peer) {
		below := &corked{Conn: p.Conn}
		secure := tls.Server(below, &tls.Config{Certificates: []tls.Certificate{certificate}})
		buf := make([]byte, 4096)
		if _, err := secure.Read(buf); err != nil {
			return
		}
		below.held = new(bytes.Buffer)
		_, _ = io.WriteString(secure, answerOK)
		_, _ = io.WriteString(secure, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
		_, _ = below.Conn.Write(below.held.Bytes())
		p.ended()
	})
	u := a.upstream(t, s)
	for n := 1; n <= 3; n++ {
		mustAnswer(t, u, "ok")
		if s.connections() != n {
			t.Errorf("%d requests went over %d connections, want one each", n, s.connections())
		}
	}
}

func TestCertificatesThatDoNotFitAreToldAndNothingIsSent(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	fine := a.issue(t, "server")
	expired := a.issue(t, "expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	other := a.issue(t, "other", func(c *x509.Certificate) { c.IPAddresses = nil })
	client := a.issue(t, "client")
	asks := func(c *tls.Config) {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		c.ClientCAs.AddCert(a.cert)
	}
	old := func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11; c.MinVersion = tls.VersionTLS10 }
	strange := func(c *tls.Config) { c.NextProtos = []string{"imap"} }
	for _, tt := range []struct {
		name   string
		shown  pairFiles
		server func(c *tls.Config)
		config UpstreamTLSConfig
		want   string // "" for 200
	}{
		{"good", fine, nil, UpstreamTLSConfig{CAFile: a.file}, ""},
		{"good by name", other, nil, UpstreamTLSConfig{CAFile: a.file, ServerName: "other.test"}, ""},
		{"client certificate", fine, asks, UpstreamTLSConfig{CAFile: a.file, CertFile: client.cert, KeyFile: client.key}, ""},
		{"system's authorities", fine, nil, UpstreamTLSConfig{}, "certificate signed by unknown authority"},
		{"other authority", fine, nil, UpstreamTLSConfig{CAFile: stranger.file}, "certificate signed by unknown authority"},
		{"expired", expired, nil, UpstreamTLSConfig{CAFile: a.file}, "certificate has expired"},
		{"no address in it", other, nil, UpstreamTLSConfig{CAFile: a.file}, "cannot validate certificate for 127.0.0.1"},
		{"other name", fine, nil, UpstreamTLSConfig{CAFile: a.file, ServerName: "other.test"}, "not other.test"},
		{"TLS 1.1", fine, old, UpstreamTLSConfig{CAFile: a.file}, "protocol version"},
		{"another protocol", fine, strange, UpstreamTLSConfig{CAFile: a.file}, "no application protocol"},
		{"no client certificate", fine, asks, UpstreamTLSConfig{CAFile: a.file}, "certificate required"},
		{"no client certificate, TLS 1.2", fine, func(c *tls.Config) { asks(c); c.MaxVersion = tls.VersionTLS12 }, UpstreamTLSConfig{CAFile: a.file}, "tls: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var change []func(c *tls.Config)
			if tt.server != nil {
				change = append(change, tt.server)
			}
			s := serveRaw(t, a.listen(t, tt.shown, change...), always(answerOK))
			u := secureUpstream(t, s, &tt.config)
			u.retries = 1
			if tt.want == "" {
				mustAnswer(t, u, "ok")
				return
			}
			_, _, err := roundTrip(u, &outgoing{head: []byte(getHead), idempotent: true})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if f := faultOf(err); (f == faultConnect || f == faultCertificate) && !strings.Contains(err.Error(), u.urls[0]) {
				t.Errorf("got %v, want the target named", err)
			}
			if len(s.recorded()) != 0 || u.openConns() != 0 {
				t.Errorf("%d requests were sent, %d connections are open", len(s.recorded()), u.openConns())
			}
		})
	}
}

func TestPlainServerBehindHTTPSIsTold(t *testing.T) {
	s := startRaw(t, func(p *peer) { p.send("HTTP/1.1 400 Bad Request\r\n\r\n"); p.ended() })
	_, _, err := roundTrip(secureUpstream(t, s, nil), &outgoing{head: []byte(getHead)})
	wantFault(t, err, faultConnect)
	if !strings.Contains(err.Error(), "does not look like a TLS handshake") {
		t.Errorf("got %v", err)
	}
}

func TestHandshakeIsWithinTheConnectTimeout(t *testing.T) {
	s := startRaw(t, (*peer).ended)
	u := secureUpstream(t, s, nil)
	u.connectTimeout = 200 * time.Millisecond
	u.retries = 1
	start := time.Now()
	_, _, err := roundTrip(u, &outgoing{head: []byte(getHead), idempotent: true})
	wantFault(t, err, faultTimeout)
	if took := time.Since(start); took < 200*time.Millisecond || took > 400*time.Millisecond {
		t.Errorf("it took %v, want 200ms", took)
	}
}

// A write that is cut short spoils a TLS connection, so no old deadline may do it.
func TestOldDeadlinesDoNotSpoilSecureConnections(t *testing.T) {
	a := newAuthority(t)
	s := serveRaw(t, a.listen(t, a.issue(t, "server")), always(answerOK))
	u := a.upstream(t, s)
	u.idleTimeout, u.responseTimeout = 50*time.Millisecond, 50*time.Millisecond
	for range 3 {
		mustAnswer(t, u, "ok")
		time.Sleep(60 * time.Millisecond) // the deadlines pass while the connection is idle
	}
	if s.connections() != 1 {
		t.Errorf("got %d connections, want 1", s.connections())
	}
}

func TestSecureBodiesAndTimeouts(t *testing.T) {
	a := newAuthority(t)
	data := strings.Repeat("0123456789abcdef", 50_000)
	s := serveRaw(t, a.listen(t, a.issue(t, "server")), func(p *peer) {
		for {
			raw, ok := p.take()
			if !ok {
				return
			}
			if strings.HasPrefix(raw, "GET /stall ") {
				p.ended()
			}
			p.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(data), data))
		}
	})
	u := a.upstream(t, s)
	head := fmt.Sprintf("POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n", len(data))
	status, body, err := roundTrip(u, &outgoing{head: []byte(head), body: strings.NewReader(data), bodyLen: int64(len(data))})
	if status != 200 || body != data || err != nil || s.recorded()[0] != head+data {
		t.Errorf("got %d, %d bytes, %v", status, len(body), err)
	}
	u.responseTimeout = 100 * time.Millisecond
	_, _, err = roundTrip(u, &outgoing{head: []byte("GET /stall HTTP/1.1\r\n\r\n"), idempotent: true})
	wantFault(t, err, faultTimeout)
	if s.connections() != 1 {
		t.Errorf("got %d connections, want 1", s.connections())
	}
}

func TestSecureUploadToAnUpstreamThatClosesEndsSoon(t *testing.T) {
	a := newAuthority(t)
	s := serveRaw(t, a.listen(t, a.issue(t, "server")), func(p *peer) {
		_, _ = p.r.Peek(1)
		p.send("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
	})
	u := a.upstream(t, s)
	out := &outgoing{head: []byte("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), body: zeros{}, bodyLen: -1}
	status, _, err := roundTrip(u, out)
	if err == nil && status != 413 || err != nil && faultOf(err) != faultClosed {
		t.Errorf("got %d, %v", status, err)
	}
	if u.openConns() != 0 {
		t.Errorf("%d connections are open", u.openConns())
	}
}

func TestSecurePooledRequestAllocatesLittle(t *testing.T) {
	a := newAuthority(t)
	raw := []byte(answerOK)
	s := serveRaw(t, a.listen(t, a.issue(t, "server")), func(p *peer) {
		buf := make([]byte, 4096)
		for {
			if _, err := p.Conn.Read(buf); err != nil {
				return
			}
			if _, err := p.Conn.Write(raw); err != nil {
				return
			}
		}
	})
	u := a.upstream(t, s)
	out, in := &outgoing{head: []byte(getHead)}, new(incoming)
	allocs := testing.AllocsPerRun(200, func() {
		if err := exchangeInto(u, out, in); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 8 { // both ends' TLS together
		t.Errorf("got %v allocations a request, want few", allocs)
	}
	if s.connections() != 1 {
		t.Errorf("got %d connections, want 1", s.connections())
	}
}
