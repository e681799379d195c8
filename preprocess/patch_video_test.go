package preprocess

import (
	"context"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/manifest"
)

func videoModel(v manifest.PatchVideo) manifest.Picture {
	return manifest.Picture{Recipe: manifest.RecipePatches, Resample: "bicubic", Mean: []float64{0, 0, 0}, Std: []float64{1, 1, 1},
		Patches: &manifest.Patches{Size: 2, Merge: 2, Temporal: 2, MinPixels: 16, MaxPixels: 1 << 20, HeadDim: 8, Video: &v}}
}

// Frames of a step share patches: each patch is channel by channel, and in each channel frame by frame.
func TestFramesShareTheirPatches(t *testing.T) {
	p := videoModel(manifest.PatchVideo{MinPixels: 16, MaxPixels: 1 << 20})
	var frames []*Prepared
	for i := range 3 { // an odd number: the last is there twice
		picture := NewRGB(8, 4)
		for j := range picture.Pix {
			picture.Pix[j] = uint8(50*i + j%3)
		}
		r, err := NewRecipe(p, Options{Frame: true, Index: i, Frames: 3})
		if err != nil {
			t.Fatal(err)
		}
		f, err := r.Prepare(context.Background(), picture)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
	}
	got, err := JoinFrames(p, frames)
	if err != nil {
		t.Fatal(err)
	}
	pixels := got.Tensors["pixel_values"]
	if !slices.Equal(pixels.Shape, []int64{16, 24}) || got.Tokens != 4 || !slices.Equal(got.Tensors["frame_sizes"].Int64, []int64{8, 8}) {
		t.Fatalf("shape %v, %d tokens, frames of %v", pixels.Shape, got.Tokens, got.Tensors["frame_sizes"].Int64)
	}
	for i, v := range pixels.Float32 {
		step, channel, frame := i/(8*24), i/8%3, i/4%2
		want := float32(50*min(2*step+frame, 2)+channel) / 255
		if d := v - want; d > 1e-6 || d < -1e-6 {
			t.Fatalf("value %d, step %d, channel %d, frame %d of it, is %v; want %v", i, step, channel, frame, v, want)
		}
	}
	frames[1].Tensors["pixel_values"].Shape[0] = 4
	if _, err := JoinFrames(p, frames); err == nil {
		t.Error("frames of two sizes give no error")
	}
}

func TestRowsOfFrames(t *testing.T) {
	rows := func(v manifest.PatchVideo) (tokens []int) {
		for i := range 5 {
			r, err := NewRecipe(videoModel(v), Options{Frame: true, Index: i, Frames: 5})
			if err != nil {
				t.Fatal(err)
			}
			l, err := r.Layout(16, 8)
			if err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, l.Tokens)
		}
		return tokens
	}
	if got := rows(manifest.PatchVideo{MinPixels: 16, MaxPixels: 1 << 20}); !slices.Equal(got, []int{24, 0, 0, 0, 0}) {
		t.Errorf("together: %v", got)
	}
	if got := rows(manifest.PatchVideo{MinPixels: 16, MaxPixels: 1 << 20, Apart: true}); !slices.Equal(got, []int{8, 0, 8, 0, 8}) {
		t.Errorf("apart: %v", got)
	}
	// Bounds on all frames together: five frames, which round to four, of 128 pixels are too many for 256.
	if got := rows(manifest.PatchVideo{MinPixels: 16, MaxPixels: 256, Apart: true, AllFrames: true}); !slices.Equal(got, []int{2, 0, 2, 0, 2}) {
		t.Errorf("bounded together: %v", got)
	}
	for _, o := range []Options{{Frame: true, Index: 5, Frames: 5}, {Frame: true, Index: -1, Frames: 5}, {Frame: true, Frames: 1 << 20}} {
		if _, err := NewRecipe(videoModel(manifest.PatchVideo{MinPixels: 1, MaxPixels: 2}), o); err == nil {
			t.Errorf("%+v gives no error", o)
		}
	}
	still := videoModel(manifest.PatchVideo{})
	still.Patches.Video = nil
	if _, err := NewRecipe(still, Options{Frame: true}); err == nil {
		t.Error("a model without videos takes a frame")
	}
}

// A video's steps lie one behind the other in time, and text goes on behind the largest of its axes.
func TestPositionsOfVideos(t *testing.T) {
	isPicture := func(id int32) bool { return id == 9 }
	ids := []int32{1, 9, 9, 9, 9, 9, 9, 2}
	got, delta, err := Positions(ids, isPicture, []TokenMap{{Grid: Grid{2, 1}, Steps: 3, Interval: 2.5}})
	want := []Position{{0, 0, 0}, {1, 1, 1}, {1, 1, 2}, {3, 1, 1}, {3, 1, 2}, {6, 1, 1}, {6, 1, 2}, {7, 7, 7}}
	if err != nil || delta != 0 || cmp.Diff(want, got) != "" {
		t.Errorf("delta %d, %v, %s", delta, err, cmp.Diff(want, got))
	}
	if _, _, err := Positions(ids, isPicture, []TokenMap{{Grid: Grid{2, 1}, Steps: 4}}); err == nil {
		t.Error("a step too many gives no error")
	}
}
