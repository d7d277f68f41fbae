package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/r8limiter/r8limiter/limiter"
	"github.com/valyala/fasthttp"
)

// fleetTimeout bounds what an administrator asks of the store.
const fleetTimeout = 3 * time.Second

// stats is the answer to GET /admin/stats, over all gateways.
type stats struct {
	AllowedTotal uint64     `json:"allowed_total"`
	DeniedTotal  uint64     `json:"denied_total"`
	ActiveKeys   int        `json:"active_keys"`
	TopOffenders []offender `json:"top_offenders"` // of the last hour
}

// offender is a user and how often they were denied.
type offender struct {
	UserID string `json:"user_id"`
	Denies uint64 `json:"denies"`
}

// topOffenders is the answer to GET /admin/top_offenders.
type topOffenders struct {
	Window       string     `json:"window"`
	Bucket       string     `json:"bucket"`
	TopOffenders []offender `json:"top_offenders"`
}

const (
	defaultTopN   = 10
	defaultWindow = "1h"
)

// stats answers what all gateways have decided since the first one started,
// and who was denied most in the last hour.
func (s *Server) stats(x *exchange) {
	n := defaultTopN
	err := x.params(map[string]func(string) error{"top_n": setTopN(&n)})
	if err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	totals, offenders, err := s.Limiter.Stats(ctx, limiter.Window{Span: time.Hour, Bucket: limiter.Bucketings[0]}, n)
	if err != nil {
		x.storeTrouble(err)
		return
	}
	x.answerJSON(stats{totals.Allowed, totals.Denied, totals.ActiveKeys, listed(offenders)})
}

// topOffenders answers who was denied most in a window of time.
func (s *Server) topOffenders(x *exchange) {
	n, window, bucket := defaultTopN, defaultWindow, ""
	err := x.params(map[string]func(string) error{
		"top_n":  setTopN(&n),
		"window": func(v string) error { window = v; return nil },
		"bucket": func(v string) error { bucket = cmp.Or(v, "none"); return nil },
	})
	var w limiter.Window
	if err == nil {
		w, err = parseWindow(window, bucket)
	}
	if err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
		return
	}
	ctx, cancel := x.fleetContext()
	defer cancel()
	offenders, err := s.Limiter.Offenders(ctx, w, n)
	if err != nil {
		x.storeTrouble(err)
		return
	}
	x.answerJSON(topOffenders{window, w.Bucket.Name, listed(offenders)})
}

func listed(offenders []limiter.Offender) []offender {
	list := make([]offender, len(offenders))
	for i, o := range offenders {
		list[i] = offender{o.User, o.Denies}
	}
	return list
}

// fleetContext is never the RequestCtx: that is done when a shutdown begins.
func (x *exchange) fleetContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), fleetTimeout)
}

func setTopN(n *int) func(string) error {
	return func(v string) error {
		parsed, err := strconv.ParseUint(v, 10, 16)
		if err != nil || parsed < 1 || parsed > limiter.MaxOffenders {
			return fmt.Errorf("top_n %s is not a whole number from 1 to %d", quote([]byte(v)), limiter.MaxOffenders)
		}
		*n = int(parsed)
		return nil
	}
}

// windowUnits are the letters that a window may end in.
var windowUnits = map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour}

// parseWindow reads a window such as 15m, 6h or 7d, and the name of a bucket; ""
// is the shortest that goes back far enough.
func parseWindow(window, bucket string) (w limiter.Window, err error) {
	if w.Span, err = parseSpan(window); err != nil {
		return w, err
	}
	for _, b := range limiter.Bucketings {
		if b.Name == bucket || bucket == "" && (w.Bucket.Name == "" || w.Span > w.Bucket.Longest()) {
			w.Bucket = b
		}
	}
	switch {
	case w.Bucket.Name == "":
		return w, fmt.Errorf("bucket %s is unknown: write minute, hour or day", quote([]byte(bucket)))
	case w.Span > w.Bucket.Longest():
		return w, fmt.Errorf("window %s is longer than buckets of one %s are kept: at most %v; a longer bucket goes further back", window, w.Bucket.Name, w.Bucket.Longest())
	}
	return w, nil
}

func parseSpan(window string) (time.Duration, error) {
	bad := fmt.Errorf("window %s is malformed: write a number and m, h or d, as in 15m, 6h or 7d", quote([]byte(window)))
	if len(window) < 2 || windowUnits[window[len(window)-1]] == 0 {
		return 0, bad
	}
	n, err := strconv.ParseUint(window[:len(window)-1], 10, 16)
	if err != nil || n == 0 {
		return 0, bad
	}
	return time.Duration(n) * windowUnits[window[len(window)-1]], nil
}

// params reads the query: each parameter at most once, and only those in known.
func (x *exchange) params(known map[string]func(string) error) error {
	seen := map[string]bool{}
	x.reserve(len(x.query))
	for name, value, rest, ok := cutPair(x.query); ok; name, value, rest, ok = cutPair(rest) {
		set := known[string(name)]
		if set == nil {
			return unknownParam(name, known)
		}
		if seen[string(name)] {
			return fmt.Errorf("parameter %s is given more than once", quote(name))
		}
		seen[string(name)] = true
		value, err := x.decode(value, ' ')
		if err == nil {
			err = set(string(value))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func unknownParam(name []byte, known map[string]func(string) error) error {
	if len(known) == 0 {
		return errors.New("unknown parameter " + quote(name) + ": there are none here")
	}
	names := strings.Join(slices.Sorted(maps.Keys(known)), ", ")
	return errors.New("unknown parameter " + quote(name) + ": there is " + names)
}

// takesNoParams refuses a query, lest someone believes that it had an effect.
func (x *exchange) takesNoParams() bool {
	if err := x.params(nil); err != nil {
		x.refuse(fasthttp.StatusBadRequest, err.Error())
		return false
	}
	return true
}
