package proxy

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestBasicUserIsTheNameBeforeTheColon(t *testing.T) {
	basic := func(pair string) string {
		return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(pair)) + "\r\n"
	}
	for _, c := range []struct{ lines, want string }{
		{"", ""},
		{basic("Aladdin:open sesame"), "Aladdin"},
		{"authorization:  bAsIc   QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n", "Aladdin"},
		{basic("ann:"), "ann"},
		{basic("ann:a:b"), "ann"},
		{basic(":password"), ""},
		{basic(":"), ""},
		{basic("ä b:c"), "ä b"},
		{"Authorization: Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n", ""},
		{"Authorization:\r\n", ""},
		{"Authorization: Basic\r\n", "refused"},
		{"Authorization: Basic\tYTpi\r\n", "refused"}, // some servers split at any white space
		{"Authorization: basic,YTpi\r\n", "refused"},
		{"Authorization: Basics\tYTpi\r\n", ""},
		{"Authorization: Basic \r\n", "refused"},
		{basic("ann"), "refused"},
		{basic("a\x00b:c"), "refused"},
		{basic("a\nb:c"), "refused"},
		{basic("a\x7fb:c"), "refused"},
		{"Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ\r\n", "refused"},
		{"Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ== x\r\n", "refused"},
		{"Authorization: Basic username=ann\r\n", "refused"},
		{"Authorization: Basic =\r\n", "refused"},
		{basic("ann:x") + basic("ann:x"), "refused"},
		{basic("ann:x") + "Authorization: Bearer x\r\n", "refused"},
		{basic("ann:x") + "Connection: Authorization\r\n", "refused"},
	} {
		want(t, c.lines, lookedUp(t, "{basic_user}", c.lines, ""), c.want)
	}
	want(t, "with a filter", lookedUp(t, "u-{basic_user|lower}", basic("ANN:x"), ""), "u-ann")
}

func TestPasswordIsNotKept(t *testing.T) {
	limits := defaultLimits()
	r := &request{}
	if err := r.parseFields([]byte("Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte("ann:hush-hush"))+"\r\n\r\n"), &limits); err != nil {
		t.Fatal(err)
	}
	memory := make([]byte, 0, 100)
	got, err := r.appendBasicUser(memory)
	if err != nil || string(got) != "ann" || strings.Contains(string(memory[:100]), "hush") {
		t.Errorf("got %q, %v, and %q behind it", got, err, memory[:100])
	}
}

func TestBasicThatCannotBeReadIs400(t *testing.T) {
	rg := identityRig(t, nil, nil)
	for fields, wanted := range map[string]string{
		"Authorization: Basic QU5OOng=\r\n": "200 ann basic 1",
		"":                                  "200 anonymous basic 1",
		"Authorization: Basic Ong=\r\n":     "200 anonymous basic 1",
		"Authorization: Basic hush\r\n":     "400 Authorization: Basic does not hold the base64 of a user name, a colon and a password",
		"Authorization: Basic !\r\n":        "400 Authorization: Basic does not hold the base64 of a user name, a colon and a password",
	} {
		want(t, fields, rg.asked(t, "/basic", fields), wanted)
	}
}
