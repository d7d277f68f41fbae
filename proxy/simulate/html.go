package simulate

import (
	_ "embed" // for the template
	"fmt"
	"html/template"
	"io"
	"time"
)

//go:embed report.html
var reportHTML string

var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"count": count, "percent": percent, "spell": spell, "seconds": seconds, "printable": printable,
	"time": func(t time.Time) string { return t.Format(textTime) },
	"bar":  barWidth,
}).Parse(reportHTML))

// barWidth is how wide a bar is, of 100.
func barWidth(part, whole uint64) string {
	if whole == 0 {
		return "0"
	}
	return fmt.Sprintf("%.2f", 100*float64(part)/float64(whole))
}

// WriteHTML writes the report as one page that needs nothing else, no script either.
func (r *Report) WriteHTML(w io.Writer) error {
	return reportTemplate.Execute(w, &page{Report: r, Charts: r.Timeline.charts()})
}

// page is what the template is given.
type page struct {
	*Report
	Charts []chart
}

// MostDenied is the largest number of denials of a user.
func (p *page) MostDenied() uint64 {
	if len(p.Users.Top) == 0 {
		return 0
	}
	return p.Users.Top[0].Denied
}

// Candidates are the rows of a limit's target.
func (t *LimitTarget) Candidates() []namedCandidate {
	return []namedCandidate{{"as it is", &t.Now}, {"smallest capacity", t.Capacity}, {"smallest rate", t.Rate}, {"smallest of both", t.Scale}}
}

type namedCandidate struct {
	Name string
	*Candidate
}

// Size of a chart, in the units of its view box.
const (
	chartWidth  = 1000
	chartHeight = 120
)

// chart is a bar chart over time.
type chart struct {
	Title, Class string
	Most         uint64
	Bars         []chartBar
	Ticks        []tick
}

// chartBar is one bar, in the units of the view box.
type chartBar struct {
	X, Y, Width, Height string
	Title               string
}

// tick is a time below a chart.
type tick struct {
	X    string
	Text string
}

// charts draws requests and denials.
func (t *Timeline) charts() []chart {
	requests := t.chart(func(b *Bar) uint64 { return b.Requests })
	requests.Title, requests.Class = "Requests", "requests"
	denied := t.chart(func(b *Bar) uint64 { return b.Denied })
	denied.Title, denied.Class = "Denied", "denied"
	all := []chart{requests, denied}
	shadow := t.chart(func(b *Bar) uint64 { return b.ShadowDenied })
	if shadow.Title, shadow.Class = "Shadow denied", "shadow"; shadow.Most > 0 {
		all = append(all, shadow)
	}
	return all
}

func (t *Timeline) chart(value func(*Bar) uint64) chart {
	var c chart
	for i := range t.Bars {
		c.Most = max(c.Most, value(&t.Bars[i]))
	}
	step := chartWidth / float64(max(len(t.Bars), 1))
	for i := range t.Bars {
		n := value(&t.Bars[i])
		if n == 0 {
			continue
		}
		height := max(chartHeight*float64(n)/float64(c.Most), 1)
		c.Bars = append(c.Bars, chartBar{
			X: units2(float64(i) * step), Y: units2(chartHeight - height),
			Width: units2(max(step*0.9, 0.5)), Height: units2(height),
			Title: t.Bars[i].Start.Format(textTime) + ": " + count(n),
		})
	}
	const ticks = 5
	for i := range min(ticks, len(t.Bars)) {
		at := i * len(t.Bars) / min(ticks, len(t.Bars))
		c.Ticks = append(c.Ticks, tick{units2(float64(at) * step), t.Bars[at].Start.Format("01-02 15:04:05")})
	}
	return c
}

func units2(x float64) string { return fmt.Sprintf("%.2f", x) }

// Width is how long a part of the timeline is.
func (p *page) Width() string { return spell(time.Duration(p.Timeline.Width) * time.Second) }
