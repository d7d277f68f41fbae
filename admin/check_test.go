package admin

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/valyala/fasthttp"
)

// FuzzCheckFields holds what /check takes for the described request's fields
// against net/http: each is there in its order, and none that describes or is of the
// connection.
func FuzzCheckFields(f *testing.F) {
	f.Add("X-Forwarded-Uri: /a\r\nX-User-Id: a\r\nx-user-id: b\r\n")
	f.Add("X-Original-URL: https://a.example/b?c\r\nConnection: x-user-id\r\nX-User-Id: a\r\n")
	f.Add("X-Original-URI: /a\r\nX-Forwarded-Uri:\r\nCookie:\t a=b \r\nX-R8limiter-Token: t\r\n")
	f.Fuzz(func(t *testing.T, fields string) {
		raw := "GET /check HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n"
		ctx := new(fasthttp.RequestCtx)
		if err := ctx.Request.Read(bufio.NewReader(strings.NewReader(raw))); err != nil || checkRequest(&ctx.Request.Header) != nil {
			return
		}
		want, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return // what is amiss in a value is Judge's to find
		}
		x := &exchange{ctx: ctx, check: &check{}}
		if x.describe() != nil {
			return
		}
		got := http.Header{}
		for _, field := range x.check.asked.Fields {
			got.Add(string(field.Name), string(field.Value))
		}
		for _, option := range want.Header["Connection"] {
			for name := range strings.SplitSeq(option, ",") {
				want.Header.Del(strings.Trim(name, " \t"))
			}
		}
		for name := range want.Header {
			if describerNamed([]byte(name)) != nil || isOfQuestion([]byte(name)) {
				want.Header.Del(name)
			}
		}
		if len(x.check.asked.Target) == 0 || !bytes.Contains([]byte(raw), x.check.asked.Target) {
			t.Errorf("%q: got the target %q", raw, x.check.asked.Target)
		}
		for name, values := range got {
			if strings.Join(values, "\n") != strings.Join(want.Header[name], "\n") {
				t.Errorf("%q: got %s: %q, want %q", raw, name, values, want.Header[name])
			}
			want.Header.Del(name)
		}
		if len(want.Header) > 0 {
			t.Errorf("%q: missing %v", raw, want.Header)
		}
	})
}

func TestCheckTellsAPortOfAHost(t *testing.T) {
	x := newExchange()
	for host, want := range map[string]int{"a": 80, "a:8000": 8000, "[::1]": 80, "[::1]:81": 81, "a:": -1, "a:x": -1, "a:99999": -1, "": 80} {
		if got := x.portOf([]byte(host)); got != want {
			t.Errorf("%q: got %d, want %d", host, got, want)
		}
	}
}

// auth_request of nginx answers 500 to whatever is neither 401 nor 403.
func TestDenyStatusIsThatOfEveryRefusal(t *testing.T) {
	asked := []string{"X-Forwarded-Uri: /items", "X-Forwarded-For: 192.0.2.1"}
	with := func(fields ...string) string {
		return request("GET", "/check?deny_status=403", append(fields, asked...)...)
	}
	many := make([]string, maxFields)
	for i := range many {
		many[i] = fmt.Sprintf("X-%d: y", i)
	}
	for _, c := range []struct{ what, raw, told, token string }{
		{"too many fields", with(many...), "431", ""},
		{"too many fields, without the token", with(many...), "431", allowToken},
		{"a folded field", with("X: y\r\n z"), "400", ""},
		{"two lengths", with("Content-Length: 0", "Transfer-Encoding: chunked") + "0\r\n\r\n", "400", ""},
		{"a large body", with("Content-Length: 65537"), "413", ""},
		{"too large a head", with("X: " + strings.Repeat("y", maxHead-200)), "200", ""},
		{"another version", strings.Replace(with(), "HTTP/1.1", "HTTP/1.2", 1), "", ""},
		{"no token", with(), "", allowToken},
		{"a wrong token", with("X-R8limiter-Token: wrong"), "", allowToken},
		{"a rebound page", strings.Replace(with(), "localhost", "evil.example:PORT", 1), "", ""},
	} {
		g := start(t, setup{config: Config{AllowToken: c.token}})
		_, port, _ := strings.Cut(g.addr, ":")
		answer := g.send(t, strings.Replace(c.raw, "PORT", port, 1))
		want := "403"
		if c.told == "200" {
			want = c.told
		}
		if answer[9:12] != want || want == "403" && field(answer, "X-R8limiter-Status") != c.told || field(answer, "WWW-Authenticate") != "" {
			t.Errorf("%s: got %.400q, want %s and in X-R8limiter-Status %q", c.what, answer, want, c.told)
		}
	}
}

// A client that is not told that it is at fault must not be asked for a token either.
func TestTooManyWrongTokensAtCheckGetTheDenyStatus(t *testing.T) {
	g := start(t, setup{config: Config{AllowToken: allowToken}})
	g.guesses.waiting.Store(maxGuessers)
	wrong := request("GET", "/check?deny_status=403", "X-Forwarded-Uri: /items", "X-R8limiter-Token: wrong")
	for range freeGuesses + 1 {
		if answer := g.send(t, wrong); answer[9:12] != "403" || field(answer, "X-R8limiter-Status") != "" {
			t.Errorf("got %q", answer)
		}
	}
}

// What can't be read as a status is in force for nothing.
func TestBrokenDenyStatusIsRefusedAsItself(t *testing.T) {
	g := start(t, setup{})
	for _, query := range []string{"deny_status=200", "deny_status=403&deny_status=404", "deny_status=403&x=1", "x=1&deny_status=403"} {
		answer := g.send(t, request("GET", "/check?"+query, "X-Forwarded-Uri: /nowhere"))
		if answer[9:12] != "400" || field(answer, "X-R8limiter-Status") != "" {
			t.Errorf("%s: got %q, want 400", query, answer)
		}
	}
}

// committing is a store in which a decision meets a reload.
type committing struct {
	*limiter.MemoryStore
	commit func()
}

func (c *committing) Decide(ctx context.Context, s *limiter.Spend, d *limiter.Decision) error {
	c.commit()
	return c.MemoryStore.Decide(ctx, s, d)
}

func TestFieldsAreThoseOfTheLimitsThatDecidedAcrossAReload(t *testing.T) {
	for _, raw := range []string{request("POST", "/allow?user_id=a"), request("GET", "/check", "X-Forwarded-Uri: /items")} {
		store := &committing{MemoryStore: limiter.NewMemoryStore()}
		g := start(t, setup{store: store})
		other := frozen(t, 99)
		other.Headers = []string{"legacy"}
		store.commit = func() { g.Limiter.Commit(g.Limiter.Prepare(other)) }
		answer := g.send(t, raw)
		if !strings.Contains(field(answer, "RateLimit-Policy"), "q=10;") || field(answer, "X-RateLimit-Limit") != "" {
			t.Errorf("got %q, want the fields of before", answer)
		}
		if answer := g.send(t, raw); field(answer, "X-RateLimit-Limit") != "99" {
			t.Errorf("then got %q, want the fields of the reload", answer)
		}
	}
}
