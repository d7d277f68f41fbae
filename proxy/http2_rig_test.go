package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Certificate makes a certificate for 127.0.0.1 and what trusts it.
func h2Certificate(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(c)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: roots}
}

// h2Rig is a proxy behind TLS in front of a scripted upstream.
type h2Rig struct {
	*rig
	raw    *rawServer
	client *tls.Config
}

func newH2Rig(t *testing.T, capacity int64, script func(p *peer), more func(c *Config)) *h2Rig {
	t.Helper()
	up := startRaw(t, script)
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{up.target()}}}
	c.Routes = []RouteConfig{
		{Name: "blocked", Match: MatchConfig{Path: []string{"/internal/*"}}, Action: "block"},
		{Name: "all", Upstream: "api", UserID: []Template{template(t, "{header.X-User-Id}")}},
	}
	if more != nil {
		more(&c)
	}
	server, client := h2Certificate(t)
	return &h2Rig{startRigOver(t, c, nil, Options{Limiter: newLimiter(t, capacity), TLS: server}), up, client}
}

// transport is a client that pools its connections, as programs do.
func (rg *h2Rig) transport(t *testing.T) *http.Client {
	t.Helper()
	tr := &http2.Transport{TLSClientConfig: rg.client.Clone(), DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

// h2Client writes and reads frames.
type h2Client struct {
	t *testing.T
	*tls.Conn
	*http2.Framer
	block  bytes.Buffer
	encode *hpack.Encoder
}

// dialTLS speaks the protocol that the server chooses of these.
func (rg *h2Rig) dialTLS(t *testing.T, protocols ...string) *tls.Conn {
	t.Helper()
	config := rg.client.Clone()
	config.NextProtos = protocols
	c, err := tls.Dial("tcp", rg.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func (rg *h2Rig) dialH2(t *testing.T, settings ...http2.Setting) *h2Client {
	t.Helper()
	conn := rg.dialTLS(t, "h2")
	if got := conn.ConnectionState().NegotiatedProtocol; got != "h2" {
		t.Fatalf("got protocol %q, want h2", got)
	}
	c := &h2Client{t: t, Conn: conn, Framer: http2.NewFramer(conn, conn)}
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.encode = hpack.NewEncoder(&c.block)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	c.must(c.WriteSettings(settings...))
	return c
}

func (c *h2Client) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// fields encodes pairs, first :method, :scheme, :authority and :path unless
// the pairs begin with a pseudo field themselves.
func (c *h2Client) fields(method, path string, pairs ...string) []byte {
	c.block.Reset()
	if len(pairs) == 0 || pairs[0][0] != ':' {
		pairs = append([]string{":method", method, ":scheme", "https", ":authority", "a.test", ":path", path}, pairs...)
	}
	for i := 0; i < len(pairs); i += 2 {
		c.must(c.encode.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}))
	}
	return c.block.Bytes()
}

// get sends a request without a body.
func (c *h2Client) get(id uint32, method, path string, pairs ...string) {
	c.t.Helper()
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.fields(method, path, pairs...), EndStream: true, EndHeaders: true}))
}

// post sends a request whose body is to come.
func (c *h2Client) post(id uint32, path string, pairs ...string) {
	c.t.Helper()
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.fields("POST", path, pairs...), EndHeaders: true}))
}

// next reads a frame that is about a stream, or GOAWAY; in words.
func (c *h2Client) next() string {
	c.t.Helper()
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return "end: " + err.Error()
		}
		end := ""
		if f.Header().Flags.Has(http2.FlagDataEndStream) {
			end = " END"
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			var text strings.Builder
			for _, each := range f.Fields {
				fmt.Fprintf(&text, " %s=%s", strings.TrimPrefix(each.Name, ":"), each.Value)
			}
			return "HEADERS" + text.String() + end
		case *http2.DataFrame:
			return fmt.Sprintf("DATA %q", f.Data()) + end
		case *http2.RSTStreamFrame:
			return "RST " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			return "GOAWAY " + f.ErrCode.String()
		}
	}
}

// status reads the next head; an error is told as next does.
func (c *h2Client) status() string {
	c.t.Helper()
	for {
		text := c.next()
		if rest, ok := strings.CutPrefix(text, "HEADERS status="); ok {
			status, _, _ := strings.Cut(rest, " ")
			return status
		}
		if !strings.HasPrefix(text, "DATA") && text != "RST NO_ERROR" && text != "GOAWAY NO_ERROR" {
			return text
		}
	}
}

// ended reads until the connection ends, and says which errors GOAWAY named.
func (c *h2Client) ended() (codes []http2.ErrCode) {
	c.t.Helper()
	for {
		f, err := c.ReadFrame()
		if err != nil {
			if timed, ok := errors.AsType[net.Error](err); ok && timed.Timeout() {
				c.t.Fatal("the connection is still open")
			}
			return codes
		}
		if f, ok := f.(*http2.GoAwayFrame); ok {
			codes = append(codes, f.ErrCode)
		}
	}
}
