package simulate

import "time"

// maxBars is how many parts of time a timeline has at most.
const maxBars = 200

// widths are parts of time that people think in, in seconds, each a multiple of the one
// before; beyond the last it doubles.
var widths = []int64{1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400}

// timeline counts what happened over time, in parts that grow with the time there is.
type timeline struct {
	width int64 // seconds
	next  int   // index into widths of the next width
	first int64 // when the first part begins, in widths since 1970
	bars  []outcome
}

func newTimeline() timeline { return timeline{width: widths[0], next: 1} }

// add counts what became of a request at a moment, which is never before the last.
func (t *timeline) add(at int64, became *outcome) {
	place := at / second / t.width
	if len(t.bars) == 0 {
		t.first = place
	}
	for place-t.first >= maxBars {
		t.widen()
		place = at / second / t.width
	}
	for int64(len(t.bars)) <= place-t.first {
		t.bars = append(t.bars, outcome{})
	}
	t.bars[place-t.first].add(became)
}

// widen makes the parts longer.
func (t *timeline) widen() {
	before := t.width
	if t.next < len(widths) {
		t.width = widths[t.next]
	} else {
		t.width *= 2
	}
	t.next++
	old, first := t.bars, t.first
	t.first = first * before / t.width
	t.bars = nil
	for i := range old {
		place := (first+int64(i))*before/t.width - t.first
		for int64(len(t.bars)) <= place {
			t.bars = append(t.bars, outcome{})
		}
		t.bars[place].add(&old[i])
	}
}

// start is when part i begins.
func (t *timeline) start(i int) time.Time {
	return time.Unix((t.first+int64(i))*t.width, 0).UTC()
}
