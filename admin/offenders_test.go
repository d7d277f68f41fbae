package admin

import (
	"fmt"
	"testing"
)

func TestTopOffendersOfEveryWindowAndBucket(t *testing.T) {
	g := start(t, setup{})
	for user, denials := range map[string]int{"ann": 1, "bob": 3, "c%2Fd": 2, "eve": 0} {
		g.do(t, "POST", "/allow?cost=10&user_id="+user)
		for range denials {
			g.do(t, "POST", "/allow?user_id="+user)
		}
	}
	list := `[{"user_id":"bob","denies":3},{"user_id":"c/d","denies":2},{"user_id":"ann","denies":1}]`
	for _, c := range []struct{ query, window, bucket, list string }{
		{"", "1h", "minute", list},
		{"?window=15m", "15m", "minute", list},
		{"?window=6h", "6h", "minute", list},
		{"?window=7d&bucket=hour", "7d", "hour", list},
		{"?bucket=day&window=31d", "31d", "day", list},
		{"?window=1m&bucket=day", "1m", "day", list},
		{"?top_n=2", "1h", "minute", `[{"user_id":"bob","denies":3},{"user_id":"c/d","denies":2}]`},
		{"?top_n=100&window=%31h", "1h", "minute", list},
	} {
		want := fmt.Sprintf(`200 {"window":"%s","bucket":"%s","top_offenders":%s}`, c.window, c.bucket, c.list)
		if got := g.says(t, "GET", "/admin/top_offenders"+c.query, ""); got != want {
			t.Errorf("%s\n got %s\nwant %s", c.query, got, want)
		}
	}
	if got, want := start(t, setup{}).says(t, "GET", "/admin/top_offenders", ""), `200 {"window":"1h","bucket":"minute","top_offenders":[]}`; got != want {
		t.Errorf("nobody denied: got %s, want %s", got, want)
	}
}

func TestBadWindowsAndBucketsAre400(t *testing.T) {
	g := start(t, setup{})
	malformed := func(window string) string {
		return fmt.Sprintf(`window \"%s\" is malformed: write a number and m, h or d, as in 15m, 6h or 7d`, window)
	}
	for query, want := range map[string]string{
		"window=":                   malformed(""),
		"window=h":                  malformed("h"),
		"window=1":                  malformed("1"),
		"window=0h":                 malformed("0h"),
		"window=-1h":                malformed("-1h"),
		"window=1.5h":               malformed("1.5h"),
		"window=1h30m":              malformed("1h30m"),
		"window=90s":                malformed("90s"),
		"window=1w":                 malformed("1w"),
		"window=1H":                 malformed("1H"),
		"window=65536m":             malformed("65536m"),
		"window=99999999999999d":    malformed("99999999999999d"),
		"window=361m&bucket=minute": `window 361m is longer than buckets of one minute are kept: at most 6h0m0s; a longer bucket goes further back`,
		"window=8d&bucket=hour":     `window 8d is longer than buckets of one hour are kept: at most 168h0m0s; a longer bucket goes further back`,
		"window=32d&bucket=day":     `window 32d is longer than buckets of one day are kept: at most 744h0m0s; a longer bucket goes further back`,
		"window=65535d&bucket=day":  `window 65535d is longer than buckets of one day are kept: at most 744h0m0s; a longer bucket goes further back`,
		"bucket=":                   `bucket \"none\" is unknown: write minute, hour or day`,
		"bucket=Minute":             `bucket \"Minute\" is unknown: write minute, hour or day`,
		"bucket=week":               `bucket \"week\" is unknown: write minute, hour or day`,
		"top_n=101":                 `top_n \"101\" is not a whole number from 1 to 100`,
		"top_n=0":                   `top_n \"0\" is not a whole number from 1 to 100`,
		"top_n=%2B1":                `top_n \"+1\" is not a whole number from 1 to 100`,
		"top_n=1e1":                 `top_n \"1e1\" is not a whole number from 1 to 100`,
		"window=1h&window=2h":       `parameter \"window\" is given more than once`,
		"windows=1h":                `unknown parameter \"windows\": there is bucket, top_n, window`,
		"window=%zz":                `malformed escape \"%zz\": write %25 for a percent sign`,
	} {
		if got := g.says(t, "GET", "/admin/top_offenders?"+query, ""); got != `400 {"error":"`+want+`"}` {
			t.Errorf("%s\n got %s\nwant %s", query, got, want)
		}
	}
}
