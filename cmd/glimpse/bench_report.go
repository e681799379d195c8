// What bench prints and draws.

package main

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
)

// benchLine is one measured quantity by the name that people read.
type benchLine struct {
	Name string
	*spread
}

// times lists the stages in the order a request passes them.
func (b *benchmark) times() []benchLine {
	return []benchLine{
		{"load", b.LoadMS}, {"preprocess", b.PreprocessMS}, {"of that, decode picture", b.DecodePictureMS}, {"vision", b.VisionMS},
		{"connector", b.ConnectorMS}, {"prefill", b.PrefillMS}, {"first token", b.TTFTMS},
		{"second question, first token", b.SecondTTFTMS},
		{fmt.Sprintf("picture to %d tokens", b.NewTokens), b.RequestMS},
	}
}

// decoding lists the throughput by number of rows, fewest first.
func (b *benchmark) decoding() []benchLine {
	rows := make([]int, 0, len(b.DecodeTPS))
	for key := range maps.Keys(b.DecodeTPS) {
		if n, err := strconv.Atoi(key); err == nil {
			rows = append(rows, n)
		}
	}
	slices.Sort(rows)
	list := make([]benchLine, len(rows))
	for i, n := range rows {
		list[i] = benchLine{fmt.Sprintf("decode tokens/s, %d at once", n), b.DecodeTPS[strconv.Itoa(n)]}
	}
	return list
}

func printBench(w io.Writer, b *benchmark) error {
	t := newTable(w)
	t.row("", "min", "median", "max")
	line := func(name string, s *spread) {
		if s == nil {
			t.row(name, "-", "-", "-")
			return
		}
		t.row(name, s.Min, s.Median, s.Max)
	}
	for _, l := range b.times() {
		line(l.Name+" ms", l.spread)
	}
	line("prompt tokens", b.PrefillTokens)
	line("prompt tokens/s", b.PrefillTPS)
	for _, l := range b.decoding() {
		line(l.Name, l.spread)
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%.0f MB when loaded, %.0f MB at most, %d threads, %s, precision %s, ONNX Runtime %s\n",
		b.RSSLoadedMB, b.RSSMB, b.Threads, b.Device, b.Precision, b.Versions.ONNXRuntime)
	return err
}

//go:embed bench.html
var benchHTML string

var benchTemplate = template.Must(template.New("bench").Parse(benchHTML))

// benchPage is the page that --html asks for. The file is made before anything is measured, so that a path that cannot
// be written is known at once; a nil page writes nothing.
type benchPage struct{ file *os.File }

func newBenchPage(path string) (*benchPage, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, badInput(fmt.Errorf("--html: %w", err))
	}
	return &benchPage{f}, nil
}

// abandon removes the page when nothing was written.
func (p *benchPage) abandon() {
	if p != nil && p.file != nil {
		p.file.Close()
		os.Remove(p.file.Name())
	}
}

func (p *benchPage) write(b *benchmark) error {
	if p == nil {
		return nil
	}
	if err := drawBench(p.file, b); err != nil {
		return err
	}
	err := p.file.Close()
	if err != nil {
		return fmt.Errorf("write %s: %w", p.file.Name(), err)
	}
	p.file = nil
	return nil
}

// benchBar is a bar of a chart with its whisker from the least to the largest; lengths are of benchWidth.
type benchBar struct {
	Name             string
	Y, Text          int
	Length, Min, Max float64
	End              float64 // where the number stands
	Value            string
}

// Sizes of a chart, in SVG units: names to the left of barLeft, numbers to the right of the bars.
const (
	barLeft   = 190
	barLength = 420
	barStep   = 26
)

type benchChart struct {
	Title, Note string
	Height      int
	Bars        []benchBar
}

// chartOf draws what was measured; quantities without a measurement are left out.
func chartOf(title, note string, lines []benchLine, format string) benchChart {
	chart := benchChart{Title: title, Note: note}
	most := 0.0
	for _, l := range lines {
		if l.spread != nil {
			most = max(most, l.Max)
		}
	}
	for _, l := range lines {
		if l.spread == nil || most == 0 {
			continue
		}
		y := len(chart.Bars) * barStep
		scale := func(v float64) float64 { return barLeft + rounded(v/most*barLength, 1) }
		chart.Bars = append(chart.Bars, benchBar{
			Name: l.Name, Y: y, Text: y + 15, Length: scale(l.Median) - barLeft, Min: scale(l.Min), Max: scale(l.Max),
			End: scale(l.Max) + 6, Value: fmt.Sprintf(format, l.Median),
		})
	}
	chart.Height = len(chart.Bars) * barStep
	return chart
}

// drawBench writes the page.
func drawBench(w io.Writer, b *benchmark) error {
	memory := []benchLine{
		{"loaded", &spread{b.RSSLoadedMB, b.RSSLoadedMB, b.RSSLoadedMB}}, {"at most", &spread{b.RSSMB, b.RSSMB, b.RSSMB}},
	}
	data := struct {
		B      *benchmark
		Charts []benchChart
	}{b, []benchChart{
		chartOf("Where the time goes", "ms; bars are medians, whiskers the least and the largest", b.times(), "%.4g ms"),
		chartOf("Reading the prompt", "tokens a second", []benchLine{{"prefill", b.PrefillTPS}}, "%.4g tok/s"),
		chartOf("Decoding", "tokens a second of all requests together", b.decoding(), "%.4g tok/s"),
		chartOf("Memory", "resident MB of the process", memory, "%.0f MB"),
	}}
	if err := benchTemplate.Execute(w, data); err != nil {
		return fmt.Errorf("draw the plots: %w", err)
	}
	return nil
}
