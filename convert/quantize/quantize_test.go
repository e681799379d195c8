package quantize

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// reference is round to nearest even by comparing the two neighbours in exact arithmetic.
func halfValue(h uint16) float64 {
	sign := 1.0
	if h&0x8000 != 0 {
		sign = -1
	}
	e, m := int(h>>10&31), float64(h&0x3ff)
	switch e {
	case 0:
		return sign * m * 0x1p-24
	case 31:
		if m != 0 {
			return math.NaN()
		}
		return math.Inf(int(sign))
	}
	return sign * (1 + m/1024) * math.Pow(2, float64(e-15))
}

// Every half comes back, and between any two neighbours the middle goes to the even one, what is beside it to the nearer.
func TestFloat16RoundsToNearestEven(t *testing.T) {
	dst := make([]byte, 2)
	half := func(v float32) uint16 {
		Float16(dst, []float32{v})
		return binary.LittleEndian.Uint16(dst)
	}
	for h := range uint16(0x7c00) {
		value := halfValue(h)
		next := halfValue(h + 1)
		if h == 0x7bff {
			next = 65536 // the half after the largest, were there one
		}
		middle := float32((value + next) / 2) // exact: one more bit than a half has
		even := h + h&1
		for _, c := range []struct {
			v    float32
			want uint16
		}{
			{float32(value), h},
			{math.Nextafter32(middle, 0), h},
			{middle, even},
			{math.Nextafter32(middle, 1e9), h + 1},
		} {
			if got := half(c.v); got != c.want {
				t.Fatalf("%v (%#x): got %#04x, want %#04x", c.v, math.Float32bits(c.v), got, c.want)
			}
			if got := half(-c.v); got != c.want|0x8000 {
				t.Fatalf("%v: got %#04x, want %#04x", -c.v, got, c.want|0x8000)
			}
		}
	}
}

func TestHalfSpecials(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	src := []float32{inf, -inf, nan, 65519.996, 65520, 1e38, -1e38, 1e-45, math.Float32frombits(0x7f800001)}
	dst := make([]byte, 2*len(src))
	if n := Float16(dst, src); n != 3 {
		t.Errorf("Float16: %d overflows, want 3", n)
	}
	want := []uint16{0x7c00, 0xfc00, 0x7e00, 0x7bff, 0x7c00, 0x7c00, 0xfc00, 0, 0x7e00}
	for i, w := range want {
		if got := binary.LittleEndian.Uint16(dst[2*i:]); got != w {
			t.Errorf("Float16(%v) = %#04x, want %#04x", src[i], got, w)
		}
	}
	src = []float32{inf, -inf, nan, math.MaxFloat32, 3.3e38, math.Float32frombits(0xffffffff), math.Float32frombits(0x7f800001), 1e-45}
	dst = make([]byte, 2*len(src))
	if n := BFloat16(dst, src); n != 1 {
		t.Errorf("BFloat16: %d overflows, want 1", n)
	}
	want = []uint16{0x7f80, 0xff80, 0x7fc0, 0x7f80, 0x7f78, 0xffff, 0x7fc0, 0}
	for i, w := range want {
		if got := binary.LittleEndian.Uint16(dst[2*i:]); got != w {
			t.Errorf("BFloat16(%v) = %#04x, want %#04x", src[i], got, w)
		}
	}
}

func TestBFloat16RoundsToNearestEven(t *testing.T) {
	dst := make([]byte, 2)
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.Uint32Range(0, 0x7f7effff).Draw(t, "bits")
		BFloat16(dst, []float32{math.Float32frombits(b)})
		got := uint32(binary.LittleEndian.Uint16(dst)) << 16
		down := b &^ 0xffff
		want := down
		if rest := b & 0xffff; rest > 0x8000 || (rest == 0x8000 && down>>16&1 == 1) {
			want = down + 0x10000
		}
		if got != want {
			t.Fatalf("%#x: got %#x, want %#x", b, got, want)
		}
	})
}

// drawMatrix has rows of every temper: normal, tiny, huge, one-sided, constant, with outliers, zero.
func drawMatrix(t *rapid.T, n, k int) []float32 {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	src := make([]float32, n*k)
	for r := range n {
		row := src[r*k : (r+1)*k]
		size := float32(math.Pow(10, rapid.Float64Range(-25, 36).Draw(t, "size")))
		kind := rapid.IntRange(0, 5).Draw(t, "kind")
		for i := range row {
			v := float32(rng.NormFloat64())
			switch kind {
			case 1:
				v = max(v, -v)
			case 2:
				v = -1
			case 3:
				if rng.IntN(16) == 0 {
					v *= 20
				}
			case 4:
				v = 0
			case 5:
				v = float32(rng.IntN(17) - 8) // ties
			}
			row[i] = v * size
		}
	}
	return src
}

// within allows scale/2 and float32's own rounding of the values involved.
func within(value, got, scale float32) bool {
	bound := math.Abs(float64(scale))/2 + 4e-7*math.Abs(float64(value)) + 1e-6*math.Abs(float64(scale)) + 2*negligible
	return math.Abs(float64(value)-float64(got)) <= bound
}

func TestBlockwiseErrorBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, k := rapid.IntRange(1, 4).Draw(t, "n"), rapid.IntRange(1, 140).Draw(t, "k")
		b := Blocks{Bits: rapid.SampledFrom([]int{4, 8}).Draw(t, "bits"), Block: rapid.SampledFrom([]int{16, 32, 64, 128}).Draw(t, "block")}
		src := drawMatrix(t, n, k)
		l := Sizes(n, k, b.Bits, b.Block)
		var zeros []byte
		if rapid.Bool().Draw(t, "asymmetric") {
			zeros = make([]byte, l.ZeroPoints)
		}
		quantized := func(b Blocks) ([]float32, []float32) {
			packed, scales, out := make([]byte, l.Packed), make([]float32, l.Scales), make([]float32, n*k)
			if err := b.Quantize(src, n, k, packed, scales, zeros); err != nil {
				t.Fatal(err)
			}
			b.Dequantize(out, n, k, packed, scales, zeros)
			return out, scales
		}
		rounded, scales := quantized(b)
		for i, v := range src {
			scale := scales[i/k*l.BlocksPerRow+i%k/b.Block]
			if !within(v, rounded[i], scale) {
				t.Fatalf("weight %d: %v became %v with scale %v", i, v, rounded[i], scale)
			}
		}
		b.Search = rapid.IntRange(1, 12).Draw(t, "search")
		searched, _ := quantized(b)
		for r := range n {
			for j := range l.BlocksPerRow {
				from, to := r*k+j*b.Block, r*k+min((j+1)*b.Block, k)
				plain, better := squared(src[from:to], rounded[from:to]), squared(src[from:to], searched[from:to])
				if better > plain*(1+1e-6) {
					t.Fatalf("row %d block %d: squared error %v with search, %v without", r, j, better, plain)
				}
			}
		}
	})
}

func squared(a, b []float32) float64 {
	sum := 0.0
	for i := range a {
		d := float64(a[i]) - float64(b[i])
		sum += d * d
	}
	return sum
}

// The search is worth its time: what it takes away of the squared error of normal weights at int4, see Blocks.Search.
func TestSearchGain(t *testing.T) {
	const n, k = 64, 512
	rng := rand.New(rand.NewPCG(3, 4))
	src := make([]float32, n*k)
	for i := range src {
		src[i] = float32(rng.NormFloat64())
	}
	for _, asymmetric := range []bool{false, true} {
		var errs []float64
		for _, search := range []int{0, 8} {
			b := Blocks{Bits: 4, Block: 32, Search: search}
			l := Sizes(n, k, 4, 32)
			packed, scales, out := make([]byte, l.Packed), make([]float32, l.Scales), make([]float32, n*k)
			var zeros []byte
			if asymmetric {
				zeros = make([]byte, l.ZeroPoints)
			}
			if err := b.Quantize(src, n, k, packed, scales, zeros); err != nil {
				t.Fatal(err)
			}
			b.Dequantize(out, n, k, packed, scales, zeros)
			errs = append(errs, squared(src, out)/(n*k))
		}
		t.Logf("asymmetric %v: mean squared error %.6f rounded, %.6f searched", asymmetric, errs[0], errs[1])
		most := 0.89
		if asymmetric {
			most = 0.93
		}
		if errs[1] > most*errs[0] {
			t.Errorf("asymmetric %v: mean squared error %v rounded, %v searched", asymmetric, errs[0], errs[1])
		}
	}
}

func TestInt8RowsErrorBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, k := rapid.IntRange(1, 70).Draw(t, "n"), rapid.IntRange(1, 60).Draw(t, "k")
		src := drawMatrix(t, n, k)
		q, scale := make([]int8, n*k), make([]float32, n)
		if err := Int8Rows(src, n, k, q, scale); err != nil {
			t.Fatal(err)
		}
		for i, v := range src {
			if !within(v, float32(q[i])*scale[i/k], scale[i/k]) {
				t.Fatalf("weight %d: %v became %d with scale %v", i, v, q[i], scale[i/k])
			}
		}
	})
}

// Pieces give what the whole gives.
func TestCutInRows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, k := 6, 50
		src := drawMatrix(t, n, k)
		cut := rapid.IntRange(1, n-1).Draw(t, "cut")
		l := Sizes(1, k, 4, 32)
		make3 := func() ([]byte, []float32, []byte) {
			return make([]byte, n*l.Packed), make([]float32, n*l.Scales), make([]byte, n*l.ZeroPoints)
		}
		p1, s1, z1 := make3()
		p2, s2, z2 := make3()
		err := errors.Join(
			Blockwise(src, n, k, 4, 32, p1, s1, z1),
			Blockwise(src[:cut*k], cut, k, 4, 32, p2[:cut*l.Packed], s2[:cut*l.Scales], z2[:cut*l.ZeroPoints]),
			Blockwise(src[cut*k:], n-cut, k, 4, 32, p2[cut*l.Packed:], s2[cut*l.Scales:], z2[cut*l.ZeroPoints:]))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(p1, p2) || !slices.Equal(s1, s2) || !slices.Equal(z1, z2) {
			t.Fatal("two pieces differ from the whole")
		}
	})
}

func TestNonFinite(t *testing.T) {
	const n, k = 100, 20
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), math.Copysign(math.NaN(), -1)} {
		src := make([]float32, n*k)
		src[71*k+13] = float32(bad)
		l := Sizes(n, k, 4, 16)
		for name, err := range map[string]error{
			"rows":   Int8Rows(src, n, k, make([]int8, n*k), make([]float32, n)),
			"blocks": Blockwise(src, n, k, 4, 16, make([]byte, l.Packed), make([]float32, l.Scales), nil),
		} {
			var e *NonFiniteError
			if !errors.As(err, &e) || e.Row != 71 || e.Column != 13 {
				t.Errorf("%s with %v: %v", name, bad, err)
			}
		}
	}
}

func TestBadParameters(t *testing.T) {
	for want, b := range map[string]Blocks{
		"3 bits: MatMulNBits weights have 4 or 8 here":                                             {Bits: 3, Block: 32},
		"blocks of 24: MatMulNBits wants a power of two, at least 16":                              {Bits: 4, Block: 24},
		"blocks of 8: MatMulNBits wants a power of two, at least 16":                               {Bits: 4, Block: 8},
		"search over -1 scales":                                                                    {Bits: 4, Block: 32, Search: -1},
		"quantizing [1, 2] with 4 bits in blocks of 32: slices of 3, 16, 1, 0 elements do not fit": {Bits: 4, Block: 32},
	} {
		err := b.Quantize(make([]float32, 3), 1, 2, make([]byte, 16), make([]float32, 1), nil)
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
