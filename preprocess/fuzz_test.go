package preprocess

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func addPictures(f *testing.F) {
	entries, err := os.ReadDir(filepath.Join("testdata", "pictures"))
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join("testdata", "pictures", e.Name()))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add(pngHeaderOnly(60000, 60000))
	f.Add(tiffHeaderOnly(50000, 50000))
	f.Add(webpCanvas(1<<14, 1<<14))
}

// FuzzDecode: whatever the bytes, a picture of the size that the header gave, or an error with a kind.
func FuzzDecode(f *testing.F) {
	addPictures(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode(t.Context(), data, DecodeOptions{Limits: Limits{MaxPixels: 1 << 16, MaxEdge: 1 << 12}})
		if err != nil {
			if KindOf(err) == "" || p != nil {
				t.Fatalf("%v, %v", p, err)
			}
			return
		}
		if err := p.check(); err != nil {
			t.Fatal(err)
		}
		info, err := Header(bytes.NewReader(data))
		if w, h := info.Upright(); err != nil || w != p.Width || h != p.Height {
			t.Fatalf("header %+v (%v), picture %d×%d", info, err, p.Width, p.Height)
		}
	})
}

func FuzzHeader(f *testing.F) {
	addPictures(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := Header(bytes.NewReader(data))
		if err != nil {
			if KindOf(err) == "" {
				t.Fatalf("%v has no kind", err)
			}
			return
		}
		if info.Width < 1 || info.Height < 1 || info.Frames < 1 || info.Orientation < 1 || info.Orientation > 8 {
			t.Fatalf("%+v", info)
		}
	})
}

func FuzzEXIF(f *testing.F) {
	for _, name := range []string{"exif6.jpg", "exif6.tif"} {
		data, err := os.ReadFile(filepath.Join("testdata", "pictures", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data[max(0, bytes.Index(data, []byte("Exif\x00\x00"))):])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if o := exifOrientation(data); o < 1 || o > 8 {
			t.Fatalf("orientation %d", o)
		}
	})
}
