package engine_test

import (
	"math"
	"slices"
	"testing"

	"glimpse/engine"
)

// LLaVA-1.5-HD on a model that was released without tiles. The reference is written by hand: each tile through the graphs
// on its own, the features laid out on the large map in plain loops, padding rows cut, the whole picture behind it.
func TestTilingHD(t *testing.T) {
	e := openTiny(t, engine.Options{PictureBatch: 3})
	const side = 4                     // features of a tile, side × side
	pic := media(t, "rocket_wide.png") // 400 × 150
	req := ask("What is shown?", pic)
	req.MaxTokens = 1
	hidden := e.Manifest().Decoder.HiddenSize
	plain, err := e.Trace(t.Context(), req, engine.TraceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	req.PictureOptions = engine.PictureOptions{Tiling: engine.TilingHD}
	got, err := e.Trace(t.Context(), req, engine.TraceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	layout := got.Prepared.Pictures[0]
	// 56-pixel tiles: among grids of at most six, 3 × 2 keeps most of 400 × 150 and is 168 × 63 pixels of 168 × 112.
	const columns, rows, firstRow, endRow = 3, 2, 1, 7 // rows of features with pixels 24 to 87 of 112 under them, 14 pixels each
	if layout.Columns != columns || layout.Rows != rows || layout.Tiles != columns*rows+1 {
		t.Fatalf("%+v", layout)
	}
	pixels := got.Arrays["pixel_values"]
	size := len(pixels.Data) / layout.Tiles
	var features [][]float32 // of each tile
	for tile := range layout.Tiles {
		one := engine.Array{Shape: slices.Concat([]int64{1}, pixels.Shape[1:]), Data: pixels.Data[tile*size : (tile+1)*size]}
		req := ask("What is shown?", pic)
		req.MaxTokens = 1
		alone, err := e.Trace(t.Context(), req, engine.TraceOptions{Tensors: map[string]engine.Array{"pixel_values": one}})
		if err != nil {
			t.Fatal(err)
		}
		features = append(features, alone.Arrays["projected"].Data)
	}
	var want []float32
	for y := firstRow; y < endRow; y++ {
		for x := range columns * side {
			tile := y/side*columns + x/side
			at := (y%side*side + x%side) * hidden
			want = append(want, features[tile][at:at+hidden]...)
		}
	}
	want = append(want, features[columns*rows]...)
	have := got.Arrays["projected"]
	if len(have.Data) != len(want) || layout.Tokens*hidden != len(want) || got.Prepared.ImageTokens != layout.Tokens {
		t.Fatalf("%d values, want %d; %+v", len(have.Data), len(want), layout)
	}
	for i := range want {
		if d := math.Abs(float64(have.Data[i] - want[i])); d > 1e-5 {
			t.Fatalf("row %d, column %d: have %v, want %v", i/hidden, i%hidden, have.Data[i], want[i])
		}
	}
	// The rows stand in the prompt where the picture's were.
	at := slices.Index(got.Prepared.TokenIDs, int32(e.Manifest().Tokens.Image))
	embeds := got.Arrays[engine.ArrayEmbeds].Data[at*hidden : (at+layout.Tokens)*hidden]
	if !slices.Equal(embeds, have.Data) {
		t.Error("inputs_embeds holds other rows")
	}
	if plain.Prepared.ImageTokens != side*side || len(got.Prepared.TokenIDs)-len(plain.Prepared.TokenIDs) != layout.Tokens-side*side {
		t.Errorf("%d tokens without tiles, prompts of %d and %d", plain.Prepared.ImageTokens, len(plain.Prepared.TokenIDs), len(got.Prepared.TokenIDs))
	}
	// Fewer tiles when asked for, and none for a picture no larger than a tile.
	req.PictureOptions.MaxTiles = 2
	if p, err := e.Prepare(t.Context(), req); err != nil || p.Pictures[0].Columns != 2 || p.Pictures[0].Rows != 1 {
		t.Errorf("two tiles: %+v, %v", p, err)
	}
	small := ask("What is shown?", media(t, "tiny_40x30.png"))
	small.PictureOptions.Tiling = engine.TilingHD
	if p, err := e.Prepare(t.Context(), small); err != nil || p.Pictures[0].Tiles != 1 || p.ImageTokens != side*side {
		t.Errorf("a small picture: %+v, %v", p, err)
	}
}
