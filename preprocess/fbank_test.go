package preprocess

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"glimpse/manifest"
)

// imageBindAudio is what ImageBind's code does to sound.
var imageBindAudio = manifest.Audio{Recipe: "fbank", SampleRate: 16000, Clips: 8, ClipSeconds: 2, SharedMean: true, MelBins: 128, Frames: 204,
	WindowMS: 25, ShiftMS: 10, Preemphasis: 0.97, LowHz: 20, Mean: -4.268, Std: 9.138}

// fbankTolerance is for single bins near silence: where the transform's float32 rounding of a loud frame is as large as
// they are, the same torch operations in float64 differ from the stored float32 ones by 1.9e-4, in the bin where ours do. At most 5 of
// a clip's 26,112 bins may be beyond 1e-4 of the largest value.
const fbankTolerance = 2.1e-4

type soundCase struct {
	ID       string
	Kind     string
	File     string
	Expected struct {
		SampleRate  int      `json:"sample_rate"`
		Channels    int      `json:"channels"`
		Native      int      `json:"samples_native"`
		At16k       int      `json:"samples_16k"`
		Clips       int      `json:"clips"`
		ClipSamples [][2]int `json:"clip_samples"`
		Stored      []int    `json:"fbank_clips_stored"`
	}
	Arrays map[string]string
}

func soundCases(t *testing.T, g *golden) []soundCase {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(g.dir, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []struct{ Kind string } }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	var all struct{ Cases []json.RawMessage }
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	var out []soundCase
	for i, c := range file.Cases {
		if c.Kind != "audio" {
			continue
		}
		var s soundCase
		if err := json.Unmarshal(all.Cases[i], &s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// goldenArrays are the arrays of a set; readGolden decodes cases, too, whose form is another here.
func goldenArrays(t *testing.T, set string) *golden {
	t.Helper()
	g := &golden{dir: filepath.Join(goldenDir(), set), tensor: map[string]goldenTensor{}}
	file, err := os.ReadFile(filepath.Join(g.dir, "golden.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(file)
	g.data = file[8+n:]
	if err := json.Unmarshal(file[8:8+n], &g.tensor); err != nil {
		t.Fatal(err)
	}
	return g
}

// Sounds at the model's rate and at another, with one channel and two, longer than a clip and shorter: every bin.
func TestFbankGolden(t *testing.T) {
	g := goldenArrays(t, "videollama-tiny")
	cases := soundCases(t, g)
	if len(cases) != 3 {
		t.Fatalf("%d sounds, want 3", len(cases))
	}
	for _, c := range cases {
		t.Run(c.ID, func(t *testing.T) {
			sound, err := DecodeWAV(readMedia(t, c.File), SoundLimits{})
			if err != nil {
				t.Fatal(err)
			}
			want := c.Expected
			if sound.Rate != want.SampleRate || len(sound.Channels) != want.Channels || sound.Samples() != want.Native {
				t.Errorf("%d Hz, %d channels, %d samples; want %d, %d, %d", sound.Rate, len(sound.Channels), sound.Samples(), want.SampleRate, want.Channels, want.Native)
			}
			spec := imageBindAudio
			spec.Clips = want.Clips
			f, err := NewFbank(spec)
			if err != nil {
				t.Fatal(err)
			}
			if have := fmt.Sprint(f.clips(want.At16k)); have != fmt.Sprint(want.ClipSamples) {
				t.Errorf("clips %v, want %v", have, want.ClipSamples)
			}
			made, err := f.Prepare(t.Context(), sound)
			if err != nil {
				t.Fatal(err)
			}
			bins, shape := g.float32s(t, c.Arrays["fbank"])
			size := int(shape[2] * shape[3])
			if fmt.Sprint(made["fbank"].Shape) != fmt.Sprint([]int64{int64(want.Clips), 1, 128, 204}) || int(shape[0]) != len(want.Stored) {
				t.Fatalf("shapes %v and %v", made["fbank"].Shape, shape)
			}
			for i, clip := range want.Stored {
				have, want := made["fbank"].Float32[clip*size:(clip+1)*size], bins[i*size:(i+1)*size]
				off, near := 0, 1e-4*largestOf(want)
				for k := range want {
					if math.Abs(float64(have[k])-float64(want[k])) > near {
						off++
					}
				}
				if worst := worstOf(have, want); !(worst <= fbankTolerance) || off > 5 {
					t.Errorf("clip %d is off by %g, and by more than 1e-4 of the largest value in %d bins", clip, worst, off)
				}
			}
		})
	}
}

func TestResampleGolden(t *testing.T) {
	g := goldenArrays(t, "videollama-tiny")
	sound, err := DecodeWAV(readMedia(t, "chirp_44k_stereo.wav"), SoundLimits{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := sound.Resample(16000, TorchaudioSinc)
	if err != nil {
		t.Fatal(err)
	}
	if out.Samples() != 19200 || out.Rate != 16000 {
		t.Fatalf("%d samples at %d", out.Samples(), out.Rate)
	}
	head, shape := g.float32s(t, "audio_chirp_44k_stereo.resampled_head")
	tail, tailShape := g.float32s(t, "audio_chirp_44k_stereo.resampled_tail")
	for c, samples := range out.Channels {
		n, m := int(shape[1]), int(tailShape[1])
		for name, worst := range map[string]float64{
			"head": worstOf(samples[:n], head[c*n:(c+1)*n]), "tail": worstOf(samples[len(samples)-m:], tail[c*m:(c+1)*m])} {
			t.Logf("channel %d %s: %.3g", c, name, worst)
			if worst > 2e-6 {
				t.Errorf("channel %d: the %s is off by %g", c, name, worst)
			}
		}
	}
}

func worstOf(have, want []float32) float64 {
	worst := 0.0
	for i := range want {
		d := math.Abs(float64(have[i]) - float64(want[i]))
		if math.IsNaN(d) {
			return d
		}
		worst = max(worst, d)
	}
	return worst
}

func largestOf(values []float32) float64 {
	largest := 0.0
	for _, v := range values {
		largest = max(largest, math.Abs(float64(v)))
	}
	return largest
}

// Without the quirk, a clip's bins are those of the clip as a sound of its own.
func TestFbankClipsApart(t *testing.T) {
	sound, err := DecodeWAV(readMedia(t, "chirp_16k_mono.wav"), SoundLimits{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range sound.Channels[0] {
		sound.Channels[0][i] += 0.1 * float32(i) / 52800 // so that clips differ in their means
	}
	bins := func(spec manifest.Audio, s *Sound) []float32 {
		f, err := NewFbank(spec)
		if err != nil {
			t.Fatal(err)
		}
		made, err := f.Prepare(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		return made["fbank"].Float32
	}
	apart := imageBindAudio
	apart.SharedMean = false
	one := apart
	one.Clips = 1
	size := 128 * 204
	have, want := bins(apart, sound)[7*size:], bins(one, sound.copied([2]int{18199, 50199}))
	if worst := worstOf(have, want); worst != 0 {
		t.Errorf("the last clip is off by %g", worst)
	}
	if worst := worstOf(bins(imageBindAudio, sound)[7*size:], want); worst == 0 {
		t.Error("shared means make no difference")
	}
}

func TestFbankRefuses(t *testing.T) {
	f, err := NewFbank(imageBindAudio)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Prepare(t.Context(), &Sound{Rate: 16000, Channels: [][]float32{make([]float32, 399)}}); err == nil {
		t.Error("a sound shorter than one window was taken")
	}
	if _, err := f.Prepare(t.Context(), &Sound{Rate: 16000}); err == nil {
		t.Error("a sound without samples was taken")
	}
	if _, err := NewFbank(manifest.Audio{Recipe: "mfcc"}); err == nil {
		t.Error("another recipe was taken")
	}
}

// wav is a file of the given format.
func wav(tag, channels, bits int, rate uint32, samples []byte) []byte {
	le := binary.LittleEndian
	out := append([]byte("RIFF"), 0, 0, 0, 0)
	out = append(out, "WAVEfmt \x10\x00\x00\x00"...)
	out = le.AppendUint16(out, uint16(tag))
	out = le.AppendUint16(out, uint16(channels))
	out = le.AppendUint32(out, rate)
	out = le.AppendUint32(out, rate*uint32(channels*bits/8))
	out = le.AppendUint16(out, uint16(channels*bits/8))
	out = le.AppendUint16(out, uint16(bits))
	out = append(out, "LIST\x01\x00\x00\x00x\x00data"...) // a chunk of odd length before the samples
	out = le.AppendUint32(out, uint32(len(samples)))
	return append(out, samples...)
}

func TestDecodeWAV(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name string
		data []byte
		want []float32
	}{
		{"8 bits", wav(1, 1, 8, 8000, []byte{128, 0, 192}), []float32{0, -1, 0.5}},
		{"16 bits", wav(1, 1, 16, 8000, []byte{0, 0x80, 0, 0x40}), []float32{-1, 0.5}},
		{"24 bits", wav(1, 1, 24, 8000, []byte{0, 0, 0x80, 0, 0, 0x40}), []float32{-1, 0.5}},
		{"32 bits", wav(1, 1, 32, 8000, []byte{0, 0, 0, 0x80, 0, 0, 0, 0x40}), []float32{-1, 0.5}},
		{"float", wav(3, 1, 32, 8000, le.AppendUint32(nil, math.Float32bits(0.25))), []float32{0.25}},
		{"double", wav(3, 1, 64, 8000, le.AppendUint64(nil, math.Float64bits(0.25))), []float32{0.25}},
		{"half a last sample", wav(1, 1, 16, 8000, []byte{0, 0x40, 7}), []float32{0.5}},
	} {
		s, err := DecodeWAV(c.data, SoundLimits{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if fmt.Sprint(s.Channels[0]) != fmt.Sprint(c.want) || s.Rate != 8000 {
			t.Errorf("%s: %v at %d, want %v", c.name, s.Channels[0], s.Rate, c.want)
		}
	}
	stereo, err := DecodeWAV(wav(1, 2, 16, 8000, []byte{0, 0x40, 0, 0x80}), SoundLimits{})
	if err != nil || fmt.Sprint(stereo.Channels) != "[[0.5] [-1]]" {
		t.Errorf("%v %v", stereo, err)
	}
	for _, c := range []struct {
		name string
		data []byte
		kind Kind
	}{
		{"not a sound", []byte("hello"), KindNotSound},
		{"empty", wav(1, 1, 16, 8000, nil), KindTruncated},
		{"cut", wav(1, 1, 16, 8000, make([]byte, 100))[:80], KindTruncated},
		{"compressed", wav(85, 1, 16, 8000, make([]byte, 4)), KindUnsupported},
		{"12 bits", wav(1, 1, 12, 8000, make([]byte, 4)), KindUnsupported},
		{"no channels", wav(1, 0, 16, 8000, make([]byte, 4)), KindCorrupt},
		{"many channels", wav(1, 9, 16, 8000, make([]byte, 36)), KindTooLarge},
		{"no rate", wav(1, 1, 16, 0, make([]byte, 4)), KindCorrupt},
		{"too long", wav(1, 1, 8, 100, make([]byte, 400_000)), KindTooLarge},
		{"no number", wav(3, 1, 32, 8000, le.AppendUint32(nil, math.Float32bits(float32(math.NaN())))), KindCorrupt},
	} {
		_, err := DecodeWAV(c.data, SoundLimits{})
		var e *SoundError
		if !errors.As(err, &e) || e.Kind != c.kind {
			t.Errorf("%s: %v, want %s", c.name, err, c.kind)
		}
	}
}

func FuzzDecodeWAV(f *testing.F) {
	f.Add(wav(1, 2, 16, 44100, make([]byte, 64)))
	f.Add(wav(3, 1, 64, 8000, make([]byte, 16)))
	f.Add([]byte("RIFF\x00\x00\x00\x00WAVEfmt \xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := DecodeWAV(data, SoundLimits{MaxBytes: 1 << 16})
		if err == nil && s.check() != nil {
			t.Errorf("a sound that is none: %v", s.check())
		}
	})
}
