package simulate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

func tmpl(t testing.TB, text string) proxy.Template {
	t.Helper()
	parsed, err := proxy.ParseTemplate(text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func rate(t testing.TB, text string) limiter.Rate {
	t.Helper()
	r, err := limiter.ParseRate(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// options are for a small shop: two resources, one of them with three limits.
func options(t testing.TB) *Options {
	t.Helper()
	o := &Options{Config: "new.yaml", Format: auto, Top: 10, Proxy: proxy.DefaultConfig(), Limiter: limiter.DefaultConfig()}
	var err error
	if o.Fields, err = ParseFields(""); err != nil {
		t.Fatal(err)
	}
	user := []proxy.Template{tmpl(t, "{header.X-User-Id}"), tmpl(t, "{client_ip}")}
	o.Proxy.Routes = []proxy.RouteConfig{
		{Name: "blocked", Match: proxy.MatchConfig{Path: []string{"/internal/*"}}, Action: "block"},
		{Name: "health", Match: proxy.MatchConfig{Path: []string{"/healthz"}}, Action: "bypass"},
		{Name: "shop", Match: proxy.MatchConfig{Host: []string{"shop.example.com"}}, UserID: user},
		{Name: "items", Match: proxy.MatchConfig{Path: []string{"/items/{id}"}}, UserID: user, Resource: tmpl(t, "read")},
		{Name: "search", Match: proxy.MatchConfig{Path: []string{"/search"}}, UserID: user, Cost: tmpl(t, "{query.cost}")},
		{Name: "tenants", Match: proxy.MatchConfig{Path: []string{"/t/{tenant}"}}, Resource: tmpl(t, "tenant-{path.tenant}")},
		{Name: "whose", Match: proxy.MatchConfig{Path: []string{"/whose"}}},
	}
	o.Limiter.Default = limiter.ResourceConfig{Capacity: 2, RefillRate: rate(t, "1/m")}
	o.Limiter.Resources = map[string]limiter.ResourceConfig{
		"read": {Limits: []limiter.LimitConfig{
			{Name: "burst", Capacity: 3, RefillRate: rate(t, "1/s")},
			{Name: "all", Per: "resource", Capacity: 5, RefillRate: rate(t, "2/s")},
			{Name: "next", Shadow: true, Capacity: 1, RefillRate: rate(t, "1/m")},
		}},
		"search": {Capacity: 10, RefillRate: rate(t, "1/s")},
	}
	return o
}

// logFile writes a log.
func logFile(t testing.TB, lines ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "access.log")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// at is a combined line of 10.0.0.N at a second of a day.
func at(second, n int, request string) string {
	return fmt.Sprintf(`10.0.0.%d - - [26/Nov/2026:%02d:%02d:%02d +0000] "%s" 200 5 "-" "-"`, n, second/3600, second/60%60, second%60, request)
}

// decided simulates and is the decisions, shortened, and the report.
func decided(t testing.TB, o *Options) (string, *Report) {
	t.Helper()
	var out bytes.Buffer
	o.Decisions = &out
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	var short strings.Builder
	for line := range strings.Lines(out.String()) {
		var d map[string]any
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		fmt.Fprintf(&short, "%v %v", d["line"], d["decision"])
		for _, key := range []string{"route", "user_id", "resource", "plan", "limit", "retry_after", "shadow_denied", "status"} {
			if v, ok := d[key]; ok {
				fmt.Fprintf(&short, " %v", v)
			}
		}
		short.WriteString("\n")
	}
	return short.String(), r
}

func wantDecisions(t *testing.T, o *Options, want string) *Report {
	t.Helper()
	got, r := decided(t, o)
	if want = strings.TrimLeft(strings.ReplaceAll(want, "\t", ""), "\n"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	return r
}

func TestRequestsAreJudgedByRoutesAndLimitsOnTheClockOfTheLog(t *testing.T) {
	o := options(t)
	o.Files = []string{logFile(t,
		at(0, 1, "GET /items/1 HTTP/1.1"),
		at(0, 1, "GET /items/2 HTTP/1.1"),
		at(0, 1, "GET /items/3 HTTP/1.1"),
		at(0, 1, "GET /items/4 HTTP/1.1"), // burst is empty
		at(1, 1, "GET /items/5 HTTP/1.1"), // one token is back
		at(1, 2, "GET /items/6 HTTP/1.1"),
		at(1, 2, "GET /items/7 HTTP/1.1"),
		at(1, 2, "GET /items/8 HTTP/1.1"),
		at(1, 3, "GET /items/8 HTTP/1.1"), // all is empty
		at(1, 3, "GET /healthz HTTP/1.1"),
		at(1, 3, "GET /internal/x HTTP/1.1"),
		at(1, 3, "GET /nowhere HTTP/1.1"),
		at(2, 3, "GET /search?cost=7 HTTP/1.1"),
		at(2, 3, "GET /search?cost=7 HTTP/1.1"),
		at(2, 3, "GET /search?cost=11 HTTP/1.1"), // never
		at(2, 3, "GET /search?cost=many HTTP/1.1"),
		at(2, 3, "GET /search?cost=0 HTTP/1.1"),
		at(2, 3, `\x16\x03`),
		at(2, 3, "GET /whose HTTP/1.1"),
		at(2, 3, "GET http://shop.example.com/x HTTP/1.1"),
		"garbage",
		"",
	)}
	r := wantDecisions(t, o, `
		1 allow items 10.0.0.1 read burst
		2 allow items 10.0.0.1 read burst next
		3 allow items 10.0.0.1 read burst next
		4 deny items 10.0.0.1 read burst 1 next
		5 allow items 10.0.0.1 read burst next
		6 allow items 10.0.0.2 read burst
		7 allow items 10.0.0.2 read burst next
		8 allow items 10.0.0.2 read burst next
		9 deny items 10.0.0.3 read all 0.5
		10 pass health
		11 refuse blocked 403
		12 refuse 404
		13 allow search 10.0.0.3 search search
		14 deny search 10.0.0.3 search search 4
		15 deny search 10.0.0.3 search search 0
		16 refuse search 400
		17 allow search 10.0.0.3 search search
		18 refuse 400
		19 allow whose 10.0.0.3 whose whose
		20 allow shop 10.0.0.3 shop shop
		21 unreadable
		22 skipped
	`)
	if got := r.Total; got.Requests != 20 || got.Charged != 15 || got.Denied != 4 || got.Allowed != 11 || got.Passed != 1 || got.Refused != 4 || got.ShadowDenied != 5 {
		t.Errorf("got %+v", got)
	}
	if got := r.Input; got.Lines != 22 || got.Requests != 20 || got.Unreadable != 1 || got.Skipped != 1 || len(got.Examples) != 1 || got.Examples[0].Line != 21 {
		t.Errorf("got %+v", got)
	}
	if got := r.Users; got.Seen != 3 || got.Denied != 2 || got.Top[0].User != "10.0.0.3" || got.Top[0].Denied != 3 || len(got.Top[0].By) != 2 || got.Top[0].By[0].Limit != "search" {
		t.Errorf("got %+v", got)
	}
	wantLimits(t, r, `
		read burst 9: 1 denied, 1 refused, 0 shadow, 1 users
		read all 9: 1 denied, 1 refused, 0 shadow, 1 users
		read next 9: 0 denied, 6 refused, 6 shadow, 0 users
		search search 4: 2 denied, 2 refused, 0 shadow, 1 users
		shop shop 1: 0 denied, 0 refused, 0 shadow, 0 users
		whose whose 1: 0 denied, 0 refused, 0 shadow, 0 users
	`)
}

func wantLimits(t *testing.T, r *Report, want string) {
	t.Helper()
	var got strings.Builder
	for _, l := range r.Limits {
		fmt.Fprintf(&got, "%s %s %d: %d denied, %d refused, %d shadow, %d users\n", l.resource(), l.Limit, l.Requests, l.Denied, l.Refused, l.ShadowDenied, l.UsersDenied)
	}
	if want = strings.TrimLeft(strings.ReplaceAll(want, "\t", ""), "\n"); got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

func TestLinesThatAreTooOldAreTakenAsOfNow(t *testing.T) {
	o := options(t)
	o.Files = []string{logFile(t,
		at(100, 1, "GET /whose HTTP/1.1"),
		at(100, 1, "GET /whose HTTP/1.1"),
		at(20, 1, "GET /whose HTTP/1.1"),
		at(99, 1, "GET /whose HTTP/1.1"),
		at(160, 1, "GET /whose HTTP/1.1"),
	)}
	r := wantDecisions(t, o, `
		1 allow whose 10.0.0.1 whose whose
		2 allow whose 10.0.0.1 whose whose
		3 deny whose 10.0.0.1 whose whose 60
		4 deny whose 10.0.0.1 whose whose 60
		5 allow whose 10.0.0.1 whose whose
	`)
	if r.Input.Clamped != 2 || r.Input.ClampedMost != 80 {
		t.Errorf("got %+v, want 2 lines clamped by up to 80 s", r.Input)
	}
}

func TestLogsAreReadInTheOrderOfTheirTimes(t *testing.T) {
	o := options(t)
	older := logFile(t, at(1, 1, "GET /whose HTTP/1.1"), at(3, 3, "GET /whose HTTP/1.1"), at(3, 4, "GET /whose HTTP/1.1"))
	newer := logFile(t, at(2, 2, "GET /whose HTTP/1.1"), at(3, 5, "GET /whose HTTP/1.1"), at(4, 6, "GET /whose HTTP/1.1"), at(5, 7, "GET /whose HTTP/1.1"))
	empty := logFile(t)
	// Whichever was given first has the word among equals.
	o.Files = []string{newer, empty, older}
	r := wantDecisions(t, o, `
		1 skipped
		1 allow whose 10.0.0.1 whose whose
		1 allow whose 10.0.0.2 whose whose
		2 allow whose 10.0.0.5 whose whose
		2 allow whose 10.0.0.3 whose whose
		3 allow whose 10.0.0.4 whose whose
		3 allow whose 10.0.0.6 whose whose
		4 allow whose 10.0.0.7 whose whose
	`)
	if r.Input.Clamped != 0 {
		t.Errorf("%d lines were clamped", r.Input.Clamped)
	}
}

func TestWhatTheOwnLogLacksStandsAsItWasLogged(t *testing.T) {
	o := options(t)
	own := func(rest string) string {
		return `{"listener":"proxy","client_ip":"10.0.0.1","status":200,"time":"2026-11-26T10:00:01.250Z",` + rest + `}`
	}
	o.Files = []string{logFile(t,
		own(`"method":"GET","path":"/items/1","user_id":"ann","resource":"old","cost":2`), // user_id from a header first
		own(`"method":"GET","path":"/items/1"`),
		own(`"method":"GET","path":"/search","user_id":"ann","cost":4`), // the cost from the query
		own(`"method":"GET","path":"/search","user_id":"ann","cost":7`),
		own(`"method":"GET","path":"/whose","user_id":"ann","cost":2`), // {client_ip}: nothing is lacking
		strings.Replace(own(`"method":"POST","path":"/allow","user_id":"bob","resource":"search","cost":10`), "proxy", "control", 1),
		strings.Replace(own(`"method":"POST","path":"/allow","user_id":"bob","resource":"search","cost":1`), "proxy", "control", 1),
		`{"message":"serving"}`,
		strings.Replace(own(`"endpoint":"/check","method":"GET","path":"/items/1","user_id":"cat","resource":"old"`), "proxy", "control", 1),
		strings.Replace(own(`"request_id":"f","method":"GET","path":"/metrics"`), "proxy", "control", 1),
	)}
	wantDecisions(t, o, `
		1 allow items ann read burst
		2 allow items 10.0.0.1 read burst
		3 allow search ann search search
		4 deny search ann search search 1
		5 allow whose 10.0.0.1 whose whose
		6 allow (/allow) bob search search
		7 deny (/allow) bob search search 1
		8 skipped
		9 allow items cat read burst
		10 skipped
	`)
}

func TestWhatAllowDidNotChargeIsNotCharged(t *testing.T) {
	o := options(t)
	o.Limiter.Plans = map[string]map[string]limiter.ResourceConfig{"gold": {"search": {Capacity: 20, RefillRate: rate(t, "1/s")}}}
	allow := func(rest string) string {
		return `{"listener":"control","method":"POST","path":"/allow","client_ip":"10.0.0.1","time":"2026-11-26T10:00:01Z","user_id":"bob","resource":"search",` + rest + `}`
	}
	o.Files = []string{logFile(t,
		allow(`"cost":10,"decision":"allow","status":200`),
		allow(`"cost":10,"decision":"allow","replayed":true,"status":200`),
		allow(`"cost":0,"decision":"error","status":400`),
		allow(`"cost":4,"decision":"error","status":422`),
		allow(`"cost":1,"decision":"error","status":503`),
		allow(`"cost":10,"plan":"gold","decision":"allow","status":200`),
	)}
	r := wantDecisions(t, o, `
		1 allow (/allow) bob search search
		2 pass (/allow)
		3 refuse (/allow) 400
		4 refuse (/allow) 422
		5 deny (/allow) bob search search 1
		6 allow (/allow) bob search gold search
	`)
	if got, want := r.Total, (Outcome{Requests: 6, Charged: 3, Allowed: 2, Denied: 1, DeniedShare: 1.0 / 3, Passed: 1, Refused: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestOwnLogIsKnownByLinesThatAreSkipped(t *testing.T) {
	o := options(t)
	asked := `{"level":"info","request_id":"f0","listener":"control","method":"GET","path":"/check","status":200,"client_ip":"127.0.0.1","time":"2026-11-26T10:00:01Z"}`
	var lines []string
	for range 2 * sourceBuffer / len(asked) {
		lines = append(lines, asked)
	}
	o.Files = []string{logFile(t, append(lines, strings.ReplaceAll(strings.Replace(asked, "control", "proxy", 1), "/check", "/whose"))...)}
	r, err := Run(context.Background(), o)
	if err != nil || r.Input.Skipped != uint64(len(lines)) || r.Input.Requests != 1 || r.Total.Charged != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestLoggedUsersStandWhereJSONHasNoHeader(t *testing.T) {
	o := options(t)
	lines := []string{
		`{"time":1,"method":"GET","uri":"/items/1","client_ip":"10.0.0.1","who":"ann","x":"bob"}`,
		`{"time":2,"method":"GET","uri":"/whose","client_ip":"10.0.0.1","who":"ann","x":"bob"}`,
	}
	var err error
	if o.Fields, err = ParseFields("user=who"); err != nil {
		t.Fatal(err)
	}
	o.Files = []string{logFile(t, lines...)}
	wantDecisions(t, o, "1 allow items ann read burst\n2 allow whose 10.0.0.1 whose whose\n")
	if o.Fields, err = ParseFields("user=who,header.x-user-id=x"); err != nil {
		t.Fatal(err)
	}
	wantDecisions(t, o, "1 allow items bob read burst\n2 allow whose 10.0.0.1 whose whose\n")
}

func TestHostOfTheCommandLineStandsWhereTheLogHasNone(t *testing.T) {
	o := options(t)
	o.Host = "SHOP.example.com:8080"
	o.Files = []string{logFile(t, at(0, 1, "GET /x HTTP/1.1"), "items.example.com "+at(0, 1, "GET /items/1 HTTP/1.1"))}
	wantDecisions(t, o, "1 allow shop 10.0.0.1 shop shop\n2 allow items 10.0.0.1 read burst\n")
}

func TestForwardedClientsAreWalkedInFrontOfALine(t *testing.T) {
	o := options(t)
	var balancers proxy.Prefix
	if err := balancers.UnmarshalText([]byte("10.0.0.0/8")); err != nil {
		t.Fatal(err)
	}
	o.Proxy.TrustedProxies = []proxy.Prefix{balancers}
	o.Files = []string{logFile(t, "6.6.6.6, 1.2.3.4, "+at(0, 7, "GET /whose HTTP/1.1"), "10.0.0.9, "+strings.Replace(at(0, 7, "GET /whose HTTP/1.1"), "10.0.0.7", "5.6.7.8", 1))}
	wantDecisions(t, o, "1 allow whose 1.2.3.4 whose whose\n2 allow whose 5.6.7.8 whose whose\n")
}

func TestALoginIsWhatTheClientSent(t *testing.T) {
	o := options(t)
	o.Proxy.Routes = []proxy.RouteConfig{{Name: "all", UserID: []proxy.Template{tmpl(t, "{header.Authorization}"), tmpl(t, "{client_ip}")}}}
	o.Files = []string{logFile(t, strings.Replace(at(0, 1, "GET / HTTP/1.1"), "- -", "- ann", 1), at(0, 1, "GET / HTTP/1.1"))}
	wantDecisions(t, o, "1 allow all Basic YW5uOg== all all\n2 allow all 10.0.0.1 all all\n")
}

func TestPlansAreThoseOfTheRequest(t *testing.T) {
	o := options(t)
	o.Proxy.Routes = []proxy.RouteConfig{{Name: "search", UserID: []proxy.Template{tmpl(t, "{header.X-User-Id}")}, Plan: tmpl(t, "{header.X-Plan}"), Cost: tmpl(t, "4")}}
	o.Limiter.Plans = map[string]map[string]limiter.ResourceConfig{
		"gold": {"search": {Capacity: 100, RefillRate: rate(t, "10/s")}}, "silver": {"read": {Capacity: 1, RefillRate: rate(t, "1/s")}},
	}
	var err error
	if o.Fields, err = ParseFields("header.X-User-Id=u,header.X-Plan=p"); err != nil {
		t.Fatal(err)
	}
	line := func(user, plan string) string {
		return fmt.Sprintf(`{"time":1,"method":"GET","uri":"/","u":%q,"p":%q}`, user, plan)
	}
	o.Files = []string{logFile(t, line("a", "gold"), line("a", "gold"), line("a", "gold"), line("b", "silver"), line("b", "-"), line("b", ""), line("b", "silver"))}
	r := wantDecisions(t, o, `
		1 allow search a search gold search
		2 allow search a search gold search
		3 allow search a search gold search
		4 allow search b search silver search
		5 allow search b search search
		6 deny search b search search 2
		7 deny search b search silver search 2
	`)
	wantLimits(t, r, `
		search search 4: 2 denied, 2 refused, 0 shadow, 1 users
		search (gold) search 3: 0 denied, 0 refused, 0 shadow, 0 users
	`)
}

func TestUsersInTheShadowAreNotDenied(t *testing.T) {
	o := options(t)
	percent, err := limiter.ParsePercent("50%")
	if err != nil {
		t.Fatal(err)
	}
	o.Proxy.Routes = []proxy.RouteConfig{
		{Name: "tried", Match: proxy.MatchConfig{Path: []string{"/tried"}}, Shadow: true},
		{Name: "half", UserID: []proxy.Template{tmpl(t, "{header.X-User-Id}")}, Enforce: percent},
	}
	var lines []string
	for range 3 {
		lines = append(lines, at(0, 1, "GET /tried HTTP/1.1"))
	}
	o.Files = []string{logFile(t, lines...)}
	r := wantDecisions(t, o, "1 allow tried 10.0.0.1 tried tried\n2 allow tried 10.0.0.1 tried tried\n3 allow tried 10.0.0.1 tried tried tried\n")
	wantLimits(t, r, "tried tried 3: 0 denied, 1 refused, 1 shadow, 0 users\n")
	if r.Total.ShadowDenied != 1 || r.Users.Denied != 0 {
		t.Errorf("got %+v", r.Total)
	}
	// Whom the share takes in is decided by the logged user, not by what the route found.
	lines = nil
	want := 0
	for user := range 100 {
		for range 3 {
			lines = append(lines, fmt.Sprintf(`{"listener":"proxy","client_ip":"10.0.0.1","method":"GET","path":"/x","status":200,"user_id":"u%d","time":"2026-11-26T10:00:01Z"}`, user))
		}
		if percent.Includes("half", fmt.Appendf(nil, "u%d", user)) {
			want++
		}
	}
	o.Files = []string{logFile(t, lines...)}
	_, r = decided(t, o)
	if int(r.Total.Denied) != want || int(r.Total.ShadowDenied) != 100-want || want < 30 || want > 70 {
		t.Errorf("got %+v, want %d denied", r.Total, want)
	}
}

func TestCredentialsThatLogsLackAreTakenAsGood(t *testing.T) {
	o := options(t)
	o.Proxy.JWT = &proxy.JWTConfig{Secret: strings.Repeat("s", 32), Required: true}
	o.Proxy.Routes = []proxy.RouteConfig{{Name: "all", UserID: []proxy.Template{tmpl(t, "{jwt.sub}"), tmpl(t, "{client_ip}")}}}
	var err error
	if o.Fields, err = ParseFields("jwt.sub=sub,header.Authorization=auth,header.X-Api-Key=key"); err != nil {
		t.Fatal(err)
	}
	const line = `{"time":1,"method":"GET","uri":"/","client_ip":"10.0.0.1"`
	expired, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "bob", "exp": 1}).SignedString([]byte(o.Proxy.JWT.Secret))
	if err != nil {
		t.Fatal(err)
	}
	lines := logFile(t, line+`}`, line+`,"sub":"ann"}`, line+`,"auth":"Bearer `+expired+`"}`, line+`,"auth":"Bearer a.forged.one"}`)
	o.Files = []string{lines}
	wantDecisions(t, o, "1 allow all 10.0.0.1 all all\n2 allow all ann all all\n3 allow all 10.0.0.1 all all\n4 refuse all 401\n")

	o = options(t)
	o.Proxy.Routes = []proxy.RouteConfig{{Name: "all", UserID: []proxy.Template{tmpl(t, "{api_key.user_id}"), tmpl(t, "{client_ip}")}}}
	o.Proxy.APIKeys = &proxy.APIKeysConfig{Required: true, Keys: []proxy.APIKeyConfig{{SHA256: sha256.Sum256([]byte("known")), UserID: "ann"}}}
	if o.Fields, err = ParseFields("header.X-Api-Key=key"); err != nil {
		t.Fatal(err)
	}
	o.Files = []string{logFile(t, line+`}`, line+`,"key":"known"}`, line+`,"key":"unknown"}`)}
	wantDecisions(t, o, "1 allow all 10.0.0.1 all all\n2 allow all ann all all\n3 refuse all 401\n")

	// What a token says leaves the key what it is, and both may be missing.
	o.Proxy.JWT = &proxy.JWTConfig{Secret: strings.Repeat("s", 32), Required: true}
	o.Proxy.Routes[0].UserID = []proxy.Template{tmpl(t, "{jwt.sub}-{api_key.user_id}"), tmpl(t, "{client_ip}")}
	if o.Fields, err = ParseFields("header.X-Api-Key=key,jwt.sub=sub"); err != nil {
		t.Fatal(err)
	}
	o.Files = []string{logFile(t, line+`}`, line+`,"sub":"bob","key":"known"}`, line+`,"sub":"bob","key":"unknown"}`)}
	wantDecisions(t, o, "1 allow all 10.0.0.1 all all\n2 allow all bob-ann all all\n3 refuse all 401\n")
}

// failing fails to write after some bytes.
type failing struct {
	left int
}

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("the disk is full")
	}
	return len(p), nil
}

func TestDecisionsThatCantBeWrittenEndIt(t *testing.T) {
	o := options(t)
	var lines []string
	for i := range 2000 {
		lines = append(lines, at(i, 1, "GET /whose HTTP/1.1"))
	}
	o.Files, o.Decisions = []string{logFile(t, lines...)}, &failing{left: 70_000}
	if _, err := Run(context.Background(), o); err == nil || err.Error() != "write decisions: the disk is full" {
		t.Errorf("got %v", err)
	}
}

func TestContextEndsIt(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	o := options(t)
	o.Files = []string{logFile(t, at(0, 1, "GET /whose HTTP/1.1"))}
	if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestResourcesBeyondThoseToldApartHaveTheirOwnBuckets(t *testing.T) {
	o := options(t)
	o.Target, _ = ParseShare("10%")
	var lines []string
	for i := range 1200 {
		for range 3 { // the default limit has two tokens
			lines = append(lines, at(0, 1, fmt.Sprintf("GET /t/%d HTTP/1.1", i)))
		}
	}
	o.Files = []string{logFile(t, lines...)}
	_, r := decided(t, o)
	if r.Total.Denied != 1200 {
		t.Errorf("%d were denied, want 1200", r.Total.Denied)
	}
	if len(r.Limits) != maxSets+2+1 { // of the two in the file none was asked for, but there is room for them
		t.Errorf("there are %d limits, want %d", len(r.Limits), maxSets+3)
	}
	others := r.Limits[0]
	if others.Resource != otherResources || others.Requests != 3*(1200-maxSets-2) || others.Denied != others.Requests/3 {
		t.Errorf("got %+v", others)
	}
	if target := r.Target.Limits[0]; target.Now.Denied != others.Denied || target.Capacity == nil || target.Capacity.Capacity != 3 {
		t.Errorf("got %+v, %+v", target, target.Capacity)
	}
}

func TestNamesAreNumberedAndKept(t *testing.T) {
	n := newNames()
	long := strings.Repeat("ä", 100)
	for i := range 10_000 {
		if number, isNew := n.number(fmt.Appendf(nil, "user-%d", i)); number != uint32(i) || !isNew {
			t.Fatalf("user %d is number %d", i, number)
		}
	}
	for i := range 10_000 {
		if number, isNew := n.number(fmt.Appendf(nil, "user-%d", i)); number != uint32(i) || isNew || string(n.at(number)) != fmt.Sprintf("user-%d", i) {
			t.Fatalf("user %d is number %d, %q", i, number, n.at(number))
		}
	}
	first, _ := n.number([]byte(long))
	if second, isNew := n.number([]byte(long + "x")); !isNew || second == first {
		t.Error("two long names are one")
	}
	if again, isNew := n.number([]byte(long)); isNew || again != first || len(n.at(first)) > maxName || !strings.HasPrefix(string(n.at(first)), "ää") {
		t.Errorf("got %d %q", again, n.at(first))
	}
}

func TestTimelineWidensAsTimeGoes(t *testing.T) {
	tl := newTimeline()
	start := int64(1_764_151_203)
	var want uint64
	for i := int64(0); i < 40_000; i += 1 + i%7 {
		tl.add((start+i)*second, &outcome{requests: 1, denied: uint64(i % 2)})
		want++
	}
	r := tl.report()
	var got uint64
	for i, b := range r.Bars {
		got += b.Requests
		if b.Start.Unix()%r.Width != 0 || i > 0 && b.Start.Unix()-r.Bars[i-1].Start.Unix() != r.Width {
			t.Errorf("part %d starts at %v, of %d s", i, b.Start, r.Width)
		}
	}
	if got != want || r.Width != 300 || len(r.Bars) > maxBars || r.Bars[0].Start.Unix() > start {
		t.Errorf("got %d requests of %d in %d parts of %d s", got, want, len(r.Bars), r.Width)
	}
	tl.add((start+40_000_000_000)*second, &outcome{requests: 1})
	if r := tl.report(); len(r.Bars) > maxBars || r.Bars[0].Requests < want {
		t.Errorf("a thousand years later: %d parts of %d s", len(r.Bars), r.Width)
	}
}
