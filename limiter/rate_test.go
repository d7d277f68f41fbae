package limiter

import (
	"encoding/json"
	"math/big"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestRateIsExact(t *testing.T) {
	for text, want := range map[string]string{ // tokens per microsecond
		"5":             "1/200000",
		"0.5":           "1/2000000",
		"10/s":          "1/100000",
		"0.5/s":         "1/2000000",
		"0010.500/s":    "21/2000000",
		"1000000/s":     "1/1",
		"60000000/m":    "1/1",
		"86400000000/d": "1/1",
		"1/m":           "1/60000000",
		"10000/d":       "1/8640000",
		"33.333333/s":   "33333333/1000000000000",
		"12345678/d":    "685871/4800000000",
		"0.0334/d":      "167/432000000000000",
		"0.000000386/s": "193/500000000000000",
	} {
		r, err := ParseRate(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := ratOf(r); got.String() != want {
			t.Errorf("%q is %v tokens per microsecond, want %v", text, got, want)
		}
		if r.String() != text {
			t.Errorf("%q is written as %q", text, r.String())
		}
		exact, _ := new(big.Rat).SetString(want)
		perSecond, _ := exact.Mul(exact, big.NewRat(1_000_000, 1)).Float64()
		if got := r.PerSecond(); got != perSecond {
			t.Errorf("%q is %v per second, want %v", text, got, perSecond)
		}
	}
}

func TestBadRateSaysWhatToWrite(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "write a number and a unit",
		"/s":                             "write a number and a unit",
		"5/":                             "write a number and a unit",
		"5/w":                            "write a number and a unit",
		"5/s/s":                          "write a number and a unit",
		"5 /s":                           "write a number and a unit",
		"-5/s":                           "write a number and a unit",
		"+5/s":                           "write a number and a unit",
		"1e3/s":                          "write a number and a unit",
		"0x10/s":                         "write a number and a unit",
		"1_000/s":                        "write a number and a unit",
		"1/3":                            "write a number and a unit",
		".5/s":                           "write a number and a unit",
		"5./s":                           "write a number and a unit",
		"1.2.3/s":                        "write a number and a unit",
		"inf/s":                          "write a number and a unit",
		"NaN":                            "write a number and a unit",
		"٣/s":                            "write a number and a unit",
		"0/s":                            "from 1 per 30 days to 1000000/s",
		"0.00/s":                         "from 1 per 30 days to 1000000/s",
		"0.03/d":                         "from 1 per 30 days to 1000000/s",
		"1000000.1/s":                    "from 1 per 30 days to 1000000/s",
		"1000001/s":                      "from 1 per 30 days to 1000000/s",
		"123456789/d":                    "more than 8 significant digits",
		"0.333333333/s":                  "more than 8 significant digits",
		"0.0333334/d":                    "too many decimals",
		"0.00000038581/s":                "too many decimals",
		strings.Repeat("0", 100) + "1/s": "write a number and a unit",
	} {
		if r, err := ParseRate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: rate %+v, error %v, want %q", text, r, err, want)
		}
	}
}

func TestRateInYAMLAndJSON(t *testing.T) {
	var c struct {
		A, B, C Rate
	}
	if err := yaml.Unmarshal([]byte("a: 5\nb: 0.5/s\nc: 2.5"), &c); err != nil {
		t.Fatal(err)
	}
	if c.A.text != "5" || c.B.text != "0.5/s" || c.C.PerSecond() != 2.5 {
		t.Errorf("got %v, %v, %v", c.A, c.B, c.C)
	}
	text, err := json.Marshal(c.B)
	if err != nil || string(text) != `"0.5/s"` {
		t.Errorf("JSON is %s, error %v", text, err)
	}
	if err := yaml.Unmarshal([]byte("a: fast"), &c); err == nil || !strings.Contains(err.Error(), "write a number") {
		t.Errorf("error %v", err)
	}
	if c.A.text != "5" {
		t.Errorf("a failed decoding changed the rate to %v", c.A)
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"5", "0.5/s", "10000/d", "33.333333/h", "1e5", "/", "0.0334/d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRate(s)
		if err != nil {
			return
		}
		if r.n < 1 || r.n > r.p || r.n >= maxNumerator || r.p >= maxDenominator || (r.p-1)/r.n >= slowest {
			t.Errorf("%q is %d/%d, out of bounds", s, r.n, r.p)
		}
		if again, err := ParseRate(r.String()); err != nil || again != r {
			t.Errorf("%q is written as %q", s, r)
		}
	})
}
