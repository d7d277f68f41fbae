package limiter

import (
	"strings"
	"testing"
)

func TestNearestIsWhatWasMeant(t *testing.T) {
	known := []string{"listen", "limits", "routes", "upstreams", "refill_rate", "max_conns", "read", "a", "b"}
	for word, want := range map[string]string{
		"lisen":                        "listen",
		"lsiten":                       "listen", // two letters swapped are one slip
		"Listen":                       "listen",
		"limit":                        "limits",
		"upstream":                     "upstreams",
		"refillRate":                   "refill_rate",
		"refill-rate":                  "refill_rate",
		"refil_rat":                    "refill_rate",
		"maxconn":                      "max_conns",
		"raed":                         "read",
		"rest":                         "", // two slips in four letters
		"write":                        "",
		"c":                            "", // changed wholly, it is another name
		"":                             "",
		"proxy":                        "",
		"connections":                  "",
		strings.Repeat("listen", 1000): "",
	} {
		if got, ok := Nearest(word, known); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", word, got, ok, want)
		}
	}
}

func TestNearestIsTheFirstOfThoseAsNear(t *testing.T) {
	if got := DidYouMean("reed", []string{"rend", "read", "reeds"}); got != `; did you mean "rend"?` {
		t.Errorf("got %q", got)
	}
	if got := DidYouMean("x", nil); got != "" {
		t.Errorf("got %q where nothing is known", got)
	}
}

func TestMeantIsTheOneThatAWordIsPartOf(t *testing.T) {
	known := []string{"log", "user_id", "refill_rate", "connect_timeout", "response_timeout"}
	for word, want := range map[string]string{
		"logging": "log",
		"user":    "user_id",
		"rate":    "refill_rate",
		"refill":  "refill_rate",
		"timeout": "", // there are two
		"id":      "", // too short to tell
		"fill":    "", // neither begins nor ends one
		"lag":     "log",
		"":        "",
	} {
		if got, ok := Meant(word, known); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", word, got, ok, want)
		}
	}
}

func TestSlipsAreCountedAsByHand(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "abd", 1}, {"abc", "ac", 1}, {"abc", "abxc", 1},
		{"ab", "ba", 1}, {"abcd", "badc", 2}, {"ca", "abc", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2},
	} {
		if got := slips(c.a, c.b, 9); got != c.want {
			t.Errorf("%q to %q: got %d, want %d", c.a, c.b, got, c.want)
		}
		if got := slips(c.b, c.a, 9); got != c.want {
			t.Errorf("%q to %q: got %d, want %d", c.b, c.a, got, c.want)
		}
		if got := slips(c.a, c.b, 2); got != min(c.want, 2) {
			t.Errorf("%q to %q: got %d, want 2 at most", c.a, c.b, got)
		}
	}
}
