// glimpse caption: many pictures, one row each.

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"glimpse/batch"
	htmlreport "glimpse/batch/report"
	"glimpse/batch/row"
	"glimpse/batch/sink"
	"glimpse/batch/source"
	"glimpse/engine"
	"glimpse/manifest"
	"glimpse/preprocess"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// CaptionOptions are the flags of caption.
type CaptionOptions struct {
	ModelOptions
	QueueOptions
	ClipOptions
	Out          string
	State        string
	Format       string
	PartRows     int
	OnExisting   string
	Prompts      []string
	MaxTokens    int
	Parallel     int
	NoEXIF       bool
	Source       source.Options
	Dedupe       string
	Distance     int
	NoPHash      bool
	NoLogprob    bool
	Embedding    bool
	ITM          bool
	Boxes        bool
	NoClips      bool
	Reproducible bool
	Report       string
	Quiet        bool
}

// AddFlags adds the flags.
func (o *CaptionOptions) AddFlags(f *pflag.FlagSet) {
	o.ModelOptions.AddFlags(f, 4)
	o.CacheOptions.AddFlags(f, true)
	o.QueueOptions.AddFlags(f)
	o.ClipOptions.AddFlags(f)
	o.OnExisting, o.Dedupe, o.Source.Kind = sink.Skip, batch.DedupeNone, source.Auto
	f.StringVarP(&o.Out, "out", "o", "", "a .jsonl `file` to append rows to, or a folder for parts; - is standard output")
	f.StringVar(&o.State, "state", "", "local `folder` with the journal of an output in an object store")
	f.Var(&choice{&o.Format, sink.Formats}, "format", "of the parts in a folder: "+strings.Join(sink.Formats, ", ")+" (default: jsonl)")
	f.Var(&count{&o.PartRows, 0}, "part-rows", fmt.Sprintf("rows of a part; 0: %d", sink.DefaultPartRows))
	f.Var(&choice{&o.OnExisting, sink.OnExisting}, "on-existing", "rows that are there already: skip what has one, overwrite them all, append others")
	f.StringArrayVar(&o.Prompts, "prompt", nil, "what to ask about each picture; may be given several times (default: the model's caption prompt)")
	f.Var(&count{&o.MaxTokens, 0}, "max-tokens", "tokens of a caption at most; 0: the model's default")
	f.Var(&count{&o.Parallel, 0}, "parallel", "pictures worked on at once; 0: --slots and a few more, prepared ahead")
	f.BoolVar(&o.NoEXIF, "no-exif", false, "do not turn pictures upright")
	f.Var(&choice{&o.Source.Kind, source.Kinds}, "source", "what the inputs are: "+strings.Join(source.Kinds, ", "))
	f.StringVar(&o.Source.Column, "column", "", "of a table: the `column` with paths or addresses")
	f.StringVar(&o.Source.BytesColumn, "bytes-column", "", "of a table: the `column` with the pictures themselves (base64 in text)")
	f.StringVar(&o.Source.IDColumn, "id-column", "", "of a table: the `column` that names the rows")
	f.StringVar(&o.Source.Root, "root", "", "`folder` of the relative paths in lists and tables")
	f.Var(&choice{&o.Dedupe, []string{batch.DedupeNone, batch.DedupeExact, batch.DedupeNear}}, "dedupe", "give pictures that were there before a row that names the first: none, exact, near")
	f.Var(&count{&o.Distance, 0}, "distance", fmt.Sprintf("bits in which the hashes of near duplicates differ at most; 0: %d", batch.DefaultDistance))
	f.BoolVar(&o.NoPHash, "no-phash", false, "no perceptual hash, which costs decoding every picture once more")
	f.BoolVar(&o.NoLogprob, "no-logprob", false, "no log-probability of captions")
	f.BoolVar(&o.Embedding, "embedding", false, "rows with the picture's embedding, for models with such heads")
	f.BoolVar(&o.ITM, "itm", false, "rows with the score of picture and caption, for models with such heads")
	f.BoolVar(&o.Boxes, "boxes", false, "rows with the boxes that captions point at, for models that do")
	f.BoolVar(&o.NoClips, "no-clips", false, "no videos, and of animations the first frame; otherwise they are inputs where the model takes videos")
	f.BoolVar(&o.Reproducible, "reproducible", false, "rows that are equal to the byte in every run: no times, no log-probabilities, and --slots 1, --prefill-from 8 and --prefix-cache=false unless they are given")
	f.StringVar(&o.Report, "report", "", "an HTML `file` with counts, histograms, errors and pictures")
	f.BoolVar(&o.Quiet, "quiet", false, "no progress, only the counts at the end")
}

// settle takes --reproducible into the flags that were not given.
func (o *CaptionOptions) settle(given func(flag string) bool) {
	if !o.Reproducible {
		return
	}
	if !given("slots") {
		o.Slots = 1 // what decodes together changes the last bits of quantised models, and so, rarely, a word
	}
	if !given("prefill-from") {
		o.PrefillFrom = reproducibleFrom // and so does which graph reads the end of a prompt
	}
	if !given("prefix-cache") {
		o.Prefix = false // and where a prompt is cut, which would depend on the pictures before this one
	}
}

// reproducibleFrom is --prefill-from where rows must not depend on what this machine measured.
const reproducibleFrom = 8

func newCaption(a *app) *cobra.Command {
	var o CaptionOptions
	cmd := &cobra.Command{
		Use:   "caption MODEL INPUT... -o OUT",
		Short: "Captions folders, lists, tables and shards of pictures, nothing lost",
		Long: "Captions every INPUT: a picture or video, a folder with all below it, a glob, a list of paths (.txt), a table (.jsonl, .csv,\n" +
			".parquet), a WebDataset shard (.tar, .tar.gz, .tar.zst), or - for a list on standard input. OUT is a .jsonl file that\n" +
			"rows are appended to, or a folder of parts. Inputs that have a row for this model and prompt are skipped, so an\n" +
			"interrupted run is finished by running it again. A picture that cannot be captioned is a row with an error, and the\n" +
			"exit status is 1.",
		Example: "  glimpse caption llava/ photos/ -o captions.jsonl\n" +
			"  glimpse caption llava/ 'shards/*.tar' -o captions/ --format webdataset --report report.html",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			args = o.takeAddress(args)
			o.settle(cmd.Flags().Changed)
			if err := o.ClipOptions.check(); err != nil {
				return err
			}
			args, err := a.named(args)
			if err != nil {
				return err
			}
			if o.Join != "" {
				return runJoin(cmd.Context(), a, o, args)
			}
			if len(args) < 2 {
				return badInputf("caption: wrong number of arguments (%d); usage: %s", len(args), cmd.UseLine())
			}
			return runCaption(cmd.Context(), a, o, args[0], args[1:])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

// batchOptions are the options of the run, but for what the model and the queue add.
func (o *CaptionOptions) batchOptions(a *app, inputs []string) batch.Options {
	b := batch.Options{
		Inputs: inputs, Source: o.Source, Parallel: o.parallel(), Logger: a.log, Reproducible: o.Reproducible,
		Sink:   sink.Options{Out: o.Out, Stdout: a.stdout, Format: o.Format, PartRows: o.PartRows, OnExisting: o.OnExisting},
		Dedupe: o.Dedupe, Distance: cmp.Or(o.Distance, batch.DefaultDistance), PHash: !o.NoPHash,
	}
	b.Source.Stdin = os.Stdin
	b.Ask = batch.Ask{Prompts: o.Prompts, MaxTokens: o.MaxTokens, IgnoreEXIF: o.NoEXIF, Logprob: !o.NoLogprob && !o.Reproducible, Embedding: o.Embedding, ITM: o.ITM, Boxes: o.Boxes,
		Clips: batch.ClipChoice{Off: o.NoClips, Frames: o.Frames, FPS: o.FPS, Rate: o.FrameRate}}
	return b
}

// captionTools are what the batch needs done to pictures. m may be nil: then tiles are not known.
func (a *app) captionTools(o ModelOptions, m *manifest.Manifest) batch.Tools {
	limits := preprocess.Limits{MaxPixels: int64(o.MaxPixels)}
	var recipe preprocess.Recipe
	if m != nil && m.Picture != nil {
		recipe, _ = preprocess.NewRecipe(*m.Picture, preprocess.Options{}) // one that is wrong does not open either
	}
	return batch.Tools{
		Inspect: func(data []byte, ignoreEXIF bool) (batch.Look, error) {
			info, err := preprocess.Header(bytes.NewReader(data))
			if err != nil {
				return batch.Look{}, err
			}
			animation := info.Format == "gif" || info.Format == "webp"
			look := batch.Look{Width: info.Width, Height: info.Height, Animated: animation && info.Frames > 1}
			if !ignoreEXIF {
				look.Width, look.Height = info.Upright()
			}
			if recipe != nil {
				if layout, err := recipe.Layout(look.Width, look.Height); err == nil {
					look.Tiles = layout.Tiles
				}
			}
			return look, nil
		},
		Decode: func(ctx context.Context, data []byte, ignoreEXIF bool) (*batch.Pixels, error) {
			rgb, err := preprocess.Decode(ctx, data, preprocess.DecodeOptions{Limits: limits, IgnoreEXIF: ignoreEXIF})
			if err != nil {
				return nil, err
			}
			return &batch.Pixels{Pix: rgb.Pix, Width: rgb.Width, Height: rgb.Height}, nil
		},
		PictureKind: func(err error) string { return string(preprocess.KindOf(err)) },
		Clip:        a.clipTool(m),
	}
}

func runCaption(ctx context.Context, a *app, o CaptionOptions, model string, inputs []string) error {
	if o.Out == "" {
		return badInputf("caption: where to? name a .jsonl file or a folder with -o, or - for standard output")
	}
	m, err := manifest.Read(model)
	if err != nil {
		return badInput(err)
	}
	b := o.batchOptions(a, inputs)
	b.Tools = a.captionTools(o.ModelOptions, m)
	objects, err := o.openStore(&b)
	if err != nil {
		return err
	}
	defer objects.Close()
	switch {
	case o.Queue == queueOff && o.Listen != "":
		return badInputf("caption: --queue off has nothing that --queue-listen could be the address of")
	case b.Tools.Clip == nil && (o.Frames > 0 || o.FPS > 0 || o.FrameRate > 0):
		return badInputf("caption: --frames, --fps and --frame-rate are for videos, and this model (%s) takes none", m.Family)
	case o.Boxes && m.Boxes == nil:
		return badInputf("caption: --boxes: the answers of this model (%s) hold no boxes", m.Family)
	}
	if _, err := source.New(inputs, b.Source); err != nil {
		return badInput(err) // before a model is loaded for nothing
	}
	if b.Ask.ModelHash, err = batch.HashFolder(model); err != nil {
		return badInput(err)
	}
	page, err := o.openReport(&b)
	if err != nil {
		return err
	}
	meter := a.newMeter("caption", unitPictures)
	b.Progress = func(p batch.Progress) {
		if !o.Quiet {
			meter.update(p.Done+p.Skipped, p.Total, p.Skipped, captionNote(p))
		}
	}
	summary := &batch.Summary{}
	switch o.Queue {
	case queueOff:
		err = a.withEngine(ctx, model, o.ModelOptions, func(e *engine.Engine) (err error) {
			summary, err = batch.Caption(ctx, e, b)
			return err
		})
	case "", queueEmbedded:
		summary, err = o.captionHere(ctx, a, model, m, b)
	default:
		summary, err = o.publish(ctx, a, model, m, b)
	}
	meter.close()
	if err == nil || summary.Written+summary.Skipped > 0 {
		fmt.Fprintf(a.stderr, "caption: %s\n", captionCounts(summary))
		err = errors.Join(err, page.Close(summaryOf(summary, o.Out, model, b)))
	}
	if err == nil && summary.Failed+summary.FailedBefore > 0 {
		return errFound
	}
	return err
}

// openReport sets up the page that --report asks for; without one it is nil.
func (o *CaptionOptions) openReport(b *batch.Options) (*htmlreport.Page, error) {
	if o.Report == "" {
		return nil, nil
	}
	page, err := htmlreport.Create(o.Report)
	if err != nil {
		return nil, badInput(err)
	}
	b.Watch = page.Add
	b.Thumbnail = func(key row.Key, p *batch.Pixels) []byte { return page.Thumbnail(key, p.Pix, p.Width, p.Height) }
	return page, nil
}

func summaryOf(s *batch.Summary, out, model string, b batch.Options) htmlreport.Summary {
	return htmlreport.Summary{
		Out: out, Model: model, ModelHash: b.Ask.ModelHash, Prompts: b.Ask.Prompts, Written: s.Written, Failed: s.Failed, Duplicates: s.Duplicates,
		Skipped: s.Skipped, FailedBefore: s.FailedBefore, Tokens: s.Tokens, Errors: s.Errors, Idle: s.Idle, Elapsed: s.Elapsed,
	}
}

// parallel is how many pictures are worked on at once: one a slot, and enough to prepare the next ones meanwhile.
func (o *CaptionOptions) parallel() int {
	if o.Parallel > 0 {
		return o.Parallel
	}
	return o.Slots + min(o.Slots, runtime.NumCPU())
}

func captionNote(p batch.Progress) string {
	var parts []string
	if seconds := p.Elapsed.Seconds(); seconds > 0 && p.Tokens > 0 {
		parts = append(parts, fmt.Sprintf("%.0f tokens/s", float64(p.Tokens)/seconds))
	}
	if p.Failed > 0 {
		parts = append(parts, fmt.Sprintf("%d failed", p.Failed))
	}
	if p.Idle >= 0 && p.Elapsed > time.Second {
		parts = append(parts, fmt.Sprintf("model idle %.0f%%", 100*p.Idle))
	}
	return strings.Join(parts, ", ")
}

// captionCounts is the line at the end: what was written, what was there, what failed and why.
func captionCounts(s *batch.Summary) string {
	text := fmt.Sprintf("%d written", s.Written)
	if s.Skipped > 0 {
		text += fmt.Sprintf(", %d there already", s.Skipped)
	}
	if failed := s.Failed + s.FailedBefore; failed > 0 {
		text += fmt.Sprintf(", %d with an error", failed)
	}
	if len(s.Errors) > 0 {
		kinds := make([]string, 0, len(s.Errors))
		for _, k := range slices.Sorted(maps.Keys(s.Errors)) {
			kinds = append(kinds, fmt.Sprintf("%s %d", k, s.Errors[k]))
		}
		text += " (" + strings.Join(kinds, ", ") + ")"
	}
	if s.Duplicates > 0 {
		text += fmt.Sprintf(", %d duplicates", s.Duplicates)
	}
	text += ", " + s.Elapsed.Round(100*time.Millisecond).String()
	if seconds := s.Elapsed.Seconds(); s.Written > 0 && seconds > 0 {
		text += fmt.Sprintf(", %.1f pictures/s", float64(s.Written)/seconds)
	}
	if s.Idle >= 0 && s.Written > 0 {
		text += fmt.Sprintf(", model idle %.0f%%", math.Ceil(100*s.Idle))
	}
	return text
}
