package limiter

import (
	"cmp"
	"fmt"
	"math/bits"
)

// Warn reports what is legal but surely wrong, by its path below `limiter`. c is a
// configuration that Validate found no fault with.
func (c *Config) Warn(warn func(path, text string)) {
	c.Default.warn("default", warn)
	for _, name := range sortedKeys(c.Resources) {
		resource := c.Resources[name]
		resource.warn("resources."+name, warn)
	}
	for _, plan := range sortedKeys(c.Plans) {
		for _, name := range sortedKeys(c.Plans[plan]) {
			resource := c.Plans[plan][name]
			resource.warn("plans."+plan+"."+name, warn)
		}
	}
}

// Smallest is the smallest capacity of the limits that decide: a cost above it can
// never pass.
func (c *ResourceConfig) Smallest() int64 {
	least := int64(MaxCapacity)
	for _, l := range c.limits("") {
		if !l.Shadow {
			least = min(least, l.Capacity)
		}
	}
	return least
}

// warn reports limits beside which another always denies first.
func (c *ResourceConfig) warn(path string, warn func(path, text string)) {
	for i := range c.Limits {
		if j := c.tighter(i); j >= 0 {
			l := &c.Limits[j]
			warn(fmt.Sprintf("%s.limits[%d]", path, i), fmt.Sprintf(
				"can never bind: it denies nothing that limit %q (capacity %d, refill_rate %s) allows; make it smaller or slower than that, or leave it out",
				l.Name, l.Capacity, l.RefillRate))
		}
	}
}

// tighter is the index of a limit that denies whatever limit i would, or -1: both
// begin full and are charged alike, so that with no more capacity and no faster
// refill it never has more tokens left. Of two that are the same it is the first.
func (c *ResourceConfig) tighter(i int) int {
	loose := &c.Limits[i]
	for j := range c.Limits {
		l := &c.Limits[j]
		if j == i || !l.denies(loose) || i < j && loose.denies(l) {
			continue
		}
		return j
	}
	return -1
}

// denies says whether c denies whatever the limit loose of the same resource would.
// What all users share is tighter than the same for each.
func (c *LimitConfig) denies(loose *LimitConfig) bool {
	shared := scopes[c.Per] == PerResource || scopes[loose.Per] == PerUser
	return !c.Shadow && shared && c.Capacity <= loose.Capacity && c.RefillRate.compare(loose.RefillRate) <= 0
}

// compare is below 0 if r is slower than o, 0 if they are the same, else above.
func (r Rate) compare(o Rate) int {
	hi, lo := bits.Mul64(uint64(r.n), uint64(o.p))
	otherHi, otherLo := bits.Mul64(uint64(o.n), uint64(r.p))
	return cmp.Or(cmp.Compare(hi, otherHi), cmp.Compare(lo, otherLo))
}
