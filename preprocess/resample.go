package preprocess

import (
	"fmt"
	"math"
)

// Filter is a resampling kernel, by the name that Pillow gives it.
type Filter struct {
	name    string
	support float64 // radius at scale 1
	kernel  func(x float64) float64

	tallFirst bool // the passes are swapped for tall pictures; see verticalFirst
}

// Pillow's separable filters. Bicubic is Keys' with a = -0.5 (not OpenCV's and torch's -0.75); Lanczos has three lobes.
var (
	Box      = Filter{name: "box", support: 0.5, kernel: boxKernel}
	Bilinear = Filter{name: "bilinear", support: 1, kernel: bilinearKernel}
	Hamming  = Filter{name: "hamming", support: 1, kernel: hammingKernel}
	Bicubic  = Filter{name: "bicubic", support: 2, kernel: bicubicKernel}
	Lanczos  = Filter{name: "lanczos", support: 3, kernel: lanczosKernel}
)

var filters = []Filter{Box, Bilinear, Hamming, Bicubic, Lanczos}

// FilterByName returns the filter that a manifest's resample names.
func FilterByName(name string) (Filter, error) {
	for _, f := range filters {
		if f.name == name {
			return f, nil
		}
	}
	return Filter{}, fmt.Errorf("unknown resample filter %q: known are box, bilinear, hamming, bicubic, lanczos", name)
}

// String returns the filter's name.
func (f Filter) String() string { return f.name }

// The kernels name every intermediate product's type: that keeps compilers of other architectures from fusing a
// multiplication with the addition after it, which would round once instead of twice and change weights.

func boxKernel(x float64) float64 {
	if x > -0.5 && x <= 0.5 {
		return 1
	}
	return 0
}

func bilinearKernel(x float64) float64 {
	if x = math.Abs(x); x < 1 {
		return 1 - x
	}
	return 0
}

func hammingKernel(x float64) float64 {
	x = math.Abs(x)
	switch {
	case x == 0:
		return 1
	case x >= 1:
		return 0
	}
	// Pillow writes these two constants in single precision; the weights depend on it in the 9th digit.
	const base, swing = float64(float32(0.54)), float64(float32(0.46))
	x *= math.Pi
	return math.Sin(x) / x * (base + float64(swing*math.Cos(x)))
}

func bicubicKernel(x float64) float64 {
	const a = -0.5
	x = math.Abs(x)
	switch {
	case x < 1:
		return float64(float64(float64(float64((a+2)*x)-(a+3))*x)*x) + 1
	case x < 2:
		return (float64((float64((x-5)*x)+8)*x) - 4) * a
	}
	return 0
}

func lanczosKernel(x float64) float64 {
	if x >= -3 && x < 3 {
		return sinc(x) * sinc(x/3)
	}
	return 0
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	x *= math.Pi
	return math.Sin(x) / x
}

// precisionBits is the number of fractional bits of a weight: 32 bits less 8 for the pixel and 2 because the
// negative lobes let partial sums leave 0..255 (Pillow, Resample.c).
const precisionBits = 32 - 8 - 2

// weights are the contributions of source samples to a run of output samples along one axis. Output i is the sum over
// j of source[first[i]+j] × values[start[i]+j], for as many j as there are up to start[i+1].
type weights struct {
	first  []int
	start  []int
	values []int32 // fixed point, precisionBits fractional bits
}

// low and high bound the source samples that any output reads: [low, high).
func (w *weights) span() (low, high int) {
	low, high = math.MaxInt, 0
	for i, first := range w.first {
		low = min(low, first)
		high = max(high, first+w.start[i+1]-w.start[i])
	}
	return low, high
}

// newWeights computes the weights of output samples [from, to) when the source interval [box0, box1) of an axis of
// in samples becomes out samples. As in Pillow's precompute_coeffs the box has single precision, the kernel is
// stretched when shrinking (antialiasing), weights are normalised in double precision and then rounded half away
// from zero. Only the asked-for outputs cost anything, however large out is.
func newWeights(in int, box0, box1 float32, out, from, to int, filter Filter) *weights {
	scale := float64(box1-box0) / float64(out)
	stretch := max(scale, 1)
	support := filter.support * stretch
	inverse := 1 / stretch

	n := to - from
	w := &weights{first: make([]int, n), start: make([]int, n+1)}
	w.values = make([]int32, 0, n*min(int(math.Ceil(support))*2+1, in))
	scratch := make([]float64, 0, min(int(math.Ceil(support))*2+1, in))
	for i := range n {
		center := float64(box0) + float64((float64(from+i)+0.5)*scale)
		low := max(int(center-support+0.5), 0)
		high := min(int(center+support+0.5), in)

		scratch = scratch[:0]
		sum := 0.0
		for x := low; x < high; x++ {
			v := filter.kernel((float64(x) - center + 0.5) * inverse)
			scratch = append(scratch, v)
			sum += v
		}
		for _, v := range scratch {
			if sum != 0 {
				v /= sum
			}
			w.values = append(w.values, toFixed(v))
		}
		w.first[i] = low
		w.start[i+1] = len(w.values)
	}
	return w
}

func toFixed(v float64) int32 {
	v *= 1 << precisionBits
	if v < 0 {
		return int32(v - 0.5)
	}
	return int32(v + 0.5)
}

// clip8 rounds off the fractional bits (the caller started its sum at one half) and clamps to a byte.
func clip8(sum int32) uint8 {
	v := sum >> precisionBits
	if uint32(v) > 255 {
		if v < 0 {
			return 0
		}
		return 255
	}
	return uint8(v)
}
