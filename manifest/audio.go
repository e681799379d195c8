package manifest

import "slices"

// Audio says how a sound becomes the model's tensors, and how many rows it takes in the prompt.
type Audio struct {
	// Recipe is "fbank": clips of equal length, evenly over the sound, each as Kaldi-compatible log mel filter banks
	// "fbank" [clips, 1, mel_bins, frames].
	Recipe string `toml:"recipe"`
	// Stages are the components that turn the recipe's tensors into Features, in the order they run. All clips of one sound
	// are one run.
	Stages   []string `toml:"stages"`
	Features string   `toml:"features"` // the tensor whose rows, [1, tokens, hidden_size], enter the prompt
	Tokens   int      `toml:"tokens"`   // of the prompt that a sound takes

	SampleRate  int     `toml:"sample_rate"`  // sound is resampled to this first
	Clips       int     `toml:"clips"`        // of one sound
	ClipSeconds float64 `toml:"clip_seconds"` // length of a clip; a shorter sound is one
	// SharedMean says that the mean of a clip is taken off the samples that later clips share with it, as ImageBind's code
	// does; otherwise clips do not know of each other.
	SharedMean  bool    `toml:"shared_mean,omitempty"`
	MelBins     int     `toml:"mel_bins"`
	Frames      int     `toml:"frames"` // of a clip: cut or filled up with zeros before the normalisation
	WindowMS    float64 `toml:"window_ms"`
	ShiftMS     float64 `toml:"shift_ms"`
	Preemphasis float64 `toml:"preemphasis"`
	LowHz       float64 `toml:"low_hz"` // of the lowest mel bin; the highest ends at half of the sample rate
	Mean        float64 `toml:"mean"`
	Std         float64 `toml:"std"`
}

func (m *Manifest) validateAudio(p *problems) {
	a := m.Audio
	if a == nil {
		p.check(m.Prompt.AudioPlaceholder == "", "prompt.audio_placeholder is %q and there is no audio", m.Prompt.AudioPlaceholder)
		return
	}
	p.check(m.Picture != nil && m.Decoder != nil, "audio is there without picture or decoder: this is not supported")
	p.check(a.Recipe != "", "audio.recipe is empty")
	p.check(len(a.Stages) > 0, "audio.stages is empty")
	m.stages(p, "audio.stages", a.Stages)
	p.check(m.makes(a.Stages, a.Features), "audio.features is %q, which none of audio.stages makes", a.Features)
	p.within("audio.tokens", a.Tokens, 1, 1<<16)
	p.within("audio.sample_rate", a.SampleRate, 100, 768_000)
	p.within("audio.clips", a.Clips, 1, 1<<10)
	p.check(a.ClipSeconds > 0 && a.ClipSeconds <= 3600, "audio.clip_seconds is %v; it must lie above 0 and be at most 3600", a.ClipSeconds)
	p.within("audio.mel_bins", a.MelBins, 1, 1<<12)
	p.within("audio.frames", a.Frames, 1, 1<<16)
	p.check(a.WindowMS > 0 && a.WindowMS <= 1000, "audio.window_ms is %v; it must lie above 0 and be at most 1000", a.WindowMS)
	p.check(a.ShiftMS > 0 && a.ShiftMS <= 1000, "audio.shift_ms is %v; it must lie above 0 and be at most 1000", a.ShiftMS)
	p.check(a.LowHz >= 0 && a.LowHz < float64(a.SampleRate)/2, "audio.low_hz is %v; it must lie in 0..%d", a.LowHz, a.SampleRate/2)
	p.check(a.Preemphasis >= 0 && a.Preemphasis <= 1, "audio.preemphasis is %v; it must lie in 0..1", a.Preemphasis)
	p.check(a.Std > 0, "audio.std is %v; it must be positive", a.Std)
	p.check(m.Prompt.AudioPlaceholder != "", "audio is there and prompt.audio_placeholder is empty")
	p.check(!slices.Contains([]string{m.Prompt.Placeholder, m.Prompt.VideoPlaceholder}, m.Prompt.AudioPlaceholder) || m.Prompt.AudioPlaceholder == "",
		"prompt.audio_placeholder is %q, as that of another medium", m.Prompt.AudioPlaceholder)
}
