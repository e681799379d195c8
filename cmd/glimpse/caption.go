// glimpse caption: many pictures, one row each.

package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"glimpse/batch"
	"glimpse/engine"
	"glimpse/preprocess"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// CaptionOptions are the flags of caption.
type CaptionOptions struct {
	ModelOptions
	Out       string
	Prompt    string
	MaxTokens int
	Parallel  int
	NoEXIF    bool
	Quiet     bool
}

// AddFlags adds the flags.
func (o *CaptionOptions) AddFlags(f *pflag.FlagSet) {
	o.ModelOptions.AddFlags(f, 4)
	f.StringVarP(&o.Out, "out", "o", "", "`file` to append rows to (.jsonl); - is standard output")
	f.StringVar(&o.Prompt, "prompt", "", "what to ask about each picture (default: the model's caption prompt)")
	f.Var(&count{&o.MaxTokens, 0}, "max-tokens", "tokens of a caption at most; 0: the model's default")
	f.Var(&count{&o.Parallel, 0}, "parallel", "pictures worked on at once; 0: --slots and a few more, prepared ahead")
	f.BoolVar(&o.NoEXIF, "no-exif", false, "do not turn pictures upright")
	f.BoolVar(&o.Quiet, "quiet", false, "no progress, only the counts at the end")
}

func newCaption(a *app) *cobra.Command {
	var o CaptionOptions
	cmd := &cobra.Command{
		Use:   "caption MODEL INPUT... -o OUT",
		Short: "Captions files, folders and globs to a JSONL file",
		Long: "Captions every INPUT (a picture, a folder with all below it, or a glob) and appends one JSON row each to OUT, in the\n" +
			"order of the inputs. Inputs that have a row for this model and prompt are skipped, so an interrupted run is\n" +
			"finished by running it again. A picture that cannot be captioned is a row with an error, and the exit status is 1.",
		Example: "  glimpse caption llava/ photos/ -o captions.jsonl",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCaption(cmd.Context(), a, o, args[0], args[1:])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func runCaption(ctx context.Context, a *app, o CaptionOptions, model string, inputs []string) error {
	if o.Out == "" {
		return badInputf("caption: where to? name a .jsonl file with -o, or - for standard output")
	}
	if _, err := batch.NewSource(inputs); err != nil {
		return err // before a model is loaded for nothing
	}
	return a.withEngine(ctx, model, o.ModelOptions, func(e *engine.Engine) error {
		m := a.newMeter("caption", unitPictures)
		summary, err := batch.Caption(ctx, e, batch.Options{
			Inputs: inputs, Out: o.Out, Prompt: o.Prompt, MaxTokens: o.MaxTokens, IgnoreEXIF: o.NoEXIF, Parallel: o.parallel(),
			Measure: measure, PictureKind: func(err error) string { return string(preprocess.KindOf(err)) },
			Stdout: a.stdout, Logger: a.log,
			Progress: func(p batch.Progress) {
				if !o.Quiet {
					m.update(p.Done+p.Skipped, p.Total, p.Skipped, captionNote(p))
				}
			},
		})
		m.close()
		if err == nil || summary.Written+summary.Skipped > 0 {
			fmt.Fprintf(a.stderr, "caption: %s\n", captionCounts(summary))
		}
		if err == nil && summary.Failed+summary.FailedBefore > 0 {
			return errFound
		}
		return err
	})
}

// parallel is how many pictures are worked on at once: one a slot, and enough to prepare the next ones meanwhile.
func (o *CaptionOptions) parallel() int {
	if o.Parallel > 0 {
		return o.Parallel
	}
	return o.Slots + min(o.Slots, runtime.NumCPU())
}

// measure reads a picture's size from its header.
func measure(data []byte, ignoreEXIF bool) (width, height int, err error) {
	info, err := preprocess.Header(bytes.NewReader(data))
	if err != nil {
		return 0, 0, err
	}
	if ignoreEXIF {
		return info.Width, info.Height, nil
	}
	width, height = info.Upright()
	return width, height, nil
}

func captionNote(p batch.Progress) string {
	var parts []string
	if seconds := p.Elapsed.Seconds(); seconds > 0 && p.Tokens > 0 {
		parts = append(parts, fmt.Sprintf("%.0f tokens/s", float64(p.Tokens)/seconds))
	}
	if p.Failed > 0 {
		parts = append(parts, fmt.Sprintf("%d failed", p.Failed))
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
	text += ", " + s.Elapsed.Round(100*time.Millisecond).String()
	if seconds := s.Elapsed.Seconds(); s.Written > 0 && seconds > 0 {
		text += fmt.Sprintf(", %.1f pictures/s", float64(s.Written)/seconds)
	}
	return text
}
