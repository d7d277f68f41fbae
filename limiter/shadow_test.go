package limiter

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const shadowConfig = `
default: {capacity: 3, refill_rate: 1/s}
resources:
  search:
    limits:
      - {name: burst, capacity: 4, refill_rate: 2/s}
      - {name: daily, capacity: 5, refill_rate: 1/h}
      - {name: next, shadow: true, capacity: 1, refill_rate: 1/s}
`

// askShadow decides a request that is a shadow, and fails on an error.
func (l testedLimiter) askShadow(t *testing.T, user, resource string, cost int64) *Decision {
	t.Helper()
	d := &Decision{}
	if err := l.Decide(&Request{User: []byte(user), Resource: []byte(resource), Cost: cost, Shadow: true}, d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestShadowRequestIsDecidedAsEverButNeverRefused(t *testing.T) {
	l, same := newTestedLimiter(t, shadowConfig), newTestedLimiter(t, shadowConfig)
	o := l.Outcomes("r")
	for i, step := range []struct {
		after  time.Duration
		cost   int64
		denied string
	}{
		{0, 3, "next"}, {0, 0, ""}, {0, 2, "burst,next"}, {0, 1, ""}, {0, 5, "burst,next"},
		{2 * time.Second, 1, ""}, {0, 1, "daily,next"}, {time.Hour, 1, ""},
	} {
		l.store.advance(step.after)
		same.store.advance(step.after)
		d, want := l.askShadow(t, "a", "search", step.cost), same.ask(t, "a", "search", step.cost)
		o.Count(d, nil)
		if !d.Allowed || d.Waived == want.Allowed || d.Never != want.Never || d.RetryAfter() != want.RetryAfter() ||
			d.TokensLeft() != want.TokensLeft() || d.Binding().Name != want.Binding().Name {
			t.Errorf("%d: got %+v, without the shadow %+v", i, d, want)
		}
		if got := string(d.AppendShadowDenied(nil)); got != step.denied {
			t.Errorf("%d: %q would have denied, want %q", i, got, step.denied)
		}
		for k := range d.Limits {
			if d.Limits[k].Level != want.Limits[k].Level {
				t.Errorf("%d: %s is at %+v, without the shadow at %+v", i, d.Limits[k].Name, d.Limits[k].Level, want.Limits[k].Level)
			}
		}
	}
	if allowed, denied := l.Totals(); allowed != 8 || denied != 0 {
		t.Errorf("totals are %d and %d, want 8 and 0", allowed, denied)
	}
	if all, err := l.Offenders(t.Context(), lastHour, 10); err != nil || len(all) != 0 {
		t.Errorf("offenders are %v, %v", all, err)
	}
	const name = "r8limiter_decisions_total"
	l.wantSeries(t, name,
		name+`{route="r",limit="burst",outcome="allow",reason="shadow"} 2`,
		name+`{route="r",limit="burst",outcome="allow",reason="tokens"} 3`,
		name+`{route="r",limit="burst",outcome="shadow_deny",reason="cost_exceeds_capacity"} 1`,
		name+`{route="r",limit="burst",outcome="shadow_deny",reason="tokens"} 1`,
		name+`{route="r",limit="daily",outcome="allow",reason="shadow"} 1`,
		name+`{route="r",limit="daily",outcome="allow",reason="tokens"} 2`,
		name+`{route="r",limit="daily",outcome="shadow_deny",reason="tokens"} 1`,
		name+`{route="r",limit="next",outcome="shadow_deny",reason="tokens"} 4`)
}

func TestOnlyAnOverrideBlocksAShadowRequest(t *testing.T) {
	l := newTestedLimiter(t, shadowConfig)
	for _, o := range []Override{{User: "bad", Block: true}, {User: "vip", Exempt: true}, {User: "small", Resource: "search", Capacity: 1, RefillRate: rate("1/s")}} {
		if err := l.SetOverride(t.Context(), o, operator); err != nil {
			t.Fatal(err)
		}
	}
	if d := l.askShadow(t, "bad", "search", 1); d.Allowed || d.Waived || d.Override != Blocked {
		t.Errorf("blocked: got %+v", d)
	}
	if d := l.askShadow(t, "vip", "search", 9); !d.Allowed || d.Waived || d.Override != Exempted {
		t.Errorf("exempt: got %+v", d)
	}
	l.askShadow(t, "small", "search", 1)
	if d := l.askShadow(t, "small", "search", 1); !d.Allowed || !d.Waived || d.Binding().Capacity != 1 {
		t.Errorf("a limit of one's own: got %+v", d)
	}
}

func TestStoreThatFailsRefusesNoShadowRequest(t *testing.T) {
	for policy, want := range map[string]StandIn{"deny": AllowedUnasked, "allow": AllowedUnasked, "local": LocalBucket} {
		t.Run(policy, func(t *testing.T) {
			l := limiterOf(t, "default: {capacity: 2, refill_rate: 1/h}\non_store_error: "+policy, &downStore{NewMemoryStore(), true})
			for i, cost := range []int64{1, 1, 1, 3} {
				var d Decision
				err := l.Decide(&Request{User: []byte("a"), Resource: []byte("r"), Cost: cost, Shadow: true}, &d)
				refused := want == LocalBucket && i > 1 || cost == 3
				if err != nil || !d.Allowed || d.StandIn != want || !errors.Is(d.StoreError, errDown) || d.Waived != refused {
					t.Errorf("%d: got %+v, %v", i, d, err)
				}
			}
			if allowed, denied := l.Totals(); allowed != 4 || denied != 0 {
				t.Errorf("totals are %d and %d", allowed, denied)
			}
		})
	}
}

func TestWaivedDecisionIsUsedAgainWithoutTraces(t *testing.T) {
	l := newTestedLimiter(t, shadowConfig)
	used := l.askShadow(t, "a", "search", 9)
	if err := l.Decide(&Request{User: []byte("b"), Resource: []byte("search"), Cost: 1}, used); err != nil {
		t.Fatal(err)
	}
	opts := cmp.AllowUnexported(Decision{}, LimitState{}, Rate{})
	if diff := cmp.Diff(l.ask(t, "c", "search", 1), used, opts); diff != "" {
		t.Errorf("(-fresh +used):\n%s", diff)
	}
}
