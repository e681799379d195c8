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

// republishAfter is how long a result may take until its task is published again. It is for a server that lost messages
// with its machine; a task that merely waits is then done twice, and has one row all the same.
const republishAfter = 30 * time.Minute

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
	msg    jetstream.Msg
	lost   bool // it is to be stored again
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
	if c.objects, err = l.js.ObjectStore(ctx, objectBucket); err != nil {
		l.close()
		return nil, fmt.Errorf("open the queue's pictures: %w", err)
	}
	if err := c.openResults(ctx); err != nil {
		l.close()
		return nil, err
	}
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
		return fmt.Errorf("take up the results: %w", err)
	}
	c.results, err = c.js.CreateOrUpdateConsumer(ctx, ResultStream, jetstream.ConsumerConfig{
		Durable: name, FilterSubject: resultSubject + "." + subjectSafe(c.job.ID), AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: c.o.AckWait, MaxAckPending: 1 << 16, // a result that got lost on the way comes again; one that waits for its row comes twice
	})
	if err != nil {
		return fmt.Errorf("take up the results: %w", err)
	}
	return nil
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
	a := arrived{r.Answer, msg, r.Lost}
	if to, ok := c.waiting[r.Key]; ok {
		select {
		case to <- a:
			return
		default: // it came before; this one is a redelivery
		}
	}
	c.early[r.Key] = a
}

// Answer publishes the task and waits for its result.
func (c *Client) Answer(ctx context.Context, task row.Task) (*row.Answer, func(), error) {
	key := keyText(task.Key)
	to := make(chan arrived, 1)
	c.mu.Lock()
	if a, ok := c.early[key]; ok {
		delete(c.early, key)
		to <- a
	}
	known := len(to) > 0
	c.waiting[key] = to
	c.mu.Unlock()
	object := subjectSafe(c.job.ID) + "-" + key
	for attempt, lost := 0, 0; ; attempt++ {
		if !known {
			err := c.send(ctx, task, key, object, attempt)
			if problem := (*row.ItemError)(nil); errors.As(err, &problem) {
				return &row.Answer{Error: problem}, func() { c.drop(key) }, nil
			}
			if err != nil {
				return nil, nil, err
			}
		}
		timer := time.NewTimer(republishAfter)
		select {
		case a := <-to:
			timer.Stop()
			if lost++; a.lost && lost <= maxLost {
				_ = a.msg.Ack()
				known = false
				continue
			}
			c.answered.Add(1)
			return a.answer, func() { c.release(key, object, task.Ref == "" && (len(task.Data) > inline || task.Copy != nil), a.msg) }, nil
		case <-timer.C:
			c.o.Logger.Warn("queue: no result, publishing again", "id", task.ID)
		case <-ctx.Done():
			timer.Stop()
			return nil, nil, ctx.Err()
		}
	}
}

// send stores the picture and then its task.
func (c *Client) send(ctx context.Context, task row.Task, key, object string, attempt int) error {
	m := message{Job: c.job.ID, Key: key, ID: task.ID, Source: task.Source, Ref: task.Ref, Tiles: task.Tiles, Clip: task.Clip, Ask: c.job.Ask}
	switch {
	case task.Ref != "":
	case len(task.Data) <= inline && task.Copy == nil:
		m.Data = task.Data
	default:
		m.Object = object
		err := c.againFor(ctx, "store the picture "+task.ID, objectPatience, func(ctx context.Context) error { return c.store(ctx, object, task) })
		if err != nil {
			return err
		}
	}
	id := c.job.ID + "." + key
	if attempt > 0 {
		id = fmt.Sprintf("%s.%d", id, attempt)
	}
	subject := workSubject + "." + subjectSafe(c.job.ModelHash) + "." + subjectSafe(c.job.ID)
	if err := c.publish(ctx, subject, id, m); err != nil {
		return err
	}
	c.published.Add(1)
	return nil
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
func (c *Client) release(key, object string, stored bool, msg jetstream.Msg) {
	if err := msg.Ack(); err != nil {
		c.o.Logger.Debug("queue: acknowledge", "key", key, "error", err)
	}
	c.mu.Lock()
	delete(c.waiting, key)
	if a, ok := c.early[key]; ok { // a redelivery
		_ = a.msg.Ack()
		delete(c.early, key)
	}
	c.mu.Unlock()
	if !stored {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.objects.Delete(ctx, object); err != nil {
		c.o.Logger.Debug("queue: remove picture", "object", object, "error", err)
	}
}

// Finish says that every row is there: what is left on the server of this job is removed.
func (c *Client) Finish(ctx context.Context) error {
	c.state.Store("done")
	return forget(ctx, c.link, c.job.ID)
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
		for name, subject := range map[string]string{WorkStream: workSubject + ".*." + word, ResultStream: resultSubject + "." + word} {
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
