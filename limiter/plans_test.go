package limiter

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const plansConfig = `
default: {capacity: 2, refill_rate: 1/h}
resources:
  read: {capacity: 3, refill_rate: 1/h, on_store_error: deny, precision: leased}
  search:
    limits:
      - {name: burst, capacity: 4, refill_rate: 1/h}
      - {name: everyone, per: resource, capacity: 100, refill_rate: 1/h}
plans:
  gold:
    read: {capacity: 10, refill_rate: 1/h}
    search: {limits: [{name: burst, capacity: 8, refill_rate: 1/h}, {name: extra, capacity: 9, refill_rate: 1/h}]}
    unlisted: {capacity: 6, refill_rate: 1/h, on_store_error: allow, precision: exact}
  free.v-1_x:
    read: {capacity: 1, refill_rate: 1/h, on_store_error: allow, precision: exact}
`

// askPlan decides for a user of a plan and fails on an error.
func (l testedLimiter) askPlan(t *testing.T, plan, user, resource string, cost int64) *Decision {
	t.Helper()
	d := &Decision{}
	if err := l.Decide(&Request{User: []byte(user), Resource: []byte(resource), Plan: []byte(plan), Cost: cost}, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// capacities are those of the limits that d went by.
func capacities(d *Decision) (all []int64) {
	for i := range d.Limits {
		all = append(all, d.Limits[i].Capacity)
	}
	return all
}

func TestPlanReplacesTheLimitsOfItsResources(t *testing.T) {
	l := newTestedLimiter(t, plansConfig)
	for _, test := range []struct {
		plan, resource string
		want           []int64
	}{
		{"", "read", []int64{3}},
		{"gold", "read", []int64{10}},
		{"free.v-1_x", "read", []int64{1}},
		{"gold", "search", []int64{8, 9}},
		{"free.v-1_x", "search", []int64{4, 100}},
		{"gold", "unlisted", []int64{6}},
		{"", "unlisted", []int64{2}},
		{"gold", "unheard of", []int64{2}},
		{"Gold", "read", []int64{3}},
		{"{hostile}\x00", "read", []int64{3}},
		{strings.Repeat("gold", 10_000), "read", []int64{3}},
	} {
		if diff := cmp.Diff(test.want, capacities(l.askPlan(t, test.plan, "a", test.resource, 0))); diff != "" {
			t.Errorf("plan %.20q, resource %s (-want +got):\n%s", test.plan, test.resource, diff)
		}
	}
}

func TestWhoChangesPlansKeepsTheDebt(t *testing.T) {
	l := newTestedLimiter(t, plansConfig)
	l.askPlan(t, "gold", "a", "read", 7)
	if d := l.askPlan(t, "", "a", "read", 1); d.Allowed || d.Limits[0].Level.Debt != 7 {
		t.Errorf("without the plan: allowed %v with a debt of %d, want a denial and 7", d.Allowed, d.Limits[0].Level.Debt)
	}
	if d := l.askPlan(t, "gold", "a", "read", 3); !d.Allowed || d.TokensLeft() != 0 {
		t.Errorf("back in the plan: allowed %v, %v tokens left, want the last 3", d.Allowed, d.TokensLeft())
	}
	l.askPlan(t, "gold", "a", "search", 5)
	if d := l.ask(t, "a", "search", 0); d.Limits[0].Level.Debt != 5 || d.Limits[1].Level.Debt != 0 {
		t.Errorf("debts are %d and %d, want 5 in the limit of the same name alone", d.Limits[0].Level.Debt, d.Limits[1].Level.Debt)
	}
}

func TestPlanCountsAsItsResource(t *testing.T) {
	l := newTestedLimiter(t, plansConfig)
	o := l.Outcomes("r")
	for _, cost := range []int64{10, 1, 11} {
		o.Count(l.askPlan(t, "gold", "a", "read", cost), nil)
	}
	l.askPlan(t, "gold", "a", "unlisted", 1)
	totals, offenders, err := l.Stats(t.Context(), lastHour, 10)
	if err != nil || totals.Allowed != 2 || totals.Denied != 2 || !cmp.Equal(offenders, []Offender{{"a", 2}}) {
		t.Errorf("got %+v, %v, %v", totals, offenders, err)
	}
	read, err := l.Resource(t.Context(), "read")
	if err != nil || read.Allowed != 1 || read.Denied != 2 || read.Limits[0].Capacity != 3 {
		t.Errorf("got %+v, %v", read, err)
	}
	unlisted, err := l.Resource(t.Context(), "unlisted")
	if err != nil || unlisted.Source != FromDefault || unlisted.Allowed != 1 {
		t.Errorf("got %+v, %v", unlisted, err)
	}
	const name = "r8limiter_decisions_total"
	l.wantSeries(t, name,
		name+`{route="r",limit="read",outcome="allow",reason="tokens"} 1`,
		name+`{route="r",limit="read",outcome="deny",reason="cost_exceeds_capacity"} 1`,
		name+`{route="r",limit="read",outcome="deny",reason="tokens"} 1`)
}

func TestOverrideGoesBeforeThePlanAndThePlanBeforePersistedLimits(t *testing.T) {
	l := newTestedLimiter(t, plansConfig)
	slow := rate("1/h")
	set := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	set(l.SetLimits(t.Context(), "read", ResourceConfig{Capacity: 20, RefillRate: slow}, operator))
	set(l.SetLimits(t.Context(), "unlisted", ResourceConfig{Capacity: 21, RefillRate: slow}, operator))
	set(l.SetOverride(t.Context(), Override{User: "big", Resource: "read", Capacity: 30, RefillRate: slow}, operator))
	set(l.SetOverride(t.Context(), Override{User: "vip", Exempt: true}, operator))
	set(l.SetOverride(t.Context(), Override{User: "bad", Block: true}, operator))
	for _, test := range []struct {
		plan, user, resource string
		want                 []int64
	}{
		{"", "a", "read", []int64{20}}, {"gold", "a", "read", []int64{10}},
		{"", "a", "unlisted", []int64{21}}, {"gold", "a", "unlisted", []int64{6}},
		{"gold", "big", "read", []int64{30}}, {"gold", "big", "search", []int64{8, 9}},
	} {
		if diff := cmp.Diff(test.want, capacities(l.askPlan(t, test.plan, test.user, test.resource, 0))); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", test, diff)
		}
		if diff := cmp.Diff(test.want, l.applied(test.plan, test.user, test.resource)); diff != "" {
			t.Errorf("explained: %+v (-want +got):\n%s", test, diff)
		}
	}
	if d := l.askPlan(t, "gold", "vip", "read", 1); d.Override != Exempted || d.TokensLeft() != 10 {
		t.Errorf("exempt: override %v with %v tokens, want the plan's 10", d.Override, d.TokensLeft())
	}
	if d := l.askPlan(t, "gold", "bad", "read", 1); d.Override != Blocked || d.Allowed {
		t.Errorf("blocked: got %+v", d)
	}
}

// applied are the capacities that are explained to hold.
func (l testedLimiter) applied(plan, user, resource string) (all []int64) {
	for _, limit := range l.Applied(&Request{User: []byte(user), Resource: []byte(resource), Plan: []byte(plan)}).Limits {
		all = append(all, limit.Capacity)
	}
	return all
}

func TestOverrideLeavesWhatThePlansUsersShare(t *testing.T) {
	l := newTestedLimiter(t, `
default: {capacity: 2, refill_rate: 1/h}
resources: {read: {capacity: 3, refill_rate: 1/h}}
plans: {gold: {read: {limits: [{name: own, capacity: 50, refill_rate: 1/h}, {name: everyone, per: resource, capacity: 4, refill_rate: 1/h}]}}}
`)
	check := func(plan string, d *Decision) {
		t.Helper()
		if diff := cmp.Diff(capacities(d), l.applied(plan, "vip", "read")); diff != "" {
			t.Errorf("plan %q: -decides +explained:\n%s", plan, diff)
		}
	}
	if err := l.SetOverride(t.Context(), Override{User: "vip", Resource: "read", Capacity: 30, RefillRate: rate("1/h")}, operator); err != nil {
		t.Fatal(err)
	}
	if d := l.askPlan(t, "gold", "ann", "read", 3); !d.Allowed {
		t.Fatalf("got %+v", d)
	}
	for i, want := range []bool{true, false} {
		d := l.askPlan(t, "gold", "vip", "read", 1)
		check("gold", d)
		if d.Allowed != want {
			t.Errorf("request %d of the user with an override: allowed %t, want %t, by %v", i, d.Allowed, want, capacities(d))
		}
	}
	d := l.askPlan(t, "", "vip", "read", 20)
	check("", d)
	if !d.Allowed {
		t.Errorf("without the plan: denied by %v, though its limit is 30", capacities(d))
	}
}

func TestPlanUsesTheStoreAsItsResourceUnlessItSaysOtherwise(t *testing.T) {
	l := New(newTestedLimiter(t, plansConfig).Current().config, NewMemoryStore())
	resources := l.Current().inForce.Load().resources
	for _, test := range []struct {
		plan, resource string
		policy         Policy
		leased         bool
	}{
		{"", "read", StandInDeny, true}, {"gold", "read", StandInDeny, true}, {"free.v-1_x", "read", StandInAllow, false},
		{"gold", "search", StandInLocal, false}, {"gold", "unlisted", StandInAllow, false},
	} {
		rules := resources[test.resource].of([]byte(test.plan))
		if rules.policy != test.policy || rules.leased != test.leased {
			t.Errorf("%+v: policy %s, leased %v", test, rules.policy, rules.leased)
		}
	}
}

func TestSharedBucketOfAPlanStandsInWithItsShare(t *testing.T) {
	l := limiterOf(t, plansConfig+"replicas: 2\n", &downStore{NewMemoryStore(), true})
	var d Decision
	req := Request{User: []byte("a"), Resource: []byte("search"), Plan: []byte("gold"), Cost: 1}
	if err := l.Decide(&req, &d); err != nil || d.StandIn != LocalBucket || !cmp.Equal(capacities(&d), []int64{4, 4}) {
		t.Errorf("got %+v, %v", d, err)
	}
	req.Resource = []byte("read")
	if err := l.Decide(&req, &d); !errors.Is(err, errDown) {
		t.Errorf("got %v, want the resource's deny", err)
	}
}

func TestUserAndResetKnowTheLimitsOfPlans(t *testing.T) {
	l := newTestedLimiter(t, plansConfig)
	l.askPlan(t, "gold", "a", "search", 5)
	states, err := l.User(context.Background(), []byte("a"), []byte("gold"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range states {
		for j := range states[i].Limits {
			got = append(got, string(states[i].AppendLimitName(append(states[i].Resource(), ' '), &states[i].Limits[j])))
		}
	}
	if diff := cmp.Diff([]string{"read read", "search burst", "search extra", "unlisted unlisted"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if left := states[1].TokensLeft(); left != 3 {
		t.Errorf("%v tokens left, want 3", left)
	}
	if _, err := l.Reset(t.Context(), "a", "search", operator); err != nil {
		t.Fatal(err)
	}
	for _, s := range l.askPlan(t, "gold", "a", "search", 0).Limits {
		if s.Level.Debt != 0 {
			t.Errorf("%s has a debt of %d after the reset", s.Name, s.Level.Debt)
		}
	}
}

func TestCapacityOverAllPlansIsTheLargest(t *testing.T) {
	l := newTestedLimiter(t, plansConfig)
	for name, want := range map[string][2]int64{"read": {3, 10}, "search": {4, 8}, "unlisted": {2, 6}, "unheard of": {2, 2}} {
		if got := [2]int64{l.Capacity([]byte(name)), l.PlanCapacity([]byte(name))}; got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestEveryProblemOfPlansIsReported(t *testing.T) {
	long := strings.Repeat("x", maxPlanName+1)
	got := problems(t, `
plans:
  "": {read: {capacity: 1, refill_rate: 1}}
  "gold plan": {read: {capacity: 1, refill_rate: 1}}
  "gölden": {}
  `+long+`: {}
  gold:
    "": {capacity: 1, refill_rate: 1}
    read: {capacity: 0, refill_rate: 1}
    search: {limits: [{name: a, capacity: 1, refill_rate: 1, shadow: true}], precision: leased}
    write: {capacity: 1, refill_rate: 1, on_store_error: maybe, precision: vague}
`)
	const noName = "is no name of a plan; write 1 to 64 letters, digits, dots, dashes and underscores"
	want := []string{
		"plans: " + noName,
		"plans.gold: a resource has an empty name",
		"plans.gold.read.capacity: must be from 1 to 1000000000 tokens, is 0",
		"plans.gold.search.limits: are all shadows; at least one must decide",
		"plans.gold.search.limits[0].shadow: does not go with precision: leased, where single requests are not weighed; remove one of the two",
		`plans.gold.write.on_store_error: "maybe" is unknown; write local, allow or deny`,
		`plans.gold.write.precision: "vague" is unknown; write exact or leased`,
		"plans.gold plan: " + noName,
		"plans.gölden: " + noName,
		"plans." + long + ": " + noName,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}
