package proxy

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// resolveInterval is how often the addresses of targets are looked up. New
// connections look up anyway; this is for the old ones, which may outlive an
// address for as long as they are busy.
const resolveInterval = 30 * time.Second

// follow keeps the connections of a target with a name where DNS says it is,
// until ctx ends.
func (t *target) follow(ctx context.Context, interval time.Duration) {
	next := time.NewTicker(interval)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
			t.resolve(ctx)
		}
	}
}

// resolve looks the name up, and closes idle connections to addresses that it
// no longer has; those in use are closed when they come back. While DNS fails
// nothing changes: an old address is better than none.
func (t *target) resolve(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, resolveInterval)
	defer cancel()
	found, err := t.dialer.Resolver.LookupNetIP(ctx, "ip", t.hostname)
	if err != nil || len(found) == 0 {
		return
	}
	addresses := make(map[netip.Addr]struct{}, len(found))
	for _, a := range found {
		addresses[a.Unmap().WithZone("")] = struct{}{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addresses = addresses
	t.resolved++
	t.closeGoneLocked()
}

// closeGoneLocked closes the idle connections to addresses that are gone. The
// others stay in their order.
func (t *target) closeGoneLocked() {
	kept := t.idle[:0]
	for _, c := range t.idle {
		if t.isCurrentLocked(c) {
			kept = append(kept, c)
			continue
		}
		c.part()
		t.open--
	}
	clear(t.idle[len(kept):])
	t.idle = kept
}

// isCurrentLocked says whether the target's name still has the address of c.
// It costs something only once after each look-up.
func (t *target) isCurrentLocked(c *upstreamConn) bool {
	if c.resolved == t.resolved {
		return true
	}
	remote, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return true
	}
	if _, ok := t.addresses[remote.AddrPort().Addr().Unmap().WithZone("")]; !ok {
		return false
	}
	c.resolved = t.resolved
	return true
}
