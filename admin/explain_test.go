package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// echoQuestion stands for the rules, which this package does not know: the host is the
// question as it was understood.
func echoQuestion(_ context.Context, q *Question) (Explained, error) {
	if q.Method == "BAD" {
		return Explained{}, errors.New("a fault of the question")
	}
	host, err := json.Marshal(fmt.Sprintf("%s %s %s %v %v", q.Method, q.URL, q.IP, q.Headers, q.Claims))
	if err != nil {
		return Explained{}, err
	}
	text := fmt.Sprintf(`{"method":"GET","host":%s,"path":"/","client":{"peer":"::1","trusted":false,"address":"::1","client_ip":"::1"},"routes":[],"route":""}`, host)
	return Explained{JSON: []byte(text), Text: "as text\n"}, nil
}

func TestExplainReadsTheQuestionStrictly(t *testing.T) {
	g := start(t, setup{explain: echoQuestion})
	for _, c := range []struct{ body, status, want string }{
		{`{"url":"/x"}`, "200", ` /x  [] map[]`},
		{`{"method":"GET","url":"https://a/x","ip":"::1","headers":{"X-User-Id":"ann","A":"1"}}`, "200", `GET https://a/x ::1 [[A 1] [X-User-Id ann]] map[]`},
		{`{"url":"/x","headers":[["B","2"],["A","1"],["B","3"]],"claims":{"sub.x":"ann"}}`, "200", `[[B 2] [A 1] [B 3]] map[sub.x:ann]`},
		{`{"url":"/x","headers":{"A":"1","A":"2"}}`, "400", `field \"A\" is there twice`},
		{`{"url":"/x","headers":[["A"]]}`, "400", "headers must be an object of strings"},
		{`{"url":"/x","headers":[["A","1","2"]]}`, "400", "headers must be an object of strings"},
		{`{"url":"/x","headers":{"A":1}}`, "400", "headers must be an object of strings"},
		{`{"url":"/x","headers":"A: 1"}`, "400", "headers must be an object of strings"},
		{`{"url":"/x","claims":{"A":{"headers":"x"}}}`, "400", "must be a string"},
		{`{"url":"/x","URL":"/y"}`, "400", `unknown field \"URL\"`},
		{`{"url":"/x","body":"y"}`, "400", `unknown field`},
		{`{"url":"/x","ip":null}`, "400", `null is no value`},
		{`{"method":"GET"}`, "400", "url is missing"},
		{`{"method":"BAD","url":"/x"}`, "400", "a fault of the question"},
		{`{"url":"/x","headers":[` + strings.Repeat(`["A","1"],`, maxFieldsAsked) + `["A","1"]]}`, "400", "more than 100 fields"},
	} {
		answer := g.send(t, post("/admin/explain", c.body))
		if answer[9:12] != c.status || !strings.Contains(answer, c.want) {
			t.Errorf("%.100s: got %s, want %s %s", c.body, answer, c.status, c.want)
		}
	}
}

func TestExplainAnswersTextWhereItIsAskedFor(t *testing.T) {
	g := start(t, setup{explain: echoQuestion})
	for _, c := range []struct{ query, accept, kind string }{
		{"", "*/*", "application/json"}, {"", "text/plain", "text/plain; charset=utf-8"}, {"", "application/json, text/plain;q=0.5", "application/json"},
		{"?format=text", "application/json", "text/plain; charset=utf-8"}, {"?format=json", "text/plain", "application/json"},
	} {
		raw := post("/admin/explain"+c.query, `{"url":"/x"}`)
		answer := g.send(t, strings.Replace(raw, "\r\n", "\r\nAccept: "+c.accept+"\r\n", 1))
		if got := field(answer, "Content-Type"); got != c.kind {
			t.Errorf("%s %s: got %s", c.query, c.accept, answer)
		}
	}
	if answer := g.send(t, post("/admin/explain?format=xml", `{"url":"/x"}`)); answer[9:12] != "400" {
		t.Errorf("got %s", answer)
	}
}

func TestExplainIsGuardedAndBounded(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken}, explain: echoQuestion})
	if answer := g.send(t, post("/admin/explain", `{"url":"/x"}`)); answer[9:12] != "401" {
		t.Errorf("got %s", answer)
	}
	g = start(t, setup{})
	if answer := g.send(t, post("/admin/explain", `{"url":"/x"}`)); answer[9:12] != "400" || !strings.Contains(answer, "no rules") {
		t.Errorf("got %s", answer)
	}
	if answer := g.send(t, post("/admin/explain", `{"url":"/`+strings.Repeat("x", maxBody)+`"}`)); answer[9:12] != "413" {
		t.Errorf("got %.100s", answer)
	}
}
