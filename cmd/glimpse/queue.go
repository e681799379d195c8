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

// queueEmbedded is the value of --queue without an address.
const queueEmbedded = "embedded"

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
	f.StringVar(&o.Queue, "queue", "", "put the pictures on a queue that other machines may join: a nats:// `address`, or none for a queue in this process, which works too")
	f.Lookup("queue").NoOptDefVal = queueEmbedded
	f.StringVar(&o.Join, "join", "", "caption what others put on the queue at this nats:// `address`")
	f.StringVar(&o.Listen, "queue-listen", "127.0.0.1:4222", "where the queue in this process can be joined (`host:port`); beyond this machine it needs --queue-token")
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

// jobFile keeps a job's name while its run is not finished, so that the next run takes up what is on the queue.
func jobFile(out string) string {
	if info, err := os.Stat(out); err == nil && !info.IsDir() || filepath.Ext(out) == ".jsonl" {
		return out + ".job"
	}
	return filepath.Join(out, ".glimpse", "job")
}

// jobOf returns the job of an output, a new one where there is none that fits.
func jobOf(out, settings string) (string, error) {
	path := jobFile(out)
	if raw, err := os.ReadFile(path); err == nil {
		if id, of, ok := strings.Cut(strings.TrimSpace(string(raw)), " "); ok && of == settings {
			return id, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the job: %w", err)
	}
	raw := make([]byte, 8)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	id := hex.EncodeToString(raw)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("note the job: %w", err)
	}
	if err := os.WriteFile(path, []byte(id+" "+settings+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("note the job: %w", err)
	}
	return id, nil
}

// publish runs the batch with the model on the queue. With a queue of its own the process is a worker too.
func (o *CaptionOptions) publish(ctx context.Context, a *app, model string, m *manifest.Manifest, b batch.Options) (*batch.Summary, error) {
	none := &batch.Summary{}
	if o.Out == "-" {
		return none, badInputf("caption: a queue needs an output that can be continued; name a .jsonl file or a folder with -o")
	}
	b.Ask.ModelName = row.Printable(filepath.Base(filepath.Clean(model)))
	if len(b.Ask.Prompts) == 0 {
		b.Ask.Prompts = []string{batch.CaptionPrompt(m)}
	}
	b.ByReference = true // what is in an object store does not pass through here
	ask, err := json.Marshal(b.Ask)
	if err != nil {
		return none, err
	}
	id, err := jobOf(b.Sink.Out, row.Hash(b.Ask.Hash(), b.Ask.ModelHash, b.Sink.OnExisting))
	if err != nil {
		return none, err
	}
	job := queue.Job{ID: id, Model: b.Ask.ModelName, ModelHash: b.Ask.ModelHash, Out: o.Out, Ask: ask}
	run := func(options queue.Options) (*batch.Summary, error) {
		client, err := queue.NewClient(ctx, options, job)
		if err != nil {
			return none, err
		}
		defer client.Close()
		if o.Parallel == 0 {
			b.Parallel = 256 // what is on the queue for workers that are not counted
		}
		summary, err := batch.Run(ctx, client, b)
		if err == nil {
			err = errors.Join(client.Finish(ctx), os.Remove(jobFile(b.Sink.Out)))
		}
		return summary, err
	}
	if o.Queue != queueEmbedded {
		if !isQueueAddress(o.Queue) {
			return none, badInputf("--queue %s: the address of a queue begins with nats:// or tls://", o.Queue)
		}
		return run(o.options(a, o.Queue))
	}
	dir := filepath.Join(filepath.Dir(jobFile(b.Sink.Out)), "queue")
	if strings.HasSuffix(jobFile(b.Sink.Out), ".jsonl.job") {
		dir = b.Sink.Out + ".queue"
	}
	server, err := queue.StartServer(queue.ServerOptions{Listen: o.Listen, Dir: dir, Token: o.Token})
	if err != nil {
		return none, badInput(err)
	}
	defer server.Close()
	fmt.Fprintf(a.stderr, "caption: others can join with `glimpse caption %s --join %s`\n", model, server.URL())
	options := o.options(a, "")
	options.InProcess = server
	summary, err := o.runWithWorker(ctx, a, model, options, run)
	if err == nil {
		server.Close()
		err = os.RemoveAll(dir)
	}
	return summary, err
}

// runWithWorker publishes, and works on what is published.
func (o *CaptionOptions) runWithWorker(ctx context.Context, a *app, model string, options queue.Options, run func(queue.Options) (*batch.Summary, error)) (summary *batch.Summary, err error) {
	err = a.withEngine(ctx, model, o.ModelOptions, func(e *engine.Engine) error {
		working, stop := context.WithCancel(ctx)
		var worker sync.WaitGroup
		var failed error
		worker.Go(func() {
			failed = o.work(working, a, e, model, options)
			stop()
		})
		summary, err = run(options)
		stop()
		worker.Wait()
		return errors.Join(err, failed)
	})
	if summary == nil {
		summary = &batch.Summary{}
	}
	return summary, err
}

// work takes tasks until ctx ends.
func (o *CaptionOptions) work(ctx context.Context, a *app, e *engine.Engine, model string, options queue.Options) error {
	hash, err := batch.HashFolder(model)
	if err != nil {
		return badInput(err)
	}
	answerers := &askers{engine: e, tools: a.captionTools(o.ModelOptions, e.Manifest()), limit: batch.DefaultMaxBytes, store: store.New(), known: map[string]*batch.Answerer{}}
	defer answerers.store.Close()
	return queue.Work(ctx, options, queue.Worker{Model: e.Name(), ModelHash: hash, Parallel: o.parallel(), Handle: answerers.handle})
}

// askers keeps an answerer for each way in which pictures are asked about.
type askers struct {
	engine *engine.Engine
	tools  batch.Tools
	store  *store.Store
	limit  int64
	mu     sync.Mutex
	known  map[string]*batch.Answerer
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
	if err == nil {
		s.known[string(raw)] = answerer
	}
	return answerer, err
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
		fmt.Fprintf(a.stderr, "caption: taking pictures from %s\n", o.Join)
		return o.work(ctx, a, e, args[0], o.options(a, o.Join))
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
		Use: "status ADDRESS", Short: "Shows what is on a queue, who works and what was given up", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := queue.Read(cmd.Context(), o.options(a, args[0]))
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
