// glimpse convert: a checkpoint becomes a model folder.

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"glimpse/convert"
	"glimpse/manifest"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ConvertOptions are the flags of convert.
type ConvertOptions struct {
	Out       string
	Precision string
	Target    string
	Plan      bool
	Force     bool
	JSON      bool
	Budget    float64
	CalibrationOptions
}

// AddFlags adds the flags.
func (o *ConvertOptions) AddFlags(f *pflag.FlagSet) {
	o.Precision = "auto"
	f.StringVarP(&o.Out, "out", "o", "", "the model `folder` to make")
	f.Var(&choice{&o.Precision, []string{"auto", "fp32", "fp16", "int8", "int4"}}, "precision", "how weights are stored: auto, fp32, fp16, int8, int4")
	o.Target = "cpu"
	f.Var(&choice{&o.Target, []string{"cpu", "cuda"}}, "target", "what the graphs are made for: cpu, cuda (float16 arithmetic and caches; fp32, fp16, int4)")
	f.BoolVar(&o.Plan, "plan", false, "build everything, write nothing; CHECKPOINT may then be an inventory (.json.gz)")
	f.BoolVar(&o.Force, "force", false, "replace the model folder when it exists")
	f.BoolVar(&o.JSON, "json", false, "print the summary as JSON")
	f.Float64Var(&o.Budget, "budget", 0, "`bits` a weight that the layers of an int4 decoder may take, scales included: those that err most get 8 bits; 0: as many as without")
	o.CalibrationOptions.AddFlags(f)
}

func newConvert(a *app) *cobra.Command {
	var o ConvertOptions
	cmd := &cobra.Command{
		Use:   "convert CHECKPOINT -o MODEL",
		Short: "Converts a checkpoint to a model folder",
		Long: "Converts a checkpoint, a folder as it was released or a .toml that names the pieces of a split release, to a\n" +
			"folder of ONNX graphs. The folder appears whole at the end; interrupted, nothing is left.",
		Example: "  glimpse convert llava-1.5-7b-hf/ -o llava/ --precision int4",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runConvert(cmd.Context(), a, o, args[0])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func runConvert(ctx context.Context, a *app, o ConvertOptions, checkpoint string) error {
	if o.Out == "" && !o.Plan {
		return badInputf("convert %s: where to? name the model folder with -o, or say --plan", checkpoint)
	}
	if o.Force && !o.Plan {
		if err := replaceable(o.Out); err != nil {
			return err
		}
	}
	if !(o.Budget >= 0 && o.Budget <= 32) {
		return badInputf("--budget %v: bits a weight are from 4.25 to 9", o.Budget)
	}
	if o.Budget > 0 && o.Plan {
		return badInputf("--plan reads no weights, and --budget chooses layers by them: give one of them")
	}
	opts := convert.Options{
		Checkpoint: checkpoint, Out: o.Out, Precision: o.Precision, Target: o.Target, Budget: o.Budget, Plan: o.Plan, Force: o.Force,
		Version: buildVersion().Version, Logger: a.log,
	}
	if err := calibrateFor(ctx, a, o.CalibrationOptions, &opts); err != nil {
		return err
	}
	m := a.newMeter("convert", unitBytes)
	opts.Progress = func(p convert.Progress) { m.update(p.Done, p.Total, 0, p.Component) }
	summary, err := convert.Convert(ctx, opts)
	m.close()
	if err != nil {
		return err
	}
	if o.JSON {
		return writeJSON(a.stdout, summary)
	}
	return printConversion(a, summary)
}

// replaceable refuses to let --force remove a folder that is no model.
func replaceable(out string) error {
	_, err := os.Lstat(out)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(out, manifest.FileName)); err != nil {
		return badInputf("--force replaces model folders only, and %s has no %s: remove it yourself, or name another folder", out, manifest.FileName)
	}
	return nil
}

func printConversion(a *app, s *convert.Summary) error {
	did := "wrote"
	if s.Planned {
		did = "planned"
	}
	fmt.Fprintf(a.stdout, "%s %s: %s (%s), precision %s, for %s\n", did, firstOf(s.Out, s.Checkpoint), s.Family, s.Architecture, s.Precision, s.Target)
	if err := printComponents(a, s); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "in %.1f s\n", s.Seconds)
	return err
}

// printComponents prints each graph with the policy that chose its storage.
func printComponents(a *app, s *convert.Summary) error {
	t := newTable(a.stdout)
	t.row("component", "parameters", "size", "stored as", "policy")
	for _, c := range s.Components {
		t.row(c.Name, quantity(c.Parameters), byteSize(c.Bytes), shares(c.Formats), c.Policy)
	}
	t.row("total", quantity(s.Parameters), byteSize(s.Bytes), "", "")
	return t.flush()
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
