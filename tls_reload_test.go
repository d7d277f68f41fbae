package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// The files of a certificate are replaced in every way that is in use while
// clients keep connecting.
func TestCertificateFollowsItsFiles(t *testing.T) {
	for name, replace := range map[string]func(t *testing.T, dir string, p pairPEM){
		"in place": func(t *testing.T, dir string, p pairPEM) { p.save(t, dir, "a") },
		"rename": func(t *testing.T, dir string, p pairPEM) {
			p.save(t, dir, "new")
			for _, end := range []string{".crt", ".key"} {
				rename(t, dir+"/new"+end, dir+"/a"+end)
			}
		},
		"removed and made again": func(t *testing.T, dir string, p pairPEM) {
			remove(t, dir+"/a.crt", dir+"/a.key")
			p.save(t, dir, "a")
		},
		"kubernetes": func(t *testing.T, dir string, p pairPEM) {
			old, err := os.Readlink(dir + "/..data")
			if err != nil {
				t.Fatal(err)
			}
			project(t, dir, "..at"+p.serial, p)
			if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
				t.Fatal(err)
			}
		},
		"certbot": func(t *testing.T, dir string, p pairPEM) {
			p.save(t, dir+"/archive", p.serial)
			for _, end := range []string{".crt", ".key"} {
				link(t, "archive/"+p.serial+end, dir+"/a"+end)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { followsFiles(t, name, replace) })
	}
}

func followsFiles(t *testing.T, way string, replace func(*testing.T, string, pairPEM)) {
	dir, ca := t.TempDir(), newAuthority(t)
	first := ca.pair(t, "a.test")
	switch way {
	case "kubernetes":
		project(t, dir, "..first", first)
		link(t, "..data/a.crt", dir+"/a.crt")
		link(t, "..data/a.key", dir+"/a.key")
	case "certbot":
		if err := os.Mkdir(dir+"/archive", 0o700); err != nil {
			t.Fatal(err)
		}
		first.save(t, dir+"/archive", first.serial)
		link(t, "archive/"+first.serial+".crt", dir+"/a.crt")
		link(t, "archive/"+first.serial+".key", dir+"/a.key")
	default:
		first.save(t, dir, "a")
	}
	other := t.TempDir()
	ca.pair(t, "b.test").save(t, other, "b")
	link(t, other+"/b.crt", dir+"/b.crt")
	link(t, other+"/b.key", dir+"/b.key")
	ca.pair(t, "c.test").save(t, dir, "c")
	s := secureGateway(t, dir, "")
	clients := keepConnecting(host(s.proxy), &tls.Config{RootCAs: ca.pool, ServerName: "a.test", ClientSessionCache: tls.NewLRUClientSessionCache(1)})
	for range 3 {
		next := ca.pair(t, "a.test")
		replace(t, dir, next)
		eventually(t, "the new certificate is shown", func() bool {
			got, _, err := shake(host(s.proxy), &tls.Config{RootCAs: ca.pool, ServerName: "a.test"})
			return err == nil && got == next.serial
		})
	}
	if n, err := clients.end(); err != nil || n < 3 {
		t.Errorf("after %d connections: %v", n, err)
	}
	s.stop(t)
}

// connecting is a client that connects again and again.
type connecting struct {
	stop, done chan struct{}
	n          int
	err        error
}

func keepConnecting(addr string, config *tls.Config) *connecting {
	c := &connecting{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for c.err == nil {
			select {
			case <-c.stop:
				return
			default:
				_, _, c.err = shake(addr, config)
				c.n++
			}
		}
	}()
	return c
}

// end is how many connections there were, and what ended the last one early.
func (c *connecting) end() (int, error) {
	close(c.stop)
	<-c.done
	return c.n, c.err
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, files ...string) {
	t.Helper()
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}

// link puts a symbolic link in the place of whatever is there, in one step.
func link(t *testing.T, target, at string) {
	t.Helper()
	if err := os.Symlink(target, at+".new"); err != nil {
		t.Fatal(err)
	}
	rename(t, at+".new", at)
}

// project writes a pair as a.crt and a.key below a directory of its own, and
// then points ..data at that, as the kubelet does.
func project(t *testing.T, dir, version string, p pairPEM) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
		t.Fatal(err)
	}
	p.save(t, filepath.Join(dir, version), "a")
	link(t, version, dir+"/..data")
}

func TestSessionsAreResumedAcrossAReload(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	for _, name := range []string{"a", "b", "c"} {
		ca.pair(t, "a.test").save(t, dir, name)
	}
	s := secureGateway(t, dir, "")
	config := &tls.Config{RootCAs: ca.pool, ServerName: "a.test", MaxVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	if _, _, err := shake(host(s.proxy), config); err != nil {
		t.Fatal(err)
	}
	next := ca.pair(t, "a.test")
	next.save(t, dir, "a")
	eventually(t, "the new certificate is shown", func() bool {
		got, _, _ := shake(host(s.proxy), &tls.Config{RootCAs: ca.pool, ServerName: "a.test"})
		return got == next.serial
	})
	if _, state, err := shake(host(s.proxy), config); err != nil || !state.DidResume {
		t.Errorf("resumed is %v, %v", state.DidResume, err)
	}
	s.stop(t)
}

// testCredentials are of one pair a in dir.
func testCredentials(t *testing.T, dir string, log *processLog) *credentials {
	t.Helper()
	files := &tlsFiles{listener: "proxy", path: "proxy.tls", pairs: []pairFiles{{"proxy.tls.certificates[0]", dir + "/a.crt", dir + "/a.key"}}}
	c, err := newCredentials(files, zerolog.New(log))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func exposed(c *credentials) string {
	var text bytes.Buffer
	c.WriteMetrics(&text)
	return text.String()
}

func TestBadCertificateLeavesTheOldInForce(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	first, second := ca.pair(t, "a.test"), ca.pair(t, "a.test")
	first.save(t, dir, "a")
	log := &processLog{}
	c := testCredentials(t, dir, log)
	inForce := func() string {
		pair, err := c.choose(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.String()
	}
	for what, damage := range map[string]struct {
		do  func()
		say string
	}{
		"another's key":      {func() { write(t, dir+"/a.key", second.key) }, "a.key does not go with cert_file"},
		"half a certificate": {func() { write(t, dir+"/a.crt", first.cert[:len(first.cert)/2]) }, "a.crt holds no certificate"},
		"no PEM":             {func() { write(t, dir+"/a.crt", []byte("x")) }, "a.crt holds no certificate"},
		"nothing":            {func() { remove(t, dir+"/a.crt") }, "a.crt: no such file"},
		"an empty key":       {func() { write(t, dir+"/a.key", nil) }, "a.key does not go with cert_file"},
	} {
		damage.do()
		c.reload()
		lines := log.lines()
		if last := lines[len(lines)-1]; !strings.Contains(last, damage.say) || !strings.Contains(last, `"listener":"proxy"`) || !strings.Contains(last, `"level":"error"`) {
			t.Errorf("%s: logged %s, want %q", what, last, damage.say)
		}
		if got := exposed(c); !strings.Contains(got, "r8limiter_certificate_reload_successful{listener=\"proxy\"} 0\n") {
			t.Errorf("%s: metrics say %s", what, got)
		}
		if inForce() != first.serial {
			t.Errorf("%s: certificate %s is in force, want the old one", what, inForce())
		}
		first.save(t, dir, "a")
	}
	second.save(t, dir, "a")
	c.reload()
	want := fmt.Sprintf("r8limiter_certificate_reload_successful{listener=\"proxy\"} 1\nr8limiter_certificate_not_after_seconds{listener=\"proxy\"} %d\n", second.notAfter.Unix())
	if got := exposed(c); got != want || inForce() != second.serial {
		t.Errorf("got %s with certificate %s, want %s with %s", got, inForce(), want, second.serial)
	}
}

// One bad pair of several does not hold up the others.
func TestGoodCertificateIsTakenBesideABadOne(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	a, b := ca.pair(t, "a.test"), ca.pair(t, "b.test")
	a.save(t, dir, "a")
	b.save(t, dir, "b")
	files := &tlsFiles{listener: "proxy", pairs: []pairFiles{{"", dir + "/a.crt", dir + "/a.key"}, {"", dir + "/b.crt", dir + "/b.key"}}}
	c, err := newCredentials(files, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	renewed := ca.pair(t, "b.test")
	renewed.save(t, dir, "b")
	write(t, dir+"/a.crt", nil)
	c.reload()
	var got []string
	for _, p := range c.ring.Load().pairs {
		got = append(got, p.Leaf.SerialNumber.String())
	}
	if want := []string{a.serial, renewed.serial}; !slices.Equal(got, want) || c.ring.Load().whole {
		t.Errorf("got %v, want %v and a fault", got, want)
	}
}

func TestExpiryOfTheFirstCertificateIsExposed(t *testing.T) {
	dir, ca := t.TempDir(), newAuthority(t)
	gone := time.Now().Add(-time.Minute).Truncate(time.Second)
	ca.pairUntil(t, gone, "a.test").save(t, dir, "a")
	log := &processLog{}
	c := testCredentials(t, dir, log)
	if got, want := exposed(c), fmt.Sprintf("not_after_seconds{listener=\"proxy\"} %d\n", gone.Unix()); !strings.HasSuffix(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
	if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], "a certificate has expired") {
		t.Errorf("logged %s", lines)
	}
}
