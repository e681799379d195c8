// Package batch captions many pictures offline: it lists the inputs, keeps several requests in flight so that the engine
// decodes them together, and writes one row a picture.
//
// What must stay true:
//   - Every input gets exactly one row, in the order of the inputs, whatever order the answers come in.
//   - A run that was killed and run again leaves the rows of an uninterrupted run.
//   - A picture that cannot be captioned is a row with an error; the run goes on.
//   - Memory does not grow with the size of the pictures or the answers: only a fixed window of inputs is held. What
//     does grow is a key an input, which is how repeated inputs and finished rows are recognised.
//
// The pieces: source lists items, this package turns them into rows in order (pipeline.go draws it), sink and journal keep the
// rows, queue puts a model behind NATS, here or on other machines, report shows what came out. docs/batch.md writes the formats down.
package batch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"glimpse/batch/phash"
	"glimpse/batch/row"
	"glimpse/batch/sink"
	"glimpse/batch/source"
	"glimpse/engine"
	"glimpse/manifest"
)

// ErrInput marks errors that are the caller's: inputs that do not exist, an output that is not ours.
var ErrInput = errors.New("bad batch input")

// Row is a line of the output.
type Row = row.Row

// Captioner is what answers. *engine.Engine is one.
type Captioner interface {
	// Name identifies the model in rows.
	Name() string
	// Manifest gives the prompt where none is asked for.
	Manifest() *manifest.Manifest
	// Generate is called from several goroutines at once. It must return soon after ctx is done. A *engine.RequestError
	// is the picture's fault, anything else the model's or the machine's.
	Generate(ctx context.Context, req engine.Request) (*engine.Result, error)
}

// Pixels is a decoded picture: 8-bit RGB, row-major, upright.
type Pixels struct {
	Pix           []uint8
	Width, Height int
}

// Look is what a picture's header tells.
type Look struct {
	Width, Height int // pixels, as the picture is shown
	Tiles         int // that the model's recipe cuts it into; 0: not known
	Animated      bool
}

// Ask is what is asked about each picture, and how.
type Ask struct {
	Prompts    []string // the user's texts; none: the manifest's caption prompt
	MaxTokens  int      // 0: the model's default
	IgnoreEXIF bool     // do not turn pictures upright
	Logprob    bool     // rows have the log-probability of their captions
	Embedding  bool     // rows have the picture's embedding; the model must be an Embedder
	ITM        bool     // rows have the score of picture and caption; the model must be a Scorer
	Boxes      bool     // rows have the boxes of their captions; the model's answers must hold some
	Clips      ClipChoice
	ModelHash  string // identifies the model's files in rows and keys; "": its name alone
	ModelName  string // "": the Captioner's
}

// Tools are what this package needs done to pictures and videos. Any may be nil.
type Tools struct {
	// Inspect reads a picture's header. nil: rows have width and height 0.
	Inspect func(data []byte, ignoreEXIF bool) (Look, error)
	// Decode decodes a picture, for its perceptual hash and its thumbnail.
	Decode func(ctx context.Context, data []byte, ignoreEXIF bool) (*Pixels, error)
	// PictureKind says in a word why a picture was refused, from the error of Decode or Generate; "" where it does not know.
	PictureKind func(error) string
	// Clip decodes what a model is shown of a video; it is nil for models that take none. hold, which may be nil, is called
	// before frames are decoded with the bytes that they take, and may wait. A *row.ItemError is the video's fault, and ErrTool
	// says that this machine reads none.
	Clip func(ctx context.Context, in ClipFile, choice ClipChoice, ignoreEXIF bool, hold func(ctx context.Context, bytes int64) error) (*Clip, error)
}

// Kinds of Options.Dedupe.
const (
	DedupeNone  = "none"
	DedupeExact = "exact" // the same bytes
	DedupeNear  = "near"  // perceptual hashes at most Options.Distance apart
)

// Options says what to caption and how.
type Options struct {
	Ask
	Tools
	Inputs []string       // what source.New takes; at least one
	Source source.Options // how they are read; MaxBytes is taken from below
	Sink   sink.Options   // where rows go; Out is required, Settings and Visit are ours

	Dedupe   string // "": DedupeNone
	Distance int    // of DedupeNear, in bits
	PHash    bool   // rows have a perceptual hash, which costs decoding every picture once more
	// Reproducible leaves out what differs between two runs: times and log-probabilities.
	Reproducible bool

	// Busy is where the model that answers says when it worked; nil: the model is elsewhere, unless it is an *Answerer, which
	// needs none.
	Busy *Busy

	// ByReference leaves pictures in object stores to the Answerer, which must read them.
	ByReference bool

	Parallel int   // requests in flight; 0: 8. A few more than the engine's slots keep pictures prepared ahead.
	MaxBytes int64 // largest picture file read; 0: 64 MiB
	MaxClip  int64 // largest video read; 0: 1 GiB
	// Memory is the bytes of pictures held at once, but for a single larger one, and of decoded frames as many again; 0: 512 MiB.
	Memory int64

	Progress func(Progress) // called from one goroutine after every row; nil: nobody watches
	// Watch gets every row of this run in order, with a thumbnail's pixels where Thumbnail asked for one; nil: nobody watches.
	Watch     func(r *Row, thumbnail []byte)
	Thumbnail func(key row.Key, p *Pixels) []byte // called from several goroutines; nil result: none
	Logger    *slog.Logger                        // nil: nothing is logged
}

// Progress is how far a run is.
type Progress struct {
	Total   int64 // inputs in all; -1 while they are still being counted
	Done    int64 // rows written by this run
	Skipped int64 // inputs whose row was there already
	Failed  int64 // of Done, rows with an error
	Tokens  int64 // generated
	Elapsed time.Duration
	Idle    float64 // share of the time in which the model had nothing to do; -1: the model is elsewhere
}

// Summary is what a run did.
type Summary struct {
	Written      int64            `json:"written"`       // rows written, those with errors included
	Failed       int64            `json:"failed"`        // of Written, rows with an error
	Duplicates   int64            `json:"duplicates"`    // of Written
	Skipped      int64            `json:"skipped"`       // inputs whose row was there already
	FailedBefore int64            `json:"failed_before"` // of Skipped, rows with an error
	Tokens       int64            `json:"tokens"`
	Errors       map[string]int64 `json:"errors,omitempty"` // Failed by kind
	Idle         float64          `json:"idle"`             // share of the time in which the model had nothing to do; -1: the model is elsewhere
	Elapsed      time.Duration    `json:"-"`
}

const (
	defaultParallel = 8
	// DefaultMaxBytes is the largest picture file that is read.
	DefaultMaxBytes = 64 << 20
	defaultMemory   = 512 << 20
	// DefaultDistance is how far apart the hashes of near duplicates are at most.
	DefaultDistance = 4
)

// Caption writes one row for every input that has none yet and returns what it did; the summary is valid even with an
// error. When ctx ends it drops the requests in flight, leaves the rows finished so far, and returns ctx's error.
func Caption(ctx context.Context, model Captioner, o Options) (*Summary, error) {
	o.Ask = o.Ask.with(model)
	answerer, err := NewAnswerer(model, o.Ask, o.Tools)
	if err != nil {
		return &Summary{}, err
	}
	return Run(ctx, answerer, o)
}

// Run is Caption with a model that may be elsewhere: Ask must name it and its prompts.
func Run(ctx context.Context, answerer row.Answerer, o Options) (*Summary, error) {
	b, err := Open(ctx, o)
	if err != nil {
		return &Summary{}, err
	}
	summary, err := b.Run(ctx, answerer)
	return summary, errors.Join(err, b.Close())
}

// Batch is a run whose output is open, and locked against other runs.
type Batch struct{ r *runner }

// Open opens inputs and output. The caller closes the batch.
func Open(ctx context.Context, o Options) (*Batch, error) {
	o = withDefaults(o)
	if err := o.validate(); err != nil {
		return nil, err
	}
	o.Source.MaxBytes, o.Source.MaxClip = o.MaxBytes, o.MaxClip
	o.Source.Videos = o.Tools.Clip != nil && !o.Clips.Off
	inputs, err := source.New(o.Inputs, o.Source)
	if err != nil {
		return nil, asInput(err, source.ErrInput)
	}
	r := newRunner(o, inputs)
	o.Sink.Settings, o.Sink.Visit = row.Hash(r.promptHash, r.opts.ModelHash), r.visit
	if r.out, err = sink.Open(ctx, o.Sink); err != nil {
		return nil, asInput(err, sink.ErrInput)
	}
	r.reader.KeepBytes = r.out.NeedsData()
	return &Batch{r}, nil
}

// State is where something that belongs to this output and is kept until it is finished may lie: a path beside the journal.
// It is "" where nothing is kept, as on standard output.
func (b *Batch) State(name string) string { return b.r.out.State(name) }

// Close releases the output; closing again is harmless.
func (b *Batch) Close() error {
	if err := b.r.out.Close(); err != nil {
		return fmt.Errorf("finish %s: %w", b.r.opts.Sink.Out, err)
	}
	return nil
}

// Run writes one row for every input that has none yet, as Caption does. It is called once.
func (b *Batch) Run(ctx context.Context, answerer row.Answerer) (*Summary, error) {
	r := b.r
	r.answeredBy(answerer)
	err := r.run(ctx)
	if err == nil {
		err = r.out.Finish()
	}
	r.summary.Elapsed = time.Since(r.start)
	r.summary.Idle = r.idle(time.Now())
	return &r.summary, err
}

// asInput makes a package's mark for what the caller did wrong ours.
func asInput(err, mark error) error {
	if !errors.Is(err, mark) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrInput, &unmarked{strings.TrimPrefix(err.Error(), mark.Error()+": "), err})
}

// unmarked is an error without the mark at the front of its text.
type unmarked struct {
	text string
	err  error
}

func (u *unmarked) Error() string { return u.text }
func (u *unmarked) Unwrap() error { return u.err }

// with fills in what a model knows.
func (a Ask) with(model Captioner) Ask {
	a.ModelName = cmp.Or(a.ModelName, row.Printable(model.Name()))
	if len(a.Prompts) == 0 {
		a.Prompts = []string{CaptionPrompt(model.Manifest())}
	}
	return a
}

// Hash identifies the prompts and every setting that changes an answer.
func (a *Ask) Hash() string {
	parts := []string{"glimpse ask 1", strconv.Itoa(a.MaxTokens), strconv.FormatBool(a.IgnoreEXIF)}
	if c := a.Clips; c != (ClipChoice{}) { // defaults keep the hash that they had before there were videos
		parts = append(parts, fmt.Sprintf("clips %v %d %g %g", c.Off, c.Frames, c.FPS, c.Rate))
	}
	return row.Hash(append(parts, a.Prompts...)...)
}

func (o *Options) validate() error {
	for _, p := range o.Prompts {
		if !utf8.ValidString(p) {
			return fmt.Errorf("%w: the prompt is not UTF-8", ErrInput)
		}
	}
	switch o.Dedupe {
	case DedupeNone, DedupeExact:
	case DedupeNear:
		if o.Distance < 0 || o.Distance > phash.MaxDistance {
			return fmt.Errorf("%w: near duplicates differ in 0 to %d bits, not %d", ErrInput, phash.MaxDistance, o.Distance)
		}
		if !o.PHash {
			return fmt.Errorf("%w: near duplicates are found by perceptual hashes, which are switched off", ErrInput)
		}
	default:
		return fmt.Errorf("%w: duplicates are found by none, exact or near, not %q", ErrInput, o.Dedupe)
	}
	return nil
}

func withDefaults(o Options) Options {
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxClip <= 0 {
		o.MaxClip = DefaultMaxClip
	}
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	o.Dedupe = cmp.Or(o.Dedupe, DedupeNone)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Sink.Stdout == nil {
		o.Sink.Stdout = io.Discard
	}
	return o
}

// preparers is how many pictures are read and looked at at once.
func preparers() int { return max(2, runtime.GOMAXPROCS(0)) }
