package admin

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"

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
