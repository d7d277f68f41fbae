package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// clusterFaults are those that only a cluster has. Of the others, those of one
// server hit its first node, a primary.
var clusterFaults = []fault{
	{name: "slots move", effect: serves, begin: moveSlots},
	{name: "primary lost", loses: 1, replicas: 1, begin: losePrimary},
	{name: "primary steps down", effect: shakes, replicas: 1, begin: stepDown},
}

func TestFaultsOfACluster(t *testing.T) {
	tryFaults(t, append(inCluster(processFaults), clusterFaults...), func(r *faultRun) string {
		r.cluster = redistest.StartCluster(r.t, 3, r.replicas)
		for i := range r.cluster.Nodes() {
			r.servers = append(r.servers, r.cluster.Node(i))
		}
		allowGateways(r)
		return redisAddrs("cluster", r.cluster.Addrs())
	})
}

// redisAddrs is what a configuration says of several servers.
func redisAddrs(mode string, addrs []string) string {
	return fmt.Sprintf(`mode: %s, addrs: ["%s"], username: gateway, password: secret`, mode, strings.Join(addrs, `", "`))
}

// inCluster are faults of one server, of which only some are quick in a cluster.
func inCluster(faults []fault) (all []fault) {
	for _, f := range faults {
		f.quick = f.name == "paused"
		all = append(all, f)
	}
	return all
}

// awaitCluster waits until the cluster, if there is one, is up.
func (r *faultRun) awaitCluster() {
	if r.cluster != nil {
		r.during(func() { r.cluster.AwaitUp(r.t) })
	}
}

// moveSlots moves slots to the first node while buckets in them are asked for: a
// new one at each stage, as each request has one of its own.
func moveSlots(r *faultRun) {
	stages := map[redistest.Stage]string{redistest.SlotOpen: "local", redistest.KeysMoved: "allow"}
	r.during(func() {
		to := r.servers[0]
		for i := range 60 {
			user := fmt.Sprint("mover", i)
			key := "r8:{" + user + "}:deny"
			from := r.cluster.NodeOf(r.t, key)
			if from == to {
				continue
			}
			r.ask(r.clients[i%2], user, "deny")
			r.cluster.MoveSlot(r.t, r.cluster.Slot(r.t, key), from, to, func(s redistest.Stage) {
				if resource, ok := stages[s]; ok {
					r.ask(r.clients[i%2], user, resource)
				}
			})
		}
	})
}

// losePrimary kills the first node and waits until its replica stands in.
func losePrimary(r *faultRun) {
	kill(r)
	r.servers = r.servers[1:]
	heir := r.cluster.Node(3)
	r.until("the replica takes over", func() bool { return isPrimary(heir) })
	r.awaitCluster()
}

// stepDown has the first node and its replica change places, as before
// maintenance.
func stepDown(r *faultRun) {
	heir := r.cluster.Node(3)
	heir.Do(r.t, "CLUSTER", "FAILOVER")
	r.until("the replica takes over", func() bool { return isPrimary(heir) })
}
