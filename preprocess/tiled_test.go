package preprocess

import (
	"bytes"
	"context"
	"image"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"glimpse/manifest"
)

// tilingPicture is a model that tiles, with tiles of 8×8 pixels and 2×2 features, so that tests are quick.
func tilingPicture(change func(*manifest.Picture)) manifest.Picture {
	p := manifest.Picture{
		Resample: "bicubic", Height: 8, Width: 8, TokensPerTile: 4, PatchGrid: 2,
		Mean: []float64{0.5, 0.5, 0.5}, Std: []float64{0.5, 0.5, 0.5},
	}
	change(&p)
	return p
}

func pinpoints(tile, most int) (list [][]int) {
	for rows := 1; rows <= most; rows++ {
		for columns := 1; columns <= most; columns++ {
			if rows*columns > 1 {
				list = append(list, []int{rows * tile, columns * tile})
			}
		}
	}
	return list
}

var (
	gridPicture   = tilingPicture(func(p *manifest.Picture) { p.Recipe, p.MinTiles, p.MaxTiles, p.Thumbnail = "grid", 1, 12, true })
	anyresPicture = tilingPicture(func(p *manifest.Picture) { p.Recipe, p.Newline, p.Pinpoints = "anyres", "newline", pinpoints(8, 2) })
	shrinkPicture = tilingPicture(func(p *manifest.Picture) {
		p.Recipe, p.Newline, p.Pinpoints, p.MaxAnyres, p.Background = "anyres", "newline", pinpoints(8, 6), 9, []int{1, 2, 3}
	})
	splitPicture = tilingPicture(func(p *manifest.Picture) {
		p.Recipe, p.Resample, p.LongEdge, p.Thumbnail = "split", "lanczos", 32, true
	})
	hdPicture      = tilingPicture(func(p *manifest.Picture) { p.Recipe, p.Background = "pad", []int{10, 20, 30} })
	tilingPictures = []manifest.Picture{gridPicture, anyresPicture, shrinkPicture, splitPicture, hdPicture}
)

// tilesOf turns prepared values back into pictures.
func tilesOf(t interface{ Fatalf(string, ...any) }, p manifest.Picture, a *Array) []*RGB {
	n, err := newNormalizer(p)
	if err != nil {
		t.Fatalf("%v", err)
	}
	size := 3 * p.Height * p.Width
	var tiles []*RGB
	for at := 0; at < len(a.Float32); at += size {
		pix := levels(t, &Array{Float32: a.Float32[at : at+size]}, &n)
		tiles = append(tiles, &RGB{Width: p.Width, Height: p.Height, Pix: pix})
	}
	return tiles
}

// joined puts the tiles of a grid together again.
func joined(tiles []*RGB, g Grid) *RGB {
	w, h := tiles[0].Width, tiles[0].Height
	out := NewRGB(g.Columns*w, g.Rows*h)
	for i, tile := range tiles[:g.Tiles()] {
		for y := range h {
			copy(out.Row(i/g.Columns*h + y)[3*(i%g.Columns)*w:], tile.Row(y))
		}
	}
	return out
}

// Each recipe is its definition written out plainly, and the tiles together are the resized picture: every pixel of it is
// in exactly one of them.
func TestTilesEqualTheirDefinitions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom(tilingPictures).Draw(t, "recipe")
		picture := drawPicture(t, 60)
		o := Options{MaxTiles: rapid.IntRange(0, 5).Draw(t, "max tiles")}
		if p.Recipe == "pad" {
			o.Tiling = TilingHD
		}
		r, err := NewRecipe(p, o)
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(picture.Pix)
		got, err := r.Prepare(context.Background(), picture)
		if err != nil {
			t.Fatal(err)
		}
		l, err := r.Layout(picture.Width, picture.Height)
		if err != nil {
			t.Fatal(err)
		}
		tiles := tilesOf(t, p, got.Tensors["pixel_values"])
		if len(tiles) != l.Tiles || got.Tiles != l.Tiles || got.Tokens != l.Tokens || got.Width != picture.Width || got.Height != picture.Height {
			t.Fatalf("%d tiles, %+v, layout %+v", len(tiles), got, l)
		}
		if !bytes.Equal(picture.Pix, before) {
			t.Fatal("the picture was changed")
		}
		filter, _ := FilterByName(p.Resample)
		whole, source := tiles[len(tiles)-1], picture
		cut := tiles[:l.Grid.Tiles()]
		if p.Recipe == "anyres" {
			whole, cut = tiles[0], tiles[1:]
		}
		width, height := l.Grid.Columns*8, l.Grid.Rows*8
		var want *RGB
		switch p.Recipe {
		case "grid":
			if l.Grid.Tiles() > 0 {
				want = mustResize(t, picture, width, height, filter)
			}
		case "split":
			w, h := LongestEdge(picture.Width, picture.Height, 32)
			if o.MaxTiles > 0 { // the bound lowers the edge; the grid says how far
				for edge := 32; edge > 8; edge -= 8 {
					w, h = LongestEdge(picture.Width, picture.Height, edge)
					if g := SplitGrid(w, h, 8); g == l.Grid {
						break
					}
					w, h = LongestEdge(picture.Width, picture.Height, edge-8)
				}
			}
			source = mustResize(t, picture, w, h, filter)
			source = mustResize(t, source, max(width, 8), max(height, 8), filter)
			want = source
		case "anyres", "pad":
			if len(cut) > 0 {
				background := [3]uint8{}
				if p.Recipe == "pad" {
					background = [3]uint8{10, 20, 30}
				}
				w, h := FitInside(picture.Width, picture.Height, width, height)
				want = paste(canvas{mustResize(t, picture, w, h, filter), width, height, (width - w) / 2, (height - h) / 2, background})
			}
			if p.Recipe == "pad" || len(p.Background) > 0 && len(cut) == 0 {
				side := max(picture.Width, picture.Height)
				color := [3]uint8{10, 20, 30}
				if p.Recipe == "anyres" {
					color = [3]uint8{1, 2, 3}
				}
				source = paste(canvas{picture, side, side, (side - picture.Width) / 2, (side - picture.Height) / 2, color})
			}
		}
		if len(cut) > 0 && !bytes.Equal(joined(cut, l.Grid).Pix, want.Pix) {
			t.Fatalf("%s of %d×%d: the tiles are not the resized picture", p.Recipe, picture.Width, picture.Height)
		}
		if !bytes.Equal(whole.Pix, mustResize(t, source, 8, 8, filter).Pix) {
			t.Fatalf("%s of %d×%d: the whole picture is not its tile", p.Recipe, picture.Width, picture.Height)
		}
	})
}

// The arrangement of LLaVA-1.5-HD, written out by hand, in tiles of 8 × 8 pixels with 2 × 2 features of 4 × 4 pixels. The
// features of a tile are numbered row by row, four a tile; the whole picture is the last tile.
func TestHDArrangementByHand(t *testing.T) {
	for _, c := range []struct {
		width, height int
		grid          Grid
		want          []int32
	}{
		{16, 8, Grid{2, 1}, []int32{
			0, 1, 4, 5,
			2, 3, 6, 7,
			8, 9, 10, 11}},
		{8, 24, Grid{1, 3}, []int32{
			0, 1,
			2, 3,
			4, 5,
			6, 7,
			8, 9,
			10, 11,
			12, 13, 14, 15}},
		{16, 16, Grid{2, 2}, []int32{
			0, 1, 4, 5,
			2, 3, 6, 7,
			8, 9, 12, 13,
			10, 11, 14, 15,
			16, 17, 18, 19}},
		// In rows 2 to 6 of 8 pixels: both rows of features see it.
		{24, 4, Grid{3, 1}, []int32{
			0, 1, 4, 5, 8, 9,
			2, 3, 6, 7, 10, 11,
			12, 13, 14, 15}},
		// In row 3 of 8: the second row of features sees padding alone, and is dropped.
		{16, 1, Grid{2, 1}, []int32{
			0, 1, 4, 5,
			8, 9, 10, 11}},
		// In column 3 of 8.
		{1, 16, Grid{1, 2}, []int32{
			0,
			2,
			4,
			6,
			8, 9, 10, 11}},
		{3, 5, Grid{}, nil}, // no larger than one tile: nothing to gain
	} {
		r, err := NewRecipe(hdPicture, Options{Tiling: TilingHD})
		if err != nil {
			t.Fatal(err)
		}
		l, err := r.Layout(c.width, c.height)
		if err != nil {
			t.Fatal(err)
		}
		var got []int32
		for _, row := range l.Rows() {
			got = append(got, row.From[0])
			if row.Newline || row.Weight != [4]float32{1} {
				t.Errorf("%d×%d: row %+v is not a feature as it is", c.width, c.height, row)
			}
		}
		if l.Grid != c.grid || !slices.Equal(got, c.want) || l.Tokens != max(len(c.want), 4) {
			t.Errorf("%d×%d: grid %v, rows %v, want %v, %v", c.width, c.height, l.Grid, got, c.grid, c.want)
		}
	}
}

func TestSeenIsWhatHasPixels(t *testing.T) {
	r := hd{single: single{width: 8, height: 8}, side: 2}
	m := featureMap{grid: Grid{2, 2}, side: 2}
	for _, c := range []struct{ place, want image.Rectangle }{
		{image.Rect(0, 0, 16, 16), image.Rect(0, 0, 4, 4)},
		{image.Rect(0, 4, 16, 11), image.Rect(0, 1, 4, 3)},
		{image.Rect(0, 3, 16, 13), image.Rect(0, 0, 4, 4)},
		{image.Rect(7, 0, 9, 16), image.Rect(1, 0, 3, 4)},
		{image.Rect(8, 0, 9, 16), image.Rect(2, 0, 3, 4)},
	} {
		if got := r.seen(c.place, m); got != c.want {
			t.Errorf("%v: %v, want %v", c.place, got, c.want)
		}
	}
}

func TestTilingRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		picture manifest.Picture
		options Options
		want    string
	}{
		{"tiling", gridPicture, Options{Tiling: "fine"}, `"fine"`},
		{"tiles", gridPicture, Options{MaxTiles: 65}, "65 tiles"},
		{"negative tiles", gridPicture, Options{MaxTiles: -1}, "-1 tiles"},
		{"hd of a model that tiles", gridPicture, Options{Tiling: TilingHD}, "one tile"},
		{"hd without a map", tilingPicture(func(p *manifest.Picture) { p.Recipe, p.PatchGrid = "clip", 0 }), Options{Tiling: TilingHD}, "patch_grid"},
		{"hd of a map that is none", tilingPicture(func(p *manifest.Picture) { p.Recipe, p.PatchGrid = "clip", 3 }), Options{Tiling: TilingHD}, "patch_grid is 3"},
		{"no tiles", tilingPicture(func(p *manifest.Picture) { p.Recipe = "grid" }), Options{}, "min_tiles"},
		{"too many tiles", tilingPicture(func(p *manifest.Picture) { p.Recipe, p.MinTiles, p.MaxTiles = "grid", 1, 1000 }), Options{}, "1000"},
		{"no pinpoints", tilingPicture(func(p *manifest.Picture) { p.Recipe, p.Newline = "anyres", "x" }), Options{}, "pinpoints"},
		{"no grid", tilingPicture(func(p *manifest.Picture) { p.Recipe, p.Newline, p.Pinpoints = "anyres", "x", [][]int{{8, 9}} }), Options{}, "[8 9]"},
		{"huge grid", tilingPicture(func(p *manifest.Picture) { p.Recipe, p.Newline, p.Pinpoints = "anyres", "x", [][]int{{8000, 8000}} }), Options{}, "more than"},
		{"no newline", tilingPicture(func(p *manifest.Picture) { p.Recipe, p.Pinpoints = "anyres", [][]int{{8, 16}} }), Options{}, "newline"},
		{"no background", tilingPicture(func(p *manifest.Picture) {
			p.Recipe, p.Newline, p.Pinpoints, p.Background = "anyres", "x", [][]int{{8, 16}}, []int{1}
		}), Options{}, "background"},
		{"no edge", tilingPicture(func(p *manifest.Picture) { p.Recipe = "split" }), Options{}, "long_edge"},
		{"a long edge", tilingPicture(func(p *manifest.Picture) { p.Recipe, p.LongEdge = "split", 800 }), Options{}, "long_edge is 800"},
	} {
		if _, err := NewRecipe(c.picture, c.options); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v does not say %q", c.name, err, c.want)
		}
	}
}
