package limiter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// ErrNothing says that there is nothing to drop.
var ErrNothing = errors.New("there is none")

// SetLimits persists the limits of a resource, in place of the file's, on all
// gateways: here when it returns, elsewhere within a second. c is valid.
func (l *Limiter) SetLimits(ctx context.Context, resource string, c ResourceConfig, by Actor) error {
	e := AuditEntry{Action: "limits.set", Resource: resource, Detail: c}
	return l.change(ctx, Change{Entry: e, SetLimits: &c}, by)
}

// DropLimits returns a resource to the file's limits. ErrNothing says that it
// had no others.
func (l *Limiter) DropLimits(ctx context.Context, resource string, by Actor) error {
	s, err := l.fleet.Settings(ctx)
	if err != nil {
		return fmt.Errorf("read persisted limits: %w", err)
	}
	if _, ok := s.Resources[resource]; !ok {
		return ErrNothing
	}
	e := AuditEntry{Action: "limits.drop", Resource: resource}
	return l.change(ctx, Change{Entry: e, DropLimits: true}, by)
}

// SetOverride sets what holds for one user on all gateways, in place of an
// override for the same resource. o is valid.
func (l *Limiter) SetOverride(ctx context.Context, o Override, by Actor) error {
	detail := struct {
		Override
		TTL string `json:"ttl,omitempty"`
	}{Override: o}
	if o.Left != 0 {
		detail.TTL = o.Left.String()
	}
	detail.User, detail.Resource = "", ""
	e := AuditEntry{Action: "override.set", User: o.User, Resource: o.Resource, Detail: detail}
	return l.change(ctx, Change{Entry: e, SetOverride: &o}, by)
}

// DropOverrides forgets the overrides of a user: the one for a resource, or all
// if resource is "". ErrNothing says that there is none.
func (l *Limiter) DropOverrides(ctx context.Context, user, resource string, by Actor) error {
	s, err := l.fleet.Settings(ctx)
	if err != nil {
		return fmt.Errorf("read overrides: %w", err)
	}
	var drop []Override
	for _, o := range s.Overrides {
		if o.User == user && (resource == "" || o.Resource == resource) {
			drop = append(drop, o)
		}
	}
	if len(drop) == 0 {
		return ErrNothing
	}
	e := AuditEntry{Action: "override.drop", User: user, Resource: resource}
	return l.change(ctx, Change{Entry: e, DropOverrides: drop}, by)
}

// Overrides are those in force here, of one user or, for "", of all.
func (l *Limiter) Overrides(user string) []Override {
	f := l.Current().inForce.Load()
	since := time.Since(f.taken)
	var found []Override
	for _, o := range f.settings.Overrides {
		if user != "" && o.User != user || o.Left != 0 && o.Left <= since {
			continue
		}
		if o.Left != 0 {
			o.Left -= since
		}
		found = append(found, o)
	}
	return found
}

// Reset refills a user's own buckets, of one resource or, for "", of all that
// are known, and returns the resources. Buckets that users share stay.
func (l *Limiter) Reset(ctx context.Context, user, resource string, by Actor) ([]string, error) {
	names := []string{resource}
	var err error
	if resource == "" {
		names, err = l.resourceNames(ctx)
	}
	if err != nil {
		return nil, err
	}
	if err := l.store.Reset(ctx, l.userKeys(user, names)); err != nil {
		return nil, fmt.Errorf("reset buckets: %w", err)
	}
	e := AuditEntry{Action: "user.reset", User: user, Resource: resource}
	return names, l.change(ctx, Change{Entry: e}, by)
}

// userKeys are the keys of a user's own buckets, by the resources' rules, by those
// of any plan and, where an override sets a limit, by that.
func (l *Limiter) userKeys(user string, names []string) [][]byte {
	var keys [][]byte
	seen := map[string]bool{}
	f, w := l.Current().inForce.Load(), new(work)
	for _, name := range names {
		req := Request{User: []byte(user), Resource: []byte(name)}
		res := *l.find(f, w, req.Resource)
		all := slices.AppendSeq([]*rules{res.rules}, maps.Values(res.plans))
		if o := f.override(req.User, req.Resource); o != nil && o.rules != nil {
			all = append(all, o.rules)
		}
		for _, r := range all {
			res.rules = r
			l.fillKeys(w, &res, &req)
			for i, key := range w.spend.Keys {
				if r.limits[i].Scope == PerUser && !seen[string(key)] {
					seen[string(key)] = true
					keys = append(keys, append([]byte(nil), key...))
				}
			}
		}
	}
	return keys
}

// Audit is the newest n entries of the audit trail, newest first.
func (l *Limiter) Audit(ctx context.Context, n int) ([]AuditEntry, error) {
	entries, err := l.fleet.Audit(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("read audit trail: %w", err)
	}
	return entries, nil
}

// Record leaves an entry in the audit trail about what an operator did that is no
// change of the limiter's own.
func (l *Limiter) Record(ctx context.Context, e AuditEntry, by Actor) error {
	return l.change(ctx, Change{Entry: e}, by)
}

// change makes a change in the fleet, and in force here before it returns.
func (l *Limiter) change(ctx context.Context, c Change, by Actor) error {
	c.Entry.By, c.Entry.Gateway = by, l.sync.gateway
	if err := l.fleet.Change(ctx, c); err != nil {
		return fmt.Errorf("save %s: %w", c.Entry.Action, err)
	}
	return l.refresh(ctx)
}
