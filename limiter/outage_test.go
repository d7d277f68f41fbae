package limiter

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// testedOutages are a lane, what is logged of it, and an outage of it.
type testedOutages struct {
	text strings.Builder
	log  zerolog.Logger
	lane lane
}

func newTestedOutages() *testedOutages {
	o := &testedOutages{lane: lane{name: "redis:6379"}}
	o.log = zerolog.New(&o.text)
	return o
}

// during has the lane fail with a cause for a while, probed twice a second.
func (o *testedOutages) during(span time.Duration, causes ...string) {
	out := outage{lane: &o.lane, since: time.Now()}
	for i := 0; time.Since(out.since) < span; i++ {
		out.found(&o.log, errors.New(causes[min(i, len(causes)-1)]))
		time.Sleep(500 * time.Millisecond)
	}
	out.over(&o.log)
}

func (o *testedOutages) want(t *testing.T, parts ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(o.text.String()), "\n")
	if len(lines) != len(parts) {
		t.Fatalf("got %d lines, want %d:\n%s", len(lines), len(parts), o.text.String())
	}
	for i, part := range parts {
		if !strings.Contains(lines[i], part) {
			t.Errorf("line %d is %s, want something with %s", i, lines[i], part)
		}
	}
}

func TestOutageIsToldAtOnceAndAgainAndWhenItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestedOutages()
		o.during(150*time.Second, "refused")
		o.want(t, `"error":"refused","redis":"redis:6379","failed_ms":0,`, `"failed_ms":60000,`, `"failed_ms":120000,`, `"failed_ms":150000,"message":"Redis works again"`)
		if err := o.lane.closed(); !errors.Is(err, errBreakerOpen) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("decisions fail with %v", err)
		}
	})
}

func TestOutageThatChangesItsCauseIsToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestedOutages()
		o.during(30*time.Second, "refused", "NOAUTH")
		o.want(t, "refused", "NOAUTH", "works again")
	})
}

func TestOutageSoonAfterAnotherIsToldIfItLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newTestedOutages()
		for range 4 { // comes and goes
			o.during(time.Second, "refused")
			time.Sleep(time.Second)
		}
		o.want(t, "refused", "works again")
		o.during(20*time.Second, "refused") // and stays
		o.want(t, "refused", "works again", `"failed_ms":2000,`, "works again")
	})
}
