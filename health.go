package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
)

// healthCheck is what the health command was asked for.
type healthCheck struct {
	config string    // file that the address is of, if url is empty
	url    string    // of /readyz; "" for the one of the configuration
	ca     string    // PEM file of who signs its certificate; "" see client
	pair   pairFiles // of the certificate to show; empty names for none

	insecure bool // its certificate may be any, for nothing secret is sent

	asked atomic.Bool // the instance wanted a certificate to be shown
}

func (h *healthCheck) addFlags(flags *flag.FlagSet) {
	flags.StringVar(&h.config, "config", "", configUsage+", for the address")
	flags.StringVar(&h.url, "url", "", "`URL` of /readyz")
	flags.BoolVar(&h.insecure, "insecure", false, "take any certificate")
	flags.StringVar(&h.ca, "ca", "", "`FILE` of the authorities that sign the certificate of an https address")
	flags.StringVar(&h.pair.cert, "cert", "", "`FILE` of the certificate to show, where admin.tls.client_ca_file wants one")
	flags.StringVar(&h.pair.key, "key", "", "`FILE` of its private key")
}

// health asks a running instance for /readyz.
func (p *program) health(h *healthCheck, file string) int {
	if h.url == "" {
		c, problems := p.load(file)
		if p.complain(file, problems) {
			return exitFailure
		}
		h.url = readyURL(&c)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url, nil)
	if err != nil {
		fmt.Fprintf(p.stderr, "health: %v; write -url http://host:port/readyz\n", err)
		return exitUsage
	}
	client, err := h.client(req.URL)
	if err != nil {
		fmt.Fprintf(p.stderr, "health: %v\n", err)
		return exitUsage
	}
	resp, err := client.Do(req)
	if err != nil {
		fmt.Fprintf(p.stderr, "health: %v; %s\n", err, h.advice())
		return exitFailure
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	fmt.Fprintf(p.stdout, "%s: %d %s\n", h.url, resp.StatusCode, strings.TrimSpace(string(body)))
	if resp.StatusCode != http.StatusOK {
		return exitFailure
	}
	return exitFine
}

// advice is what to do where there was no answer.
func (h *healthCheck) advice() string {
	switch {
	case h.asked.Load() && h.pair.cert == "":
		return "it wants to see a certificate (admin.tls.client_ca_file): give -cert and -key"
	case h.asked.Load():
		return "it wants to see a certificate of the authorities in its admin.tls.client_ca_file: is that of -cert one?"
	}
	return "is r8limiter running there?"
}

// readyURL is where an instance with this configuration says whether it is ready.
func readyURL(c *Config) string {
	scheme := "http"
	if c.Admin.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + reachable(c.Admin.Listen) + "/readyz"
}

// client asks this one instance, whatever proxy the environment names. Without
// a CA file the system's authorities count; a certificate of this very host, by
// a loopback address, is then not verified: nobody else can be there, and
// nothing secret is sent.
func (h *healthCheck) client(to *url.URL) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: h.insecure || h.ca == "" && isLoopbackHost(to.Hostname())}
	if h.ca != "" {
		_, roots, err := limiter.ReadCertificates(h.ca)
		if err != nil {
			return nil, fmt.Errorf("-ca: %w", err)
		}
		config.RootCAs = roots
	}
	shown := new(tls.Certificate) // none
	if h.pair.cert != "" || h.pair.key != "" {
		pair, err := h.readPair()
		if err != nil {
			return nil, err
		}
		shown = pair
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		h.asked.Store(true)
		return shown, nil
	}
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: config},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// readPair reads the certificate to show; the error joins all that is wrong.
func (h *healthCheck) readPair() (*tls.Certificate, error) {
	if h.pair.cert == "" || h.pair.key == "" {
		return nil, errors.New("-cert and -key go together: give both, or neither")
	}
	var all error
	pair := h.pair.read(func(key, problem string) {
		all = errors.Join(all, fmt.Errorf("-%s: %s", strings.TrimSuffix(key, "_file"), problem))
	})
	return pair, all
}

func isLoopbackHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
