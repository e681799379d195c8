package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

// countingRun notes the tiles that were run, by job, and refuses what a queue must never do.
type countingRun struct {
	t     *testing.T
	limit int

	mu      sync.Mutex
	running bool
	batches int
	shared  int // batches with tiles of several jobs
	ran     map[*tileJob]int
	fail    func([]segment) error
	wait    chan struct{} // each run waits for one value; nil: none does
}

func (c *countingRun) run(ctx context.Context, batch []segment) error {
	c.mu.Lock()
	if c.running {
		c.t.Error("two batches run at once")
	}
	c.running = true
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.running = false
		c.mu.Unlock()
	}()
	if c.wait != nil {
		select {
		case <-c.wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.batches++
	if len(batch) > 1 {
		c.shared++
	}
	if c.fail != nil {
		if err := c.fail(batch); err != nil {
			return err
		}
	}
	tiles := 0
	for _, s := range batch {
		if s.n < 1 || s.first != c.ran[s.job] || s.first+s.n > s.job.tiles || !sameTiles(s.job.tensors, batch[0].job.tensors) {
			c.t.Errorf("segment %d+%d of %d tiles, %d ran before", s.first, s.n, s.job.tiles, c.ran[s.job])
		}
		c.ran[s.job] += s.n
		tiles += s.n
	}
	if tiles > c.limit || tiles == 0 {
		c.t.Errorf("a batch of %d tiles", tiles)
	}
	return nil
}

func newCountingRun(t *testing.T, limit int) (*countingRun, *tileQueue) {
	c := &countingRun{t: t, limit: limit, ran: map[*tileJob]int{}}
	return c, newTileQueue(limit, make(chan struct{}, 1), c.run)
}

func tiles(n int, width int64) *tileJob {
	return &tileJob{tiles: n, tensors: map[string]Array{"x": {Shape: []int64{int64(n), width}}}}
}

// Whatever comes together: every tile of every job runs once, in order, in batches within the limit, and jobs that are
// given up do not keep others waiting.
func TestTileQueue(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limit := rapid.IntRange(1, 9).Draw(rt, "limit")
		c, q := newCountingRun(t, limit)
		sizes := rapid.SliceOfN(rapid.IntRange(1, 20), 1, 12).Draw(rt, "tiles")
		given := rapid.SliceOfN(rapid.Bool(), len(sizes), len(sizes)).Draw(rt, "given up")
		widths := rapid.SliceOfN(rapid.Int64Range(1, 2), len(sizes), len(sizes)).Draw(rt, "widths")
		var wait sync.WaitGroup
		jobs := make([]*tileJob, len(sizes))
		for i, n := range sizes {
			jobs[i] = tiles(n, widths[i])
			wait.Go(func() {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				if given[i] {
					cancel()
				}
				err := q.do(ctx, jobs[i])
				if err != nil && !(given[i] && errors.Is(err, context.Canceled)) {
					t.Errorf("job %d: %v", i, err)
				}
			})
		}
		wait.Wait()
		for i, j := range jobs {
			if !given[i] && c.ran[j] != sizes[i] {
				t.Errorf("job %d: %d of %d tiles ran", i, c.ran[j], sizes[i])
			}
		}
		if len(q.jobs) != 0 {
			t.Errorf("%d jobs are left", len(q.jobs))
		}
	})
}

// Requests that wait while another's batch runs share the next one.
func TestTileQueueShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, q := newCountingRun(t, 8)
		c.wait = make(chan struct{})
		var wait sync.WaitGroup
		for range 5 {
			wait.Go(func() {
				if err := q.do(t.Context(), tiles(2, 3)); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		for range 3 { // the first alone, the next four together; nothing is left for a third
			select {
			case c.wait <- struct{}{}:
			default:
			}
			synctest.Wait()
		}
		wait.Wait()
		if c.batches != 2 || c.shared != 1 {
			t.Errorf("%d batches, %d of them shared; want 2 and 1", c.batches, c.shared)
		}
	})
}

// A holder whose context ends leaves; the tiles of those that waited with it are run by the next.
func TestTileQueueHolderGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, q := newCountingRun(t, 8)
		c.wait = make(chan struct{})
		ctx, cancel := context.WithCancelCause(context.Background())
		mine := errors.New("gone")
		var wait sync.WaitGroup
		wait.Go(func() {
			if err := q.do(ctx, tiles(20, 1)); !errors.Is(err, mine) {
				t.Errorf("the holder's error is %v", err)
			}
		})
		synctest.Wait()
		other := tiles(3, 1)
		wait.Go(func() {
			if err := q.do(context.Background(), other); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel(mine)
		synctest.Wait()
		c.wait <- struct{}{}
		wait.Wait()
		if c.ran[other] != 3 || len(q.jobs) != 0 {
			t.Errorf("%d of 3 tiles ran, %d jobs are left", c.ran[other], len(q.jobs))
		}
	})
}

// A job that makes a shared batch fail fails alone.
func TestTileQueueIsolatesFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, q := newCountingRun(t, 8)
		bad := tiles(2, 1)
		c.wait = make(chan struct{}, 100)
		c.fail = func(batch []segment) error {
			for _, s := range batch {
				if s.job == bad {
					return fmt.Errorf("a batch of %d jobs", len(batch))
				}
			}
			return nil
		}
		var wait sync.WaitGroup
		wait.Go(func() {
			if err := q.do(t.Context(), tiles(1, 1)); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait() // holds the gate
		wait.Go(func() {
			if err := q.do(t.Context(), bad); err == nil || err.Error() != "a batch of 1 jobs" {
				t.Errorf("the bad job's error is %v", err)
			}
		})
		wait.Go(func() {
			if err := q.do(t.Context(), tiles(3, 1)); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		for range 10 {
			c.wait <- struct{}{}
		}
		wait.Wait()
		if len(q.jobs) != 0 {
			t.Errorf("%d jobs are left", len(q.jobs))
		}
	})
}
