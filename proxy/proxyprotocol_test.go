package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// balancer is the address of every test's peer.
var balancer = netip.MustParseAddr("127.0.0.1")

var balancerPrefix = netip.PrefixFrom(balancer, 32)

// socketPair is the two ends of a TCP connection.
func socketPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// trusting is a proxy that trusts balancer and 10.0.0.0/8.
func trusting() *Proxy {
	p := &Proxy{proxyProtocol: true}
	p.rules.Store(&Rules{trusted: []Prefix{{balancerPrefix}, {netip.MustParsePrefix("10.0.0.0/8")}}})
	return p
}

const sig2 = "\r\n\r\n\x00\r\nQUIT\n"

// v4 and v6 are address blocks of version 2: source, destination, ports.
const (
	v4 = "\xcb\x00\x71\x09\x0a\x00\x00\x01\x30\x39\x01\xbb"
	v6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" + "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x30\x39\x01\xbb"
	m6 = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xcb\x00\x71\x09" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00\x01" + "\x30\x39\x01\xbb"
)

// header2 is a header of version 2.
func header2(command, family byte, block string) string {
	return sig2 + string([]byte{command, family, byte(len(block) >> 8), byte(len(block))}) + block
}

var (
	unixBlock = strings.Repeat("\x00", 216)
	tlvs      = "\x04\x00\x03abc" + "\x05\x00\x02id" + "\x20\x00\x05\x01\x00\x00\x00\x00"
	checksum  = "\x03\x00\x04\x00\x00\x00\x00"
)

// Every header in every chunking is read to its end, and what follows is left.
func TestProxyHeaderTellsTheClient(t *testing.T) {
	for _, c := range []struct{ what, header, want string }{
		{"version 1", "PROXY TCP4 203.0.113.9 10.0.0.1 12345 443\r\n", "203.0.113.9"},
		{"version 1, IPv6", "PROXY TCP6 2001:db8::7 2001:db8::1 12345 443\r\n", "2001:db8::7"},
		{"version 1, mapped", "PROXY TCP6 ::ffff:203.0.113.9 ::ffff:10.0.0.1 12345 443\r\n", "203.0.113.9"},
		{"version 1, longest", "PROXY TCP6 " + strings.Repeat("ffff:", 7) + "ffff " + strings.Repeat("ffff:", 7) + "ffff 65535 65535\r\n", strings.Repeat("ffff:", 7) + "ffff"},
		{"version 1, unknown", "PROXY UNKNOWN\r\n", "127.0.0.1"},
		{"version 1, unknown with addresses", "PROXY UNKNOWN 203.0.113.9 10.0.0.1 1 2\r\n", "127.0.0.1"},
		{"version 2", header2(0x21, 0x11, v4), "203.0.113.9"},
		{"version 2, IPv6", header2(0x21, 0x21, v6), "2001:db8::7"},
		{"version 2, mapped", header2(0x21, 0x21, m6), "203.0.113.9"},
		{"version 2, TLVs", header2(0x21, 0x11, v4+tlvs), "203.0.113.9"},
		{"version 2, 4 KiB of TLVs", header2(0x21, 0x21, v6+"\x04\x0f\xd9"+strings.Repeat("x", 4057)), "2001:db8::7"},
		{"version 2, checksum", header2(0x21, 0x11, v4+checksum), "203.0.113.9"},
		{"version 2, local", header2(0x20, 0x00, ""), "127.0.0.1"},
		{"version 2, local with addresses", header2(0x20, 0x11, v4), "127.0.0.1"},
		{"version 2, local with less than its family has", header2(0x20, 0x11, "\x00"), "127.0.0.1"},
		{"version 2, Unix", header2(0x21, 0x31, unixBlock), "invalid IP"},
	} {
		for _, chunk := range []int{1, 7, 1 << 20} {
			const rest = "GET / HTTP/1.1\r\n"
			client, server := socketPair(t)
			go sendInChunks(client, c.header+rest, chunk)
			conn, source, err := trusting().readProxyHeader(server, balancer)
			if err != nil || source.String() != c.want {
				t.Errorf("%s by %d: got %s, %v, want %s", c.what, chunk, source, err, c.want)
				continue
			}
			got := make([]byte, len(rest))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != rest {
				t.Errorf("%s by %d: got %q, %v behind the header", c.what, chunk, got, err)
			}
		}
	}
}

// sendInChunks writes text in segments of at most n bytes.
func sendInChunks(c net.Conn, text string, n int) {
	for len(text) > 0 {
		part := text[:min(n, len(text))]
		if _, err := io.WriteString(c, part); err != nil {
			return
		}
		text = text[len(part):]
	}
}

func TestWhatIsNoProxyHeaderIsRefused(t *testing.T) {
	for _, c := range []struct{ what, sent, want string }{
		{"a request", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "does not begin with a PROXY header"},
		{"a request that begins like one", "PROXYING / HTTP/1.1\r\n\r\n", "read PROXY header"},
		{"a POST", "POST / HTTP/1.1\r\n\r\n", "does not begin"},
		{"a TLS hello", "\x16\x03\x01\x02\x00\x01\x00", "does not begin"},
		{"nothing", "", "EOF"},
		{"half of version 1", "PROXY TCP4 203", "EOF"},
		{"half of version 2", sig2 + "\x21", "EOF"},
		{"half of a block", header2(0x21, 0x11, v4)[:20], "EOF"},
		{"a line without end", "PROXY TCP4 " + strings.Repeat("1", 200), "107 bytes"},
		{"no CR", "PROXY TCP4 203.0.113.9 10.0.0.1 1 2\n", "must end with"},
		{"another family", "PROXY TCP5 203.0.113.9 10.0.0.1 1 2\r\n", "family"},
		{"lower case", "proxy TCP4 203.0.113.9 10.0.0.1 1 2\r\n", "does not begin"},
		{"two spaces", "PROXY  TCP4 203.0.113.9 10.0.0.1 1 2\r\n", "read PROXY header"},
		{"one word more", "PROXY TCP4 203.0.113.9 10.0.0.1 1 2 3\r\n", "read PROXY header"},
		{"no address", "PROXY TCP4 203.0.113 10.0.0.1 1 2\r\n", "address"},
		{"IPv6 as TCP4", "PROXY TCP4 2001:db8::7 10.0.0.1 1 2\r\n", "address"},
		{"IPv4 as TCP6", "PROXY TCP6 203.0.113.9 10.0.0.1 1 2\r\n", "address"},
		{"a zone", "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "address"},
		{"leading zeros", "PROXY TCP4 203.000.113.009 10.0.0.1 1 2\r\n", "address"},
		{"no port", "PROXY TCP4 203.0.113.9 10.0.0.1 x 2\r\n", "port"},
		{"a port too large", "PROXY TCP4 203.0.113.9 10.0.0.1 65536 2\r\n", "port"},
		{"version 3", header2(0x31, 0x11, v4), "version"},
		{"another command", header2(0x22, 0x11, v4), "command"},
		{"no family for a client", header2(0x21, 0x00, ""), "family"},
		{"another transport", header2(0x21, 0x13, v4), "family"},
		{"a block too short", header2(0x21, 0x21, v4), "length"},
		{"a block too long", sig2 + "\x21\x11\xff\xff" + v4, "length"},
		{"a datagram", header2(0x21, 0x12, v4), "datagram"},
		{"a Unix datagram", header2(0x21, 0x32, unixBlock), "datagram"},
	} {
		client, server := socketPair(t)
		go func() {
			sendInChunks(client, c.sent, 1<<20)
			_ = client.CloseWrite()
		}()
		conn, source, err := trusting().readProxyHeader(server, balancer)
		if err == nil || conn != nil || source.IsValid() || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %s, %v, want %q", c.what, source, err, c.want)
		}
	}
}

// Who is not trusted is refused before anything is read, whatever it says.
func TestProxyHeaderOfAStrangerIsRefused(t *testing.T) {
	for _, peer := range []string{"192.0.2.1", "127.0.0.2", "::1", "11.0.0.1"} {
		_, server := socketPair(t) // and nothing is ever sent
		if _, _, err := trusting().readProxyHeader(server, netip.MustParseAddr(peer)); !errors.Is(err, errNotTrusted) {
			t.Errorf("%s: got %v", peer, err)
		}
	}
	_, server := socketPair(t)
	if _, _, err := trusting().readProxyHeader(server, netip.Addr{}); !errors.Is(err, errNotTrusted) {
		t.Errorf("no address: got %v", err)
	}
}

func TestProxyHeaderThatNeverComesIsGivenUp(t *testing.T) {
	client, server := socketPair(t)
	sendInChunks(client, "PROXY TCP4", 1<<20)
	start := time.Now()
	_, _, err := trusting().readProxyHeader(server, balancer)
	took := time.Since(start)
	if !errors.Is(err, os.ErrDeadlineExceeded) || took < proxyHeaderTimeout/2 || took > 2*proxyHeaderTimeout {
		t.Errorf("got %v after %s", err, took)
	}
}

// The deadline of the header is not that of what follows.
func TestProxyHeaderLeavesNoDeadline(t *testing.T) {
	_, server := socketPair(t)
	conn := &deadlines{Conn: server, in: strings.NewReader("PROXY UNKNOWN\r\n")}
	if _, _, err := trusting().readProxyHeader(conn, balancer); err != nil {
		t.Fatal(err)
	}
	if len(conn.set) != 2 || !conn.set[1].IsZero() {
		t.Errorf("deadlines: %v", conn.set)
	}
	if left := time.Until(conn.set[0]); left <= 0 || left > proxyHeaderTimeout {
		t.Errorf("the header may take %s", left)
	}
}

// deadlines is a connection that records its read deadlines and reads from in.
type deadlines struct {
	net.Conn
	in  io.Reader
	set []time.Time
}

func (d *deadlines) Read(p []byte) (int, error)        { return d.in.Read(p) }
func (d *deadlines) SetReadDeadline(t time.Time) error { d.set = append(d.set, t); return nil }

// A load balancer may put the header and the client's hello into one segment.
func TestTLSFollowsAProxyHeader(t *testing.T) {
	secure := httptest.NewUnstartedServer(nil)
	secure.StartTLS()
	defer secure.Close()
	client, server := socketPair(t)
	go func() {
		c := tls.Client(&joined{Conn: client, first: []byte("PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\n")}, &tls.Config{InsecureSkipVerify: true})
		_, _ = io.WriteString(c, "hello")
		_ = c.CloseWrite()
	}()
	conn, source, err := trusting().readProxyHeader(server, balancer)
	if err != nil || source.String() != "203.0.113.9" {
		t.Fatalf("got %s, %v", source, err)
	}
	secured := tls.Server(conn, &tls.Config{Certificates: secure.TLS.Certificates})
	if got, err := io.ReadAll(secured); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

// joined sends first and the first write together.
type joined struct {
	net.Conn
	first []byte
}

func (j *joined) Write(p []byte) (int, error) {
	if j.first == nil {
		return j.Conn.Write(p)
	}
	both := append(j.first, p...)
	n, err := j.Conn.Write(both)
	n -= len(j.first)
	j.first = nil
	return n, err
}

func TestConnectionBehindTheHeaderIsThePlainOne(t *testing.T) {
	client, server := socketPair(t)
	sendInChunks(client, "PROXY UNKNOWN\r\n", 1<<20)
	conn, _, err := trusting().readProxyHeader(server, balancer)
	if err != nil || conn != net.Conn(server) {
		t.Errorf("got %T, %v: nothing was read ahead, so nothing need be put before it", conn, err)
	}
}

func TestReadAheadEndsWithItsBytes(t *testing.T) {
	client, server := socketPair(t)
	in := bufio.NewReader(io.MultiReader(strings.NewReader("ahead"), server))
	if _, err := in.Peek(1); err != nil {
		t.Fatal(err)
	}
	c := &readAhead{Conn: server, rest: in}
	p := make([]byte, 100)
	for _, want := range []string{"ah", "ead"} {
		if n, err := c.Read(p[:len(want)]); err != nil || string(p[:n]) != want {
			t.Errorf("got %q, %v, want %q", p[:n], err, want)
		}
	}
	sendInChunks(client, "later", 100)
	if n, err := c.Read(p); err != nil || string(p[:n]) != "later" || c.rest != nil {
		t.Errorf("got %q, %v", p[:n], err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	if n, err := client.Read(p); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after CloseWrite: got %d, %v", n, err)
	}
}

// behindBalancer is a rig whose clients come through a load balancer at trusted.
func behindBalancer(t *testing.T, trusted string) *rig {
	t.Helper()
	up := newRecorder(t, okAnswer)
	c := DefaultConfig()
	c.ProxyProtocol = true
	c.TrustedProxies = []Prefix{{balancerPrefix}, {netip.MustParsePrefix("10.0.0.0/8")}}
	if trusted == "" {
		c.TrustedProxies = c.TrustedProxies[1:]
	}
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://" + up.addr}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api"}}
	return startRig(t, c, up, newLimiter(t, 100))
}

func TestClientOfTheHeaderIsThePeer(t *testing.T) {
	rg := behindBalancer(t, "127.0.0.1")
	for _, c := range []struct{ header, forwarded, limited string }{
		{"PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\n", "203.0.113.9", "203.0.113.9"},               // whose X-Forwarded-For is not believed
		{"PROXY TCP4 10.1.1.1 10.0.0.1 1 2\r\n", "6.6.6.6, 10.1.1.1", "6.6.6.6"},                // a proxy that is
		{header2(0x21, 0x21, v6+tlvs), "2001:db8::7", "2001:db8::/64"},                          // a network is one client
		{header2(0x21, 0x31, unixBlock), "unknown", "unknown"},                                  // no address at all
		{"PROXY UNKNOWN\r\n", "6.6.6.6, 127.0.0.1", "6.6.6.6"},                                  // the balancer itself
		{"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", "6.6.6.6, 127.0.0.1", "6.6.6.6"},             // and by name
		{"PROXY TCP6 ::ffff:203.0.113.8 ::ffff:10.0.0.1 1 2\r\n", "203.0.113.8", "203.0.113.8"}, // mapped
	} {
		conn := rg.dial(t)
		conn.send(c.header + "GET /v1/x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
		if got := conn.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("%q: got %q", c.header, got)
			continue
		}
		if got := <-rg.up.requests; !strings.Contains(got, "X-Forwarded-For: "+c.forwarded+"\r\n") {
			t.Errorf("%q: the upstream got %q, want X-Forwarded-For: %s", c.header, got, c.forwarded)
		}
		user := `"user_id":"` + c.limited + `"` // its line is written after the answer
		eventually(t, "the log holds "+user, func() bool { return strings.Contains(rg.log.String(), user) })
	}
}

func TestConnectionWithoutAHeaderIsClosed(t *testing.T) {
	for trusted, say := range map[string]string{"127.0.0.1": "does not begin with a PROXY header", "": "the peer is not in proxy.trusted_proxies"} {
		rg := behindBalancer(t, trusted)
		for range 5 {
			c := rg.dial(t)
			c.send("GET /v1/x HTTP/1.1\r\nHost: a\r\n\r\n")
			if rest, _ := io.ReadAll(c); len(rest) > 0 { // it may end by a reset
				t.Errorf("got %q", rest)
			}
		}
		rg.up.wantNothing(t)
		log := rg.log.String()
		if n := strings.Count(log, say); n < 1 || n > 2 || !strings.Contains(log, `"peer":"127.0.0.1"`) {
			t.Errorf("the log says it %d times, want once a second: %s", n, log)
		}
	}
}

func FuzzProxyHeader(f *testing.F) {
	for _, seed := range []string{"PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\n", "PROXY UNKNOWN\r\n", header2(0x21, 0x11, v4+tlvs), header2(0x20, 0, ""), header2(0x21, 0x31, unixBlock), "GET / HTTP/1.1\r\n"} {
		f.Add([]byte(seed + "rest"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(data), proxyBuffer)
		header, err := proxyHeader(in)
		if err != nil {
			return
		}
		source, err := sourceOf(header, balancer)
		if err == nil && source.Is4In6() {
			t.Errorf("%q: the address %s is not in its plain form", data, source)
		}
		rest, err := io.ReadAll(in)
		if err != nil || !bytes.HasSuffix(data, rest) {
			t.Errorf("%q: %q is left, %v", data, rest, err)
		}
		// However it comes, the meaning is the same.
		slow := bufio.NewReaderSize(&oneByOne{data}, proxyBuffer)
		again, err := proxyHeader(slow)
		if err != nil || !again.EqualsTo(header) {
			t.Errorf("%q: %v, %v byte by byte, %v at once", data, again, err, header)
		}
	})
}

// oneByOne reads a byte at a time.
type oneByOne struct{ data []byte }

func (o *oneByOne) Read(p []byte) (int, error) {
	if len(o.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:1], o.data)
	o.data = o.data[n:]
	return n, nil
}
