package limiter

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// TestClusterThatRefusesTheLoginOpensTheBreaker changes the password under a
// store that is connected: its next connections fail after they were dialed.
func TestClusterThatRefusesTheLoginOpensTheBreaker(t *testing.T) {
	cluster := redistest.StartCluster(t, 3, 0)
	password := func(text string) {
		for i := range cluster.Nodes() {
			cluster.Node(i).Do(t, "ACL", "SETUSER", "gateway", "reset", "on", "~*", "&*", "+@all", ">"+text)
		}
	}
	password("right")
	store := openStore(t, RedisConfig{
		Mode: modeCluster, Addrs: cluster.Addrs(), Username: "gateway", Password: "right", Timeout: 5 * time.Second,
	})
	if _, err := spendOne(store, userKey(1), 1, slowLimit(100)); err != nil {
		t.Fatal(err)
	}
	password("wrong")
	for i := range cluster.Nodes() {
		cluster.Node(i).Do(t, "CLIENT", "KILL", "USER", "gateway")
	}
	for range 3 {
		if _, err := spendOne(store, userKey(1), 1, slowLimit(100)); err == nil || !strings.Contains(err.Error(), "WRONGPASS") {
			t.Errorf("got error %v, want what Redis said of the password", err)
		}
	}
	if _, err := spendOne(store, userKey(1), 1, slowLimit(100)); !errors.Is(err, errBreakerOpen) {
		t.Errorf("got error %v, want that of an open breaker", err)
	}
	password("right")
	eventually(t, "decisions work again", func() bool {
		_, err := spendOne(store, userKey(1), 1, slowLimit(100))
		return err == nil
	})
}
