package proxy

import (
	"crypto/sha256"
	"strings"
	"testing"
)

func testKeys(required bool) *APIKeysConfig {
	return &APIKeysConfig{Required: required, Keys: []APIKeyConfig{
		{SHA256: sha256.Sum256([]byte("hush-alice")), UserID: "alice", Plan: "gold"},
		{SHA256: sha256.Sum256([]byte("hush-alice-2")), UserID: "alice"},
		{SHA256: sha256.Sum256([]byte("hush bob, the 2nd")), UserID: "bob", Plan: "silver"},
	}}
}

func TestRequestIsCountedToTheUserOfItsKey(t *testing.T) {
	rg := identityRig(t, nil, testKeys(false))
	for _, c := range []struct{ path, fields, want string }{
		{"/key", "X-Api-Key: hush-alice\r\n", "200 alice gold 1"},
		{"/key", "x-api-key:\thush-alice \r\n", "200 alice gold 1"},
		{"/key", "X-Api-Key: hush-alice-2\r\n", "200 alice key 1"},
		{"/key", "X-Api-Key: hush bob, the 2nd\r\n", "200 bob silver 1"},
		{"/key", "", "200 nobody key 1"},
		{"/key", "X-Api-Key:\r\n", "200 nobody key 1"},
		{"/key", "X-Api-Key: hush-alicE\r\n", "401 the API key in the header field X-Api-Key is unknown"},
		{"/key", "X-Api-Key: b7d1f0f0\r\n", "401 the API key in the header field X-Api-Key is unknown"},
		{"/key", "X-Api-Key: hush-alice\r\nX-Api-Key: hush-alice\r\n", "400 header field X-Api-Key is there more than once"},
		{"/key", "X_Api_Key: hush-alice\r\n", "400 header field X_Api_Key is X-Api-Key to some servers"},
		{"/open", "X-Api-Key: hush-unknown\r\n", "200 127.0.0.1 open 1"},
		{"/bypass", "X-Api-Key: hush-unknown\r\n", "200 <nil>"},
	} {
		want(t, c.path+" "+c.fields, rg.asked(t, c.path, c.fields), c.want)
	}
	c := rg.dial(t)
	c.send("GET /key HTTP/1.1\r\nHost: a\r\nX-Api-Key: hush-unknown\r\n\r\n")
	want(t, "answer", steady(c.answer("GET")), unauthorized("the API key in the header field X-Api-Key is unknown", `ApiKey header="X-Api-Key"`))
	if log := rg.log.String(); strings.Contains(log, "hush") {
		t.Errorf("the log holds a key:\n%s", log)
	}
}

func TestRequiredKeyIsRequiredWhereThereIsALimit(t *testing.T) {
	keys := testKeys(true)
	keys.Header = "X-Key"
	rg := identityRig(t, nil, keys)
	for _, c := range []struct{ path, fields, want string }{
		{"/open", "", "401 an API key is needed, in the header field X-Key"},
		{"/open", "X-Api-Key: hush-alice\r\n", "401 an API key is needed, in the header field X-Key"},
		{"/open", "X-Key: hush-mallory\r\n", "401 the API key in the header field X-Key is unknown"},
		{"/open", "X-Key: hush-alice\r\n", "200 127.0.0.1 open 1"},
		{"/key", "X-Key: hush-alice\r\n", "200 alice gold 1"},
		{"/bypass", "", "200 <nil>"},
		{"/block", "", "403 route blocks"},
	} {
		want(t, c.path+" "+c.fields, rg.asked(t, c.path, c.fields), c.want)
	}
}

func TestTokenAndKeyAreBothRequiredWhereBothAre(t *testing.T) {
	rg := identityRig(t, &JWTConfig{Secret: testSecret, Required: true}, testKeys(true))
	token := "Authorization: Bearer " + secretToken(t, map[string]any{"sub": "ann"}) + "\r\n"
	for fields, wanted := range map[string]string{
		"":                                  "401 " + errNoToken.detail,
		token:                               "401 an API key is needed, in the header field X-Api-Key",
		"X-Api-Key: hush-alice\r\n":         "401 " + errNoToken.detail,
		token + "X-Api-Key: hush-alice\r\n": "200 127.0.0.1 open 1",
	} {
		want(t, fields, rg.asked(t, "/open", fields), wanted)
	}
}

func TestDigestIsReadAndWritten(t *testing.T) {
	const text = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"
	for _, c := range []struct{ text, want string }{
		{text, text},
		{strings.ToUpper(text), text},
		{text[1:], "has 63 characters; write the SHA-256 of the key as 64 hexadecimal digits, as `printf %s KEY | sha256sum` shows it"},
		{"", "has 0 characters; write the SHA-256 of the key as 64 hexadecimal digits, as `printf %s KEY | sha256sum` shows it"},
		{"x" + text[1:], "holds something else than hexadecimal digits; write the SHA-256 of the key as `printf %s KEY | sha256sum` shows it"},
	} {
		var d Digest
		got := ""
		if err := d.UnmarshalText([]byte(c.text)); err != nil {
			got = err.Error()
		} else if shown, err := d.MarshalText(); err == nil {
			got = string(shown)
		}
		want(t, c.text, got, c.want)
	}
}
