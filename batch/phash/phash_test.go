package phash

import (
	"image"
	"image/color"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// scene draws a smooth picture of random blobs.
func scene(seed uint64, w, h int) *image.RGBA {
	random := rand.New(rand.NewPCG(seed, 2))
	type blob struct{ x, y, r, v float64 }
	blobs := make([]blob, 12)
	for i := range blobs {
		blobs[i] = blob{random.Float64(), random.Float64(), 0.05 + random.Float64()/4, random.Float64() * 255}
	}
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			v := 100.0
			for _, b := range blobs {
				dx, dy := float64(x)/float64(w)-b.x, float64(y)/float64(h)-b.y
				if dx*dx+dy*dy < b.r*b.r {
					v = b.v
				}
			}
			img.SetRGBA(x, y, color.RGBA{uint8(v), uint8(v * 0.8), uint8(v / 2), 255})
		}
	}
	return img
}

func TestTheSamePictureInAnotherSizeIsNear(t *testing.T) {
	near, far := 0, 64
	for seed := range uint64(30) {
		a := OfImage(scene(seed, 320, 240))
		near = max(near, Distance(a, OfImage(scene(seed, 200, 150))))
		far = min(far, Distance(a, OfImage(scene(seed+100, 320, 240))))
	}
	if near > 4 || far < 12 {
		t.Errorf("scaled: at most %d bits, others: at least %d", near, far)
	}
}

func TestBrightnessChangesLittle(t *testing.T) {
	img := scene(3, 100, 80)
	a := OfImage(img)
	for i := range img.Pix {
		if i%4 != 3 {
			img.Pix[i] = uint8(float64(img.Pix[i])*0.8) + 20
		}
	}
	if d := Distance(a, OfImage(img)); d > 3 {
		t.Errorf("%d bits", d)
	}
}

func TestFlatAndTinyPictures(t *testing.T) {
	for _, v := range []uint8{0, 77, 255} {
		flat := make([]uint8, 3*50*40)
		for i := range flat {
			flat[i] = v
		}
		if h := Of(flat, 50, 40); h != 0 {
			t.Errorf("a flat picture of %d has %016x", v, h)
		}
	}
	for _, size := range [][2]int{{1, 1}, {1, 40}, {40, 1}, {3, 2}} {
		Of(make([]uint8, 3*size[0]*size[1]), size[0], size[1]) // does not panic
	}
}

// The bits are public (docs/batch.md).
func TestBits(t *testing.T) {
	pix := make([]uint8, 3*64*64)
	for y := range 64 {
		for x := range 64 {
			for c := range 3 {
				pix[3*(y*64+x)+c] = uint8(x*3 + y*y/32)
			}
		}
	}
	if h := Format(Of(pix, 64, 64)); h != "53a54ab56ad4a956" {
		t.Errorf("%s", h)
	}
}

// The index finds what comparing with every hash finds.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		distance := rapid.IntRange(0, MaxDistance).Draw(rt, "distance")
		x := NewIndex(distance)
		var hashes []uint64
		base := rapid.Uint64().Draw(rt, "base")
		for range rapid.IntRange(0, 40).Draw(rt, "n") {
			h := base
			for range rapid.IntRange(0, 20).Draw(rt, "flips") {
				h ^= 1 << rapid.IntRange(0, 63).Draw(rt, "bit")
			}
			want := -1
			for i, other := range hashes {
				if Distance(h, other) <= distance {
					want = i
					break
				}
			}
			got, d, ok := x.Find(h)
			if ok != (want >= 0) || ok && (got != want || d != Distance(h, hashes[want])) {
				rt.Fatalf("found %d at %d (%v), want %d", got, d, ok, want)
			}
			x.Add(h)
			hashes = append(hashes, h)
		}
	})
}
