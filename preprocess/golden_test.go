package preprocess

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/manifest"
)

// goldenDir holds the golden sets. GLIMPSE_GOLDENS points at another copy, which may have more sets.
func goldenDir() string {
	if dir := os.Getenv("GLIMPSE_GOLDENS"); dir != "" {
		return dir
	}
	return filepath.Join("..", "testdata", "goldens")
}

// golden is a set's cases and the arrays that go with them.
type golden struct {
	dir    string
	Cases  []goldenCase
	tensor map[string]goldenTensor
	data   []byte
}

type goldenCase struct {
	ID        string
	Images    []string
	Videos    []string
	Tolerance struct {
		PixelValues float64 `json:"pixel_values"`
	}
	Options  struct{ EXIF *bool }
	Expected struct {
		NumImageTokens int `json:"num_image_tokens"`
	}
	Arrays map[string]string
}

type goldenTensor struct {
	DType   string
	Shape   []int64
	Offsets [2]int64 `json:"data_offsets"`
}

func readGolden(t *testing.T, set string, required bool) *golden {
	t.Helper()
	g := &golden{dir: filepath.Join(goldenDir(), set)}
	cases, err := os.ReadFile(filepath.Join(g.dir, "cases.json"))
	if errors.Is(err, fs.ErrNotExist) && !required {
		t.Skipf("golden set %s is not in this checkout", set)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(cases, g); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(g.dir, "golden.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(file)
	header := map[string]json.RawMessage{}
	if err := json.Unmarshal(file[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	g.data, g.tensor = file[8+n:], map[string]goldenTensor{}
	for name, raw := range header {
		var tensor goldenTensor
		if name != "__metadata__" {
			if err := json.Unmarshal(raw, &tensor); err != nil {
				t.Fatal(err)
			}
			g.tensor[name] = tensor
		}
	}
	return g
}

func (g *golden) float32s(t *testing.T, name string) ([]float32, []int64) {
	t.Helper()
	tensor, ok := g.tensor[name]
	if !ok || tensor.DType != "F32" {
		t.Fatalf("golden.safetensors: %s is %+v", name, tensor)
	}
	raw := g.data[tensor.Offsets[0]:tensor.Offsets[1]]
	out := make([]float32, len(raw)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return out, tensor.Shape
}

func readMedia(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(goldenDir(), "media", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// pictureConfig makes the manifest's picture from a checkpoint's own preprocessor_config.json, so that the test states
// only which recipe the family uses.
func pictureConfig(t *testing.T, g *golden, recipe string, tokens int) manifest.Picture {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(g.dir, "checkpoint", "preprocessor_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Resample int
		Size     struct {
			ShortestEdge  int `json:"shortest_edge"`
			Height, Width int
		}
		CropSize struct{ Height, Width int } `json:"crop_size"`
		Mean     []float64                   `json:"image_mean"`
		Std      []float64                   `json:"image_std"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	p := manifest.Picture{
		Recipe:        recipe,
		TokensPerTile: tokens,
		Resample:      map[int]string{1: "lanczos", 2: "bilinear", 3: "bicubic"}[config.Resample],
		Height:        config.Size.Height,
		Width:         config.Size.Width,
		Mean:          config.Mean,
		Std:           config.Std,
	}
	if recipe == "clip" {
		p.ShortEdge = config.Size.ShortestEdge
		p.Height, p.Width = config.CropSize.Height, config.CropSize.Width
		p.CropHeight, p.CropWidth = p.Height, p.Width
	}
	return p
}

// TestGoldenPixels decodes and prepares the pictures of every case and compares with what the upstream processor made.
func TestGoldenPixels(t *testing.T) {
	sets := []struct {
		name, recipe string
		required     bool
	}{
		{"llava15-tiny", "clip", true},
		{"blip2-opt-tiny", "stretch", false},
		{"blip2-t5-tiny", "stretch", false},
		{"blip2-itm-tiny", "stretch", false},
		{"instructblip-tiny", "stretch", false},
		{"gemma3-tiny", "stretch", false},
	}
	for _, set := range sets {
		t.Run(set.name, func(t *testing.T) {
			g := readGolden(t, set.name, set.required)
			compared := 0
			for _, c := range g.Cases {
				key, ok := c.Arrays["pixel_values"]
				if !ok || len(c.Videos) > 0 {
					continue
				}
				compared++
				t.Run(c.ID, func(t *testing.T) { compareGolden(t, g, c, key, set.recipe) })
			}
			if compared == 0 {
				t.Error("no case has pixel_values")
			}
		})
	}
}

func compareGolden(t *testing.T, g *golden, c goldenCase, key, recipe string) {
	tokens := max(1, c.Expected.NumImageTokens/len(c.Images))
	config := pictureConfig(t, g, recipe, tokens)
	r, err := NewRecipe(config, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want, shape := g.float32s(t, key)
	tile := int(shape[len(shape)-1] * shape[len(shape)-2] * 3)
	if len(want) != tile*len(c.Images) {
		t.Fatalf("pixel_values %v do not hold one tile for each of %d pictures", shape, len(c.Images))
	}
	for i, name := range c.Images {
		picture, err := Decode(t.Context(), readMedia(t, name), DecodeOptions{IgnoreEXIF: c.Options.EXIF != nil && !*c.Options.EXIF})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		prepared, err := r.Prepare(t.Context(), picture)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if prepared.Tokens != tokens {
			t.Errorf("%s: %d tokens, want %d", name, prepared.Tokens, tokens)
		}
		d := compare(prepared.Tensors["pixel_values"].Float32, want[i*tile:(i+1)*tile], 1/(255*config.Std[1]))
		t.Logf("%s: %v", name, d)
		if strings.HasSuffix(name, ".jpg") {
			if d.mean > 0.03 || d.max > c.Tolerance.PixelValues {
				t.Errorf("%s: %v, want mean ≤ 0.03, max ≤ %g", name, d, c.Tolerance.PixelValues)
			}
			continue
		}
		if d.within < 0.995 || d.mean > 1e-3 || d.max > 8*d.level*1.01 {
			t.Errorf("%s: %v, want 99.5 %% within a level, mean ≤ 1e-3, max ≤ 8 levels", name, d)
		}
	}
}

// difference compares two pictures in normalised units.
type difference struct {
	mean, max float64
	within    float64 // share of values within one grey level
	equal     float64 // share of values within a hundredth of a level
	level     float64
}

func (d difference) String() string {
	return fmt.Sprintf("mean %.6f, max %.4f (%.2f levels), %.3f %% equal, %.3f %% within a level", d.mean, d.max, d.max/d.level, 100*d.equal, 100*d.within)
}

func compare(got, want []float32, level float64) difference {
	d := difference{level: level}
	if len(got) != len(want) {
		d.max = math.Inf(1)
		return d
	}
	for i, w := range want {
		diff := math.Abs(float64(got[i]) - float64(w))
		d.mean += diff
		d.max = max(d.max, diff)
		if diff <= 1.05*level {
			d.within++
		}
		if diff <= 0.01*level {
			d.equal++
		}
	}
	n := float64(len(want))
	d.mean, d.within, d.equal = d.mean/n, d.within/n, d.equal/n
	return d
}
