// Which layers of a 4-bit decoder are worth 8 bits: those whose outputs err most for the bytes that it takes.

package blocks

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"glimpse/convert/calibration"
	"glimpse/convert/quantize"
)

// sampledRows is how many rows of a weight its error is judged by: they are drawn evenly from all of it.
const sampledRows = 64

// Bits returns the bits of a weight stored in the format, its scales included.
func (f Format) Bits() float64 {
	switch {
	case f.Name == "fp32":
		return 32
	case f.Name == "fp16":
		return 16
	case f.Block > 0:
		return float64(f.bits()) + 32/float64(f.Block)
	}
	return 8
}

func (f Format) bits() int {
	if f.Name == "int8" {
		return 8
	}
	return 4
}

// OutputError is the energy of the error that a blockwise format makes of a layer's outputs, relative to the outputs' own: with
// statistics of the inputs, Σ mean(x²)·Δw² ÷ Σ mean(x²)·w², and without them all inputs count the same.
func OutputError(ctx context.Context, w Weight, inputs *calibration.Layer, f Format) (float64, error) {
	n, k := w.shape[0], w.shape[1]
	inputs, err := inputsOf(ctx, w, inputs)
	if err != nil {
		return 0, err
	}
	b := quantize.Blocks{Bits: f.bits(), Block: int(f.Block)}
	l := quantize.Sizes(1, int(k), b.Bits, b.Block)
	row, back := make([]float32, k), make([]float32, k)
	packed, scales := make([]byte, l.Packed), make([]float32, l.Scales)
	wrong, all := 0.0, 0.0
	count := min(n, sampledRows)
	for i := range count {
		if err := w.src.read(ctx, i*n/count*k, row); err != nil {
			return 0, err
		}
		if err := b.Quantize(row, 1, int(k), packed, scales, nil); err != nil {
			return 0, fmt.Errorf("%s: %w", w, err)
		}
		b.Dequantize(back, 1, int(k), packed, scales, nil)
		for j, v := range row {
			h := 1.0
			if inputs != nil {
				h = float64(inputs.Square[j])
			}
			d := float64(v - back[j])
			wrong += h * d * d
			all += h * float64(v) * float64(v)
		}
	}
	if all == 0 {
		return 0, nil
	}
	return wrong / all, nil
}

// Mix chooses which of a decoder's 4-bit layers take 8 bits, so that all of them together, but for the head, stay within bits a
// weight. Layers go by how much of their outputs' error a byte takes away.
func Mix(ctx context.Context, list []LinearInfo, statistics *calibration.Statistics, bits float64) (map[string]Format, error) {
	type candidate struct {
		key          string
		weights      float64
		error4, gain float64
	}
	var layers []candidate
	budget := 0.0
	for _, l := range list {
		if l.Kind == Head || l.Format.Block == 0 {
			continue
		}
		c := candidate{key: l.Key, weights: float64(l.W.Elements())}
		e4, err := OutputError(ctx, l.W, statistics.Layer(l.Key, l.W.shape[1]), FormatInt4Block)
		if err != nil {
			return nil, err
		}
		e8, err := OutputError(ctx, l.W, statistics.Layer(l.Key, l.W.shape[1]), FormatInt8Block)
		if err != nil {
			return nil, err
		}
		c.error4, c.gain = e4, (e4-e8)/c.weights
		layers = append(layers, c)
		budget += c.weights * (bits - FormatInt4Block.Bits())
	}
	if len(layers) == 0 {
		return nil, nil
	}
	if budget < 0 {
		return nil, fmt.Errorf("%v bits a weight are fewer than int4 takes (%v with its scales)", bits, FormatInt4Block.Bits())
	}
	slices.SortStableFunc(layers, func(a, b candidate) int { return cmp.Compare(b.gain, a.gain) })
	formats := map[string]Format{}
	for _, c := range layers {
		cost := c.weights * (FormatInt8Block.Bits() - FormatInt4Block.Bits())
		formats[c.key] = FormatInt4Block
		if cost <= budget && !math.IsNaN(c.gain) && c.gain > 0 {
			formats[c.key] = FormatInt8Block
			budget -= cost
		}
	}
	return formats, nil
}

// BitsOf returns the bits a weight that the blockwise layers of the list take, but for the head, and whether any has 4 bits.
func BitsOf(list []LinearInfo) (bits float64, mixed bool) {
	weights := 0.0
	for _, l := range list {
		if l.Kind == Head || l.Format.Block == 0 {
			continue
		}
		n := float64(l.W.Elements())
		weights += n
		bits += n * l.Format.Bits()
		mixed = mixed || l.Format.Name == FormatInt4Block.Name
	}
	return bits / max(weights, 1), mixed
}

// shownLayers bounds the list of layers in a description.
const shownLayers = 4

// describeMix says which layers the mix left in 8 bits; empty where it chose nothing.
func (b *Builder) describeMix() string {
	var kept []string
	bits, mixed := BitsOf(b.Linears)
	head := Format{}
	for _, l := range b.Linears {
		switch chosen, ok := b.Tensors.Guide.Formats[l.Key]; {
		case ok && chosen == FormatInt8Block:
			kept = append(kept, strings.TrimPrefix(l.Key, b.component()+"/"))
		case l.Kind == Head:
			head = l.Format
		}
	}
	if len(b.Tensors.Guide.Formats) == 0 || !mixed {
		return ""
	}
	text := fmt.Sprintf("%s, %.2f bits a weight", FormatInt4Block, bits)
	if n := len(kept); n > 0 {
		more := ""
		if n > shownLayers {
			kept, more = kept[:shownLayers], fmt.Sprintf(" and %d more", n-shownLayers)
		}
		text += fmt.Sprintf("; %s %s%s for their error", FormatInt8Block, strings.Join(kept, ", "), more)
	}
	if head.Name != "" {
		text += fmt.Sprintf("; head %s", head)
	}
	return text
}

// describeKnown says what statistics were used for.
func (b *Builder) describeKnown() string {
	weighted, compensated := 0, 0
	for _, l := range b.Linears {
		s := b.Tensors.Guide.Statistics.Layer(l.Key, l.W.shape[1])
		switch {
		case s == nil || l.Format.Block == 0 || l.Format.Name != FormatInt4Block.Name:
		case s.Hessian != nil:
			compensated++
		default:
			weighted++
		}
	}
	text := ""
	for _, part := range []struct {
		n    int
		what string
	}{{compensated, "rounded with compensation"}, {weighted, "rounded by importance"}, {b.smoothed, "smoothed"}} {
		if part.n > 0 {
			text += fmt.Sprintf("; %d layers %s", part.n, part.what)
		}
	}
	return text
}
