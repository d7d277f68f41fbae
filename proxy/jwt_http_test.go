package proxy

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// identityRoutes are routes that read all kinds of credentials, or none.
func identityRoutes(t *testing.T, c *Config) {
	t.Helper()
	templates := func(texts ...string) (all []Template) {
		for _, text := range texts {
			all = append(all, template(t, text))
		}
		return all
	}
	c.Routes = []RouteConfig{
		{Name: "open", Match: MatchConfig{Path: []string{"/open"}}, Upstream: "api"},
		{Name: "bypass", Match: MatchConfig{Path: []string{"/bypass"}}, Upstream: "api", Action: "bypass"},
		{Name: "block", Match: MatchConfig{Path: []string{"/block"}}, Action: "block"},
		{Name: "basic", Match: MatchConfig{Path: []string{"/basic"}}, Upstream: "api", UserID: templates("{basic_user|lower}", "anonymous")},
	}
	if c.JWT != nil {
		c.Routes = append(c.Routes,
			RouteConfig{Name: "token", Match: MatchConfig{Path: []string{"/token"}}, Upstream: "api", UserID: templates("{jwt.realm.tenant}:{jwt.sub|lower}", "{header.X-User-Id}", "nobody")},
			RouteConfig{Name: "late", Match: MatchConfig{Path: []string{"/late"}}, Upstream: "api", UserID: templates("{header.X-User-Id}", "{jwt.list}"), Cost: template(t, "{jwt.cost}")},
		)
	}
	if c.APIKeys != nil {
		c.Routes = append(c.Routes, RouteConfig{Name: "key", Match: MatchConfig{Path: []string{"/key"}}, Upstream: "api",
			UserID: templates("{api_key.user_id}", "nobody"), Resource: template(t, "{api_key.plan}")})
	}
}

// identityRig is a proxy whose tokens and API keys are those of the configuration.
func identityRig(t *testing.T, tokens *JWTConfig, keys *APIKeysConfig) *rig {
	t.Helper()
	up := newRecorder(t, okAnswer)
	c := DefaultConfig()
	c.JWT, c.APIKeys = tokens, keys
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://" + up.addr}}}
	identityRoutes(t, &c)
	rg := startRig(t, c, up, newLimiter(t, 1000))
	if rg.p.rules.Load().jwt != nil {
		rg.p.rules.Load().jwt.now = func() time.Time { return testTime }
	}
	return rg
}

// asked is what a request leads to: its status, and whom it was counted to.
func (rg *rig) asked(t *testing.T, path, fields string) string {
	t.Helper()
	before := len(rg.lines(t))
	status := rg.statusOf(t, "GET "+path+" HTTP/1.1\r\nHost: a\r\n"+fields+"\r\n")
	eventually(t, "it is logged", func() bool { return len(rg.lines(t)) > before })
	line := rg.lines(t)[before]
	if user := line["user_id"]; user != nil {
		return fmt.Sprint(status, " ", user, " ", line["resource"], " ", line["cost"])
	}
	return fmt.Sprint(status, " ", line["error"])
}

func TestRequestIsCountedToTheUserOfItsToken(t *testing.T) {
	rg := identityRig(t, &JWTConfig{Secret: testSecret}, nil)
	bearer := func(claims map[string]any) string { return "Bearer " + secretToken(t, claims) }
	full := bearer(map[string]any{"sub": "Ann", "realm": map[string]any{"tenant": "Acme"}, "cost": 3, "list": []string{"x", "y"}})
	for _, c := range []struct{ path, fields, want string }{
		{"/token", "Authorization: " + full + "\r\n", "200 Acme:ann token 1"},
		{"/token", "AUTHORIZATION:  bEARER   " + full[len("Bearer "):] + "\r\n", "200 Acme:ann token 1"},
		{"/token", "Authorization: " + bearer(map[string]any{"sub": "Ann"}) + "\r\nX-User-Id: bob\r\n", "200 bob token 1"},
		{"/token", "", "200 nobody token 1"},
		{"/token", "Authorization:\r\nX-User-Id: bob\r\n", "200 bob token 1"},
		{"/token", "Authorization: Basic YTpi\r\nX-User-Id: bob\r\n", "200 bob token 1"},
		{"/token", "Authorization: BearerX y\r\nX-User-Id: bob\r\n", "200 bob token 1"},
		{"/token", "Authorization: " + bearer(map[string]any{"sub": []string{"a", "b"}, "realm": map[string]any{"tenant": "t"}}) + "\r\nX-User-Id: bob\r\n",
			"401 the token's claim sub is neither text nor an integer nor a boolean, nor a list of one"},
		// A token that does not verify is nobody's, whoever the request says it is besides.
		{"/token", "Authorization: Bearer\r\nX-User-Id: bob\r\n", "401 " + errNoJWT.detail},
		{"/token", "Authorization: Bearer hush\r\nX-User-Id: bob\r\n", "401 " + errNoJWT.detail},
		{"/token", "Authorization: " + bearer(map[string]any{"exp": testTime.Unix()}) + "\r\nX-User-Id: bob\r\n", "401 " + errExpired.detail},
		{"/late", "Authorization: " + bearer(map[string]any{"exp": testTime.Unix()}) + "\r\nX-User-Id: bob\r\n", "401 " + errExpired.detail},
		{"/late", "Authorization: " + full + "\r\nX-User-Id: bob\r\n", "200 bob late 3"},
		{"/late", "Authorization: " + full + "\r\n", "401 the token's claim list is neither text nor an integer nor a boolean, nor a list of one"},
		{"/late", "X-User-Id: bob\r\n", "200 bob late 1"},
		// What the upstream would read in another way is refused.
		{"/token", "Authorization: " + full + "\r\nAuthorization: " + full + "\r\n", "400 header field Authorization is there more than once"},
		{"/token", "Authorization: Basic YTpi\r\nauthorization: " + full + "\r\n", "400 header field Authorization is there more than once"},
		{"/token", "Authorization: " + full + "\r\nConnection: authorization\r\n", "400 Connection names the header field Authorization"},
		// Nobody looks where no rule does.
		{"/open", "Authorization: Bearer hush\r\nAuthorization: x\r\n", "200 127.0.0.1 open 1"},
		{"/bypass", "Authorization: Bearer hush\r\n", "200 <nil>"},
		{"/block", "Authorization: Bearer hush\r\n", "403 route blocks"},
	} {
		want(t, c.path+" "+c.fields, rg.asked(t, c.path, c.fields), c.want)
	}
	if log := rg.log.String(); strings.Contains(log, "hush") || strings.Contains(log, full[len("Bearer "):][:20]) {
		t.Errorf("the log holds a token:\n%s", log)
	}
}

func TestRequiredTokenIsRequiredWhereThereIsALimit(t *testing.T) {
	rg := identityRig(t, &JWTConfig{Secret: testSecret, Required: true}, nil)
	token := "Authorization: Bearer " + secretToken(t, map[string]any{"sub": "ann"}) + "\r\n"
	for _, c := range []struct{ path, fields, want string }{
		{"/open", "", "401 " + errNoToken.detail},
		{"/open", "Authorization: Basic YTpi\r\n", "401 " + errNoToken.detail},
		{"/open", "Authorization: Bearer x\r\n", "401 " + errNoJWT.detail},
		{"/open", token + token, "400 header field Authorization is there more than once"},
		{"/open", token, "200 127.0.0.1 open 1"},
		{"/bypass", "", "200 <nil>"},
		{"/block", "", "403 route blocks"},
	} {
		want(t, c.path+" "+c.fields, rg.asked(t, c.path, c.fields), c.want)
	}
	preflight := "OPTIONS /open HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\nAccess-Control-Request-Method: GET\r\n\r\n"
	if got := rg.statusOf(t, preflight); got != "200" {
		t.Errorf("preflight: got %s, want 200: a browser sends it without a token", got)
	}
}

// unauthorized is the answer to a request whose credentials don't do.
func unauthorized(detail, challenge string) string {
	body := `{"type":"about:blank","title":"Unauthorized","status":401,"detail":"` + detail + `"}`
	return "HTTP/1.1 401 Unauthorized\r\nDate: *\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\nWWW-Authenticate: " + challenge + "\r\n\r\n" + body
}

func TestUnauthorizedAnswerByteForByte(t *testing.T) {
	rg := identityRig(t, &JWTConfig{Secret: testSecret, Required: true}, nil)
	c := rg.dial(t) // one connection for all: a client may come again with another token
	expired := secretToken(t, map[string]any{"sub": "ann", "exp": testTime.Unix()})
	for range 2 {
		c.send("GET /token HTTP/1.1\r\nHost: a\r\n\r\n")
		want(t, "no token", steady(c.answer("GET")), unauthorized("a token is needed, as Authorization: Bearer TOKEN", `Bearer realm="api"`))
		c.send("POST /token HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nAuthorization: Bearer " + expired + "\r\n\r\nabcde")
		want(t, "expired", steady(c.answer("POST")), unauthorized("the token has expired (exp)", `Bearer error="invalid_token", error_description="the token has expired (exp)"`))
	}
	c.send("HEAD /token HTTP/1.1\r\nHost: a\r\n\r\n")
	whole := unauthorized("a token is needed, as Authorization: Bearer TOKEN", `Bearer realm="api"`)
	want(t, "HEAD", steady(c.answer("HEAD")), whole[:strings.Index(whole, "{")])
	c.send("GET /token HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + secretToken(t, map[string]any{"sub": "ann"}) + "\r\n\r\n")
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("with a token: got %q", got)
	}
	eventually(t, "it is counted", func() bool {
		var text strings.Builder
		rg.p.WriteMetrics(&text)
		return strings.Contains(text.String(), `r8limiter_problems_total{status="401"} 5`+"\n") && strings.Contains(text.String(), "r8limiter_jwt_keys 1\n") &&
			strings.Contains(text.String(), `r8limiter_jwt_verifications_total{result="expired"} 2`+"\n") && strings.Contains(text.String(), `r8limiter_jwt_verifications_total{result="ok"} 1`+"\n")
	})
}

// No request waits for keys: before there are any nobody can say whose a token is.
func TestTokenBeforeTheKeysIs503(t *testing.T) {
	release, all := make(chan bool), everyKey(t)
	issuer := startKeyServer(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, all)
	})
	rg := identityRig(t, &JWTConfig{JWKSURL: issuer.URL}, nil)
	c := rg.dial(t)
	token := "Authorization: Bearer " + signed(t, "ES256", jwtKeys()["ES256"], map[string]any{"kid": "ES256"}, map[string]any{"sub": "ann", "realm": map[string]any{"tenant": "t"}}) + "\r\n"
	c.send("GET /token HTTP/1.1\r\nHost: a\r\n" + token + "\r\n")
	body := `{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the keys that tokens are verified with are not here yet"}`
	want(t, "answer", steady(c.answer("GET")), "HTTP/1.1 503 Service Unavailable\r\nDate: *\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\nContent-Length: "+
		strconv.Itoa(len(body))+"\r\nRetry-After: 1\r\n\r\n"+body)
	c.send("GET /token HTTP/1.1\r\nHost: a\r\n\r\n")
	if got := c.answer("GET"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("without a token: got %q, want 200: there is nothing to verify", got)
	}
	close(release)
	eventually(t, "the keys are here", func() bool {
		c.send("GET /token HTTP/1.1\r\nHost: a\r\n" + token + "\r\n")
		return strings.HasPrefix(c.answer("GET"), "HTTP/1.1 200 ")
	})
}

func TestUnauthorizedAnswerOverHTTP2(t *testing.T) {
	rg := newH2Rig(t, 10, always(okAnswer), func(c *Config) {
		c.JWT = &JWTConfig{Secret: testSecret, Required: true}
	})
	resp, err := rg.transport(t).Get("https://" + rg.addr + "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") != `Bearer realm="api"` {
		t.Errorf("got %d %q", resp.StatusCode, resp.Header)
	}
}
