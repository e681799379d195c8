// The queue of caption: publishing work, joining in, and glimpse queue.

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"glimpse/batch"
	"glimpse/batch/queue"
	"glimpse/batch/row"
	"glimpse/batch/store"
	"glimpse/engine"
	"glimpse/manifest"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Values of --queue beside an address.
const (
	queueEmbedded = "embedded" // without a value: in this process, and others may join
	queueOff      = "off"      // no queue: pictures go to the model directly
)

// defaultListen is where a queue in this process can be joined.
const defaultListen = "127.0.0.1:4222"

// QueueOptions are the flags of caption's queue.
type QueueOptions struct {
	Queue       string
	Join        string
	Listen      string
	Token       string
	Credentials string
	Replicas    int
	Deliveries  int
	AckWait     time.Duration
}

// AddFlags adds the flags.
func (o *QueueOptions) AddFlags(f *pflag.FlagSet) {
	f.StringVar(&o.Queue, "queue", "", "the queue that the pictures go through: a nats:// `address`, none for one in this process that others may join, off for no queue (default: one in this process, for itself)")
	f.Lookup("queue").NoOptDefVal = queueEmbedded
	f.StringVar(&o.Join, "join", "", "caption what others put on the queue at this nats:// `address`")
	f.StringVar(&o.Listen, "queue-listen", "", "where the queue in this process can be joined (`host:port`; with --queue "+defaultListen+", else not at all); beyond this machine it needs --queue-token")
	o.addConnection(f)
	f.Var(&count{&o.Replicas, 1}, "queue-replicas", "copies of streams on a cluster, when this run makes them")
	f.Var(&count{&o.Deliveries, 1}, "queue-deliveries", "times that a picture is given to a worker before it is a dead letter")
	f.DurationVar(&o.AckWait, "queue-ack-wait", queue.DefaultAckWait, "silence after which a worker counts as dead")
	o.Replicas, o.Deliveries = 1, queue.DefaultDeliveries
}

func (o *QueueOptions) addConnection(f *pflag.FlagSet) {
	f.StringVar(&o.Token, "queue-token", "", "what clients must say to the queue")
	f.StringVar(&o.Credentials, "queue-credentials", "", "NATS credentials `file`")
}

func (o *QueueOptions) options(a *app, url string) queue.Options {
	return queue.Options{URL: url, Token: o.Token, Credentials: o.Credentials, Replicas: o.Replicas, Deliveries: o.Deliveries, AckWait: o.AckWait, Logger: a.log}
}

func isQueueAddress(s string) bool {
	return strings.HasPrefix(s, "nats://") || strings.HasPrefix(s, "tls://")
}

// takeAddress lets `--queue nats://…` be written with a space: to the flags' parser the address is an argument, since
// --queue alone has a meaning.
func (o *QueueOptions) takeAddress(args []string) []string {
	if o.Queue != queueEmbedded {
		return args
	}
	for i, arg := range args {
		if isQueueAddress(arg) {
			o.Queue = arg
			return append(args[:i:i], args[i+1:]...)
		}
	}
	return args
}

// jobOf returns the job that path names, or a new one where it names none or one with other settings.
func jobOf(path, settings string) (id string, known bool, err error) {
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, fmt.Errorf("read the job: %w", err)
	}
	if id, of, ok := strings.Cut(strings.TrimSpace(string(raw)), " "); ok && of == settings && id != "" {
		return id, true, nil
	}
	id, err = newJob()
	return id, false, err
}

func newJob() (string, error) {
	raw := make([]byte, 8)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("name the job: %w", err)
	}
	return hex.EncodeToString(raw), nil
}

// noteJob keeps a job's name while its run is not finished, so that the next run takes up what is on the queue.
func noteJob(path, id, settings string) error {
	if err := os.WriteFile(path, []byte(id+" "+settings+"\n"), 0o644); err != nil {
		return fmt.Errorf("note the job: %w", err)
	}
	return nil
}

// queued is what a run on a queue needs to know of itself.
type queued struct {
	job      queue.Job
	settings string // that answers on the queue depend on
}

// queueRun fills in what the model knows, since on a queue it may be elsewhere.
func (o *CaptionOptions) queueRun(b *batch.Options, model string, m *manifest.Manifest) (queued, error) {
	b.Ask.ModelName = row.Printable(filepath.Base(filepath.Clean(model)))
	if len(b.Ask.Prompts) == 0 {
		b.Ask.Prompts = []string{batch.CaptionPrompt(m)}
	}
	ask, err := json.Marshal(b.Ask)
	if err != nil {
		return queued{}, fmt.Errorf("write what is asked: %w", err)
	}
	return queued{queue.Job{Model: b.Ask.ModelName, ModelHash: b.Ask.ModelHash, Out: o.Out, Ask: ask},
		row.Hash(string(ask), b.Ask.ModelHash, b.Sink.OnExisting, strconv.FormatBool(o.Reproducible))}, nil
}

// publish runs the batch with the model on a queue elsewhere.
func (o *CaptionOptions) publish(ctx context.Context, a *app, model string, m *manifest.Manifest, b batch.Options) (summary *batch.Summary, err error) {
	summary = &batch.Summary{}
	if !isQueueAddress(o.Queue) {
		return summary, badInputf("--queue %s: the address of a queue begins with nats:// or tls://", o.Queue)
	}
	q, err := o.queueRun(&b, model, m)
	if err != nil {
		return summary, err
	}
	b.ByReference = true // what is in an object store does not pass through here
	if o.Parallel == 0 {
		b.Parallel = uncounted
	}
	work, err := batch.Open(ctx, b)
	if err != nil {
		return summary, err
	}
	defer func() { err = errors.Join(err, work.Close()) }()
	path := work.State("job")
	if path == "" {
		return summary, badInputf("caption: a queue elsewhere needs an output that can be continued; name a .jsonl file or a folder with -o")
	}
	var known bool
	if q.job.ID, known, err = jobOf(path, q.settings); err == nil && !known {
		err = noteJob(path, q.job.ID, q.settings)
	}
	if err != nil {
		return summary, err
	}
	client, err := queue.NewClient(ctx, o.options(a, o.Queue), q.job)
	if err != nil {
		return summary, err
	}
	defer client.Close()
	if summary, err = work.Run(ctx, client); err == nil {
		err = errors.Join(client.Finish(ctx), os.Remove(path))
	}
	return summary, err
}

// uncounted is --parallel for a queue with workers that are not counted.
const uncounted = 256

// work takes tasks until ctx ends.
func (o *CaptionOptions) work(ctx context.Context, e *engine.Engine, modelHash string, options queue.Options, answerers *askers) error {
	answerers.store = store.New()
	defer answerers.store.Close()
	return queue.Work(ctx, options, queue.Worker{Model: e.Name(), ModelHash: modelHash, Parallel: o.parallel(), Handle: answerers.handle})
}

// askers keeps an answerer for each way in which pictures are asked about.
type askers struct {
	engine *engine.Engine
	tools  batch.Tools
	store  *store.Store
	busy   *batch.Busy // nil: nobody asks how much the model has to do
	limit  int64
	mu     sync.Mutex
	known  map[string]*batch.Answerer
}

func newAskers(e *engine.Engine, tools batch.Tools, busy *batch.Busy) *askers {
	return &askers{engine: e, tools: tools, busy: busy, limit: batch.DefaultMaxBytes, known: map[string]*batch.Answerer{}}
}

func (s *askers) handle(ctx context.Context, raw json.RawMessage, task row.Task) (*row.Answer, error) {
	answerer, err := s.get(raw)
	if err != nil { // another's mistake must not end this worker
		return &row.Answer{Error: &row.ItemError{Kind: row.KindRejected, Message: err.Error()}}, nil
	}
	var read *row.Read
	if task.Ref != "" {
		reader := batch.Reader{Ask: answerer.Ask(), Tools: s.tools, PHash: true, Store: s.store, Limit: s.limit, MaxClip: batch.DefaultMaxClip}
		var failed *row.Answer
		if task, read, failed = reader.Fetch(ctx, task); failed != nil {
			return failed, nil
		}
	}
	answer, _, err := answerer.Answer(ctx, task)
	if err == nil {
		answer.Read = read
	}
	return answer, err
}

func (s *askers) get(raw json.RawMessage) (*batch.Answerer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.known[string(raw)]; known != nil {
		return known, nil
	}
	var ask batch.Ask
	if err := json.Unmarshal(raw, &ask); err != nil {
		return nil, fmt.Errorf("read what is asked: %w", err)
	}
	answerer, err := batch.NewAnswerer(s.engine, ask, s.tools)
	if err != nil {
		return nil, err
	}
	if s.busy != nil {
		answerer.Busy = s.busy.Add
	}
	s.known[string(raw)] = answerer
	return answerer, nil
}

// runJoin works for others until it is stopped.
func runJoin(ctx context.Context, a *app, o CaptionOptions, args []string) error {
	if len(args) != 1 {
		return badInputf("caption: --join takes a model and no inputs; they are on the queue")
	}
	if !isQueueAddress(o.Join) {
		return badInputf("--join %s: the address of a queue begins with nats:// or tls://", o.Join)
	}
	return a.withEngine(ctx, args[0], o.ModelOptions, func(e *engine.Engine) error {
		hash, err := batch.HashFolder(args[0])
		if err != nil {
			return badInput(err)
		}
		fmt.Fprintf(a.stderr, "caption: taking pictures from %s\n", o.Join)
		return o.work(ctx, e, hash, o.options(a, o.Join), newAskers(e, a.captionTools(o.ModelOptions, e.Manifest()), nil))
	})
}

func newQueue(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "queue", Short: "Shows and tidies the queue that captions run on", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var o QueueOptions
	var asJSON bool
	status := &cobra.Command{
		Use: "status ADDRESS|OUT", Short: "Shows what is on a queue, who works and what was given up", Args: cobra.ExactArgs(1),
		Long: "Shows what is on the queue at an ADDRESS, or on that of the run on this machine whose output is OUT.",
		RunE: func(cmd *cobra.Command, args []string) error {
			options := o.options(a, args[0])
			socket, found, err := statusOf(args[0])
			if err != nil {
				return err
			}
			if found {
				options.URL, options.Socket = "", socket
			}
			s, err := queue.Read(cmd.Context(), options)
			if err != nil {
				return badInput(err)
			}
			if asJSON {
				return writeJSON(a.stdout, s)
			}
			return printQueue(a, s)
		},
	}
	o.addConnection(status.Flags())
	status.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	forget := &cobra.Command{
		Use: "forget ADDRESS JOB", Short: "Removes what an abandoned job left on a queue", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return badInput(queue.ForgetJob(cmd.Context(), o.options(a, args[0]), args[1]))
		},
	}
	o.addConnection(forget.Flags())
	cmd.AddCommand(status, forget)
	for _, c := range cmd.Commands() {
		markUsage(c)
	}
	return cmd
}

func printQueue(a *app, s *queue.Status) error {
	w := a.stdout
	fmt.Fprintf(w, "waiting    %d pictures, %d of them in hand, %d given out more than once\n", s.Waiting, s.InFlight, s.Again)
	fmt.Fprintf(w, "results    %d on their way to a row\n", s.Results)
	fmt.Fprintf(w, "dead       %d letters\n", s.Dead)
	fmt.Fprintf(w, "stored     %s\n", byteSize(int64(s.Bytes)))
	for _, j := range s.Jobs {
		fmt.Fprintf(w, "job        %s %s: %d of %d published answered, %s by %s (%s, seen %s ago)\n",
			j.ID, j.State, j.Answered, j.Published, oneLineText(j.Out), oneLineText(j.Model), oneLineText(j.Host), time.Since(j.Updated).Round(time.Second))
	}
	for _, k := range s.Workers {
		fmt.Fprintf(w, "worker     %s: %s, %d answered, %d in hand, up %s\n",
			oneLineText(k.Name), oneLineText(k.Model), k.Answered, k.InFlight, time.Since(k.Started).Round(time.Second))
	}
	for _, d := range s.Letters {
		_, err := fmt.Fprintf(w, "letter     %s after %d deliveries: %s: %s\n", oneLineText(d.ID), d.Deliveries, d.Kind, oneLineText(d.Message))
		if err != nil {
			return fmt.Errorf("print status: %w", err)
		}
	}
	return nil
}
