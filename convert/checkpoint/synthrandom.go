package checkpoint

// Random weights, made so that a model of them stays in range: linear layers draw from N(0, 0.02), norms are near 1, biases
// small. Values depend on the seed, the tensor's name and the element's place only.
//
// The generator has to keep up with a disk: a counter hashed to 64 bits picks four of 4096 quantiles of the normal
// distribution, already scaled and in the stored dtype.

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"io"
	"math"
	"strings"
)

// recipe is the distribution of a tensor's values: normal, or a formula of the place when value is set.
type recipe struct {
	mean, deviation float64
	value           func(i int64) float64
}

func constant(v float64) recipe { return recipe{value: func(int64) float64 { return v }} }

// recipeFor tells the kinds of tensors apart by dtype, rank and the last part of the name, as releases have them.
func recipeFor(t TensorInfo) recipe {
	last := t.Name[strings.LastIndexByte(t.Name, '.')+1:]
	rank := len(t.Shape)
	switch {
	case strings.HasSuffix(last, "position_ids") && rank > 0:
		n := max(t.Shape[rank-1], 1)
		return recipe{value: func(i int64) float64 { return float64(i % n) }}
	case !t.DType.IsFloat(), strings.HasSuffix(last, "mask"):
		return constant(0)
	case last == "inv_freq" && rank == 1: // rotary frequencies with the usual base
		return recipe{value: func(i int64) float64 { return math.Pow(10000, -float64(i)/float64(t.Shape[0])) }}
	case strings.HasSuffix(last, "logit_scale"):
		return constant(math.Log(1 / 0.07))
	case last == "temp": // of a contrastive loss
		return constant(0.07)
	case last == "ls1", last == "ls2", last == "lambda_1", last == "lambda_2", last == "gamma_1", last == "gamma_2":
		return recipe{mean: 0.1, deviation: 0.005} // LayerScale
	case rank <= 1 && (last == "weight" || last == "gamma"): // norms; nothing else has one-dimensional weights
		return recipe{mean: 1, deviation: 0.02}
	case rank <= 1 && strings.HasSuffix(last, "bias"), last == "beta":
		return recipe{deviation: 0.01}
	}
	return recipe{deviation: 0.02}
}

const quantiles = 4096

// normalQuantiles cuts the standard normal distribution into equal parts; symmetric, so that the mean is 0.
func normalQuantiles() *[quantiles]float64 {
	var q [quantiles]float64
	for i := range quantiles / 2 {
		p := (float64(i) + 0.5) / quantiles
		q[i] = math.Sqrt2 * math.Erfinv(2*p-1)
		q[quantiles-1-i] = -q[i]
	}
	return &q
}

var standardNormal = normalQuantiles()

// fillRandom writes the tensor's bytes.
func fillRandom(ctx context.Context, w io.Writer, t TensorInfo, seed uint64) error {
	r := recipeFor(t)
	size := t.DType.Size()
	buffer := make([]byte, min(chunkBytes, max(t.Bytes(), 8)))
	step := int64(len(buffer)) / size
	fill := func(dst []byte, first int64) {
		for i := range int64(len(dst)) / size {
			putValue(dst[i*size:], t.DType, r.value(first+i))
		}
	}
	if r.value == nil {
		fill = newNormal(t, r, seed).fill
	}
	for first, n := int64(0), t.Elements(); first < n; first += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buffer[:min(step, n-first)*size]
		fill(part, first)
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// normal draws one tensor.
type normal struct {
	key   uint64
	size  int64
	table [quantiles]uint64 // the values in the stored dtype
}

func newNormal(t TensorInfo, r recipe, seed uint64) *normal {
	name := fnv.New64a()
	io.WriteString(name, t.Name)
	g := &normal{key: scramble(seed ^ scramble(name.Sum64())), size: t.DType.Size()}
	for i, z := range standardNormal {
		var b [8]byte
		putValue(b[:], t.DType, r.mean+r.deviation*z)
		g.table[i] = binary.LittleEndian.Uint64(b[:])
	}
	return g
}

// scramble is the output function of splitmix64 (Steele, Lea, Flood 2014).
func scramble(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

const goldenRatio = 0x9e3779b97f4a7c15 // splitmix64's increment

// fill writes the elements from first on; first is a multiple of 4, and a chunk that is not ends the tensor.
func (g *normal) fill(dst []byte, first int64) {
	counter := g.key + uint64(first/4)*goldenRatio
	table, le := &g.table, binary.LittleEndian
	switch g.size {
	case 2:
		for ; len(dst) >= 8; dst = dst[8:] {
			x := scramble(counter)
			counter += goldenRatio
			le.PutUint64(dst, table[x&4095]|table[x>>16&4095]<<16|table[x>>32&4095]<<32|table[x>>48&4095]<<48)
		}
	case 4:
		for ; len(dst) >= 16; dst = dst[16:] {
			x := scramble(counter)
			counter += goldenRatio
			le.PutUint64(dst, table[x&4095]|table[x>>16&4095]<<32)
			le.PutUint64(dst[8:], table[x>>32&4095]|table[x>>48&4095]<<32)
		}
	}
	size := int(g.size)
	for i := 0; i*size < len(dst); i++ { // F64, and what is left of the others
		x := scramble(counter+uint64(i/4)*goldenRatio) >> (i % 4 * 16)
		var b [8]byte
		le.PutUint64(b[:], table[x&4095])
		copy(dst[i*size:(i+1)*size], b[:])
	}
}

// putValue stores one number in a dtype, rounded to nearest even. It is for tables and for small tensors.
func putValue(dst []byte, d DType, v float64) {
	le := binary.LittleEndian
	switch d {
	case F64:
		le.PutUint64(dst, math.Float64bits(v))
	case F32:
		le.PutUint32(dst, math.Float32bits(float32(v)))
	case F16:
		le.PutUint16(dst, halfBits(v))
	case BF16:
		b := math.Float32bits(float32(v))
		le.PutUint16(dst, uint16((b+0x7fff+b>>16&1)>>16))
	case I64, U64:
		le.PutUint64(dst, uint64(int64(v)))
	case I32, U32:
		le.PutUint32(dst, uint32(int64(v)))
	case I16, U16:
		le.PutUint16(dst, uint16(int64(v)))
	default:
		dst[0] = byte(int64(v))
	}
}

// halfBits rounds a finite number to half precision.
func halfBits(v float64) uint16 {
	var sign uint16
	if math.Signbit(v) {
		sign, v = 0x8000, -v
	}
	if v == 0 {
		return sign
	}
	exponent := max(math.Ilogb(v), -14) // subnormals share the smallest
	steps := math.RoundToEven(math.Ldexp(v, 10-exponent))
	// 1024 steps make a power of two, so a carry runs into the exponent by itself.
	if bits := float64(exponent+14)*1024 + steps; bits < 0x7c00 {
		return sign | uint16(bits)
	}
	return sign | 0x7c00
}
