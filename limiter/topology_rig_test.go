package limiter

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
)

// node is a real redis-server on a port of the loopback interface: a Redis of
// its own, one of several, or a sentinel. It ends with the test.
type node struct {
	port    string
	process *exec.Cmd
	admin   *redis.Client // for what tests do behind a store's back
}

// startNode starts a node with more arguments. how is how admin enters; its
// address is filled in.
func startNode(t *testing.T, how redis.Options, args ...string) *node {
	t.Helper()
	n := newNode(topologyPort(t), how)
	kind := "--port"
	if how.TLSConfig != nil {
		kind = "--tls-port"
		args = append(args, "--port", "0")
	}
	n.start(t, append([]string{kind, n.port, "--save", "", "--appendonly", "no",
		"--repl-diskless-sync-delay", "0", "--dir", t.TempDir()}, args...))
	return n
}

// startSentinel starts a sentinel that watches primary as main.
func startSentinel(t *testing.T, primary *node) *node {
	t.Helper()
	n := newNode(topologyPort(t), redis.Options{Password: "sentinel-pass"})
	file := filepath.Join(t.TempDir(), "sentinel.conf")
	write(t, file, "port "+n.port, "user watcher on >watcher-pass resetchannels &+switch-master &+replica-reconf-done -@all "+
		"+sentinel|get-master-addr-by-name +sentinel|sentinels +subscribe +ping", "requirepass sentinel-pass", "sentinel monitor main 127.0.0.1 "+primary.port+" 1",
		"sentinel auth-pass main redis-pass", "sentinel down-after-milliseconds main 10000", "sentinel failover-timeout main 2000")
	n.start(t, []string{file, "--sentinel", "--dir", filepath.Dir(file)})
	return n
}

// newNode is a node that is not started.
func newNode(port string, how redis.Options) *node {
	quiet()
	how.Addr = "127.0.0.1:" + port
	how.MaxRetries, how.DialerRetries, how.Protocol = -1, 1, 2
	return &node{port: port, admin: redis.NewClient(&how)}
}

func (n *node) start(t *testing.T, args []string) {
	t.Helper()
	var log bytes.Buffer
	n.process = exec.Command("redis-server", append(args, "--bind", "127.0.0.1")...)
	n.process.Stdout = &log
	if err := n.process.Start(); err != nil {
		t.Fatalf("these tests need a real redis-server, which `make test` installs: %v", err)
	}
	t.Cleanup(func() {
		n.admin.Close()
		n.kill()
		if t.Failed() {
			t.Logf("redis-server %s wrote:\n%s", n.port, &log)
		}
	})
	eventually(t, "redis-server answers", func() bool { return n.admin.Ping(context.Background()).Err() == nil })
}

// kill ends the node as a crash would; once it has ended it does nothing.
func (n *node) kill() {
	n.process.Process.Kill()
	n.process.Wait()
}

// signal stops or continues the node.
func (n *node) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := n.process.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (n *node) addr() string { return "127.0.0.1:" + n.port }

// do sends a command and returns the reply.
func (n *node) do(t *testing.T, args ...any) any {
	t.Helper()
	reply, err := n.admin.Do(context.Background(), args...).Result()
	if err != nil && err != redis.Nil {
		t.Fatalf("%v: %v", args, err)
	}
	return reply
}

// has says whether a section of INFO holds text.
func (n *node) has(section, text string) bool {
	info, _ := n.admin.Info(context.Background(), section).Result()
	return strings.Contains(info, text)
}

// inTime polls as eventually does, and waits for several servers to agree.
func inTime(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 40 seconds: %s", what)
		}
	}
}

// topologyPort is a port of the loopback interface that was free a moment ago.
func topologyPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func write(t *testing.T, file string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startCluster starts a cluster of three primaries, a third of the slots each.
func startCluster(t *testing.T) []*node {
	t.Helper()
	nodes := make([]*node, 3)
	for i := range nodes {
		nodes[i] = joinCluster(t, nodes[0])
		nodes[i].do(t, "CLUSTER", "ADDSLOTSRANGE", i*16384/3, (i+1)*16384/3-1)
	}
	settled(t, nodes, 3)
	return nodes
}

// joinCluster starts a node that meets first, unless it is the first itself.
func joinCluster(t *testing.T, first *node) *node {
	t.Helper()
	bus := topologyPort(t)
	n := startNode(t, redis.Options{}, "--cluster-enabled", "yes", "--cluster-port", bus)
	if first != nil {
		shown := first.do(t, "CLUSTER", "NODES").(string) // id ip:port@bus ...
		_, at, _ := strings.Cut(shown[:strings.Index(shown, "myself")], "@")
		n.do(t, "CLUSTER", "MEET", "127.0.0.1", first.port, strings.Fields(at)[0])
	}
	return n
}

// settled waits until all nodes know size nodes and serve all slots.
func settled(t *testing.T, nodes []*node, size int) {
	t.Helper()
	inTime(t, "the cluster is there", func() bool {
		for _, n := range nodes {
			info, _ := n.admin.ClusterInfo(context.Background()).Result()
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(size)) {
				return false
			}
		}
		return true
	})
}

// moved is how often the nodes have answered MOVED.
func moved(t *testing.T, nodes []*node) (times int) {
	t.Helper()
	for _, n := range nodes {
		info := n.do(t, "INFO", "errorstats").(string)
		if _, rest, ok := strings.Cut(info, "errorstat_MOVED:count="); ok {
			count, _ := strconv.Atoi(strings.Fields(rest)[0])
			times += count
		}
	}
	return times
}

// authority signs certificates, in files of dir.
type authority struct {
	dir, file   string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.file, _ = a.issue(t, name, template)
	return a
}

// serve issues the certificate of a server at 127.0.0.1 that is called redis.test.
func (a *authority) serve(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	return a.issue(t, "server", &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"redis.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
}

// issue signs template, by itself where it is the authority's own.
func (a *authority) issue(t *testing.T, name string, template *x509.Certificate) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if a.certificate == nil {
		a.certificate, a.key = template, key
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	signed, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if template == a.certificate {
		a.certificate, _ = x509.ParseCertificate(signed)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})))
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	return certFile, keyFile
}

// startTLS starts a Redis that wants certificates of a, and returns what a
// gateway needs to enter.
func startTLS(t *testing.T, a *authority) (*node, RedisConfig) {
	t.Helper()
	serverCert, serverKey := a.serve(t)
	cert, key := a.issue(t, "gateway", &x509.Certificate{Subject: pkix.Name{CommonName: "gateway"}})
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	admin := redis.Options{TLSConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}}
	n := startNode(t, admin, "--tls-cert-file", serverCert, "--tls-key-file", serverKey,
		"--tls-ca-cert-file", a.file, "--tls-auth-clients", "yes")
	return n, RedisConfig{Addrs: []string{n.addr()}, TLS: &ClientTLS{CAFile: a.file, CertFile: cert, KeyFile: key}, Timeout: 5 * time.Second}
}

// openStore opens a store that ends with the test.
func openStore(t *testing.T, c RedisConfig) *RedisStore {
	t.Helper()
	store, err := NewRedisStore(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// userKey is the key of a user's bucket.
func userKey(i int) string { return fmt.Sprintf("r8:{user%d}:read", i) }

// useStore does all that a gateway does with a store, which is empty before:
// decisions of many users, on few commands that are used again, and all of the
// fleet.
func useStore(t *testing.T, store *RedisStore) {
	t.Helper()
	for _, want := range []bool{true, false} {
		for i := range 30 {
			if d, err := spendOne(store, userKey(i), 3, slowLimit(3)); err != nil || d.Allowed != want {
				t.Fatalf("user %d: got %+v, %v; want allowed %t", i, d, err, want)
			}
		}
	}
	useIdempotency(t, store)
	if err := store.Reset(t.Context(), [][]byte{[]byte(userKey(1)), []byte("r8:{user1}:write")}); err != nil {
		t.Error(err)
	}
	if d, err := spendOne(store, userKey(1), 3, slowLimit(3)); err != nil || !d.Allowed {
		t.Errorf("after a reset: got %+v, %v", d, err)
	}
	if err := store.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := store.condition.check(t.Context()); err != nil {
		t.Error(err)
	}
	useFleet(t, store.Fleet())
}

func useIdempotency(t *testing.T, store *RedisStore) {
	t.Helper()
	sp := Spend{Cost: 1, Keys: [][]byte{[]byte(userKey(99))}, IdempotencyKey: []byte("r8:{user99}!read:i"), IdempotencyTTL: time.Minute}
	for _, want := range []bool{false, true} {
		d := Decision{Limits: []LimitState{{Limit: slowLimit(3)}}}
		if err := store.Decide(t.Context(), &sp, &d); err != nil || d.Replayed != want {
			t.Errorf("got %+v, %v; want replayed %t", d, err, want)
		}
	}
}

func useFleet(t *testing.T, fleet Fleet) {
	t.Helper()
	ctx, heard := t.Context(), make(chan struct{}, 100)
	go fleet.Watch(ctx, func() { heard <- struct{}{} })
	limits := ResourceConfig{Capacity: 7, RefillRate: rate("1/h")}
	// A subscription says nothing when it begins: change until it is there.
	eventually(t, "a change is heard of", func() bool {
		if err := fleet.Change(ctx, Change{Entry: AuditEntry{Action: "limits.set", Resource: "read"}, SetLimits: &limits}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-heard:
			return true
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
	block := Override{User: "ann", Block: true, Left: time.Minute}
	if err := fleet.Change(ctx, Change{Entry: AuditEntry{Action: "override.set"}, SetOverride: &block}); err != nil {
		t.Error(err)
	}
	if s, err := fleet.Settings(ctx); err != nil || s.Resources["read"].Capacity != 7 || len(s.Overrides) != 1 || s.Version == 0 {
		t.Errorf("settings: got %+v, %v", s, err)
	}
	if err := fleet.Change(ctx, Change{Entry: AuditEntry{Action: "override.drop"}, DropOverrides: []Override{block}}); err != nil {
		t.Error(err)
	}
	if entries, err := fleet.Audit(ctx, 1); err != nil || len(entries) != 1 || entries[0].Action != "override.drop" {
		t.Errorf("audit: got %+v, %v", entries, err)
	}
	useFigures(t, fleet)
}

func useFigures(t *testing.T, fleet Fleet) {
	t.Helper()
	ctx, now := t.Context(), time.Now()
	for i := range 2 { // the second closes the minute of the first
		f := Figures{Gateway: "a", At: now.Add(time.Duration(i-1) * time.Minute),
			Resources: []ResourceFigures{{Name: "read", Allowed: 3, Denied: 2}}, Offenders: []Offender{{"ann", 2}}}
		if version, err := fleet.Flush(ctx, &f); err != nil || version == 0 {
			t.Errorf("flush: version %d, %v", version, err)
		}
	}
	if totals, err := fleet.Totals(ctx); err != nil || totals.Allowed != 6 || totals.Denied != 4 || totals.ActiveKeys < 30 {
		t.Errorf("totals: got %+v, %v", totals, err)
	}
	worst, err := fleet.Offenders(ctx, Window{time.Hour, Bucketings[0]}, 5)
	if diff := cmp.Diff([]Offender{{"ann", 4}}, worst); err != nil || diff != "" {
		t.Errorf("offenders: %v (-want +got)\n%s", err, diff)
	}
	resources, err := fleet.Resources(ctx)
	if err != nil || len(resources) != 1 || resources[0].Allowed != 6 {
		t.Errorf("resources: got %+v, %v", resources, err)
	}
	if version, err := fleet.Version(ctx); err != nil || version == 0 {
		t.Errorf("version: got %d, %v", version, err)
	}
	// Of a store whose fleet has had too many resources and too many offenders.
	r := fleet.(*redisFleet)
	r.large[0] = redis.NewIntResult(liveOffenders+1, nil)
	if err := r.trim(ctx, &Figures{At: now}, 1); err != nil {
		t.Errorf("trim: %v", err)
	}
}
