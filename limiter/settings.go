package limiter

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Settings are what operators changed on running gateways, besides the file.
type Settings struct {
	Version   int64
	Resources map[string]ResourceConfig // persisted limits, in place of the file's
	Overrides []Override
}

// Bounds of texts in settings, in bytes: all of them are in every gateway's memory.
const (
	MaxReason = 256  // the reason of an override
	MaxName   = 1024 // a user or a resource
)

// Override is what holds for one user instead of a resource's limits. It is
// one of: a limit of its own, Exempt, or Block.
type Override struct {
	User string `json:"user_id,omitempty"`
	// Resource is the resource it is for; "" for all, which a limit can't be.
	Resource   string `json:"resource,omitempty"`
	Capacity   int64  `json:"capacity,omitempty"` // tokens
	RefillRate Rate   `json:"refill_rate,omitzero"`
	Exempt     bool   `json:"exempt,omitempty"` // always allowed, spends nothing
	Block      bool   `json:"block,omitempty"`  // always denied, spends nothing
	Reason     string `json:"reason,omitempty"`
	// Left is how long it is in force still; 0 for good.
	Left time.Duration `json:"-"`
}

// Bounds of an override's time to live.
const (
	minOverrideTTL = time.Second
	maxOverrideTTL = 366 * 24 * time.Hour
)

// Validate returns what is wrong with o and what to write instead.
func (o *Override) Validate() error {
	limit := o.Capacity != 0 || !o.RefillRate.isZero()
	kinds := 0
	for _, is := range []bool{limit, o.Exempt, o.Block} {
		if is {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return errors.New(`write one of {"resource":"read","capacity":100,"refill_rate":"50/s"}, {"exempt":true} or {"block":true}`)
	case limit && o.Resource == "":
		return errors.New("resource is missing: say which resource the limit is for")
	case len(o.User) > MaxName || len(o.Resource) > MaxName:
		return fmt.Errorf("the user_id or the resource is longer than %d bytes", MaxName)
	case len(o.Reason) > MaxReason:
		return fmt.Errorf("reason is longer than %d bytes", MaxReason)
	case o.Left != 0 && (o.Left < minOverrideTTL || o.Left > maxOverrideTTL):
		return fmt.Errorf("ttl must be from %v to %v; leave it out for good", minOverrideTTL, maxOverrideTTL)
	}
	if limit {
		return firstProblem(func(report func(path, problem string)) {
			validateBucket("", o.Capacity, o.RefillRate, report)
		})
	}
	return nil
}

// Validate returns the first thing that is wrong with limits that an operator
// wants to persist.
func (c *ResourceConfig) Validate() error {
	return firstProblem(func(report func(path, problem string)) { c.validate("", report) })
}

// firstProblem turns reports into an error.
func firstProblem(validate func(report func(path, problem string))) (err error) {
	validate(func(path, problem string) {
		if err != nil {
			return
		}
		err = errors.New(strings.TrimSpace(strings.TrimPrefix(path, ".") + " " + problem))
	})
	return err
}

// config is the limit of o.
func (o *Override) config() ResourceConfig {
	return ResourceConfig{Capacity: o.Capacity, RefillRate: o.RefillRate}
}

// Change is one change of the settings with its entry in the audit trail. It
// sets or drops the limits of Entry.Resource, or sets one override, or drops
// some, or does nothing but leave the entry.
type Change struct {
	Entry         AuditEntry
	SetLimits     *ResourceConfig
	DropLimits    bool
	SetOverride   *Override
	DropOverrides []Override // by their User and Resource
}

// overrideField is the name under which an override is kept. Users and
// resources may hold any byte: escaped, neither has the separator.
func overrideField(user, resource string) string {
	return string(appendPart(append(appendPart(nil, user), ' '), resource))
}

// encode is o or c as it is kept.
func encode(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // its type is at fault
	}
	return string(text)
}
