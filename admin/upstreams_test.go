package admin

import "testing"

// someUpstreams is Deps.Upstreams of tests.
func someUpstreams() []Upstream {
	return []Upstream{
		{Name: "api", Targets: []Target{
			{URL: "http://10.0.0.1:8080", State: TargetHealthy, Connections: 3, Idle: 2},
			{URL: "unix:/run/api.sock", State: TargetEjected},
		}},
		{Name: "mirror", Targets: []Target{{URL: "echo:", State: TargetHealthy}}},
	}
}

func TestUpstreamsSayWhichTargetsAreEjected(t *testing.T) {
	g := start(t, setup{upstreams: someUpstreams})
	want := `200 {"upstreams":[{"upstream":"api","targets":[` +
		`{"target":"http://10.0.0.1:8080","state":"healthy","connections":3,"idle":2},` +
		`{"target":"unix:/run/api.sock","state":"ejected","connections":0,"idle":0}]},` +
		`{"upstream":"mirror","targets":[{"target":"echo:","state":"healthy","connections":0,"idle":0}]}]}`
	if got := g.says(t, "GET", "/admin/upstreams", ""); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestGatewayWithoutProxyHasNoUpstreams(t *testing.T) {
	g := start(t, setup{})
	if got := g.says(t, "GET", "/admin/upstreams", ""); got != `200 {"upstreams":[]}` {
		t.Errorf("got %s", got)
	}
	if status, _ := g.do(t, "GET", "/admin/upstreams?state=ejected"); status != "400" {
		t.Errorf("with a parameter: got %s, want 400", status)
	}
}

func TestUpstreamsAreForAdministratorsOnly(t *testing.T) {
	g := start(t, setup{config: Config{Token: adminToken}, upstreams: someUpstreams})
	if status, body := g.do(t, "GET", "/admin/upstreams"); status != "401" {
		t.Errorf("without the token: got %s %s, want 401", status, body)
	}
}
