package admin

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	adminToken = "an-admin-token-of-length"
	allowToken = "an-allow-token-of-length"
)

// attempts are ways to reach what is under /admin. Those that are spelled like
// it are refused with 401 before anything else; no other spelling exists.
var attempts = []struct{ status, method, target string }{
	{"401", "GET", "/admin"}, {"401", "POST", "/admin/"}, {"401", "GET", "/admin//"}, {"401", "GET", "/admin/web"}, {"401", "GET", "/admin?x"},
	{"401", "GET", "/admin/stats"}, {"401", "HEAD", "/admin/stats"}, {"401", "OPTIONS", "/admin/stats"},
	{"401", "POST", "/admin/stats"}, {"401", "DELETE", "/admin/user/a"}, {"401", "TRACE", "/admin/stats"},
	{"401", "GET", "/admin/user/a"}, {"401", "GET", "/admin/unknown"}, {"401", "GET", "/admin/../metrics"},
	{"401", "GET", "/admin//stats"}, {"401", "GET", "/admin/./stats"}, {"401", "GET", "/admin/%73tats"},
	{"404", "GET", "//admin/stats"}, {"404", "GET", "/./admin/stats"}, {"404", "GET", "/x/../admin/stats"},
	{"404", "GET", "/Admin/stats"}, {"404", "GET", "/%61dmin/stats"}, {"404", "GET", "/admin%2Fstats"},
	{"404", "GET", "/admin;x/stats"}, {"404", "GET", `/admin\stats`}, {"404", "GET", "/livez/../admin/stats"},
	{"404", "GET", "/admin%00/stats"}, {"404", "GET", "//localhost/admin/stats"}, {"404", "GET", "//x/://admin/stats"},
	{"400", "GET", "http://localhost/admin/stats"}, {"400", "GET", "localhost/admin/stats"}, {"400", "GET", "/admin/stats#"},
}

func TestNothingUnderAdminIsAnsweredWithoutTheToken(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken, AllowToken: allowToken}})
	g.strangers = true
	bearer := "Authorization: Bearer "
	for _, fields := range [][]string{
		nil,
		{bearer}, {bearer + "x"}, {bearer + adminToken + "x"}, {bearer + adminToken[1:]}, {bearer + strings.ToUpper(adminToken)},
		{bearer + allowToken},
		{"Authorization: Basic " + adminToken}, {"Authorization: " + adminToken}, {"X-Authorization: Bearer " + adminToken},
		{bearer + adminToken, bearer + adminToken}, {bearer + "x", bearer + adminToken}, {bearer + adminToken + ", Bearer x"},
		{"X-HTTP-Method-Override: GET", "X-Original-URL: /admin/stats", "X-Forwarded-For: 127.0.0.1"},
		{"Cookie: token=" + adminToken}, {"Proxy-Authorization: Bearer " + adminToken},
	} {
		for _, a := range attempts {
			if status, body := g.do(t, a.method, a.target, fields...); status != a.status {
				t.Errorf("%s %s %q: got %s %s, want %s", a.method, a.target, fields, status, body, a.status)
			}
		}
	}
	if log := g.log.String(); strings.Contains(log, adminToken) || strings.Contains(log, allowToken) {
		t.Error("a token is in the log")
	}
}

func TestRefusalForWantOfATokenAsBytes(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken}})
	want := "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 61\r\n" +
		"WWW-Authenticate: Bearer\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n" +
		`{"error":"send the token in one Authorization: Bearer field"}`
	if diff := cmp.Diff(want, g.send(t, request("GET", "/admin/stats"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTokenInTheQueryIsRefusedEvenBesideAGoodOne(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken, AllowToken: allowToken}})
	g.strangers = true
	for _, c := range []struct{ method, target, token string }{
		{"GET", "/admin/stats?token=" + adminToken, adminToken},
		{"GET", "/admin/stats?access_token=x", adminToken},
		{"POST", "/allow?user_id=a&token=x", allowToken},
	} {
		for _, fields := range [][]string{nil, {"Authorization: Bearer " + c.token}} {
			if status, body := g.do(t, c.method, c.target, fields...); status != "401" {
				t.Errorf("%s %s %q: got %s %s, want 401", c.method, c.target, fields, status, body)
			}
		}
	}
	if log := g.log.String(); strings.Contains(log, adminToken) {
		t.Error("the token in the query is in the log")
	}
}

func TestEachTokenOpensItsOwnDoor(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken, AllowToken: allowToken}})
	g.strangers = true
	for _, c := range []struct{ status, method, target, authorization string }{
		{"200", "GET", "/admin/stats", "Bearer " + adminToken},
		{"200", "GET", "/admin/stats", "bearer  " + adminToken},
		{"404", "GET", "/admin/../metrics", "Bearer " + adminToken},
		{"404", "GET", "/admin", "Bearer " + adminToken},
		{"405", "POST", "/admin/stats", "Bearer " + adminToken},
		{"401", "GET", "/admin/stats", "Bearer " + allowToken},
		{"200", "POST", "/allow?user_id=a", "Bearer " + allowToken},
		{"401", "POST", "/allow?user_id=a", "Bearer " + adminToken},
		{"401", "POST", "/allow", "Bearer x"},
		{"200", "GET", "/metrics", "Bearer x"},
		{"200", "GET", "/livez", "Bearer x"},
	} {
		if status, body := g.do(t, c.method, c.target, "Authorization: "+c.authorization); status != c.status {
			t.Errorf("%s %s %s: got %s %s, want %s", c.method, c.target, c.authorization, status, body, c.status)
		}
	}
}

func TestWithoutATokenAdminIsOnlyForThisMachineByAnUnmistakableName(t *testing.T) {
	g := start(t, setup{})
	for host, want := range map[string]string{
		"localhost": "200", "LOCALHOST:8000": "200", "127.0.0.1": "200", "127.0.0.1:8000": "200", "[::1]": "200", "[::1]:8000": "200", "10.0.0.1": "200",
		"evil.example": "403", "evil.example:8000": "403", "localhost.evil.example": "403", "127.0.0.1.evil.example": "403", "r8limiter": "403",
	} {
		answer := g.send(t, "GET /admin/stats HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if answer[9:12] != want {
			t.Errorf("Host %s: got %q, want %s", host, answer, want)
		}
		if want == "403" && !strings.Contains(answer, "set admin.token") {
			t.Errorf("Host %s: got %q, which doesn't say what to do", host, answer)
		}
	}
	if answer := g.send(t, "GET /admin/stats HTTP/1.0\r\n\r\n"); answer[9:12] != "403" {
		t.Errorf("no Host: got %q, want 403", answer)
	}
}

func TestWithoutATokenOtherMachinesMayNotAdminister(t *testing.T) {
	g := newGateway(t, setup{})
	for _, peer := range []net.Addr{
		&net.TCPAddr{IP: net.ParseIP("192.0.2.1")}, &net.TCPAddr{IP: net.ParseIP("2001:db8::1")},
		&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, &net.UnixAddr{Name: "@", Net: "unix"},
	} {
		for _, c := range []struct{ status, method, target string }{
			{"403", "GET", "/admin/stats"}, {"403", "GET", "/admin"}, {"403", "POST", "/admin/nothing"},
			{"200", "GET", "/livez"}, {"200", "POST", "/allow?user_id=a"},
		} {
			client, server := net.Pipe()
			go func() { _ = g.http.ServeConn(connFrom{server, peer}); _ = server.Close() }()
			answer := talk(t, client, request(c.method, c.target, "X-Forwarded-For: 127.0.0.1", "Forwarded: for=127.0.0.1"))
			if answer[9:12] != c.status {
				t.Errorf("%s %s from %v: got %q, want %s", c.method, c.target, peer, answer, c.status)
			}
		}
	}
}

// connFrom is a connection from an address of the test's choice.
type connFrom struct {
	net.Conn
	peer net.Addr
}

func (c connFrom) RemoteAddr() net.Addr { return c.peer }

func TestWebPagesMayNotSpendTokensOfThisMachine(t *testing.T) {
	g := start(t, setup{})
	for _, origin := range []string{"https://evil.example", "null", "http://localhost:8000", ""} {
		if status, body := g.do(t, "POST", "/allow?user_id=a", "Origin: "+origin); status != "403" {
			t.Errorf("Origin %q: got %s %s, want 403", origin, status, body)
		}
	}
	guarded := start(t, setup{config: Config{AllowToken: allowToken}})
	status, body := guarded.do(t, "POST", "/allow?user_id=a", "Origin: https://a.example", "Authorization: Bearer "+allowToken)
	if status != "200" {
		t.Errorf("with the token: got %s %s, want 200", status, body)
	}
}

func TestConfigReportsEveryProblemAndNoToken(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   map[string]string
	}{
		{DefaultConfig(), nil},
		{Config{Listen: ":8000", Token: adminToken, AllowToken: allowToken}, nil},
		{Config{Listen: "[::1]:0"}, nil},
		{Config{Listen: "8000", Token: "short", AllowToken: "white space in the token"}, map[string]string{
			"listen":      `"8000" is not host:port; write "127.0.0.1:8000", or ":8000" for all addresses`,
			"token":       "is shorter than 16 characters; make one with `openssl rand -hex 32`",
			"allow_token": "holds white space, a control character or a character outside ASCII; use letters and digits",
		}},
		{Config{Listen: "localhost:http", Token: "a-token-that-ends-in-LF\n"}, map[string]string{
			"listen": `"http" is not a port; write a number from 0 to 65535`,
			"token":  "holds white space, a control character or a character outside ASCII; use letters and digits",
		}},
		{Config{Listen: ":65536"}, map[string]string{"listen": `"65536" is not a port; write a number from 0 to 65535`}},
		{Config{}, map[string]string{"listen": `"" is not host:port; write "127.0.0.1:8000", or ":8000" for all addresses`}},
	} {
		var got map[string]string
		c.config.Validate(func(path, problem string) {
			if got == nil {
				got = map[string]string{}
			}
			got[path] = problem
		})
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", c.config, diff)
		}
	}
}
