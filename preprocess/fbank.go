package preprocess

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/big"

	"gonum.org/v1/gonum/dsp/fourier"

	"glimpse/manifest"
)

// Fbank turns a sound into the tensors of a model that hears: clips evenly over the sound, each as log mel filter banks.
// It is ImageBind's load_and_transform_audio_data (torchaudio's kaldi.fbank with dither 0), and safe for concurrent use.
type Fbank struct {
	spec   manifest.Audio
	window []float64 // symmetric Hann
	shift  int
	points int // of the Fourier transform
	banks  [][]float64
	begin  []int // of each bank, its first point that is not zero
}

// logFloor is float32's epsilon: torchaudio's least energy before the logarithm.
const logFloor = 1.1920928955078125e-07

// NewFbank returns the recipe that a manifest describes. All that is wrong with the description is reported at once.
func NewFbank(spec manifest.Audio) (*Fbank, error) {
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	check(spec.Recipe == "fbank", "audio recipe %q is unknown: known is fbank; convert the checkpoint again with this version, or run the folder with a newer one", spec.Recipe)
	check(spec.SampleRate >= minSoundRate && spec.SampleRate <= maxSoundRate, "sample_rate is %d; want %d to %d", spec.SampleRate, minSoundRate, maxSoundRate)
	check(spec.Clips >= 1 && spec.Clips <= 1<<10, "clips is %d; want 1 to %d", spec.Clips, 1<<10)
	check(spec.ClipSeconds > 0 && spec.ClipSeconds <= 3600, "clip_seconds is %v; want 0 to 3600", spec.ClipSeconds)
	check(spec.MelBins >= 1 && spec.MelBins <= 1<<12, "mel_bins is %d; want 1 to %d", spec.MelBins, 1<<12)
	check(spec.Frames >= 1 && spec.Frames <= 1<<16, "frames is %d; want 1 to %d", spec.Frames, 1<<16)
	check(spec.Std > 0, "std is %v; want more than 0", spec.Std)
	check(spec.LowHz >= 0 && spec.LowHz < float64(spec.SampleRate)/2, "low_hz is %v; want less than half of sample_rate", spec.LowHz)
	size, shift := int(float64(spec.SampleRate)*spec.WindowMS*0.001), int(float64(spec.SampleRate)*spec.ShiftMS*0.001)
	check(size >= 2 && size <= 1<<20, "window_ms is %v, %d samples; want 2 to %d", spec.WindowMS, size, 1<<20)
	check(shift >= 1 && shift <= 1<<20, "shift_ms is %v, %d samples; want 1 to %d", spec.ShiftMS, shift, 1<<20)
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	f := &Fbank{spec: spec, shift: shift, points: 1, window: make([]float64, size)}
	for f.points < size {
		f.points *= 2
	}
	for i := range f.window {
		f.window[i] = 0.5 - 0.5*math.Cos(2*math.Pi*float64(i)/float64(size-1))
	}
	f.melBanks()
	return f, nil
}

// mel is the scale of HTK and Kaldi.
func mel(hz float64) float64 { return 1127 * math.Log(1+hz/700) }

// mel32 is mel as torch computes it on float32 tensors.
func mel32(hz float32) float32 { return 1127 * float32(math.Log(float64(1+hz/700))) }

// melBanks makes the triangles: torchaudio's get_mel_banks without warping. The point at half of the sample rate has no
// weight in any. Each step is rounded to float32 where torchaudio's is: of a narrow triangle that holds one point near its
// corner, the rounding is a visible part.
func (f *Fbank) melBanks() {
	low, high := mel(f.spec.LowHz), mel(float64(f.spec.SampleRate)/2)
	delta := (high - low) / float64(f.spec.MelBins+1)
	width := float64(f.spec.SampleRate) / float64(f.points)
	f.banks, f.begin = make([][]float64, f.spec.MelBins), make([]int, f.spec.MelBins)
	for b := range f.banks {
		edge := func(i int) float32 { return float32(low) + float32(float32(b)+float32(i))*float32(delta) }
		left, centre, right := edge(0), edge(1), edge(2)
		for i := range f.points / 2 {
			m := mel32(float32(width) * float32(i))
			weight := max(0, min((m-left)/(centre-left), (right-m)/(right-centre)))
			switch {
			case weight == 0 && f.banks[b] == nil:
				f.begin[b] = i + 1
			case weight > 0:
				f.banks[b] = append(f.banks[b], float64(weight))
			}
		}
	}
}

// Prepare makes "fbank" [clips, 1, mel_bins, frames]. The sound is not changed.
func (f *Fbank) Prepare(ctx context.Context, sound *Sound) (map[string]*Array, error) {
	resampled, err := sound.Resample(f.spec.SampleRate, TorchaudioSinc)
	if err != nil {
		return nil, err
	}
	if n := resampled.Samples(); n < len(f.window) {
		return nil, fmt.Errorf("prepare sound: it has %d samples, and a model that hears takes at least %d (%v ms)", n, len(f.window), f.spec.WindowMS)
	}
	work := &Sound{Rate: resampled.Rate}
	for _, samples := range resampled.Channels {
		work.Channels = append(work.Channels, append([]float32(nil), samples...))
	}
	size := f.spec.MelBins * f.spec.Frames
	values := make([]float32, f.spec.Clips*size)
	for i, clip := range f.clips(work.Samples()) {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("prepare sound: %w", err)
		}
		own := work
		if !f.spec.SharedMean {
			own = resampled.copied(clip)
			clip = [2]int{0, own.Samples()}
		}
		own.centre(clip)
		f.bins(values[i*size:(i+1)*size], own.Channels[0][clip[0]:clip[1]])
	}
	shape := []int64{int64(f.spec.Clips), 1, int64(f.spec.MelBins), int64(f.spec.Frames)}
	return map[string]*Array{"fbank": {Shape: shape, Float32: values}}, nil
}

// clips returns the first sample of each clip and the one behind its last. Starts are i/clips of what is left of the sound's
// seconds behind a clip, in pytorchvideo's exact fractions of Python's floats; the last clip does not reach the end.
func (f *Fbank) clips(samples int) [][2]int {
	free := float64(samples)/float64(f.spec.SampleRate) - f.spec.ClipSeconds
	each := new(big.Rat)
	if free > 0 {
		each.Quo(each.SetFloat64(free), big.NewRat(int64(f.spec.Clips), 1))
	}
	length, rate := new(big.Rat).SetFloat64(f.spec.ClipSeconds), big.NewRat(int64(f.spec.SampleRate), 1)
	sample := func(t *big.Rat) int {
		t = new(big.Rat).Mul(t, rate)
		return min(samples, int(new(big.Int).Quo(t.Num(), t.Denom()).Int64()))
	}
	out := make([][2]int, f.spec.Clips)
	for i := range out {
		start := new(big.Rat).Mul(each, big.NewRat(int64(i), 1))
		out[i] = [2]int{sample(start), sample(new(big.Rat).Add(start, length))}
	}
	return out
}

// copied returns a clip as a sound of its own.
func (s *Sound) copied(clip [2]int) *Sound {
	out := &Sound{Rate: s.Rate}
	for _, samples := range s.Channels {
		out.Channels = append(out.Channels, append([]float32(nil), samples[clip[0]:clip[1]]...))
	}
	return out
}

// centre takes the mean of a clip, over all channels, off its samples.
func (s *Sound) centre(clip [2]int) {
	sum := 0.0
	for _, samples := range s.Channels {
		for _, v := range samples[clip[0]:clip[1]] {
			sum += float64(v)
		}
	}
	mean := float32(sum / float64(len(s.Channels)*(clip[1]-clip[0])))
	for _, samples := range s.Channels {
		own := samples[clip[0]:clip[1]]
		for i := range own {
			own[i] -= mean
		}
	}
}

// bins fills out [mel_bins, frames] from one clip. Windows that reach over its end are left out.
func (f *Fbank) bins(out, samples []float32) {
	frames := 0
	if len(samples) >= len(f.window) {
		frames = min(f.spec.Frames, 1+(len(samples)-len(f.window))/f.shift)
	}
	transform := fourier.NewFFT(f.points)
	frame, spectrum := make([]float64, f.points), make([]complex128, f.points/2+1)
	power := make([]float64, f.points/2)
	for t := range f.spec.Frames {
		if t >= frames {
			for b := range f.banks {
				out[b*f.spec.Frames+t] = float32((0 - f.spec.Mean) / f.spec.Std)
			}
			continue
		}
		f.cut(frame, samples[t*f.shift:])
		for i, c := range transform.Coefficients(spectrum, frame)[:len(power)] {
			power[i] = real(c)*real(c) + imag(c)*imag(c)
		}
		for b, bank := range f.banks {
			energy := 0.0
			for i, weight := range bank {
				energy += weight * power[f.begin[b]+i]
			}
			out[b*f.spec.Frames+t] = float32((math.Log(max(energy, logFloor)) - f.spec.Mean) / f.spec.Std)
		}
	}
}

// cut makes one window: its mean taken off, pre-emphasised, under the window function, with zeros behind.
func (f *Fbank) cut(frame []float64, samples []float32) {
	n := len(f.window)
	mean := 0.0
	for _, v := range samples[:n] {
		mean += float64(v)
	}
	mean /= float64(n)
	before := float64(samples[0]) - mean // the first sample is its own predecessor
	for i, v := range samples[:n] {
		own := float64(v) - mean
		frame[i] = (own - f.spec.Preemphasis*before) * f.window[i]
		before = own
	}
	clear(frame[n:])
}
