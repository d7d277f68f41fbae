package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// pick is one of all.
func pick[T any](r *rand.Rand, all []T) T { return all[r.IntN(len(all))] }

// randomRoutes are routes of few hosts, paths and values, so that many take
// each other's requests.
func randomRoutes(t *testing.T, r *rand.Rand) (routes []RouteConfig) {
	t.Helper()
	some := func(all []string, most int) (list []string) {
		for range r.IntN(most + 1) {
			list = append(list, pick(r, all))
		}
		return list
	}
	values := []ValueMatch{{Present: true}, {Exact: "1"}, {Exact: "12"}, {Prefix: "1"}, {Prefix: "12"}, {Regexp: "1.?"}, {Regexp: "[0-9]+"}}
	for i := range 6 {
		m := MatchConfig{
			Host:    some([]string{"a.test", "*.test", "b.a.test", "*.A.test"}, 2),
			Path:    some([]string{"/*", "/x", "/{n}", "/x/*", "/x/y", "/{n}/y", "/x/{n}", "/x/", "/"}, 3),
			Methods: some([]string{"GET", "POST"}, 2),
		}
		if r.IntN(2) == 0 {
			m.Headers = map[string]ValueMatch{pick(r, []string{"X-A", "x-a"}): pick(r, values)}
		}
		if r.IntN(3) == 0 {
			m.Query = map[string]ValueMatch{"q": pick(r, values)}
		}
		for _, text := range some([]string{"10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0"}, 1) {
			var p Prefix
			if err := p.UnmarshalText([]byte(text)); err != nil {
				t.Fatal(err)
			}
			m.ClientIP = append(m.ClientIP, p)
		}
		routes = append(routes, RouteConfig{Name: strconv.Itoa(i), Match: m})
	}
	return routes
}

// matched are the routes that some request matches, by index.
func matched(t *testing.T, routes []RouteConfig) map[int]bool {
	t.Helper()
	return matchedAt(t, routes, "/", "/x", "/x/", "/x/y", "/z", "/z/y", "/x/y/z")
}

// matchedAt are those that some request to one of these paths matches.
func matchedAt(t *testing.T, routes []RouteConfig, paths ...string) map[int]bool {
	t.Helper()
	rules, err := NewRules(Config{Routes: routes, Limits: defaultLimits()})
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]bool{}
	var a Asked
	var j Judgement
	for _, host := range []string{"a.test", "b.a.test", "c.test", "other"} {
		for _, path := range paths {
			for _, query := range []string{"", "?q=1", "?q=12", "?q=0", "?q="} {
				for _, value := range []string{"none", "1", "12", "0", ""} {
					for _, peer := range []string{"10.1.0.1", "10.2.0.1", "1.1.1.1", "::1"} {
						for _, method := range []string{"GET", "POST", "PUT"} {
							a.Reset()
							a.Method, a.Target, a.Host, a.Peer = []byte(method), []byte(path+query), []byte(host), netip.MustParseAddr(peer)
							if value != "none" {
								a.AddField([]byte("X-A"), []byte(value))
							}
							if rules.Judge(&a, &j); j.Index >= 0 {
								found[j.Index] = true
							}
						}
					}
				}
			}
		}
	}
	return found
}

// Where /x/* of a route that blocks is said to leave /x open, a request to /x that the
// route would block, were it listed, is taken by the route that is named.
func TestOpenRootsAreTakenByTheRouteThatIsNamed(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	text := regexp.MustCompile(`^(\S+) is not of \S+, so that route (\d) takes it; `)
	said := 0
	for range 4000 {
		routes := randomRoutes(t, r)
		for i := range routes {
			routes[i].Action = pick(r, []string{"limit", "block"})
		}
		c := Config{Routes: routes}
		c.warnOfOpenRoots(func(path, problem string) {
			var at int
			if _, err := fmt.Sscanf(path, "routes[%d].match.path", &at); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			m := text.FindStringSubmatch(problem)
			root := strings.ReplaceAll(m[1], "{n}", "x")
			by, _ := strconv.Atoi(m[2])
			listed := slices.Clone(routes)
			listed[at].Match.Path = append(slices.Clone(listed[at].Match.Path), m[1])
			if !matchedAt(t, listed, root)[at] {
				return // by none of the requests that are tried
			}
			if said++; !matchedAt(t, routes, root)[by] || routes[by].Action == "block" {
				t.Errorf("%s: %s, but it is not in %s", path, problem, written(routes))
			}
		})
	}
	if said < 10 {
		t.Errorf("only %d were said", said)
	}
}

// Whatever is said to be unreachable no request must reach. That all that is
// unreachable is said can't be hoped for, but most of it is.
func TestUnreachableRoutesAreReachedByNoRequest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	place := regexp.MustCompile(`^routes\[(\d+)\](?:\.match\.(host|path)\[(\d+)\])?$`)
	said, unsaid, parts := 0, 0, 0
	for range 120 {
		routes := randomRoutes(t, r)
		found := matched(t, routes)
		c := Config{Routes: routes}
		wrong := map[int]bool{}
		c.warnOfUnreachable(func(path, text string) {
			m := place.FindStringSubmatch(path)
			index, _ := strconv.Atoi(m[1])
			if m[2] == "" {
				wrong[index] = true
				if found[index] {
					t.Errorf("%s: %s, but it is reached in %s", path, text, written(routes))
				}
				return
			}
			// A part of a match is what the route would be with it alone.
			parts++
			alone := append([]RouteConfig(nil), routes...)
			part, _ := strconv.Atoi(m[3])
			match := &alone[index].Match
			if m[2] == "host" {
				match.Host = match.Host[part : part+1]
			} else {
				match.Path = match.Path[part : part+1]
			}
			if matched(t, alone)[index] {
				t.Errorf("%s: %s, but it is reached in %s", path, text, written(alone))
			}
		})
		for i := range routes {
			switch {
			case wrong[i]:
				said++
			case !found[i]:
				unsaid++
			}
		}
	}
	t.Logf("unreachable: %d said, %d not; parts: %d said", said, unsaid, parts)
	if said < 20 || parts < 5 || unsaid > said {
		t.Errorf("of the unreachable routes %d are said and %d not, of parts %d", said, unsaid, parts)
	}
}

// In a file of the largest size a search of each path through all others would take
// minutes.
func TestManyBlockedPathsAreAllJudged(t *testing.T) {
	const n = 5000
	var c Config
	add := func(name, action, path string) {
		c.Routes = append(c.Routes, RouteConfig{Name: name, Action: action, Match: MatchConfig{Path: []string{path}}})
	}
	for i := range n {
		add(fmt.Sprint("b", i), "block", fmt.Sprintf("/x%d/*", i))
	}
	add("page", "", "/{page}")
	for i := range n {
		add(fmt.Sprint("r", i), "", fmt.Sprintf("/x%d", i))
	}
	said := 0
	c.warnOfOpenRoots(func(string, string) { said++ })
	if said != n {
		t.Errorf("%d were said, want %d", said, n)
	}
}

func written(routes []RouteConfig) (text string) {
	for _, rt := range routes {
		text += fmt.Sprintf("\n%+v", rt.Match)
	}
	return text
}

// Each request is tried in turn, so a route that takes nothing from another
// must not be said to.
func TestRoutesThatOnlyOverlapAreNotWarnedOf(t *testing.T) {
	present := map[string]ValueMatch{"X-A": {Present: true}}
	for name, routes := range map[string][2]MatchConfig{
		"a narrower path first":        {{Path: []string{"/v1/items"}}, {Path: []string{"/v1/{kind}"}}},
		"a rest that lacks its root":   {{Path: []string{"/v1/*"}}, {Path: []string{"/v1"}}},
		"a name is no empty segment":   {{Path: []string{"/v1/{id}"}}, {Path: []string{"/v1/"}}},
		"a name does not take a rest":  {{Path: []string{"/{kind}"}}, {Path: []string{"/*"}}},
		"a wildcard lacks its domain":  {{Host: []string{"*.a.test"}}, {Host: []string{"a.test"}}},
		"another domain's end":         {{Host: []string{"*.a.test"}}, {Host: []string{"xa.test"}}},
		"some hosts":                   {{Host: []string{"a.test"}}, {}},
		"some methods":                 {{Methods: []string{"GET"}}, {Methods: []string{"GET", "POST"}}},
		"a header that need not be":    {{Headers: present}, {}},
		"another header":               {{Headers: present}, {Headers: map[string]ValueMatch{"X-B": {Present: true}}}},
		"a longer prefix":              {{Headers: map[string]ValueMatch{"X-A": {Prefix: "ab"}}}, {Headers: map[string]ValueMatch{"X-A": {Prefix: "a"}}}},
		"any is more than a value":     {{Headers: map[string]ValueMatch{"X-A": {Exact: "a"}}}, {Headers: present}},
		"half a value":                 {{Headers: map[string]ValueMatch{"X-A": {Regexp: "a"}}}, {Headers: map[string]ValueMatch{"X-A": {Exact: "ab"}}}},
		"parameters differ by case":    {{Query: map[string]ValueMatch{"a": {Present: true}}}, {Query: map[string]ValueMatch{"A": {Present: true}}}},
		"clients inside, then outside": {{ClientIP: []Prefix{{netip.MustParsePrefix("10.0.0.0/8")}}}, {ClientIP: []Prefix{{netip.MustParsePrefix("10.0.0.0/7")}}}},
	} {
		c := Config{Routes: []RouteConfig{{Name: "first", Match: routes[0]}, {Name: "second", Match: routes[1]}}}
		c.warnOfUnreachable(func(path, text string) { t.Errorf("%s: %s: %s", name, path, text) })
	}
}

func TestSecretsAreKnownByTheirNames(t *testing.T) {
	for _, name := range []string{
		"Authorization", "Proxy-Authorization", "X-Api-Key", "x_api_key", "apikey", "api-key", "X-Auth-Token", "access_token", "token", "Cookie",
		"session", "SESSIONID", "JSESSIONID", "PHPSESSID", "connect.sid", "sid", "password", "client_secret", "X-JWT", "X-Access-Key",
	} {
		if !IsSecretName(name) {
			t.Errorf("%s is no secret", name)
		}
	}
	for _, name := range []string{"X-User-Id", "X-Tenant", "Idempotency-Key", "X-Key-Owner", "X-Token-Type", "user", "id", "key", "X-Session-Region", "resid", "Host", "cookie-consent"} {
		if IsSecretName(name) {
			t.Errorf("%s is a secret", name)
		}
	}
}
