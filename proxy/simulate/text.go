package simulate

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// WriteText writes the report for a terminal of 80 columns. What clients sent is in it
// without anything that a terminal would obey.
func (r *Report) WriteText(w io.Writer) error {
	out := bufio.NewWriter(w)
	t := &textReport{out, r}
	t.input()
	t.total()
	t.routes()
	t.limits()
	t.timeline()
	t.users()
	t.refusals()
	if r.Target != nil {
		t.target()
	}
	return out.Flush()
}

type textReport struct {
	*bufio.Writer
	r *Report
}

func (t *textReport) line(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	_, _ = t.WriteString(strings.TrimRight(text, " ") + "\n") // Flush tells
}

const textTime = "2006-01-02 15:04:05"

func (t *textReport) input() {
	in := &t.r.Input
	t.line("%s on %s", fit(t.r.Config, 40), fit(in.Logs(), 30))
	t.line("%s lines: %s requests, %s skipped, %s unreadable", count(in.Lines), count(in.Requests), count(in.Skipped), count(in.Unreadable))
	if in.First != nil {
		t.line("from %s to %s UTC", in.First.Format(textTime), in.Last.Format(textTime))
	}
	if in.Clamped > 0 {
		t.line("%s lines are older than one before them, by up to %s: taken as of then", count(in.Clamped), seconds(in.ClampedMost))
	}
	for _, b := range in.Broken {
		t.line("%s", b)
	}
	t.examples()
}

// Logs are the logs for people.
func (in *InputReport) Logs() string {
	names := slices.Clone(in.Files)
	for i := range names {
		if names[i] == "-" {
			names[i] = standardInput
		}
	}
	return strings.Join(names, ", ")
}

// examples are the first lines that could not be read.
func (t *textReport) examples() {
	for _, e := range t.r.Input.Examples {
		t.line("  %s:%d: %s", printable(e.File), e.Line, printable(e.Why))
	}
	if more := t.r.Input.Unreadable - uint64(len(t.r.Input.Examples)); more > 0 {
		t.line("  and %s more unreadable lines", count(more))
	}
}

func (t *textReport) total() {
	o := &t.r.Total
	t.line("\nOUTCOME                  requests    share")
	row := func(name string, n uint64, remark string) {
		t.line("  %-18s %12s %8s  %s", name, count(n), percent(n, o.Requests), remark)
	}
	row("allowed", o.Allowed, "")
	row("denied", o.Denied, percent(o.Denied, o.Charged)+" of what was charged")
	if o.ShadowDenied > 0 {
		row("shadow denied", o.ShadowDenied, "allowed, but not if shadows decided")
	}
	row("passed", o.Passed, "bypass routes, preflights, replays")
	row("refused", o.Refused, "by the gateway itself")
}

func (t *textReport) routes() {
	t.line("\nROUTES                        requests    share      denied    share   refused")
	for i := range t.r.Routes {
		o := &t.r.Routes[i]
		t.line("  %-25s %10s %8s %11s %8s %9s", fit(o.Route, 25), count(o.Requests), percent(o.Requests, t.r.Total.Requests),
			count(o.Denied), percent(o.Denied, o.Charged), count(o.Refused))
	}
}

func (t *textReport) limits() {
	if len(t.r.Limits) == 0 {
		return
	}
	t.line("\nLIMITS                                                requests   denied   share")
	for i := range t.r.Limits {
		l := &t.r.Limits[i]
		switch {
		case l.Shadow:
			t.limit(l, l.Limit+" (shadow)", l.ShadowDenied)
		case l.ShadowDenied > 0: // of routes or users in the shadow
			t.limit(l, l.Limit, l.Denied)
			t.limit(l, "  and waived", l.ShadowDenied)
		default:
			t.limit(l, l.Limit, l.Denied)
		}
	}
}

func (t *textReport) limit(l *LimitReport, name string, denied uint64) {
	t.line("  %-17s %-14s %-17s %9s %8s %7s", fit(l.resource(), 17), fit(name, 14), l.bucket(),
		count(l.Requests), count(denied), percent(denied, l.Requests))
}

// resource is the resource with the plan whose limits these are.
func (l *LimitName) resource() string {
	if l.Plan == "" {
		return l.Resource
	}
	return l.Resource + " (" + l.Plan + ")"
}

func (l *LimitName) bucket() string { return bucketText(l.Capacity, l.RefillRate) }

func bucketText(capacity int64, rate string) string {
	return strconv.FormatInt(capacity, 10) + " at " + rate
}

// textBars is how many parts a timeline has in text.
const textBars = 24

func (t *textReport) timeline() {
	bars, width := t.r.Timeline.merged(textBars)
	if t.r.Total.Denied == 0 || len(bars) == 0 {
		return
	}
	most := uint64(1)
	for i := range bars {
		most = max(most, bars[i].Denied)
	}
	t.line("\n%-24s requests   denied   share", "EVERY "+spell(width))
	for i := range bars {
		b := &bars[i]
		t.line("  %-19s %11s %8s %7s  %s", b.Start.Format(textTime), count(b.Requests), count(b.Denied),
			percent(b.Denied, b.Requests), strings.Repeat("#", int((b.Denied*28+most-1)/most)))
	}
}

// merged is the timeline in at most so many parts, of a width that people think in.
func (t *Timeline) merged(most int64) (bars []Bar, width time.Duration) {
	if len(t.Bars) == 0 {
		return nil, 0
	}
	first, last := t.Bars[0].Start.Unix(), t.Bars[len(t.Bars)-1].Start.Unix()
	wide := t.Width
	for i := 0; last/wide-first/wide >= most; i++ {
		if i < len(widths) {
			wide = max(wide, widths[i])
		} else {
			wide *= 2
		}
	}
	for _, b := range t.Bars {
		for n := b.Start.Unix() / wide; first/wide+int64(len(bars)) <= n; {
			bars = append(bars, Bar{Start: time.Unix((first/wide+int64(len(bars)))*wide, 0).UTC()})
		}
		sum := &bars[len(bars)-1]
		sum.Requests += b.Requests
		sum.Denied += b.Denied
		sum.ShadowDenied += b.ShadowDenied
		sum.Refused += b.Refused
	}
	return bars, time.Duration(wide) * time.Second
}

func (t *textReport) users() {
	u := &t.r.Users
	t.line("\nUSERS: %s of %s would have been denied", count(u.Denied), count(u.Seen))
	if len(u.Top) == 0 {
		return
	}
	t.line("  %-28s %10s %9s %8s", "", "requests", "denied", "share")
	for i := range u.Top {
		p := &u.Top[i]
		t.line("  %-28s %10s %9s %8s", fit(p.User, 28), count(p.Requests), count(p.Denied), percent(p.Denied, p.Requests))
		t.line("    %s to %s by %s", p.First.Format(textTime), p.Last.Format(textTime), fit(p.by(), 29))
	}
}

// by are the limits that denied a user.
func (u *UserReport) by() string {
	names := make([]string, len(u.By))
	for i, l := range u.By {
		names[i] = l.Name()
	}
	return strings.Join(names, ", ")
}

// textRefusals is how many reasons are told.
const textRefusals = 8

func (t *textReport) refusals() {
	if len(t.r.Refusals) == 0 {
		return
	}
	t.line("\nREFUSED by the gateway itself")
	for i, f := range t.r.Refusals {
		if i == textRefusals {
			t.line("  and for %d more reasons", len(t.r.Refusals)-i)
			break
		}
		t.line("  %9s  %d %s", count(f.Requests), f.Status, fit(f.Reason, 63))
	}
}

func (t *textReport) target() {
	t.line("\nTARGET: at most %s denied, each limit as if it were the only one", t.r.Target.Share)
	for i := range t.r.Target.Limits {
		l := &t.r.Target.Limits[i]
		t.line("  %s of %s: %s of %s requests may be denied", fit(l.Limit, 20), fit(l.resource(), 20), count(l.Budget), count(l.Requests))
		t.candidate("as it is", &l.Now)
		t.candidate("smallest capacity", l.Capacity)
		t.candidate("smallest rate", l.Rate)
		scale := "both"
		if l.Scale != nil {
			scale += " x " + l.Scale.Factor
		}
		t.candidate(scale, l.Scale)
		if !l.Smallest {
			t.line("    costs differ: one step less denies too much, but still less may not")
		}
	}
}

func (t *textReport) candidate(name string, c *Candidate) {
	if c == nil {
		t.line("    %-20s none is large enough", name)
		return
	}
	t.line("    %-20s %-30s %12s denied", name, bucketText(c.Capacity, c.RefillRate), count(c.Denied))
}

// count writes a number in groups of three digits.
func count(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', -1, 64) + " s" }

// spell writes a width of the timeline, "15m" rather than "15m0s".
func spell(d time.Duration) string {
	switch {
	case d%(24*time.Hour) == 0:
		return strconv.Itoa(int(d/(24*time.Hour))) + "d"
	case d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	}
	return strconv.Itoa(int(d/time.Second)) + "s"
}

// percent writes a share as people read it, "3.9 %".
func percent(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	p := 100 * float64(part) / float64(whole)
	decimals := 1
	if p > 0 && p < 0.095 {
		decimals = 3
	}
	return strconv.FormatFloat(p, 'f', decimals, 64) + " %"
}

// fit is text that may be printed and is at most so many runes long.
func fit(text string, most int) string {
	text = printable(text)
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	runes := []rune(text)
	return string(runes[:most-1]) + "…"
}

// printable is text with escapes for what is no letter, mark, number, punctuation,
// symbol or space.
func printable(text string) string {
	safe := func(r rune) bool { return unicode.IsPrint(r) && r != utf8.RuneError }
	if strings.IndexFunc(text, func(r rune) bool { return !safe(r) }) < 0 {
		return text
	}
	var out strings.Builder
	for i, r := range text {
		switch {
		case safe(r):
			out.WriteRune(r)
		case r == utf8.RuneError:
			fmt.Fprintf(&out, `\x%02x`, text[i])
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			out.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return out.String()
}
