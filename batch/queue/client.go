// The coordinator's side: tasks out, results in.

package queue

import (
	"bytes"
	"context"
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

// A coordinator that has waited for an answer this many acknowledgement waits looks whether it may still come; then after
// twice as long, and so on up to the longest: a task may well wait its turn for hours.
const (
	lookAfter   = 3
	longestLook = 30 * time.Minute
)

// Job says what a coordinator's run is about.
type Job struct {
	ID        string          `json:"job"` // the same in every run that continues the same work, and in no other
	Model     string          `json:"model"`
	ModelHash string          `json:"model_hash"` // workers with this model take the tasks
	Out       string          `json:"out"`
	Ask       json.RawMessage `json:"ask"`
}

// JobState is what is known of a job, for people.
type JobState struct {
	Job
	Host      string    `json:"host"`
	PID       int       `json:"pid"`
	Published int64     `json:"published"`
	Answered  int64     `json:"answered"`
	State     string    `json:"state"` // "running", "done", "stopped"
	Started   time.Time `json:"started"`
	Updated   time.Time `json:"updated"`
}

// Client is a row.Answerer whose model is elsewhere.
type Client struct {
	*link
	job     Job
	started time.Time
	objects jetstream.ObjectStore
	results jetstream.Consumer
	// The streams, to look into.
	workStream, resultStream jetstream.Stream

	mu      sync.Mutex
	waiting map[string]chan arrived
	early   map[string]arrived // results whose task was not asked for yet: an earlier run published it

	published, answered atomic.Int64
	state               atomic.Value // string
	stop                context.CancelFunc
	running             sync.WaitGroup
}

// arrived is a result that is not acknowledged yet.
type arrived struct {
	answer *row.Answer
	ack    func() error // the server may forget it
	lost   bool         // it is to be stored again
}

// maxLost is how often a picture is stored again before its loss is its row.
const maxLost = 3

// NewClient connects and takes up what results an earlier run left.
func NewClient(ctx context.Context, o Options, job Job) (*Client, error) {
	l, err := connect(ctx, o, "glimpse coordinator "+job.ID)
	if err != nil {
		return nil, err
	}
	c := &Client{link: l, job: job, started: time.Now(), waiting: map[string]chan arrived{}, early: map[string]arrived{}}
	c.state.Store("running")
	for _, step := range []struct {
		what string
		open func(ctx context.Context) error
	}{
		{"open the queue's pictures", func(ctx context.Context) (err error) {
			c.objects, err = l.js.ObjectStore(ctx, objectBucket)
			return err
		}},
		{"open the queue's tasks", func(ctx context.Context) (err error) { c.workStream, err = l.js.Stream(ctx, WorkStream); return err }},
		{"open the queue's results", func(ctx context.Context) (err error) {
			c.resultStream, err = l.js.Stream(ctx, ResultStream)
			return err
		}},
		{"take up the results", c.openResults},
	} {
		if err := l.setUp(ctx, step.what, nil, step.open); err != nil {
			l.close()
			return nil, err
		}
	}
	c.takeUp(ctx)
	ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	c.running.Go(func() { c.drain(ctx) })
	c.running.Go(func() { c.announce(ctx, jobBucket, subjectSafe(job.ID), c.jobState) })
	return c, nil
}

func (c *Client) jobState() any {
	host, _ := os.Hostname()
	return JobState{Job: c.job, Host: host, PID: os.Getpid(), Published: c.published.Load(), Answered: c.answered.Load(),
		State: c.state.Load().(string), Started: c.started, Updated: time.Now()}
}

// openResults makes the consumer anew, which brings what another coordinator had taken and not acknowledged.
func (c *Client) openResults(ctx context.Context) (err error) {
	name := "coordinator-" + subjectSafe(c.job.ID)
	if err := c.js.DeleteConsumer(ctx, ResultStream, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return err
	}
	c.results, err = c.js.CreateOrUpdateConsumer(ctx, ResultStream, jetstream.ConsumerConfig{
		Durable: name, FilterSubject: resultSubject + "." + subjectSafe(c.job.ID) + ".>", AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: c.o.AckWait, MaxAckPending: 1 << 16, // a result that got lost on the way comes again; one that waits for its row comes twice
	})
	return err
}

// takeUp waits a little for the results that are there already, so that their tasks are not published again.
func (c *Client) takeUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for left := int(c.results.CachedInfo().NumPending); left > 0 && ctx.Err() == nil; {
		err := fetch(ctx, c.results, min(left, 256), time.Second, func(msg jetstream.Msg) error { c.arrive(msg); left--; return nil })
		c.pause(ctx, "take up the results", err)
	}
}

// drain takes results until the client closes.
func (c *Client) drain(ctx context.Context) {
	for ctx.Err() == nil {
		c.pause(ctx, "fetch results", fetch(ctx, c.results, 256, 2*time.Second, func(msg jetstream.Msg) error { c.arrive(msg); return nil }))
	}
}

func (c *Client) arrive(msg jetstream.Msg) {
	var r result
	if err := json.Unmarshal(msg.Data(), &r); err != nil || r.Answer == nil {
		c.o.Logger.Error("queue: a result that is none", "error", err)
		_ = msg.Term()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a := arrived{r.Answer, msg.Ack, r.Lost}
	if to, ok := c.waiting[r.Key]; ok {
		select {
		case to <- a:
			return
		default: // it came before; this one is a redelivery
		}
	} else if r.Lost { // who has the picture publishes it when it is asked for, or has its row
		_ = msg.Ack()
		return
	}
	c.early[r.Key] = a
}

// Answer publishes the task and waits for its result.
func (c *Client) Answer(ctx context.Context, task row.Task) (*row.Answer, func(), error) {
	key := keyText(task)
	to := make(chan arrived, 1)
	c.mu.Lock()
	if a, ok := c.early[key]; ok {
		delete(c.early, key)
		to <- a
	}
	known := len(to) > 0
	c.waiting[key] = to
	c.mu.Unlock()
	c.o.Handover.put(c.job.ID, key, task)
	defer c.o.Handover.drop(c.job.ID, key)
	for attempt, lost := 0, 0; ; attempt++ {
		if !known {
			err := c.send(ctx, task, key, attempt, to)
			if problem := (*row.ItemError)(nil); errors.As(err, &problem) {
				return &row.Answer{Error: problem}, func() { c.drop(key) }, nil
			}
			if errors.Is(err, errMissing) {
				continue
			}
			if err != nil {
				return nil, nil, err
			}
		}
		a, err := c.await(ctx, task, key, to)
		if errors.Is(err, errMissing) {
			c.o.Logger.Warn("queue: neither the task nor its result is on the server, publishing again", "id", task.ID)
			known = false
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if lost++; a.lost && lost <= maxLost {
			_ = a.ack()
			known = false
			continue
		}
		c.answered.Add(1)
		return a.answer, func() { c.release(task, key, a.ack) }, nil
	}
}

// await waits for the result of a task that was published, and now and then looks whether it may still come.
func (c *Client) await(ctx context.Context, task row.Task, key string, to <-chan arrived) (arrived, error) {
	look := lookAfter * c.o.AckWait
	timer := time.NewTimer(look)
	defer timer.Stop()
	for {
		select {
		case a := <-to:
			return a, nil
		case <-ctx.Done():
			return arrived{}, ctx.Err()
		case <-timer.C:
		}
		a, err := c.look(ctx, key)
		switch {
		case errors.Is(err, errMissing):
			return arrived{}, err
		case err != nil: // the server is away; what it has is seen when it is back
			c.o.Logger.Debug("queue: look for a task", "id", task.ID, "error", err)
		case a != nil:
			return *a, nil
		}
		look = max(look, min(2*look, longestLook))
		timer.Reset(look)
	}
}

// errMissing is a task that is not on the server any more, and neither is its result.
var errMissing = errors.New("the task is not on the queue")

// look says what has become of a task: nil while it is on the server, its result where that is there and was not delivered,
// errMissing where nothing will come. The order matters: a worker stores the result before it lets the task go.
func (c *Client) look(ctx context.Context, key string) (*arrived, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := c.workStream.GetLastMsgForSubject(ctx, taskSubject(c.job.ModelHash, c.job.ID, key))
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, err
	}
	raw, err := c.resultStream.GetLastMsgForSubject(ctx, answerSubject(c.job.ID, key))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, errMissing
	}
	if err != nil {
		return nil, err
	}
	var r result
	if err := json.Unmarshal(raw.Data, &r); err != nil || r.Answer == nil {
		return nil, errMissing
	}
	return &arrived{r.Answer, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return c.resultStream.DeleteMsg(ctx, raw.Sequence)
	}, r.Lost}, nil
}

// send stores the picture and then its task. errMissing: the server knows the message, but neither it nor its result is there.
func (c *Client) send(ctx context.Context, task row.Task, key string, attempt int, to chan arrived) error {
	m := message{Job: c.job.ID, Key: key, Again: attempt, ID: task.ID, Source: task.Source, Ref: task.Ref, Tiles: task.Tiles, Clip: task.Clip, Ask: c.job.Ask}
	switch {
	case task.Ref != "" || c.o.Private:
	case len(task.Data) <= inline && task.Copy == nil:
		m.Data = task.Data
	default:
		m.Object = c.object(key)
		err := c.againFor(ctx, "store the picture "+task.ID, objectPatience, func(ctx context.Context) error { return c.store(ctx, m.Object, task) })
		if err != nil {
			return err
		}
	}
	known, err := c.publish(ctx, taskSubject(c.job.ModelHash, c.job.ID, key), messageID(m), m)
	if err != nil {
		return err
	}
	c.published.Add(1)
	if !known {
		return nil
	}
	// An earlier run, or an attempt whose reply got lost, published it. What has become of it since?
	a, err := c.look(ctx, key)
	if errors.Is(err, errMissing) {
		return err
	}
	if a != nil {
		select {
		case to <- *a:
		default: // it was delivered meanwhile
		}
	}
	return nil
}

// messageID is that of a task; its result's and dead letter's have a word before it.
func messageID(m message) string {
	id := m.Job + "." + m.Key
	if m.Again > 0 {
		id = fmt.Sprintf("%s.%d", id, m.Again)
	}
	return id
}

// object names a task's picture in the bucket.
func (c *Client) object(key string) string { return subjectSafe(c.job.ID) + "-" + key }

// stored reports whether a task's picture lies in the bucket.
func (c *Client) stored(t row.Task) bool {
	return !c.o.Private && t.Ref == "" && (len(t.Data) > inline || t.Copy != nil)
}

// store puts a picture's or video's bytes into the bucket.
func (c *Client) store(ctx context.Context, object string, task row.Task) error {
	if task.Copy == nil {
		_, err := c.objects.Put(ctx, jetstream.ObjectMeta{Name: object}, bytes.NewReader(task.Data))
		return err
	}
	out, in := io.Pipe()
	failed := make(chan error, 1)
	go func() {
		err := task.Copy(in)
		in.CloseWithError(err) // nil: the end
		failed <- err
	}()
	_, err := c.objects.Put(ctx, jetstream.ObjectMeta{Name: object}, out)
	out.CloseWithError(err)
	// Why the file could not be read says more than that its copy came to no end.
	if reading := <-failed; errors.As(reading, new(*row.ItemError)) {
		return reading
	}
	return err
}

// drop forgets a task that was not published.
func (c *Client) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, key)
}

// release lets the server forget what belongs to a row that is durable. What fails here is tidied up by Finish.
func (c *Client) release(task row.Task, key string, ack func() error) {
	if err := ack(); err != nil {
		c.o.Logger.Debug("queue: acknowledge", "key", key, "error", err)
	}
	c.mu.Lock()
	delete(c.waiting, key)
	if a, ok := c.early[key]; ok { // a redelivery
		_ = a.ack()
		delete(c.early, key)
	}
	c.mu.Unlock()
	if !c.stored(task) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.objects.Delete(ctx, c.object(key)); err != nil {
		c.o.Logger.Debug("queue: remove picture", "key", key, "error", err)
	}
}

// Finish says that every row is there: what is left on the server of this job is removed.
func (c *Client) Finish(ctx context.Context) error {
	c.state.Store("done")
	return forget(ctx, c.link, c.job.ID)
}

// Discard says that every row is there, and removes all streams of a server that only this process uses. A server without
// consumers stops at once.
func (c *Client) Discard(ctx context.Context) error {
	c.state.Store("done")
	for _, name := range []string{WorkStream, ResultStream} {
		if err := c.js.DeleteStream(ctx, name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("clear the queue: %w", err)
		}
	}
	return nil
}

// Kept counts the results that wait for a row which the next run may write.
func (c *Client) Kept(ctx context.Context) (int, error) {
	info, err := c.resultStream.Info(ctx, jetstream.WithSubjectFilter(resultSubject+"."+subjectSafe(c.job.ID)+".>"))
	if err != nil {
		return 0, fmt.Errorf("count the results: %w", err)
	}
	return len(info.State.Subjects), nil
}

// Close ends the connection. Without Finish the next run takes up what is there.
func (c *Client) Close() {
	c.state.CompareAndSwap("running", "stopped")
	c.stop()
	c.running.Wait()
	c.close()
}

// forget removes a job's tasks, results and pictures.
func forget(ctx context.Context, l *link, job string) error {
	word := subjectSafe(job)
	return l.again(ctx, "tidy up the queue", func(ctx context.Context) error {
		for name, subject := range map[string]string{WorkStream: workSubject + ".*." + word + ".>", ResultStream: resultSubject + "." + word + ".>"} {
			stream, err := l.js.Stream(ctx, name)
			if err != nil {
				return err
			}
			if err := stream.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
				return err
			}
		}
		if err := l.js.DeleteConsumer(ctx, ResultStream, "coordinator-"+word); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return err
		}
		objects, err := l.js.ObjectStore(ctx, objectBucket)
		if err != nil {
			return err
		}
		list, err := objects.List(ctx)
		if err != nil && !errors.Is(err, jetstream.ErrNoObjectsFound) {
			return err
		}
		for _, o := range list {
			if bytes.HasPrefix([]byte(o.Name), []byte(word+"-")) {
				if err := objects.Delete(ctx, o.Name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
					return err
				}
			}
		}
		return nil
	})
}
