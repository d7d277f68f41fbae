package limiter

import (
	"strings"
	"testing"
	"time"
)

func (l testedLimiter) wantFields(t *testing.T, d *Decision, policy, rateLimit string) {
	t.Helper()
	if got := string(d.AppendPolicy(nil)); got != policy {
		t.Errorf("RateLimit-Policy: %s\nwant             %s", got, policy)
	}
	if got := string(d.AppendRateLimit([]byte("kept "))); got != "kept "+rateLimit {
		t.Errorf("RateLimit: %s\nwant  kept %s", got, rateLimit)
	}
}

func TestFieldsListEveryLimitButShadows(t *testing.T) {
	l := newTestedLimiter(t, `
resources:
  search:
    limits:
      - {name: next, shadow: true, capacity: 10, refill_rate: 5/s}
      - {name: burst, capacity: 20, refill_rate: 10/s}
      - {name: other, shadow: true, capacity: 10, refill_rate: 5/s}
      - {name: daily, capacity: 10000, refill_rate: 10000/d}`)
	const policy = `"burst";q=20;w=2,"daily";q=10000;w=86400`
	l.wantFields(t, l.ask(t, "a", "search", 8), policy, `"burst";r=12;t=2,"daily";r=9992;t=86331`)
	l.wantFields(t, l.ask(t, "a", "search", 13), policy, `"burst";r=12;t=1,"daily";r=9992;t=86331`)
	l.wantFields(t, l.ask(t, "a", "search", 12), policy, `"burst";r=0;t=1,"daily";r=9980;t=86228`)
	l.wantFields(t, l.ask(t, "a", "search", 20), policy, `"burst";r=0;t=2,"daily";r=9980;t=86228`)
}

func TestFieldsOfOneLimit(t *testing.T) {
	for _, test := range []struct {
		limit             string
		costs             []int64
		policy, rateLimit string
	}{
		{"{capacity: 1, refill_rate: 1000000/s}", []int64{0}, `"r";q=1;w=1`, `"r";r=1;t=1`},
		{"{capacity: 1000000000, refill_rate: 0.0334/d}", []int64{0},
			`"r";q=1000000000;w=2586826347305390`, `"r";r=1000000000;t=2586826347305390`},
		{"{capacity: 10, refill_rate: 3/s}", []int64{0}, `"r";q=10;w=4`, `"r";r=10;t=4`},
		{"{capacity: 10, refill_rate: 1/m}", []int64{10}, `"r";q=10;w=600`, `"r";r=0;t=60`},
		{"{capacity: 10, refill_rate: 1/m}", []int64{9, 3}, `"r";q=10;w=600`, `"r";r=1;t=120`},
		{"{capacity: 10, refill_rate: 1/m}", []int64{9, 11}, `"r";q=10;w=600`, `"r";r=1;t=60`},
		{"{capacity: 10, refill_rate: 1/m}", []int64{10, 11}, `"r";q=10;w=600`, `"r";r=0;t=60`},
	} {
		l := newTestedLimiter(t, "resources: {r: "+test.limit+"}")
		var d *Decision
		for _, cost := range test.costs {
			d = l.ask(t, "u", "r", cost)
		}
		l.wantFields(t, d, test.policy, test.rateLimit)
	}
}

func TestFieldStringsAreWellFormed(t *testing.T) {
	for name, want := range map[string]string{
		`plain`:             `"plain"`,
		`say "hi"`:          `"say \"hi\""`,
		`back\slash\`:       `"back\\slash\\"`,
		`"`:                 `"\""`,
		`\"\"`:              `"\\\"\\\""`,
		"caf\u00e9":         `"caf??"`,
		"a\r\nX: b\x00\x7f": `"a??X: b??"`,
		"tab\there":         `"tab?here"`,
		"":                  `""`,
	} {
		l := newTestedLimiter(t, "")
		d := l.ask(t, "u", name, 1)
		l.wantFields(t, d, want+";q=10;w=2", want+";r=9;t=2")
		if got := string(d.AppendLimitName(nil, d.Binding())); got != name {
			t.Errorf("the limit's name is %q, want the resource's, %q", got, name)
		}
	}
}

func TestFieldNamesOfLimitsAreEscapedEach(t *testing.T) {
	l := newTestedLimiter(t, `
resources:
  r:
    limits:
      - {name: '"a"', capacity: 1, refill_rate: 1/s}
      - {name: '\b', capacity: 2, refill_rate: 1/s}`)
	l.wantFields(t, l.ask(t, "u", "r", 0), `"\"a\"";q=1;w=1,"\\b";q=2;w=2`, `"\"a\"";r=1;t=1,"\\b";r=2;t=2`)
}

func TestRetryAfterIsRoundedUp(t *testing.T) {
	l := newTestedLimiter(t, "default: {capacity: 1, refill_rate: 0.7/s}")
	d := l.ask(t, "u", "r", 1)
	if d.RetryAfter() != 0 || d.RetryAfterSeconds() != 1 {
		t.Errorf("allowed, but retry after %v, %d s", d.RetryAfter(), d.RetryAfterSeconds())
	}
	for _, test := range []struct {
		after, retry time.Duration
		seconds      int64
	}{
		{0, 1429 * time.Millisecond, 2},
		{428_571 * time.Microsecond, 1001 * time.Millisecond, 2},
		{572 * time.Microsecond, 1000 * time.Millisecond, 1},
		{999_428 * time.Microsecond, time.Millisecond, 1},
	} {
		l.store.advance(test.after)
		d := l.ask(t, "u", "r", 1)
		if d.RetryAfter() != test.retry || d.RetryAfterSeconds() != test.seconds {
			t.Errorf("retry after %v, %d s, want %v, %d s", d.RetryAfter(), d.RetryAfterSeconds(), test.retry, test.seconds)
		}
	}
	l.store.advance(time.Microsecond)
	if d := l.ask(t, "u", "r", 1); !d.Allowed {
		t.Errorf("denied for %v after the whole wait", d.Binding().Wait)
	}
}

func TestResetIsWhenTheBindingBucketIsFull(t *testing.T) {
	l := newTestedLimiter(t, "default: {capacity: 10, refill_rate: 4/s}")
	if got := l.ask(t, "u", "r", 0).Reset(); got != 0 {
		t.Errorf("reset of a full bucket is %v", got)
	}
	if got := l.ask(t, "u", "r", 10).Reset(); got != 2500*time.Millisecond {
		t.Errorf("reset is %v, want 2.5s", got)
	}
}

func TestEmptyDecisionAnswersNothing(t *testing.T) {
	var d Decision
	if d.Binding() != nil || d.TokensLeft() != 0 || d.RetryAfter() != 0 || d.Reset() != 0 ||
		len(d.AppendPolicy(nil)) != 0 || len(d.AppendRateLimit(nil)) != 0 || len(d.Resource()) != 0 {
		t.Errorf("an empty decision says %+v", d)
	}
}

func FuzzFieldString(f *testing.F) {
	f.Add(`a"b\c`)
	f.Add("\x00\xff\r\n")
	f.Fuzz(func(t *testing.T, name string) {
		d := Decision{resource: []byte(name), Limits: []LimitState{{Limit: &Limit{}}}}
		got := string(d.appendQuotedName([]byte("before"), &d.Limits[0]))
		inner, ok := strings.CutPrefix(got, `before"`)
		inner, quoted := strings.CutSuffix(inner, `"`)
		if !ok || !quoted {
			t.Fatalf("%q is not quoted", got)
		}
		read := strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(inner)
		if len(read) != len(name) {
			t.Errorf("%q is read as %q", inner, read)
		}
		for i := range len(read) {
			if printable := name[i] >= ' ' && name[i] <= '~'; printable && read[i] != name[i] || !printable && read[i] != '?' {
				t.Errorf("byte %d of %q is read as %q", i, name, read[i])
			}
		}
	})
}
