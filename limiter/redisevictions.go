package limiter

import (
	"cmp"
	"maps"
	"time"
)

// evictions knows how many keys each server had evicted when it was looked at
// last. It is not for concurrent use.
//
// Servers are told apart by their run_id, which is new with each start; by
// their address alone, the counter of a replica that took over would be taken
// for that of its predecessor. One without a run_id is known by its node.
type evictions struct {
	known map[string]int64 // evicted_keys by run_id
	whole time.Time        // when the last look began that found every server; zero if none did
}

// update sets evicted of every look, and returns their sum. start is when the
// looks began, err what kept others from being there.
func (e *evictions) update(looks []nodeLook, start time.Time, err error) (sum int64) {
	now := map[string]int64{}
	for i := range looks {
		l := &looks[i]
		if n, ok := l.info.number("evicted_keys"); ok {
			l.evicted = e.since(l, n)
			sum += l.evicted
			now[l.server()] = n
		}
	}
	if err != nil {
		maps.Copy(e.known, now)
		return sum
	}
	e.known, e.whole = now, start
	return sum
}

// since is how many of a server's n evictions are new. All are, if it counts anew
// (CONFIG RESETSTAT) or started after the last look; none, if it was running
// already and is seen for the first time.
func (e *evictions) since(l *nodeLook, n int64) int64 {
	before, known := e.known[l.server()]
	switch {
	case known && n >= before:
		return n - before
	case known, e.startedSince(l.info):
		return n
	}
	return 0
}

// startedSince says whether a server started after the last look at all of
// them. The uptime is a difference of whole seconds, up to one too many.
func (e *evictions) startedSince(info redisInfo) bool {
	uptime, ok := info.number("uptime_in_seconds")
	return ok && !e.whole.IsZero() && float64(uptime)-1 <= time.Since(e.whole).Seconds()
}

// server is what evictions know a server by.
func (l *nodeLook) server() string { return cmp.Or(l.info["run_id"], l.node) }
