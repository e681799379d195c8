// From items to rows in order:
//
//	lister ─▶ preparers ─▶ admission (in order) ─▶ shelf ─▶ askers ─▶ collector (in order) ─▶ sink
//	              └──────────── rows that are done already ─────────────┘
//
// Preparers read, hash and decode on spare cores. Admission is where duplicates are found, which depends on the order. The
// shelf hands pictures of as many tiles to the model together. The lister may run at most `window` items ahead of the row
// written last, and hold at most Options.Memory bytes of pictures, which bounds what waits for a slow one.

package batch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"glimpse/batch/row"
	"glimpse/batch/sink"
	"glimpse/batch/source"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

const (
	windowPerWorker = 8               // items between the oldest unfinished and the newest listed, a request in flight
	syncRows        = 64              // rows between two syncs
	syncEvery       = 2 * time.Second // or this long
	// maxInternal internal failures in a row end the run: then it is not the pictures. Their rows are not written, so the
	// next run tries them again.
	maxInternal = 8
)

// job is an item on its way to its row.
type job struct {
	seq     int64
	item    source.Item
	key     row.Key
	version uint64
	prior   *sink.Seen // what is known of an older state of the file
	data    []byte
	cost    int64 // of Options.Memory
	tiles   int
	clip    *picture // of a video: what was read of it
	row     Row
	thumb   []byte
	skip    bool   // the row is there already
	done    func() // to be called when the row is durable; nil: nothing
}

// content tells what a picture holds now from what it held in another run.
func (j *job) content() string {
	switch {
	case j.row.SHA256 != "":
		return j.row.SHA256
	case j.version != 0:
		return strconv.FormatUint(j.version, 16)
	}
	return ""
}

type runner struct {
	opts       Options
	promptHash string
	answerer   row.Answerer
	reader     Reader
	source     *source.Source
	out        sink.Output
	listed     map[row.Key]struct{} // by this run; the lister's
	originals  originals            // admission's
	memory     *semaphore.Weighted
	busy       *Busy // nil: the model is elsewhere
	start      time.Time

	total   atomic.Int64 // -1 while counting
	skipped atomic.Int64
	failed  atomic.Int64 // of skipped, error rows

	// Only the collector touches these.
	summary  Summary
	held     []*job // internal failures not written yet
	release  []func()
	unsynced int
	synced   time.Time
}

func newRunner(o Options, inputs *source.Source) *runner {
	r := &runner{opts: o, promptHash: o.Ask.Hash(), source: inputs, listed: map[row.Key]struct{}{},
		memory: semaphore.NewWeighted(o.Memory), busy: o.Busy, start: time.Now()}
	r.reader = Reader{Ask: o.Ask, Tools: o.Tools, PHash: o.PHash, Store: o.Source.Store, Limit: o.MaxBytes, MaxClip: o.MaxClip}
	r.originals = newOriginals(o.Dedupe, o.Distance)
	r.summary.Errors = map[string]int64{}
	if o.Reproducible {
		r.opts.Logprob = false
	}
	return r
}

// answeredBy says who answers.
func (r *runner) answeredBy(answerer row.Answerer) {
	r.answerer, r.start = answerer, time.Now()
	if local, ok := answerer.(*Answerer); ok {
		r.busy = &Busy{}
		local.Busy = r.busy.Add
		local.frames = semaphore.NewWeighted(r.opts.Memory)
		local.memory = r.opts.Memory
	}
}

// run returns when everything it started has ended.
func (r *runner) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	r.total.Store(-1)
	background.Go(func() { r.total.Store(r.source.Count(ctx)) })

	askers := r.opts.Parallel
	listed := make(chan *job)
	prepared := make(chan *job, preparers())
	finished := make(chan *job, askers)
	window := make(chan struct{}, askers*windowPerWorker)
	ready := newShelf()

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(listed)
		return r.list(gctx, listed, window)
	})
	var preparing, finishing sync.WaitGroup
	for range preparers() {
		preparing.Add(1)
		g.Go(func() error {
			defer preparing.Done()
			return r.prepare(gctx, listed, prepared)
		})
	}
	g.Go(func() error {
		preparing.Wait()
		close(prepared)
		return nil
	})
	finishing.Add(1 + askers)
	g.Go(func() error {
		defer finishing.Done()
		defer ready.close()
		return r.admit(gctx, prepared, ready, finished)
	})
	for range askers {
		g.Go(func() error {
			defer finishing.Done()
			return r.ask(gctx, ready, finished)
		})
	}
	g.Go(func() error {
		finishing.Wait()
		close(finished)
		return nil
	})
	g.Go(func() error { return r.collect(gctx, finished, window) })
	err := g.Wait()
	r.summary.Skipped, r.summary.FailedBefore = r.skipped.Load(), r.failed.Load()
	// The reason for the end is the caller's when the caller ended it; what failed because of that is noise.
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// send gives a job on, unless the run ends.
func send(ctx context.Context, to chan<- *job, j *job) error {
	select {
	case to <- j:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// list sends the items that have no row yet.
func (r *runner) list(ctx context.Context, to chan<- *job, window chan<- struct{}) error {
	var seq int64
	for item := range r.source.Items(ctx) {
		j := r.newJob(item)
		if j == nil {
			continue
		}
		if item.Load != nil && item.Err == nil {
			data, err := item.Load()
			if err == nil && len(data) == 0 {
				err = &row.ItemError{Kind: row.KindEmpty, Message: "the picture has no bytes"}
			}
			j.data, j.item.Err, j.item.Load = data, err, nil
		}
		// In the order of the list, so that the oldest picture never waits for memory that newer ones hold.
		j.cost = min(r.cost(j), r.opts.Memory)
		if err := r.memory.Acquire(ctx, j.cost); err != nil {
			return err
		}
		select {
		case window <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		j.seq = seq
		if err := send(ctx, to, j); err != nil {
			return err
		}
		seq++
	}
	return ctx.Err()
}

// newJob is nil for an item that has a row, or was listed before.
func (r *runner) newJob(item source.Item) *job {
	j := &job{item: item, row: Row{ID: item.ID, Path: row.Printable(item.Path), Prompt: r.opts.Prompts[0],
		Model: r.opts.ModelName, ModelHash: r.opts.ModelHash, PromptHash: r.promptHash}}
	j.key = j.row.Key()
	if _, ok := r.listed[j.key]; ok {
		r.skip(false)
		return nil
	}
	r.listed[j.key] = struct{}{}
	j.version = source.Version(&item)
	seen, ok := r.out.Seen(j.key)
	switch {
	case !ok:
	case seen.Version == 0 || j.version == 0 || seen.Version == j.version:
		r.skip(seen.Error) // where the file's version is not known its name decides, and a vanished file keeps its row
		return nil
	default:
		j.prior = &seen
	}
	return j
}

func (r *runner) skip(failed bool) {
	r.skipped.Add(1)
	if failed {
		r.failed.Add(1)
	}
}

// cost is how many bytes a picture is going to take; of an object that is not known.
func (r *runner) cost(j *job) int64 {
	switch {
	case j.data != nil:
		return int64(len(j.data))
	case j.item.Ref != "" && j.item.Size > 0:
		return j.item.Size
	case j.item.Ref != "":
		return 1 << 20
	}
	info, err := os.Stat(j.item.Path)
	switch {
	case err != nil || info.Size() < 1:
		return 1
	case r.opts.Source.Videos && (info.IsDir() || source.IsVideoName(j.item.Path)):
		return r.clipCost(j.item.Path, info)
	case info.Size() > r.opts.MaxBytes:
		return 1
	}
	return info.Size()
}

// clipCost is what a video on this machine takes: nothing much, unless its bytes are wanted.
func (r *runner) clipCost(path string, info os.FileInfo) int64 {
	if !r.reader.KeepBytes {
		return 1
	}
	size := info.Size()
	if info.IsDir() {
		entries, _ := os.ReadDir(path)
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				size += info.Size()
			}
		}
	}
	if size > r.opts.MaxClip {
		return 1
	}
	return size
}

// byReference reports whether a worker may read the picture: nothing here needs its bytes.
func (r *runner) byReference(j *job) bool {
	return r.opts.ByReference && j.item.Ref != "" && j.item.Err == nil && j.prior == nil && r.opts.Dedupe == DedupeNone && !r.out.NeedsData()
}

func (r *runner) prepare(ctx context.Context, from <-chan *job, to chan<- *job) error {
	for j := range from {
		start := time.Now()
		if !r.byReference(j) {
			r.look(ctx, j)
		}
		j.row.MS = milliseconds(time.Since(start))
		if err := send(ctx, to, j); err != nil {
			return err
		}
	}
	return nil
}

// look reads the picture and makes what can be made of it without the model.
func (r *runner) look(ctx context.Context, j *job) {
	p := r.reader.read(ctx, &j.item, j.data, &j.row, r.opts.Thumbnail != nil)
	if j.prior != nil && !j.prior.Error {
		content := j.row.ContentKey()
		if j.skip = j.row.SHA256 != "" && [8]byte(content[:8]) == j.prior.Content; j.skip {
			return
		}
	}
	j.data = nil
	if p == nil {
		return
	}
	j.data, j.tiles = p.data, p.look.Tiles
	if p.clip {
		j.clip = &picture{file: p.file, version: p.version}
	}
	if p.pixels != nil {
		j.thumb = r.opts.Thumbnail(j.key, p.pixels)
	}
}

// admit goes through the pictures in the order of the list and finds duplicates.
func (r *runner) admit(ctx context.Context, from <-chan *job, ready *shelf, finished chan<- *job) error {
	waiting := map[int64]*job{}
	var next int64
	for j := range from {
		waiting[j.seq] = j
		for {
			j, ok := waiting[next]
			if !ok {
				break
			}
			delete(waiting, next)
			next++
			if !j.skip {
				r.originals.judge(&j.row)
			}
			if j.skip || j.row.Error != nil || j.row.DuplicateOf != "" {
				if err := send(ctx, finished, j); err != nil {
					return err
				}
				continue
			}
			ready.put(j)
		}
	}
	return ctx.Err()
}

// ask puts pictures to the model. An error ends the run: the context's, or that of an engine that is gone.
func (r *runner) ask(ctx context.Context, ready *shelf, finished chan<- *job) error {
	for {
		j, ok := ready.take(ctx)
		if !ok {
			return ctx.Err()
		}
		task := row.Task{Key: j.key, Content: j.content(), ID: j.row.ID, Source: j.item.Path, Data: j.data, Tiles: j.tiles, Ref: j.item.Ref}
		if j.data != nil {
			task.Ref = ""
		}
		if j.clip != nil {
			task.Clip, task.File, task.Version = true, j.clip.file, j.clip.version
			if task.File != "" && task.Data == nil {
				task.Copy = copyOf(task.File, task.Version)
			}
		}
		answer, done, err := r.answerer.Answer(ctx, task)
		if err != nil {
			return err
		}
		j.done = done
		r.fill(&j.row, answer)
		if err := send(ctx, finished, j); err != nil {
			return err
		}
	}
}

// idle is the share of the time so far in which the model had nothing to do, -1 where it is elsewhere.
func (r *runner) idle(now time.Time) float64 {
	if r.busy == nil {
		return -1
	}
	return r.busy.idle(r.start, now)
}

// fill takes an answer into its row.
func (r *runner) fill(to *Row, a *row.Answer) {
	to.MS = math.Round(10*(to.MS+a.MS)) / 10
	if a.Read != nil {
		to.SHA256, to.Width, to.Height = a.Read.SHA256, a.Read.Width, a.Read.Height
		if r.opts.PHash {
			to.PHash = a.Read.PHash
		}
	}
	if a.Clip != nil {
		to.Clip, to.Width, to.Height = a.Clip, a.Width, a.Height
	}
	if to.Error = a.Error; a.Error != nil || len(a.Captions) == 0 {
		return
	}
	to.Caption, to.Boxes = a.Captions[0].Caption, a.Captions[0].Boxes
	var logprob float64
	for i := range a.Captions {
		if a.Captions[i].Logprob != nil && r.opts.Logprob {
			logprob += *a.Captions[i].Logprob
			to.Logprob = &logprob
		} else {
			a.Captions[i].Logprob = nil
		}
		to.Tokens += a.Captions[i].Tokens
	}
	if len(a.Captions) > 1 {
		to.Captions = a.Captions
	}
	to.Embedding, to.ITM = a.Embedding, a.ITM
}

// errInternal wraps what ends a run of pictures that fail inside the model.
var errInternal = errors.New("pictures in a row failed inside the model")

func internalError(n int, last *Row) error {
	return fmt.Errorf("%d %w, last %s: %s", n, errInternal, last.Path, last.Error.Message)
}
