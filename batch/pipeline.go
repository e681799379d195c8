// From items to rows in order: a lister, a fixed number of workers, and one collector that owns output and counts.
//
//	lister ──jobs──▶ workers ──outcomes──▶ collector ──▶ sink
//
// The lister may run at most `window` items ahead of the row written last, which bounds what waits for a slow picture.
// Each worker reads its file and calls the model; there are more workers than the engine has slots, so pictures are
// decoded and prepared while others generate.

package batch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"glimpse/engine"

	"golang.org/x/sync/errgroup"
)

const (
	windowPerWorker = 8               // items between the oldest unfinished and the newest listed, a worker
	syncRows        = 64              // rows between two syncs
	syncEvery       = 2 * time.Second // or this long
	// maxInternal internal failures in a row end the run: then it is not the pictures. Their rows are not written, so the
	// next run tries them again.
	maxInternal = 8
)

type job struct {
	seq  int64
	item Item
}

type outcome struct {
	seq int64
	row Row
	err error // ends the run
}

type runner struct {
	opts   Options
	model  Captioner
	name   string // of the model, as rows have it
	source *Source
	out    sink
	seen   map[key]bool // rows in the file and items listed so far; true: an error row
	start  time.Time

	total   atomic.Int64 // -1 while counting
	skipped atomic.Int64 // written by the lister, read by the collector
	failed  atomic.Int64 // of skipped, error rows

	// Only the collector touches these.
	summary  Summary
	held     []Row // internal failures not written yet
	unsynced int
	synced   time.Time
}

// run returns when everything it started has ended.
func (r *runner) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	r.total.Store(-1)
	background.Go(func() { r.count(ctx) })

	workers := r.opts.Parallel
	jobs := make(chan job)
	outcomes := make(chan outcome, workers)
	window := make(chan struct{}, workers*windowPerWorker)

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(jobs)
		return r.list(gctx, jobs, window)
	})
	var working sync.WaitGroup
	for range workers {
		working.Add(1)
		g.Go(func() error {
			defer working.Done()
			return r.work(gctx, jobs, outcomes)
		})
	}
	g.Go(func() error {
		working.Wait()
		close(outcomes)
		return nil
	})
	g.Go(func() error { return r.collect(gctx, outcomes, window) })
	err := g.Wait()
	r.summary.Skipped, r.summary.FailedBefore = r.skipped.Load(), r.failed.Load()
	// The reason for the end is the caller's when the caller ended it; what failed because of that is noise.
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// count finds out how many inputs there are, for the progress display only. Repeated inputs are counted as often as
// they are listed.
func (r *runner) count(ctx context.Context) {
	var n int64
	for range r.source.Items(ctx) {
		n++
	}
	if ctx.Err() == nil {
		r.total.Store(n)
	}
}

// list sends the items that have no row yet.
func (r *runner) list(ctx context.Context, jobs chan<- job, window chan<- struct{}) error {
	var seq int64
	for item := range r.source.Items(ctx) {
		k := keyOf(item.ID, r.opts.Prompt, r.name)
		if failed, ok := r.seen[k]; ok {
			r.skipped.Add(1)
			if failed {
				r.failed.Add(1)
			}
			continue
		}
		r.seen[k] = false
		select {
		case window <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case jobs <- job{seq, item}:
		case <-ctx.Done():
			return ctx.Err()
		}
		seq++
	}
	return ctx.Err()
}

func (r *runner) work(ctx context.Context, jobs <-chan job, outcomes chan<- outcome) error {
	for j := range jobs {
		row, err := r.caption(ctx, j.item)
		if err != nil {
			return err
		}
		select {
		case outcomes <- outcome{seq: j.seq, row: row}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// caption makes one row. An error ends the run: the context's, or that of an engine that is gone.
func (r *runner) caption(ctx context.Context, item Item) (row Row, err error) {
	start := time.Now()
	row = Row{ID: item.ID, Path: printable(item.Path), Prompt: r.opts.Prompt, Model: r.name}
	defer func() { row.MS = math.Round(10*float64(time.Since(start))/float64(time.Millisecond)) / 10 }()
	if item.Err != nil {
		row.Error = fileError(item.Err)
		return row, nil
	}
	data, problem := readPicture(item.Path, r.opts.MaxBytes)
	if problem != nil {
		row.Error = problem
		return row, nil
	}
	sum := sha256.Sum256(data)
	row.SHA256 = hex.EncodeToString(sum[:])
	if r.opts.Measure != nil {
		// A header that cannot be read is reported by Generate, which says more.
		if w, h, err := r.opts.Measure(data, r.opts.IgnoreEXIF); err == nil {
			row.Width, row.Height = w, h
		}
	}
	picture := engine.Picture{Data: data, Source: item.Path, IgnoreEXIF: r.opts.IgnoreEXIF}
	req := Request(r.model.Manifest(), []engine.Picture{picture}, r.opts.Prompt)
	req.MaxTokens = r.opts.MaxTokens
	result, err := r.model.Generate(ctx, req)
	switch {
	case err == nil:
		row.Caption, row.Tokens = result.Text, result.Usage.CompletionTokens
	case ctx.Err() != nil:
		return row, ctx.Err()
	case errors.Is(err, engine.ErrClosed), errors.Is(err, engine.ErrNoDecoder), errors.Is(err, engine.ErrNoPictures):
		return row, err // no picture would fare better
	default:
		row.Error = requestError(err, r.opts.PictureKind)
	}
	return row, nil
}

// collect writes the rows in order. When the run ends early it still writes what is finished without a gap.
func (r *runner) collect(ctx context.Context, outcomes <-chan outcome, window <-chan struct{}) (err error) {
	defer func() {
		if err != nil && len(r.held) < maxInternal {
			err = errors.Join(err, r.release()) // an interrupt finds these rows finished
		}
		if serr := r.out.Sync(); serr != nil && !errors.Is(err, serr) {
			err = errors.Join(err, serr)
		}
	}()
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	waiting := map[int64]Row{}
	var next int64
	for {
		select {
		case o, ok := <-outcomes:
			if !ok {
				return errors.Join(ctx.Err(), r.release())
			}
			waiting[o.seq] = o.row
		case <-tick.C:
			if err := r.sync(); err != nil {
				return err
			}
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		for {
			row, ok := waiting[next]
			if !ok {
				break
			}
			delete(waiting, next)
			next++
			<-window
			if err := r.take(row); err != nil {
				return err
			}
		}
	}
}

// take writes a row, or holds it back while it may be one of a run of internal failures.
func (r *runner) take(row Row) error {
	if row.Error != nil && row.Error.Kind == KindInternal {
		r.opts.Logger.Error("picture failed", "path", row.Path, "error", row.Error.Message)
		r.held = append(r.held, row)
		if len(r.held) >= maxInternal {
			return fmt.Errorf("%d pictures in a row failed inside the model, last %s: %s", len(r.held), row.Path, row.Error.Message)
		}
		return nil
	}
	if err := r.release(); err != nil {
		return err
	}
	return r.write(row)
}

// release writes the rows held back.
func (r *runner) release() error {
	held := r.held
	r.held = nil
	for _, row := range held {
		if err := r.write(row); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) write(row Row) error {
	line, err := row.encode()
	if err != nil {
		return err
	}
	if err := r.out.Append(line); err != nil {
		return err
	}
	r.unsynced++
	r.summary.Written++
	r.summary.Tokens += int64(row.Tokens)
	if row.Error != nil {
		r.summary.Failed++
		r.summary.Errors[row.Error.Kind]++
	}
	if r.unsynced >= syncRows || time.Since(r.synced) >= syncEvery {
		if err := r.sync(); err != nil {
			return err
		}
	}
	if r.opts.Progress != nil {
		r.opts.Progress(Progress{
			Total: r.total.Load(), Done: r.summary.Written, Skipped: r.skipped.Load(), Failed: r.summary.Failed,
			Tokens: r.summary.Tokens, Elapsed: time.Since(r.start),
		})
	}
	return nil
}

func (r *runner) sync() error {
	r.unsynced, r.synced = 0, time.Now()
	return r.out.Sync()
}
