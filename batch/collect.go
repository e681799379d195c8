// The end of the pipeline: rows in order, into the sink.

package batch

import (
	"context"
	"errors"
	"time"

	"glimpse/batch/row"
)

// collect writes the rows in order. When the run ends early it still writes what is finished without a gap.
func (r *runner) collect(ctx context.Context, finished <-chan *job, window <-chan struct{}) (err error) {
	defer func() {
		if err != nil && len(r.held) < maxInternal {
			err = errors.Join(err, r.writeHeld()) // an interrupt finds these rows finished
		}
		if serr := r.sync(); serr != nil && !errors.Is(err, serr) {
			err = errors.Join(err, serr)
		}
	}()
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	waiting := map[int64]*job{}
	var next int64
	for {
		select {
		case j, ok := <-finished:
			if !ok {
				return errors.Join(ctx.Err(), r.writeHeld())
			}
			waiting[j.seq] = j
		case <-tick.C:
			if err := r.sync(); err != nil {
				return err
			}
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		for {
			j, ok := waiting[next]
			if !ok {
				break
			}
			delete(waiting, next)
			next++
			<-window
			if err := r.take(j); err != nil {
				return err
			}
			r.memory.Release(j.cost)
		}
	}
}

// take writes a row, or holds it back while it may be one of a run of internal failures.
func (r *runner) take(j *job) error {
	if j.skip {
		r.skip(j.row.Error != nil)
		return nil
	}
	if j.row.Error != nil && j.row.Error.Kind == row.KindInternal {
		r.opts.Logger.Error("picture failed", "path", j.row.Path, "error", j.row.Error.Message)
		r.held = append(r.held, j)
		if len(r.held) >= maxInternal {
			return internalError(len(r.held), &j.row)
		}
		return nil
	}
	if err := r.writeHeld(); err != nil {
		return err
	}
	return r.write(j)
}

// writeHeld writes the rows held back.
func (r *runner) writeHeld() error {
	held := r.held
	r.held = nil
	for _, j := range held {
		if err := r.write(j); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) write(j *job) error {
	if r.opts.Reproducible {
		j.row.MS = 0
	}
	if err := r.out.Append(&j.row, j.data, j.version); err != nil {
		return err
	}
	j.data = nil
	if j.done != nil {
		r.release = append(r.release, j.done)
	}
	r.count(&j.row)
	if r.unsynced++; r.unsynced >= syncRows || time.Since(r.synced) >= syncEvery {
		if err := r.sync(); err != nil {
			return err
		}
	}
	if r.opts.Watch != nil {
		r.opts.Watch(&j.row, j.thumb)
	}
	if r.opts.Progress != nil {
		now := time.Now()
		r.opts.Progress(Progress{
			Total: r.total.Load(), Done: r.summary.Written, Skipped: r.skipped.Load(), Failed: r.summary.Failed,
			Tokens: r.summary.Tokens, Elapsed: now.Sub(r.start), Idle: r.idle(now),
		})
	}
	return nil
}

func (r *runner) count(to *Row) {
	r.summary.Written++
	r.summary.Tokens += int64(to.Tokens)
	switch {
	case to.Error != nil:
		r.summary.Failed++
		r.summary.Errors[to.Error.Kind]++
	case to.DuplicateOf != "":
		r.summary.Duplicates++
	}
}

// sync makes rows durable, and then lets go of their answers.
func (r *runner) sync() error {
	r.unsynced, r.synced = 0, time.Now()
	if err := r.out.Sync(); err != nil {
		return err
	}
	for _, f := range r.release {
		f()
	}
	r.release = nil
	return nil
}
