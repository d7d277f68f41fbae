package limiter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/redis/go-redis/v9"
)

const (
	// conditionEvery is how often watch looks. A look costs Redis one INFO, some
	// 100 µs, from each gateway.
	conditionEvery = time.Minute
	// lookTimeout bounds one look, at all servers of a cluster together.
	lookTimeout = 2 * time.Second
)

// redisCondition looks at Redis itself: whether it is set up so that the
// promises about buckets hold. It only asks (INFO, which an ACL must grant), it
// mends nothing; decisions go on whatever it finds.
type redisCondition struct {
	client  redis.UniversalClient
	every   time.Duration // how often watch looks
	evicted *metrics.Counter
	gauges  map[string]*metrics.Gauge // by kind, 0 or 1

	looking   sync.Mutex // one look at a time; guards evictions
	evictions evictions
}

// conditionWarning is something about a Redis that an operator must know.
type conditionWarning struct {
	kind    string // of conditions; it labels a series
	node    string // address of the server, or "primary" behind a Sentinel
	message string // what, why it matters, and what to do
}

// nodeLook is what one look saw of one server.
type nodeLook struct {
	node    string
	info    redisInfo
	evicted int64 // keys evicted since the last look
}

// conditions are the kinds of warnings. Each finds the message, "" if all is
// well or INFO lacks what it takes to know.
var conditions = []struct {
	kind string
	find func(*nodeLook) string
}{
	{"version", (*nodeLook).version},
	{"replica", (*nodeLook).replica},
	{"eviction_policy", (*nodeLook).evictionPolicy},
	{"evicted", (*nodeLook).evictedKeys},
	{"persistence", (*nodeLook).persistence},
}

// newRedisCondition returns the condition of the Redis of client, which stays
// the caller's, with its series in set. client must have ContextTimeoutEnabled,
// or it and not lookTimeout bounds a look. It does not dial.
func newRedisCondition(client redis.UniversalClient, set *metrics.Set) *redisCondition {
	c := &redisCondition{
		client:    client,
		every:     conditionEvery,
		evicted:   set.NewCounter("r8limiter_store_evicted_keys_total"),
		gauges:    map[string]*metrics.Gauge{},
		evictions: evictions{known: map[string]int64{}},
	}
	for _, each := range conditions {
		c.gauges[each.kind] = set.NewGauge(fmt.Sprintf("r8limiter_store_condition{kind=%q}", each.kind), nil)
	}
	return c
}

// check looks once, at the primaries of a cluster or at the one server that
// there is. The warnings are by node. An error says which servers could not be
// asked; the warnings are then about the others.
func (c *redisCondition) check(ctx context.Context) ([]conditionWarning, error) {
	c.looking.Lock()
	defer c.looking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	start := time.Now()
	looks, err := c.look(ctx)
	c.evicted.AddInt64(c.evictions.update(looks, start, err))
	var warnings []conditionWarning
	for i := range looks {
		warnings = append(warnings, looks[i].warnings()...)
	}
	c.show(warnings, err)
	return warnings, err
}

// show sets the gauges. After an error none goes back to 0: what was the matter
// with the servers that did not answer may still be.
func (c *redisCondition) show(warnings []conditionWarning, err error) {
	for kind, gauge := range c.gauges {
		if slices.ContainsFunc(warnings, func(w conditionWarning) bool { return w.kind == kind }) {
			gauge.Set(1)
		} else if err == nil {
			gauge.Set(0)
		}
	}
}

// look asks every server, by node.
func (c *redisCondition) look(ctx context.Context) ([]nodeLook, error) {
	var mu sync.Mutex // guards looks and errs
	var looks []nodeLook
	var errs []error
	err := c.eachPrimary(ctx, func(ctx context.Context, client *redis.Client) error {
		l, err := lookAt(ctx, client)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			errs = append(errs, err)
			return nil // a cluster's client would return one of them alone
		}
		looks = append(looks, l)
		return nil
	})
	if err != nil {
		errs = append(errs, fmt.Errorf("find the primaries of redis: %w", err))
	}
	slices.SortFunc(looks, func(a, b nodeLook) int { return cmp.Compare(a.node, b.node) })
	return looks, errors.Join(errs...)
}

// eachPrimary calls f for each server that takes writes, concurrently.
func (c *redisCondition) eachPrimary(ctx context.Context, f func(context.Context, *redis.Client) error) error {
	switch client := c.client.(type) {
	case *redis.ClusterClient:
		return client.ForEachMaster(ctx, f)
	case *redis.Client:
		return f(ctx, client)
	}
	return fmt.Errorf("there is no look at a %T", c.client)
}

func lookAt(ctx context.Context, client *redis.Client) (nodeLook, error) {
	l := nodeLook{node: nodeName(client)}
	var err error
	if l.info, err = askInfo(ctx, client); err != nil {
		return l, fmt.Errorf("info of redis %s: %w", l.node, err)
	}
	return l, nil
}

// nodeName is the address of client. go-redis has a word of its own for
// whatever is the primary that a Sentinel names.
func nodeName(client *redis.Client) string {
	if addr := client.Options().Addr; addr != "FailoverClient" {
		return addr
	}
	return "primary"
}

// warnings are all that l gives rise to.
func (l *nodeLook) warnings() (all []conditionWarning) {
	for _, each := range conditions {
		if message := each.find(l); message != "" {
			all = append(all, conditionWarning{each.kind, l.node, message})
		}
	}
	return all
}

// version: lua/decide.lua begins with #!lua, which came with Redis 7.0. Valkey
// is younger than that; it calls itself Redis 7.2 for the sake of clients.
func (l *nodeLook) version() string {
	version := l.info["redis_version"]
	text, _, _ := strings.Cut(version, ".")
	major, err := strconv.ParseUint(text, 10, 16)
	if err != nil || major >= 7 || l.info["server_name"] == "valkey" || l.info["valkey_version"] != "" {
		return ""
	}
	return fmt.Sprintf("this is Redis %s, whose scripts can't begin with #!lua: it decides nothing; "+
		"upgrade it to 7.0 or later, or to Valkey", version)
}

func (l *nodeLook) isReplica() bool { return l.info["role"] == "slave" }

func (l *nodeLook) replica() string {
	if !l.isReplica() {
		return ""
	}
	return "this is a replica, where scripts can't write: it decides nothing; " +
		"name the primary in limiter.redis, or promote this one (REPLICAOF NO ONE)"
}

// evictionPolicy: buckets have a time to live, so that the volatile policies
// find them as well as those of all keys. Without maxmemory none ever acts.
func (l *nodeLook) evictionPolicy() string {
	policy := l.info["maxmemory_policy"]
	bytes, _ := l.info.number("maxmemory")
	if bytes == 0 || policy == "" || policy == "noeviction" {
		return ""
	}
	return fmt.Sprintf("maxmemory-policy is %s: at maxmemory (%d bytes) Redis drops buckets that are not full, "+
		"and a bucket that was dropped is full, so that users get more than their limits; "+
		"set maxmemory-policy noeviction, with which Redis refuses instead of forgetting", policy, bytes)
}

func (l *nodeLook) evictedKeys() string {
	if l.evicted == 0 {
		return ""
	}
	return fmt.Sprintf("Redis evicted %d keys since the last look: each bucket among them is full again, "+
		"so that users get more than their limits; give Redis more memory and set maxmemory-policy noeviction", l.evicted)
}

// forgets says whether a restart loses more than about the second that
// appendfsync everysec may. What its primary keeps a replica doesn't know.
func (l *nodeLook) forgets() bool {
	return l.info.is("aof_enabled", 0) && l.info.is("connected_slaves", 0) && !l.isReplica()
}

func (l *nodeLook) persistence() string {
	if !l.forgets() {
		return ""
	}
	return "Redis has neither an AOF nor a replica: a restart forgets every debt (with snapshots, those since the last one), not about a second of spending, " +
		"so that each bucket may admit up to its capacity once more; set appendonly yes (appendfsync everysec) or add a replica"
}
