package main

import (
	"slices"
	"testing"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// sentinelFaults are those of a primary that sentinels watch. What its replicas
// had not copied is lost.
var sentinelFaults = []fault{
	{name: "primary lost", loses: 1, quick: true, begin: func(r *faultRun) {
		old := r.sentinel.KillPrimary(r.t)
		r.servers = slices.DeleteFunc(slices.Clone(r.servers), func(s *redistest.Server) bool { return s == old })
		r.awaitHeir(old)
	}},
	{name: "primary paused", loses: 1, splits: true, begin: func(r *faultRun) {
		old := r.sentinel.Primary(r.t)
		old.Pause()
		r.awaitHeir(old)
		old.Resume() // and takes itself for the primary yet
	}},
	{name: "primary steps down", effect: shakes, loses: 1, splits: true, begin: func(r *faultRun) {
		old := r.sentinel.Primary(r.t)
		r.sentinel.Sentinels()[0].Do(r.t, "SENTINEL", "FAILOVER", r.sentinel.MasterName)
		r.awaitHeir(old)
		r.until("the old primary knows it too", func() bool { return !isPrimary(old) })
	}},
	{name: "sentinel lost", effect: serves, begin: func(r *faultRun) { r.sentinel.Sentinels()[0].Kill() }},
}

func TestFaultsOfAPrimaryWithSentinels(t *testing.T) {
	tryFaults(t, sentinelFaults, func(r *faultRun) string {
		r.sentinel = redistest.StartSentinel(r.t)
		r.servers = r.sentinel.Servers()
		allowGateways(r)
		return redisAddrs("sentinel", r.sentinel.Addrs()) + ", master_name: " + r.sentinel.MasterName
	})
}

// awaitHeir waits until the sentinels name another primary than the old one, and
// that one knows it.
func (r *faultRun) awaitHeir(old *redistest.Server) {
	r.until("a replica takes over", func() bool {
		p := r.sentinel.Primary(r.t)
		return p != old && isPrimary(p)
	})
}
