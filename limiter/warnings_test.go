package limiter

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

// warnings are those of a configuration without problems.
func warnings(t *testing.T, text string) (found []string) {
	t.Helper()
	c := DefaultConfig()
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	c.Validate(func(path, problem string) { t.Errorf("%s: %s", path, problem) })
	c.Warn(func(path, text string) { found = append(found, path+": "+text) })
	return found
}

func TestLimitsThatCanNeverBindAreWarnedOf(t *testing.T) {
	const advice = "; make it smaller or slower than that, or leave it out"
	for limits, want := range map[string][]string{
		"[{name: a, capacity: 10, refill_rate: 5/s}, {name: b, capacity: 20, refill_rate: 1/s}]":                        nil,
		"[{name: a, capacity: 10, refill_rate: 5/s}, {name: b, capacity: 5, refill_rate: 10/s}]":                        nil,
		"[{name: a, capacity: 10, refill_rate: 5/s}, {name: b, capacity: 20, refill_rate: 5/s}]":                        {`[1]: can never bind: it denies nothing that limit "a" (capacity 10, refill_rate 5/s) allows`},
		"[{name: a, capacity: 10, refill_rate: 300/m}, {name: b, capacity: 10, refill_rate: 5}]":                        {`[1]: can never bind: it denies nothing that limit "a" (capacity 10, refill_rate 300/m) allows`},
		"[{name: a, capacity: 11, refill_rate: 6/s}, {name: b, capacity: 10, refill_rate: 5/s}]":                        {`[0]: can never bind: it denies nothing that limit "b" (capacity 10, refill_rate 5/s) allows`},
		"[{name: a, capacity: 11, refill_rate: 6/s}, {name: b, per: resource, capacity: 10, refill_rate: 5/s}]":         {`[0]: can never bind: it denies nothing that limit "b" (capacity 10, refill_rate 5/s) allows`},
		"[{name: a, capacity: 10, refill_rate: 5/s}, {name: b, per: resource, capacity: 11, refill_rate: 6/s}]":         nil,
		"[{name: a, per: user, capacity: 1, refill_rate: 1/s}, {name: b, shadow: true, capacity: 1, refill_rate: 1/s}]": {`[1]: can never bind: it denies nothing that limit "a" (capacity 1, refill_rate 1/s) allows`},
		"[{name: a, shadow: true, capacity: 1, refill_rate: 1/s}, {name: b, capacity: 2, refill_rate: 2/s}]":            nil,
		"[{name: a, capacity: 1, refill_rate: 1/s}, {name: b, capacity: 1, refill_rate: 1/s}, {name: c, capacity: 1, refill_rate: 1/s}]": {
			`[1]: can never bind: it denies nothing that limit "a" (capacity 1, refill_rate 1/s) allows`, `[2]: can never bind: it denies nothing that limit "a" (capacity 1, refill_rate 1/s) allows`},
		// As floating-point numbers these would be the same.
		"[{name: a, capacity: 1, refill_rate: 0.33333333/s}, {name: b, capacity: 1, refill_rate: 0.33333334/s}]": {`[1]: can never bind: it denies nothing that limit "a" (capacity 1, refill_rate 0.33333333/s) allows`},
	} {
		for i := range want {
			want[i] = "resources.x.limits" + want[i] + advice
		}
		if diff := cmp.Diff(want, warnings(t, "resources: {x: {limits: "+limits+"}}")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", limits, diff)
		}
	}
	if got := warnings(t, "default: {limits: [{name: a, capacity: 1, refill_rate: 1/s}, {name: b, capacity: 2, refill_rate: 1/s}]}"); len(got) != 1 {
		t.Errorf("the default's limits: got %q", got)
	}
}
