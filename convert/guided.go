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
	return blocks.Guide{Target: blocks.Target(o.Target), Statistics: o.Statistics, Gather: o.Gather, Hessians: o.Hessians}
}

// planned plans, and plans again where the formats of a 4-bit decoder's layers follow from a budget. A sample of each weight is
// read for that.
func planned(ctx context.Context, src *source, precision blocks.Precision, opts Options) (*families.Plan, error) {
	plan, err := src.plan(families.Options{Precision: precision, Guide: opts.guide()})
	if err != nil || opts.Gather || opts.Plan || opts.Budget == 0 {
		return plan, err
	}
	formats := map[string]blocks.Format{}
	for _, c := range plan.Components {
		if c.Builder.Derived() {
			continue
		}
		if _, mixed := blocks.BitsOf(c.Builder.Linears); !mixed {
			continue
		}
		chosen, err := blocks.Mix(ctx, c.Builder.Linears, opts.Statistics, opts.Budget)
		if err != nil {
			return nil, fmt.Errorf("choose the layers of %s that take 8 bits: %w", c.Name, err)
		}
		for key, f := range chosen {
			formats[key] = f
		}
	}
	if len(formats) == 0 {
		return nil, errors.New("--budget chooses the formats of a 4-bit decoder's layers, and this model has none: ask for --precision int4")
	}
	guide := opts.guide()
	guide.Formats = formats
	return src.plan(families.Options{Precision: precision, Guide: guide})
}
