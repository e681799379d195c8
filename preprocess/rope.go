package preprocess

import (
	"fmt"
	"math"

	"glimpse/manifest"
)

// maxRopeElements bounds a table: 1 GiB of float32.
const maxRopeElements = 1 << 28

// RopeTables computes the cos and sin tables of a rotary embedding for positions 0 to positions-1, each row-major
// [positions, Dim/2] float32, with the attention factor multiplied in. sequenceLength is the length that the sequence
// will reach; only "dynamic" looks at it, whose frequencies change once it exceeds OriginalMaxPositions, and "prompt_ntk",
// for which it is the prompt's length.
//
// The types and their arithmetic, float32 from the frequencies on, are those of transformers' modeling_rope_utils
// (RoFormer, arXiv:2104.09864; YaRN, arXiv:2309.00071; Llama 3.1). An unknown type or a missing parameter is an error
// that names it.
func RopeTables(r manifest.Rope, positions, sequenceLength int) (cos, sin []float32, err error) {
	frequencies, factor, err := ropeFrequencies(r, sequenceLength)
	if err != nil {
		return nil, nil, fmt.Errorf("rotary tables: %w", err)
	}
	half := len(frequencies)
	if positions < 1 || positions > maxRopeElements/half {
		return nil, nil, fmt.Errorf("rotary tables: %d positions of %d frequencies; want 1 to %d positions", positions, half, maxRopeElements/half)
	}
	cos, sin = make([]float32, positions*half), make([]float32, positions*half)
	parallel(positions, 32*half, func(from, to int) {
		for p := from; p < to; p++ {
			for i, f := range frequencies {
				angle := float64(float32(p) * f) // rounded to float32 before the functions see it
				cos[p*half+i] = float32(math.Cos(angle)) * factor
				sin[p*half+i] = float32(math.Sin(angle)) * factor
			}
		}
	})
	return cos, sin, nil
}

// ropeFrequencies returns Dim/2 inverse frequencies in radians a position, and the factor on cos and sin.
func ropeFrequencies(r manifest.Rope, sequenceLength int) ([]float32, float32, error) {
	switch {
	case r.Dim < 2 || r.Dim%2 != 0 || r.Dim > 1<<16:
		return nil, 0, fmt.Errorf("dim is %d; want an even number from 2 to %d", r.Dim, 1<<16)
	case !(r.Theta > 1) || math.IsInf(r.Theta, 0):
		return nil, 0, fmt.Errorf("theta is %v; want a number above 1", r.Theta)
	case r.Type != "default" && r.Type != manifest.RopePromptNTK && (!(r.Factor > 0) || math.IsInf(r.Factor, 0)):
		return nil, 0, fmt.Errorf("type %q needs a positive factor, got %v", r.Type, r.Factor)
	}
	needOriginal := func() error {
		if r.OriginalMaxPositions < 1 {
			return fmt.Errorf("type %q needs original_max_positions, got %d", r.Type, r.OriginalMaxPositions)
		}
		return nil
	}
	switch r.Type {
	case "default":
		return inverseFrequencies(float32(r.Theta), r.Dim), 1, nil
	case "linear":
		f := inverseFrequencies(float32(r.Theta), r.Dim)
		for i := range f {
			f[i] /= float32(r.Factor)
		}
		return f, 1, nil
	case "dynamic":
		if err := needOriginal(); err != nil {
			return nil, 0, err
		}
		if r.Dim == 2 {
			return nil, 0, fmt.Errorf("type %q needs a dim above 2", r.Type)
		}
		return inverseFrequencies(dynamicBase(r, sequenceLength), r.Dim), 1, nil
	case manifest.RopePromptNTK:
		if err := needOriginal(); err != nil {
			return nil, 0, err
		}
		if r.Dim == 2 {
			return nil, 0, fmt.Errorf("type %q needs a dim above 2", r.Type)
		}
		return inverseFrequencies(promptBase(r, sequenceLength), r.Dim), 1, nil
	case "yarn":
		if err := needOriginal(); err != nil {
			return nil, 0, err
		}
		return yarnFrequencies(r), yarnAttention(r), nil
	case "llama3":
		if err := needOriginal(); err != nil {
			return nil, 0, err
		}
		if !(r.LowFreqFactor > 0) || !(r.HighFreqFactor > r.LowFreqFactor) {
			return nil, 0, fmt.Errorf("type %q needs 0 < low_freq_factor < high_freq_factor, got %v and %v", r.Type, r.LowFreqFactor, r.HighFreqFactor)
		}
		return llama3Frequencies(r), 1, nil
	}
	return nil, 0, fmt.Errorf("type %q is unknown: known are default, linear, dynamic, prompt_ntk, yarn, llama3", r.Type)
}

// inverseFrequencies returns 1 / base^(2i/dim).
func inverseFrequencies(base float32, dim int) []float32 {
	f := wavelengths(base, dim)
	for i := range f {
		f[i] = 1 / f[i]
	}
	return f
}

// wavelengths returns base^(2i/dim): radians⁻¹, positions for one radian.
func wavelengths(base float32, dim int) []float32 {
	f := make([]float32, dim/2)
	for i := range f {
		exponent := float32(2*i) / float32(dim)
		f[i] = float32(math.Pow(float64(base), float64(exponent)))
	}
	return f
}

// dynamicBase is theta of NTK scaling for a sequence of the given length. Upstream has the length in a tensor, so that
// each step is rounded to float32, except the exponent.
func dynamicBase(r manifest.Rope, sequenceLength int) float32 {
	if sequenceLength <= r.OriginalMaxPositions {
		return float32(r.Theta)
	}
	growth := float32(r.Factor)*float32(sequenceLength)/float32(r.OriginalMaxPositions) - float32(r.Factor-1)
	power := float32(math.Pow(float64(growth), float64(r.Dim)/float64(r.Dim-2)))
	return float32(r.Theta) * power
}

// promptBase is theta for a prompt of the given length: in steps of powers of two beyond the original context (get_ntk_alpha
// of Qwen-7B's modeling_qwen.py, in Python's double precision).
func promptBase(r manifest.Rope, promptLength int) float32 {
	if promptLength <= r.OriginalMaxPositions {
		return float32(r.Theta)
	}
	alpha := math.Exp2(math.Ceil(math.Log2(float64(promptLength)/float64(r.OriginalMaxPositions))+1)) - 1
	return float32(r.Theta * math.Pow(max(alpha, 1), float64(r.Dim)/float64(r.Dim-2)))
}

// yarnFrequencies blends the frequencies of extrapolation (as they are) and of interpolation (divided by the factor):
// those that turn more than BetaFast times within the original length stay, those below BetaSlow are divided.
func yarnFrequencies(r manifest.Rope) []float32 {
	fast, slow := orDefault(r.BetaFast, 32), orDefault(r.BetaSlow, 1)
	// dimension is the one whose frequency turns so many times within the original length.
	dimension := func(turns float64) float64 {
		return float64(r.Dim) * math.Log(float64(r.OriginalMaxPositions)/(turns*2*math.Pi)) / (2 * math.Log(r.Theta))
	}
	low, high := dimension(fast), dimension(slow)
	if !r.NoTruncate {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, float64(r.Dim-1))
	if low == high {
		high += 0.001
	}
	f := wavelengths(float32(r.Theta), r.Dim)
	for i, wave := range f {
		ramp := (float32(i) - float32(low)) / float32(high-low)
		keep := 1 - min(max(ramp, 0), 1)
		interpolated, kept := 1/(float32(r.Factor)*wave), 1/wave
		f[i] = float32(interpolated*(1-keep)) + float32(kept*keep)
	}
	return f
}

func orDefault(v, standard float64) float64 {
	if v == 0 {
		return standard
	}
	return v
}

// yarnAttention is the factor on cos and sin, which warms the softmax for long contexts.
func yarnAttention(r manifest.Rope) float32 {
	if r.AttentionFactor != 0 {
		return float32(r.AttentionFactor)
	}
	scale := func(m float64) float64 {
		if r.Factor <= 1 {
			return 1
		}
		return 0.1*m*math.Log(r.Factor) + 1
	}
	if r.MScale != 0 && r.MScaleAllDim != 0 {
		return float32(scale(r.MScale) / scale(r.MScaleAllDim))
	}
	return float32(scale(1))
}

// llama3Frequencies divides the frequencies of wavelengths that the original context could not hold LowFreqFactor times,
// keeps those that it held more than HighFreqFactor times, and blends between.
func llama3Frequencies(r manifest.Rope) []float32 {
	original, factor := float64(r.OriginalMaxPositions), float32(r.Factor)
	longest, shortest := float32(original/r.LowFreqFactor), float32(original/r.HighFreqFactor)
	f := inverseFrequencies(float32(r.Theta), r.Dim)
	for i, v := range f {
		wave := float32(2*math.Pi) / v
		switch {
		case wave > longest:
			f[i] = v / factor
		case wave < shortest:
		default:
			smooth := (float32(original)/wave - float32(r.LowFreqFactor)) / float32(r.HighFreqFactor-r.LowFreqFactor)
			f[i] = float32((1-smooth)*v/factor) + float32(smooth*v)
		}
	}
	return f
}
