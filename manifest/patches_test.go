package manifest_test

import (
	"strings"
	"testing"

	"glimpse/manifest"
)

// patched is a manifest of a model of patches with videos, boxes and named pictures.
func patched() *manifest.Manifest {
	return &manifest.Manifest{
		FormatVersion: manifest.FormatVersion,
		Components: map[string]manifest.Component{
			"vision":  {File: "vision.onnx", Outputs: []manifest.Port{{Name: "projected", DType: "float32", Shape: []string{"patches / 4", "8"}}}},
			"decoder": {File: "decoder.onnx"},
		},
		Picture: &manifest.Picture{Recipe: manifest.RecipePatches, Stages: []string{"vision"}, Features: "projected", Resample: "bicubic",
			Mean: []float64{0, 0, 0}, Std: []float64{1, 1, 1}, Video: &manifest.Video{},
			Patches: &manifest.Patches{Size: 14, Merge: 2, Temporal: 2, MinPixels: 3136, MaxPixels: 1003520, HeadDim: 80, Window: 112,
				Video: &manifest.PatchVideo{MinPixels: 3136, MaxPixels: 1003520, TokensPerSecond: 2}}},
		Prompt: manifest.Prompt{Placeholder: "<img></img>", Prefix: "<img>", Suffix: "</img>", ImageToken: "<pad>", Named: true, VideoPlaceholder: "<video>"},
		Decoder: &manifest.Decoder{Component: "decoder", Layers: 1, HiddenSize: 8, Heads: 1, KVHeads: 1, HeadDim: 16, VocabSize: 10, MaxPositions: 100,
			CacheDType: "float32", Positions: manifest.PositionsMRoPE, Rope: &manifest.Rope{Type: "default", Theta: 1e6, Dim: 16, Sections: []int{2, 3, 3}}},
		Embeddings: &manifest.Embeddings{File: "embeddings.bin", DType: "float32", Rows: 10, HiddenSize: 8, Scale: 1},
		Boxes:      &manifest.Boxes{Format: manifest.BoxesTags, Scale: 1000, Marks: []string{"a", "b", "c", "d", "e", "f"}},
	}
}

func TestPatchesAreChecked(t *testing.T) {
	raw, err := patched().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.Parse(raw); err != nil {
		t.Fatalf("what was written cannot be read: %v", err)
	}
	for want, change := range map[string]func(m *manifest.Manifest){
		"picture.recipe is":                 func(m *manifest.Manifest) { m.Picture.Recipe = "clip" },
		"belongs to the recipe":             func(m *manifest.Manifest) { m.Picture.Patches = nil },
		"picture.patches.size is 0":         func(m *manifest.Manifest) { m.Picture.Patches.Size = 0 },
		"picture.patches.merge is 17":       func(m *manifest.Manifest) { m.Picture.Patches.Merge = 17 },
		"picture.patches.temporal":          func(m *manifest.Manifest) { m.Picture.Patches.Temporal = -1 },
		"picture.patches.max_pixels":        func(m *manifest.Manifest) { m.Picture.Patches.MaxPixels = 1 },
		"picture.patches.head_dim is 10;":   func(m *manifest.Manifest) { m.Picture.Patches.HeadDim = 10 },
		"less than one token":               func(m *manifest.Manifest) { m.Picture.Patches.Window = 20 },
		"picture.patches.position_grid":     func(m *manifest.Manifest) { m.Picture.Patches.PositionGrid = 1 << 13 },
		"picture.patches.video is not":      func(m *manifest.Manifest) { m.Picture.Patches.Video = nil },
		"picture.patches.video.max_pixels":  func(m *manifest.Manifest) { m.Picture.Patches.Video.MaxPixels = 1 },
		"tokens_per_second is -1":           func(m *manifest.Manifest) { m.Picture.Patches.Video.TokensPerSecond = -1 },
		"three decoder.rope.sections":       func(m *manifest.Manifest) { m.Decoder.Rope.Sections = []int{4, 4} },
		"do not add up to the 8":            func(m *manifest.Manifest) { m.Decoder.Rope.Sections = []int{2, 3, 4} },
		"decoder.rope.sections is -1":       func(m *manifest.Manifest) { m.Decoder.Rope.Sections = []int{-1, 5, 4} },
		"decoder.positions is not":          func(m *manifest.Manifest) { m.Decoder.Positions = "" },
		`decoder.positions is "polar"`:      func(m *manifest.Manifest) { m.Decoder.Positions = "polar" },
		`boxes.format is "xml"`:             func(m *manifest.Manifest) { m.Boxes.Format = "xml" },
		"boxes.scale is -1":                 func(m *manifest.Manifest) { m.Boxes.Scale = -1 },
		"boxes.marks has 2":                 func(m *manifest.Manifest) { m.Boxes.Marks = []string{"a", "b"} },
		"boxes.marks has 6":                 func(m *manifest.Manifest) { m.Boxes.Marks[3] = "" },
		"prompt.named is set":               func(m *manifest.Manifest) { m.Prompt.Prefix, m.Prompt.Placeholder = "", "</img>" },
		"with a name between":               func(m *manifest.Manifest) { m.Prompt.Placeholder = "<image>" },
		`picture.passes is "columns first"`: func(m *manifest.Manifest) { m.Picture.Passes = "columns first" },
	} {
		m := patched()
		change(m)
		if err := m.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}
