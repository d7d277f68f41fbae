package limiter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/axiomhq/hyperloglog"
	"github.com/redis/go-redis/v9"

	"github.com/r8limiter/r8limiter/lua"
)

// activeSketchTTL is how long a gateway's sketch of its active keys counts when
// no other follows: the gateway is gone then.
const activeSketchTTL = 30 * time.Second

// redisFleet is the fleet of all gateways on one Redis. Its keys are
//
//	<prefix>:{!fleet}:totals             hash: allowed, denied
//	<prefix>:{!fleet}:resources          sorted set: resource -> last seen, in ms
//	<prefix>:{!fleet}:counts             hash: a<resource>, d<resource> -> allowed, denied
//	<prefix>:{!fleet}:offenders:<b>:<n>  sorted set: user -> denials, in the n-th minute, hour or day
//	<prefix>:{!fleet}:gateways           sorted set: gateway -> last flush, in ms
//	<prefix>:{!fleet}:active:<gateway>   sketch of its active keys
//	<prefix>:{!fleet}:limits, :overrides, :expiry, :version, :audit    see lua/change.lua
//
// in one slot of a cluster, and bounded: see Bucketings, MaxOverrides and so on. It has
// connections of its own, so that no decision ever waits for one of them.
type redisFleet struct {
	client redis.UniversalClient
	prefix string // of every key, with the colon
	active *activeKeys
	change *redis.Script

	// Only Flush uses these, which one goroutine calls at a time.
	sketched time.Time                      // when the last sketch was sent
	periods  [len(Bucketings)]int64         // the time bucket of the last flush
	large    [len(Bucketings)]*redis.IntCmd // how many users its buckets have
}

// newRedisFleet returns the fleet on the Redis of a store. It does not dial.
func newRedisFleet(c RedisConfig, active *activeKeys) (*redisFleet, error) {
	// Nothing here is on a request's way: it may take its time.
	client, err := c.client(fleetTimeout, 4)
	if err != nil {
		return nil, err
	}
	return &redisFleet{
		client: client,
		prefix: c.keyPrefix() + ":{!fleet}:",
		active: active,
		change: redis.NewScript(lua.Change),
	}, nil
}

func (r *redisFleet) key(parts ...string) string { return r.prefix + strings.Join(parts, ":") }

func (r *redisFleet) offendersKey(b Bucketing, index int64) string {
	return r.key("offenders", b.Name, strconv.FormatInt(index, 10))
}

// Flush is Fleet's: one pipeline.
func (r *redisFleet) Flush(ctx context.Context, f *Figures) (int64, error) {
	p := r.client.Pipeline()
	r.addResources(ctx, p, f)
	for i, b := range Bucketings {
		r.addOffenders(ctx, p, i, b, f)
	}
	r.addActive(ctx, p, f)
	resources := p.ZCard(ctx, r.key("resources"))
	version := p.Get(ctx, r.key("version"))
	if _, err := p.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return 0, err
	}
	if err := r.trim(ctx, f, resources.Val()-maxFleetResources); err != nil {
		return 0, err
	}
	return asVersion(version)
}

// trim forgets the surplus resources, unused longest, and the least offenders of
// buckets that have become large.
func (r *redisFleet) trim(ctx context.Context, f *Figures, surplus int64) error {
	for i, b := range Bucketings {
		if r.large[i] == nil || r.large[i].Val() <= liveOffenders {
			continue
		}
		if err := r.client.ZRemRangeByRank(ctx, r.offendersKey(b, b.index(f.At)), 0, -liveOffenders*4/5-1).Err(); err != nil {
			return err
		}
	}
	if surplus <= 0 {
		return nil
	}
	oldest, err := r.client.ZRangeWithScores(ctx, r.key("resources"), 0, surplus-1).Result()
	if err != nil {
		return err
	}
	return r.forget(ctx, oldest)
}

func (r *redisFleet) addResources(ctx context.Context, p redis.Pipeliner, f *Figures) {
	var allowed, denied uint64
	for _, each := range f.Resources {
		allowed += each.Allowed
		denied += each.Denied
		if each.Name == "" {
			continue
		}
		p.ZAdd(ctx, r.key("resources"), redis.Z{Score: float64(f.At.UnixMilli()), Member: each.Name})
		p.HIncrBy(ctx, r.key("counts"), "a"+each.Name, int64(each.Allowed))
		p.HIncrBy(ctx, r.key("counts"), "d"+each.Name, int64(each.Denied))
	}
	if allowed > 0 {
		p.HIncrBy(ctx, r.key("totals"), "allowed", int64(allowed))
	}
	if denied > 0 {
		p.HIncrBy(ctx, r.key("totals"), "denied", int64(denied))
	}
}

// addOffenders adds to the bucket of now. When a bucket is over, few of its
// users are kept.
func (r *redisFleet) addOffenders(ctx context.Context, p redis.Pipeliner, i int, b Bucketing, f *Figures) {
	now := b.index(f.At)
	if before := r.periods[i]; before != now && before != 0 {
		p.ZRemRangeByRank(ctx, r.offendersKey(b, before), 0, int64(-b.Users-1))
	}
	r.periods[i], r.large[i] = now, nil
	if len(f.Offenders) == 0 {
		return
	}
	key := r.offendersKey(b, now)
	for _, o := range f.Offenders {
		p.ZIncrBy(ctx, key, float64(o.Denies), o.User)
	}
	r.large[i] = p.ZCard(ctx, key)
	p.Expire(ctx, key, time.Duration(b.Keep+1)*b.Each)
}

// addActive sends a sketch of the active keys: seldom if there are many, for it
// takes a walk over all of them.
func (r *redisFleet) addActive(ctx context.Context, p redis.Pipeliner, f *Figures) {
	const perSecond = 50_000 // keys to walk over
	pause := min(time.Duration(r.active.size())*time.Second/perSecond, activeSketchTTL/3)
	if f.At.Sub(r.sketched) < pause {
		return
	}
	sketch, err := r.active.sketch().MarshalBinary()
	if err != nil {
		return // it can't fail, and is a statistic
	}
	r.sketched = f.At
	now := float64(f.At.UnixMilli())
	p.Set(ctx, r.key("active", f.Gateway), sketch, activeSketchTTL)
	p.ZAdd(ctx, r.key("gateways"), redis.Z{Score: now, Member: f.Gateway})
	p.ZRemRangeByScore(ctx, r.key("gateways"), "-inf", strconv.FormatInt(f.At.Add(-time.Hour).UnixMilli(), 10))
}

// Version is Fleet's.
func (r *redisFleet) Version(ctx context.Context) (int64, error) {
	return asVersion(r.client.Get(ctx, r.key("version")))
}

// asVersion is 0 where nothing was ever changed.
func asVersion(reply *redis.StringCmd) (int64, error) {
	version, err := reply.Int64()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return version, err
}

// Of a subscription: how long it may be silent before it is tried with a ping,
// and how long after its end the next begins.
const (
	watchSilence = 3 * time.Second
	watchPause   = time.Second
)

// Watch is Fleet's, by a subscription. It is renewed when it breaks, but not at
// once as go-redis' own (Channel) is, which dials ten times a second for as
// long as Redis fails: what is missed meanwhile, polls find.
func (r *redisFleet) Watch(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		r.listen(ctx, changed)
		select {
		case <-ctx.Done():
		case <-time.After(watchPause):
		}
	}
}

// listen subscribes, and returns when that breaks or when ctx ends.
func (r *redisFleet) listen(ctx context.Context, changed func()) {
	subscription := r.client.Subscribe(ctx, r.key("changed"))
	defer subscription.Close()
	// A read waits for its time-out whatever ctx says.
	defer context.AfterFunc(ctx, func() { _ = subscription.Close() })()
	for pinged := false; ; {
		message, err := subscription.ReceiveTimeout(ctx, watchSilence)
		var network net.Error
		switch {
		case err == nil:
			pinged = false
			if _, ok := message.(*redis.Message); ok {
				changed()
			}
		case pinged || !errors.As(err, &network) || !network.Timeout() || subscription.Ping(ctx) != nil:
			return
		default:
			pinged = true
		}
	}
}

// Totals is Fleet's. Each gateway knows exactly which of the buckets that it
// decided about are not full: the fleet's are the union.
func (r *redisFleet) Totals(ctx context.Context) (Totals, error) {
	p := r.client.Pipeline()
	totals := p.HGetAll(ctx, r.key("totals"))
	gateways := p.ZRange(ctx, r.key("gateways"), 0, -1)
	if _, err := p.Exec(ctx); err != nil {
		return Totals{}, err
	}
	t := Totals{Allowed: asCount(totals.Val()["allowed"]), Denied: asCount(totals.Val()["denied"])}
	union := hyperloglog.New16()
	keys := make([]string, len(gateways.Val()))
	for i, gateway := range gateways.Val() {
		keys[i] = r.key("active", gateway)
	}
	if len(keys) == 0 {
		return t, nil
	}
	sketches, err := r.client.MGet(ctx, keys...).Result()
	if err != nil {
		return Totals{}, err
	}
	for _, sketch := range sketches {
		text, _ := sketch.(string) // nil for a gateway that is gone
		if err := mergeSketch(union, text); err != nil {
			return Totals{}, fmt.Errorf("sketch of active keys: %w", err)
		}
	}
	t.ActiveKeys = int(union.Estimate())
	return t, nil
}

func mergeSketch(union *hyperloglog.Sketch, text string) error {
	if text == "" {
		return nil
	}
	sketch := new(hyperloglog.Sketch)
	if err := sketch.UnmarshalBinary([]byte(text)); err != nil {
		return err
	}
	return union.Merge(sketch)
}

// asCount reads a counter; what is missing is 0.
func asCount(text string) uint64 {
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// Offenders is Fleet's.
func (r *redisFleet) Offenders(ctx context.Context, w Window, n int) ([]Offender, error) {
	first, last := w.indexes(time.Now())
	var keys []string
	for index := first; index <= last; index++ {
		keys = append(keys, r.offendersKey(w.Bucket, index))
	}
	sums, err := r.client.ZUnionWithScores(ctx, redis.ZStore{Keys: keys, Aggregate: "SUM"}).Result()
	if err != nil {
		return nil, err
	}
	all := make([]Offender, len(sums))
	for i, z := range sums {
		user, _ := z.Member.(string)
		all[i] = Offender{user, uint64(z.Score)}
	}
	return worst(all, n), nil
}

// Resources is Fleet's.
func (r *redisFleet) Resources(ctx context.Context) ([]ResourceFigures, error) {
	p := r.client.Pipeline()
	seen := p.ZRangeWithScores(ctx, r.key("resources"), 0, -1)
	counts := p.HGetAll(ctx, r.key("counts"))
	if _, err := p.Exec(ctx); err != nil {
		return nil, err
	}
	all := make([]ResourceFigures, 0, maxFleetResources)
	for _, z := range seen.Val() {
		name, _ := z.Member.(string)
		all = append(all, ResourceFigures{
			Name: name, Allowed: asCount(counts.Val()["a"+name]), Denied: asCount(counts.Val()["d"+name]),
			LastSeen: time.UnixMilli(int64(z.Score)).UTC(),
		})
	}
	slices.SortFunc(all, func(a, b ResourceFigures) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func (r *redisFleet) forget(ctx context.Context, resources []redis.Z) error {
	if len(resources) == 0 {
		return nil
	}
	p := r.client.Pipeline()
	for _, z := range resources {
		name, _ := z.Member.(string)
		p.ZRem(ctx, r.key("resources"), name)
		p.HDel(ctx, r.key("counts"), "a"+name, "d"+name)
	}
	_, err := p.Exec(ctx)
	return err
}

// Settings is Fleet's. All is read in one moment.
func (r *redisFleet) Settings(ctx context.Context) (Settings, error) {
	p := r.client.TxPipeline()
	version := p.Get(ctx, r.key("version"))
	limits := p.HGetAll(ctx, r.key("limits"))
	overrides := p.HGetAll(ctx, r.key("overrides"))
	expiry := p.ZRangeWithScores(ctx, r.key("expiry"), 0, -1)
	clock := p.Time(ctx)
	if _, err := p.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return Settings{}, err
	}
	s := Settings{Resources: map[string]ResourceConfig{}}
	var err error
	if s.Version, err = asVersion(version); err != nil {
		return Settings{}, err
	}
	for name, text := range limits.Val() {
		var c ResourceConfig
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			return Settings{}, fmt.Errorf("limits of resource %q: %w", name, err)
		}
		s.Resources[name] = c
	}
	s.Overrides, err = readOverrides(overrides.Val(), expiry.Val(), clock.Val())
	return s, err
}

// readOverrides leaves out those that are over.
func readOverrides(texts map[string]string, expiry []redis.Z, now time.Time) ([]Override, error) {
	left := map[string]time.Duration{}
	for _, z := range expiry {
		field, _ := z.Member.(string)
		left[field] = time.UnixMilli(int64(z.Score)).Sub(now)
	}
	var all []Override
	for _, field := range sortedKeys(texts) {
		var o Override
		if err := json.Unmarshal([]byte(texts[field]), &o); err != nil {
			return nil, fmt.Errorf("override %q: %w", field, err)
		}
		remaining, expires := left[field]
		if o.Left = remaining; expires && remaining <= 0 {
			continue
		}
		all = append(all, o)
	}
	return all, nil
}

// Change is Fleet's.
func (r *redisFleet) Change(ctx context.Context, c Change) error {
	keys := []string{r.key("limits"), r.key("overrides"), r.key("expiry"), r.key("version"), r.key("audit")}
	args := []any{encode(c.Entry), MaxAudit, r.key("changed")}
	switch {
	case c.SetLimits != nil:
		args = append(args, "limits", c.Entry.Resource, encode(c.SetLimits), maxFleetResources, 0)
	case c.DropLimits:
		args = append(args, "limits", c.Entry.Resource, "", 0, 0)
	case c.SetOverride != nil:
		o := c.SetOverride
		args = append(args, "override", overrideField(o.User, o.Resource), encode(o), MaxOverrides, o.Left.Milliseconds())
	}
	for _, o := range c.DropOverrides {
		args = append(args, "override", overrideField(o.User, o.Resource), "", 0, 0)
	}
	done, err := r.change.Run(ctx, r.client, keys, args...).Int()
	if err == nil && done == 0 {
		return ErrTooMany
	}
	return err
}

// Audit is Fleet's.
func (r *redisFleet) Audit(ctx context.Context, n int) ([]AuditEntry, error) {
	lines, err := r.client.LRange(ctx, r.key("audit"), 0, int64(n)-1).Result()
	if err != nil {
		return nil, err
	}
	entries := make([]AuditEntry, len(lines))
	for i, line := range lines {
		ms, text, _ := strings.Cut(line, " ")
		if err := json.Unmarshal([]byte(text), &entries[i]); err != nil {
			return nil, fmt.Errorf("audit entry %d: %w", i, err)
		}
		at, _ := strconv.ParseInt(ms, 10, 64)
		entries[i].Time = time.UnixMilli(at).UTC()
	}
	return entries, nil
}

func (r *redisFleet) close() error { return r.client.Close() }
