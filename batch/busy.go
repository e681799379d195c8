// How much the model has to do.

package batch

import (
	"slices"
	"sync"
	"time"
)

// Busy adds up the time in which at least one request was inside the model. Its zero value is ready, for several goroutines.
type Busy struct {
	mu    sync.Mutex
	spans []span // disjoint, in order; old ones are in total
	total time.Duration
	until time.Time // the end of what is in total
}

type span struct{ from, to time.Time }

// keepSpans bounds the list: what ended this many spans ago cannot be joined any more in practice.
const keepSpans = 4096

// Add says that a request was inside the model from then till then.
func (b *Busy) Add(from, to time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if from.Before(b.until) {
		from = b.until
	}
	if !from.Before(to) {
		return
	}
	at, _ := slices.BinarySearchFunc(b.spans, from, func(s span, t time.Time) int { return s.to.Compare(t) })
	end := at
	for end < len(b.spans) && !b.spans[end].from.After(to) {
		if b.spans[end].from.Before(from) {
			from = b.spans[end].from
		}
		if b.spans[end].to.After(to) {
			to = b.spans[end].to
		}
		end++
	}
	b.spans = slices.Replace(b.spans, at, end, span{from, to})
	if len(b.spans) > keepSpans {
		for _, s := range b.spans[:keepSpans/2] {
			b.total += s.to.Sub(s.from)
			b.until = s.to
		}
		b.spans = slices.Delete(b.spans, 0, keepSpans/2)
	}
}

// idle is the share of the time between start and end that nothing covers.
func (b *Busy) idle(start, end time.Time) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	whole := end.Sub(start)
	if whole <= 0 {
		return 0
	}
	covered := b.total
	for _, s := range b.spans {
		covered += s.to.Sub(s.from)
	}
	return min(1, max(0, 1-float64(covered)/float64(whole)))
}
