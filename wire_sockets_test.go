package main

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// The service is restarted on sockets that stay open, under load over kept and
// fresh connections: a client that follows "Connection: close" is never refused,
// nor left without its answer.
func TestWireRestartOnInheritedSocketsFailsNoRequest(t *testing.T) {
	restarts := 2
	if allFaults {
		restarts = 10
	}
	front, control := listen(t), listen(t)
	config := strings.NewReplacer(
		`":1"`, `"`+front.Addr().String()+`"`,
		"proxy:\n", "proxy:\n  drain_delay: 500ms\n", // in which each kept connection is used
		"admin:", "log: {requests: none}\nadmin:",
	).Replace(activated)
	begin := func() *process { return startActivated(t, config, "", front, control) }
	p := begin()
	to := &instance{addr: front.Addr().String()}
	to.serves.Store(true)
	load := startLoad(&fleet{instances: []*instance{to}}, 2*time.Millisecond, 24)
	for range restarts {
		load.await(t, 200)
		p.signal(t, syscall.SIGTERM)
		if code, _ := p.within(t, 30*time.Second); code != exitFine {
			t.Errorf("exit code %d, want 0: %s", code, p.log.lines())
		}
		p = begin()
	}
	load.await(t, 200)
	load.end(t)
}
