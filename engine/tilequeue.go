// Tiles of requests that wait at the same time go through the picture graphs together: a graph call costs less for eight
// tiles than eight calls for one, and most requests have few.

package engine

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// tileQueue gathers tiles into batches. The request that holds the gate runs batches for all that wait, in their order,
// until its own tiles are through, and hands the gate on.
type tileQueue struct {
	limit int           // most tiles of a batch: it bounds the memory
	gate  chan struct{} // capacity 1; whoever holds it has the machine
	run   func(ctx context.Context, batch []segment) error

	mu   sync.Mutex
	jobs []*tileJob // in order of arrival
}

// tileJob is one request's tiles.
type tileJob struct {
	tensors map[string]Array // with the same leading dimension, the tiles
	tiles   int
	result  *stageResult

	next int // the first tile that was not run; the gate's holder's
	err  error
	done chan struct{} // closed when result or err is there
}

// segment is tiles first..first+n−1 of a job.
type segment struct {
	job      *tileJob
	first, n int
}

func newTileQueue(limit int, gate chan struct{}, run func(context.Context, []segment) error) *tileQueue {
	return &tileQueue{limit: limit, gate: gate, run: run}
}

// do runs a job. When ctx ends the job leaves with the context's cause; others go on.
func (q *tileQueue) do(ctx context.Context, j *tileJob) error {
	j.done = make(chan struct{})
	q.mu.Lock()
	q.jobs = append(q.jobs, j)
	q.mu.Unlock()
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		q.remove(j)
		return context.Cause(ctx)
	case q.gate <- struct{}{}:
	}
	defer func() { <-q.gate }()
	for !j.finished() {
		if ctx.Err() != nil {
			q.remove(j)
			return context.Cause(ctx)
		}
		batch := q.take()
		q.settle(ctx, batch, q.run(ctx, batch))
	}
	return j.err
}

func (j *tileJob) finished() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// take returns the next batch: tiles of the oldest job, and of those behind it whose tensors have the same names and shapes.
func (q *tileQueue) take() []segment {
	q.mu.Lock()
	defer q.mu.Unlock()
	room := q.limit
	var batch []segment
	for _, j := range q.jobs {
		if room == 0 {
			break
		}
		if len(batch) > 0 && !sameTiles(batch[0].job.tensors, j.tensors) {
			continue
		}
		n := min(room, j.tiles-j.next)
		batch = append(batch, segment{j, j.next, n})
		room -= n
	}
	return batch
}

// sameTiles reports whether tiles of both can be put into one tensor.
func sameTiles(a, b map[string]Array) bool {
	return maps.EqualFunc(a, b, func(x, y Array) bool {
		return slices.Equal(x.Shape[1:], y.Shape[1:]) && (x.Int64 == nil) == (y.Int64 == nil)
	})
}

// settle notes what became of a batch. One that failed is run again segment by segment, so that nobody's tiles fail for
// another's; one that the holder's context ended stays where it was for the next holder, without the holder's job.
func (q *tileQueue) settle(ctx context.Context, batch []segment, err error) {
	switch {
	case err == nil:
		for _, s := range batch {
			s.job.next += s.n
			if s.job.next == s.job.tiles {
				q.finish(s.job, nil)
			}
		}
	case ctx.Err() != nil: // do looks at the context itself
	case len(batch) == 1:
		q.finish(batch[0].job, err)
	default:
		for _, s := range batch {
			if ctx.Err() == nil {
				one := []segment{s}
				q.settle(ctx, one, q.run(ctx, one))
			}
		}
	}
}

func (q *tileQueue) finish(j *tileJob, err error) {
	q.remove(j)
	j.err = err
	close(j.done)
}

func (q *tileQueue) remove(j *tileJob) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.jobs, j); i >= 0 {
		q.jobs = slices.Delete(q.jobs, i, i+1)
	}
}
