package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/r8limiter/r8limiter/limiter/redistest"
)

// do sends a command to the server that faults hit.
func do(args ...any) func(*faultRun) {
	return func(r *faultRun) { r.servers[0].Do(r.t, args...) }
}

// onWire does something with the relay.
func onWire(f func(*redistest.Relay)) func(*faultRun) {
	return func(r *faultRun) { f(r.relay) }
}

// processFaults are those of one server, alone or in a cluster.
var processFaults = []fault{
	{name: "killed", quick: true, loses: 1, begin: kill, end: restart},
	{name: "restarted empty", effect: shakes, loses: 1, begin: restart},
	{name: "paused", begin: pause, end: resume},
	{name: "script flush", effect: serves, quick: true, begin: flushScripts, end: stopFlushing},
	{name: "flushall", effect: serves, loses: 1, begin: do("FLUSHALL")},
	{name: "out of memory", begin: do("CONFIG", "SET", "maxmemory", "1mb"), end: do("CONFIG", "SET", "maxmemory", "0")},
	{name: "busy", prepare: do("CONFIG", "SET", "busy-reply-threshold", "5"), begin: loopForever, end: func(r *faultRun) {
		r.servers[0].Do(r.t, "SCRIPT", "KILL")
		r.stop()
	}},
	{name: "wrong password", dark: true, begin: refuseGateways, end: allowGateways},
}

// singleFaults are those that only a single server has.
var singleFaults = []fault{
	{name: "loading", loses: 1, options: []string{"--key-load-delay", "50"}, prepare: fillMuch, begin: reload, end: awaitLoaded},
	{name: "replica", begin: do("REPLICAOF", "127.0.0.1", "1"), end: do("REPLICAOF", "NO", "ONE")},
	{name: "reset in mid reply", quick: true, wire: true, cuts: true, begin: cutAnswers((*redistest.Relay).ResetAnswersAfter), end: passAnswers((*redistest.Relay).ResetAnswersAfter)},
	{name: "silent in mid reply", wire: true, cuts: true, begin: cutAnswers((*redistest.Relay).HoldAnswersAfter), end: passAnswers((*redistest.Relay).HoldAnswersAfter)},
	slow(20*time.Millisecond, shakes), // dialing takes two round trips more, which may be too many
	slow(50*time.Millisecond, fails),
	slow(200*time.Millisecond, fails),
	slow(time.Second, fails),
	{name: "black hole", quick: true, wire: true, dark: true,
		begin: onWire(func(w *redistest.Relay) { w.BlackHole(true) }), end: onWire(func(w *redistest.Relay) { w.BlackHole(false) })},
	{name: "refused", wire: true,
		begin: onWire(func(w *redistest.Relay) { w.Refuse(true) }), end: onWire(func(w *redistest.Relay) { w.Refuse(false) })},
	{name: "garbage", wire: true, dark: true,
		begin: onWire(func(w *redistest.Relay) { w.Garbage(true) }), end: onWire(func(w *redistest.Relay) { w.Garbage(false) })},
}

func TestFaultsOfASingleRedis(t *testing.T) {
	tryFaults(t, append(processFaults, singleFaults...), func(r *faultRun) string {
		server := redistest.Start(r.t, r.options...)
		r.servers = []*redistest.Server{server}
		allowGateways(r)
		addr := server.Addr()
		if r.wire {
			r.relay = redistest.NewRelay(r.t, addr)
			addr = r.relay.Addr()
		}
		return `url: "redis://gateway:secret@` + addr + `/0"`
	})
}

func kill(r *faultRun)  { r.servers[0].Kill() }
func pause(r *faultRun) { r.servers[0].Pause() }

func restart(r *faultRun) {
	r.servers[0].Restart(r.t)
	allowGateways(r)
	r.awaitCluster()
}

func resume(r *faultRun) {
	r.servers[0].Resume()
	r.awaitCluster()
}

// allowGateways makes the password that the gateways have the right one.
func allowGateways(r *faultRun) {
	for _, s := range r.servers {
		s.Do(r.t, "ACL", "SETUSER", "gateway", "reset", "on", "~*", "&*", "+@all", ">secret")
	}
}

// refuseGateways makes it a wrong one and has the gateways log in anew.
func refuseGateways(r *faultRun) {
	for _, s := range r.servers {
		s.Do(r.t, "ACL", "SETUSER", "gateway", "resetpass", ">other")
		s.Do(r.t, "CLIENT", "KILL", "USER", "gateway")
	}
}

// stranger is a client of a server that is neither a gateway nor of the rig.
func stranger(s *redistest.Server) *redis.Client {
	return redis.NewClient(&redis.Options{
		Network: "unix", Addr: s.Socket(), Protocol: 2, MaxRetries: -1, DialerRetries: 1, DisableIdentity: true, ReadTimeout: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// isPrimary says whether a server takes itself for a primary. One that changes
// its role drops its clients.
func isPrimary(s *redistest.Server) bool {
	c := stranger(s)
	defer c.Close()
	role, err := c.Do(context.Background(), "ROLE").Slice()
	return err == nil && role[0] == "master"
}

// answersPing is the error with which a server answers.
func answersPing(s *redistest.Server) error {
	c := stranger(s)
	defer c.Close()
	return c.Ping(context.Background()).Err()
}

// loopForever has another client run a script that doesn't end.
func loopForever(r *faultRun) {
	c := stranger(r.servers[0])
	var looping sync.WaitGroup
	looping.Go(func() {
		defer c.Close()
		c.Eval(context.Background(), "while true do end", nil)
	})
	r.stop = looping.Wait
	r.until("Redis is busy", func() bool { return redis.HasErrorPrefix(answersPing(r.servers[0]), "BUSY") })
}

// flushScripts makes Redis forget all scripts, each 5 ms.
func flushScripts(r *faultRun) {
	ctx, stop := context.WithCancel(context.Background())
	c := stranger(r.servers[0])
	var flushing sync.WaitGroup
	flushing.Go(func() {
		defer c.Close()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			c.ScriptFlush(context.Background())
		}
	})
	r.stop = func() {
		stop()
		flushing.Wait()
	}
}

func stopFlushing(r *faultRun) {
	r.stop()
	if n := r.sum("r8limiter_store_noscript_total"); n < 10 {
		r.t.Errorf("the script was forgotten only %v times: nothing was tested", n)
	}
}

// fillMuch makes Redis take more than a second to load its data.
func fillMuch(r *faultRun) {
	r.servers[0].Do(r.t, "EVAL", "for i = 1, 20000 do redis.call('SET', 'other:'..i, i) end", 0)
}

// reload restarts Redis with its data.
func reload(r *faultRun) {
	r.servers[0].Do(r.t, "SAVE")
	r.servers[0].Restart(r.t)
}

func awaitLoaded(r *faultRun) {
	r.until("Redis has loaded its data", func() bool { return answersPing(r.servers[0]) == nil })
	allowGateways(r)
}

// cutAnswers cuts each connection off after some bytes of its answers: in the
// first of them, or later.
func cutAnswers(cut func(*redistest.Relay, func() int64)) func(*faultRun) {
	return func(r *faultRun) {
		cut(r.relay, func() int64 { return 100 + rand.Int64N(400) })
		r.relay.Refuse(true) // those that are open
		r.relay.Refuse(false)
	}
}

func passAnswers(cut func(*redistest.Relay, func() int64)) func(*faultRun) {
	return func(r *faultRun) { cut(r.relay, nil) }
}

// slow is a network on which a round trip takes d longer.
func slow(d time.Duration, effect effect) fault {
	return fault{
		name: "latency " + d.String(), wire: true, effect: effect,
		begin: onWire(func(w *redistest.Relay) { w.SetLatency(d) }),
		end:   onWire(func(w *redistest.Relay) { w.SetLatency(0) }),
	}
}
