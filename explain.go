package main

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/r8limiter/r8limiter/proxy"
)

// question is a request that rules are asked about.
type question struct {
	method, target, host string
	secure               bool
	ip                   netip.Addr
	headers              [][2]string
	claims               [][2]string
}

// fetchTimeout is how long explain waits for the keys of proxy.jwt.jwks_url.
const fetchTimeout = 5 * time.Second

// explain says what the rules of a configuration make of a request, and why. A
// request that would be refused is explained like any other.
func (p *program) explain(line *queryLine, rest []string) int {
	q, fault := line.read(rest)
	switch {
	case errors.Is(fault, flag.ErrHelp):
		p.args = []string{"explain", "-h"}
		return p.run()
	case fault != nil:
		return p.misused("explain", fault)
	}
	file := p.configFile(line.config)
	c, problems := p.load(file)
	if p.complain(file, problems) {
		return exitUsage
	}
	rules, err := proxy.NewRules(c.Proxy)
	if err != nil {
		fmt.Fprintf(p.stderr, "explain: %v\n", err)
		return exitFailure
	}
	p.fetchKeys(rules, q)
	l := limiter.New(c.Limiter, nil) // a limiter without a store knows the limits
	answer := explainWith(rules, l, q)
	if line.format == "json" {
		fmt.Fprintf(p.stdout, "%s\n", answer.JSON())
		return exitFine
	}
	fmt.Fprint(p.stdout, answer.Text())
	return exitFine
}

// fetchKeys has what a token of q may be verified with.
func (p *program) fetchKeys(rules *proxy.Rules, q *question) {
	hasToken := func(h [2]string) bool { return strings.EqualFold(h[0], "Authorization") }
	for _, h := range q.headers {
		if !hasToken(h) || len(q.claims) > 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
		defer cancel()
		if err := rules.FetchKeys(ctx); err != nil {
			fmt.Fprintf(p.stderr, "explain: the keys of proxy.jwt are not there, so that no token can be verified: %v; say what it holds with -claim NAME=VALUE\n", err)
		}
		return
	}
}

func basic(user string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user))
}

// setURL takes an absolute URL, one without a scheme, a path or *. The target stays
// as it is, byte for byte.
func (q *question) setURL(url string) error {
	if url == "" {
		return errors.New("the URL is empty")
	}
	if url[0] == '/' || url == "*" {
		q.target = withoutFragment(url)
		return nil
	}
	rest := url // as curl takes it
	if scheme, behind, found := cutScheme(url); found {
		rest, q.secure = behind, strings.EqualFold(scheme, "https")
		if !q.secure && !strings.EqualFold(scheme, "http") {
			return fmt.Errorf("%q is no URL with http or https, and no path", url)
		}
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	q.host, q.target = rest[:end], withoutFragment(rest[end:])
	if at := strings.LastIndexByte(q.host, '@'); at >= 0 {
		q.headers = append(q.headers, [2]string{"Authorization", basic(q.host[:at])})
		q.host = q.host[at+1:]
	}
	if q.host == "" {
		return fmt.Errorf("%q has no host", url)
	}
	if q.target == "" || q.target[0] == '?' {
		q.target = "/" + q.target
	}
	return nil
}

// cutScheme cuts a URL at its ://, which stands before its path, query and fragment:
// in them it may be too.
func cutScheme(url string) (scheme, rest string, found bool) {
	before, _, _ := strings.Cut(url, "?")
	if at := strings.IndexAny(before, "/#"); at > 0 && url[at-1] == ':' && strings.HasPrefix(url[at:], "//") {
		return url[:at-1], url[at+2:], true
	}
	return "", url, false
}

// withoutFragment cuts what no client sends.
func withoutFragment(target string) string {
	target, _, _ = strings.Cut(target, "#")
	return target
}

// addHeader takes "Name: value"; as with curl "Name;" is an empty field, and "Name:"
// none at all.
func (q *question) addHeader(text string) error {
	name, value, found := strings.Cut(text, ":")
	value = strings.Trim(value, " \t")
	switch {
	case !found && strings.HasSuffix(text, ";"):
		name = strings.TrimSuffix(text, ";")
	case !found:
		return fmt.Errorf("-H %q: write 'Name: value', or 'Name;' for an empty field", text)
	case value == "" && !strings.EqualFold(name, "Host"):
		return nil
	}
	q.addField(name, value)
	return nil
}

// addField adds a header field as it is. Host is the request's own.
func (q *question) addField(name, value string) {
	if strings.EqualFold(name, "Host") {
		q.host = value
		return
	}
	q.headers = append(q.headers, [2]string{name, value})
}

// asked is q as rules take it.
func (q *question) asked() *proxy.Asked {
	a := &proxy.Asked{Method: []byte(q.method), Target: []byte(q.target), Host: []byte(q.host), Peer: q.ip, Secure: q.secure, Direct: true}
	for _, h := range q.headers {
		a.AddField([]byte(h[0]), []byte(h[1]))
	}
	for _, c := range q.claims {
		a.SetClaim(c[0], []byte(c[1]))
	}
	return a
}
