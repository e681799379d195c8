// SmolVLM and SmolVLM2 (transformers' SmolVLMForConditionalGeneration; Idefics3's layout): SigLIP, pixel shuffle, one
// matrix, a LLaMA decoder; large pictures are split into tiles that the prompt names by row and column.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type smolVLM struct{}

// smolVLMConfig is SmolVLMConfig.
type smolVLMConfig struct {
	TextConfig   json.RawMessage `json:"text_config"`
	VisionConfig json.RawMessage `json:"vision_config"`
	ImageToken   int             `json:"image_token_id"`
	ScaleFactor  int64           `json:"scale_factor"`
	TieWords     *bool           `json:"tie_word_embeddings"`
	VocabSize    int64           `json:"vocab_size"`
	Reentrant    *bool           `json:"use_reentrant_checkpointing"` // of training
}

const fakeImageToken = "<fake_token_around_image>"

func (smolVLM) Name() string { return "smolvlm" }
func (smolVLM) Match(h Head) bool {
	return h.Is("SmolVLMForConditionalGeneration") || h.Is("Idefics3ForConditionalGeneration")
}
func (smolVLM) Parts(json.RawMessage) map[string]string { return nil }

func (f smolVLM) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := smolVLMConfig{ImageToken: 128257, ScaleFactor: 2}
	decode(r.Config, &c, "config.json", t)
	defaults := siglipDefaults()
	defaults.HiddenSize, defaults.IntermediateSize, defaults.PatchSize = 1152, 3072, 32
	vision, ok := decodeSigLIP(c.VisionConfig, defaults, t)
	text, good := decodeLlama(c.TextConfig, "config.json text_config", t)
	if !ok || !good || !within(t, "config.json scale_factor", c.ScaleFactor, 1, vision.grid()) {
		return nil, nil
	}
	if vision.grid()%c.ScaleFactor != 0 {
		t.Problem("config.json scale_factor", fmt.Sprintf("is %d, which does not divide the tower's grid of %d", c.ScaleFactor, vision.grid()))
		return nil, nil
	}
	p := &Plan{Manifest: manifest.Manifest{FormatVersion: manifest.FormatVersion, Family: f.Name(), Precision: string(opts.Precision)}}
	add := func(name string, role blocks.Role, prefix string, layers int64, build func(b *blocks.Builder)) {
		b := blocks.NewBuilder(name, t, blocks.Policy{Asked: opts.Precision, Role: role, Params: t.Elements(prefix), Layers: int(layers)})
		build(b)
		p.Components = append(p.Components, &Component{name, b})
	}
	const model = "model.text_model."
	add("vision", blocks.Vision, "model.vision_model.", vision.Layers, func(b *blocks.Builder) { vision.build(b, "model.vision_model.", vision.Layers, true) })
	add("connector", blocks.Connector, "model.connector.", 0, func(b *blocks.Builder) { f.connector(b, vision, c.ScaleFactor, text.HiddenSize) })
	add("decoder", blocks.Decoder, model, text.Layers, func(b *blocks.Builder) { text.build(b, model, "lm_head") })
	t.Shared(model+"embed_tokens.weight", text.VocabSize, text.HiddenSize)
	p.Embeddings = &Embeddings{Tensor: model + "embed_tokens.weight", Rows: text.VocabSize, Hidden: text.HiddenSize, Scale: 1}
	p.Manifest.Decoder = text.decoder(t, "config.json text_config")
	// _prompt_split_image and _prompt_single_image of SmolVLMProcessor.
	p.Manifest.Prompt = manifest.Prompt{Expansion: "grid", Caption: "Describe the image.", Placeholder: "<image>", ImageToken: "<image>",
		Prefix: fakeImageToken + "<global-img>", Suffix: fakeImageToken,
		TilePrefix: fakeImageToken + "<row_{row}_col_{column}>", RowSuffix: "\n", TilesSuffix: "\n"}
	r.generation(&p.Manifest, generationConfig{EOS: text.EOS, BOS: text.BOS, Pad: text.Pad}, t)
	pic := splitPicture(r.Preprocessor, int(vision.ImageSize), t)
	side := vision.grid() / c.ScaleFactor
	pic.Stages, pic.Features, pic.TokensPerTile = []string{"vision", "connector"}, "projected", int(side*side)
	p.Manifest.Picture = pic
	p.Manifest.Tokens.Image = c.ImageToken
	r.addText(p, r.Tokenizer, r.template(), t)
	return p, nil
}

// connector is SmolVLMConnector: pixel shuffle of r×r patches into channels (columns first, then rows) and one matrix.
func (smolVLM) connector(b *blocks.Builder, vision siglip, r, hidden int64) {
	g, h := vision.grid(), vision.HiddenSize
	s := g / r
	tiles := onnx.Free("tiles")
	x := b.Input("vision_features", onnx.Float, tiles, onnx.Fixed(g*g), onnx.Fixed(h))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, g, s, r*h)})
	x = b.Op("Transpose", []*onnx.Value{x}, onnx.Ints("perm", 0, 2, 1, 3))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, s, s, r*r*h)})
	x = b.Op("Transpose", []*onnx.Value{x}, onnx.Ints("perm", 0, 2, 1, 3))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, r*r*h)})
	w := b.Tensors.Weight("model.connector.modality_projection.proj.weight", hidden, r*r*h)
	x = b.Linear(x, blocks.Linear{Name: "modality_projection", W: w, Kind: blocks.Project, Layer: -1})
	b.Output("projected", b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, s*s, hidden)}), onnx.Float, tiles, onnx.Fixed(s*s), onnx.Fixed(hidden))
}
