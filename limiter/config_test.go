package limiter

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

// problems decodes text over the defaults and validates it.
func problems(t *testing.T, text string) (found []string) {
	t.Helper()
	c := DefaultConfig()
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	c.Validate(func(path, problem string) { found = append(found, path+": "+problem) })
	return found
}

func TestGoodConfigs(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":           "",
		"empty":             "{}",
		"default":           "default: {capacity: 20, refill_rate: 7/m}",
		"half a default":    "default: {capacity: 20}",
		"limits by default": "default: {limits: [{name: a, capacity: 1, refill_rate: 1}]}",
		"bounds": `
resources:
  least: {capacity: 1, refill_rate: 0.0334/d}
  most: {capacity: 1000000000, refill_rate: 1000000/s}
idempotency_ttl: 1ms
headers: []`,
		"limits": `
resources:
  search:
    limits:
      - {name: burst, capacity: 20, refill_rate: 10/s}
      - {name: everyone, per: resource, capacity: 5000, refill_rate: 5000/s}
      - {name: next, per: user, shadow: true, capacity: 10, refill_rate: 5/s}
headers: [draft, legacy]`,
	} {
		if found := problems(t, text); len(found) > 0 {
			t.Errorf("%s: %q", name, found)
		}
	}
}

func TestEveryProblemIsReported(t *testing.T) {
	got := problems(t, `
default: {capacity: -1}
resources:
  "": {capacity: 1, refill_rate: 1}
  both: {capacity: 1, refill_rate: 1, limits: [{name: a, capacity: 1, refill_rate: 1}]}
  large: {capacity: 1000000001, refill_rate: 1}
  none: {}
  rateless: {capacity: 1}
  search:
    limits:
      - {name: a, capacity: 0, refill_rate: 1}
      - {name: a, per: planet, capacity: 1}
      - {capacity: 1, refill_rate: 1}
  shadows:
    limits: [{name: a, shadow: true, capacity: 1, refill_rate: 1}]
idempotency_ttl: 0s
headers: [draft, modern, draft]
`)
	const missing = "is missing; write a rate like 10/s, 0.5/m, 100/h or 5000/d"
	want := []string{
		"default.capacity: must be from 1 to 1000000000 tokens, is -1",
		"resources: a resource has an empty name",
		"resources.both: has both limits and a capacity or refill_rate of its own; keep one of the two forms",
		"resources.large.capacity: must be from 1 to 1000000000 tokens, is 1000000001",
		"resources.none: has no limit; give capacity and refill_rate, or limits",
		"resources.rateless.refill_rate: " + missing,
		"resources.search.limits[0].capacity: must be from 1 to 1000000000 tokens, is 0",
		`resources.search.limits[1].name: "a" is the name of a limit before; names must be unique in a resource`,
		`resources.search.limits[1].per: "planet" is unknown; write user or resource`,
		"resources.search.limits[1].refill_rate: " + missing,
		"resources.search.limits[2].name: is missing; each of several limits needs a name",
		"resources.shadows.limits: are all shadows; at least one must decide",
		"idempotency_ttl: must be from 1ms to 168h, is 0s",
		`headers[1]: "modern" is unknown; write draft or legacy`,
		`headers[2]: "draft" is there twice; remove one`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestTooManyLimitsAreAProblem(t *testing.T) {
	c := DefaultConfig()
	var many ResourceConfig
	for i := range maxLimits + 1 {
		many.Limits = append(many.Limits, LimitConfig{Name: string(rune('a' + i)), Capacity: 1, RefillRate: mustRate(t, "1")})
	}
	c.Resources = map[string]ResourceConfig{"many": many}
	var found []string
	c.Validate(func(path, problem string) { found = append(found, path+": "+problem) })
	if want := []string{"resources.many.limits: has 17 limits; at most 16 are possible"}; !cmp.Equal(found, want) {
		t.Errorf("problems %q, want %q", found, want)
	}
}

func TestRedisProblemsHaveTheirPath(t *testing.T) {
	report := below("redis", func(path, problem string) {
		if path != "redis.url" && path != "redis" {
			t.Errorf("reported at %q", path)
		}
	})
	report("url", "is missing")
	report("", "is empty")
}

func TestDefaultConfigIsTheContracts(t *testing.T) {
	c := DefaultConfig()
	if c.Default.Capacity != 10 || c.Default.RefillRate.String() != "5/s" || c.Redis != nil ||
		c.IdempotencyTTL != time.Minute || !cmp.Equal(c.Headers, []string{"draft"}) {
		t.Errorf("defaults are %+v", c)
	}
}
