package proxy

import (
	"bytes"
	"net/netip"

	"github.com/r8limiter/r8limiter/limiter"
)

// clientAddress finds the address of the client: the peer, or, if the peer is
// a trusted proxy, the right-most hop of X-Forwarded-For that is not. A hop
// that is no address ends the walk at the last good one.
func clientAddress(r *request, trusted []Prefix) (client netip.Addr, peerTrusted bool) {
	client = r.peer
	if !contains(trusted, client) {
		return client, false
	}
	return forwardedFor(r, client, trusted), true
}

// hop is a hop of X-Forwarded-For that was looked at.
type hop struct {
	text []byte
	addr netip.Addr // invalid if text is no address
}

// forwardedFor walks X-Forwarded-For from the right, on behalf of a peer that is
// believed, to the first hop that is not one of ours.
func forwardedFor(r *request, client netip.Addr, trusted []Prefix) netip.Addr {
	return walkForwarded(r, client, trusted, nil)
}

// walkForwarded is forwardedFor that adds to seen, if it is not nil, what it looks at.
func walkForwarded(r *request, client netip.Addr, trusted []Prefix, seen *[]hop) netip.Addr {
	for i := len(r.fields) - 1; i >= 0; i-- {
		if !equalFold(r.fields[i].name, "X-Forwarded-For") {
			continue
		}
		for hops := r.fields[i].value; len(hops) > 0; {
			var text []byte
			if comma := bytes.LastIndexByte(hops, ','); comma >= 0 {
				text, hops = hops[comma+1:], hops[:comma]
			} else {
				text, hops = hops, nil
			}
			addr, ok := parseHop(trimSpace(text))
			if seen != nil {
				*seen = append(*seen, hop{trimSpace(text), addr})
			}
			if !ok {
				return client
			}
			client = addr
			if !contains(trusted, client) {
				return client
			}
		}
	}
	return client
}

// parseHop reads an address with or without port, brackets or zone.
func parseHop(hop []byte) (netip.Addr, bool) {
	if len(hop) == 0 || len(hop) > 64 {
		return netip.Addr{}, false
	}
	s := string(hop)
	addr, err := netip.ParseAddr(s)
	if err != nil {
		withPort, portErr := netip.ParseAddrPort(s)
		if portErr != nil && s[0] == '[' && s[len(s)-1] == ']' {
			addr, err = netip.ParseAddr(s[1 : len(s)-1])
		} else {
			addr, err = withPort.Addr(), portErr
		}
	}
	return addr.Unmap().WithZone(""), err == nil
}

func contains(prefixes []Prefix, addr netip.Addr) bool {
	for i := range prefixes {
		if prefixes[i].Contains(addr) {
			return true
		}
	}
	return false
}

// appendClient appends {client_ip}: an IPv4 address, or the network of an
// IPv6 address that counts as one client, so that nobody escapes a limit by
// changing the bits that are theirs to choose.
func (r *request) appendClient(dst []byte) []byte {
	if !r.client.IsValid() {
		return append(dst, "unknown"...)
	}
	if r.client.Is4() || r.prefix6 >= 128 {
		return r.client.AppendTo(dst)
	}
	network, _ := r.client.Prefix(r.prefix6)
	return network.AppendTo(dst)
}

// identify fills in who asks for what by which plan at which cost. What lies in ask
// belongs to the memory of ids, which is returned.
func (r *request) identify(ids []byte, ask *limiter.Request) ([]byte, error) {
	rt := r.route
	var err error
	for i := range rt.userID {
		if ids, err = rt.userID[i].appendTo(ids, r); err != nil || len(ids) > 0 {
			break
		}
	}
	if err == nil && len(ids) == 0 {
		ids = r.appendClient(ids)
	}
	user := len(ids)
	if err == nil {
		ids, err = rt.resource.appendTo(ids, r)
	}
	if err == nil && len(ids) == user {
		ids = append(ids, rt.name...)
	}
	resource := len(ids)
	if err == nil {
		ids, err = rt.plan.appendTo(ids, r)
	}
	ask.User, ask.Resource, ask.Plan, ask.Cost = ids[:user:user], ids[user:resource:resource], ids[resource:], 1
	if err != nil {
		return ids, err
	}
	ask.Shadow = rt.isShadowFor(ask.User)
	if rt.cost.isSet() {
		ask.Cost, ids, err = r.price(ids)
	}
	return ids, err
}

// isShadowFor says whether the route's limits don't hold for a user.
func (rt *route) isShadowFor(user []byte) bool {
	return rt.shadow || !rt.enforce.Includes(rt.name, user)
}

// price reads the cost; an empty template costs 1. It uses the memory behind ids.
func (r *request) price(ids []byte) (cost int64, memory []byte, err error) {
	end := len(ids)
	text, err := r.route.cost.appendTo(ids, r)
	if err != nil || len(text) == end {
		return 1, ids, err
	}
	n, ok := parseCost(text[end:])
	if !ok {
		return 1, ids, badRequest("the cost of the request is no integer from 0 to 1000000000")
	}
	return n, text[:end], nil
}

// parseCost reads a decimal integer from 0 to limiter.MaxCost.
func parseCost(text []byte) (int64, bool) {
	if len(text) == 0 || len(text) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, n <= limiter.MaxCost
}
