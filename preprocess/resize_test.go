package preprocess

import (
	"bytes"
	"image"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func drawPicture(t *rapid.T, maxEdge int) *RGB {
	w, h := rapid.IntRange(1, maxEdge).Draw(t, "width"), rapid.IntRange(1, maxEdge).Draw(t, "height")
	return noise(w, h, rapid.Uint32().Draw(t, "seed"), rapid.Bool().Draw(t, "extreme"))
}

func drawFilter(t *rapid.T) Filter { return rapid.SampledFrom(filters).Draw(t, "filter") }

func mustResize(t interface{ Fatal(...any) }, p *RGB, w, h int, f Filter) *RGB {
	out, err := Resize(p, w, h, f)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestResizeKeepsConstant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPicture(t, 80)
		color := [3]uint8{rapid.Uint8().Draw(t, "r"), rapid.Uint8().Draw(t, "g"), rapid.Uint8().Draw(t, "b")}
		fill(p.Pix, color)
		out := mustResize(t, p, rapid.IntRange(1, 80).Draw(t, "to width"), rapid.IntRange(1, 80).Draw(t, "to height"), drawFilter(t))
		for i := range out.Pix {
			if out.Pix[i] != color[i%3] {
				t.Fatalf("value %d is %d, want %d", i, out.Pix[i], color[i%3])
			}
		}
	})
}

func TestResizeIdentity(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPicture(t, 40)
		out := mustResize(t, p, p.Width, p.Height, drawFilter(t))
		if !bytes.Equal(out.Pix, p.Pix) {
			t.Fatal("the same size changed the picture")
		}
		if &out.Pix[0] == &p.Pix[0] {
			t.Fatal("the result shares memory with the source")
		}
	})
}

// Flips commute with resizing, except for the box filter, whose interval is open at one end.
func TestResizeFlips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPicture(t, 60)
		w, h := rapid.IntRange(1, 60).Draw(t, "to width"), rapid.IntRange(1, 60).Draw(t, "to height")
		f := rapid.SampledFrom([]Filter{Bilinear, Hamming, Bicubic, Lanczos}).Draw(t, "filter")
		for _, orientation := range []int{2, 3, 4} {
			a := upright(mustResize(t, p, w, h, f), orientation)
			b := mustResize(t, upright(p, orientation), w, h, f)
			for i := range a.Pix {
				// Weights are computed from the left: their last bits may differ, and a rounding with them.
				if d := int(a.Pix[i]) - int(b.Pix[i]); d < -1 || d > 1 {
					t.Fatalf("orientation %d: value %d is %d one way and %d the other", orientation, i, a.Pix[i], b.Pix[i])
				}
			}
		}
	})
}

// paste materialises a canvas.
func paste(c canvas) *RGB {
	out := NewRGB(c.width, c.height)
	fill(out.Pix, c.background)
	for y := range c.picture.Height {
		copy(out.Row(c.top + y)[3*c.left:], c.picture.Row(y))
	}
	return out
}

func cropOf(p *RGB, r image.Rectangle) *RGB {
	out := NewRGB(r.Dx(), r.Dy())
	for y := range out.Height {
		copy(out.Row(y), p.Row(r.Min.Y + y)[3*r.Min.X:3*r.Max.X])
	}
	return out
}

// A window of a resized canvas is what one gets by painting the canvas, resizing all of it and cutting the window out.
func TestWindowEqualsWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPicture(t, 40)
		c := canvasOf(p)
		if rapid.Bool().Draw(t, "padded") {
			c.left, c.top = rapid.IntRange(0, 20).Draw(t, "left"), rapid.IntRange(0, 20).Draw(t, "top")
			c.width = c.left + p.Width + rapid.IntRange(0, 20).Draw(t, "right")
			c.height = c.top + p.Height + rapid.IntRange(0, 20).Draw(t, "bottom")
			c.background = [3]uint8{122, 116, 104}
		}
		w, h := rapid.IntRange(1, 60).Draw(t, "to width"), rapid.IntRange(1, 60).Draw(t, "to height")
		if rapid.Bool().Draw(t, "same width") {
			w = c.width
		}
		if rapid.Bool().Draw(t, "same height") {
			h = c.height
		}
		f := drawFilter(t)
		x0, y0 := rapid.IntRange(0, w-1).Draw(t, "x0"), rapid.IntRange(0, h-1).Draw(t, "y0")
		r := image.Rect(x0, y0, rapid.IntRange(x0+1, w).Draw(t, "x1"), rapid.IntRange(y0+1, h).Draw(t, "y1"))

		got := resizeOf(c, w, h, f).window(r)
		want := cropOf(mustResize(t, paste(c), w, h, f), r)
		if !bytes.Equal(got.Pix, want.Pix) {
			t.Fatalf("window %v of %d×%d differs", r, w, h)
		}
	})
}

// Large pictures are split among goroutines; the split must not show.
func TestResizeLargeIsDeterministic(t *testing.T) {
	p := noise(1500, 1100, 7, false)
	first := mustResize(t, p, 336, 300, Bicubic)
	top := resizeOf(canvasOf(p), 336, 300, Bicubic).window(image.Rect(0, 0, 336, 1))
	if !bytes.Equal(first.Pix[:len(top.Pix)], top.Pix) {
		t.Error("first row differs when it is made alone")
	}
	for range 3 {
		if again := mustResize(t, p, 336, 300, Bicubic); !bytes.Equal(first.Pix, again.Pix) {
			t.Fatal("two runs differ")
		}
	}
}

func TestResizeRefuses(t *testing.T) {
	p := noise(4, 3, 1, false)
	nan := float32(math.NaN())
	cases := []struct {
		name string
		src  *RGB
		box  [4]float32
		w, h int
		f    Filter
		want string
	}{
		{"nil picture", nil, [4]float32{0, 0, 4, 3}, 2, 2, Bicubic, "no pixels"},
		{"short pixels", &RGB{4, 3, make([]uint8, 5)}, [4]float32{0, 0, 4, 3}, 2, 2, Bicubic, "5 bytes"},
		{"zero width", p, [4]float32{0, 0, 4, 3}, 0, 2, Bicubic, "0×2"},
		{"negative height", p, [4]float32{0, 0, 4, 3}, 2, -1, Bicubic, "2×-1"},
		{"box outside", p, [4]float32{0, 0, 5, 3}, 2, 2, Bicubic, "outside"},
		{"box empty", p, [4]float32{2, 0, 2, 3}, 2, 2, Bicubic, "empty"},
		{"box NaN", p, [4]float32{0, nan, 4, 3}, 2, 2, Bicubic, "outside"},
		{"no filter", p, [4]float32{0, 0, 4, 3}, 2, 2, Filter{}, "no filter"},
	}
	for _, c := range cases {
		if _, err := ResizeBox(c.src, c.box, c.w, c.h, c.f); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
	if _, err := FilterByName("nearest"); err == nil || !strings.Contains(err.Error(), `"nearest"`) {
		t.Errorf("nearest: error %v", err)
	}
}

func TestParallelPassesPanicsOn(t *testing.T) {
	defer func() {
		if r := recover(); r != "row 3" {
			t.Errorf("recovered %v", r)
		}
	}()
	parallel(8, 1<<20, func(from, to int) {
		if from <= 3 && 3 < to {
			panic("row 3")
		}
	})
}

func BenchmarkResize(b *testing.B) {
	p := noise(4032, 3024, 1, false)
	b.ReportAllocs()
	for b.Loop() {
		mustResize(b, p, 448, 336, Bicubic)
	}
}

func BenchmarkResizeSmall(b *testing.B) {
	p := noise(640, 480, 1, false)
	b.ReportAllocs()
	for b.Loop() {
		mustResize(b, p, 448, 336, Bicubic)
	}
}
