// Package queue puts pictures to models on other machines, over NATS JetStream.
//
//	coordinator ──▶ GLIMPSE_WORK ──▶ workers ──▶ GLIMPSE_RESULTS ──▶ coordinator ──▶ sink
//	      └─ pictures: an object store's, or JetStream's own ─┘
//
// A coordinator (Client) is an Answerer: the batch's pipeline does not know that its model is elsewhere. Whatever dies, a
// picture's row is made exactly once:
//   - A task leaves GLIMPSE_WORK when a worker has stored its result; a worker that dies leaves it there, and it is delivered
//     again when its acknowledgement is overdue. Workers that work say so.
//   - A result leaves GLIMPSE_RESULTS when its row is durable; a coordinator that dies finds it there when it comes back.
//   - Tasks and results carry the row's key as message id, so that publishing again after a lost reply adds nothing, and a
//     second result of the same task, which redelivery may bring, meets a row that is there.
//   - A coordinator that waits long looks for its task and its result on the server, and publishes the task again, with
//     another message id, where neither is there: a node that was lost may have taken them along.
//
// In a run on one machine coordinator, server and worker are one process. Then pictures pass by the server (Handover).
//
// docs/batch.md writes subjects and messages down; docs/scale.md says how large it gets.
package queue

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"glimpse/batch/row"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Names on the server.
const (
	WorkStream    = "GLIMPSE_WORK"
	ResultStream  = "GLIMPSE_RESULTS"
	DeadStream    = "GLIMPSE_DEAD"
	workSubject   = "glimpse.work"
	resultSubject = "glimpse.results"
	deadSubject   = "glimpse.dead"
	objectBucket  = "glimpse-pictures"
	jobBucket     = "glimpse-jobs"
	workerBucket  = "glimpse-workers"
)

// Defaults of Options.
const (
	DefaultAckWait    = 30 * time.Second
	DefaultDeliveries = 5
	dedupeWindow      = 10 * time.Minute
	workerLifetime    = 20 * time.Second // how long a worker that says nothing is listed
	beat              = 5 * time.Second
	// leftFor is how long a server keeps what nobody comes for any more. Who comes later does the work again.
	leftFor = 30 * 24 * time.Hour
	// inline is how large a picture may be to travel in its task: well below the megabyte that servers take by default.
	inline = 256 << 10
)

// Options say how a queue is reached. Zero values are the defaults.
type Options struct {
	URL         string        // nats://host:port, several with commas between; or
	InProcess   *Server       // a server in this process; or
	Socket      string        // the Unix socket of one in another (Server.ServeSocket)
	Token       string        // "": none
	Credentials string        // a file, for servers with accounts; "": none
	Replicas    int           // of streams that are made; 0: 1. A cluster of three takes 3.
	AckWait     time.Duration // after which a task whose worker says nothing is given to another; 0: DefaultAckWait
	Deliveries  int           // of a task, after which it is a dead letter; 0: DefaultDeliveries
	Logger      *slog.Logger  // nil: nothing is logged

	// Handover, where set, is that of the coordinator or worker in the same process.
	Handover *Handover
	// Private: the server is InProcess, and nobody else takes tasks. Then pictures go through Handover alone, a task that is not
	// there has no owner, and what fails is not tried again on the same machine.
	Private bool
	// Volatile: what is put on a queue that is made is not stored. Of a Private one only results are in any case.
	Volatile bool

	fetchWithin time.Duration // in which a worker gets at a picture, or gives it back; a video may take ten times that. 0: 5 minutes
}

func (o Options) withDefaults() Options {
	if o.AckWait <= 0 {
		o.AckWait = DefaultAckWait
	}
	if o.Deliveries <= 0 {
		o.Deliveries = DefaultDeliveries
	}
	if o.Replicas <= 0 {
		o.Replicas = 1
	}
	if o.fetchWithin <= 0 {
		o.fetchWithin = 5 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// message is a task on the wire.
type message struct {
	Job    string          `json:"job"`
	Key    string          `json:"key"`             // of the row and its picture's content, 32 hex digits
	Again  int             `json:"again,omitempty"` // how often it was published before
	ID     string          `json:"id"`
	Source string          `json:"source"`
	Data   []byte          `json:"data,omitempty"`   // a small picture travels along; or
	Object string          `json:"object,omitempty"` // lies in the bucket of pictures; or
	Ref    string          `json:"ref,omitempty"`    // the address of an object in an object store
	Tiles  int             `json:"tiles,omitempty"`
	Clip   bool            `json:"clip,omitempty"` // it is a video, or a tar file of its frames
	Ask    json.RawMessage `json:"ask"`            // what is asked of the model; the coordinator's and the worker's business
}

// result is an answer on the wire.
type result struct {
	Key    string      `json:"key"`
	Worker string      `json:"worker"`
	Answer *row.Answer `json:"answer"`
	Lost   bool        `json:"lost,omitempty"` // the picture's bytes are not to be had: whoever has them stores them again
}

// dead is a task that no worker could answer.
type dead struct {
	Task       message        `json:"task"`
	Deliveries uint64         `json:"deliveries"`
	Worker     string         `json:"worker"` // the one that gave it up
	Error      *row.ItemError `json:"error"`
}

// keyText tells a task from all others of its job: another content of the same name is another task.
func keyText(t row.Task) string {
	k := t.Key
	if t.Content != "" {
		k = row.KeyOf(string(k[:]), t.Content)
	}
	return hex.EncodeToString(k[:])
}

func taskSubject(modelHash, job, key string) string {
	return workSubject + "." + subjectSafe(modelHash) + "." + subjectSafe(job) + "." + subjectSafe(key)
}

func answerSubject(job, key string) string {
	return resultSubject + "." + subjectSafe(job) + "." + subjectSafe(key)
}

// subjectSafe makes a word of a subject out of anything.
func subjectSafe(s string) string {
	if s == "" {
		return "none"
	}
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, s)
}

// link is a connection that comes back by itself.
type link struct {
	o  Options
	nc *nats.Conn
	js jetstream.JetStream
}

// connect reaches the server, or says why it cannot.
func connect(ctx context.Context, o Options, name string) (*link, error) {
	o = o.withDefaults()
	options := []nats.Option{
		nats.Name(name), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, time.Second),
		nats.Timeout(5 * time.Second), nats.ReconnectBufSize(-1), // what could not be sent is an error, and tried again here
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				o.Logger.Warn("queue: connection lost", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { o.Logger.Info("queue: connected again") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { o.Logger.Warn("queue", "error", err) }),
	}
	url := o.URL
	if o.InProcess != nil {
		options = append(options, nats.InProcessServer(o.InProcess.server))
		url = "nats://in-process"
	}
	if o.Socket != "" {
		options = append(options, nats.SetCustomDialer(dialSocket{o.Socket}))
		url = "nats://" + filepath.Base(o.Socket)
	}
	if o.Token != "" {
		options = append(options, nats.Token(o.Token))
	}
	if o.Credentials != "" {
		options = append(options, nats.UserCredentials(o.Credentials))
	}
	nc, err := nats.Connect(url, options...)
	if err != nil && o.Socket != "" {
		url = o.Socket
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the queue at %s: %w", url, err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("use JetStream at %s: %w", url, err)
	}
	l := &link{o: o, nc: nc, js: js}
	if err := l.makeStreams(ctx); err != nil {
		nc.Close()
		return nil, fmt.Errorf("set up the queue at %s: %w", url, err)
	}
	return l, nil
}

func (l *link) close() { l.nc.Close() }

// storage is where a stream lies; ofTasks: it is worth nothing without who has the pictures.
func (o *Options) storage(ofTasks bool) jetstream.StorageType {
	if o.Volatile || o.Private && ofTasks {
		return jetstream.MemoryStorage
	}
	return jetstream.FileStorage
}

// makeStreams makes the streams and buckets that are not there. Those that are there keep how they were made: two
// machines with other settings must not take turns in changing them.
func (l *link) makeStreams(ctx context.Context) error {
	for _, c := range []jetstream.StreamConfig{
		{Name: WorkStream, Storage: l.o.storage(true), Subjects: []string{workSubject + ".>"}, Retention: jetstream.WorkQueuePolicy, Description: "pictures that wait for a caption"},
		{Name: ResultStream, Storage: l.o.storage(false), Subjects: []string{resultSubject + ".>"}, Retention: jetstream.WorkQueuePolicy, MaxAge: leftFor, Description: "captions that wait for their row"},
		{Name: DeadStream, Storage: l.o.storage(true), Subjects: []string{deadSubject + ".>"}, Retention: jetstream.LimitsPolicy, MaxAge: leftFor, Description: "pictures that no worker could caption"},
	} {
		c.Replicas, c.Duplicates = l.o.Replicas, dedupeWindow
		err := l.setUp(ctx, "stream "+c.Name, jetstream.ErrStreamNameAlreadyInUse, func(ctx context.Context) error {
			_, err := l.js.CreateStream(ctx, c)
			return err
		})
		if err != nil {
			return err
		}
	}
	err := l.setUp(ctx, "bucket "+objectBucket, jetstream.ErrBucketExists, func(ctx context.Context) error {
		_, err := l.js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{Bucket: objectBucket, Replicas: l.o.Replicas, Storage: l.o.storage(true), TTL: leftFor})
		return err
	})
	if err != nil {
		return err
	}
	for bucket, life := range map[string]time.Duration{jobBucket: leftFor, workerBucket: workerLifetime} {
		err := l.setUp(ctx, "bucket "+bucket, jetstream.ErrBucketExists, func(ctx context.Context) error {
			_, err := l.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, Replicas: l.o.Replicas, Storage: l.o.storage(true), TTL: life})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// setUpWithin is how long a cluster may take to make a stream: nodes that just started, or are loaded, elect leaders first.
const setUpWithin = 3 * time.Minute

// setUp makes something on the server, unless it is there. What the server refuses is final; what it does not answer in time,
// or cannot do yet, is asked for again.
func (l *link) setUp(ctx context.Context, what string, exists error, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, setUpWithin)
	defer cancel()
	for patience := 5 * time.Second; ; patience *= 2 {
		attempt, cancel := context.WithTimeout(ctx, patience)
		err := f(attempt)
		cancel()
		switch {
		case err == nil || errors.Is(err, exists):
			return nil
		case !isTransient(err) || ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, err)
		}
		l.o.Logger.Debug("queue: trying again", "what", what, "error", err)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// Of the server's errors, those that pass: no node to place a copy on yet, no leader yet, no room in its own queues.
const (
	codeNoPeers      jetstream.ErrorCode = 10005
	codeNotAvailable jetstream.ErrorCode = 10008
)

// isTransient reports whether the same request may be granted later.
func isTransient(err error) bool {
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) {
		return refused.ErrorCode == codeNoPeers || refused.ErrorCode == codeNotAvailable
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) ||
		errors.Is(err, nats.ErrConnectionReconnecting) || errors.Is(err, nats.ErrDisconnected)
}

// errGone is what an in-process server's silence means.
var errGone = errors.New("the queue's server in this process does not answer; is its disk full?")

// again does something until it works or ctx is done: the server may be away for a while, and what is published has a
// message id, so that once too often does no harm.
func (l *link) again(ctx context.Context, what string, f func(ctx context.Context) error) error {
	return l.againFor(ctx, what, time.Minute, f)
}

// objectPatience is how long the last attempts to move a large picture or a video may take.
const objectPatience = 20 * time.Minute

// againFor is again with attempts of at most so long. An *row.ItemError is final.
func (l *link) againFor(ctx context.Context, what string, longest time.Duration, f func(ctx context.Context) error) error {
	if l.o.InProcess != nil { // a server in this process does not come back
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, 2*longest, errGone)
		defer cancel()
	}
	pause, patience := 50*time.Millisecond, 3*time.Second
	for ; ; patience = min(2*patience, longest) { // a large picture over a slow line gets the time it needs
		attempt, cancel := context.WithTimeout(ctx, patience)
		err := f(attempt)
		cancel()
		if err != nil && errors.Is(context.Cause(ctx), errGone) {
			return fmt.Errorf("%s: %w: %w", what, errGone, err)
		}
		if err == nil || ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		if errors.As(err, new(*row.ItemError)) || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrMaxPayload) {
			return fmt.Errorf("%s: %w", what, err)
		}
		l.o.Logger.Debug("queue: trying again", "what", what, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// fetch waits for at most n messages and at most the given time, and ends early with ctx. Nothing there is no error.
func fetch(ctx context.Context, from jetstream.Consumer, n int, wait time.Duration, f func(jetstream.Msg) error) error {
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	batch, err := from.Fetch(n, jetstream.FetchContext(waiting))
	if err != nil {
		return err
	}
	var failed error
	for msg := range batch.Messages() { // to the end: the channel must be emptied
		if failed == nil {
			failed = f(msg)
		}
	}
	if err := batch.Error(); failed == nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return err
	}
	return failed
}

// pause waits a moment after something went wrong.
func (l *link) pause(ctx context.Context, what string, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	l.o.Logger.Debug("queue: "+what, "error", err)
	select {
	case <-time.After(200 * time.Millisecond):
	case <-ctx.Done():
	}
}

// publish stores a message, once. known: one with this id was stored before.
func (l *link) publish(ctx context.Context, subject, id string, v any) (known bool, err error) {
	data, err := json.Marshal(v)
	if err != nil {
		return false, fmt.Errorf("publish to %s: %w", subject, err)
	}
	err = l.again(ctx, "publish to "+subject, func(ctx context.Context) error {
		ack, err := l.js.Publish(ctx, subject, data, jetstream.WithMsgID(id))
		if err == nil {
			known = ack.Duplicate
		}
		return err
	})
	return known, err
}

// announce keeps a value of a bucket fresh until ctx is done.
func (l *link) announce(ctx context.Context, bucket, key string, value func() any) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		l.put(ctx, bucket, key, value())
		select {
		case <-tick.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			l.put(last, bucket, key, value())
			cancel()
			return
		}
	}
}

func (l *link) put(ctx context.Context, bucket, key string, v any) {
	data, err := json.Marshal(v)
	if err == nil {
		var kv jetstream.KeyValue
		if kv, err = l.js.KeyValue(ctx, bucket); err == nil {
			_, err = kv.Put(ctx, key, data)
		}
	}
	if err != nil && ctx.Err() == nil { // progress is for people; the work goes on without
		l.o.Logger.Debug("queue: announce", "key", key, "error", err)
	}
}
