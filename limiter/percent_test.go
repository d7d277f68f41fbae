package limiter

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

func TestPercentsAreReadAndWritten(t *testing.T) {
	for text, want := range map[string]string{
		"5%": "5%", "0.5%": "0.5%", "100%": "100%", "0%": "0%", "100.0000%": "100%", "0.0001%": "0.0001%", "05.50%": "5.5%", "99.9999%": "99.9999%",
		"33.3333%": "33.3333%", "7.0007%": "7.0007%",
	} {
		p, err := ParsePercent(text)
		if err != nil || p.String() != want || !p.IsGiven() {
			t.Errorf("%s: got %s, %v, want %s", text, p, err, want)
		}
		var back Percent
		if written, err := p.MarshalText(); err != nil || back.UnmarshalText(written) != nil || back != p {
			t.Errorf("%s: read back as %s", text, back)
		}
	}
	kept := Percent{5, true}
	for _, text := range []string{"", "5", "%", "-1%", "+1%", "101%", "100.0001%", "0.00001%", "5 %", " 5%", ".5%", "5.%", "5%%", "1e1%", "0x5%", "5,5%", "NaN%", "0.05", "5٪", strings.Repeat("0", 99) + "%"} {
		if err := kept.UnmarshalText([]byte(text)); err != errPercent || kept != (Percent{5, true}) {
			t.Errorf("%q: got %v, %v, want an error that says how to write it", text, kept, err)
		}
	}
	if p := (Percent{}); p.String() != "" || p.IsGiven() || !p.Includes("s", []byte("u")) {
		t.Error("the zero Percent is one that was given")
	}
}

func percent(t testing.TB, text string) Percent {
	t.Helper()
	p, err := ParsePercent(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// share is how many of n users are in p, by names as they occur.
func share(p Percent, salt, pattern string, n int) float64 {
	in := 0
	for i := range n {
		if p.Includes(salt, fmt.Appendf(nil, pattern, i)) {
			in++
		}
	}
	return float64(in) / float64(n)
}

func TestPercentIncludesItsShareOfUsers(t *testing.T) {
	const n = 100_000
	for _, text := range []string{"0%", "0.5%", "5%", "50%", "99.5%", "100%"} {
		for _, pattern := range []string{"%d", "user-%08d", "10.0.%d.1", "%d@example.com"} {
			p := percent(t, text)
			want := float64(p.millionths) / allMillionths
			// Five standard deviations of a fair coin.
			if got, slack := share(p, "read", pattern, n), 5*math.Sqrt(want*(1-want)/n); math.Abs(got-want) > slack {
				t.Errorf("%s of %s: got %.4f, want %.4f within %.4f", text, pattern, got, want, slack)
			}
		}
	}
}

func TestLargerPercentIncludesWhoIsInASmallerOne(t *testing.T) {
	shares := []Percent{percent(t, "0.1%"), percent(t, "1%"), percent(t, "5%"), percent(t, "10%"), percent(t, "60%"), percent(t, "100%")}
	for i := range 10_000 {
		user, in := fmt.Appendf(nil, "user%d", i), false
		for _, p := range shares {
			now := p.Includes("read", user)
			if in && !now {
				t.Fatalf("%s leaves out %s, who is in a smaller share", p, user)
			}
			in = now
		}
	}
}

func TestPercentsOfOtherSaltsIncludeOthers(t *testing.T) {
	p, both := percent(t, "10%"), 0
	const n = 100_000
	for i := range n {
		if user := fmt.Appendf(nil, "user%d", i); p.Includes("read", user) && p.Includes("write", user) {
			both++
		}
	}
	if both < n/100*8/10 || both > n/100*12/10 {
		t.Errorf("%d of %d users are in both shares of 10%%, want about 1%%", both, n)
	}
	// Neither salt nor user can take from the other.
	half, differ := percent(t, "50%"), 0
	for i := range 1000 {
		if half.Includes("a", fmt.Appendf(nil, "b%d", i)) != half.Includes("ab", fmt.Appendf(nil, "%d", i)) {
			differ++
		}
	}
	if differ < 400 {
		t.Errorf("only %d of 1000 differ", differ)
	}
}

// TestPercentIncludesTheSameUsersInEveryVersion has the places of some users, worked
// out apart from this program: XXH64 of salt, a zero byte and user, as a part of 2^64,
// times a million. A rollout must not pick others after an upgrade.
func TestPercentIncludesTheSameUsersInEveryVersion(t *testing.T) {
	for _, fixed := range []struct {
		salt, user string
		place      int32 // who is before it is in
	}{
		{"read", "alice", 845468}, {"read", "bob", 851105}, {"write", "alice", 893000}, {"", "", 910959}, {"items", "198.51.100.7", 687856}, {"items", "2001:db8::/64", 557512},
	} {
		in := Percent{fixed.place + 1, true}.Includes(fixed.salt, []byte(fixed.user))
		out := Percent{fixed.place, true}.Includes(fixed.salt, []byte(fixed.user))
		if !in || out {
			t.Errorf("%q %q: the place is no longer %d", fixed.salt, fixed.user, fixed.place)
		}
	}
}
