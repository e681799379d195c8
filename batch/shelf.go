// Pictures that are ready for the model.

package batch

import (
	"context"
	"sync"
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
