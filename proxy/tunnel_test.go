package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// tcpPair is the two ends of a connection.
func tcpPair(t testing.TB) (far, near *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

// tunnelEnd is how a tunnel ended.
type tunnelEnd struct {
	sent, received int64
	err            error
	took           time.Duration
}

// tunnelRig is a tunnel between client and up, near which the proxy is.
type tunnelRig struct {
	client, up         halfConn // the far ends
	nearClient, nearUp halfConn
	end                chan tunnelEnd
}

func startTunnel(t *testing.T, idle time.Duration, early, upEarly string) *tunnelRig {
	t.Helper()
	r := &tunnelRig{}
	r.client, r.nearClient = tcpPair(t)
	r.up, r.nearUp = tcpPair(t)
	r.run(t, idle, early, upEarly)
	return r
}

func (r *tunnelRig) run(t *testing.T, idle time.Duration, early, upEarly string) {
	r.end = make(chan tunnelEnd, 1)
	go func() {
		began := time.Now()
		sent, received, err := tunnel(r.nearClient, []byte(early), r.nearUp, []byte(upEarly), idle)
		r.nearClient.Close()
		r.nearUp.Close()
		r.end <- tunnelEnd{sent, received, err, time.Since(began)}
	}()
	t.Cleanup(func() { r.nearClient.Close(); r.nearUp.Close() })
}

// wait gives the tunnel 3 s to end.
func (r *tunnelRig) wait(t *testing.T) tunnelEnd {
	t.Helper()
	select {
	case end := <-r.end:
		return end
	case <-time.After(3 * time.Second):
		t.Fatal("the tunnel did not end in 3 s")
		return tunnelEnd{}
	}
}

// wantRead reads exactly want from c.
func wantRead(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	if n, err := io.ReadFull(c, got); string(got) != want || err != nil {
		t.Fatalf("got %.40q (%d bytes), %v; want %.40q (%d bytes)", got[:n], n, err, want, len(want))
	}
}

// wantEOF reads the end of c.
func wantEOF(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("got %d bytes, %v; want the end", n, err)
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Error(err)
	}
}

func TestTunnelCarriesFramesBothWays(t *testing.T) {
	r := startTunnel(t, time.Minute, "from client ", "from upstream ")
	wantRead(t, r.up, "from client ")
	wantRead(t, r.client, "from upstream ")
	frame := make([]byte, 1<<20)
	_, _ = rand.Read(frame)
	for range 3 {
		go write(t, r.client, string(frame))
		got := make([]byte, len(frame))
		go func() { _, _ = io.CopyN(r.up, r.up, int64(len(frame))) }()
		_ = r.client.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(r.client, got); !bytes.Equal(got, frame) || err != nil {
			t.Fatalf("the frame did not come back: %v", err)
		}
	}
	r.client.Close()
	wantEOF(t, r.up)
	r.up.Close()
	const frames = 3 << 20
	if end := r.wait(t); end.sent != frames+12 || end.received != frames+14 || end.err != nil {
		t.Errorf("got %+v, want %d and %d bytes, no error", end, frames+12, frames+14)
	}
}

func TestTunnelEndsOneWayAndThenTheOther(t *testing.T) {
	for name, sides := range map[string]func(r *tunnelRig) (first, second halfConn){
		"client first":   func(r *tunnelRig) (halfConn, halfConn) { return r.client, r.up },
		"upstream first": func(r *tunnelRig) (halfConn, halfConn) { return r.up, r.client },
	} {
		r := startTunnel(t, time.Minute, "", "")
		first, second := sides(r)
		write(t, first, "last words")
		if err := first.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantRead(t, second, "last words")
		wantEOF(t, second)
		go write(t, second, strings.Repeat("answer", 50_000)) // the other way is open
		wantRead(t, first, strings.Repeat("answer", 50_000))
		if err := second.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEOF(t, first)
		if end := r.wait(t); end.err != nil || end.sent+end.received != 300_010 {
			t.Errorf("%s: got %+v, want 300010 bytes and no error", name, end)
		}
	}
}

func TestTunnelEndsWhenIdle(t *testing.T) {
	const idle = 200 * time.Millisecond
	for name, open := range map[string]bool{"both ways open": true, "one way": false} {
		r := startTunnel(t, idle, "", "")
		if !open {
			_ = r.client.CloseWrite()
		}
		end := r.wait(t)
		if !errors.Is(end.err, errTunnelIdle) || end.took < idle || end.took > 3*idle {
			t.Errorf("%s: got %+v, want the idle time-out after %v", name, end, idle)
		}
		wantEOF(t, r.client)
	}
}

// The time-out is one over both directions, and any byte moves it.
func TestTrafficOneWayKeepsATunnelOpen(t *testing.T) {
	const idle = 200 * time.Millisecond
	for name, from := range map[string]func(r *tunnelRig) net.Conn{
		"from the client":   func(r *tunnelRig) net.Conn { return r.client },
		"from the upstream": func(r *tunnelRig) net.Conn { return r.up },
	} {
		r := startTunnel(t, idle, "", "")
		for range 8 {
			time.Sleep(idle / 2) // the case itself: a quiet tunnel
			write(t, from(r), ".")
		}
		end := r.wait(t)
		if !errors.Is(end.err, errTunnelIdle) || end.sent+end.received != 8 || end.took < 5*idle {
			t.Errorf("%s: got %+v, want 8 bytes and the idle time-out after %v", name, end, 5*idle)
		}
	}
}

func TestTunnelToAPeerThatTakesNothingEndsWhenIdle(t *testing.T) {
	r := startTunnel(t, 200*time.Millisecond, "", "")
	go func() { _, _ = io.Copy(r.client, zeros{}) }() // up never reads
	if end := r.wait(t); !errors.Is(end.err, errTunnelIdle) || end.sent == 0 {
		t.Errorf("got %+v, want the idle time-out", end)
	}
}

func TestResetEndsBothWays(t *testing.T) {
	for name, sides := range map[string]func(r *tunnelRig) (reset, other halfConn){
		"client":   func(r *tunnelRig) (halfConn, halfConn) { return r.client, r.up },
		"upstream": func(r *tunnelRig) (halfConn, halfConn) { return r.up, r.client },
	} {
		r := startTunnel(t, time.Minute, "", "")
		reset, other := sides(r)
		write(t, other, "a byte that shows the tunnel is up")
		wantRead(t, reset, "a byte that shows the tunnel is up")
		_ = reset.(*net.TCPConn).SetLinger(0)
		reset.Close()
		if end := r.wait(t); end.err == nil || !strings.HasPrefix(end.err.Error(), "tunnel from the "+name) {
			t.Errorf("got %+v, want an error from the %s", end, name)
		}
		wantEOF(t, other)
	}
}

// That is how the end of a drain stops tunnels.
func TestClosingEitherConnectionEndsATunnel(t *testing.T) {
	for name, side := range map[string]func(r *tunnelRig) net.Conn{
		"client":   func(r *tunnelRig) net.Conn { return r.nearClient },
		"upstream": func(r *tunnelRig) net.Conn { return r.nearUp },
	} {
		r := startTunnel(t, time.Minute, "early", "")
		wantRead(t, r.up, "early")
		side(r).Close()
		if end := r.wait(t); !errors.Is(end.err, net.ErrClosed) || end.sent != 5 {
			t.Errorf("%s: got %+v, want %v and 5 bytes", name, end, net.ErrClosed)
		}
		wantEOF(t, r.up)
		wantEOF(t, r.client)
	}
}

// selfSigned is a certificate that nobody verifies.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{signed}, PrivateKey: key}
}

// Half-close over TLS is an alert, and the time-out needs no deadline that
// would spoil the connection.
func TestTunnelOverTLS(t *testing.T) {
	r := &tunnelRig{}
	far, near := tcpPair(t)
	server := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
	client := tls.Client(far, &tls.Config{InsecureSkipVerify: true})
	r.client, r.nearClient = client, server
	r.up, r.nearUp = tcpPair(t)
	r.run(t, time.Minute, "", "")
	write(t, client, "hello")
	wantRead(t, r.up, "hello")
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEOF(t, r.up)
	go write(t, r.up, strings.Repeat("x", 1<<20))
	wantRead(t, client, strings.Repeat("x", 1<<20))
	_ = r.up.CloseWrite()
	wantEOF(t, client)
	if end := r.wait(t); end.err != nil || end.sent != 5 || end.received != 1<<20 {
		t.Errorf("got %+v", end)
	}
}

// A whole upgrade: do, the tunnel, and the place in the pool afterwards.
func TestTunnelThroughAnUpstream(t *testing.T) {
	s := startRaw(t, func(p *peer) {
		p.takeHead()
		p.send(switching + "welcome ")
		_, _ = io.Copy(p, p.r)
	})
	u := upstreamTo(t, s.target())
	var in incoming
	mustDo(t, u, &outgoing{head: []byte(upgradeHead), upgrade: true}, &in, 101)
	conn, upEarly, err := in.tunnel()
	if err != nil {
		t.Fatal(err)
	}
	r := &tunnelRig{nearUp: conn}
	r.client, r.nearClient = tcpPair(t)
	r.run(t, time.Minute, "pipelined ", string(upEarly))
	write(t, r.client, "echo")
	_ = r.client.CloseWrite()
	if got, err := io.ReadAll(r.client); string(got) != "welcome pipelined echo" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if end := r.wait(t); end.err != nil || end.sent != 14 || end.received != 22 || u.openConns() != 0 {
		t.Errorf("got %+v, %d connections open", end, u.openConns())
	}
}
