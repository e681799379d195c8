package preprocess

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"glimpse/manifest"
)

// Sizes that smart_resize of transformers' Qwen2VLImageProcessor gives, halves to even included.
func TestSmartResizeEqualsUpstream(t *testing.T) {
	for _, c := range []struct{ width, height, factor, low, high, wantWidth, wantHeight int }{
		{301, 200, 28, 3136, 19600, 168, 112},
		{40, 30, 32, 4096, 20480, 96, 64},
		{42, 70, 28, 1, 1 << 20, 56, 56},    // 1.5 and 2.5: both become 2
		{98, 126, 28, 1, 1 << 20, 112, 112}, // 3.5 and 4.5: both become 4
		{2592, 1944, 28, 3136, 12845056, 2604, 1932},
		{9000, 6000, 28, 3136, 12845056, 4368, 2912},
		{1, 1, 28, 3136, 1003520, 56, 56},
		{2000, 10, 28, 3136, 1003520, 812, 28},
	} {
		w, h, err := SmartResize(c.width, c.height, c.factor, c.low, c.high)
		if err != nil || w != c.wantWidth || h != c.wantHeight {
			t.Errorf("%d×%d by %d in %d..%d: %d×%d, %v; want %d×%d", c.width, c.height, c.factor, c.low, c.high, w, h, err, c.wantWidth, c.wantHeight)
		}
	}
	if _, _, err := SmartResize(2001, 10, 28, 3136, 1003520); err == nil || !strings.Contains(err.Error(), "200 times") {
		t.Errorf("a strip of 2001×10 gives %v", err)
	}
}

func TestSmartResizeKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width, height := rapid.IntRange(1, 1<<16).Draw(t, "width"), rapid.IntRange(1, 1<<16).Draw(t, "height")
		const factor, low, high = 28, 56 * 56, 28 * 28 * 1280
		w, h, err := SmartResize(width, height, factor, low, high)
		if err != nil {
			if max(width, height) <= maxAspect*min(width, height) {
				t.Fatal(err)
			}
			return
		}
		if w < factor || h < factor || w%factor != 0 || h%factor != 0 {
			t.Fatalf("%d×%d is no size of whole tokens", w, h)
		}
		// A side that cannot shrink below one token is all that goes beyond the bounds.
		if w*h > high && w > factor && h > factor || w*h < low {
			t.Fatalf("%d×%d of %d×%d is outside the bounds", w, h, width, height)
		}
	})
}

// The order of patches is that of upstream's reshape to (frames, rows/m, m, columns/m, m) and transpose to (frames,
// rows/m, columns/m, m, m).
func TestPatchesAreOrderedByToken(t *testing.T) {
	g := patchGrid{Patches: manifest.Patches{Merge: 2}, frames: 2, columns: 6, rows: 4}
	i := 0
	for frame := range 2 {
		for top := 0; top < 4; top += 2 {
			for left := 0; left < 6; left += 2 {
				for v := range 2 {
					for u := range 2 {
						if f, x, y := g.at(i); f != frame || x != left+u || y != top+v {
							t.Fatalf("patch %d lies at %d, %d of frame %d; want %d, %d of %d", i, x, y, f, left+u, top+v, frame)
						}
						i++
					}
				}
			}
		}
	}
}

func TestWindowsPartTheGrid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		side := rapid.IntRange(1, 5).Draw(t, "side")
		g := patchGrid{Patches: manifest.Patches{Size: 14, Merge: 2, Window: 28 * side, HeadDim: 8}, frames: rapid.IntRange(1, 2).Draw(t, "frames"),
			columns: 2 * rapid.IntRange(1, 12).Draw(t, "across"), rows: 2 * rapid.IntRange(1, 12).Draw(t, "down")}
		out := g.tensors()
		index, rows, place, lengths := out["window_index"].Int64, out["window_map"], out["window_place"].Int64, out["window_lengths"].Int64
		sorted := slices.Sorted(slices.Values(index))
		for i, v := range sorted {
			if v != int64(i) || len(index) != g.patches() {
				t.Fatalf("window_index is no order of %d patches", g.patches())
			}
		}
		for i, p := range place {
			if rows.Int64[p] != int64(i) {
				t.Fatalf("row %d is said to lie at %d of the map, where row %d is", i, p, rows.Int64[p])
			}
		}
		at := 0
		for w, n := range lengths {
			_, x0, y0 := g.at(int(index[at]))
			f0 := int(index[at]) / (g.columns * g.rows)
			for _, patch := range index[at : at+int(n)] {
				f, x, y := g.at(int(patch))
				if f != f0 || x/(2*side) != x0/(2*side) || y/(2*side) != y0/(2*side) {
					t.Fatalf("window %d holds patches of two", w)
				}
			}
			at += int(n)
		}
		for token, p := range out["merge_order"].Int64 {
			if index[p*4] != int64(token*4) {
				t.Fatalf("token %d is said to be at %d, where token %d is", token, p, index[p*4]/4)
			}
		}
	})
}

func TestPositionsOfTextAndPictures(t *testing.T) {
	isPicture := func(id int32) bool { return id == 9 }
	got, delta, err := Positions([]int32{1, 2, 9, 9, 9, 9, 9, 9, 3, 9, 4}, isPicture, []TokenMap{{Grid: Grid{3, 2}}, {Grid: Grid{1, 1}}})
	want := []Position{{0, 0, 0}, {1, 1, 1}, {2, 2, 2}, {2, 2, 3}, {2, 2, 4}, {2, 3, 2}, {2, 3, 3}, {2, 3, 4}, {5, 5, 5}, {6, 6, 6}, {7, 7, 7}}
	if err != nil || delta != 8-11 || cmp.Diff(want, got) != "" {
		t.Errorf("delta %d, %v, %s", delta, err, cmp.Diff(want, got))
	}
	for name, c := range map[string]struct {
		ids  []int32
		maps []TokenMap
	}{
		"a picture too many":   {[]int32{1, 9}, nil},
		"a picture too few":    {[]int32{1}, []TokenMap{{Grid: Grid{1, 1}}}},
		"fewer tokens":         {[]int32{9, 9, 9}, []TokenMap{{Grid: Grid{2, 2}}}},
		"text inside":          {[]int32{9, 1, 9, 9}, []TokenMap{{Grid: Grid{2, 2}}}},
		"a picture of nothing": {[]int32{9}, []TokenMap{{}}},
	} {
		if _, _, err := Positions(c.ids, isPicture, c.maps); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Where all axes agree, sections and their order make no difference.
func TestMRoPEOfTextIsPlainRope(t *testing.T) {
	for _, interleaved := range []bool{false, true} {
		rope := manifest.Rope{Type: "default", Theta: 1e6, Dim: 16, Sections: []int{4, 2, 2}, Interleaved: interleaved}
		m, err := NewMRoPE(rope)
		if err != nil {
			t.Fatal(err)
		}
		cos, sin, err := RopeTables(rope, 50, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, s := make([]float32, 8), make([]float32, 8)
		m.Row(c, s, Position{49, 49, 49})
		if !slices.Equal(c, cos[49*8:]) || !slices.Equal(s, sin[49*8:]) {
			t.Errorf("interleaved %v: %v and %v", interleaved, c, s)
		}
		axes := []uint8{0, 0, 0, 0, 1, 1, 2, 2}
		if interleaved {
			axes = []uint8{0, 1, 2, 0, 1, 2, 0, 0}
		}
		if !slices.Equal(m.axis, axes) {
			t.Errorf("interleaved %v: axes %v, want %v", interleaved, m.axis, axes)
		}
	}
	if _, err := NewMRoPE(manifest.Rope{Type: "default", Theta: 1e6, Dim: 16, Sections: []int{4, 2, 1}}); err == nil {
		t.Error("sections that do not share out all frequencies give no error")
	}
}

func TestPixelBoundsOfARequest(t *testing.T) {
	p := manifest.Picture{Recipe: manifest.RecipePatches, Resample: "bicubic", Mean: []float64{0, 0, 0}, Std: []float64{1, 1, 1},
		Patches: &manifest.Patches{Size: 14, Merge: 2, Temporal: 2, MinPixels: 3136, MaxPixels: 1003520, HeadDim: 8}}
	for _, c := range []struct {
		options Options
		tokens  int
	}{{Options{}, 1200}, {Options{MaxPixels: 28 * 28 * 100}, 88}, {Options{MinPixels: 2000 * 2000}, 5146}} {
		r, err := NewRecipe(p, c.options)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := r.Layout(1120, 840); err != nil || l.Tokens != c.tokens {
			t.Errorf("%+v: %d tokens, %v; want %d", c.options, l.Tokens, err, c.tokens)
		}
	}
	for _, o := range []Options{{MaxPixels: 10}, {MinPixels: -1}, {MinPixels: 100, MaxPixels: 50}, {MaxPixels: 1 << 30}} {
		if _, err := NewRecipe(p, o); err == nil {
			t.Errorf("%+v gives no error", o)
		}
	}
	fixed := manifest.Picture{Recipe: "stretch", Resample: "bicubic", Height: 32, Width: 32, TokensPerTile: 4, Mean: p.Mean, Std: p.Std}
	if _, err := NewRecipe(fixed, Options{MaxPixels: 5000}); err == nil {
		t.Error("a model of one size takes bounds on pixels and ignores them")
	}
}
