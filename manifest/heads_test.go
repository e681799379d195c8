package manifest

import (
	"strings"
	"testing"
)

// withHeads is a model with an encoder, an instruction and scoring heads.
func withHeads() *Manifest {
	text := []Port{{Name: "ids", DType: "int64"}, {Name: "mask", DType: "int64"}}
	pair := append([]Port{{Name: ImageIndex, DType: "int64"}}, text...)
	component := func(inputs []Port, outputs ...string) Component {
		c := Component{File: "a.onnx", Inputs: inputs}
		for _, name := range outputs {
			c.Outputs = append(c.Outputs, Port{Name: name, DType: "float32"})
		}
		return c
	}
	return &Manifest{
		FormatVersion: FormatVersion,
		Components: map[string]Component{
			"vision": component(text, "features"), "decoder": component(nil), "encoder": component(nil),
			"image": component(nil, "image_embeds"), "text": component(text, "text_embeds"), "match": component(pair, "prob"),
		},
		Picture: &Picture{Recipe: "clip", Stages: []string{"vision"}, Features: "features", TokensPerTile: 1, Height: 8, Width: 8,
			Mean: []float64{0, 0, 0}, Std: []float64{1, 1, 1}},
		Decoder: &Decoder{Component: "decoder", Layers: 1, HiddenSize: 8, Heads: 1, KVHeads: 1, HeadDim: 8, VocabSize: 9, MaxPositions: 16, CacheDType: "float32",
			Encoder: &Encoder{Component: "encoder", StartToken: 0, MaxPositions: 16}},
		Embeddings:  &Embeddings{File: "e.bin", DType: "float32", Rows: 9, HiddenSize: 8},
		Instruction: &TextInput{Tokenizer: "t.json", IDs: "ids", Mask: "mask", MaxTokens: 4},
		Scoring: &Scoring{
			ImageStages: []string{"image"}, TextStages: []string{"text"}, ImageEmbeds: "image_embeds", TextEmbeds: "text_embeds",
			Text:   TextInput{Tokenizer: "t.json", IDs: "ids", Mask: "mask", MaxTokens: 4},
			Scores: []Score{{Name: "itc", Kind: KindSimilarity, Scale: 1}, {Name: "itm", Kind: KindPair, Component: "match", Output: "prob"}},
		},
	}
}

func TestHeadsAreChecked(t *testing.T) {
	if err := withHeads().Validate(); err != nil {
		t.Fatal(err)
	}
	for says, edit := range map[string]func(m *Manifest){
		"decoder.encoder.component names \"coder\"":       func(m *Manifest) { m.Decoder.Encoder.Component = "coder" },
		"start_token is 9":                                func(m *Manifest) { m.Decoder.Encoder.StartToken = 9 },
		"start_token is -1":                               func(m *Manifest) { m.Decoder.Encoder.StartToken = -1 },
		"encoder.max_positions is 0":                      func(m *Manifest) { m.Decoder.Encoder.MaxPositions = 0 },
		"decoder.cache_dtype is \"bfloat16\"":             func(m *Manifest) { m.Decoder.CacheDType = "bfloat16" },
		"target is \"npu\"":                               func(m *Manifest) { m.Target = "npu" },
		"decoder.max_positions is 1":                      func(m *Manifest) { m.Decoder.MaxPositions = 1 },
		"picture.features is empty":                       func(m *Manifest) { m.Picture.Features = "" },
		"picture.features is \"rows\"":                    func(m *Manifest) { m.Picture.Features = "rows" },
		"instruction.tokenizer is \"../t.json\"":          func(m *Manifest) { m.Instruction.Tokenizer = "../t.json" },
		"instruction.tokenizer is empty":                  func(m *Manifest) { m.Instruction.Tokenizer = "" },
		"instruction.max_tokens is 0":                     func(m *Manifest) { m.Instruction.MaxTokens = 0 },
		"instruction.pad is -1":                           func(m *Manifest) { m.Instruction.Pad = -1 },
		"they must be two names":                          func(m *Manifest) { m.Instruction.Mask = "ids" },
		"instruction: none of":                            func(m *Manifest) { m.Instruction.IDs = "other" },
		"scoring.text_stages: none of":                    func(m *Manifest) { m.Scoring.Text.Mask = "other" },
		"scoring compares pictures":                       func(m *Manifest) { m.Picture = nil },
		"scoring.image_stages names \"none\"":             func(m *Manifest) { m.Scoring.ImageStages = []string{"none"} },
		"scoring.text_stages names \"none\"":              func(m *Manifest) { m.Scoring.TextStages = []string{"none"} },
		"scoring.image_embeds is \"x\"":                   func(m *Manifest) { m.Scoring.ImageEmbeds = "x" },
		"scoring.text_embeds is \"x\"":                    func(m *Manifest) { m.Scoring.TextEmbeds = "x" },
		"scoring.scores is empty":                         func(m *Manifest) { m.Scoring.Scores = nil },
		"scores[0].name is \"i/c\"":                       func(m *Manifest) { m.Scoring.Scores[0].Name = "i/c" },
		"scores[0].name is \"model\"":                     func(m *Manifest) { m.Scoring.Scores[0].Name = "model" },
		"\"itc\" is there twice":                          func(m *Manifest) { m.Scoring.Scores[1].Name = "itc" },
		"scores[0].kind is \"other\"":                     func(m *Manifest) { m.Scoring.Scores[0].Kind = "other" },
		"scores[0].scale is 0":                            func(m *Manifest) { m.Scoring.Scores[0].Scale = 0 },
		"no stage makes its picture embeddings \"other\"": func(m *Manifest) { m.Scoring.Scores[0].ImageEmbeds = "other" },
		"no stage makes its text embeddings \"other\"":    func(m *Manifest) { m.Scoring.Scores[0].TextEmbeds = "other" },
		"scores[1].component names \"none\"":              func(m *Manifest) { m.Scoring.Scores[1].Component = "none" },
		"scores[1].output is \"logits\"":                  func(m *Manifest) { m.Scoring.Scores[1].Output = "logits" },
		"text has no input image_index":                   func(m *Manifest) { m.Scoring.Scores[1].Component = "text" },
	} {
		m := withHeads()
		edit(m)
		if err := m.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}
