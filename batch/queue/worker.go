// The worker's side: tasks in, results out.

package queue

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"glimpse/batch/row"

	"github.com/nats-io/nats.go/jetstream"
)

// Worker says what a worker can do.
type Worker struct {
	Name      string // "": host and process
	Model     string
	ModelHash string // takes tasks for this model
	Parallel  int    // tasks at once; at least 1
	// Handle answers a task as it was asked. An error means that this worker cannot go on: the task goes back, and the worker
	// ends.
	Handle func(ctx context.Context, ask json.RawMessage, task row.Task) (*row.Answer, error)
	// Answered, where set, is called after each answer.
	Answered func(*row.Answer)
}

// WorkerState is what a worker says of itself.
type WorkerState struct {
	Name      string    `json:"name"`
	Model     string    `json:"model"`
	ModelHash string    `json:"model_hash"`
	Answered  int64     `json:"answered"`
	InFlight  int64     `json:"in_flight"`
	Started   time.Time `json:"started"`
	Updated   time.Time `json:"updated"`
}

type worker struct {
	*link
	w        Worker
	tasks    jetstream.Consumer
	stream   jetstream.Stream // that of tasks
	objects  jetstream.ObjectStore
	answered atomic.Int64
	inFlight atomic.Int64
	started  time.Time
}

// Work takes tasks until ctx is done; then it gives back what it holds and returns nil.
func Work(ctx context.Context, o Options, w Worker) error {
	if w.Name == "" {
		host, _ := os.Hostname()
		w.Name = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	l, err := connect(ctx, o, "glimpse worker "+w.Name)
	if err != nil {
		return err
	}
	defer l.close()
	k := &worker{link: l, w: w, started: time.Now()}
	if err := l.setUp(ctx, "take tasks", nil, k.open); err != nil {
		return err
	}
	if info := k.tasks.CachedInfo(); info != nil && info.Config.AckWait > 0 {
		k.o.AckWait = info.Config.AckWait
	}
	return k.run(ctx)
}

func (k *worker) open(ctx context.Context) (err error) {
	if k.objects, err = k.js.ObjectStore(ctx, objectBucket); err != nil {
		return fmt.Errorf("open the queue's pictures: %w", err)
	}
	if k.stream, err = k.js.Stream(ctx, WorkStream); err != nil {
		return err
	}
	// Workers of one model share one consumer. Its settings are those of the worker that came first.
	name := "workers-" + subjectSafe(k.w.ModelHash)
	k.tasks, err = k.js.CreateConsumer(ctx, WorkStream, jetstream.ConsumerConfig{
		Durable: name, FilterSubject: workSubject + "." + subjectSafe(k.w.ModelHash) + ".>",
		AckPolicy: jetstream.AckExplicitPolicy, AckWait: k.o.AckWait, MaxDeliver: -1, MaxAckPending: 1 << 16, MaxWaiting: 1 << 14,
	})
	if errors.Is(err, jetstream.ErrConsumerExists) {
		k.tasks, err = k.js.Consumer(ctx, WorkStream, name)
	}
	return err
}

func (k *worker) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	all.Go(func() { k.announce(ctx, workerBucket, subjectSafe(k.w.Name), k.stateNow) })
	for range max(1, k.w.Parallel) {
		all.Go(func() {
			if err := k.take(ctx); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	cause := context.Cause(ctx)
	all.Wait()
	if errors.Is(cause, context.Canceled) || ctx.Err() != nil && !errors.As(cause, new(*handlerError)) {
		return nil
	}
	return cause
}

// handlerError ends a worker.
type handlerError struct{ err error }

func (h *handlerError) Error() string { return h.err.Error() }
func (h *handlerError) Unwrap() error { return h.err }

func (k *worker) stateNow() any {
	return WorkerState{Name: k.w.Name, Model: k.w.Model, ModelHash: k.w.ModelHash, Answered: k.answered.Load(), InFlight: k.inFlight.Load(),
		Started: k.started, Updated: time.Now()}
}

// take works off one task after another. It asks for one at a time: what a worker holds ready when it dies has to wait.
func (k *worker) take(ctx context.Context) error {
	for ctx.Err() == nil {
		err := fetch(ctx, k.tasks, 1, 2*time.Second, func(msg jetstream.Msg) error { return k.one(ctx, msg) })
		if handler := (*handlerError)(nil); errors.As(err, &handler) {
			return err
		}
		k.pause(ctx, "fetch tasks", err)
	}
	return nil
}

// one answers a task. While it works it says so to the server, so that nobody else gets the task.
func (k *worker) one(ctx context.Context, msg jetstream.Msg) error {
	k.inFlight.Add(1)
	defer k.inFlight.Add(-1)
	stopped := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		tick := time.NewTicker(k.o.AckWait / 3)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = msg.InProgress()
			case <-stopped:
				return
			}
		}
	})
	defer beating.Wait()
	defer close(stopped)

	var m message
	if err := json.Unmarshal(msg.Data(), &m); err != nil {
		k.o.Logger.Error("queue: a task that is none", "error", err)
		return k.acknowledge(ctx, msg.Term)
	}
	deliveries := uint64(1)
	if meta, err := msg.Metadata(); err == nil {
		deliveries = meta.NumDelivered
	}
	last := deliveries >= uint64(k.o.Deliveries) || k.o.Private
	if deliveries > uint64(k.o.Deliveries) && !k.o.Private { // those before this one never came back; here it was the process that slept
		problem := &row.ItemError{Kind: row.KindDead, Message: fmt.Sprintf("%d workers took it and did not come back", deliveries-1)}
		return k.finish(ctx, msg, m, &row.Answer{Error: problem}, deliveries)
	}
	task, err := k.task(ctx, m)
	if errors.Is(err, errMissing) {
		return k.acknowledge(ctx, msg.Ack) // nobody waits for it
	}
	var answer *row.Answer
	switch {
	case err == nil:
		answer, err = k.w.Handle(ctx, m.Ask, task)
	case ctx.Err() == nil: // what lies on the server is broken, as after the loss of a node
		return k.lost(ctx, msg, m, err)
	}
	if err != nil {
		_ = msg.Nak()
		if ctx.Err() != nil {
			return nil
		}
		return &handlerError{fmt.Errorf("answer %s: %w", m.ID, err)}
	}
	if answer.Error != nil && answer.Error.Kind == row.KindInternal && !last {
		k.o.Logger.Error("picture failed", "id", m.ID, "error", answer.Error.Message)
		return k.acknowledge(ctx, func() error { return msg.NakWithDelay(time.Second) }) // perhaps it is this machine
	}
	if answer.Error == nil || answer.Error.Kind != row.KindInternal || k.o.Private {
		deliveries = 0
	}
	return k.finish(ctx, msg, m, answer, deliveries)
}

// missingFor is how long a picture that is not in the bucket is looked for: a copy on another node may be behind.
const missingFor = 3 * time.Second

// task is a message with its picture. errMissing: it is of a coordinator that was in this process, and is not.
func (k *worker) task(ctx context.Context, m message) (task row.Task, err error) {
	if task, ok := k.o.Handover.get(m.Job, m.Key); ok {
		return task, nil
	}
	if k.o.Private {
		return task, errMissing
	}
	task = row.Task{ID: m.ID, Source: m.Source, Tiles: m.Tiles, Ref: m.Ref, Data: m.Data, Clip: m.Clip}
	if raw, err := hex.DecodeString(m.Key); err == nil && len(raw) == len(task.Key) {
		task.Key = row.Key(raw)
	}
	if m.Object == "" {
		return task, nil
	}
	within := k.o.fetchWithin
	if m.Clip {
		within *= 10
	}
	fetching, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var missing time.Time // since when
	err = k.againFor(fetching, "fetch the picture "+m.ID, objectPatience, func(ctx context.Context) error {
		task.Data, err = k.object(ctx, m.Object)
		if !errors.Is(err, jetstream.ErrObjectNotFound) {
			return err
		}
		if missing.IsZero() {
			missing = time.Now()
		}
		if time.Since(missing) > missingFor {
			cancel() // it is not there, or any more: then its row is, which only the coordinator knows
		}
		return err
	})
	return task, err
}

func (k *worker) object(ctx context.Context, name string) ([]byte, error) {
	in, err := k.objects.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return io.ReadAll(in)
}

// lost asks whoever has the picture to store it again.
func (k *worker) lost(ctx context.Context, msg jetstream.Msg, m message, err error) error {
	meta, merr := msg.Metadata()
	if merr == nil {
		if _, gone := k.stream.GetMsg(ctx, meta.Sequence.Stream); errors.Is(gone, jetstream.ErrMsgNotFound) {
			return nil // another worker answered it, or its job is done: that is why the picture is not there
		}
	}
	k.o.Logger.Warn("queue: a picture cannot be fetched", "id", m.ID, "error", err)
	problem := &row.ItemError{Kind: row.KindInternal, Message: "the picture cannot be fetched from the queue: " + err.Error()}
	id := "lost." + m.Job + "." + m.Key // and which delivery of which message it was, since there may be several
	if merr == nil {
		id += fmt.Sprintf(".%d.%d", meta.Sequence.Stream, meta.NumDelivered)
	}
	r := result{Key: m.Key, Worker: k.w.Name, Answer: &row.Answer{Error: problem}, Lost: true}
	if _, err := k.publish(ctx, answerSubject(m.Job, m.Key), id, r); err != nil {
		return &handlerError{err}
	}
	return k.acknowledge(ctx, msg.Ack)
}

// finish stores the result and then lets the task go. With deliveries it is a dead letter as well.
func (k *worker) finish(ctx context.Context, msg jetstream.Msg, m message, answer *row.Answer, deliveries uint64) error {
	// A worker that is told to stop still stores what it has: the work is done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	if deliveries > 0 {
		letter := dead{Task: m, Deliveries: deliveries, Worker: k.w.Name, Error: answer.Error}
		if _, err := k.publish(ctx, deadSubject+"."+subjectSafe(m.Job), "dead."+messageID(m), letter); err != nil {
			return &handlerError{err}
		}
	}
	r := result{Key: m.Key, Worker: k.w.Name, Answer: answer}
	if _, err := k.publish(ctx, answerSubject(m.Job, m.Key), "result."+messageID(m), r); err != nil {
		return &handlerError{err}
	}
	k.answered.Add(1)
	if k.w.Answered != nil {
		k.w.Answered(answer)
	}
	return k.acknowledge(ctx, msg.Ack)
}

// acknowledge ends a delivery. An acknowledgement that is lost brings the task again, whose result is there already.
func (k *worker) acknowledge(_ context.Context, f func() error) error {
	if err := f(); err != nil {
		k.o.Logger.Debug("queue: acknowledge", "error", err)
	}
	return nil
}
