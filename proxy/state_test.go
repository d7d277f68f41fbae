package proxy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStateOfUpstreamsTellsEjectedTargetsAndConnections(t *testing.T) {
	used, ejected := startRaw(t, always(answerOK)), startRaw(t, always(answerOK))
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{
		"mirror": {Targets: []string{"echo:"}},
		"api":    {Targets: []string{ejected.target(), used.target()}},
	}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api", Action: "bypass"}}
	r := startRig(t, c, nil, newLimiter(t, 1))
	api := r.p.rules.Load().upstreams["api"]
	api.targets[0].eject("test")
	mustAnswer(t, api, "ok")
	want := []UpstreamState{
		{Name: "api", Targets: []TargetState{{URL: ejected.target(), Ejected: true}, {URL: used.target(), Open: 1, Idle: 1}}},
		{Name: "mirror", Targets: []TargetState{{URL: "echo:"}}},
	}
	if diff := cmp.Diff(want, r.p.Upstreams()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	api.targets[0].restore("test")
	if got := r.p.Upstreams()[0].Targets[0]; got.Ejected {
		t.Errorf("restored: got %+v", got)
	}
}

// An upstream is asked for its state while it is at work.
func TestStateOfUpstreamsMayBeAskedForDuringRequests(t *testing.T) {
	s := startRaw(t, always(answerOK))
	c := DefaultConfig()
	c.Upstreams = map[string]UpstreamConfig{"api": {Targets: []string{s.target()}}}
	c.Routes = []RouteConfig{{Name: "all", Upstream: "api", Action: "bypass"}}
	p := startRig(t, c, nil, newLimiter(t, 1)).p
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			if got := p.Upstreams()[0].Targets[0]; got.Ejected || got.Idle > got.Open || got.Open > 1 {
				t.Errorf("got %+v", got)
			}
		}
	}()
	for range 100 {
		mustAnswer(t, p.rules.Load().upstreams["api"], "ok")
	}
	<-done
}
