// What a conversion knows besides the checkpoint: calibration statistics, and the formats that follow from them.

package convert

import (
	"context"
	"errors"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/families"
)

// guide is what the options say besides precision.
func (o Options) guide() blocks.Guide {
	return blocks.Guide{Statistics: o.Statistics, Gather: o.Gather, Hessians: o.Hessians}
}

// planned plans, and plans again where the layers of a 4-bit decoder are to be chosen by what they do to its outputs: with
// statistics, or with a budget. The weights are read for that, a sample of each.
func planned(ctx context.Context, src *source, precision blocks.Precision, opts Options) (*families.Plan, error) {
	plan, err := src.plan(families.Options{Precision: precision, Guide: opts.guide()})
	if err != nil || opts.Gather || opts.Plan || opts.Statistics == nil && opts.Budget == 0 {
		return plan, err
	}
	formats := map[string]blocks.Format{}
	for _, c := range plan.Components {
		if c.Builder.Derived() {
			continue
		}
		bits, mixed := blocks.BitsOf(c.Builder.Linears)
		if !mixed {
			continue
		}
		if opts.Budget > 0 {
			bits = opts.Budget
		}
		chosen, err := blocks.Mix(ctx, c.Builder.Linears, opts.Statistics, bits)
		if err != nil {
			return nil, fmt.Errorf("choose the layers of %s that take 8 bits: %w", c.Name, err)
		}
		for key, f := range chosen {
			formats[key] = f
		}
	}
	if len(formats) == 0 {
		if opts.Budget > 0 {
			return nil, errors.New("--budget chooses which layers of a 4-bit model take 8 bits, and this one has none of 4 bits: ask for --precision int4")
		}
		return plan, nil
	}
	guide := opts.guide()
	guide.Formats = formats
	return src.plan(families.Options{Precision: precision, Guide: guide})
}
