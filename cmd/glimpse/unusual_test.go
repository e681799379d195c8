// Pictures that are not eight bits of red, green and blue, or not one picture.

package main

import (
	"bytes"
	"encoding/json"
	"image"
	"image/color"
	"image/draw"
	"image/gif"
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
)

// The same scene as a palette PNG, as CMYK, with 16 bits a channel, and as the first frame of animations has the same caption:
// the true one. testdata holds what Pillow made of scene-12.png and Go cannot write.
func TestUnusualPicturesHaveTheirCaption(t *testing.T) {
	folder := t.TempDir()
	m := filepath.Join(folder, "model")
	must(t, "convert", "../../testdata/models/scenes-llava", "-o", m, "--precision", "fp32")
	const scene = "../../testdata/pictures/scene-12.png"
	paletted, ok := decoded(t, scene).(*image.Paletted)
	if !ok {
		t.Fatal("the scene has no palette")
	}
	rect := paletted.Bounds()
	deep := image.NewRGBA64(rect)
	draw.Draw(deep, rect, paletted, rect.Min, draw.Src)
	other := image.NewPaletted(rect, paletted.Palette) // another frame, of one colour
	var sixteen, animated bytes.Buffer
	if err := png.Encode(&sixteen, deep); err != nil {
		t.Fatal(err)
	}
	if err := gif.EncodeAll(&animated, &gif.GIF{Image: []*image.Paletted{paletted, other}, Delay: []int{5, 5}}); err != nil {
		t.Fatal(err)
	}
	pictures := []string{scene, filepath.Join(folder, "16.png"), filepath.Join(folder, "animated.gif"), "testdata/scene-12-animated.webp", "testdata/scene-12-cmyk.jpg"}
	overwrite(t, pictures[1], sixteen.Bytes())
	overwrite(t, pictures[2], animated.Bytes())
	r := must(t, append(append([]string{"caption", m}, pictures...), "-o", "-", "--reproducible")...)
	rows := parseRows(t, []byte(r.stdout))
	if len(rows) != len(pictures) {
		t.Fatalf("%d rows", len(rows))
	}
	want := rows[0]
	if truth := truthOf(t, "scene-12.png"); want.Caption != truth {
		t.Errorf("the caption is %q, the truth %q", want.Caption, truth)
	}
	for i, row := range rows {
		if row.Error != nil || row.Caption != want.Caption || row.Width != rect.Dx() || row.Height != rect.Dy() {
			t.Errorf("%s: %+v", pictures[i], row)
		}
		if exact := i < 4; exact && row.PHash != want.PHash { // a JPEG has other pixels
			t.Errorf("%s: perceptual hash %s, want %s", pictures[i], row.PHash, want.PHash)
		}
	}
}

func decoded(t *testing.T, path string) image.Image {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img, _, err := image.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// The fixture is what it says: otherwise the test above would prove nothing.
func TestTheFixtureIsCMYK(t *testing.T) {
	if img := decoded(t, "testdata/scene-12-cmyk.jpg"); img.ColorModel() != color.CMYKModel {
		t.Errorf("colour model %T", img)
	}
}

func TestReproducibleTurnsOffWhatDependsOnOthers(t *testing.T) {
	for _, tc := range []struct {
		args             []string
		slots, from      int
		prefix, logprobs bool
	}{
		{nil, 4, 0, true, true},
		{[]string{"--reproducible"}, 1, reproducibleFrom, false, false},
		{[]string{"--reproducible", "--slots", "3", "--prefill-from", "5", "--prefix-cache"}, 3, 5, true, false},
		{[]string{"--prefix-cache=false"}, 4, 0, false, true},
	} {
		var o CaptionOptions
		f := pflag.NewFlagSet("caption", pflag.ContinueOnError)
		o.AddFlags(f)
		if err := f.Parse(tc.args); err != nil {
			t.Fatal(err)
		}
		o.settle(f.Changed)
		ask := o.batchOptions(&app{}, nil).Ask
		if o.Slots != tc.slots || o.PrefillFrom != tc.from || o.Prefix != tc.prefix || ask.Logprob != tc.logprobs {
			t.Errorf("%v: slots %d, prefill from %d, prefix cache %v, logprobs %v", tc.args, o.Slots, o.PrefillFrom, o.Prefix, ask.Logprob)
		}
	}
}

// truthOf is a scene's caption as it was drawn.
func truthOf(t *testing.T, file string) string {
	t.Helper()
	var truth struct {
		Pictures []struct{ File, Caption string }
	}
	if err := json.Unmarshal(read(t, "../../testdata/pictures/captions.json"), &truth); err != nil {
		t.Fatal(err)
	}
	for _, p := range truth.Pictures {
		if p.File == file {
			return p.Caption
		}
	}
	t.Fatalf("no caption of %s", file)
	return ""
}
