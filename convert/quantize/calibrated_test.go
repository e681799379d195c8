package quantize

import (
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// calibrated is a layer with correlated inputs of very different sizes: rows of inputs, their mean squares, their Hessian.
func calibrated(seed uint64, n, k, rows int) (w []float32, x [][]float64, square, hessian []float32) {
	r := rand.New(rand.NewPCG(seed, 3))
	w = make([]float32, n*k)
	for i := range w {
		w[i] = float32(r.NormFloat64())
	}
	square, hessian = make([]float32, k), make([]float32, k*k)
	size := make([]float64, k)
	for j := range size {
		size[j] = math.Exp(r.NormFloat64())
	}
	for range rows {
		row, common := make([]float64, k), r.NormFloat64()
		for j := range row {
			row[j] = size[j] * (r.NormFloat64() + common)
		}
		x = append(x, row)
		for i, a := range row {
			square[i] += float32(a * a / float64(rows))
			for j, b := range row {
				hessian[i*k+j] += float32(a * b / float64(rows))
			}
		}
	}
	return w, x, square, hessian
}

// outputError is the mean squared error of x·Wᵀ with the quantized weights.
func outputError(t *testing.T, w []float32, x [][]float64, n, k int, b Blocks, quantize func(packed []byte, scales []float32) error) float64 {
	t.Helper()
	l := Sizes(n, k, b.Bits, b.Block)
	packed, scales, got := make([]byte, l.Packed), make([]float32, l.Scales), make([]float32, n*k)
	if err := quantize(packed, scales); err != nil {
		t.Fatal(err)
	}
	b.Dequantize(got, n, k, packed, scales, nil)
	sum := 0.0
	for _, row := range x {
		for i := range n {
			y := 0.0
			for j, v := range row {
				y += v * float64(w[i*k+j]-got[i*k+j])
			}
			sum += y * y
		}
	}
	return sum
}

// Each thing that is known about a layer's inputs makes its outputs closer.
func TestKnownInputsMakeOutputsCloser(t *testing.T) {
	const n, k = 24, 96
	w, x, square, hessian := calibrated(1, n, k, 400)
	measure := func(b Blocks, c *Compensator) float64 {
		return outputError(t, w, x, n, k, b, func(packed []byte, scales []float32) error {
			if c != nil {
				return b.QuantizeCompensated(c, w, n, k, packed, scales, nil)
			}
			return b.Quantize(w, n, k, packed, scales, nil)
		})
	}
	c, err := NewCompensator(hessian, k)
	if err != nil {
		t.Fatal(err)
	}
	nearest := measure(Blocks{Bits: 4, Block: 32}, nil)
	searched := measure(Blocks{Bits: 4, Block: 32, Search: 12}, nil)
	weighted := measure(Blocks{Bits: 4, Block: 32, Search: 12, Importance: square}, nil)
	compensated := measure(Blocks{Bits: 4, Block: 32, Search: 12}, c)
	t.Logf("output error relative to round to nearest: searched %.2f, weighted %.2f, compensated %.2f", searched/nearest, weighted/nearest, compensated/nearest)
	if !(searched < nearest && weighted < searched && compensated < 0.6*weighted) {
		t.Errorf("round to nearest %v, searched %v, weighted %v, compensated %v", nearest, searched, weighted, compensated)
	}
}

// Uniform importance leaves no larger error than rounding to nearest, for any weights.
func TestWeightedIsNoWorse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float32Range(-1e6, 1e6), 1, 32).Draw(t, "values")
		importance := rapid.SliceOfN(rapid.Float32Range(0, 100), len(values), len(values)).Draw(t, "importance")
		b := Blocks{Bits: 4, Block: 32, Search: 12}
		low, high, _ := extremes(values)
		fitted := b.fit(low, high, false)
		if fitted.inverse == 0 {
			return
		}
		got := b.weighted(values, importance, fitted, make([]float32, 32))
		if e, f := got.weightedError(values, importance), fitted.weightedError(values, importance); e > f {
			t.Fatalf("weighted error %v, round to nearest %v", e, f)
		}
	})
}

// Inputs that do not depend on each other leave nothing to make up with: compensation is then rounding.
func TestCompensationOfIndependentInputsIsRounding(t *testing.T) {
	const n, k = 3, 40
	w, _, _, _ := calibrated(2, n, k, 1)
	identity := make([]float32, k*k)
	for i := range k {
		identity[i*k+i] = 1
	}
	c, err := NewCompensator(identity, k)
	if err != nil {
		t.Fatal(err)
	}
	b := Blocks{Bits: 4, Block: 16}
	l := Sizes(n, k, 4, 16)
	packed, scales := make([]byte, l.Packed), make([]float32, l.Scales)
	want, wantScales := make([]byte, l.Packed), make([]float32, l.Scales)
	if err := b.QuantizeCompensated(c, w, n, k, packed, scales, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Quantize(w, n, k, want, wantScales, nil); err != nil {
		t.Fatal(err)
	}
	if string(packed) != string(want) {
		t.Error("codes differ")
	}
}

func TestHessiansThatCannotBeUsed(t *testing.T) {
	bad := map[string][]float32{
		"zero":          make([]float32, 4),
		"not definite":  {1, 5, 5, 1},
		"not a number":  {float32(math.NaN()), 0, 0, 1},
		"of other size": {1},
	}
	for name, h := range bad {
		if _, err := NewCompensator(h, 2); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c, err := NewCompensator([]float32{1, 0, 0, 1}, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := (Blocks{Bits: 4, Block: 32}).QuantizeCompensated(c, make([]float32, 3), 1, 3, nil, nil, nil); err == nil {
		t.Error("rows of another width were quantized")
	}
}
