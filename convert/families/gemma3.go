// Gemma 3 (Gemma Team 2025; transformers' Gemma3ForConditionalGeneration): SigLIP, averaged patches, one matrix, and the
// Gemma decoder, in which the tokens of a picture see each other in both directions.

package families

import (
	"encoding/json"
	"fmt"
	"math"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type gemma3 struct{}

// gemma3Config is Gemma3Config.
type gemma3Config struct {
	TextConfig    json.RawMessage `json:"text_config"`
	VisionConfig  json.RawMessage `json:"vision_config"`
	ImageTokens   int64           `json:"mm_tokens_per_image"`
	ImageToken    *int            `json:"image_token_index"`
	ImageTokenID  *int            `json:"image_token_id"` // its name in newer saves
	BeginToken    *int            `json:"boi_token_index"`
	EndToken      *int            `json:"eoi_token_index"`
	EOS           oneOrMany       `json:"eos_token_id"`
	TieEmbeddings *bool           `json:"tie_word_embeddings"`
}

func (gemma3) Name() string                            { return "gemma-3" }
func (gemma3) Match(h Head) bool                       { return h.Is("Gemma3ForConditionalGeneration") }
func (gemma3) Parts(json.RawMessage) map[string]string { return nil }

func (f gemma3) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := gemma3Config{ImageTokens: 256, EOS: oneOrMany{1, 106}}
	decode(r.Config, &c, "config.json", t)
	vision, ok := decodeSigLIP(c.VisionConfig, siglipDefaults(), t)
	text, good := decodeGemma(c.TextConfig, "config.json text_config", t)
	if !ok || !good || !within(t, "config.json mm_tokens_per_image", c.ImageTokens, 1, vision.tokens()) {
		return nil, nil
	}
	side := int64(math.Sqrt(float64(c.ImageTokens)))
	if side*side != c.ImageTokens || vision.grid()%side != 0 {
		t.Problem("config.json mm_tokens_per_image", fmt.Sprintf("is %d, no square that divides the tower's grid of %d", c.ImageTokens, vision.grid()))
		return nil, nil
	}
	p := &Plan{Manifest: manifest.Manifest{FormatVersion: manifest.FormatVersion, Family: f.Name(), Precision: string(opts.Precision)}}
	add := func(name string, role blocks.Role, prefix string, layers int64, build func(b *blocks.Builder)) {
		b := blocks.NewBuilder(name, t, blocks.Policy{Asked: opts.Precision, Role: role, Params: t.Elements(prefix), Layers: int(layers)})
		build(b)
		p.Components = append(p.Components, &Component{name, b})
	}
	tower := t.Prefix("vision_tower.vision_model.", "model.vision_tower.vision_model.", "model.vision_tower.")
	projector := t.Prefix("multi_modal_projector.", "model.multi_modal_projector.")
	model, head := t.Prefix("language_model.model.", "model.language_model."), "language_model.lm_head"
	if model == "model.language_model." {
		head = "lm_head"
	}
	add("vision", blocks.Vision, tower, vision.Layers, func(b *blocks.Builder) { vision.build(b, tower, vision.Layers, true) })
	add("connector", blocks.Connector, projector, 0, func(b *blocks.Builder) { f.connector(b, projector, vision, side, text.HiddenSize) })
	add("decoder", blocks.Decoder, model, text.Layers, func(b *blocks.Builder) { text.build(b, model, head) })
	table := model + "embed_tokens.weight"
	t.Shared(table, text.VocabSize, text.HiddenSize)
	p.Embeddings = &Embeddings{Tensor: table, Rows: text.VocabSize, Hidden: text.HiddenSize, Scale: math.Sqrt(float64(text.HiddenSize))}
	p.Manifest.Decoder = text.decoder(t, "config.json text_config")
	r.generation(&p.Manifest, generationConfig{EOS: c.EOS, BOS: text.BOS, Pad: text.Pad}, t)

	pic := gemmaPicture(r.Preprocessor, int(vision.ImageSize), t)
	pic.Stages, pic.Features, pic.TokensPerTile = []string{"vision", "connector"}, "projected", int(c.ImageTokens)
	p.Manifest.Picture = pic
	const begin, end, soft = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
	p.Manifest.Prompt = manifest.Prompt{Expansion: "repeat", Caption: "Describe the image.", Placeholder: begin, ImageToken: soft,
		Prefix: "\n\n" + begin, Suffix: end + "\n\n"}
	image := 262144
	set(&image, c.ImageTokenID)
	set(&image, c.ImageToken)
	p.Manifest.Tokens.Image = image
	if r.Tokenizer != nil {
		for _, token := range []struct {
			name string
			id   *int
		}{{soft, &image}, {begin, c.BeginToken}, {end, c.EndToken}} {
			if id, found := tokenID(r.Tokenizer, token.name); !found || token.id != nil && id != *token.id {
				t.Problem(tokenizerFile, fmt.Sprintf("gives %s the id %d (found: %v), which is not the configuration's", token.name, id, found))
			}
		}
	}
	r.addText(p, r.Tokenizer, r.template(), t)
	return p, nil
}

// connector is Gemma3MultiModalProjector: patches averaged to side × side, a norm, and a matrix stored as x @ W.
func (gemma3) connector(b *blocks.Builder, prefix string, vision siglip, side, hidden int64) {
	t, g, h, tiles := b.Tensors, vision.grid(), vision.HiddenSize, onnx.Free("tiles")
	k, n := g/side, side*side
	x := b.Input("vision_features", onnx.Float, tiles, onnx.Fixed(g*g), onnx.Fixed(h))
	x = b.Op("Transpose", []*onnx.Value{x}, onnx.Ints("perm", 0, 2, 1))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h, g, g)})
	x = b.Op("AveragePool", []*onnx.Value{x}, onnx.Ints("kernel_shape", k, k), onnx.Ints("strides", k, k))
	x = b.Op("Transpose", []*onnx.Value{b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h, n)})}, onnx.Ints("perm", 0, 2, 1))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h)})
	x = b.RMSNorm("mm_soft_emb_norm", x, t.Weight(prefix+"mm_soft_emb_norm.weight", h).Plus(1), vision.LayerNormEps)
	w := t.Weight(prefix+"mm_input_projection_weight", h, hidden).Transposed()
	x = b.Linear(x, blocks.Linear{Name: "mm_input_projection", W: w, Kind: blocks.Project, Layer: -1})
	b.Output("projected", b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, n, hidden)}), onnx.Float, tiles, onnx.Fixed(n), onnx.Fixed(hidden))
}

// gemmaPicture is Gemma3ImageProcessor without pan and scan: the picture is stretched to the tower's square.
func gemmaPicture(raw json.RawMessage, size int, t *blocks.Tensors) *manifest.Picture {
	half := func() []float64 { return []float64{0.5, 0.5, 0.5} }
	p := imageProcessor{Resample: 2, RescaleFactor: 1.0 / 255, Mean: half(), Std: half(), Size: sizes{Height: size, Width: size}}
	if raw != nil {
		p = decodeProcessor(raw, []string{"Gemma3ImageProcessor", "Gemma3ImageProcessorFast"}, t)
	}
	if p.PanAndScan != nil && *p.PanAndScan {
		t.Problem(processorFile+" do_pan_and_scan", "is true, which is not supported: crops would follow the picture")
	}
	if p.Size.Height != size || p.Size.Width != size {
		t.Problem(processorFile, fmt.Sprintf("resizes to %+v; the tower takes %d×%d", p.Size, size, size))
	}
	return &manifest.Picture{Recipe: "stretch", Resample: resampleNames[p.Resample], Height: size, Width: size, Mean: p.Mean, Std: p.Std}
}
