package limiter

import (
	"context"
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

// TestSubscriptionDoesNotStormARedisThatFails has connections accepted and
// ended. go-redis' own renewal would dial ten times a second.
func TestSubscriptionDoesNotStormARedisThatFails(t *testing.T) {
	server := redistest.Start(t)
	relay := redistest.NewRelay(t, server.Addr())
	fleet := openStore(t, RedisConfig{URL: relay.URL(), Timeout: time.Second}).Fleet()
	ctx, stop := context.WithCancel(t.Context())
	watched := make(chan struct{})
	heard := make(chan struct{}, 100)
	go func() {
		defer close(watched)
		fleet.Watch(ctx, func() { heard <- struct{}{} })
	}()
	eventually(t, "it listens", func() bool { return relay.Dials() > 0 })
	server.Kill()
	dials, start := relay.Dials(), time.Now()
	eventually(t, "it has dialed four times more", func() bool { return relay.Dials() >= dials+4 })
	if took := time.Since(start); took < watchPause {
		t.Errorf("dialed four times within %v, want at least %v", took, watchPause)
	}
	server.Restart(t)
	eventually(t, "a change is heard of", func() bool {
		server.Do(t, "PUBLISH", "r8:{!fleet}:changed", "")
		select {
		case <-heard:
			return true
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
	stop()
	<-watched
}
