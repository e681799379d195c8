package preprocess

import (
	"fmt"
	"math"
)

// Sinc says how sound is brought to another rate: a windowed sinc of Width zero crossings on each side, cut off at Rolloff of
// the lower rate's Nyquist frequency. Torchaudio's defaults are 6 and 0.99.
type Sinc struct {
	Width   int
	Rolloff float64
}

// TorchaudioSinc is what torchaudio.functional.resample does unless told otherwise.
var TorchaudioSinc = Sinc{Width: 6, Rolloff: 0.99}

// Resample returns the sound at another rate: torchaudio.functional.resample with "sinc_interp_hann". There are
// ceil(samples · rate / old rate) samples. At the same rate the sound itself is returned.
func (s *Sound) Resample(rate int, filter Sinc) (*Sound, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("resample: %w", err)
	}
	if rate < minSoundRate || rate > maxSoundRate || filter.Width < 1 || filter.Width > 1<<10 || !(filter.Rolloff > 0 && filter.Rolloff <= 1) {
		return nil, fmt.Errorf("resample to %d samples a second with a sinc of width %d and roll-off %v: want %d to %d, 1 to 1024 and 0 to 1",
			rate, filter.Width, filter.Rolloff, minSoundRate, maxSoundRate)
	}
	if rate == s.Rate {
		return s, nil
	}
	out := &Sound{Rate: rate, Channels: make([][]float32, len(s.Channels))}
	r := newResampler(s.Rate, rate, filter)
	for c, samples := range s.Channels {
		out.Channels[c] = r.run(samples)
	}
	return out, nil
}

// resampler holds the filter's taps for each of the phases that an output sample may have between input samples.
type resampler struct {
	from, to int // without their common divisor
	first    []int
	taps     [][]float32
}

func newResampler(from, to int, filter Sinc) *resampler {
	divisor := gcd(from, to)
	r := &resampler{from: from / divisor, to: to / divisor}
	low := float64(min(r.from, r.to)) * filter.Rolloff
	width := math.Ceil(float64(filter.Width) * float64(r.from) / low)
	r.first, r.taps = make([]int, r.to), make([][]float32, r.to)
	for phase := range r.to {
		// The phase's time in input samples; taps further than width away are zero.
		at := float64(phase) * float64(r.from) / float64(r.to)
		r.first[phase] = int(math.Ceil(at - width))
		last := int(math.Floor(at + width))
		// Steps are rounded to float32 where torchaudio's are.
		start := float32(-phase) / float32(r.to)
		for k := r.first[phase]; k <= last; k++ {
			t := (start + float32(k)/float32(r.from)) * float32(low)
			r.taps[phase] = append(r.taps[phase], sincTap(t, filter.Width)*float32(low/float64(r.from)))
		}
	}
	return r
}

// sincTap is a sinc under a Hann window, t in zero crossings.
func sincTap(t float32, width int) float32 {
	t = min(max(t, float32(-width)), float32(width))
	window := float32(math.Cos(float64(t * math.Pi / float32(width) / 2)))
	window *= window
	t *= math.Pi
	if t == 0 {
		return window
	}
	return float32(math.Sin(float64(t))) / t * window
}

func (r *resampler) run(samples []float32) []float32 {
	n := (int64(len(samples))*int64(r.to) + int64(r.from) - 1) / int64(r.from)
	out := make([]float32, n)
	for i := range out {
		block, phase := i/r.to, i%r.to
		from := block*r.from + r.first[phase]
		sum := 0.0
		for k, weight := range r.taps[phase] {
			if j := from + k; j >= 0 && j < len(samples) {
				sum += float64(weight) * float64(samples[j])
			}
		}
		out[i] = float32(sum)
	}
	return out
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
