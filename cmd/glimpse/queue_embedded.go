// The queue of a run in its own process: a NATS server beside the model, which listens only when it is asked to.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"glimpse/batch"
	"glimpse/batch/queue"
	"glimpse/engine"
	"glimpse/manifest"

	"github.com/nats-io/nats.go/jetstream"
)

// listen is where others may join the queue in this process; "": nobody may.
func (o *CaptionOptions) listen() string {
	if o.Queue == queueEmbedded {
		return cmp.Or(o.Listen, defaultListen)
	}
	return o.Listen
}

// captionHere runs the batch through a queue in this process, which coordinates and works.
func (o *CaptionOptions) captionHere(ctx context.Context, a *app, model string, m *manifest.Manifest, b batch.Options) (summary *batch.Summary, err error) {
	summary = &batch.Summary{}
	q, err := o.queueRun(&b, model, m)
	if err != nil {
		return summary, err
	}
	b.Busy = &batch.Busy{}
	if o.listen() != "" {
		b.ByReference = true
		if o.Parallel == 0 {
			b.Parallel = uncounted
		}
	}
	err = a.withEngine(ctx, model, o.ModelOptions, func(e *engine.Engine) (err error) {
		answerers := newAskers(e, b.Tools, b.Busy)
		if _, err := answerers.get(q.job.Ask); err != nil {
			return err // what this model cannot do is said before anything is written
		}
		work, err := batch.Open(ctx, b)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, work.Close()) }()
		place, err := o.openQueue(a, work, &q)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, place.close(err == nil)) }()
		if url := place.options.InProcess.URL(); url != "" {
			fmt.Fprintf(a.stderr, "caption: others can join with `glimpse caption %s --join %s`\n", model, url)
		}
		summary, err = o.runBoth(ctx, work, e, q.job, place.options, answerers)
		return err
	})
	return summary, err
}

// runBoth is coordinator and worker. Whichever fails ends the other.
func (o *CaptionOptions) runBoth(ctx context.Context, work *batch.Batch, e *engine.Engine, job queue.Job, options queue.Options, answerers *askers) (*batch.Summary, error) {
	client, err := queue.NewClient(ctx, options, job)
	if err != nil {
		return &batch.Summary{}, err
	}
	defer client.Close()
	ctx, stop := context.WithCancelCause(ctx)
	var worker sync.WaitGroup
	defer worker.Wait()
	defer stop(nil)
	worker.Go(func() {
		if err := o.work(ctx, e, job.ModelHash, options, answerers); err != nil {
			stop(err) // it is then what the coordinator returns
		}
	})
	summary, err := work.Run(ctx, client)
	switch {
	case err != nil:
	case options.Private:
		stop(nil)
		worker.Wait()
		err = client.Discard(context.WithoutCancel(ctx))
	default:
		err = client.Finish(ctx) // a worker that joined sees the end
	}
	return summary, err
}

// queuePlace is a server in this process and where its streams lie.
type queuePlace struct {
	options queue.Options
	folder  string
	keep    bool // the folder is taken up again by the next run when this one does not come to its end
}

// close stops the server and removes what is not needed any more.
func (p *queuePlace) close(finished bool) error {
	p.options.InProcess.Close()
	if p.keep && !finished {
		return nil
	}
	return os.RemoveAll(p.folder)
}

// openQueue starts the server with its streams beside the journal, or in memory where nothing is kept. The journal is the
// truth about rows; what lies on the queue is work that is done and has no row yet.
func (o *CaptionOptions) openQueue(a *app, work *batch.Batch, q *queued) (*queuePlace, error) {
	folder := work.State("queue")
	if folder != "" {
		place, err := o.queueBeside(a, folder, q)
		if err == nil || o.listen() != "" {
			return place, err
		}
		// Rows go where they always did; what a kill costs is that the pictures in hand are done again.
		a.log.Debug("queue: kept in memory", "error", err)
	}
	return o.queueInMemory(a, q)
}

// queueBeside takes up what an interrupted run of the same kind left in the folder; what another left is of no use.
func (o *CaptionOptions) queueBeside(a *app, folder string, q *queued) (*queuePlace, error) {
	note := filepath.Join(folder, "job")
	id, known, err := jobOf(note, q.settings)
	if err != nil {
		return nil, err
	}
	q.job.ID = id
	if known {
		if place, err := o.startQueue(a, folder, jetstream.FileStorage); err == nil || o.listen() != "" {
			return place, err
		}
	}
	if err := os.RemoveAll(folder); err != nil {
		return nil, fmt.Errorf("make the queue: %w", err)
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		return nil, fmt.Errorf("make the queue: %w", err)
	}
	if err = noteJob(note, id, q.settings); err == nil {
		var place *queuePlace
		if place, err = o.startQueue(a, folder, jetstream.FileStorage); err == nil {
			return place, nil
		}
	}
	return nil, errors.Join(err, os.RemoveAll(folder))
}

// queueInMemory is for outputs that cannot be continued. The server wants a folder all the same, which stays empty.
func (o *CaptionOptions) queueInMemory(a *app, q *queued) (place *queuePlace, err error) {
	if q.job.ID, err = newJob(); err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "glimpse-queue-")
	if err != nil { // such as a container whose root is read-only
		var again error
		if folder, again = os.MkdirTemp("/dev/shm", "glimpse-queue-"); again != nil {
			return nil, fmt.Errorf("make room for the queue, without which --queue off works: %w", err)
		}
	}
	if place, err = o.startQueue(a, folder, jetstream.MemoryStorage); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	place.keep = false
	return place, nil
}

// startQueue starts a server with its streams in a folder. Where nobody else may join only results are stored: a task is
// worth nothing without the process that has its picture.
func (o *CaptionOptions) startQueue(a *app, folder string, results jetstream.StorageType) (*queuePlace, error) {
	server, err := queue.StartServer(queue.ServerOptions{Listen: o.listen(), Dir: folder, Token: o.Token})
	if err != nil {
		return nil, badInput(err)
	}
	options := o.options(a, "")
	options.InProcess, options.Handover, options.Private, options.Results = server, queue.NewHandover(), o.listen() == "", results
	if options.Private || results == jetstream.MemoryStorage {
		options.Work, options.Objects = jetstream.MemoryStorage, jetstream.MemoryStorage
	}
	return &queuePlace{options, folder, true}, nil
}
