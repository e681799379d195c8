// How far a long command is: a bar on a terminal, a line now and then elsewhere. Always on standard error.

package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// plainEvery is the time between two plain lines.
const plainEvery = 10 * time.Second

// unit is what a meter counts.
type unit int

const (
	unitBytes unit = iota
	unitPictures
)

// meter shows progress. update may be called from several goroutines; close once, when nothing more comes.
type meter struct {
	out   io.Writer
	verb  string
	unit  unit
	start time.Time

	mu        sync.Mutex
	container *mpb.Progress // nil: plain lines
	bar       *mpb.Bar
	printed   time.Time
	done      int64
	total     int64 // -1: not known
	skipped   int64
	note      string
}

func (a *app) newMeter(verb string, u unit) *meter {
	m := &meter{out: a.stderr, verb: verb, unit: u, start: time.Now(), printed: time.Now(), total: -1}
	if !isTerminal(a.stderr) {
		return m
	}
	m.container = mpb.New(mpb.WithOutput(a.stderr), mpb.WithWidth(40), mpb.WithRefreshRate(200*time.Millisecond))
	said := func(f func() string) decor.Decorator {
		return decor.Any(func(decor.Statistics) string {
			m.mu.Lock()
			defer m.mu.Unlock()
			return f()
		}, decor.WCSyncSpace)
	}
	m.bar = m.container.AddBar(0,
		mpb.PrependDecorators(decor.Name(verb)),
		mpb.AppendDecorators(said(m.progress), said(func() string { return m.amount(m.rate()) + "/s" }), decor.OnComplete(said(m.left), "done"), said(func() string { return m.note })),
	)
	return m
}

// update says that done of total is finished; total -1 is not known yet. skipped of done cost no work and do not count
// for the speed. note is shown beside it.
func (m *meter) update(done, total, skipped int64, note string) {
	if !m.remember(done, total, skipped, note) {
		return
	}
	if m.bar != nil { // without the lock: drawing calls speed, which takes it
		if total >= 0 {
			m.bar.SetTotal(total, false)
		}
		m.bar.SetCurrent(done)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.printed) < plainEvery {
		return
	}
	m.printed = time.Now()
	fmt.Fprintf(m.out, "%s: %s\n", m.verb, m.line())
}

// remember takes the news in, unless it is older than what is known: goroutines may overtake each other.
func (m *meter) remember(done, total, skipped int64, note string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if done < m.done {
		return false
	}
	m.done, m.total, m.skipped, m.note = done, total, skipped, note
	return true
}

// line is one plain line, such as "decoder, 1.2 GiB of 3.4 GiB, 210 MiB/s, 11s left". Callers hold mu.
func (m *meter) line() string {
	text := m.progress() + ", " + m.amount(m.rate()) + "/s"
	for _, more := range []string{m.left(), m.note} {
		if more != "" {
			text += ", " + more
		}
	}
	return text
}

// progress is how much of what is done. Callers hold mu.
func (m *meter) progress() string {
	switch {
	case m.total < 0:
		return m.amount(float64(m.done))
	case m.unit == unitBytes:
		return m.amount(float64(m.done)) + " of " + m.amount(float64(m.total))
	}
	return fmt.Sprintf("%d of %s", m.done, m.amount(float64(m.total)))
}

// left is the time left, "" where it is not known. Callers hold mu.
func (m *meter) left() string {
	rate := m.rate()
	if m.total <= m.done || rate <= 0 {
		return ""
	}
	return time.Duration(float64(m.total-m.done)/rate*float64(time.Second)).Round(time.Second).String() + " left"
}

func (m *meter) amount(n float64) string {
	if m.unit == unitBytes {
		return byteSize(int64(n))
	}
	if n == float64(int64(n)) {
		return fmt.Sprintf("%d pictures", int64(n))
	}
	return fmt.Sprintf("%.2f pictures", n)
}

// rate is units a second since the start. Callers hold mu.
func (m *meter) rate() float64 {
	seconds := time.Since(m.start).Seconds()
	if seconds <= 0 {
		return 0
	}
	return float64(m.done-m.skipped) / seconds
}

// close takes the bar off its line, finished or not. Closing nil or twice is harmless.
func (m *meter) close() {
	if m == nil || m.container == nil {
		return
	}
	m.bar.Abort(false) // does nothing to a bar that is complete
	m.container.Wait()
	m.container = nil
}

// byteSize writes a number of bytes for people.
func byteSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), "KMGTP"
	for i := range units {
		v /= 1024
		if v < 1024 || i == len(units)-1 {
			return fmt.Sprintf("%.1f %ciB", v, units[i])
		}
	}
	return ""
}
