package limiter

import (
	"fmt"
	"testing"
)

func TestAppliedSaysWhichLimitsHoldAndWhy(t *testing.T) {
	l := newTestedLimiter(t, explainConfig+"on_store_error: deny\n")
	for _, o := range []Override{{User: "own", Resource: "search", Capacity: 70, RefillRate: mustRate(t, "1/s")}, {User: "vip", Exempt: true}} {
		if err := l.SetOverride(t.Context(), o, operator); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ user, resource, plan, want string }{
		{"a", "read", "", "config [read 5] false deny"},
		{"a", "read", "gold", "plan [read 12] true deny"},
		{"a", "read", "silver", "config [read 5] false deny"},
		{"a", "search", "gold", "config [burst 6 everyone 9 next 2] true deny"},
		{"a", "unheard of", "", "default [unheard of 3] false deny"},
		{"own", "search", "", "override [search 70 everyone 9 next 2] false deny"},
		{"vip", "read", "", "config [read 5] false deny"},
	} {
		a := l.Applied(&Request{User: []byte(c.user), Resource: []byte(c.resource), Plan: []byte(c.plan)})
		var limits []any
		for _, limit := range a.Limits {
			limits = append(limits, limit.Name, limit.Capacity)
		}
		if got := fmt.Sprint(a.Source, " ", limits, " ", a.PlanKnown, " ", a.OnStoreError); got != c.want {
			t.Errorf("%s %s %s: got %s, want %s", c.user, c.resource, c.plan, got, c.want)
		}
	}
	other := l.Prepare(configOf(t, "resources: {read: {capacity: 77, refill_rate: 1/h}}"))
	if a := l.Applied(&Request{Resource: []byte("read"), Limits: other}); a.Limits[0].Capacity != 77 {
		t.Errorf("by other limits: got %+v", a)
	}
}

func TestPlaceOfIsWhereSharesBegin(t *testing.T) {
	for i := range 2000 {
		user := fmt.Appendf(nil, "user%d", i)
		place := PlaceOf("route", user)
		if place.Includes("route", user) {
			t.Errorf("%s is in the share of %s, its own place", user, place)
		}
		if above := (Percent{place.millionths + 1, true}); !above.Includes("route", user) {
			t.Errorf("%s is not in the share of %s, above its place", user, above)
		}
	}
}
