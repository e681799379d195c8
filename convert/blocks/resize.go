// Position tables that are resized to another grid when a model is converted.

package blocks

import (
	"context"
	"fmt"
	"math"
)

// ResizedGrid resizes a table of from × from rows to one of to × to rows, as torch.nn.functional.interpolate does with
// mode "bicubic" and align_corners=False: a = −0.75, no antialiasing, borders repeated. Tables are small: each read reads
// the whole of the stored one.
func (w Weight) ResizedGrid(from, to int64) Weight {
	if w.shape[0] != from*from {
		panic(fmt.Sprintf("blocks: %s: %d rows are no grid of %d", w, w.shape[0], from))
	}
	if from == to {
		return w
	}
	shape := append([]int64{to * to}, w.shape[1:]...)
	return Weight{resizedGrid{w.src, w.Elements(), w.rowElements(), from, to}, shape}
}

type resizedGrid struct {
	source
	elements int64 // of the stored table
	width    int64 // of a row
	from, to int64
}

func (s resizedGrid) read(ctx context.Context, first int64, dst []float32) error {
	table := make([]float32, s.elements)
	if err := s.source.read(ctx, 0, table); err != nil {
		return err
	}
	taps := cubicTaps(s.from, s.to)
	for i := range dst {
		at := first + int64(i)
		row, column := at/s.width, at%s.width
		var sum float32
		for _, v := range taps[row/s.to] {
			var line float32
			for _, h := range taps[row%s.to] {
				line += h.weight * table[(v.index*s.from+h.index)*s.width+column]
			}
			sum += v.weight * line
		}
		dst[i] = sum
	}
	return nil
}

func (s resizedGrid) String() string {
	return fmt.Sprintf("bicubic(%s, %d×%d → %d×%d)", s.source, s.from, s.from, s.to, s.to)
}

type cubicTap struct {
	index  int64
	weight float32
}

// cubicTaps returns the four samples that each sample of the resized axis is made of.
func cubicTaps(from, to int64) [][4]cubicTap {
	const a = -0.75
	near := func(x float64) float64 { return ((a+2)*x-(a+3))*x*x + 1 }  // within one sample
	far := func(x float64) float64 { return ((a*x-5*a)*x+8*a)*x - 4*a } // within two
	taps := make([][4]cubicTap, to)
	scale := float64(from) / float64(to)
	for i := range taps {
		at := scale*(float64(i)+0.5) - 0.5
		low := math.Floor(at)
		t := at - low
		for k, weight := range [4]float64{far(t + 1), near(t), near(1 - t), far(2 - t)} {
			taps[i][k] = cubicTap{min(max(int64(low)+int64(k)-1, 0), from-1), float32(weight)}
		}
	}
	return taps
}
