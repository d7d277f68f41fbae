package simulate

import (
	"bufio"
	"fmt"
	"io"
	"time"

	"github.com/rs/zerolog"

	"github.com/r8limiter/r8limiter/limiter"
)

// decisionWriter writes a line of JSON for each line of the logs, in the order in which
// they were taken in:
//
//	{"file":"access.log","line":7,"time":"2026-11-26T10:00:00Z","decision":"deny","route":"items",
//	 "user_id":"ann","resource":"read","plan":"gold","cost":1,"limit":"burst","retry_after":0.2,"shadow_denied":"next"}
//
// decision is allow or deny by the limits, where waived says that a denial was none, as
// the route or the user is in the shadow; pass for a bypass route, a preflight or a replay;
// refuse, with status and reason, for what the gateway would answer itself; unreadable
// and skipped for lines that are no requests.
type decisionWriter struct {
	out   *bufio.Writer
	log   zerolog.Logger
	bytes []byte
	err   error
}

func newDecisionWriter(to io.Writer) *decisionWriter {
	w := &decisionWriter{out: bufio.NewWriterSize(to, 64<<10)}
	w.log = zerolog.New(w)
	return w
}

// Write keeps the first error, and to itself: zerolog would tell standard error.
func (w *decisionWriter) Write(p []byte) (int, error) {
	if w.err == nil {
		_, w.err = w.out.Write(p)
	}
	return len(p), nil
}

func (w *decisionWriter) flush() error {
	if w.err == nil {
		w.err = w.out.Flush()
	}
	return w.fault()
}

func (w *decisionWriter) fault() error {
	if w.err != nil {
		return fmt.Errorf("write decisions: %w", w.err)
	}
	return nil
}

// unread writes the line about one that is no request.
func (w *decisionWriter) unread(s *source, why error) {
	e := w.log.Log().Str("file", s.name).Int64("line", s.number)
	if isSkip(why) {
		e.Str("decision", "skipped").Send()
		return
	}
	e.Str("decision", "unreadable").Str("reason", why.Error()).Send()
}

// write writes the line about the request that was judged last.
func (w *decisionWriter) write(s *source, x *engine) error {
	j, d := &x.judged, &x.decision
	e := w.log.Log().Str("file", s.name).Int64("line", s.number)
	w.bytes = time.UnixMicro(x.now).UTC().AppendFormat(w.bytes[:0], time.RFC3339Nano)
	e.Bytes("time", w.bytes).Str("decision", decisionWord(x))
	if j.Index >= 0 {
		e.Str("route", j.Route)
	}
	if j.Refused != nil {
		e.Int("status", j.Status).Str("reason", j.Refused.Error()).Send()
		return w.fault()
	}
	if !j.Charged {
		e.Send()
		return w.fault()
	}
	e.Bytes("user_id", j.Ask.User).Bytes("resource", j.Ask.Resource)
	if len(j.Ask.Plan) > 0 {
		e.Bytes("plan", j.Ask.Plan)
	}
	e.Int64("cost", j.Ask.Cost)
	if s := d.Binding(); s != nil {
		w.bytes = d.AppendLimitName(w.bytes[:0], s)
		e.Bytes("limit", w.bytes)
	}
	if d.Waived {
		e.Bool("waived", true)
	}
	if !d.Allowed {
		w.bytes = limiter.AppendSeconds(w.bytes[:0], d.RetryAfter())
		e.RawJSON("retry_after", w.bytes)
	}
	if w.bytes = d.AppendShadowDenied(w.bytes[:0]); len(w.bytes) > 0 {
		e.Bytes("shadow_denied", w.bytes)
	}
	e.Send()
	return w.fault()
}

func decisionWord(x *engine) string {
	switch {
	case x.judged.Refused != nil:
		return "refuse"
	case !x.judged.Charged:
		return "pass"
	case x.decision.Allowed:
		return "allow"
	}
	return "deny"
}
