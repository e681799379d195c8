package preprocess

import (
	"bytes"
	"compress/zlib"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func readVectors(t *testing.T, name string, cases any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases json.RawMessage }
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(file.Cases, cases); err != nil {
		t.Fatal(err)
	}
}

// digest is what make_vectors.py calls one.
func digest(pix []uint8) string {
	sum := sha256.Sum256(pix)
	return hex.EncodeToString(sum[:16])
}

// noise makes the picture that make_vectors.py makes of the same seed.
func noise(width, height int, seed uint32, extreme bool) *RGB {
	p := NewRGB(width, height)
	for i := range p.Pix {
		seed = seed*1664525 + 1013904223
		p.Pix[i] = uint8(seed >> 24)
		if extreme {
			p.Pix[i] = -uint8(seed >> 31)
		}
	}
	return p
}

func TestResizeEqualsPillow(t *testing.T) {
	var cases []struct {
		Source, Target [2]int
		Box            *[4]float32
		Seed           uint32
		Extreme        bool
		Filter, SHA256 string
		Pixels         []byte
	}
	readVectors(t, "resize.json", &cases)
	if len(cases) < 400 {
		t.Fatalf("%d cases", len(cases))
	}
	for _, c := range cases {
		filter, err := FilterByName(c.Filter)
		if err != nil {
			t.Fatal(err)
		}
		src := noise(c.Source[0], c.Source[1], c.Seed, c.Extreme)
		var got *RGB
		if c.Box != nil {
			got, err = ResizeBox(src, *c.Box, c.Target[0], c.Target[1], filter)
		} else {
			got, err = Resize(src, c.Target[0], c.Target[1], filter)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got.Width != c.Target[0] || got.Height != c.Target[1] {
			t.Errorf("%v to %v: got %d×%d", c.Source, c.Target, got.Width, got.Height)
		}
		if c.Pixels != nil && !bytes.Equal(got.Pix, c.Pixels) {
			t.Errorf("%v to %v with %s: got %v, want %v", c.Source, c.Target, c.Filter, got.Pix, c.Pixels)
		}
		if digest(got.Pix) != c.SHA256 {
			t.Errorf("%v to %v with %s, box %v, extreme %v: pixels differ from Pillow's", c.Source, c.Target, c.Filter, c.Box, c.Extreme)
		}
	}
}

type pictureCase struct {
	File                string
	Stored, Size        [2]int
	Frames, Orientation int
	SHA256              string
	Pixels              []byte // zlib
}

func pictureCases(t *testing.T) []pictureCase {
	t.Helper()
	var cases []pictureCase
	readVectors(t, "pictures.json", &cases)
	if len(cases) < 75 {
		t.Fatalf("%d cases", len(cases))
	}
	return cases
}

// TestDecodeEqualsPillow reads a file of every format and mode. What is not JPEG must be equal to the bit.
func TestDecodeEqualsPillow(t *testing.T) {
	lossy := 0
	for _, c := range pictureCases(t) {
		if c.Pixels != nil {
			lossy++
		}
		t.Run(c.File, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join("testdata", "pictures", c.File))
			if err != nil {
				t.Fatal(err)
			}
			info, err := Header(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if stored := [2]int{info.Width, info.Height}; stored != c.Stored || info.Frames != c.Frames || info.Orientation != c.Orientation {
				t.Errorf("header %+v, want %v, orientation %d, %d frames", info, c.Stored, c.Orientation, c.Frames)
			}
			got, err := Decode(t.Context(), data, DecodeOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if w, h := info.Upright(); got.Width != c.Size[0] || got.Height != c.Size[1] || w != c.Size[0] || h != c.Size[1] {
				t.Fatalf("%d×%d pixels (header: %d×%d), want %v", got.Width, got.Height, w, h, c.Size)
			}
			if c.Pixels == nil {
				if digest(got.Pix) != c.SHA256 {
					t.Error("pixels differ from Pillow's")
				}
				return
			}
			budget := len(got.Pix)/10 + 8 // levels in all; 8: the smallest pictures have 27 values
			if c.File == "ycck.jpg" {
				budget = len(got.Pix) / 4 // image/jpeg converts these itself, with its own rounding
			}
			compareLossy(t, got.Pix, c.Pixels, budget)
		})
	}
	if lossy < 30 {
		t.Errorf("%d cases hold pixels", lossy)
	}
}

// compareLossy allows what two roundings of the same inverse transform can do: a level in luma and in a chroma plane is
// up to 1 + 1.772 levels after the colour conversion, so 3, and rarely. Chroma repeated instead of smoothed is off by
// tens of levels.
func compareLossy(t *testing.T, got []uint8, packed []byte, budget int) {
	t.Helper()
	r, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(r)
	if err != nil || len(want) != len(got) {
		t.Fatalf("reference has %d values, want %d (%v)", len(want), len(got), err)
	}
	worst, unequal, sum := 0, 0, 0
	for i := range want {
		d := int(got[i]) - int(want[i])
		worst = max(worst, d, -d)
		sum += max(d, -d)
		if d != 0 {
			unequal++
		}
	}
	t.Logf("%d of %d values differ, by %d levels in all, %d at most", unequal, len(want), sum, worst)
	if worst > 3 || sum > budget {
		t.Errorf("differs from libjpeg by %d levels in %d values, %d at most", sum, len(want), worst)
	}
}
