// glimpse synth: a checkpoint of the right shapes with random weights, for benchmarks.

package main

import (
	"context"
	"fmt"

	"glimpse/convert"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// SynthOptions are the flags of synth.
type SynthOptions struct {
	Out  string
	Seed uint64
	JSON bool
}

// AddFlags adds the flags.
func (o *SynthOptions) AddFlags(f *pflag.FlagSet) {
	f.StringVarP(&o.Out, "out", "o", "", "the checkpoint `folder` to make")
	f.Uint64Var(&o.Seed, "seed", 1, "of the weights: the same seed gives the same bytes")
	f.BoolVar(&o.JSON, "json", false, "print the summary as JSON")
}

func newSynth(a *app) *cobra.Command {
	var o SynthOptions
	cmd := &cobra.Command{
		Use:   "synth DIR|CONFIG.json|INVENTORY.json.gz -o CHECKPOINT",
		Short: "Makes a checkpoint with random weights, for benchmarks",
		Long: "Makes a checkpoint of the shapes that a configuration or a tensor list names, with random weights. From a folder the\n" +
			"tokenizer and processor files come along; otherwise a byte-level stand-in is made.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSynth(cmd.Context(), a, o, args[0])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func runSynth(ctx context.Context, a *app, o SynthOptions, source string) error {
	if o.Out == "" {
		return badInputf("synth %s: where to? name the checkpoint folder with -o", source)
	}
	m := a.newMeter("synth", unitBytes)
	summary, err := convert.Synth(ctx, convert.SynthOptions{
		Source: source, Out: o.Out, Seed: o.Seed,
		Progress: func(p convert.Progress) { m.update(p.Done, p.Total, 0, p.Component) },
	})
	m.close()
	if err != nil {
		return err
	}
	r := synthReply{o.Out, summary.Tensors, summary.Parameters, summary.Bytes, summary.Files, summary.StandInTokens}
	if o.JSON {
		return writeJSON(a.stdout, r)
	}
	text := fmt.Sprintf("wrote %s: %d tensors, %s parameters, %s in %d files", r.Checkpoint, r.Tensors, quantity(r.Parameters), byteSize(r.Bytes), len(r.Files))
	if r.StandInTokens > 0 {
		text += fmt.Sprintf("; the tokenizer is a byte-level stand-in of %d tokens", r.StandInTokens)
	}
	_, err = fmt.Fprintln(a.stdout, text)
	return err
}

// synthReply is the JSON of synth; its keys are public.
type synthReply struct {
	Checkpoint    string   `json:"checkpoint"`
	Tensors       int      `json:"tensors"`
	Parameters    int64    `json:"parameters"`
	Bytes         int64    `json:"bytes"`
	Files         []string `json:"files"`
	StandInTokens int      `json:"stand_in_tokens"` // 0: the tokenizer came along
}
