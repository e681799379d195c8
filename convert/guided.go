// What a conversion knows besides the checkpoint: calibration statistics.

package convert

import "glimpse/convert/blocks"

// guide is what the options say besides precision.
func (o Options) guide() blocks.Guide {
	return blocks.Guide{Statistics: o.Statistics, Gather: o.Gather, Hessians: o.Hessians}
}
