package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Bounds of one fetch of a key set.
const (
	fetchTimeout  = 5 * time.Second
	maxKeySet     = 1 << 20 // bytes
	maxRedirects  = 3
	maxKeySetHead = 64 << 10 // bytes of the answer's head
)

// keySource keeps a keyring as the set at a URL is. It works in the background
// alone: requests never wait for it.
//
// It is our own loop over jwkset's parser. jwkset's client, which keyfunc uses, fetches
// within the request that names an unknown key, and reads answers of any size.
type keySource struct {
	url     string
	client  *http.Client
	ring    *atomic.Pointer[keyring]
	wake    chan struct{} // one is enough, however many ask
	plan    fetchPlan
	metrics *jwtMetrics
	log     zerolog.Logger
	failing bool // the last fetch failed
	// fetchedAt is when the last fetch that did not fail was made, in Unix nanoseconds.
	fetchedAt atomic.Int64

	stop    context.CancelFunc // nil before start
	running sync.WaitGroup
}

func newKeySource(url string, ring *atomic.Pointer[keyring], m *jwtMetrics) *keySource {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableKeepAlives = true // one request in minutes
	transport.MaxResponseHeaderBytes = maxKeySetHead
	return &keySource{
		url: url, ring: ring, wake: make(chan struct{}, 1), plan: defaultPlan, metrics: m,
		client: &http.Client{Transport: transport, CheckRedirect: checkRedirect},
	}
}

// checkRedirect follows only to where a key set may come from.
func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("there are more than %d redirects", maxRedirects)
	}
	return checkKeysURL(next.URL)
}

// fetchPlan says when a set is fetched: at once, then again every period, give or
// take a tenth, sooner after a failure, and when somebody asks for it.
type fetchPlan struct {
	period    time.Duration
	gap       time.Duration // between two fetches, if somebody asks
	firstWait time.Duration // after a failure; doubled by each further one
	maxWait   time.Duration

	last, due time.Time     // fetches
	wait      time.Duration // after the last failure; 0 after a success
}

var defaultPlan = fetchPlan{period: 5 * time.Minute, gap: 10 * time.Second, firstWait: 500 * time.Millisecond, maxWait: 30 * time.Second}

// fetched notes a fetch.
func (p *fetchPlan) fetched(now time.Time, err error) {
	p.last = now
	if err == nil {
		p.wait = 0
		p.due = now.Add(p.period*9/10 + rand.N(p.period/5+1))
		return
	}
	p.wait = min(max(2*p.wait, p.firstWait), p.maxWait)
	p.due = now.Add(p.wait*9/10 + rand.N(p.wait/5+1))
}

// asked brings the next fetch forward.
func (p *fetchPlan) asked() {
	if soonest := p.last.Add(p.gap); soonest.Before(p.due) {
		p.due = soonest
	}
}

// resume goes on with the plan as if the last fetch had been ours.
func (s *keySource) resume(last time.Time) {
	s.plan.fetched(last, nil)
	s.fetchedAt.Store(last.UnixNano())
}

// start fetches until ctx ends or close is called.
func (s *keySource) start(ctx context.Context, log zerolog.Logger) {
	s.log = log
	ctx, s.stop = context.WithCancel(ctx)
	s.running.Go(func() { s.run(ctx) })
}

// close ends it and waits for the end.
func (s *keySource) close() {
	if s.stop != nil {
		s.stop()
	}
	s.running.Wait()
}

// wakeUp asks for a fetch, and returns at once.
func (s *keySource) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *keySource) run(ctx context.Context) {
	next := time.NewTimer(time.Until(s.plan.due)) // at once, unless it resumes
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			s.plan.asked()
		case <-next.C:
			err := s.refresh(ctx)
			if ctx.Err() != nil {
				return
			}
			now := time.Now()
			s.plan.fetched(now, err)
			if err == nil {
				s.fetchedAt.Store(now.UnixNano())
			}
			s.tell(err)
		}
		next.Reset(time.Until(s.plan.due))
	}
}

// tell counts a failure, and logs where failures begin and end.
func (s *keySource) tell(err error) {
	if err != nil {
		s.metrics.refreshErrors.Inc()
	}
	if s.failing == (err != nil) {
		return
	}
	s.failing = err != nil
	switch {
	case err == nil:
		s.log.Info().Str("url", s.url).Msg("the keys of proxy.jwt.jwks_url can be fetched again")
	case s.ring.Load() == nil:
		s.log.Warn().Str("url", s.url).Err(err).Msg("the keys of proxy.jwt.jwks_url can't be fetched: until they are, requests with a token get 503")
	default:
		s.log.Warn().Str("url", s.url).Err(err).Msg("the keys of proxy.jwt.jwks_url can't be fetched: those from before stay in force")
	}
}

// refresh fetches the set and puts it in force, if it is another one, without usable
// keys too: the cache of tokens goes by the keyring.
func (s *keySource) refresh(ctx context.Context) (err error) {
	defer func() {
		// Others wrote the set, and the parser: neither is to end the gateway.
		if fault := recover(); fault != nil {
			err = fmt.Errorf("the set makes the parser panic: %v", fault)
		}
	}()
	data, err := s.fetch(ctx)
	if err != nil {
		return err
	}
	ring, err := parseKeys(data)
	if err != nil {
		return fmt.Errorf("the answer %w", err)
	}
	if old := s.ring.Load(); old != nil && old.sum == ring.sum {
		return nil
	}
	s.ring.Store(ring)
	if ring.lack != nil { // what an issuer withdraws is withdrawn
		s.log.Error().Str("url", s.url).Err(ring.lack).Msg("proxy.jwt.jwks_url is answered with a set without usable keys: until there is one, every token is refused")
		return nil
	}
	s.log.Info().Str("url", s.url).Int("keys", len(ring.keys)).Int("passed_over", ring.skipped).Msg("tokens are verified with the keys of proxy.jwt.jwks_url")
	return nil
}

// fetch reads the set.
func (s *keySource) fetch(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	request.Header.Set("User-Agent", "r8limiter")
	answer, err := s.client.Do(request)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			return nil, e.Err // the URL is told anyway
		}
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the answer is %s", answer.Status)
	}
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxKeySet+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer: %w", err)
	case len(data) > maxKeySet:
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxKeySet)
	}
	return data, nil
}
