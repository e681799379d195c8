// SmoothQuant (Xiao et al. 2022): where activations are quantized with one scale a row, the few channels that are much larger
// than the others leave little of the scale to them. Dividing each input channel by a factor, and multiplying the channel's
// weights by it, moves some of that to the weights, which have a scale for each output channel. The division costs nothing
// where it can be folded into what makes the input: a norm's weight, or the rows of a linear layer that only a product lies behind.

package blocks

import (
	"context"
	"fmt"
	"math"
	"sync"

	"glimpse/convert/calibration"
)

// smoothing is the exponent of the activations' share: factor = max|x|^smoothing / max|w|^(1 − smoothing).
const smoothing = 0.5

// factors are one layer's factors, computed when first needed: the weights are read for them.
type factors struct {
	maximum []float32 // of the inputs
	w       Weight    // [n, k]

	mu   sync.Mutex
	made []float32
}

func (f *factors) get(ctx context.Context) ([]float32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made != nil {
		return f.made, nil
	}
	largest := make([]float32, len(f.maximum))
	err := eachRows(ctx, f.w, func(_ int64, values []float32) error {
		for i, v := range values {
			j := i % len(largest)
			largest[j] = max(largest[j], float32(math.Abs(float64(v))))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	made := make([]float32, len(largest))
	for j, w := range largest {
		made[j] = smoothFactor(f.maximum[j], w)
	}
	f.made = made
	return made, nil
}

// smoothFactor keeps within what float32 holds with room to spare; a channel that is never used stays as it is.
func smoothFactor(x, w float32) float32 {
	if x < 1e-9 || w < 1e-9 {
		return 1
	}
	s := math.Pow(float64(x), smoothing) / math.Pow(float64(w), 1-smoothing)
	return float32(min(max(s, 1e-4), 1e4))
}

// Smooth folds factors for the Linear, whose name is below the open scope, into the weight before it: norm [k], or rows
// [k, …] of a linear layer whose outputs reach the Linear through products alone. It returns that weight and the Linear as
// they are to be used, unchanged where nothing is known about the Linear's inputs or they are not quantized by row.
//
// 4-bit weights are smoothed too: a second graph of the same decoder, for prompts, has the same norms and int8 by row.
func (b *Builder) Smooth(before Weight, l Linear) (Weight, Linear) {
	var f *factors
	b.Scope(l.Name, func() {
		if format := b.peek(l); format.Name != "int8" && format.Name != "int4" {
			return
		}
		if s := b.statistics(l.W.shape[1]); s != nil && before.shape[0] == l.W.shape[1] {
			f = &factors{maximum: s.Maximum, w: l.W}
		}
	})
	if f == nil {
		return before, l
	}
	b.smoothed++
	l.W = Weight{columnsTimes{l.W.src, f}, l.W.shape}
	return Weight{divided{before.src, f, before.rowElements()}, before.shape}, l
}

// inputsOf is what is known about the inputs of a smoothed weight, which are divided by its factors.
func inputsOf(ctx context.Context, w Weight, inputs *calibration.Layer) (*calibration.Layer, error) {
	s, ok := w.src.(columnsTimes)
	if !ok || inputs == nil {
		return inputs, nil
	}
	factor, err := s.f.get(ctx)
	if err != nil {
		return nil, err
	}
	out := &calibration.Layer{Rows: inputs.Rows, Maximum: make([]float32, len(factor)), Square: make([]float32, len(factor))}
	for j, f := range factor {
		out.Maximum[j], out.Square[j] = inputs.Maximum[j]/f, inputs.Square[j]/(f*f)
	}
	if inputs.Hessian != nil {
		out.Hessian = make([]float32, len(inputs.Hessian))
		k := len(factor)
		for i, v := range inputs.Hessian {
			out.Hessian[i] = v / (factor[i/k] * factor[i%k])
		}
	}
	return out, nil
}

// divided divides row r by factor r.
type divided struct {
	source
	f      *factors
	stride int64
}

func (s divided) read(ctx context.Context, first int64, dst []float32) error {
	factor, err := s.f.get(ctx)
	if err != nil {
		return err
	}
	if err := s.source.read(ctx, first, dst); err != nil {
		return err
	}
	for i := range dst {
		dst[i] /= factor[(first+int64(i))/s.stride]
	}
	return nil
}

func (s divided) String() string { return fmt.Sprintf("smooth(%s)", s.source) }

// columnsTimes multiplies column j by factor j.
type columnsTimes struct {
	source
	f *factors
}

func (s columnsTimes) read(ctx context.Context, first int64, dst []float32) error {
	factor, err := s.f.get(ctx)
	if err != nil {
		return err
	}
	if err := s.source.read(ctx, first, dst); err != nil {
		return err
	}
	k := int64(len(factor))
	for i := range dst {
		dst[i] *= factor[(first+int64(i))%k]
	}
	return nil
}

func (s columnsTimes) String() string { return fmt.Sprintf("unsmooth(%s)", s.source) }
