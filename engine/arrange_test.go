package engine

import (
	"bytes"
	"context"
	"errors"
	picture "image"
	"image/png"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/manifest"
	"glimpse/preprocess"
)

// anyresSpec has tiles of 2 × 2 features, shown in [feature, number of it] rows.
var anyresSpec = manifest.Picture{
	Recipe: "anyres", Resample: "bicubic", Height: 8, Width: 8, TokensPerTile: 4, PatchGrid: 2, Newline: "newline",
	Pinpoints: [][]int{{8, 16}, {16, 8}}, Mean: []float64{0.5, 0.5, 0.5}, Std: []float64{0.5, 0.5, 0.5},
	Video: &manifest.Video{Pool: 2, EndNewline: true},
}

func placeOne(t *testing.T, width, height int, o preprocess.Options) placed {
	t.Helper()
	recipe, err := preprocess.NewRecipe(anyresSpec, o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := recipe.Layout(width, height)
	if err != nil {
		t.Fatal(err)
	}
	return placed{layout: l}
}

// Two pictures and a video, written out by hand.
func TestArrange(t *testing.T) {
	list := []placed{
		placeOne(t, 16, 8, preprocess.Options{}), // whole picture, two tiles beside each other
		placeOne(t, 9, 9, preprocess.Options{Tiling: preprocess.TilingOff}),
		placeOne(t, 5, 5, preprocess.Options{Frame: true}),
		placeOne(t, 5, 5, preprocess.Options{Frame: true, LastFrame: true}),
	}
	r := &stageResult{width: 1, newline: []float32{-1}, keep: func(string) bool { return true }, arrays: map[string]Array{}}
	for i := range 6 * 4 {
		r.features = append(r.features, float32(i))
	}
	if err := r.arrange(list, 4); err != nil {
		t.Fatal(err)
	}
	want := []float32{
		0, 1, 2, 3 /* the whole */, 4, 5, 8, 9, -1, 6, 7, 10, 11, -1,
		12, 13, 14, 15, -1,
		17.5,     // the mean of 16 to 19
		21.5, -1, // the last frame, and the end of the video
	}
	if diff := cmp.Diff(want, r.features); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Array{Shape: []int64{int64(len(want)), 1}, Data: want}, r.arrays["projected"]); diff != "" {
		t.Error(diff)
	}

	r.features = r.features[:5]
	if err := r.arrange(list, 4); err == nil || !strings.Contains(err.Error(), "do not belong together") {
		t.Errorf("too few features: %v", err)
	}
	r.features, r.newline = make([]float32, 24), nil
	if err := r.arrange(list, 4); err == nil || !strings.Contains(err.Error(), "newline") {
		t.Errorf("no newline: %v", err)
	}
	same := []float32{1, 2, 3, 4}
	r.features = same
	if err := r.arrange([]placed{{layout: preprocess.Layout{Tiles: 1, Tokens: 4}}}, 4); err != nil || &r.features[0] != &same[0] {
		t.Errorf("features in their order are copied: %v", err)
	}
}

// A header that promises another layout than the pixels keep is refused; what a request asks for in vain is its mistake.
func TestPlace(t *testing.T) {
	p, err := newPictures(&anyresSpec, preprocess.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := png.Encode(&file, picture.NewGray(picture.Rect(0, 0, 16, 8))); err != nil {
		t.Fatal(err)
	}
	pic := &Picture{Data: file.Bytes(), Source: "g.png"}
	list, err := p.place([]medium{{pictures: []*Picture{pic}}, {pictures: []*Picture{pic, pic}, video: true}}, PictureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 3 || list[0].layout.Tiles != 3 || list[0].layout.Tokens != 14 || list[0].frame != 0 || list[0].width != 16 || list[0].height != 8 {
		t.Errorf("%+v", list)
	}
	if list[1].frame != 1 || list[1].last || list[1].layout.Tokens != 1 || list[2].frame != 2 || !list[2].last || list[2].layout.Tokens != 2 {
		t.Errorf("frames: %+v, %+v", list[1], list[2])
	}
	for _, o := range []PictureOptions{{MaxTiles: -1}, {MaxTiles: 1000}, {Tiling: "best"}, {Tiling: TilingHD}} {
		_, err := p.place([]medium{{pictures: []*Picture{pic}}}, o)
		var bad *RequestError
		if !errors.As(err, &bad) || bad.Param != "picture_options" {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if list, err = p.place([]medium{{pictures: []*Picture{pic}}}, PictureOptions{Tiling: TilingOff}); err != nil || list[0].layout.Tokens != 5 {
		t.Errorf("off: %+v, %v", list, err)
	}
	list[0].layout.Tokens = 6
	if _, err := p.prepare(context.Background(), list); err == nil {
		t.Error("a picture of another layout was accepted")
	}
}
