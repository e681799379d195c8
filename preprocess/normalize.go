package preprocess

import (
	"errors"
	"fmt"

	"glimpse/manifest"
)

// normalizer maps a channel's byte to its float32. There are only 256 bytes, so the arithmetic is done once.
type normalizer [3][256]float32

// newNormalizer computes (x - 255·mean) / (255·std) as transformers' torchvision processors do it, with rescaling and
// normalisation fused: the constants are rounded to float32, multiplied by 255, and each step is rounded again.
// A processor that only rescales is mean 0 and std 1.
func newNormalizer(p manifest.Picture) (n normalizer, err error) {
	if len(p.Mean) != 3 || len(p.Std) != 3 {
		return n, fmt.Errorf("mean and std have %d and %d values, want one for each of R, G, B", len(p.Mean), len(p.Std))
	}
	var problems []error
	for c := range n {
		mean, std := float32(p.Mean[c])*255, float32(p.Std[c])*255
		if !(std > 0) || mean != mean {
			problems = append(problems, fmt.Errorf("mean and std of channel %d are %v and %v", c, p.Mean[c], p.Std[c]))
		}
		for v := range n[c] {
			n[c][v] = (float32(v) - mean) / std
		}
	}
	return n, errors.Join(problems...)
}

// planes writes the picture as three planes, R, G, B, one after the other.
func (n *normalizer) planes(dst []float32, p *RGB) {
	size := p.Width * p.Height
	for c := range n {
		table, plane := &n[c], dst[c*size:(c+1)*size]
		pix := p.Pix[c:]
		for i := range plane {
			plane[i] = table[pix[3*i]]
		}
	}
}
