package limiter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const explainConfig = `
default: {capacity: 3, refill_rate: 1/h}
resources:
  read: {capacity: 5, refill_rate: 1/h, precision: leased}
  search:
    limits:
      - {name: burst, capacity: 6, refill_rate: 2/h}
      - {name: everyone, per: resource, capacity: 9, refill_rate: 1/h}
      - {name: next, shadow: true, capacity: 2, refill_rate: 1/h}
plans: {gold: {read: {capacity: 12, refill_rate: 1/h}}}
`

// verdictOf is what a decision says of the cost, whatever the buckets hold after it.
func verdictOf(d *Decision) string {
	var text strings.Builder
	fmt.Fprint(&text, d.Allowed, d.Waived, d.Never, d.Override, d.Binding() == nil, string(d.AppendShadowDenied(nil)))
	for i := range d.Limits {
		fmt.Fprint(&text, " ", d.Limits[i].Name, d.Limits[i].Denied, d.Limits[i].Wait.Round(time.Minute))
	}
	return text.String()
}

func TestExplainSaysWhatDecideWouldAndChangesNothing(t *testing.T) {
	for name, store := range map[string]Store{"memory": NewMemoryStore(), "redis": startRedis(t).store(t)} {
		t.Run(name, func(t *testing.T) {
			l := New(configOf(t, explainConfig), store)
			random := rand.New(rand.NewPCG(3, 3))
			for i := range 300 {
				req := Request{
					User: fmt.Appendf(nil, "user%d", random.IntN(4)), Resource: []byte(pick(random, []string{"read", "search", "other"})),
					Plan: []byte(pick(random, []string{"", "gold"})), Cost: int64(random.IntN(8)), Shadow: random.IntN(5) == 0,
					IdempotencyKey: fmt.Appendf(nil, "key%d", i),
				}
				var first, second, decided Decision
				if err := errors.Join(l.Explain(t.Context(), &req, &first), l.Explain(t.Context(), &req, &second), l.Decide(&req, &decided)); err != nil {
					t.Fatal(err)
				}
				if verdictOf(&first) != verdictOf(&decided) || verdictOf(&second) != verdictOf(&decided) {
					t.Fatalf("%d: %s of %s costs %d:\nexplained %s\n and then  %s\ndecided   %s", i, req.User, req.Resource, req.Cost, verdictOf(&first), verdictOf(&second), verdictOf(&decided))
				}
				for k := range first.Limits {
					spent := req.Cost
					if !decided.Allowed || decided.Waived || decided.Limits[k].Denied {
						spent = 0
					}
					if got, want := first.Limits[k].Level.Debt, decided.Limits[k].Level.Debt-spent; got != want {
						t.Fatalf("%d: %s: explained with a debt of %d, it was %d", i, first.Limits[k].Name, got, want)
					}
				}
			}
		})
	}
}

func TestExplainLeavesNoTrace(t *testing.T) {
	l := newTestedLimiter(t, explainConfig)
	if err := l.SetOverride(t.Context(), Override{User: "bad", Block: true}, operator); err != nil {
		t.Fatal(err)
	}
	if err := l.SetOverride(t.Context(), Override{User: "vip", Exempt: true}, operator); err != nil {
		t.Fatal(err)
	}
	known := len(*l.known.Load())
	for _, test := range []struct {
		user, resource, plan string
		cost                 int64
		want                 string
	}{
		{"a", "unheard of", "", 3, "true false 3"}, {"a", "unheard of", "", 4, "false true 3"}, {"a", "read", "gold", 12, "true false 12"},
		{"bad", "read", "", 1, "false false 0"}, {"vip", "read", "gold", 99, "true false 12"},
	} {
		var d Decision
		req := Request{User: []byte(test.user), Resource: []byte(test.resource), Plan: []byte(test.plan), Cost: test.cost}
		if err := l.Explain(t.Context(), &req, &d); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(d.Allowed, d.Never, d.TokensLeft()); got != test.want || string(d.Resource()) != test.resource {
			t.Errorf("%+v: got %s", test, got)
		}
	}
	var d Decision
	old := l.Prepare(configOf(t, "resources: {read: {capacity: 77, refill_rate: 1/h}}"))
	if err := l.Explain(t.Context(), &Request{Resource: []byte("read"), Limits: old}, &d); err != nil || d.Limits[0].Capacity != 77 {
		t.Errorf("by other limits: got %+v, %v", d.Limits, err)
	}
	if allowed, denied := l.Totals(); allowed+denied != 0 || len(*l.known.Load()) != known || l.ActiveKeys() != 0 {
		t.Errorf("%d and %d decisions, %d resources, %d buckets", allowed, denied, len(*l.known.Load()), l.ActiveKeys())
	}
	if all, err := l.Offenders(t.Context(), lastHour, 10); err != nil || len(all) != 0 {
		t.Errorf("offenders are %v, %v", all, err)
	}
}

func TestExplainSaysWhatIsWrongWithTheStore(t *testing.T) {
	l := limiterOf(t, "on_store_error: allow", &downStore{NewMemoryStore(), true})
	var d Decision
	if err := l.Explain(context.Background(), &Request{User: []byte("a"), Resource: []byte("r"), Cost: 1}, &d); !errors.Is(err, errDown) {
		t.Errorf("got %v", err)
	}
}

func TestExplainReusesADecision(t *testing.T) {
	l := newTestedLimiter(t, explainConfig)
	used := l.askShadow(t, "a", "search", 9)
	var fresh Decision
	req := Request{User: []byte("b"), Resource: []byte("read"), Cost: 1}
	if err := errors.Join(l.Explain(t.Context(), &req, &fresh), l.Explain(t.Context(), &req, used)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&fresh, used, cmp.AllowUnexported(Decision{}, LimitState{}, Rate{})); diff != "" {
		t.Errorf("(-fresh +used):\n%s", diff)
	}
}
