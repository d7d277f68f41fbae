package limiter

import (
	"errors"
	"maps"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// lookOf is a look at a server that answers INFO so.
func lookOf(text string) *nodeLook { return &nodeLook{node: "a", info: parseInfo(text)} }

func TestInfoIsReadLineByLine(t *testing.T) {
	f := func(text string, want redisInfo) {
		t.Helper()
		if diff := cmp.Diff(want, parseInfo(text)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
	f("", redisInfo{})
	f("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n\r\n# Replication\r\nrole:master\r\n",
		redisInfo{"redis_version": "7.0.15", "role": "master"})
	f("role:slave", redisInfo{"role": "slave"})                                    // cut off
	f("role:master\nmaxmemory:1\n", redisInfo{"role": "master", "maxmemory": "1"}) // no \r
	f("role\r\nrole:\r\n:\r\n# role:master\r\n", redisInfo{})
	f("role:a:b\r\n", redisInfo{"role": "a:b"})
	f("role:a b\r\nrun_id:\x1b[31m\r\nredis_version:"+strings.Repeat("7", 65)+"\r\n", redisInfo{})
}

func TestInfoNumbers(t *testing.T) {
	f := func(text string, want int64, wantOK bool) {
		t.Helper()
		if got, ok := parseInfo("maxmemory:" + text).number("maxmemory"); got != want || ok != wantOK {
			t.Errorf("%q: got %d, %v, want %d, %v", text, got, ok, want, wantOK)
		}
	}
	f("0", 0, true)
	f("9223372036854775807", 1<<63-1, true)
	f("", 0, false)
	f("-1", 0, false)
	f("1e9", 0, false)
	f("1.5", 0, false)
}

// The texts are excerpts of what such servers say.
func TestConditionVersion(t *testing.T) {
	f := func(text string, old bool) {
		t.Helper()
		if got := lookOf(text).version(); (got != "") != old {
			t.Errorf("%q: got %q, want one: %v", text, got, old)
		}
	}
	f("redis_version:6.2.14\r\nredis_mode:standalone\r\n", true)
	f("redis_version:2.8\r\n", true)
	f("redis_version:6.3.4\r\nserver:KeyDB\r\n", true)
	f("redis_version:7.0.0\r\n", false)
	f("redis_version:7.0.15\r\n", false)
	f("redis_version:8.2.1\r\n", false)
	f("redis_version:10.0.0\r\n", false)
	f("redis_version:255.255.255\r\n", false) // built from a branch
	f("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.3\r\n", false)
	f("redis_version:6.0.0\r\nserver_name:valkey\r\n", false)
	f("redis_version:6.0.0\r\nvalkey_version:9.0.0\r\n", false)
	f("redis_version:unknown\r\n", false)
	f("", false)
	wantWords(t, lookOf("redis_version:6.2.14\r\n").version(), "Redis 6.2.14", "#!lua", "upgrade it to 7.0 or later")
}

func TestConditionSaysNothingOfWhatInfoLacks(t *testing.T) {
	for _, text := range []string{
		"", "role:master\r\n", "aof_enabled:0\r\n", "connected_slaves:0\r\n", "maxmemory:100\r\n", "maxmemory_policy:allkeys-lru\r\n",
		"aof_enabled:?\r\nconnected_slaves:0\r\n", "maxmemory:?\r\nmaxmemory_policy:allkeys-lru\r\n", "evicted_keys:100\r\n",
	} {
		if got := lookOf(text).warnings(); len(got) > 0 {
			t.Errorf("%q: got %v", text, got)
		}
	}
}

// seen is what one look counts as evicted, by server, after others.
func seen(e *evictions, err error, texts ...string) (sum int64, each []int64) {
	var looks []nodeLook
	for _, text := range texts {
		looks = append(looks, *lookOf(text))
	}
	sum = e.update(looks, time.Now(), err)
	for _, l := range looks {
		each = append(each, l.evicted)
	}
	return sum, each
}

func TestInfoEvictionsAreThoseOfEachServer(t *testing.T) {
	e := &evictions{known: map[string]int64{}}
	missed := errors.New("one did not answer")
	f := func(err error, want []int64, texts ...string) {
		t.Helper()
		sum, got := seen(e, err, texts...)
		for _, n := range want {
			sum -= n
		}
		if diff := cmp.Diff(want, got); diff != "" || sum != 0 {
			t.Errorf("%q: %d too many in all (-want +got):\n%s", texts, sum, diff)
		}
	}
	const old = "uptime_in_seconds:86400\r\n"
	f(nil, []int64{0, 0}, old+"run_id:a\r\nevicted_keys:5\r\n", old+"run_id:b\r\nevicted_keys:7\r\n")
	f(nil, []int64{1, 0}, old+"run_id:a\r\nevicted_keys:6\r\n", old+"run_id:b\r\nevicted_keys:7\r\n")
	// The one that was missed is known still.
	f(missed, []int64{2}, old+"run_id:b\r\nevicted_keys:9\r\n")
	f(nil, []int64{4, 0}, old+"run_id:a\r\nevicted_keys:10\r\n", old+"run_id:b\r\nevicted_keys:9\r\n")
	// A restarted one counts from 0, one that took over had its own past.
	f(nil, []int64{20, 0}, "uptime_in_seconds:0\r\nrun_id:c\r\nevicted_keys:20\r\n", old+"run_id:d\r\nevicted_keys:900\r\n")
	f(nil, []int64{1, 1}, "uptime_in_seconds:0\r\nrun_id:c\r\nevicted_keys:21\r\n", old+"run_id:d\r\nevicted_keys:901\r\n")
	// CONFIG RESETSTAT, and a server that says nothing.
	f(nil, []int64{3, 0}, old+"run_id:d\r\nevicted_keys:3\r\n", "role:master\r\n")
}

func TestInfoEvictionsWithoutARunID(t *testing.T) {
	e := &evictions{known: map[string]int64{}}
	for _, c := range []struct {
		evicted string
		want    int64
	}{{"4", 0}, {"6", 2}, {"1", 1}, {"1", 0}} {
		if got, _ := seen(e, nil, "evicted_keys:"+c.evicted); got != c.want {
			t.Errorf("evicted_keys %s: got %d, want %d", c.evicted, got, c.want)
		}
	}
}

func FuzzInfo(f *testing.F) {
	f.Add("# Server\r\nredis_version:6.2.14\r\nrun_id:ab\r\nuptime_in_seconds:3\r\n\r\n# Stats\r\nevicted_keys:3\r\n", "evicted_keys:1\r\nrun_id:ab")
	f.Add("maxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:0\r\nconnected_slaves:0\r\n", "role:slave\r\n")
	f.Add("evicted_keys:9223372036854775807\r\nuptime_in_seconds:9223372036854775807\n", ":\r\n\r\r\n#")
	message := regexp.MustCompile(`^[ -~]{1,500}$`)
	f.Fuzz(func(t *testing.T, first, second string) {
		e := &evictions{known: map[string]int64{}}
		for _, text := range []string{first, second, first} {
			l := lookOf(text)
			looks := []nodeLook{*l}
			if n := e.update(looks, time.Now(), nil); n < 0 {
				t.Fatalf("%q: got %d evicted keys", text, n)
			}
			for _, w := range looks[0].warnings() {
				if !message.MatchString(w.message) {
					t.Errorf("%q: got message %q", text, w.message)
				}
			}
			if !maps.Equal(l.info, parseInfo(strings.ReplaceAll(text, "\r\n", "\n"))) {
				t.Errorf("%q: read otherwise without its \\r", text)
			}
		}
	})
}
