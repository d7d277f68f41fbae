package limiter

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestRedisTopologySocketWithPasswordAndDatabase(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	server.do(t, "CONFIG", "SET", "requirepass", "p/ss")
	store := openStore(t, RedisConfig{URL: "unix://:p%2Fss@" + server.socket + "?db=3", Timeout: 5 * time.Second})
	useStore(t, store)
	server.do(t, "AUTH", "p/ss")
	if keyspace := server.do(t, "INFO", "keyspace").(string); !strings.Contains(keyspace, "db3:") || strings.Contains(keyspace, "db0:") {
		t.Errorf("the keys are in %s, want db3", keyspace)
	}
}

func TestRedisTopologyTLSWithClientCertificates(t *testing.T) {
	t.Parallel()
	_, c := startTLS(t, newAuthority(t, "ca"))
	useStore(t, openStore(t, c))
	for name, other := range map[string]RedisConfig{
		"url":         {URL: "rediss://" + c.Addrs[0], TLS: c.TLS},
		"server name": {Addrs: c.Addrs, TLS: &ClientTLS{c.TLS.CAFile, c.TLS.CertFile, c.TLS.KeyFile, "redis.test"}},
	} {
		other.Timeout = 5 * time.Second
		if err := openStore(t, other).Probe(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRedisTopologyTLSThatDoesNotFitSaysWhy(t *testing.T) {
	t.Parallel()
	_, c := startTLS(t, newAuthority(t, "ca"))
	stranger := newAuthority(t, "stranger")
	strangeCert, strangeKey := stranger.issue(t, "gateway", &x509.Certificate{})
	for name, test := range map[string]struct {
		config RedisConfig
		want   string
	}{
		"system's authorities":  {RedisConfig{URL: "rediss://" + c.Addrs[0]}, "certificate signed by unknown authority"},
		"other authority":       {RedisConfig{Addrs: c.Addrs, TLS: &ClientTLS{stranger.file, c.TLS.CertFile, c.TLS.KeyFile, ""}}, "certificate signed by unknown authority"},
		"other name":            {RedisConfig{Addrs: c.Addrs, TLS: &ClientTLS{c.TLS.CAFile, c.TLS.CertFile, c.TLS.KeyFile, "other.test"}}, "not other.test"},
		"no certificate":        {RedisConfig{Addrs: c.Addrs, TLS: &ClientTLS{CAFile: c.TLS.CAFile}}, "the server asked for a certificate"},
		"strange certificate":   {RedisConfig{Addrs: c.Addrs, TLS: &ClientTLS{c.TLS.CAFile, strangeCert, strangeKey, ""}}, "the server asked for a certificate"},
		"no TLS where it is on": {RedisConfig{URL: "redis://" + c.Addrs[0]}, ""},
	} {
		test.config.Timeout = 2 * time.Second
		if err := openStore(t, test.config).Probe(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want something with %q", name, err, test.want)
		}
	}
}

func TestRedisTopologyTLSFilesAreCheckedBeforeTheStart(t *testing.T) {
	a := newAuthority(t, "ca")
	cert, key := a.serve(t)
	otherCert, otherKey := newAuthority(t, "other").serve(t)
	broken := filepath.Join(t.TempDir(), "broken.pem")
	write(t, broken, "-----BEGIN CERTIFICATE-----", "MIIB", "-----END CERTIFICATE-----")
	missing := filepath.Join(t.TempDir(), "missing.pem")
	for _, test := range []struct {
		config     ClientTLS
		path, want string
	}{
		{ClientTLS{a.file, cert, key, ""}, "", ""},
		{ClientTLS{CAFile: missing}, "ca_file", "missing.pem: no such file"},
		{ClientTLS{CAFile: broken}, "ca_file", "broken.pem holds a certificate that can't be read: x509"},
		{ClientTLS{CAFile: key}, "ca_file", "server.key holds no certificate"},
		{ClientTLS{CAFile: t.TempDir()}, "ca_file", "is no file"},
		{ClientTLS{CAFile: "/dev/zero"}, "ca_file", "/dev/zero is no file"},
		{ClientTLS{CertFile: cert}, "key_file", "is missing"},
		{ClientTLS{KeyFile: key}, "cert_file", "is missing"},
		{ClientTLS{CertFile: missing, KeyFile: key}, "cert_file", "missing.pem: no such file"},
		{ClientTLS{CertFile: broken, KeyFile: key}, "cert_file", "broken.pem holds a certificate that can't be read: x509"},
		{ClientTLS{CertFile: cert, KeyFile: missing}, "key_file", "missing.pem: no such file"},
		{ClientTLS{CertFile: cert, KeyFile: otherKey}, "key_file", "private key does not match public key"},
		{ClientTLS{CertFile: cert, KeyFile: otherCert}, "key_file", "server.pem does not go with cert_file: tls:"},
	} {
		got := RedisConfig{URL: "rediss://h", TLS: &test.config}.problems()
		if test.path == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || !strings.HasPrefix(got[0], "tls."+test.path+": ") || !strings.Contains(got[0], test.want) {
			t.Errorf("%+v: got %q, want %q at tls.%s", test.config, got, test.want, test.path)
		}
	}
}

// minimalUser is the README's line that makes a user for r8limiter.
func minimalUser(t *testing.T) []any {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^    (ACL SETUSER gateway .*)$`).FindStringSubmatch(string(text))
	if line == nil {
		t.Fatal("the README has no ACL SETUSER")
	}
	var words []any
	for word := range strings.FieldsSeq(line[1]) {
		words = append(words, word)
	}
	return words
}

func TestRedisTopologyUserOfTheREADMEMayDoAllAndNoMore(t *testing.T) {
	t.Parallel()
	server, words := startNode(t, redis.Options{}), minimalUser(t)
	server.do(t, words...)
	server.do(t, "CONFIG", "RESETSTAT")
	useStore(t, openStore(t, RedisConfig{Addrs: []string{server.addr()}, Username: "gateway", Password: "PASSWORD", Timeout: 5 * time.Second}))
	if log := server.do(t, "ACL", "LOG").([]any); len(log) > 0 {
		t.Errorf("it was refused: %v", log)
	}
	stats := server.do(t, "INFO", "commandstats").(string)
	for _, word := range words {
		name, ok := strings.CutPrefix(word.(string), "+")
		// A subscription that hears nothing for seconds is asked whether it lives.
		if ok && name != "ping" && !strings.Contains(stats, "cmdstat_"+name+":") {
			t.Errorf("%s is never used", name)
		}
	}
	for _, refused := range [][]any{{"FLUSHALL"}, {"CONFIG", "GET", "*"}, {"GET", "other"}, {"PUBLISH", "other", "x"}} {
		got := asUser(server, words[2].(string), refused)
		if got == nil || !strings.HasPrefix(got.Error(), "NOPERM") {
			t.Errorf("%v: got %v, want NOPERM", refused, got)
		}
	}
}

// asUser sends a command as user.
func asUser(n *node, user string, args []any) error {
	client := redis.NewClient(&redis.Options{Addr: n.addr(), Username: user, Password: "PASSWORD", Protocol: 2})
	defer client.Close()
	return client.Do(context.Background(), args...).Err()
}

// watched are a primary, its replica and two sentinels, each of which decides
// alone, and what a gateway needs to enter.
type watched struct {
	primary, replica *node
	sentinels        []*node
	config           RedisConfig
}

func startWatched(t *testing.T) *watched {
	t.Helper()
	how, passwords := redis.Options{Password: "redis-pass"}, []string{"--requirepass", "redis-pass", "--masterauth", "redis-pass"}
	primary := startNode(t, how, passwords...)
	replica := startNode(t, how, append(passwords, "--replicaof", "127.0.0.1 "+primary.port)...)
	inTime(t, "the replica follows", func() bool { return replica.has("replication", "master_link_status:up") })
	sentinels := []*node{startSentinel(t, primary), startSentinel(t, primary)}
	for _, s := range sentinels {
		inTime(t, "the sentinel knows all", func() bool { return s.has("sentinel", "slaves=1,sentinels=2") })
	}
	return &watched{primary, replica, sentinels, RedisConfig{
		Mode: "sentinel", Addrs: []string{sentinels[0].addr(), sentinels[1].addr()}, MasterName: "main",
		Password: "redis-pass", SentinelUsername: "watcher", SentinelPassword: "watcher-pass", DB: 2, Timeout: time.Second,
	}}
}

func TestRedisTopologySentinel(t *testing.T) {
	t.Parallel()
	w := startWatched(t)
	t.Run("LeadsToThePrimary", w.testLead)
	t.Run("ThatIsSilentIsLeft", w.testSilence)
	t.Run("LeadsToTheReplicaAfterAFailover", w.testFailover)
}

func (w *watched) testLead(t *testing.T) {
	useStore(t, openStore(t, w.config))
	if !w.primary.has("keyspace", "db2:") {
		t.Error("database 2 of the primary is empty")
	}
}

// testSilence has a sentinel that takes connections and says nothing: it must
// not keep a store from asking the other one.
func (w *watched) testSilence(t *testing.T) {
	c := w.config
	c.Timeout = 200 * time.Millisecond
	store := openStore(t, c)
	decides := func() bool {
		start := time.Now()
		_, err := spendOne(store, "k", 1, slowLimit(MaxCapacity))
		if took := time.Since(start); took > c.Timeout*3 {
			t.Errorf("a decision took %v, want %v at most", took, c.Timeout)
		}
		return err == nil
	}
	inTime(t, "the store decides", decides)
	for _, silent := range w.sentinels { // one of them is the one that the store knows
		silent.signal(t, syscall.SIGSTOP)
		w.primary.do(t, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		inTime(t, "the store decides without a sentinel", decides)
		silent.signal(t, syscall.SIGCONT)
	}
}

func (w *watched) testFailover(t *testing.T) {
	store := openStore(t, w.config)
	if err := store.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range w.sentinels {
		s.do(t, "SENTINEL", "SET", "main", "down-after-milliseconds", 300)
	}
	w.primary.kill()
	inTime(t, "the replica decides", func() bool { return store.Probe(t.Context()) == nil })
	if !w.replica.has("replication", "role:master") {
		t.Error("the replica is not the primary")
	}
	for i := 2; i < 30; i++ { // what testLead has spent is still spent
		if d, err := spendOne(store, userKey(i), 3, slowLimit(3)); err != nil || d.Allowed {
			t.Errorf("user %d after the failover: got %+v, %v", i, d, err)
		}
	}
}

func TestRedisTopologyCluster(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t)
	t.Run("GetsEachCommandAtItsNode", func(t *testing.T) { testRouting(t, nodes) })
	t.Run("GetsNothingTwice", func(t *testing.T) { testOnce(t, nodes) })
	t.Run("IsServedByTheReplicaThatTookOver", func(t *testing.T) { testTakeover(t, nodes) })
}

func testRouting(t *testing.T, nodes []*node) {
	for _, n := range nodes {
		n.do(t, append(minimalUser(t), "+cluster|slots")...)
	}
	store := openStore(t, RedisConfig{
		Mode: "cluster", Addrs: []string{nodes[0].addr()}, Username: "gateway", Password: "PASSWORD", Timeout: 5 * time.Second,
	})
	useStore(t, store)
	if n := moved(t, nodes); n != 0 {
		t.Errorf("%d commands went to the wrong node first", n)
	}
	for i, n := range nodes {
		if n.has("commandstats", "cmdstat_command:") {
			t.Errorf("node %d was asked for its commands on a request's way", i)
		}
		if size := n.do(t, "DBSIZE").(int64); size < 3 {
			t.Errorf("node %d holds %d keys, want a third of 31 and more", i, size)
		}
	}
	testMove(t, nodes, store)
}

// testMove moves a slot: the store follows.
func testMove(t *testing.T, nodes []*node, store *RedisStore) {
	t.Helper()
	key := "r8:{mover}:read"
	slot := nodes[0].do(t, "CLUSTER", "KEYSLOT", key)
	owner := ownerOf(t, nodes, slot)
	id := nodes[(owner+1)%3].do(t, "CLUSTER", "MYID")
	for _, n := range nodes {
		n.do(t, "CLUSTER", "SETSLOT", slot, "NODE", id)
	}
	before := moved(t, nodes)
	if d, err := spendOne(store, key, 1, slowLimit(1)); err != nil || !d.Allowed {
		t.Errorf("after the move: got %+v, %v", d, err)
	}
	// The pipeline's call, and its second try if the client knows no better yet.
	if n := moved(t, nodes) - before; n < 1 || n > 2 {
		t.Errorf("%d commands were redirected, want 1 or 2", n)
	}
	if ownerOf(t, nodes, slot) != (owner+1)%3 || nodes[(owner+1)%3].do(t, "EXISTS", key) != int64(1) {
		t.Error("the bucket is not where its slot is")
	}
}

// ownerOf is the index of the node that has a slot.
func ownerOf(t *testing.T, nodes []*node, slot any) int {
	t.Helper()
	return slices.IndexFunc(nodes, func(n *node) bool {
		err := n.admin.Do(context.Background(), "CLUSTER", "COUNTKEYSINSLOT", slot).Err()
		probe := n.admin.Do(context.Background(), "GET", "r8:{mover}:probe").Err()
		return err == nil && errors.Is(probe, redis.Nil)
	})
}

func testOnce(t *testing.T, nodes []*node) {
	c := RedisConfig{Mode: "cluster", Addrs: []string{nodes[0].addr()}}
	client, err := c.client(300*time.Millisecond, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := t.Context()
	for want, send := range map[int]func() error{
		1: func() error { return client.Incr(ctx, "n").Err() },
		2: func() error {
			p := client.Pipeline()
			p.Incr(ctx, "n")
			p.Incr(ctx, "n")
			_, err := p.Exec(ctx)
			return err
		},
	} {
		inTime(t, "the client counts", func() bool { return client.Incr(ctx, "n").Err() == nil })
		before, err := client.Get(ctx, "n").Int()
		if err != nil {
			t.Fatal(err)
		}
		signalAll(t, nodes, syscall.SIGSTOP)
		// It goes on after the time-out, in time for what would be sent again.
		goesOn := make(chan struct{})
		time.AfterFunc(600*time.Millisecond, func() { signalAll(t, nodes, syscall.SIGCONT); close(goesOn) })
		if err := send(); err == nil {
			t.Error("a node that stands still has answered")
		}
		<-goesOn
		// What was sent waits on its connection until the node goes on.
		var counted int
		inTime(t, "all is counted", func() bool {
			after, _ := client.Get(ctx, "n").Int()
			counted = after - before
			return counted >= want
		})
		if counted != want {
			t.Errorf("counted %d times, want %d", counted, want)
		}
	}
}

func signalAll(t *testing.T, nodes []*node, sig syscall.Signal) {
	t.Helper()
	for _, n := range nodes {
		n.signal(t, sig)
	}
}

// epochOf is the config epoch that n knows of the node with this id.
func (n *node) epochOf(t *testing.T, id string) string {
	t.Helper()
	for line := range strings.Lines(n.do(t, "CLUSTER", "NODES").(string)) {
		if f := strings.Fields(line); len(f) > 6 && f[0] == id {
			return f[6]
		}
	}
	return ""
}

func testTakeover(t *testing.T, nodes []*node) {
	replica := joinCluster(t, nodes[0])
	nodes = append(nodes, replica)
	settled(t, nodes, 4)
	for _, n := range nodes {
		n.do(t, "CONFIG", "SET", "cluster-node-timeout", 1000)
	}
	replica.do(t, "CLUSTER", "REPLICATE", nodes[2].do(t, "CLUSTER", "MYID"))
	inTime(t, "the replica follows", func() bool { return replica.has("replication", "master_link_status:up") })
	// The others elect nobody who has an older epoch of the slots than they know.
	primary := nodes[2].do(t, "CLUSTER", "MYID").(string)
	inTime(t, "the replica knows the epoch of its primary", func() bool {
		return replica.epochOf(t, primary) == nodes[2].epochOf(t, primary)
	})
	store := openStore(t, RedisConfig{Mode: "cluster", Addrs: []string{nodes[0].addr(), nodes[2].addr()}, Timeout: 200 * time.Millisecond})
	all := func() bool {
		for i := range 30 {
			if _, err := spendOne(store, userKey(i), 1, slowLimit(MaxCapacity)); err != nil {
				return false
			}
		}
		return true
	}
	inTime(t, "the store decides", all)
	nodes[2].kill()
	inTime(t, "the store decides without a primary", all)
	if !replica.has("replication", "role:master") {
		t.Error("the replica has not taken over")
	}
}

// A place where connections are taken and nothing is said costs a decision its
// time and no more, in every mode and with TLS.
func TestRedisTopologyBlackHoleCostsTheTimeoutAtMost(t *testing.T) {
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close() // the system takes connections for it
	addrs := []string{hole.Addr().String()}
	for name, c := range map[string]RedisConfig{
		"single":       {Addrs: addrs},
		"TLS":          {Addrs: addrs, TLS: &ClientTLS{}},
		"sentinel":     {Mode: "sentinel", Addrs: addrs, MasterName: "main"},
		"sentinel TLS": {Mode: "sentinel", Addrs: addrs, MasterName: "main", TLS: &ClientTLS{}},
		"cluster":      {Mode: "cluster", Addrs: addrs},
		"cluster TLS":  {Mode: "cluster", Addrs: append(addrs, addrs...), TLS: &ClientTLS{}},
	} {
		c.Timeout = 100 * time.Millisecond
		store := openStore(t, c)
		for range 3 {
			start := time.Now()
			_, err := spendOne(store, "k", 1, slowLimit(1))
			if took := time.Since(start); err == nil || took > 3*c.Timeout {
				t.Errorf("%s: got %v after %v, want an error after %v", name, err, took, c.Timeout)
			}
		}
	}
}

func TestTLSToRedisIsVerifiedAndModern(t *testing.T) {
	for _, c := range []RedisConfig{{URL: "rediss://h"}, {Addrs: []string{"h:1"}, TLS: &ClientTLS{ServerName: "n"}}} {
		p := c.place(func(path, problem string) { t.Error(path, problem) })
		if p.tls == nil || p.tls.MinVersion != tls.VersionTLS12 || p.tls.InsecureSkipVerify {
			t.Errorf("%s: got %+v", fmt.Sprint(c.URL, c.Addrs), p.tls)
		}
	}
}
