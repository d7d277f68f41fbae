package proxy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/r8limiter/r8limiter/limiter"
)

// problemsOf are what is wrong with the default configuration after a change, each
// as "path: problem", sorted.
func problemsOf(change func(*Config)) (found []string) {
	c := DefaultConfig()
	change(&c)
	c.Validate(func(string) int64 { return limiter.MaxCapacity }, func(path, problem string) { found = append(found, path+": "+problem) })
	slices.Sort(found)
	return found
}

func wantProblems(t *testing.T, what string, change func(*Config), want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, problemsOf(change)); diff != "" {
		t.Errorf("%s: problems (-want +got):\n%s", what, diff)
	}
}

func TestDrainLeavesTimeForWhatIsInFlight(t *testing.T) {
	for _, c := range []struct {
		delay, timeout time.Duration
		want           []string
	}{
		{5 * time.Second, 30 * time.Second, nil},
		{0, 0, nil},
		{0, time.Millisecond, nil},
		{3 * time.Second, 3*time.Second + 1, nil},
		{3 * time.Second, 3 * time.Second, []string{"drain_timeout: is 3s, and drain_delay (3s) is part of it: requests in flight would be cut; write more than drain_delay, as in 28s, or 0s for both"}},
		{5 * time.Second, 0, []string{"drain_timeout: is 0s, and drain_delay (5s) is part of it: requests in flight would be cut; write more than drain_delay, as in 30s, or 0s for both"}},
		{time.Second, 25 * time.Hour, []string{"drain_timeout: is 25h0m0s; must be from 0s to 24h"}},
		{25 * time.Hour, 30 * time.Second, []string{"drain_delay: is 25h0m0s; must be from 0s to 24h"}},
	} {
		what := fmt.Sprintf("delay %v, timeout %v", c.delay, c.timeout)
		wantProblems(t, what, func(to *Config) { to.DrainDelay, to.DrainTimeout = c.delay, c.timeout }, c.want...)
	}
}

func TestProblemsOfLimitsSayWhatIsThereAndWhatMayBe(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(*LimitsConfig)
		want   []string
	}{
		{"defaults", func(*LimitsConfig) {}, nil},
		{"the least head", func(l *LimitsConfig) { l.HeaderBytes, l.TargetBytes = 1024, 1024 }, nil},
		{"a wrong head says nothing of the target", func(l *LimitsConfig) { l.HeaderBytes = 10 }, []string{"limits.header_bytes: is 10 bytes; must be from 1024 to 1048576"}},
		{"a target above the head", func(l *LimitsConfig) { l.HeaderBytes, l.TargetBytes = 2048, 2049 },
			[]string{"limits.target_bytes: is 2049 bytes; must be at most header_bytes (2048), for the target is part of the head"}},
		{"no target", func(l *LimitsConfig) { l.TargetBytes = 0 }, []string{"limits.target_bytes: is 0 bytes; must be at least 1"}},
		{"everything out of range", func(l *LimitsConfig) {
			*l = LimitsConfig{HeaderBytes: 2 << 20, TargetBytes: -1, BodyBytes: -1, MinBodyRate: -1, Connections: -1, ConnectionsPerClient: -1,
				HeaderTimeout: 25 * time.Hour, BodyTimeout: time.Microsecond, WriteTimeout: 0, KeepAliveTimeout: 24*time.Hour + 1}
		}, []string{
			"limits.body_bytes: is -1 bytes; must be from 0 to 1125899906842624",
			"limits.body_timeout: is 1µs; must be from 1ms to 24h",
			"limits.connections: is -1; must be from 0 to 1073741824",
			"limits.connections_per_client: is -1; must be from 0 to 1073741824",
			"limits.header_bytes: is 2097152 bytes; must be from 1024 to 1048576",
			"limits.header_fields: is 0 fields; must be from 1 to 10000",
			"limits.header_timeout: is 25h0m0s; must be from 1ms to 24h",
			"limits.keep_alive_timeout: is 24h0m0.000000001s; must be from 1ms to 24h",
			"limits.min_body_rate: is -1 bytes a second; must be from 0 to 1073741824",
			"limits.streams: is 0 streams; must be from 1 to 10000",
			"limits.target_bytes: is -1 bytes; must be at least 1",
			"limits.write_timeout: is 0s; must be from 1ms to 24h",
		}},
		{"more for one client than for all", func(l *LimitsConfig) { l.Connections, l.ConnectionsPerClient = 10, 11 },
			[]string{"limits.connections_per_client: is 11; must be at most connections (10), which bounds all clients together"}},
		{"a bound for one client alone", func(l *LimitsConfig) { l.ConnectionsPerClient = 11 }, nil},
		{"the same for one client as for all", func(l *LimitsConfig) { l.Connections, l.ConnectionsPerClient = 10, 10 }, nil},
	} {
		wantProblems(t, c.what, func(to *Config) { c.change(&to.Limits) }, c.want...)
	}
}

func TestTargetThatIsTheListenerItselfIsRefused(t *testing.T) {
	for _, c := range []struct {
		listen, target string
		loops          bool
	}{
		{":8080", "http://127.0.0.1:8080", true},
		{":8080", "http://127.9.9.9:8080", true},
		{":8080", "http://localhost:8080", true},
		{":8080", "https://LOCALHOST:8080", true},
		{":8080", "http://[::1]:8080", true},
		{":8080", "http://0.0.0.0:8080", true},
		{"0.0.0.0:8080", "http://127.0.0.1:8080", true},
		{"[::]:8080", "http://127.0.0.1:8080", true},
		{"127.0.0.1:8080", "http://localhost:8080", true},
		{"localhost:8080", "http://127.0.0.1:8080", true},
		{"127.0.0.1:8080", "http://0.0.0.0:8080", true},
		{"10.0.0.1:8080", "http://10.0.0.1:8080", true},
		{"api.internal:8080", "http://API.internal:8080", true},
		{":80", "http://localhost", true},
		{":443", "https://localhost", true},
		{":8080", "http://127.0.0.1:8081", false},
		{":80", "https://localhost", false},
		{"127.0.0.1:8080", "http://127.0.0.2:8080", false},
		{"127.0.0.1:8080", "http://[::1]:8080", false},
		{"10.0.0.1:8080", "http://127.0.0.1:8080", false},
		{":8080", "http://10.0.0.1:8080", false},
		{":8080", "http://api.internal:8080", false},
		{":8080", "unix:/run/8080", false},
		{":0", "http://127.0.0.1:1", false},
		{"", "http://127.0.0.1:8080", false},
	} {
		found := problemsOf(func(to *Config) {
			to.Listen = c.listen
			to.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{"http://other.internal:1", c.target}}}
			to.Routes = []RouteConfig{{Name: "all", Upstream: "api"}}
		})
		if loops := len(found) > 0; loops != c.loops {
			t.Errorf("%q to %q: got %q", c.listen, c.target, found)
		}
		if c.loops && (len(found) != 1 || !strings.HasPrefix(found[0], fmt.Sprintf("upstreams.api.targets[1]: %q is the proxy listener itself", c.target))) {
			t.Errorf("%q to %q: got %q", c.listen, c.target, found)
		}
	}
}

func TestUpstreamsAreHeldToSaneNumbers(t *testing.T) {
	for _, c := range []struct {
		what string
		is   UpstreamConfig
		want []string
	}{
		{"defaults", UpstreamConfig{HealthCheck: &HealthCheckConfig{}}, nil},
		{"the most", UpstreamConfig{MaxConns: 1_000_000, ConnectTimeout: 24 * time.Hour, QueueTimeout: new(time.Minute)}, nil},
		{"too much", UpstreamConfig{
			MaxConns: 1_000_001, ConnectTimeout: 25 * time.Hour, ResponseTimeout: 48 * time.Hour, IdleTimeout: time.Microsecond,
			QueueTimeout: new(2 * time.Minute), Retries: new(11),
		}, []string{
			"upstreams.api.connect_timeout: is 25h0m0s; must be from 1ms to 24h",
			"upstreams.api.idle_timeout: is 1µs; must be from 1ms to 24h",
			"upstreams.api.max_conns: is 1000001 connections; must be from 1 to 1000000",
			"upstreams.api.queue_timeout: is 2m0s; must be from 0s, for no waiting, to 1m",
			"upstreams.api.response_timeout: is 48h0m0s; must be from 1ms to 24h",
			"upstreams.api.retries: is 11; must be from 0 to 10",
		}},
		{"checks one after another", UpstreamConfig{HealthCheck: &HealthCheckConfig{Interval: time.Second, Timeout: time.Second}}, nil},
		{"frequent checks", UpstreamConfig{HealthCheck: &HealthCheckConfig{Interval: 200 * time.Millisecond}}, nil},
		{"checks that overlap", UpstreamConfig{HealthCheck: &HealthCheckConfig{Interval: time.Second, Timeout: 2 * time.Second}},
			[]string{"upstreams.api.health_check.timeout: is 2s, longer than interval (1s): a check would last into the next; write at most interval"}},
		{"checks of more than a day", UpstreamConfig{HealthCheck: &HealthCheckConfig{Interval: 25 * time.Hour, Timeout: 25 * time.Hour}}, []string{
			"upstreams.api.health_check.interval: is 25h0m0s; must be from 100ms to 24h",
			"upstreams.api.health_check.timeout: is 25h0m0s; must be from 1ms to 24h",
		}},
	} {
		c.is.Targets = []string{"http://a.internal"}
		wantProblems(t, c.what, func(to *Config) { to.Upstreams = map[string]UpstreamConfig{"api": c.is} }, c.want...)
	}
}

// A check that may take as long as the default would last into the next.
func TestHealthCheckTakesNoLongerThanItsInterval(t *testing.T) {
	for interval, want := range map[time.Duration]time.Duration{0: time.Second, 5 * time.Second: time.Second, 300 * time.Millisecond: 300 * time.Millisecond} {
		c := UpstreamConfig{HealthCheck: &HealthCheckConfig{Interval: interval}}.withDefaults()
		if c.HealthCheck.Timeout != want {
			t.Errorf("interval %v: got time-out %v, want %v", interval, c.HealthCheck.Timeout, want)
		}
	}
}
