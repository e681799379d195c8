// InternVL chat models (Chen et al. 2024): InternViT, pixel shuffle, a two-layer MLP, and a Qwen2, LLaMA or InternLM2
// decoder. As released on the hub: transformers' InternVLForConditionalGeneration.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type internVL struct{}

// internVLConfig is InternVLConfig.
type internVLConfig struct {
	TextConfig    json.RawMessage `json:"text_config"`
	VisionConfig  json.RawMessage `json:"vision_config"`
	Downsample    float64         `json:"downsample_ratio"`
	ImageSeqLen   int64           `json:"image_seq_length"`
	ImageToken    int             `json:"image_token_id"`
	ProjectorAct  string          `json:"projector_hidden_act"`
	FeatureLayer  int64           `json:"vision_feature_layer"`
	Select        string          `json:"vision_feature_select_strategy"`
	TieEmbeddings *bool           `json:"tie_word_embeddings"`
}

func (internVL) Name() string                            { return "internvl" }
func (internVL) Match(h Head) bool                       { return h.Is("InternVLForConditionalGeneration") }
func (internVL) Parts(json.RawMessage) map[string]string { return nil }

func (f internVL) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := internVLConfig{Downsample: 0.5, ImageToken: 151667, ProjectorAct: "gelu", FeatureLayer: -1, Select: "default"}
	decode(r.Config, &c, "config.json", t)
	vision, ok := decodeInternViT(c.VisionConfig, "config.json vision_config", t)
	text, good := decodeLlama(c.TextConfig, "config.json text_config", t)
	if !ok || !good {
		return nil, nil
	}
	if vision.MeanPooling != nil && !*vision.MeanPooling {
		t.Problem("config.json vision_config use_mean_pooling", "is false: the norm that then follows the tower is not supported")
	}
	if c.Select != "default" {
		t.Problem("config.json vision_feature_select_strategy", fmt.Sprintf("is %q where default is due", c.Select))
	}
	m := internModel{family: f.Name(), vision: vision, names: internHub, text: text, textConfig: "config.json text_config", downsample: c.Downsample, swapBack: true, select_: c.FeatureLayer,
		act: c.ProjectorAct, visionPrefix: t.Prefix("vision_tower.", "model.vision_tower."),
		projector:  t.Prefix("multi_modal_projector.", "model.multi_modal_projector."),
		projection: [3]string{"layer_norm", "linear_1", "linear_2"},
		textPrefix: t.Prefix("language_model.model.", "model.language_model."), head: "language_model.lm_head"}
	if m.textPrefix == "model.language_model." {
		m.head = "lm_head"
	}
	p := m.plan(r, t, opts)
	if p == nil {
		return nil, nil
	}
	if c.ImageSeqLen != 0 && c.ImageSeqLen != m.tokens() {
		t.Problem("config.json image_seq_length", fmt.Sprintf("is %d and the tower gives %d tokens", c.ImageSeqLen, m.tokens()))
	}
	// The processor turns tiling on for every call, whatever its file says.
	pic := gridPicture(r.Preprocessor, int(vision.ImageSize), t)
	m.finish(p, pic)
	p.Manifest.Tokens.Image = c.ImageToken
	p.Manifest.Prompt.Placeholder, p.Manifest.Prompt.ImageToken = "<IMG_CONTEXT>", "<IMG_CONTEXT>"
	p.Manifest.Prompt.Prefix, p.Manifest.Prompt.Suffix = "<img>", "</img>"
	if pic.Video = r.video(pic); pic.Video != nil {
		p.Manifest.Prompt.VideoPlaceholder = "<video>"
		p.Manifest.Prompt.FramePrefix, p.Manifest.Prompt.FrameSuffix, p.Manifest.Prompt.FrameSeparator = "Frame{frame}: <img>", "</img>", "\n"
	}
	r.addText(p, r.Tokenizer, r.template(), t)
	return p, nil
}

// internModel is InternVL with its modules named.
type internModel struct {
	family       string
	vision       internViT
	names        internNames
	text         llamaConfig
	textConfig   string     // where the decoder's configuration is
	fusedText    *internLM2 // the decoder's names where it is InternLM2
	downsample   float64
	swapBack     bool  // pixel shuffle "v2": height and width swapped back at the end
	select_      int64 // which hidden state: 0 is the embeddings, −1 the last layer's
	act          string
	visionPrefix string
	projector    string
	projection   [3]string // norm, first and second matrix
	textPrefix   string
	head         string
	shuffleFirst bool // vision_features are those after the shuffle (the authors' extract_feature)
}

func (m internModel) side() int64   { return int64(float64(m.vision.grid()) * m.downsample) }
func (m internModel) tokens() int64 { return m.side() * m.side() }
func (m internModel) merged() int64 { return m.vision.HiddenSize * m.ratio() * m.ratio() }
func (m internModel) ratio() int64  { return m.vision.grid() / max(m.side(), 1) }

func (m internModel) plan(r *Release, t *blocks.Tensors, opts Options) *Plan {
	if m.downsample <= 0 || m.downsample > 1 || m.side() < 1 || m.side()*m.ratio() != m.vision.grid() {
		t.Problem("config.json downsample_ratio", fmt.Sprintf("is %v, which does not divide the tower's grid of %d", m.downsample, m.vision.grid()))
		return nil
	}
	p := &Plan{Manifest: manifest.Manifest{FormatVersion: manifest.FormatVersion, Family: m.family, Precision: string(opts.Precision)}}
	last := m.select_
	if last < 0 {
		last += m.vision.Layers + 1
	}
	if last < 0 || last > m.vision.Layers {
		t.Problem("config.json vision_feature_layer", fmt.Sprintf("is %d; the tower has %d layers", m.select_, m.vision.Layers))
		return nil
	}
	add := func(name string, role blocks.Role, prefix string, layers int64, build func(b *blocks.Builder)) {
		b := blocks.NewBuilder(name, t, blocks.Policy{Asked: opts.Precision, Role: role, Params: t.Elements(prefix), Layers: int(layers)})
		build(b)
		p.Components = append(p.Components, &Component{name, b})
	}
	add("vision", blocks.Vision, m.visionPrefix, m.vision.Layers, func(b *blocks.Builder) { m.buildVision(b, last) })
	add("connector", blocks.Connector, m.projector, 0, m.buildConnector)
	table := m.textPrefix + "embed_tokens.weight"
	if m.fusedText != nil {
		table = m.textPrefix + "tok_embeddings.weight"
		add("decoder", blocks.Decoder, m.textPrefix, m.text.Layers, func(b *blocks.Builder) { m.text.buildFrom(b, m.fusedText.layout(m.text, m.textPrefix, m.head)) })
	} else {
		add("decoder", blocks.Decoder, m.textPrefix, m.text.Layers, func(b *blocks.Builder) { m.text.build(b, m.textPrefix, m.head) })
	}
	t.Shared(table, m.text.VocabSize, m.text.HiddenSize)
	p.Embeddings = &Embeddings{Tensor: table, Rows: m.text.VocabSize, Hidden: m.text.HiddenSize, Scale: 1}
	p.Manifest.Decoder = m.text.decoder(t, m.textConfig)
	p.Manifest.Prompt = manifest.Prompt{Expansion: "repeat", Caption: "Describe the image."}
	r.generation(&p.Manifest, generationConfig{EOS: m.text.EOS, BOS: m.text.BOS, Pad: m.text.Pad}, t)
	return p
}

// buildVision is get_image_features up to the pixel shuffle, or with it (shuffleFirst).
func (m internModel) buildVision(b *blocks.Builder, last int64) {
	h, n := m.vision.HiddenSize, m.vision.tokens()
	size := onnx.Fixed(m.vision.size())
	pixels := b.Input("pixel_values", onnx.Float, onnx.Free("tiles"), onnx.Fixed(3), size, size)
	x := m.vision.build(b, m.visionPrefix, m.names, pixels, last)
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, n, h)})
	x = b.Op("Slice", []*onnx.Value{x, b.Ints1(1), b.Ints1(n), b.Ints1(1)})
	if m.shuffleFirst {
		b.Output("vision_features", m.pixelShuffle(b, x), onnx.Float, onnx.Free("tiles"), onnx.Fixed(m.tokens()), onnx.Fixed(m.merged()))
		return
	}
	b.Output("vision_features", x, onnx.Float, onnx.Free("tiles"), onnx.Fixed(n-1), onnx.Fixed(h))
}

// pixelShuffle folds ratio×ratio patches into channels, in upstream's order: columns are folded first, then rows, and
// only the second version swaps height and width back.
func (m internModel) pixelShuffle(b *blocks.Builder, x *onnx.Value) *onnx.Value {
	g, s, r, h := m.vision.grid(), m.side(), m.ratio(), m.vision.HiddenSize
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, g, s, r*h)})
	x = b.Op("Transpose", []*onnx.Value{x}, onnx.Ints("perm", 0, 2, 1, 3))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, s, s, r*r*h)})
	if m.swapBack {
		x = b.Op("Transpose", []*onnx.Value{x}, onnx.Ints("perm", 0, 2, 1, 3))
	}
	return b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, m.tokens(), m.merged())})
}

// buildConnector is the pixel shuffle (unless the tower's graph has it) and the MLP: LayerNorm, Linear, act, Linear.
func (m internModel) buildConnector(b *blocks.Builder) {
	tiles, n, w, h := onnx.Free("tiles"), m.tokens(), m.merged(), m.text.HiddenSize
	act, err := blocks.ParseActivation(m.act)
	if err != nil {
		b.Tensors.Problem("config.json projector_hidden_act", err.Error())
		act = "gelu"
	}
	var x *onnx.Value
	if m.shuffleFirst {
		x = b.Input("vision_features", onnx.Float, tiles, onnx.Fixed(n), onnx.Fixed(w))
	} else {
		x = b.Input("vision_features", onnx.Float, tiles, onnx.Fixed(m.vision.tokens()-1), onnx.Fixed(m.vision.HiddenSize))
		x = m.pixelShuffle(b, x)
		b.Output("pixel_shuffled", x, onnx.Float, tiles, onnx.Fixed(n), onnx.Fixed(w))
	}
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, w)})
	x = b.LayerNormAt("layer_norm", m.projector+m.projection[0], x, w, 1e-5)
	x = b.Activate(act, b.Dense(x, "linear_1", m.projector+m.projection[1], h, w, blocks.Project, -1))
	x = b.Dense(x, "linear_2", m.projector+m.projection[2], h, h, blocks.Project, -1)
	b.Output("projected", b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, n, h)}), onnx.Float, tiles, onnx.Fixed(n), onnx.Fixed(h))
}

// finish says what becomes of the recipe's tensors.
func (m internModel) finish(p *Plan, pic *manifest.Picture) {
	pic.Stages, pic.Features, pic.TokensPerTile = []string{"vision", "connector"}, "projected", int(m.tokens())
	p.Manifest.Picture = pic
}
