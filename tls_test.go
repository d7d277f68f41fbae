package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

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
		"proxy: {tls: {min_version: 1.1}}":                               {`proxy.tls.min_version: "1.1" is none of 1.2, 1.3`},
		"proxy: {proxy_protocol: true}":                                  {"proxy.proxy_protocol: is true, but trusted_proxies is empty"},
		"proxy: {proxy_protocol: true, trusted_proxies: [10.0.0.0/8]}":   nil,
		"proxy: {tls: {certificates: [{cert_file: a, key_file: none}]}}": {"proxy.tls.certificates[0].cert_file: can't be read", "proxy.tls.certificates[0].key_file: can't be read"},
		"admin: {tls: {cert_file: DIR/a.crt, key_file: DIR/a.key, client_ca_file: DIR/ca.crt, min_version: 3}}": {
			"admin.tls.client_ca_file: DIR/ca.crt holds no certificate", `admin.tls.min_version: "3" is none of 1.2, 1.3`,
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
