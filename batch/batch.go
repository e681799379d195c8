// Package batch captions many pictures offline: it lists the inputs, keeps several requests in flight so that the engine
// decodes them together, and appends one row a picture to a JSONL file.
//
// What must stay true:
//   - Every input gets exactly one row, in the order of the inputs, whatever order the answers come in.
//   - The file is valid at any moment but for a torn last line, which the next run cuts off. A run that was killed and
//     run again leaves the rows of an uninterrupted run.
//   - A picture that cannot be captioned is a row with an error; the run goes on.
//   - Memory does not grow with the size of the pictures or the answers: only a fixed window of inputs is held. What
//     does grow is a 17-byte key an input, which is how repeated inputs and finished rows are recognised.
//
// The three pieces are apart so that other sources and sinks can join: Source lists items, run (pipeline.go) turns items
// into rows in order, and sink takes the rows.
package batch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
	"unicode/utf8"

	"glimpse/engine"
	"glimpse/manifest"
)

// ErrInput marks errors that are the caller's: inputs that do not exist, an output file that is not ours.
var ErrInput = errors.New("bad batch input")

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

// Options says what to caption and how.
type Options struct {
	Inputs []string // files, folders (recursive), globs; at least one
	Out    string   // a .jsonl file, appended to; "-": Stdout, without resuming
	Prompt string   // the user's text; "": the manifest's caption prompt

	MaxTokens  int   // 0: the model's default
	IgnoreEXIF bool  // do not turn pictures upright
	Parallel   int   // requests in flight; 0: 8. A few more than the engine's slots keep pictures prepared ahead.
	MaxBytes   int64 // largest picture file read; 0: 64 MiB

	// Measure returns a picture's size in pixels from its header, as it will be shown (after EXIF unless ignoreEXIF).
	// nil: rows have width and height 0.
	Measure func(data []byte, ignoreEXIF bool) (width, height int, err error)

	// PictureKind says in a word why a picture was refused, from Generate's error; "" where it does not know.
	// nil: all are KindBadPicture.
	PictureKind func(error) string

	Stdout   Writer         // where Out "-" goes; required then
	Progress func(Progress) // called from one goroutine after every row; nil: nobody watches
	Logger   *slog.Logger   // nil: nothing is logged
}

// Writer is the part of io.Writer that rows need.
type Writer interface{ Write(p []byte) (int, error) }

// Progress is how far a run is.
type Progress struct {
	Total   int64 // inputs in all; -1 while they are still being counted
	Done    int64 // rows written by this run
	Skipped int64 // inputs whose row was there already
	Failed  int64 // of Done, rows with an error
	Tokens  int64 // generated
	Elapsed time.Duration
}

// Summary is what a run did.
type Summary struct {
	Written      int64            `json:"written"`       // rows written, those with errors included
	Failed       int64            `json:"failed"`        // of Written, rows with an error
	Skipped      int64            `json:"skipped"`       // inputs whose row was there already
	FailedBefore int64            `json:"failed_before"` // of Skipped, rows with an error
	Tokens       int64            `json:"tokens"`
	Errors       map[string]int64 `json:"errors,omitempty"` // Failed by kind
	Elapsed      time.Duration    `json:"-"`
}

const (
	defaultParallel = 8
	defaultMaxBytes = 64 << 20
)

// Caption writes one row for every input that has none yet and returns what it did; the summary is valid even with an
// error. When ctx ends it drops the requests in flight, leaves the rows finished so far, and returns ctx's error.
func Caption(ctx context.Context, model Captioner, o Options) (*Summary, error) {
	o = withDefaults(o, model.Manifest())
	if !utf8.ValidString(o.Prompt) {
		return &Summary{}, fmt.Errorf("%w: the prompt is not UTF-8", ErrInput)
	}
	source, err := NewSource(o.Inputs)
	if err != nil {
		return &Summary{}, err
	}
	out, seen, err := openSink(o.Out, o.Stdout)
	if err != nil {
		return &Summary{}, err
	}
	r := &runner{opts: o, model: model, name: printable(model.Name()), source: source, out: out, seen: seen, start: time.Now()}
	r.summary.Errors = map[string]int64{}
	err = r.run(ctx)
	if cerr := out.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("finish %s: %w", o.Out, cerr))
	}
	r.summary.Elapsed = time.Since(r.start)
	return &r.summary, err
}

func withDefaults(o Options, m *manifest.Manifest) Options {
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultMaxBytes
	}
	o.Prompt = cmp.Or(o.Prompt, CaptionPrompt(m))
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}
