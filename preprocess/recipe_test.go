package preprocess

import (
	"bytes"
	"context"
	"errors"
	"image"
	"runtime"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"glimpse/manifest"
)

var clipPicture = manifest.Picture{
	Recipe: "clip", Resample: "bicubic", Height: 24, Width: 24, ShortEdge: 24, CropHeight: 24, CropWidth: 24, TokensPerTile: 9,
	Background: []int{122, 116, 104},
	Mean:       []float64{0.48145466, 0.4578275, 0.40821073}, Std: []float64{0.26862954, 0.26130258, 0.27577711},
}

func changed(change func(*manifest.Picture)) manifest.Picture {
	p := clipPicture
	change(&p)
	return p
}

func mustRecipe(t interface{ Fatal(...any) }, p manifest.Picture) Recipe {
	r, err := NewRecipe(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// levels turns normalised values back into the bytes they came from, interleaved.
func levels(t interface{ Fatalf(string, ...any) }, a *Array, n *normalizer) []uint8 {
	size := len(a.Float32) / 3
	out := make([]uint8, 3*size)
	for c := range 3 {
		for i, v := range a.Float32[c*size : (c+1)*size] {
			at := -1
			for b, w := range n[c] {
				if v == w {
					at = b
				}
			}
			if at < 0 {
				t.Fatalf("%v is no normalised byte of channel %d", v, c)
			}
			out[3*i+c] = uint8(at)
		}
	}
	return out
}

func TestNormalizer(t *testing.T) {
	n, err := newNormalizer(clipPicture)
	if err != nil {
		t.Fatal(err)
	}
	// float32((float32(v) - float32(mean)·255) / (float32(std)·255)), from torch.
	for _, c := range []struct {
		channel, v int
		want       float32
	}{{0, 0, -1.7922626}, {0, 255, 1.9303362}, {1, 128, 0.16889715}, {2, 255, 2.1458972}} {
		if got := n[c.channel][c.v]; got != c.want {
			t.Errorf("channel %d, %d: %v, want %v", c.channel, c.v, got, c.want)
		}
	}
}

// The recipes are their definitions written out plainly: paint the square, resize all of it, cut the middle out.
func TestRecipesEqualTheirDefinitions(t *testing.T) {
	n, err := newNormalizer(clipPicture)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		p := drawPicture(t, 70)
		name := rapid.SampledFrom([]string{"clip", "pad", "stretch"}).Draw(t, "recipe")
		short := rapid.SampledFrom([]int{24, 27, 31}).Draw(t, "short edge")
		config := changed(func(m *manifest.Picture) { m.Recipe, m.ShortEdge = name, short })
		before := bytes.Clone(p.Pix)
		got, err := mustRecipe(t, config).Prepare(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}

		whole := p
		if name == "pad" {
			side := max(p.Width, p.Height)
			whole = paste(canvas{p, side, side, (side - p.Width) / 2, (side - p.Height) / 2, [3]uint8{122, 116, 104}})
		}
		var want *RGB
		if name == "stretch" {
			want = mustResize(t, whole, 24, 24, Bicubic)
		} else {
			w, h := short, short*whole.Height/whole.Width
			if whole.Width > whole.Height {
				w, h = short*whole.Width/whole.Height, short
			}
			x, y := (w-24)/2, (h-24)/2
			want = cropOf(mustResize(t, whole, w, h, Bicubic), image.Rect(x, y, x+24, y+24))
		}
		if !bytes.Equal(levels(t, got.Tensors["pixel_values"], &n), want.Pix) {
			t.Fatalf("%s of %d×%d differs from its definition", name, p.Width, p.Height)
		}
		if !bytes.Equal(p.Pix, before) {
			t.Fatal("the picture was changed")
		}
		layout, err := mustRecipe(t, config).Layout(p.Width, p.Height)
		if err != nil || layout.Tokens != 9 || layout.Tiles != 1 || layout.Rows() != nil || got.Tokens != 9 || got.Tiles != 1 || got.Width != p.Width || got.Height != p.Height {
			t.Fatalf("%+v, %+v, %v", got, layout, err)
		}
	})
}

// A crop larger than the resized picture is padded with grey level 0 before the normalisation, the smaller half first.
func TestClipPadsWhenCropIsLarger(t *testing.T) {
	n, err := newNormalizer(clipPicture)
	if err != nil {
		t.Fatal(err)
	}
	r := mustRecipe(t, changed(func(m *manifest.Picture) { m.ShortEdge = 19 }))
	p := noise(19, 19, 3, false)
	got, err := r.Prepare(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	want := NewRGB(24, 24)
	for y := range 19 {
		copy(want.Row(2 + y)[3*2:], p.Row(y))
	}
	if !bytes.Equal(levels(t, got.Tensors["pixel_values"], &n), want.Pix) {
		t.Error("the padding is not transformers'")
	}
}

// Strips whose resized or padded form would take gigabytes cost what their window costs.
func TestRecipesBoundMemory(t *testing.T) {
	for _, name := range []string{"clip", "pad", "stretch"} {
		r := mustRecipe(t, changed(func(m *manifest.Picture) { m.Recipe = name }))
		for _, size := range [][2]int{{60000, 1}, {1, 60000}} {
			p := noise(size[0], size[1], 1, false)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := r.Prepare(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
				t.Errorf("%s of %v allocated %d MiB", name, size, grown>>20)
			}
		}
	}
}

func TestNewRecipeRefuses(t *testing.T) {
	cases := []struct {
		name   string
		change func(*manifest.Picture)
		want   []string
	}{
		{"recipe", func(m *manifest.Picture) { m.Recipe = "fisheye" }, []string{`"fisheye"`, "anyres, clip, grid, pad"}},
		{"no recipe", func(m *manifest.Picture) { m.Recipe = "" }, []string{`""`}},
		{"filter", func(m *manifest.Picture) { m.Resample = "sinc" }, []string{`"clip"`, `"sinc"`}},
		{"size", func(m *manifest.Picture) { m.Height, m.CropHeight = 0, 0 }, []string{"height"}},
		{"huge", func(m *manifest.Picture) { m.Height, m.CropHeight = 1<<30, 1<<30 }, []string{"height"}},
		{"no crop", func(m *manifest.Picture) { m.CropHeight, m.CropWidth = 0, 0 }, []string{"crop of 0×0"}},
		{"short edge", func(m *manifest.Picture) { m.ShortEdge = 0 }, []string{"short_edge is 0"}},
		{"tokens", func(m *manifest.Picture) { m.TokensPerTile = 0 }, []string{"tokens_per_tile"}},
		{"two channels", func(m *manifest.Picture) { m.Mean = m.Mean[:2] }, []string{"mean and std have 2 and 3"}},
		{"zero std", func(m *manifest.Picture) { m.Std = []float64{1, 0, 1} }, []string{"channel 1"}},
		{"background", func(m *manifest.Picture) { m.Recipe, m.Background = "pad", nil }, []string{"background has 0"}},
		{"bright background", func(m *manifest.Picture) { m.Recipe, m.Background = "pad", []int{0, 256, 0} }, []string{"256"}},
		{"several", func(m *manifest.Picture) { m.Resample, m.ShortEdge, m.Std = "sinc", -1, nil }, []string{"sinc", "short_edge", "std"}},
	}
	for _, c := range cases {
		r, err := NewRecipe(changed(c.change), Options{})
		if err == nil || r != nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %q does not say %q", c.name, err, want)
			}
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	for _, name := range []string{"clip", "pad", "stretch"} {
		r := mustRecipe(t, changed(func(m *manifest.Picture) { m.Recipe = name }))
		for _, p := range []*RGB{nil, {}, {Width: 3, Height: 3, Pix: make([]uint8, 26)}} {
			if _, err := r.Prepare(t.Context(), p); err == nil {
				t.Errorf("%s: no error for %+v", name, p)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Prepare(ctx, noise(2, 2, 1, false)); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: error %v", name, err)
		}
		if _, err := r.Layout(0, 5); err == nil {
			t.Errorf("%s: a layout for a picture without pixels", name)
		}
	}
}

func TestPrepareConcurrently(t *testing.T) {
	r := mustRecipe(t, clipPicture)
	p := noise(90, 70, 1, false)
	want, err := r.Prepare(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			got, err := r.Prepare(t.Context(), p)
			if err != nil || got.Tensors["pixel_values"].Float32[100] != want.Tensors["pixel_values"].Float32[100] {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	wait.Wait()
}

func BenchmarkPrepare(b *testing.B) {
	config := changed(func(m *manifest.Picture) {
		m.Height, m.Width, m.ShortEdge, m.CropHeight, m.CropWidth = 336, 336, 336, 336, 336
	})
	r := mustRecipe(b, config)
	p := noise(4032, 3024, 1, false)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Prepare(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}
