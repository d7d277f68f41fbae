package limiter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

// testedLimiter is a Limiter on a memory store with a clock that only the test
// moves.
type testedLimiter struct {
	*Limiter
	store testedStore
}

func newTestedLimiter(t *testing.T, text string) testedLimiter {
	t.Helper()
	c := DefaultConfig()
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	c.Validate(func(path, problem string) { t.Errorf("%s: %s", path, problem) })
	store := openMemory(t)
	return testedLimiter{New(c, store), store}
}

// ask decides and fails on an error.
func (l testedLimiter) ask(t testing.TB, user, resource string, cost int64) *Decision {
	t.Helper()
	d := &Decision{}
	if err := l.Decide(&Request{User: []byte(user), Resource: []byte(resource), Cost: cost}, d); err != nil {
		t.Fatal(err)
	}
	return d
}

const searchConfig = `
default: {capacity: 5, refill_rate: 1/s}
resources:
  read: {capacity: 3, refill_rate: 1/s}
  search:
    limits:
      - {name: burst, capacity: 4, refill_rate: 2/s}
      - {name: daily, capacity: 100, refill_rate: 100/d}
      - {name: everyone, per: resource, capacity: 50, refill_rate: 10/s}
      - {name: next, shadow: true, capacity: 2, refill_rate: 1/s}
`

func TestEachUserAndResourceHasBucketsOfItsOwn(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	for _, user := range []string{"a", "b", ""} {
		for resource, capacity := range map[string]int64{"read": 3, "other": 5, "default": 5, "another": 5} {
			if d := l.ask(t, user, resource, capacity); !d.Allowed {
				t.Errorf("user %q, resource %q: denied", user, resource)
			}
			if d := l.ask(t, user, resource, 1); d.Allowed {
				t.Errorf("user %q, resource %q: allowed beyond the capacity", user, resource)
			}
		}
	}
	if allowed, denied := l.Totals(); allowed != 12 || denied != 12 {
		t.Errorf("totals are %d and %d, want 12 and 12", allowed, denied)
	}
	if n := l.ActiveKeys(); n != 12 {
		t.Errorf("%d active keys, want 12", n)
	}
}

func TestPerResourceLimitIsSharedByUsers(t *testing.T) {
	l := newTestedLimiter(t, `
resources:
  search:
    limits:
      - {name: own, capacity: 2, refill_rate: 1/h}
      - {name: everyone, per: resource, capacity: 3, refill_rate: 1/h}`)
	l.ask(t, "a", "search", 2)
	l.ask(t, "b", "search", 1)
	d := l.ask(t, "c", "search", 1)
	if d.Allowed || d.Binding().Name != "everyone" {
		t.Errorf("allowed %v by %q, want a denial by everyone", d.Allowed, d.Binding().Name)
	}
}

func TestBindingLimit(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	for i, want := range []struct {
		cost    int64
		binding string
		tokens  float64
		wait    time.Duration
	}{
		{cost: 0, binding: "burst", tokens: 4},
		{cost: 3, binding: "burst", tokens: 1},
		{cost: 2, binding: "burst", tokens: 1, wait: 500 * time.Millisecond},
		{cost: 1, binding: "burst", tokens: 0},
		{cost: 4, binding: "burst", tokens: 0, wait: 2 * time.Second},
	} {
		d := l.ask(t, "a", "search", want.cost)
		if d.Binding().Name != want.binding || d.TokensLeft() != want.tokens || d.RetryAfter() != want.wait {
			t.Errorf("%d: %q binds with %v tokens and %v to wait, want %+v",
				i, d.Binding().Name, d.TokensLeft(), d.RetryAfter(), want)
		}
	}
	for range 24 {
		l.store.advance(2 * time.Second)
		l.ask(t, "a", "search", 4)
	}
	l.store.advance(2 * time.Second)
	d := l.ask(t, "a", "search", 1)
	if d.Allowed || d.Binding().Name != "daily" {
		t.Errorf("allowed %v by %q, want a denial by daily", d.Allowed, d.Binding().Name)
	}
}

func TestShadowIsListedButNeverBinds(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	d := l.ask(t, "a", "search", 3)
	shadow := d.Limits[3]
	if !d.Allowed || !shadow.Shadow || !shadow.Denied || d.Binding().Shadow {
		t.Errorf("allowed %v, shadow %+v, bound by %q", d.Allowed, shadow, d.Binding().Name)
	}
}

func TestCostAboveTheCapacityNeverPasses(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	l.ask(t, "a", "search", 1)
	d := &Decision{}
	req := Request{User: []byte("a"), Resource: []byte("search"), Cost: 5, IdempotencyKey: []byte("k")}
	for range 2 {
		if err := l.Decide(&req, d); err != nil {
			t.Fatal(err)
		}
		if d.Allowed || !d.Never || d.Replayed || d.RetryAfter() != 0 || d.Binding().Name != "burst" {
			t.Errorf("decision is %+v", d)
		}
		if !d.Limits[0].Denied || d.Limits[1].Denied || d.Limits[2].Denied {
			t.Errorf("denied by %+v, want by the first only", d.Limits)
		}
		if d.TokensLeft() != 3 {
			t.Errorf("%v tokens left, want 3", d.TokensLeft())
		}
	}
	if d := l.ask(t, "a", "search", 3); !d.Allowed {
		t.Error("what could not pass was charged")
	}
}

func TestIdempotencyKeyIsOfOneUserAndResource(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	decide := func(user, resource string, cost int64) (*Decision, error) {
		d := &Decision{}
		err := l.Decide(&Request{
			User: []byte(user), Resource: []byte(resource), Cost: cost, IdempotencyKey: []byte("key"),
		}, d)
		return d, err
	}
	for i := range 2 {
		for _, user := range []string{"a", "b"} {
			for _, resource := range []string{"read", "other"} {
				d, err := decide(user, resource, 1)
				if err != nil || !d.Allowed || d.Replayed != (i > 0) {
					t.Errorf("%s %s: allowed %v, replayed %v, error %v", user, resource, d.Allowed, d.Replayed, err)
				}
			}
		}
	}
	if _, err := decide("a", "read", 2); err != ErrKeyReused {
		t.Errorf("error %v, want ErrKeyReused itself", err)
	}
	l.store.advance(time.Minute)
	if d, err := decide("a", "read", 2); err != nil || d.Replayed {
		t.Errorf("after the time to live: replayed %v, error %v", d.Replayed, err)
	}
}

func TestStoreTroubleIsReportedAndNotCounted(t *testing.T) {
	l := newTestedLimiter(t, "on_store_error: deny")
	if err := l.Probe(context.Background()); err != nil {
		t.Errorf("probe: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	err := l.Decide(&Request{User: []byte("a"), Resource: []byte("r"), Cost: 1}, &Decision{})
	if !errors.Is(err, errClosed) || !strings.HasPrefix(err.Error(), "decide: ") {
		t.Errorf("error %v", err)
	}
	if _, err := l.User(t.Context(), []byte("a"), nil); !errors.Is(err, errClosed) {
		t.Errorf("user: error %v", err)
	}
	if err := l.Probe(context.Background()); err == nil {
		t.Error("the probe of a closed store is fine")
	}
	if allowed, denied := l.Totals(); allowed+denied != 0 {
		t.Errorf("totals are %d and %d", allowed, denied)
	}
}

func TestUserShowsConfiguredAndSeenResources(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	l.ask(t, "a", "zebra", 2)
	l.ask(t, "a", "read", 1)
	l.ask(t, "b", "read", 3)
	states, err := l.User(t.Context(), []byte("a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range states {
		d := &states[i]
		for j := range d.Limits {
			s := &d.Limits[j]
			got = append(got, fmt.Sprintf("%s %s %v", d.Resource(), d.AppendLimitName(nil, s), s.tokens()))
		}
	}
	want := []string{
		"read read 2", "search burst 4", "search daily 100", "search everyone 50", "search next 2", "zebra zebra 3",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	if allowed, denied := l.Totals(); allowed+denied != 3 {
		t.Errorf("looking was counted: %d, %d", allowed, denied)
	}
}

func TestSeenResourcesAreBoundedButAllLimited(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	together(4, func(int) bool {
		for i := range maxSeen + 500 {
			l.ask(t, "a", fmt.Sprint("resource", i), 1)
		}
		return true
	})
	if n := len(*l.known.Load()); n != maxSeen+2 {
		t.Errorf("%d resources are known, want %d", n, maxSeen+2)
	}
	for _, i := range []int{0, maxSeen + 499} {
		name := fmt.Sprint("resource", i)
		d := l.ask(t, "a", name, 1)
		if d.TokensLeft() != 0 || string(d.Resource()) != name {
			t.Errorf("%s: %v tokens left of %s, want 0", name, d.TokensLeft(), d.Resource())
		}
	}
}

func TestCapacityIsTheSmallestThatDecides(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	for name, want := range map[string]int64{"read": 3, "search": 4, "unheard of": 5} {
		if got := l.Capacity([]byte(name)); got != want {
			t.Errorf("capacity of %s is %d, want %d", name, got, want)
		}
	}
	if n := len(*l.known.Load()); n != 2 {
		t.Error("asking for a capacity made a resource known")
	}
}

func TestHeaderSet(t *testing.T) {
	for text, want := range map[string]HeaderSet{
		"":                         {Draft: true},
		"headers: []":              {},
		"headers: [legacy]":        {Legacy: true},
		"headers: [legacy, draft]": {Draft: true, Legacy: true},
	} {
		if got := newTestedLimiter(t, text).Headers(); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

func TestDecisionIsUsedAgainWithoutTraces(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	used := l.ask(t, "a", "search", 5)
	req := Request{User: []byte("b"), Resource: []byte("read"), Cost: 1}
	if err := l.Decide(&req, used); err != nil {
		t.Fatal(err)
	}
	fresh := l.ask(t, "c", "read", 1)
	opts := cmp.AllowUnexported(Decision{}, LimitState{}, Rate{})
	if diff := cmp.Diff(fresh, used, opts); diff != "" {
		t.Errorf("a used decision differs (-fresh +used):\n%s", diff)
	}
	req.Resource[0] = 'X'
	if string(used.Resource()) != "read" {
		t.Errorf("the resource is %q: it was not copied", used.Resource())
	}
}

func TestCostZeroRemembersNothing(t *testing.T) {
	l := newTestedLimiter(t, searchConfig)
	var d Decision
	for _, cost := range []int64{0, 1, 0} {
		req := Request{User: []byte("a"), Resource: []byte("read"), Cost: cost, IdempotencyKey: []byte("k")}
		if err := l.Decide(&req, &d); err != nil || !d.Allowed || d.Replayed {
			t.Errorf("cost %d: got %+v, %v", cost, d, err)
		}
	}
}
