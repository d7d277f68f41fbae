package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// signer signs tokens of tests.
type signer struct {
	public  ed25519.PublicKey
	private ed25519.PrivateKey
}

func newSigner(t *testing.T) signer {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return signer{public, private}
}

// set is the key set with the signer's key alone.
func (s signer) set() []byte {
	return fmt.Appendf(nil, `{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","x":"%s"}]}`, base64.RawURLEncoding.EncodeToString(s.public))
}

// token is one of ann's.
func (s signer) token() string {
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"EdDSA"}`)) + "." + encode([]byte(`{"sub":"ann"}`))
	return text + "." + encode(ed25519.Sign(s.private, []byte(text)))
}

// Keys are rotated by their file alone, as Kubernetes does with a ConfigMap's; also by
// one that the configuration has named since the start only.
func TestConfigurationFollowsTheFilesThatItNames(t *testing.T) {
	dir := t.TempDir()
	config := func(file string) string {
		jwt := fmt.Sprintf("  jwt: {jwks_file: %q, required: true}\n", filepath.Join(dir, file))
		return strings.NewReplacer("  drain_delay: 0s\n", "  drain_delay: 0s\n"+jwt, "{header.X-User-Id}", "{jwt.sub}").Replace(plainConfig(""))
	}
	old, rotated, other := newSigner(t), newSigner(t), newSigner(t)
	write(t, dir+"/a.json", old.set())
	p := startProcess(t, config("a.json"))
	answers := func(s signer) int {
		resp, _ := fetch(t, "GET", p.proxy+"/a", "Authorization: Bearer "+s.token())
		return resp.StatusCode
	}
	if got := answers(old); got != 200 || answers(rotated) != 401 {
		t.Fatalf("at the start: got %d", got)
	}
	replace(t, dir+"/a.json", string(rotated.set()))
	eventually(t, "the keys are rotated", func() bool { return answers(rotated) == 200 && answers(old) == 401 })

	failed := func() float64 { return p.metric(t, `r8limiter_config_reloads_total{result="failed"}`) }
	replace(t, dir+"/a.json", "{}")
	eventually(t, "the broken set is told", func() bool { return failed() == 1 })
	if got := answers(rotated); got != 200 {
		t.Errorf("after a broken set: got %d, want 200", got)
	}

	// The set that another configuration names comes after it.
	replace(t, p.file, config("b.json"))
	eventually(t, "the missing set is told", func() bool { return failed() == 2 })
	write(t, dir+"/b.json", old.set())
	eventually(t, "the other set is in force", func() bool { return answers(old) == 200 })
	replace(t, dir+"/b.json", string(other.set()))
	eventually(t, "the other set is followed", func() bool { return answers(other) == 200 && answers(old) == 401 })
}

// What is followed without a reload is no reason for one.
func TestFollowedAreTheFilesThatOnlyAReloadReads(t *testing.T) {
	c := defaultConfig()
	text := `
proxy:
  tls: {certificates: [{cert_file: listener.crt, key_file: listener.key}]}
  jwt: {jwks_file: keys.json}
  upstreams: {api: {targets: ["https://a"], tls: {ca_file: ca.pem, cert_file: up.crt, key_file: up.key}}}
limiter: {redis: {url: "rediss://a", tls: {ca_file: redis.pem}}}
admin: {tls: {cert_file: admin.crt, key_file: admin.key}}
`
	if _, problems := decodeYAML([]byte(text), noEnv, &c); len(problems) > 0 {
		t.Fatal(problems)
	}
	w := newFileWatch([]string{"config.yaml"}, zerolog.Nop())
	w.turnTo("config.yaml", c.followed(c.digest()))
	if got, want := strings.Join(w.paths, " "), "config.yaml ca.pem keys.json up.crt up.key"; got != want {
		t.Errorf("watched are %s, want %s", got, want)
	}
}
