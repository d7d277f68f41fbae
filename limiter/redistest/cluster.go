package redistest

import (
	"strconv"
	"strings"
	"testing"
)

// slots is how many slots a cluster has.
const slots = 16384

// Cluster is a Redis Cluster. A node that is silent for a second counts as dead;
// a dead primary's slots go to a replica of its, and without one the whole
// cluster is down.
type Cluster struct {
	nodes []*Server
	buses []int // the nodes' ports for each other
}

// StartCluster starts a cluster with so many primaries, between which the slots
// are spread evenly, and so many replicas for each. It returns when every node
// knows all others, every replica is in sync, and every node says that the
// cluster is up, which takes two seconds at least. All of it ends with the test.
//
// A node that a test restarts is empty, but knows the cluster.
func StartCluster(t testing.TB, primaries, replicas int) *Cluster {
	t.Helper()
	c := &Cluster{}
	for range primaries * (1 + replicas) {
		c.startNode(t)
	}
	for i, node := range c.nodes {
		node.Do(t, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
	}
	for i, node := range c.nodes[:primaries] {
		node.Do(t, "CLUSTER", "ADDSLOTSRANGE", i*slots/primaries, (i+1)*slots/primaries-1)
	}
	for i, node := range c.nodes[1:] {
		c.nodes[0].Do(t, "CLUSTER", "MEET", "127.0.0.1", node.port, c.buses[i+1])
	}
	poll(t, "all nodes know each other", func() bool { return c.all(t, c.acquainted) })
	for i, node := range c.nodes[primaries:] {
		node.Do(t, "CLUSTER", "REPLICATE", c.id(t, c.nodes[i/replicas]))
	}
	for _, node := range c.nodes[primaries:] {
		awaitSync(t, node)
	}
	c.AwaitUp(t)
	poll(t, "all nodes know the replicas", func() bool {
		return c.all(t, func(t testing.TB, s *Server) bool { return c.replicas(t, s) == primaries*replicas })
	})
	return c
}

// startNode starts a node that knows no other.
func (c *Cluster) startNode(t testing.TB) {
	t.Helper()
	bus, started := 0, false
	node := launch(t, newDir(t), func() commandLine {
		if !started { // the others remember it
			bus = freePort(t)
		}
		return commandLine{options: []string{
			"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "1000",
			"--cluster-port", strconv.Itoa(bus), "--cluster-allow-replica-migration", "no",
			"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1",
		}}
	})
	started = true
	c.nodes, c.buses = append(c.nodes, node), append(c.buses, bus)
}

func (c *Cluster) all(t testing.TB, ok func(testing.TB, *Server) bool) bool {
	t.Helper()
	for _, node := range c.nodes {
		if !ok(t, node) {
			return false
		}
	}
	return true
}

// acquainted says whether a node has shaken hands with all.
func (c *Cluster) acquainted(t testing.TB, s *Server) bool {
	t.Helper()
	view := s.Do(t, "CLUSTER", "NODES").(string)
	return strings.Count(view, "\n") == len(c.nodes) && !strings.Contains(view, "handshake") && !strings.Contains(view, "disconnected")
}

// replicas is how many of the nodes s takes for replicas.
func (c *Cluster) replicas(t testing.TB, s *Server) int {
	t.Helper()
	return strings.Count(s.Do(t, "CLUSTER", "NODES").(string), "slave ")
}

// id is the name by which the nodes know s.
func (c *Cluster) id(t testing.TB, s *Server) string {
	t.Helper()
	return s.Do(t, "CLUSTER", "MYID").(string)
}

// AwaitUp waits until every node that runs says that the cluster is up.
func (c *Cluster) AwaitUp(t testing.TB) {
	t.Helper()
	poll(t, "the cluster is up", func() bool {
		for _, node := range c.nodes {
			reply, err := node.ask("CLUSTER", "INFO")
			if err == nil && fields(reply)["cluster_state"] != "ok" {
				return false
			}
		}
		return true
	})
}

// Addrs are the nodes' addresses, in the order of Node.
func (c *Cluster) Addrs() []string { return addrs(c.nodes) }

// Nodes is how many nodes there are.
func (c *Cluster) Nodes() int { return len(c.nodes) }

// Node is a node: first come those that started as primaries, then the replicas
// of the first of them, those of the second, and so on.
func (c *Cluster) Node(i int) *Server { return c.nodes[i] }

// KillNode kills Node(i) and returns it.
func (c *Cluster) KillNode(i int) *Server {
	c.nodes[i].Kill()
	return c.nodes[i]
}

// Slot is the slot of a key.
func (c *Cluster) Slot(t testing.TB, key string) int {
	t.Helper()
	return int(c.askAny(t, "CLUSTER", "KEYSLOT", key).(int64))
}

// NodeOf is the primary to which a key belongs, as the first node that runs sees
// it: after a kill that is the dead one until a replica has taken over.
func (c *Cluster) NodeOf(t testing.TB, key string) *Server {
	t.Helper()
	port := owner(c.askAny(t, "CLUSTER", "SLOTS"), c.Slot(t, key))
	return byPort(t, c.nodes, strconv.FormatInt(port, 10))
}

// owner is the port of the primary that has slot, in a reply to CLUSTER SLOTS,
// and 0 where nobody has it.
func owner(reply any, slot int) int64 {
	rows, _ := reply.([]any)
	for _, row := range rows {
		row := row.([]any) // first slot, last slot, primary, replicas
		if int64(slot) >= row[0].(int64) && int64(slot) <= row[1].(int64) {
			return row[2].([]any)[1].(int64)
		}
	}
	return 0
}

// askAny is the reply of the first node that replies.
func (c *Cluster) askAny(t testing.TB, args ...any) any {
	t.Helper()
	var err error
	for _, node := range c.nodes {
		var reply any
		if reply, err = node.ask(args...); err == nil {
			return reply
		}
	}
	t.Fatalf("no node replies; the last error was: %v", err)
	return nil
}

// Stage is how far a slot has moved. A command on a key that is no longer, or
// not yet, where it is asked for gets ASK or MOVED; one on several keys of which
// only some have moved gets TRYAGAIN.
type Stage string

// The stages, in their order; KeyMoved comes once for each key.
const (
	SlotOpen  Stage = "slot open"  // both sides know, all keys are with the old owner
	KeyMoved  Stage = "key moved"  // one more key is with the new owner
	KeysMoved Stage = "keys moved" // all are, but the slot is still the old owner's
	SlotMoved Stage = "slot moved" // all primaries know the new owner
)

// MoveSlot moves a slot and its keys between two primaries, and calls at (unless
// it is nil) when each stage is reached.
func (c *Cluster) MoveSlot(t testing.TB, slot int, from, to *Server, at func(Stage)) {
	t.Helper()
	if at == nil {
		at = func(Stage) {}
	}
	to.Do(t, "CLUSTER", "SETSLOT", slot, "IMPORTING", c.id(t, from))
	from.Do(t, "CLUSTER", "SETSLOT", slot, "MIGRATING", c.id(t, to))
	at(SlotOpen)
	for {
		keys := from.Do(t, "CLUSTER", "GETKEYSINSLOT", slot, 100).([]any)
		for _, key := range keys {
			from.Do(t, "MIGRATE", "127.0.0.1", to.port, key, 0, 5000)
			at(KeyMoved)
		}
		if len(keys) == 0 {
			break
		}
	}
	at(KeysMoved)
	for _, side := range []*Server{to, from} { // in this order: nobody loses sight of the slot
		side.Do(t, "CLUSTER", "SETSLOT", slot, "NODE", c.id(t, to))
	}
	poll(t, "all nodes that run know the slot's owner", func() bool { return c.agreed(slot, to) })
	at(SlotMoved)
}

// agreed says whether all nodes that run take s for the owner of slot.
func (c *Cluster) agreed(slot int, s *Server) bool {
	for _, node := range c.nodes {
		if reply, err := node.ask("CLUSTER", "SLOTS"); err == nil && owner(reply, slot) != int64(s.port) {
			return false
		}
	}
	return true
}
