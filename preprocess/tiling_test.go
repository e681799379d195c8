package preprocess

import (
	"encoding/json"
	"image"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// tilingGoldens is testdata/tiling.json, written by make_tiling.py from transformers' own functions.
type tilingGoldens struct {
	Sizes   [][2]int
	Closest []struct {
		Tile, Min, Max int
		Grids          [][2]int
	}
	Anyres []struct {
		Pinpoints [][2]int
		Tile      int
		Side      int
		MaxTiles  int `json:"max_tiles"`
		// best width and height, fitted width and height, first feature of the unpadded map (−1: none), its columns
		// and rows, and those after shrinking
		Rows [][9]int
	}
	Split []struct {
		Edge, Tile int
		Rows       [][4]int // width and height after each resize
	}
	Interpolate []struct {
		From, To [2]int
		Weights  [][][2]float64
	}
}

func readTiling(t testing.TB) *tilingGoldens {
	raw, err := os.ReadFile(filepath.Join("testdata", "tiling.json"))
	if err != nil {
		t.Fatal(err)
	}
	var g tilingGoldens
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	if len(g.Sizes) < 400 || len(g.Closest) == 0 || len(g.Anyres) == 0 || len(g.Split) == 0 || len(g.Interpolate) == 0 {
		t.Fatalf("tiling.json is incomplete: %d sizes", len(g.Sizes))
	}
	return &g
}

func TestClosestGridEqualsUpstream(t *testing.T) {
	g := readTiling(t)
	for _, c := range g.Closest {
		for i, size := range g.Sizes {
			got := ClosestGrid(size[0], size[1], c.Tile, c.Tile, c.Min, c.Max)
			if want := (Grid{c.Grids[i][0], c.Grids[i][1]}); got != want {
				t.Errorf("%v, tiles of %d, %d to %d: %v, want %v", size, c.Tile, c.Min, c.Max, got, want)
			}
		}
	}
}

func TestAnyresEqualsUpstream(t *testing.T) {
	g := readTiling(t)
	for _, c := range g.Anyres {
		for i, size := range g.Sizes {
			var got [9]int
			got[0], got[1] = BestResolution(size[0], size[1], c.Pinpoints)
			got[2], got[3] = FitInside(size[0], size[1], got[0], got[1])
			columns, rows := got[0]/c.Tile*c.Side, got[1]/c.Tile*c.Side
			part := Unpad(size[0], size[1], columns, rows)
			got[4] = part.Min.Y*columns + part.Min.X
			if part.Empty() {
				got[4] = -1
			}
			got[5], got[6] = part.Dx(), part.Dy()
			got[7], got[8] = Shrink(got[5], got[6], c.MaxTiles, c.Side)
			if got != c.Rows[i] {
				t.Errorf("%v among %v: %v, want %v", size, c.Pinpoints, got, c.Rows[i])
			}
		}
	}
}

func TestSplitEqualsUpstream(t *testing.T) {
	g := readTiling(t)
	for _, c := range g.Split {
		for i, size := range g.Sizes {
			w, h := LongestEdge(size[0], size[1], c.Edge)
			grid := SplitGrid(w, h, c.Tile)
			got, want := [4]int{w, h, grid.Columns * c.Tile, grid.Rows * c.Tile}, c.Rows[i]
			if want[2] == 0 || want[3] == 0 { // upstream fails on a size of 0; here it is one tile
				want[2], want[3] = max(want[2], c.Tile), max(want[3], c.Tile)
			}
			if got != want {
				t.Errorf("%v to %d, tiles of %d: %v, want %v", size, c.Edge, c.Tile, got, want)
			}
		}
	}
}

func TestInterpolationEqualsUpstream(t *testing.T) {
	for _, c := range readTiling(t).Interpolate {
		m := featureMap{grid: Grid{c.From[0], c.From[1]}, side: 1}
		rows := m.appendPart(nil, image.Rect(0, 0, c.From[0], c.From[1]), c.To[0], c.To[1], false)
		if len(rows) != len(c.Weights) {
			t.Fatalf("%v to %v: %d rows, want %d", c.From, c.To, len(rows), len(c.Weights))
		}
		for i, row := range rows {
			var want, got [512]float64
			for _, w := range c.Weights[i] {
				want[int(w[0])] = w[1]
			}
			for k, from := range row.From {
				got[from] += float64(row.Weight[k])
			}
			for k := range want {
				if d := got[k] - want[k]; d > 1e-6 || d < -1e-6 {
					t.Errorf("%v to %v, row %d: feature %d weighs %v, want %v", c.From, c.To, i, k, got[k], want[k])
				}
			}
		}
	}
}

func TestFloorDivide(t *testing.T) {
	// From Python; the third is not floor(a/b).
	for _, c := range [][3]float64{{7, 2, 3}, {54, 1.1111111111111112, 48}, {1, 0.1, 9}, {162, 1.5, 108}} {
		if got := floorDivide(c[0], c[1]); got != c[2] {
			t.Errorf("%v // %v is %v, want %v", c[0], c[1], got, c[2])
		}
	}
}

var sides = rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1, 5000), rapid.IntRange(1, DefaultMaxEdge))

// checkLayout holds what must be true of every layout: rows and tokens agree, rows read features that exist.
func checkLayout(t interface {
	Fatalf(string, ...any)
}, l Layout, features int) {
	if l.Tiles < 1 || l.Tokens < 1 || l.Tiles > maxTilesOfPicture+1 || l.Grid.Tiles() > l.Tiles {
		t.Fatalf("%+v", l)
	}
	rows := l.Rows()
	if rows == nil {
		if l.Tokens != l.Tiles*features {
			t.Fatalf("%d tiles of %d features are %d tokens", l.Tiles, features, l.Tokens)
		}
		return
	}
	if len(rows) != l.Tokens {
		t.Fatalf("%d rows and %d tokens", len(rows), l.Tokens)
	}
	for i, r := range rows {
		sum := float32(0)
		for k, w := range r.Weight {
			if r.From[k] < 0 || int(r.From[k]) >= l.Tiles*features || w < 0 || w > 1 {
				t.Fatalf("row %d of %d tiles: %+v", i, l.Tiles, r)
			}
			sum += w
		}
		if r.Newline && sum != 0 || !r.Newline && (sum < 0.9999 || sum > 1.0001) {
			t.Fatalf("row %d: %+v", i, r)
		}
	}
}

func TestLayoutsHoldTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width, height := sides.Draw(t, "width"), sides.Draw(t, "height")
		p := rapid.SampledFrom(tilingPictures).Draw(t, "recipe")
		o := Options{MaxTiles: rapid.IntRange(0, 12).Draw(t, "max tiles")}
		tilings := []string{TilingAuto, TilingOff}
		if p.Recipe == "pad" {
			tilings = []string{TilingHD}
		}
		o.Tiling = rapid.SampledFrom(tilings).Draw(t, "tiling")
		r, err := NewRecipe(p, o)
		if err != nil {
			t.Fatal(err)
		}
		l, err := r.Layout(width, height)
		if err != nil {
			t.Fatal(err)
		}
		checkLayout(t, l, p.TokensPerTile)
		if o.MaxTiles > 0 && l.Grid.Tiles() > o.MaxTiles {
			t.Fatalf("%d tiles where %d were asked for", l.Grid.Tiles(), o.MaxTiles)
		}
		if o.Tiling == TilingOff && l.Tiles != 1 {
			t.Fatalf("%d tiles without tiling", l.Tiles)
		}
	})
}

// FuzzLayout: any size in bounds has a layout in every recipe.
func FuzzLayout(f *testing.F) {
	for _, s := range [][2]int{{1, 3000}, {3000, 1}, {17, 23}, {4032, 3024}, {1, 1}, {65535, 1}, {1, 65535}, {65535, 65535}} {
		f.Add(s[0], s[1])
	}
	var list []Recipe
	for _, p := range tilingPictures {
		o := Options{}
		if p.Recipe == "pad" {
			o.Tiling = TilingHD
		}
		r, err := NewRecipe(p, o)
		if err != nil {
			f.Fatal(err)
		}
		list = append(list, r)
	}
	f.Fuzz(func(t *testing.T, width, height int) {
		inside := width >= 1 && height >= 1
		if width > DefaultMaxEdge || height > DefaultMaxEdge {
			t.Skip()
		}
		for i, r := range list {
			l, err := r.Layout(width, height)
			if (err == nil) != inside {
				t.Fatalf("%d×%d: %v", width, height, err)
			}
			if inside {
				checkLayout(t, l, tilingPictures[i].TokensPerTile)
			}
		}
	})
}
