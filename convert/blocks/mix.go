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

// Bits returns the bits that a blockwise format takes for a weight of rows of k, with scales and what pads the last block.
func (f Format) Bits(k int64) float64 {
	blocks := (k + f.Block - 1) / f.Block
	return float64(blocks*(f.Block*int64(f.bits())+32)) / float64(k)
}

// size is Bits of all of a layer's weights.
func (l LinearInfo) size(f Format) float64 { return float64(l.W.Elements()) * f.Bits(l.W.shape[1]) }

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

// mixLevels are the formats that a mix is made of, in the order of their bytes.
var mixLevels = []Format{{Name: "int4", Block: 128}, FormatInt4Block, FormatInt8Block}

// upgrade is a step of a layer to one of the levels.
type upgrade struct {
	layer, level int
	gain         float64 // error that a bit takes away
}

func sizeOf(layers []LinearInfo, f Format) (bits float64) {
	for _, l := range layers {
		bits += l.size(f)
	}
	return bits
}

// Mix chooses the formats of a 4-bit decoder's layers, so that all of them together, but for the head, stay within bits a weight.
// Layers that the policy gives 8 bits come first, and then those whose outputs' error a byte takes most away from.
func Mix(ctx context.Context, list []LinearInfo, statistics *calibration.Statistics, bits float64) (map[string]Format, error) {
	var layers []LinearInfo
	var upgrades []upgrade
	budget := 0.0
	for _, l := range list {
		if l.Kind == Head || l.Format.Block == 0 {
			continue
		}
		budget += float64(l.W.Elements())*bits - l.size(mixLevels[0])
		wrong := make([]float64, len(mixLevels))
		for i, f := range mixLevels {
			var err error
			if wrong[i], err = OutputError(ctx, l.W, statistics.Layer(l.Key, l.W.shape[1]), f); err != nil {
				return nil, err
			}
		}
		for i := 1; i < len(mixLevels); i++ {
			u := upgrade{len(layers), i, (wrong[i-1] - wrong[i]) / (l.size(mixLevels[i]) - l.size(mixLevels[i-1]))}
			if l.Format == mixLevels[i] && i == len(mixLevels)-1 {
				u.gain = math.Inf(1)
			}
			upgrades = append(upgrades, u)
		}
		layers = append(layers, l)
	}
	if len(layers) == 0 {
		return nil, nil
	}
	if budget < 0 {
		return nil, fmt.Errorf("%v bits a weight are fewer than %s takes with its scales", bits, mixLevels[0])
	}
	slices.SortStableFunc(upgrades, func(a, b upgrade) int { return cmp.Compare(b.gain, a.gain) })
	levels := make([]int, len(layers))
	if plain := sizeOf(layers, FormatInt4Block) - sizeOf(layers, mixLevels[0]); plain <= budget {
		for i := range levels { // nothing is made coarser than int4 by itself to make something else finer
			levels[i] = 1
		}
		budget -= plain
	}
	for _, u := range upgrades {
		cost := layers[u.layer].size(mixLevels[u.level]) - layers[u.layer].size(mixLevels[levels[u.layer]])
		if u.gain > 0 && u.level > levels[u.layer] && cost > 0 && cost <= budget {
			levels[u.layer] = u.level
			budget -= cost
		}
	}
	formats := map[string]Format{}
	for i, l := range layers {
		formats[l.Key] = mixLevels[levels[i]]
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
		weights += float64(l.W.Elements())
		bits += l.size(l.Format)
		mixed = mixed || l.Format.Name == "int4"
	}
	return bits / max(weights, 1), mixed
}

// shownLayers bounds the list of layers in a description.
const shownLayers = 4

// describeMix says which formats a mix chose; empty where it chose nothing.
func (b *Builder) describeMix() string {
	bits, mixed := BitsOf(b.Linears)
	if len(b.Tensors.Guide.Formats) == 0 || !mixed {
		return ""
	}
	names := map[Format][]string{}
	head := ""
	for _, l := range b.Linears {
		if l.Kind == Head {
			head = fmt.Sprintf("; head %s", l.Format)
		} else {
			names[l.Format] = append(names[l.Format], strings.TrimPrefix(l.Key, b.component()+"/"))
		}
	}
	text := fmt.Sprintf("%.2f bits a weight: ", bits)
	for i, f := range mixLevels {
		if i > 0 {
			text += "; "
		}
		text += fmt.Sprintf("%d layers %s", len(names[f]), f)
	}
	if kept := names[FormatInt8Block]; len(kept) > 0 {
		more := ""
		if n := len(kept); n > shownLayers {
			kept, more = kept[:shownLayers], ", …"
		}
		text += fmt.Sprintf(" (%s%s)", strings.Join(kept, ", "), more)
	}
	return text + head
}

// describeKnown says what statistics were used for.
func (b *Builder) describeKnown() string {
	weighted, compensated := 0, 0
	for _, l := range b.Linears {
		s := b.Tensors.Guide.Statistics.Layer(l.Key, l.W.shape[1])
		switch {
		case s == nil || l.Format.Block == 0 || l.Format.Name != "int4":
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
