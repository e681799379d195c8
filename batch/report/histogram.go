// Histograms whose bounds need not be known before.

package report

import (
	"fmt"
	"html/template"
	"math"
	"strings"
)

// bins is how many bars a histogram has at most.
const bins = 32

// longTimes is from how many milliseconds on times are shown in seconds.
const longTimes = 10_000

// histogram counts values from 0 up in bins of equal width; when one does not fit, the bins are joined in pairs.
type histogram struct {
	width  float64 // of a bin; 0: nothing was counted
	counts [bins]int64
	n      int64
	sum    float64
	max    float64
}

func (h *histogram) add(v float64) {
	if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return
	}
	if h.width == 0 {
		h.width = 1
	}
	for v >= h.width*bins {
		var joined [bins]int64
		for i, n := range h.counts {
			joined[i/2] += n
		}
		h.counts = joined
		h.width *= 2
	}
	h.counts[int(v/h.width)]++
	h.n++
	h.sum += v
	h.max = max(h.max, v)
}

// chart is a histogram as the page shows it.
type chart struct {
	Title, Note string
	SVG         template.HTML
}

func (h *histogram) chart(title, unit string) chart {
	c := chart{Title: title, Note: "nothing was counted"}
	if h.n == 0 {
		return c
	}
	scale := 1.0
	if unit == "ms" && h.max >= longTimes {
		scale, unit = 1000, "s"
	}
	if unit != "" {
		unit = " " + unit
	}
	c.Note = fmt.Sprintf("mean %.1f%s, most %.0f%s", h.sum/float64(h.n)/scale, unit, h.max/scale, unit)
	last, highest := 0, int64(1)
	for i, n := range h.counts {
		if n > 0 {
			last = i
		}
		highest = max(highest, n)
	}
	const width, head, height, foot = 480.0, 18.0, 150.0, 24.0
	bar := width / float64(last+1)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img">`, width, head+height+foot)
	for i := range last + 1 {
		tall := height * float64(h.counts[i]) / float64(highest)
		from, to := float64(i)*h.width/scale, float64(i+1)*h.width/scale
		fmt.Fprintf(&b, `<rect x="%.2f" y="%.2f" width="%.2f" height="%.2f"><title>%g to %g%s: %d</title></rect>`,
			float64(i)*bar, head+height-tall, max(1, bar-2), tall, from, to, unit, h.counts[i])
	}
	fmt.Fprintf(&b, `<text x="0" y="%g">0</text><text x="%g" y="%g" text-anchor="end">%g%s</text>`,
		head+height+16, width, head+height+16, float64(last+1)*h.width/scale, unit)
	fmt.Fprintf(&b, `<text x="0" y="12">%d pictures</text></svg>`, highest)
	c.SVG = template.HTML(b.String()) // numbers and a constant unit only
	return c
}
