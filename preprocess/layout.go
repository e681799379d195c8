package preprocess

import (
	"fmt"
	"image"
)

// Tilings that a request may ask for.
const (
	TilingAuto = ""    // what the model's own processor does
	TilingOff  = "off" // one tile a picture
	TilingHD   = "hd"  // tiles for a model that was released without: LLaVA-1.5-HD
	// TilingStretch is the whole picture stretched to one tile, for models that crop or pad it otherwise.
	TilingStretch = "stretch"
)

// Options are what a request says about its pictures. The zero value is the model's own processor.
type Options struct {
	// MaxTiles bounds the tiles of one picture, the whole picture that some models add not counted; 0: the model's bound.
	MaxTiles int
	// Tiling is TilingAuto, TilingOff, TilingHD or TilingStretch.
	Tiling string
	// MinPixels and MaxPixels bound a picture's area after its resize, for models that take pictures at their own size; 0: the
	// model's bounds.
	MinPixels, MaxPixels int
	// Frame says that the picture is a frame of a video, and LastFrame that it is the last of one; the options above do
	// not apply to it.
	Frame, LastFrame bool
	// FirstFrame says that the frame is the first of its video, where all frames are one run and share its rows.
	FirstFrame bool
	// Index is the frame's place in its video, from 0, and Frames how many there are, for models whose frames share patches.
	Index, Frames int
}

// maxTilesOfPicture bounds what a manifest or a request may ask for; InternVL goes to 40, LLaVA-OneVision to 36.
const maxTilesOfPicture = 64

func (o Options) check() error {
	if o.MaxTiles < 0 || o.MaxTiles > maxTilesOfPicture {
		return fmt.Errorf("%d tiles a picture were asked for; 1 to %d can be made, 0 is the model's default", o.MaxTiles, maxTilesOfPicture)
	}
	if o.MinPixels < 0 || o.MaxPixels < 0 || o.MinPixels > maxPatchPixels || o.MaxPixels > maxPatchPixels {
		return fmt.Errorf("a picture was to have %d to %d pixels; the bounds go from 1 to %d, and 0 is the model's own", o.MinPixels, o.MaxPixels, maxPatchPixels)
	}
	if o.MaxPixels > 0 && o.MinPixels > o.MaxPixels {
		return fmt.Errorf("a picture was to have at least %d and at most %d pixels", o.MinPixels, o.MaxPixels)
	}
	if o.Tiling != TilingAuto && o.Tiling != TilingOff && o.Tiling != TilingHD && o.Tiling != TilingStretch {
		return fmt.Errorf("tiling %q is unknown; known are auto, off, hd and stretch", o.Tiling)
	}
	return nil
}

// Layout is what a picture's size decides, before there are pixels.
type Layout struct {
	// Tiles is the number of pictures that the vision tower sees.
	Tiles int
	// Tokens is the number of rows in the prompt, and so of placeholder tokens.
	Tokens int
	// Grid is how many of the tiles lie beside and below each other; zero where the picture was not cut.
	Grid Grid
	// Map is how many of a picture's tokens lie beside and below each other, where their positions are rows and columns
	// (recipe "patches"); zero for others.
	Map Grid
	// Steps is how often the Map of a video follows itself in time; 0 for a picture.
	Steps int

	arrange func() []FeatureRow
}

// Rows returns how the prompt's rows come from the features of the picture's tiles: Tokens rows, or nil where they are
// all features of all tiles in their order.
func (l Layout) Rows() []FeatureRow {
	if l.arrange == nil {
		return nil
	}
	return l.arrange()
}

// FeatureRow is one row of the prompt as a weighted sum of rows of the picture's features, which are counted through its
// tiles: row r of tile t is t × (features of a tile) + r.
type FeatureRow struct {
	From   [4]int32
	Weight [4]float32 // 0: From is not read
	// Newline says that the row is the learned end of a row instead, and the rest is unset.
	Newline bool
}

// copyOf is a row that is taken as it is.
func copyOf(row int) FeatureRow {
	return FeatureRow{From: [4]int32{int32(row)}, Weight: [4]float32{1}}
}

// featureMap is the features of a grid of tiles, each side × side of them, as one large map. The tiles begin with tile
// first of the picture.
type featureMap struct {
	grid  Grid
	side  int
	first int
}

func (m featureMap) columns() int { return m.grid.Columns * m.side }
func (m featureMap) rows() int    { return m.grid.Rows * m.side }

// at returns which feature of the picture lies at column x and row y.
func (m featureMap) at(x, y int) int {
	tile := m.first + y/m.side*m.grid.Columns + x/m.side
	return (tile*m.side+y%m.side)*m.side + x%m.side
}

// appendTile appends the features of one whole tile.
func appendTile(rows []FeatureRow, tile, features int) []FeatureRow {
	for i := range features {
		rows = append(rows, copyOf(tile*features+i))
	}
	return rows
}

// appendPart appends a part of the map, row by row, interpolated to columns × rows where it is not of that size.
func (m featureMap) appendPart(out []FeatureRow, part image.Rectangle, columns, rows int, newline bool) []FeatureRow {
	across, down := interpolation(part.Dx(), columns), interpolation(part.Dy(), rows)
	for _, v := range down {
		for _, h := range across {
			out = append(out, m.blend(part.Min, h, v))
		}
		if newline {
			out = append(out, FeatureRow{Newline: true})
		}
	}
	return out
}

func (m featureMap) blend(origin image.Point, h, v tap) FeatureRow {
	var row FeatureRow
	n := 0
	for _, y := range []weighted{{v.low, 1 - v.share}, {v.high, v.share}} {
		for _, x := range []weighted{{h.low, 1 - h.share}, {h.high, h.share}} {
			if w := x.weight * y.weight; w != 0 {
				row.From[n], row.Weight[n] = int32(m.at(origin.X+x.index, origin.Y+y.index)), w
				n++
			}
		}
	}
	return row
}

type weighted struct {
	index  int
	weight float32
}

// tap is one sample of a linear interpolation: share of sample high, the rest of sample low.
type tap struct {
	low, high int
	share     float32
}

// interpolation returns where the samples of an axis of in samples lie when it gets out samples, as PyTorch's
// interpolate(mode="bilinear", align_corners=False) has it: in float32, without antialiasing.
func interpolation(in, out int) []tap {
	taps := make([]tap, out)
	scale := float32(in) / float32(out)
	for i := range taps {
		if in == out {
			taps[i] = tap{low: i, high: i}
			continue
		}
		at := max(0, float32(scale*(float32(i)+0.5))-0.5)
		low := min(int(at), in-1)
		taps[i] = tap{low: low, high: min(low+1, in-1), share: min(max(at-float32(low), 0), 1)}
	}
	return taps
}
