package limiter

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// maxLimits is how many limits a resource may have.
	maxLimits = 16
	// maxLimitName is how long a limit's name may be, in bytes.
	maxLimitName = 64
	// maxIdempotencyTTL keeps the memory that idempotency keys take bounded.
	maxIdempotencyTTL = 7 * 24 * time.Hour
)

// Config is what the configuration says below `limiter`.
type Config struct {
	// Default is the limit of every resource that Resources lacks. Each such
	// resource has buckets of its own.
	Default ResourceConfig `yaml:"default"`
	// Resources are the limits of resources by name.
	Resources map[string]ResourceConfig `yaml:"resources"`
	// Plans are, by the plan's name and then the resource's, limits in place of
	// the resource's own, for requests of that plan. Their buckets are named as
	// ever, so that who changes plans keeps what is spent. What a plan does not
	// name, and who has no plan or an unknown one, is limited as without plans.
	Plans map[string]map[string]ResourceConfig `yaml:"plans"`
	// IdempotencyTTL is how long an allowed decision is remembered under its
	// idempotency key, from 1ms to 168h.
	IdempotencyTTL time.Duration `yaml:"idempotency_ttl"`
	// OnStoreError says what decides while Redis does not: local, allow or deny.
	OnStoreError Policy `yaml:"on_store_error" enum:"local,allow,deny"`
	// Replicas is how many gateways share each limit while Redis is down, 1 to
	// 10000: each then has that part of it.
	Replicas int64 `yaml:"replicas"`
	// Headers are the fields on answers: "draft" (RateLimit, RateLimit-Policy),
	// "legacy" (X-RateLimit-*), both or none.
	Headers []string `yaml:"headers" enum:"draft,legacy"`
	// Redis is where the buckets are; nil for the memory of this process.
	Redis *RedisConfig `yaml:"redis"`
}

// ResourceConfig is either one limit that is named after the resource, or a
// list of Limits.
type ResourceConfig struct {
	// Capacity is how many tokens a bucket holds, 1 to 1000000000.
	Capacity int64 `yaml:"capacity" json:"capacity,omitempty"`
	// RefillRate is how many tokens it gains: 10/s, 0.5/m, 100/h, 5000/d; 1 per 30
	// days to 1000000/s.
	RefillRate Rate `yaml:"refill_rate" json:"refill_rate,omitzero"`
	// Limits are several in place of the one: all must allow, or none is charged.
	Limits []LimitConfig `yaml:"limits" json:"limits,omitempty"`
	// Precision is exact (default) or leased: then a gateway keeps some tokens of
	// buckets with much demand in advance. The limits hold in both.
	Precision string `yaml:"precision" enum:"exact,leased" default:"exact" json:"-"`
	// OnStoreError says what decides about this resource while Redis does not.
	// Default: what limiter.on_store_error says.
	OnStoreError Policy `yaml:"on_store_error" enum:"local,allow,deny" json:"-"`
}

// LimitConfig is one of several limits of a resource.
type LimitConfig struct {
	// Name is unique in its resource.
	Name string `yaml:"name" json:"name"`
	// Per says whose requests share a bucket: each user's, or all of the resource.
	Per string `yaml:"per" enum:"user,resource" default:"user" json:"per,omitempty"`
	// Shadow makes a limit that decides nothing, and is counted and logged.
	Shadow bool `yaml:"shadow" json:"shadow,omitempty"`
	// Capacity is how many tokens a bucket holds, 1 to 1000000000.
	Capacity int64 `yaml:"capacity" json:"capacity"`
	// RefillRate is how many tokens it gains: 10/s, 0.5/m, 100/h, 5000/d; 1 per 30
	// days to 1000000/s.
	RefillRate Rate `yaml:"refill_rate" json:"refill_rate"`
}

// DefaultConfig is what holds where the configuration says nothing: 10 tokens,
// 5 more each second, in memory.
func DefaultConfig() Config {
	return Config{
		Default:        builtIn(),
		IdempotencyTTL: time.Minute,
		OnStoreError:   StandInLocal,
		Replicas:       1,
		Headers:        []string{"draft"},
	}
}

func builtIn() ResourceConfig {
	rate, _ := ParseRate("5/s")
	return ResourceConfig{Capacity: 10, RefillRate: rate}
}

// Validate reports every problem of c. Paths are relative to `limiter`, like
// resources.search.limits[1].name.
func (c *Config) Validate(report func(path, problem string)) {
	byDefault := c.Default
	if len(byDefault.Limits) > 0 && byDefault.isBuiltIn() {
		// The file gave only limits; the rest is what DefaultConfig put there.
		byDefault.Capacity, byDefault.RefillRate = 0, Rate{}
	}
	byDefault.validate("default", report)
	for _, name := range sortedKeys(c.Resources) {
		path := "resources." + name
		if name == "" {
			report("resources", "a resource has an empty name")
		}
		resource := c.Resources[name]
		resource.validate(path, report)
	}
	c.validatePlans(report)
	if c.IdempotencyTTL < time.Millisecond || c.IdempotencyTTL > maxIdempotencyTTL {
		report("idempotency_ttl", fmt.Sprintf("must be from 1ms to 168h, is %v", c.IdempotencyTTL))
	}
	c.validateStandIn(report)
	c.validateHeaders(report)
	if c.Redis != nil {
		c.Redis.Validate(below("redis", report))
	}
}

// maxPlanName is how long a plan's name may be, in bytes.
const maxPlanName = 64

func (c *Config) validatePlans(report func(path, problem string)) {
	for _, plan := range sortedKeys(c.Plans) {
		path := "plans." + plan
		if plan == "" {
			path = "plans"
		}
		if plan == "" || len(plan) > maxPlanName || strings.ContainsFunc(plan, isNoPlanRune) {
			report(path, fmt.Sprintf("is no name of a plan; write 1 to %d letters, digits, dots, dashes and underscores", maxPlanName))
		}
		for _, name := range sortedKeys(c.Plans[plan]) {
			if name == "" {
				report(path, "a resource has an empty name")
			}
			resource := c.Plans[plan][name]
			resource.validate(path+"."+name, report)
		}
	}
}

func isNoPlanRune(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
}

// below reports on what is inside path.
func below(path string, report func(path, problem string)) func(path, problem string) {
	return func(inner, problem string) {
		if inner != "" {
			inner = "." + inner
		}
		report(path+inner, problem)
	}
}

func (c *Config) validateStandIn(report func(path, problem string)) {
	if c.OnStoreError == "" {
		report("on_store_error", "is empty; write local, allow or deny")
	}
	c.OnStoreError.validate("on_store_error", report)
	if c.Replicas < 1 || c.Replicas > maxReplicas {
		report("replicas", fmt.Sprintf("must be from 1 to %d gateways, is %d", maxReplicas, c.Replicas))
	}
}

// maxReplicas is how many gateways a limit may be divided among.
const maxReplicas = 10_000

func (p Policy) validate(path string, report func(path, problem string)) {
	if p != "" && p != StandInLocal && p != StandInAllow && p != StandInDeny {
		report(path, fmt.Sprintf("%q is unknown; write local, allow or deny", p))
	}
}

func (c *Config) validateHeaders(report func(path, problem string)) {
	for i, h := range c.Headers {
		path := fmt.Sprintf("headers[%d]", i)
		if h != "draft" && h != "legacy" {
			report(path, fmt.Sprintf("%q is unknown; write draft or legacy", h))
		}
		if slices.Contains(c.Headers[:i], h) {
			report(path, fmt.Sprintf("%q is there twice; remove one", h))
		}
	}
}

// isBuiltIn says whether the single limit is the one of DefaultConfig.
func (c *ResourceConfig) isBuiltIn() bool {
	b := builtIn()
	return c.Capacity == b.Capacity && c.RefillRate == b.RefillRate
}

func (c *ResourceConfig) validate(path string, report func(path, problem string)) {
	single := c.Capacity != 0 || !c.RefillRate.isZero()
	switch {
	case len(c.Limits) == 0 && !single:
		report(path, "has no limit; give capacity and refill_rate, or limits")
	case len(c.Limits) == 0:
		validateBucket(path, c.Capacity, c.RefillRate, report)
	case single:
		report(path, "has both limits and a capacity or refill_rate of its own; keep one of the two forms")
	}
	c.validateLimits(path+".limits", report)
	c.validateStore(path, report)
}

// validateStore reports on how a resource uses the store.
func (c *ResourceConfig) validateStore(path string, report func(path, problem string)) {
	c.OnStoreError.validate(path+".on_store_error", report)
	switch c.Precision {
	case "", exact:
	case leased:
		if i := slices.IndexFunc(c.Limits, func(l LimitConfig) bool { return l.Shadow }); i >= 0 {
			report(fmt.Sprintf("%s.limits[%d].shadow", path, i), "does not go with precision: leased, where single requests are not weighed; remove one of the two")
		}
	default:
		report(path+".precision", fmt.Sprintf("%q is unknown; write exact or leased", c.Precision))
	}
}

// The words of `precision`.
const (
	exact  = "exact"
	leased = "leased"
)

// validateLimits reports on a list of limits at path.
func (c *ResourceConfig) validateLimits(path string, report func(path, problem string)) {
	if len(c.Limits) > maxLimits {
		report(path, fmt.Sprintf("has %d limits; at most %d are possible", len(c.Limits), maxLimits))
	}
	seen := map[string]bool{}
	for i := range c.Limits {
		l := &c.Limits[i]
		at := fmt.Sprintf("%s[%d]", path, i)
		if seen[l.Name] && l.Name != "" {
			report(at+".name", fmt.Sprintf("%q is the name of a limit before; names must be unique in a resource", l.Name))
		}
		seen[l.Name] = true
		l.validate(at, report)
	}
	if len(c.Limits) > 0 && !slices.ContainsFunc(c.Limits, func(l LimitConfig) bool { return !l.Shadow }) {
		report(path, "are all shadows; at least one must decide")
	}
}

func (c *LimitConfig) validate(path string, report func(path, problem string)) {
	switch {
	case c.Name == "":
		report(path+".name", "is missing; each of several limits needs a name")
	case len(c.Name) > maxLimitName || strings.ContainsFunc(c.Name, func(r rune) bool { return r < ' ' || r > '~' }):
		report(path+".name", fmt.Sprintf("must be at most %d printable ASCII characters: it stands in fields of answers and in metrics", maxLimitName))
	}
	if _, ok := scopes[c.Per]; !ok {
		report(path+".per", fmt.Sprintf("%q is unknown; write user or resource", c.Per))
	}
	validateBucket(path, c.Capacity, c.RefillRate, report)
}

// validateBucket reports on what both forms of a limit have.
func validateBucket(path string, capacity int64, rate Rate, report func(path, problem string)) {
	if capacity < 1 || capacity > MaxCapacity {
		report(path+".capacity", fmt.Sprintf("must be from 1 to %d tokens, is %d", MaxCapacity, capacity))
	}
	if rate.isZero() {
		report(path+".refill_rate", "is missing; write a rate like 10/s, 0.5/m, 100/h or 5000/d")
	}
}

// scopes are the words of `per`.
var scopes = map[string]Scope{"": PerUser, "user": PerUser, "resource": PerResource}

// limits are the limits as they run, in the order of the file, which is also
// the order of Decision.Limits. A single limit has the given name.
func (c *ResourceConfig) limits(name string) []Limit {
	if len(c.Limits) == 0 {
		return []Limit{{Name: name, Capacity: c.Capacity, Rate: c.RefillRate}}
	}
	limits := make([]Limit, len(c.Limits))
	for i, l := range c.Limits {
		limits[i] = Limit{
			Name: l.Name, Scope: scopes[l.Per], Shadow: l.Shadow,
			Capacity: l.Capacity, Rate: l.RefillRate,
		}
	}
	return limits
}
