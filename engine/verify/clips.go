// Cases that come as files of videos and sounds: which frames are chosen, what becomes of sound on its way to the prompt, and
// texts around media that are tokenized each by itself.

package verify

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"math"
	"os"
	"slices"
	"strings"

	"glimpse/engine"
	"glimpse/engine/internal/golden"
	"glimpse/manifest"
	"glimpse/media"
	"glimpse/preprocess"
)

const (
	framesUint8 = "frames_uint8" // [frames, height, width, 3], as the video's decoder gives them

	// Single bins near silence hold the reference's own float32 rounding of a loud frame: the same operations in float64
	// differ from it by 1.9e-4 in one bin of 26,112.
	fbankTolerance = 2.1e-4
	fbankFar       = 5 // bins of a clip that may be off by more than the relative tolerance
)

// mediaKinds are the kinds of cases about videos and sounds that ask nothing.
var mediaKinds = map[string]func(*checker, context.Context){"audio": (*checker).audio, "sampling": (*checker).sampling}

// joinedSegments are the ids of a prompt whose texts between media are stored apart.
func (k *checker) joinedSegments() []int32 {
	var ids []int32
	for i, segment := range k.c.Expected.SegmentIDs {
		if n := k.c.Expected.NumImageTokens; i > 0 && n != nil && i <= len(*n) {
			ids = append(ids, slices.Repeat([]int32{int32(k.engine.Manifest().Tokens.Image)}, (*n)[i-1])...)
		}
		ids = append(ids, segment...)
	}
	return ids
}

// oneMark writes the mark of a picture for every medium, where the authors' code has no other.
func oneMark(have, want string, p manifest.Prompt) string {
	for _, name := range []string{p.VideoPlaceholder, p.AudioPlaceholder} {
		if name != "" && p.Placeholder != "" && !strings.Contains(want, name) {
			have = strings.ReplaceAll(have, name, p.Placeholder)
		}
	}
	return have
}

// clip reads a video that is a file, the frames that the manifest wants of it.
func (k *checker) clip(ctx context.Context, name string) (engine.Part, error) {
	part := engine.Part{Type: engine.PartVideo}
	pic := k.engine.Manifest().Picture
	if pic == nil || pic.Video == nil {
		return part, fmt.Errorf("the model takes no videos")
	}
	in := media.Input{Path: k.set.Media(name), Source: name}
	v, err := k.media.Video(ctx, in, media.Choice{}.For(pic, in))
	if err != nil {
		return part, err
	}
	for i, frame := range v.Frames {
		part.Frames = append(part.Frames, engine.Picture{Data: frame, Source: v.Names[i]})
	}
	part.Seconds = v.Seconds
	want := k.c.Expected
	if want.FrameIndices != nil {
		k.equal("frame_indices", slices.Equal(v.Indices, want.FrameIndices), "have %v, want %v", v.Indices, want.FrameIndices)
		k.equal("video_frames", v.Total == want.VideoFrames && v.FPS == want.FPS, "have %d frames, %v a second; want %d and %v", v.Total, v.FPS, want.VideoFrames, want.FPS)
	}
	return part, k.storedFrames(ctx, part.Frames)
}

// storedFrames compares decoded frames, which are equal or not.
func (k *checker) storedFrames(ctx context.Context, frames []engine.Picture) error {
	key, ok := k.c.Arrays[framesUint8]
	if !ok {
		return nil
	}
	want, err := k.set.Arrays.Read(key)
	if err != nil {
		return err
	}
	var have []float32
	for _, f := range frames {
		rgb, err := preprocess.Decode(ctx, f.Data, preprocess.DecodeOptions{})
		if err != nil {
			return err
		}
		for _, v := range rgb.Pix {
			have = append(have, float32(v))
		}
	}
	if len(have) != len(want.Data) || len(have) == 0 {
		k.fail(framesUint8, "have %d values, want %d", len(have), len(want.Data))
		return nil
	}
	d := differences(have, want.Data)
	k.row(Row{Array: framesUint8, MaxAbsDiff: d.max, OK: d.max == 0})
	return nil
}

// sound reads a sound of the media folder.
func (k *checker) sound(ctx context.Context, name string) (engine.Part, error) {
	data, err := k.media.Audio(ctx, media.Input{Path: k.set.Media(name), Source: name})
	return engine.Part{Type: engine.PartAudio, Sound: &engine.Sound{Data: data, Source: name}}, err
}

// sampling compares the places of frames.
func (k *checker) sampling(context.Context) {
	for _, row := range k.c.Expected.Table {
		have := media.Even(row.Frames, row.Count)
		k.equal(fmt.Sprintf("%d of %d frames", row.Count, row.Frames), slices.Equal(have, row.Indices), "have %v, want %v", have, row.Indices)
	}
}

// segments compares texts that are tokenized by themselves: as the beginning of a prompt, and behind a picture.
func (k *checker) segments() {
	m := k.engine.Manifest()
	var dot bytes.Buffer
	if err := png.Encode(&dot, image.NewRGBA(image.Rect(0, 0, 8, 8))); err != nil {
		k.fail("picture", "%v", err)
		return
	}
	for _, item := range k.c.Expected.Items {
		p, err := k.engine.Prepare(context.Background(), engine.Request{Raw: true, Prompt: item.Text + m.Prompt.Placeholder + item.Text,
			Pictures: []engine.Picture{{Data: dot.Bytes()}}})
		if err != nil {
			k.fail(fmt.Sprintf("%.30q", item.Text), "%v", err)
			continue
		}
		want := slices.Concat(item.First, slices.Repeat([]int32{int32(m.Tokens.Image)}, p.ImageTokens), item.Rest)
		k.equal(fmt.Sprintf("%.30q", item.Text), slices.Equal(p.TokenIDs, want), "%s", firstDifference(p.TokenIDs, want))
	}
}

// audio runs a sound through recipe and graphs: the bins and what follows from the file, and the graphs from the stored bins,
// of the clips that are stored.
func (k *checker) audio(ctx context.Context) {
	part, err := k.sound(ctx, k.c.File)
	if err != nil {
		k.fail("from the file", "%v", err)
		return
	}
	k.decoded(part.Sound.Data)
	m := k.engine.Manifest()
	if m.Audio == nil {
		k.fail("audio", "the model takes no sound")
		return
	}
	if k.c.Expected.Clips != m.Audio.Clips { // bins of another number of clips: the recipe alone
		k.otherClips(ctx, part.Sound.Data)
		return
	}
	req := engine.Request{Messages: []engine.Message{{Role: "user", Content: []engine.Part{part}}}, MaxTokens: 1}
	t, err := k.engine.Trace(ctx, req, engine.TraceOptions{})
	if err != nil {
		k.fail("from the file", "%v", err)
		return
	}
	bins, ok := k.bins(t.Arrays[engine.ArrayFbank])
	if !ok {
		return
	}
	stored, err := k.engine.Trace(ctx, req, engine.TraceOptions{Tensors: map[string]engine.Array{engine.ArrayFbank: {Shape: bins.Shape, Data: bins.Data}}})
	if err != nil {
		k.fail("from stored bins", "%v", err)
		return
	}
	k.heard(t.Arrays, stored.Arrays)
}

// decoded compares what the file holds.
func (k *checker) decoded(data []byte) {
	s, err := preprocess.DecodeWAV(data, preprocess.SoundLimits{})
	if err != nil {
		k.fail("sound", "%v", err)
		return
	}
	want := k.c.Expected
	same := s.Rate == want.SampleRate && len(s.Channels) == want.Channels && s.Samples() == want.SamplesNative
	k.equal("sound", same, "have %d Hz, %d channels, %d samples; want %d, %d, %d", s.Rate, len(s.Channels), s.Samples(), want.SampleRate, want.Channels, want.SamplesNative)
	head, ok := k.c.Arrays["resampled_head"]
	if !ok {
		return
	}
	resampled, err := s.Resample(k.engine.Manifest().Audio.SampleRate, preprocess.TorchaudioSinc)
	if err != nil {
		k.fail("resampled", "%v", err)
		return
	}
	k.equal("samples_16k", resampled.Samples() == want.Samples16k, "have %d, want %d", resampled.Samples(), want.Samples16k)
	for name, key := range map[string]string{"resampled_head": head, "resampled_tail": k.c.Arrays["resampled_tail"]} {
		stored, err := k.set.Arrays.Read(key)
		if err != nil || len(stored.Shape) != 2 || int(stored.Shape[0]) != len(resampled.Channels) || int(stored.Shape[1]) > resampled.Samples() {
			k.fail(name, "shape %v, %v", stored.Shape, err)
			continue
		}
		have := engine.Array{Shape: stored.Shape}
		for _, samples := range resampled.Channels {
			n := int(stored.Shape[1])
			if name == "resampled_head" {
				have.Data = append(have.Data, samples[:n]...)
			} else {
				have.Data = append(have.Data, samples[len(samples)-n:]...)
			}
		}
		k.row(compareArray(name, have, stored, tolerance(name, stored)))
	}
}

// otherClips compares the bins of a sound that is cut into another number of clips than the model's.
func (k *checker) otherClips(ctx context.Context, data []byte) {
	spec := *k.engine.Manifest().Audio
	spec.Clips = k.c.Expected.Clips
	recipe, err := preprocess.NewFbank(spec)
	if err != nil {
		k.fail(engine.ArrayFbank, "%v", err)
		return
	}
	s, err := preprocess.DecodeWAV(data, preprocess.SoundLimits{})
	if err != nil {
		k.fail(engine.ArrayFbank, "%v", err)
		return
	}
	made, err := recipe.Prepare(ctx, s)
	if err != nil {
		k.fail(engine.ArrayFbank, "%v", err)
		return
	}
	k.bins(engine.Array{Shape: made[engine.ArrayFbank].Shape, Data: made[engine.ArrayFbank].Float32})
}

// bins compares those clips' that are stored, and returns them.
func (k *checker) bins(have engine.Array) (golden.Array, bool) {
	want, err := k.set.Arrays.Read(k.c.Arrays[engine.ArrayFbank])
	clips := k.c.Expected.StoredClips
	if err != nil || len(want.Shape) != 4 || len(have.Shape) != 4 || int(want.Shape[0]) != len(clips) || !slices.Equal(have.Shape[1:], want.Shape[1:]) {
		k.fail(engine.ArrayFbank, "have shape %v, want %v of %d clips, %v", have.Shape, want.Shape, len(clips), err)
		return want, false
	}
	size, near := int(want.Shape[1]*want.Shape[2]*want.Shape[3]), tolerance(engine.ArrayFbank, want)
	r := Row{Array: engine.ArrayFbank, Tolerance: fbankTolerance, OK: true}
	for i, clip := range clips {
		if int64(clip) >= have.Shape[0] {
			k.fail(engine.ArrayFbank, "there is no clip %d", clip)
			return want, false
		}
		far := 0
		for j, v := range want.Data[i*size : (i+1)*size] {
			d := math.Abs(float64(have.Data[clip*size+j]) - float64(v))
			r.MaxAbsDiff = max(r.MaxAbsDiff, d)
			if !(d <= near) {
				far++
			}
			r.OK = r.OK && d <= fbankTolerance
		}
		if r.OK = r.OK && far <= fbankFar; !r.OK {
			r.Note = fmt.Sprintf("clip %d: %d bins beyond %.3g", clip, far, near)
		}
	}
	k.row(r)
	return want, r.OK
}

// heard compares what the graphs make of a sound. Arrays of single clips come from the stored bins; those of all clips from
// the file's.
func (k *checker) heard(file, stored map[string]engine.Array) {
	clips := k.c.Expected.StoredClips
	for _, name := range sortedArrays(k.c.Arrays) {
		if slices.Contains([]string{engine.ArrayFbank, "resampled_head", "resampled_tail"}, name) {
			continue
		}
		want, err := k.set.Arrays.Read(k.c.Arrays[name])
		if err != nil {
			k.fail(name, "%v", err)
			continue
		}
		if have, ok := firstOf(stored, name, "_clip0"); ok {
			k.row(compareArray(name, have, want, k.tolerance(name, want)))
			continue
		}
		have := file[name]
		if len(want.Shape) == len(have.Shape)+1 && want.Shape[0] == 1 {
			want.Shape = want.Shape[1:]
		}
		k.row(compareArray(name, have, want, k.tolerance(name, want)))
		if given := stored[name]; len(want.Shape) == 2 && len(given.Shape) == 2 && int(given.Shape[0]) == len(clips) {
			k.row(compareArray(name+" from stored bins", given, rowsOf(want, clips), k.tolerance(name, want)))
		}
	}
}

// rowsOf returns rows of a matrix.
func rowsOf(a golden.Array, rows []int) golden.Array {
	out := golden.Array{Shape: []int64{int64(len(rows)), a.Shape[1]}}
	for _, r := range rows {
		out.Data = append(out.Data, a.Data[r*int(a.Shape[1]):(r+1)*int(a.Shape[1])]...)
	}
	return out
}

// firstOf returns the first tile of the array whose name has the suffix more.
func firstOf(arrays map[string]engine.Array, name, suffix string) (engine.Array, bool) {
	base, ok := strings.CutSuffix(name, suffix)
	a, there := arrays[base]
	if !ok || !there || len(a.Shape) == 0 || a.Shape[0] == 0 {
		return engine.Array{}, false
	}
	row := len(a.Data) / int(a.Shape[0])
	return engine.Array{Shape: append([]int64{1}, a.Shape[1:]...), Data: a.Data[:row]}, true
}

// isFile reports whether a video is a file and no folder of frames.
func (k *checker) isFile(name string) bool {
	info, err := os.Stat(k.set.Media(name))
	return err == nil && info.Mode().IsRegular()
}
