package proxy

import (
	"cmp"
	"slices"
)

// UpstreamState is how an upstream fares at present.
type UpstreamState struct {
	Name    string
	Targets []TargetState // in the order of the configuration
}

// TargetState is how one target fares. That of echo: is always healthy and has
// no connections.
type TargetState struct {
	URL        string // as configured; it holds no credentials
	Ejected    bool   // it gets no requests
	Open, Idle int    // connections; the idle ones are open too
}

// Upstreams is the state of each upstream, by name. It may be called at any
// time and by anyone; the parts of it are read one after the other.
func (p *Proxy) Upstreams() []UpstreamState {
	upstreams := p.rules.Load().upstreams
	all := make([]UpstreamState, 0, len(upstreams))
	for name, u := range upstreams {
		all = append(all, UpstreamState{Name: name, Targets: u.state()})
	}
	slices.SortFunc(all, func(a, b UpstreamState) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func (u *upstream) state() []TargetState {
	if u.echo {
		return []TargetState{{URL: echoTarget}}
	}
	all := make([]TargetState, len(u.targets))
	for i, t := range u.targets {
		open, idle := t.conns()
		all[i] = TargetState{URL: t.url, Ejected: t.isEjected(), Open: open, Idle: idle}
	}
	return all
}
