package limiter

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// series returns the lines of l's metrics that hold part.
func (l testedLimiter) series(part string) (lines []string) {
	var text bytes.Buffer
	l.WriteMetrics(&text)
	for line := range strings.Lines(text.String()) {
		if strings.Contains(line, part) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func (l testedLimiter) wantSeries(t *testing.T, part string, want ...string) {
	t.Helper()
	if got := l.series(part); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("series are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestOutcomesAreCountedByRouteLimitAndReason(t *testing.T) {
	l := newTestedLimiter(t, `
resources:
  search:
    limits:
      - {name: burst, capacity: 2, refill_rate: 1/s}
      - {name: next, shadow: true, capacity: 1, refill_rate: 1/s}`)
	o := l.Outcomes("items")
	for _, cost := range []int64{1, 1, 1, 3} {
		o.Count(l.ask(t, "a", "search", cost), nil)
	}
	o.Count(nil, errors.New("down"))
	o.Count(nil, describe(ErrKeyReused))
	once := Request{User: []byte("b"), Resource: []byte("search"), Cost: 1, IdempotencyKey: []byte("k")}
	for range 2 {
		d := &Decision{}
		o.Count(d, l.Decide(&once, d))
	}
	const name = "r8limiter_decisions_total"
	l.wantSeries(t, name,
		name+`{route="items",limit="",outcome="error",reason="idempotency_key_reused"} 1`,
		name+`{route="items",limit="",outcome="error",reason="store"} 1`,
		name+`{route="items",limit="burst",outcome="allow",reason="replayed"} 1`,
		name+`{route="items",limit="burst",outcome="allow",reason="tokens"} 3`,
		name+`{route="items",limit="burst",outcome="deny",reason="cost_exceeds_capacity"} 1`,
		name+`{route="items",limit="burst",outcome="deny",reason="tokens"} 1`,
		name+`{route="items",limit="next",outcome="shadow_deny",reason="tokens"} 3`,
	)
}

func TestNoLabelHoldsWhatAClientChose(t *testing.T) {
	l := newTestedLimiter(t, "")
	for _, resource := range []string{"chosen1", "chosen2", `"} 1`} {
		l.Outcomes("a").Count(l.ask(t, "chosen", resource, 1), nil)
	}
	l.wantSeries(t, "r8limiter_decisions_total",
		`r8limiter_decisions_total{route="a",limit="default",outcome="allow",reason="tokens"} 3`)
	l.wantSeries(t, "chosen")
}

func TestLabelsAreEscaped(t *testing.T) {
	l := newTestedLimiter(t, `
resources:
  "a\"b\\c\nd": {capacity: 1, refill_rate: 1/s}`)
	l.Outcomes("x\"y\\\n").Count(l.ask(t, "u", "a\"b\\c\nd", 1), nil)
	l.wantSeries(t, "r8limiter_decisions_total",
		`r8limiter_decisions_total{route="x\"y\\\n",limit="a\"b\\c\nd",outcome="allow",reason="tokens"} 1`)
}

func TestEqualLimitNamesOfTwoResourcesAreOneSeries(t *testing.T) {
	l := newTestedLimiter(t, `
resources:
  a: {limits: [{name: burst, capacity: 1, refill_rate: 1/s}]}
  b: {limits: [{name: burst, capacity: 1, refill_rate: 1/s}]}`)
	for _, resource := range []string{"a", "b"} {
		l.Outcomes("r").Count(l.ask(t, "u", resource, 1), nil)
	}
	l.wantSeries(t, "r8limiter_decisions_total",
		`r8limiter_decisions_total{route="r",limit="burst",outcome="allow",reason="tokens"} 2`)
}

func TestOutcomesOfARouteAreShared(t *testing.T) {
	l := newTestedLimiter(t, "")
	d := l.ask(t, "u", "r", 1)
	together(8, func(int) bool {
		for range 100 {
			l.Outcomes("r").Count(d, nil)
		}
		return true
	})
	l.wantSeries(t, "r8limiter_decisions_total",
		`r8limiter_decisions_total{route="r",limit="default",outcome="allow",reason="tokens"} 800`)
	if l.Outcomes("r") != l.Outcomes("r") || l.Outcomes("r") == l.Outcomes("s") {
		t.Error("one route has two counters, or two have one")
	}
}

func TestTotalsAndActiveKeysAreMetrics(t *testing.T) {
	l := newTestedLimiter(t, "default: {capacity: 2, refill_rate: 1/h}")
	for range 5 {
		l.ask(t, "u", "r", 1)
	}
	l.wantSeries(t, "requests_total", `requests_total{result="allow"} 2`, `requests_total{result="deny"} 3`)
	l.wantSeries(t, "active_keys", "active_keys 1")
	l.wantSeries(t, "r8limiter_store_overflow_total", "r8limiter_store_overflow_total 0")
}
