// glimpse verify: a golden set against a model folder.

package main

import (
	"context"
	"fmt"

	"glimpse/engine"
	"glimpse/engine/verify"
	av "glimpse/media"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// VerifyOptions are the flags of verify.
type VerifyOptions struct {
	ModelOptions
	Golden string
	Cases  []string
	JSON   bool
}

// AddFlags adds the flags.
func (o *VerifyOptions) AddFlags(f *pflag.FlagSet) {
	o.ModelOptions.AddFlags(f, 1)
	f.StringVar(&o.Golden, "golden", "", "`folder` of the golden set")
	f.StringArrayVar(&o.Cases, "case", nil, "`id` of a case to run; may be given several times (default: all)")
	f.BoolVar(&o.JSON, "json", false, "print the report as JSON")
}

func newVerify(a *app) *cobra.Command {
	var o VerifyOptions
	cmd := &cobra.Command{
		Use:   "verify MODEL --golden DIR",
		Short: "Compares a model folder with a golden set",
		Long:  "Runs every case of a golden set and prints a row an array: largest difference, tolerance, ok or not.\nExit status 1 when anything differs.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVerify(cmd.Context(), a, o, args[0])
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func runVerify(ctx context.Context, a *app, o VerifyOptions, model string) error {
	if o.Golden == "" {
		return badInputf("verify: which golden set? name its folder with --golden")
	}
	model, err := a.modelFolder(model)
	if err != nil {
		return err
	}
	return a.withEngine(ctx, model, o.ModelOptions, func(e *engine.Engine) error {
		report, err := verify.Run(ctx, e, o.Golden, verify.Options{Cases: o.Cases, Media: av.New(av.Options{FFmpeg: a.global.FFmpeg}), Logger: a.log})
		if err != nil && ctx.Err() == nil {
			return badInput(err) // a case that fails is in the report; an error is about the set
		}
		if err != nil {
			return err
		}
		if o.JSON {
			err = writeJSON(a.stdout, report)
		} else {
			err = printReport(a, report)
		}
		if err == nil && !report.OK {
			return errFound
		}
		return err
	})
}

func printReport(a *app, r *verify.Report) error {
	t := newTable(a.stdout)
	t.row("case", "array", "max abs diff", "tolerance", "")
	passed := 0
	for _, c := range r.Cases {
		for _, row := range c.Rows {
			t.row(c.ID, row.Array, fmt.Sprintf("%.3g", row.MaxAbsDiff), fmt.Sprintf("%.3g", row.Tolerance), verdict(row.OK)+suffix(row.Note))
		}
		if c.OK {
			passed++
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "%s: %d of %d cases ok\n", r.Set, passed, len(r.Cases))
	return err
}

func verdict(ok bool) string {
	if ok {
		return "ok"
	}
	return "DIFFERS"
}

func suffix(note string) string {
	if note == "" {
		return ""
	}
	return "  " + oneLineText(note)
}
