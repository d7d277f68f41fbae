package limiter

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// connMaxIdleTime is short, for many balancers and firewalls forget a
// connection after some minutes.
const connMaxIdleTime = time.Minute

// client returns a client of the servers that c names. It does not dial. A
// command waits for limit at most for each of a connection, dialing, writing
// and reading, and less if its context ends before; connections are those of
// each node, pipelines included. A command goes out once: whether a script ran
// is not known after a time-out, and running it again could spend twice.
// Errors name the key of c.
func (c *RedisConfig) client(limit time.Duration, connections int) (redis.UniversalClient, error) {
	var problems []error
	p := c.place(func(path, problem string) { problems = append(problems, fmt.Errorf("%s %s", path, problem)) })
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	switch c.mode() {
	case modeSentinel:
		return redis.NewFailoverClient(c.sentinelOptions(p, limit, connections)), nil
	case modeCluster:
		client := redis.NewClusterClient(p.clusterOptions(limit, connections))
		client.AddHook(clusterHook{client})
		return client, nil
	}
	return redis.NewClient(p.options(limit, connections)), nil
}

// options are those of a single Redis.
func (p *redisPlace) options(limit time.Duration, connections int) *redis.Options {
	return &redis.Options{
		Network: p.network, Addr: p.addrs[0], Dialer: p.dialer(limit),
		Username: p.username, Password: p.password, DB: p.db,
		MaxRetries:            -1, // none; 0 would be 3
		DialerRetries:         1,  // one attempt; 0 would be 5, 100 ms apart
		ContextTimeoutEnabled: true,
		DialTimeout:           limit, ReadTimeout: limit, WriteTimeout: limit, PoolTimeout: limit,
		PoolSize:         connections,
		PipelinePoolSize: -1, // none; 0 would be 10 connections more
		ConnMaxIdleTime:  connMaxIdleTime,
		// RESP3 would bring pushes: with maintenance notifications they stretch the
		// read time-out to 10 s. Redis 7.0 doesn't know CLIENT SETINFO (identity).
		Protocol:                 2,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// sentinelOptions are those of options. go-redis turns maintenance notifications
// off by itself here, and uses most options for its connections to sentinels
// too: Protocol not, these speak RESP3.
//
// To dial, it asks the sentinel that it knows for the primary, and others only
// if that failed before the dial's time is over; or it would ask the same dead
// one for ever. So DialTimeout leaves time for all of it: one answer that does
// not come, one connection that does not either, the other sentinels, and the
// primary. Each of these has limit; and as go-redis dials beside the command,
// the command waits no longer than its context.
func (c *RedisConfig) sentinelOptions(p redisPlace, limit time.Duration, connections int) *redis.FailoverOptions {
	o := p.options(limit, connections)
	return &redis.FailoverOptions{
		MasterName: c.MasterName, SentinelAddrs: p.addrs,
		SentinelUsername: c.SentinelUsername, SentinelPassword: c.SentinelPassword,
		Dialer:   o.Dialer,
		Username: o.Username, Password: o.Password, DB: o.DB,
		MaxRetries: o.MaxRetries, DialerRetries: o.DialerRetries,
		ContextTimeoutEnabled: o.ContextTimeoutEnabled,
		DialTimeout:           4 * limit,
		ReadTimeout:           limit, WriteTimeout: limit, PoolTimeout: limit,
		PoolSize: connections, PipelinePoolSize: o.PipelinePoolSize,
		ConnMaxIdleTime: o.ConnMaxIdleTime,
		Protocol:        o.Protocol, DisableIdentity: o.DisableIdentity,
	}
}

// clusterOptions are those of options, for each node. MaxRetries is that of one
// node; MaxRedirects counts both redirections, which must be followed, and
// repetitions, which clusterHook forbids.
func (p *redisPlace) clusterOptions(limit time.Duration, connections int) *redis.ClusterOptions {
	o := p.options(limit, connections)
	return &redis.ClusterOptions{
		Addrs: p.addrs, Dialer: o.Dialer,
		Username: o.Username, Password: o.Password,
		MaxRedirects: 3,
		MaxRetries:   o.MaxRetries, DialerRetries: o.DialerRetries,
		ContextTimeoutEnabled: o.ContextTimeoutEnabled,
		DialTimeout:           limit, ReadTimeout: limit, WriteTimeout: limit, PoolTimeout: limit,
		PoolSize: connections, PipelinePoolSize: o.PipelinePoolSize,
		ConnMaxIdleTime: o.ConnMaxIdleTime,
		Protocol:        o.Protocol, DisableIdentity: o.DisableIdentity,
		MaintNotificationsConfig: o.MaintNotificationsConfig,
		// They would ask for COMMAND within a command, for 5 s whatever its context
		// says, and each time anew where the user may not. What is sent here is
		// routed by its first key.
		DisableRoutingPolicies: true,
	}
}

// dialer connects, TLS included, within limit and the context.
func (p *redisPlace) dialer(limit time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{Timeout: limit, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3, // as go-redis' own
	}}
	if p.tls == nil {
		return d.DialContext
	}
	return tlsDialer{d, p.tls}.dial
}

// clusterHook mends what no option of a cluster client does.
type clusterHook struct{ client *redis.ClusterClient }

// DialHook changes nothing.
func (clusterHook) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook sends a command once. Redirections are still followed.
func (h clusterHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, once{cmd})
		h.lookAround(ctx, err)
		return err
	}
}

// ProcessPipelineHook sends a pipeline once. Those of its commands that were
// redirected are still sent again, and they alone.
func (h clusterHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		all := make([]redis.Cmder, len(cmds))
		for i, cmd := range cmds {
			all[i] = once{cmd}
		}
		err := next(ctx, all)
		h.lookAround(ctx, err)
		return err
	}
}

// lookAround asks the cluster for its nodes, in the background, after an error
// that no Redis answered: go-redis would do so once a minute, and so take as
// long to find the replica that stands in for a primary that is gone.
func (h clusterHook) lookAround(ctx context.Context, err error) {
	var refusal redis.Error
	if err != nil && !errors.As(err, &refusal) && !errors.Is(err, context.Canceled) {
		h.client.ReloadState(ctx)
	}
}

// once is a command that a cluster client may not send again.
type once struct{ redis.Cmder }

// NoRetry says so.
func (once) NoRetry() bool { return true }
