package limiter

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// memoryFleet is the fleet of one gateway that has no store to share: what it
// keeps ends with the process.
type memoryFleet struct {
	activeKeys func() int

	mu        sync.Mutex // guards the rest
	totals    Totals
	resources map[string]ResourceFigures
	windows   [len(Bucketings)]map[int64]denials // by the bucket's index
	version   int64
	limits    map[string]ResourceConfig
	overrides map[string]keptOverride // by overrideField
	audit     []AuditEntry            // oldest first
}

// keptOverride is an Override with the moment at which it ends.
type keptOverride struct {
	Override
	until time.Time // zero for good
}

func newMemoryFleet(activeKeys func() int) *memoryFleet {
	m := &memoryFleet{
		activeKeys: activeKeys,
		resources:  map[string]ResourceFigures{},
		limits:     map[string]ResourceConfig{},
		overrides:  map[string]keptOverride{},
	}
	for i := range m.windows {
		m.windows[i] = map[int64]denials{}
	}
	return m
}

// Flush is Fleet's. It never fails.
func (m *memoryFleet) Flush(_ context.Context, f *Figures) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range f.Resources {
		m.totals.Allowed += r.Allowed
		m.totals.Denied += r.Denied
		if r.Name != "" {
			m.addResourceLocked(r, f.At)
		}
	}
	for i, b := range Bucketings {
		m.addOffendersLocked(m.windows[i], b, f)
	}
	return m.version, nil
}

func (m *memoryFleet) addResourceLocked(r ResourceFigures, at time.Time) {
	before := m.resources[r.Name]
	m.resources[r.Name] = ResourceFigures{r.Name, before.Allowed + r.Allowed, before.Denied + r.Denied, at}
	if len(m.resources) <= maxFleetResources {
		return
	}
	oldest := r
	oldest.LastSeen = at
	for _, each := range m.resources {
		if each.LastSeen.Before(oldest.LastSeen) {
			oldest = each
		}
	}
	delete(m.resources, oldest.Name)
}

// addOffendersLocked adds to the bucket of now, trims those that are over, and
// forgets those that are too old.
func (m *memoryFleet) addOffendersLocked(buckets map[int64]denials, b Bucketing, f *Figures) {
	now := b.index(f.At)
	if len(f.Offenders) > 0 && buckets[now] == nil {
		for _, d := range buckets {
			d.trim(b.Users)
		}
		buckets[now] = denials{}
	}
	for _, o := range f.Offenders {
		buckets[now][o.User] += o.Denies
	}
	if len(buckets[now]) > liveOffenders {
		buckets[now].trim(liveOffenders * 4 / 5)
	}
	for index := range buckets {
		if index <= now-int64(b.Keep) {
			delete(buckets, index)
		}
	}
}

// Version is Fleet's.
func (m *memoryFleet) Version(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.version, nil
}

// Watch is Fleet's: nobody else changes anything here.
func (m *memoryFleet) Watch(ctx context.Context, _ func()) { <-ctx.Done() }

// Totals is Fleet's.
func (m *memoryFleet) Totals(context.Context) (Totals, error) {
	active := m.activeKeys()
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.totals
	t.ActiveKeys = active
	return t, nil
}

// Offenders is Fleet's.
func (m *memoryFleet) Offenders(_ context.Context, w Window, n int) ([]Offender, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	first, last := w.indexes(time.Now())
	sum := denials{}
	for index, d := range m.windows[slices.Index(Bucketings[:], w.Bucket)] {
		if index < first || index > last {
			continue
		}
		for user, denies := range d {
			sum[user] += denies
		}
	}
	return worst(sum.list(), n), nil
}

// Resources is Fleet's.
func (m *memoryFleet) Resources(context.Context) ([]ResourceFigures, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]ResourceFigures, 0, len(m.resources))
	for _, name := range sortedKeys(m.resources) {
		all = append(all, m.resources[name])
	}
	return all, nil
}

// Settings is Fleet's.
func (m *memoryFleet) Settings(context.Context) (Settings, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Settings{Version: m.version, Resources: maps.Clone(m.limits)}
	for _, field := range sortedKeys(m.overrides) {
		o := m.overrides[field]
		if !o.until.IsZero() {
			if o.Left = time.Until(o.until); o.Left <= 0 {
				continue
			}
		}
		s.Overrides = append(s.Overrides, o.Override)
	}
	return s, nil
}

// Change is Fleet's.
func (m *memoryFleet) Change(_ context.Context, c Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.settleLocked(&c); err != nil {
		return err
	}
	m.version++
	c.Entry.Time = time.Now()
	m.audit = append(m.audit, c.Entry)
	m.audit = m.audit[max(0, len(m.audit)-MaxAudit):]
	return nil
}

func (m *memoryFleet) settleLocked(c *Change) error {
	switch {
	case c.SetLimits != nil:
		if _, ok := m.limits[c.Entry.Resource]; !ok && len(m.limits) >= maxFleetResources {
			return ErrTooMany
		}
		m.limits[c.Entry.Resource] = *c.SetLimits
	case c.DropLimits:
		delete(m.limits, c.Entry.Resource)
	case c.SetOverride != nil:
		return m.overrideLocked(*c.SetOverride)
	}
	for _, o := range c.DropOverrides {
		delete(m.overrides, overrideField(o.User, o.Resource))
	}
	return nil
}

func (m *memoryFleet) overrideLocked(o Override) error {
	now := time.Now()
	if len(m.overrides) >= MaxOverrides {
		maps.DeleteFunc(m.overrides, func(_ string, o keptOverride) bool {
			return !o.until.IsZero() && !now.Before(o.until)
		})
	}
	field := overrideField(o.User, o.Resource)
	if _, ok := m.overrides[field]; !ok && len(m.overrides) >= MaxOverrides {
		return ErrTooMany
	}
	kept := keptOverride{Override: o}
	if o.Left != 0 {
		kept.until = now.Add(o.Left)
	}
	m.overrides[field] = kept
	return nil
}

// Audit is Fleet's. The entries read as those of Redis do, with details that
// have been through JSON.
func (m *memoryFleet) Audit(_ context.Context, n int) ([]AuditEntry, error) {
	m.mu.Lock()
	newest := slices.Clone(m.audit[max(0, len(m.audit)-n):])
	m.mu.Unlock()
	slices.Reverse(newest)
	for i := range newest {
		var read AuditEntry
		if err := json.Unmarshal([]byte(encode(newest[i])), &read); err != nil {
			return nil, fmt.Errorf("read audit entry: %w", err)
		}
		newest[i] = read
	}
	return newest, nil
}
