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
	skipped   int64
	note      string
}

func (a *app) newMeter(verb string, u unit) *meter {
	m := &meter{out: a.stderr, verb: verb, unit: u, start: time.Now(), printed: time.Now()}
	if !isTerminal(a.stderr) {
		return m
	}
	m.container = mpb.New(mpb.WithOutput(a.stderr), mpb.WithWidth(40), mpb.WithRefreshRate(200*time.Millisecond))
	counters := decor.CountersNoUnit("%d of %d", decor.WCSyncSpace)
	speed := decor.Any(func(decor.Statistics) string { return m.speed() }, decor.WCSyncSpace)
	if u == unitBytes {
		counters = decor.CountersKibiByte("% .1f of % .1f", decor.WCSyncSpace)
	}
	m.bar = m.container.AddBar(0,
		mpb.PrependDecorators(decor.Name(verb)),
		mpb.AppendDecorators(counters, speed,
			decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace), "done"),
			decor.Any(func(decor.Statistics) string { return m.currentNote() }, decor.WCSyncSpace)),
	)
	return m
}

// update says that done of total is finished; total -1 is not known yet. skipped of done cost no work and do not count
// for the speed. note is shown beside it.
func (m *meter) update(done, total, skipped int64, note string) {
	if !m.remember(done, skipped, note) {
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
	fmt.Fprintf(m.out, "%s: %s\n", m.verb, m.line(done, total, note))
}

// remember takes the news in, unless it is older than what is known: goroutines may overtake each other.
func (m *meter) remember(done, skipped int64, note string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if done < m.done {
		return false
	}
	m.done, m.skipped, m.note = done, skipped, note
	return true
}

// line is one plain line, such as "decoder, 1.2 GiB of 3.4 GiB, 210 MiB/s, 11s left".
func (m *meter) line(done, total int64, note string) string {
	text := m.amount(float64(done))
	if total >= 0 {
		text += " of " + m.amount(float64(total))
	}
	rate := m.rate()
	text += ", " + m.amount(rate) + "/s"
	if total > done && rate > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		text += ", " + left.Round(time.Second).String() + " left"
	}
	if note != "" {
		text += ", " + note
	}
	return text
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

func (m *meter) speed() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.amount(m.rate()) + "/s"
}

func (m *meter) currentNote() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.note
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
