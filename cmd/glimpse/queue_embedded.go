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
	"glimpse/batch/sink"
	"glimpse/engine"
	"glimpse/manifest"
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
		place, err := o.openQueue(ctx, a, work, &q)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, place.close(err == nil)) }()
		if url := place.options.InProcess.URL(); url != "" {
			fmt.Fprintf(a.stderr, "caption: others can join with `glimpse caption %s --join %s`\n", model, url)
		}
		summary, err = o.runBoth(ctx, work, e, q.job.ModelHash, place, answerers)
		return err
	})
	return summary, err
}

// runBoth is coordinator and worker. Whichever fails ends the other.
func (o *CaptionOptions) runBoth(ctx context.Context, work *batch.Batch, e *engine.Engine, modelHash string, place *queuePlace, answerers *askers) (*batch.Summary, error) {
	ctx, stop := context.WithCancelCause(ctx)
	var worker sync.WaitGroup
	defer worker.Wait()
	defer stop(nil)
	worker.Go(func() {
		if err := o.work(ctx, e, modelHash, place.options, answerers); err != nil {
			stop(err) // it is then what the coordinator returns
		}
	})
	summary, err := work.Run(ctx, place.client)
	switch {
	case err != nil:
	case place.options.Private:
		stop(nil)
		worker.Wait()
		err = place.client.Discard(context.WithoutCancel(ctx))
	default:
		err = place.client.Finish(ctx) // a worker that joined sees the end
	}
	return summary, err
}

// socketName is through what `glimpse queue status OUT` asks a run; it lies in the folder of its queue.
const socketName = "socket"

// statusOf finds the queue of a run by its output; false: name is no output of a run, and so an address.
func statusOf(name string) (socket string, found bool, err error) {
	if isQueueAddress(name) {
		return "", false, nil
	}
	interrupted := false
	for _, folder := range sink.States(name, "queue") {
		if info, err := os.Stat(folder); err != nil || !info.IsDir() {
			continue
		}
		interrupted = true
		path := filepath.Join(folder, socketName)
		if conn, err := queue.DialSocket(path); err == nil {
			conn.Close()
			return path, true, nil
		}
	}
	if interrupted {
		return "", false, badInputf("queue status: no run is working on %s now; the last one was interrupted, and the same command continues it", name)
	}
	if _, err := os.Stat(name); err == nil {
		return "", false, badInputf("queue status: no run with a queue in its process is working on %s now", name)
	}
	return "", false, nil
}

// queuePlace is a server in this process and where its streams lie.
type queuePlace struct {
	options queue.Options
	client  *queue.Client
	folder  string
	keep    bool // the folder is taken up again by the next run when this one does not come to its end
}

// close stops the server and removes what is not needed any more.
func (p *queuePlace) close(finished bool) error {
	keep := p.keep && !finished
	if keep && p.options.Private {
		n, err := p.client.Kept(context.Background())
		keep = err != nil || n > 0 // with nothing in it, it is of no use
	}
	p.client.Close()
	p.options.InProcess.Close()
	if keep {
		return nil
	}
	return os.RemoveAll(p.folder)
}

// openQueue starts the server with its streams beside the journal, or in memory where nothing is kept. The journal is the
// truth about rows; what lies on the queue is work that is done and has no row yet.
func (o *CaptionOptions) openQueue(ctx context.Context, a *app, work *batch.Batch, q *queued) (*queuePlace, error) {
	folder := work.State("queue")
	if folder != "" {
		place, err := o.queueBeside(ctx, a, folder, q)
		if err == nil || o.listen() != "" || ctx.Err() != nil {
			return place, err
		}
		// Rows go where they always did; what a kill costs is that the pictures in hand are done again.
		a.log.Debug("queue: kept in memory", "error", err)
	}
	return o.queueInMemory(ctx, a, q)
}

// queueBeside takes up what an interrupted run of the same kind left in the folder; what another left is of no use.
func (o *CaptionOptions) queueBeside(ctx context.Context, a *app, folder string, q *queued) (*queuePlace, error) {
	note := filepath.Join(folder, "job")
	id, known, err := jobOf(note, q.settings)
	if err != nil {
		return nil, err
	}
	q.job.ID = id
	if known {
		if place, err := o.startQueue(ctx, a, folder, true, q.job); err == nil || o.listen() != "" {
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
		if place, err = o.startQueue(ctx, a, folder, true, q.job); err == nil {
			return place, nil
		}
	}
	return nil, errors.Join(err, os.RemoveAll(folder))
}

// queueInMemory is for outputs that cannot be continued. The server wants a folder all the same, which stays empty.
func (o *CaptionOptions) queueInMemory(ctx context.Context, a *app, q *queued) (place *queuePlace, err error) {
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
	if place, err = o.startQueue(ctx, a, folder, false, q.job); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return place, nil
}

// startQueue starts a server with its streams in a folder, and connects to it. keep: what an
// interrupted run leaves there is for the next one.
func (o *CaptionOptions) startQueue(ctx context.Context, a *app, folder string, keep bool, job queue.Job) (*queuePlace, error) {
	server, err := queue.StartServer(queue.ServerOptions{Listen: o.listen(), Dir: folder, Token: o.Token})
	if err != nil {
		return nil, badInput(err)
	}
	if keep {
		if err := server.ServeSocket(filepath.Join(folder, socketName)); err != nil { // a file system without sockets
			a.log.Debug("queue: its status cannot be asked for", "error", err)
		}
	}
	options := o.options(a, "")
	options.InProcess, options.Handover, options.Private, options.Volatile = server, queue.NewHandover(), o.listen() == "", !keep
	client, err := queue.NewClient(ctx, options, job)
	if err != nil {
		server.Close()
		return nil, err
	}
	return &queuePlace{options, client, folder, keep}, nil
}
