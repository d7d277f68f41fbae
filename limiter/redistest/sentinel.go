package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// Sentinel is a primary with two replicas, which three sentinels watch; two of
// them must agree. They deem a server down that is silent for half a second, and
// elect a replica then.
type Sentinel struct {
	MasterName string // the name that clients ask the sentinels for

	servers   []*Server
	sentinels []*Server
}

// StartSentinel returns when all sentinels know all servers and each other and
// the replicas are in sync. All of it ends with the test.
//
// A primary that a test restarts is empty, as all servers here: before the
// sentinels notice, its replicas may copy its emptiness.
func StartSentinel(t testing.TB) *Sentinel {
	t.Helper()
	s := &Sentinel{MasterName: "limits"}
	options := []string{"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"}
	primary := Start(t, options...)
	s.servers = []*Server{primary}
	options = append(options, "--replicaof", "127.0.0.1", strconv.Itoa(primary.port))
	for range 2 {
		s.servers = append(s.servers, Start(t, options...))
	}
	for _, replica := range s.servers[1:] {
		awaitSync(t, replica)
	}
	for range 3 {
		s.sentinels = append(s.sentinels, s.startOne(t, primary))
	}
	for _, sentinel := range s.sentinels {
		poll(t, "a sentinel knows all others", func() bool { return s.complete(t, sentinel) })
	}
	return s
}

// awaitSync waits until replica has its primary's data.
func awaitSync(t testing.TB, replica *Server) {
	t.Helper()
	poll(t, "a replica is in sync", func() bool { return replica.info(t, "replication")["master_link_status"] == "up" })
}

// startOne starts a sentinel.
func (s *Sentinel) startOne(t testing.TB, primary *Server) *Server {
	t.Helper()
	dir := newDir(t)
	config := filepath.Join(dir, "sentinel.conf") // which the sentinel rewrites
	text := fmt.Sprintf("sentinel monitor %[1]s 127.0.0.1 %[2]d 2\nsentinel down-after-milliseconds %[1]s 500\nsentinel failover-timeout %[1]s 3000\n",
		s.MasterName, primary.port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	server := launch(t, dir, func() commandLine { return commandLine{config: config, options: []string{"--sentinel"}} })
	// They find each other by what they publish, by default every two seconds.
	server.Do(t, "SENTINEL", "DEBUG", "publish-period", 100)
	return server
}

// complete says whether sentinel is connected to both replicas and both other
// sentinels, and has heard that the replicas are in sync.
func (s *Sentinel) complete(t testing.TB, sentinel *Server) bool {
	t.Helper()
	replicas, others := 0, 0
	for _, r := range maps(sentinel.Do(t, "SENTINEL", "REPLICAS", s.MasterName)) {
		if r["flags"] == "slave" && r["master-link-status"] == "ok" {
			replicas++
		}
	}
	for _, o := range maps(sentinel.Do(t, "SENTINEL", "SENTINELS", s.MasterName)) {
		if o["flags"] == "sentinel" {
			others++
		}
	}
	return replicas == len(s.servers)-1 && others == len(s.sentinels)-1
}

// maps reads a reply of lists of names and values.
func maps(reply any) (all []map[string]string) {
	lists, _ := reply.([]any)
	for _, list := range lists {
		m := map[string]string{}
		pairs, _ := list.([]any)
		for i := 0; i+1 < len(pairs); i += 2 {
			m[fmt.Sprint(pairs[i])] = fmt.Sprint(pairs[i+1])
		}
		all = append(all, m)
	}
	return all
}

// Addrs are the sentinels' addresses.
func (s *Sentinel) Addrs() []string { return addrs(s.sentinels) }

// Servers are the primary and the replicas, in no order that lasts.
func (s *Sentinel) Servers() []*Server { return s.servers }

// Sentinels are the sentinels, to kill or pause one.
func (s *Sentinel) Sentinels() []*Server { return s.sentinels }

// Primary is the server that the first sentinel to answer takes for the primary.
// Until the sentinels have elected another, that is the old one, dead or not.
func (s *Sentinel) Primary(t testing.TB) *Server {
	t.Helper()
	var err error
	for _, sentinel := range s.sentinels {
		var reply any
		if reply, err = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", s.MasterName); err != nil {
			continue
		}
		if pair, _ := reply.([]any); len(pair) == 2 {
			return byPort(t, s.servers, fmt.Sprint(pair[1]))
		}
	}
	t.Fatalf("no sentinel names the primary; the last error was: %v", err)
	return nil
}

// KillPrimary kills the primary and returns it.
func (s *Sentinel) KillPrimary(t testing.TB) *Server {
	t.Helper()
	primary := s.Primary(t)
	primary.Kill()
	return primary
}

func addrs(servers []*Server) (all []string) {
	for _, s := range servers {
		all = append(all, s.Addr())
	}
	return all
}

func byPort(t testing.TB, servers []*Server, port string) *Server {
	t.Helper()
	for _, s := range servers {
		if strconv.Itoa(s.port) == port {
			return s
		}
	}
	t.Fatalf("none of the servers has port %s", port)
	return nil
}
