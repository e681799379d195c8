// Pictures that are ready for the model, and how much the model has to do.

package batch

import (
	"context"
	"slices"
	"sync"
	"time"
)

// shelf holds prepared pictures until a place in the model is free. Pictures of as many tiles are taken after one another,
// so that what runs together has the same shape; when there are no more, the picture that waits longest is next. The window
// of the runner bounds how long one can be passed over.
type shelf struct {
	mu     sync.Mutex
	byTile map[int][]*job // each in input order
	tiles  int            // of the last one taken
	closed bool
	news   chan struct{} // closed and replaced when something changes
}

func newShelf() *shelf { return &shelf{byTile: map[int][]*job{}, news: make(chan struct{})} }

func (s *shelf) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.news)
	s.news = make(chan struct{})
}

func (s *shelf) put(j *job) {
	s.change(func() { s.byTile[j.tiles] = append(s.byTile[j.tiles], j) })
}

// close says that nothing more comes.
func (s *shelf) close() { s.change(func() { s.closed = true }) }

// take waits for a picture; false: there are no more, or ctx is done.
func (s *shelf) take(ctx context.Context) (*job, bool) {
	for {
		j, closed, news := s.next()
		if j != nil || closed {
			return j, j != nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, false
		}
	}
}

func (s *shelf) next() (j *job, closed bool, news <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.byTile[s.tiles]) == 0 {
		delete(s.byTile, s.tiles)
		oldest := int64(-1)
		for tiles, list := range s.byTile {
			if oldest < 0 || list[0].seq < oldest {
				oldest, s.tiles = list[0].seq, tiles
			}
		}
		if oldest < 0 {
			return nil, s.closed, s.news
		}
	}
	list := s.byTile[s.tiles]
	s.byTile[s.tiles] = list[1:]
	return list[0], false, s.news
}

// busy adds up the time in which at least one request was inside the model.
type busy struct {
	mu    sync.Mutex
	spans []span // disjoint, in order; old ones are in total
	total time.Duration
	until time.Time // the end of what is in total
}

type span struct{ from, to time.Time }

// keepSpans bounds the list: what ended this many spans ago cannot be joined any more in practice.
const keepSpans = 4096

func (b *busy) add(from, to time.Time) {
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
func (b *busy) idle(start, end time.Time) float64 {
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
