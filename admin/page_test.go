package admin

import (
	"bytes"
	"io/fs"
	"regexp"
	"strings"
	"testing"
)

func TestPageAndAllThatItLoadsAreServed(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken}})
	answer := g.send(t, request("GET", "/admin/"))
	if answer[9:12] != "200" || field(answer, "Content-Type") != "text/html; charset=utf-8" || field(answer, "Content-Security-Policy") != contentPolicy {
		t.Errorf("got %.400s", answer)
	}
	loads := regexp.MustCompile(`(?:src|href)="([^"#]+)"`).FindAllStringSubmatch(answer, -1)
	if len(loads) != 4 {
		t.Errorf("the page loads %v", loads)
	}
	for _, each := range loads {
		if status, body := g.do(t, "GET", each[1]); status != "200" || len(body) < 500 {
			t.Errorf("%s: got %s and %d bytes", each[1], status, len(body))
		}
	}
	for _, target := range []string{"/admin/web/", "/admin/web/uPlot.LICENSE", "/admin/web/..", "/admin/web/%2e%2e", "/admin/web/../page.go", "/admin/web/x.js"} {
		if status, _ := g.do(t, "GET", target); status == "200" {
			t.Errorf("%s is served", target)
		}
	}
}

// TestPageObeysItsPolicy finds what the policy would refuse in a browser.
func TestPageObeysItsPolicy(t *testing.T) {
	err := fs.WalkDir(web, "web", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(name, "uPlot") {
			return err
		}
		text, err := web.ReadFile(name)
		for _, bad := range []string{"innerHTML", "eval(", "<style", " style=", " onclick=", "<script>", "https://", "document.write"} {
			if strings.Contains(string(text), bad) {
				t.Errorf("%s has %s", name, bad)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPageShowsSeriesThatThereAre: one of another name would be 0 for ever.
func TestPageShowsSeriesThatThereAre(t *testing.T) {
	text, err := web.ReadFile("web/app.js")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`"((?:r8limiter|request)_[a-z_]*[a-z])"`).FindAllSubmatch(text, -1)
	for _, each := range names {
		if name := string(each[1]); families[name].kind == "" && families[name+"_seconds"].kind == "" {
			t.Errorf("app.js shows %s, which does not exist", name)
		}
	}
	if !bytes.Contains(text, []byte(`sum(series, "r8limiter_store_degraded")`)) || len(names) < 8 {
		t.Errorf("app.js shows %q, want the degraded store among them", names)
	}
}

func TestOwnPageMayChangeThingsAndNoOther(t *testing.T) {
	g := start(t, setup{})
	for origin, want := range map[string]string{
		"http://localhost":      "200",
		"http://localhost:3000": "403",
		"https://localhost":     "403",
		"http://evil.example":   "403",
		"null":                  "403",
	} {
		status, body := g.do(t, "POST", "/admin/user/a/reset", "Origin: "+origin)
		if status != want {
			t.Errorf("%s: got %s %s, want %s", origin, status, body, want)
		}
	}
	answer := g.send(t, "POST /admin/user/a/reset HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\nConnection: close\r\n\r\n")
	if answer[9:12] != "403" {
		t.Errorf("a name that leads here: got %s", answer)
	}
}
