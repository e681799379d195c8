// LLaVA-1.5 (Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning"): a CLIP tower without its class token,
// a two-layer MLP, a LLaMA decoder. As released on the hub: transformers' LlavaForConditionalGeneration.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type llava15 struct{}

// llavaConfig is LlavaConfig.
type llavaConfig struct {
	TextConfig    json.RawMessage `json:"text_config"`
	VisionConfig  json.RawMessage `json:"vision_config"`
	ImageToken    *int            `json:"image_token_index"`
	ImageTokenID  *int            `json:"image_token_id"` // its name in newer saves
	ImageSeqLen   int64           `json:"image_seq_length"`
	ProjectorAct  string          `json:"projector_hidden_act"`
	ProjectorBias bool            `json:"multimodal_projector_bias"`
	FeatureLayer  featureLayers   `json:"vision_feature_layer"`
	Select        string          `json:"vision_feature_select_strategy"`
	TieEmbeddings *bool           `json:"tie_word_embeddings"`
	VocabSize     int64           `json:"vocab_size"` // repeats text_config's
	Pad           *int            `json:"pad_token_id"`
}

// featureLayers is vision_feature_layer: one hidden state, or several that are concatenated.
type featureLayers []int64

func (f *featureLayers) UnmarshalJSON(raw []byte) error {
	var one int64
	if json.Unmarshal(raw, &one) == nil {
		*f = featureLayers{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]int64)(f))
}

func (llava15) Name() string                            { return "llava-1.5" }
func (llava15) Match(h Head) bool                       { return h.Is("LlavaForConditionalGeneration") }
func (llava15) Parts(json.RawMessage) map[string]string { return nil }

func (f llava15) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := llavaConfig{ProjectorAct: "gelu", ProjectorBias: true, FeatureLayer: featureLayers{-2}, Select: "default"}
	decode(r.Config, &c, "config.json", t)
	vision := clipVisionDefaults()
	// LlavaConfig's own default tower is CLIP ViT-L/14-336.
	vision.HiddenSize, vision.IntermediateSize, vision.Layers, vision.Heads, vision.ImageSize, vision.PatchSize = 1024, 4096, 24, 16, 336, 14
	if c.VisionConfig != nil {
		vision = clipVisionDefaults()
		decodeCLIP(c.VisionConfig, &vision, t)
	}
	text, ok := decodeLlama(c.TextConfig, "config.json text_config", t)
	if ok = vision.valid(t, "config.json vision_config") && ok; !ok {
		return nil, nil
	}
	m := llavaModel{
		family: f.Name(), vision: vision, text: text, layers: c.FeatureLayer, selection: c.Select, act: c.ProjectorAct, bias: c.ProjectorBias,
		visionPrefix: t.Prefix("vision_tower.vision_model.", "model.vision_tower.vision_model.", "model.vision_tower.", "vision_tower."),
	}
	m.hubNames(t)
	p := m.plan(r, t, opts)
	p.Manifest.Picture = clipPicture(r.Preprocessor, int(vision.ImageSize), t)
	m.picture(p, t)
	if c.ImageSeqLen != 0 && c.ImageSeqLen != int64(p.Manifest.Picture.TokensPerTile) {
		t.Problem("config.json image_seq_length", fmt.Sprintf("is %d and the tower gives %d tokens", c.ImageSeqLen, p.Manifest.Picture.TokensPerTile))
	}
	image := 32000
	set(&image, c.ImageTokenID)
	set(&image, c.ImageToken)
	p.Manifest.Tokens.Image = image
	p.Manifest.Prompt.ImageToken = "<image>"
	var processor struct {
		ImageToken string `json:"image_token"`
	}
	if r.Processor != nil && json.Unmarshal(r.Processor, &processor) == nil && processor.ImageToken != "" {
		p.Manifest.Prompt.ImageToken = processor.ImageToken
	}
	p.Manifest.Prompt.Placeholder = p.Manifest.Prompt.ImageToken
	if r.Tokenizer != nil {
		if id, ok := tokenID(r.Tokenizer, p.Manifest.Prompt.ImageToken); !ok || id != image {
			t.Problem(tokenizerFile, fmt.Sprintf("gives the image token %q the id %d (found: %v) where config.json says %d", p.Manifest.Prompt.ImageToken, id, ok, image))
		}
	}
	r.addText(p, r.Tokenizer, r.template(), t)
	if c.Pad != nil && p.Manifest.Tokens.Pad < 0 {
		p.Manifest.Tokens.Pad = *c.Pad
	}
	return p, nil
}

func decodeCLIP(raw json.RawMessage, into *clipVision, t *blocks.Tensors) {
	var head Head
	if json.Unmarshal(raw, &head) == nil && head.ModelType != "" && head.ModelType != "clip_vision_model" {
		t.Problem("config.json vision_config model_type", fmt.Sprintf("is %q; clip_vision_model is supported here", head.ModelType))
	}
	decode(raw, into, "config.json vision_config", t)
}

// llavaModel is LLaVA with its modules named: the hub's and the authors' layouts differ in names alone.
type llavaModel struct {
	family          string
	vision          clipVision
	text            llamaConfig
	layers          featureLayers
	selection       string // "default" drops the class token, "full" keeps it
	act             string
	bias            bool
	visionPrefix    string
	projectorPrefix string
	linears         []string // the projector's matrices in order, behind projectorPrefix
	textPrefix      string
	head            string

	// What LLaVA's successors change: another tower with its number of rows, and a newline behind each row of features.
	tower       func(b *blocks.Builder) (featureSize int64)
	towerTokens int64
	newline     string
}

func (m llavaModel) plan(r *Release, t *blocks.Tensors, opts Options) *Plan {
	p := &Plan{Manifest: manifest.Manifest{FormatVersion: manifest.FormatVersion, Family: m.family, Precision: string(opts.Precision)}}
	add := func(name string, role blocks.Role, prefix string, layers int64, build func(b *blocks.Builder)) {
		b := blocks.NewBuilder(name, t, blocks.Policy{Asked: opts.Precision, Role: role, Params: t.Elements(prefix), Layers: int(layers)})
		build(b)
		p.Components = append(p.Components, &Component{name, b})
	}
	var featureSize int64
	add("vision", blocks.Vision, m.visionPrefix, m.vision.Layers, func(b *blocks.Builder) { featureSize = m.buildVision(b) })
	add("connector", blocks.Connector, m.projectorPrefix, 0, func(b *blocks.Builder) { m.buildProjector(b, featureSize) })
	add("decoder", blocks.Decoder, m.textPrefix, m.text.Layers, func(b *blocks.Builder) { m.text.build(b, m.textPrefix, m.head) })

	table := m.textPrefix + "embed_tokens.weight"
	t.Shared(table, m.text.VocabSize, m.text.HiddenSize)
	p.Embeddings = &Embeddings{Tensor: table, Rows: m.text.VocabSize, Hidden: m.text.HiddenSize, Scale: 1}
	p.Manifest.Decoder = m.text.decoder(t, "config.json text_config")
	p.Manifest.Prompt = manifest.Prompt{Expansion: "repeat", Caption: "Describe the image."}
	r.generation(&p.Manifest, generationConfig{EOS: m.text.EOS, BOS: m.text.BOS, Pad: m.text.Pad}, t)
	return p
}

// buildVision is LlavaModel.get_image_features up to the projector: the wanted hidden states, without the class token
// under "default", side by side when there are several.
func (m llavaModel) buildVision(b *blocks.Builder) (featureSize int64) {
	if m.tower != nil {
		return m.tower(b)
	}
	size := onnx.Fixed(m.vision.ImageSize)
	pixels := b.Input("pixel_values", onnx.Float, onnx.Free("tiles"), onnx.Fixed(3), size, size)
	var wanted []int64
	for _, l := range m.layers {
		state, ok := m.vision.hiddenState(l)
		if !ok {
			b.Tensors.Problem("config.json vision_feature_layer", fmt.Sprintf("is %d; the tower has %d layers", l, m.vision.Layers))
		}
		wanted = append(wanted, max(0, min(state, m.vision.Layers)))
	}
	if len(wanted) == 0 {
		b.Tensors.Problem("config.json vision_feature_layer", "is empty")
		wanted = []int64{m.vision.Layers}
	}
	states := m.vision.build(b, m.visionPrefix, pixels, wanted)
	for i, s := range states {
		states[i] = b.Op("Reshape", []*onnx.Value{s, b.Ints1(-1, m.vision.tokens(), m.vision.HiddenSize)})
	}
	x := states[0]
	if len(states) > 1 {
		x = b.Op("Concat", states, onnx.Int("axis", 2))
	}
	if m.selection == "default" {
		x = b.Op("Slice", []*onnx.Value{x, b.Ints1(1), b.Ints1(m.vision.tokens()), b.Ints1(1)})
	} else if m.selection != "full" {
		b.Tensors.Problem("config.json vision_feature_select_strategy", fmt.Sprintf("is %q; default and full are known", m.selection))
	}
	featureSize = m.vision.HiddenSize * int64(len(states))
	b.Output("vision_features", x, onnx.Float, onnx.Free("tiles"), onnx.Fixed(m.tokens()), onnx.Fixed(featureSize))
	return featureSize
}

func (m llavaModel) tokens() int64 {
	if m.tower != nil {
		return m.towerTokens
	}
	if m.selection == "default" {
		return m.vision.tokens() - 1
	}
	return m.vision.tokens()
}

// buildProjector is LlavaMultiModalProjector: Linear layers with an activation between.
func (m llavaModel) buildProjector(b *blocks.Builder, featureSize int64) {
	t, h := b.Tensors, m.text.HiddenSize
	x := b.Input("vision_features", onnx.Float, onnx.Free("tiles"), onnx.Fixed(m.tokens()), onnx.Fixed(featureSize))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, featureSize)})
	act, err := blocks.ParseActivation(m.act)
	if err != nil {
		t.Problem("config.json projector_hidden_act", err.Error())
		act = "gelu"
	}
	in := featureSize
	for i, name := range m.linears {
		if i > 0 {
			x = b.Activate(act, x)
		}
		l := blocks.Linear{Name: fmt.Sprintf("linear_%d", i+1), W: t.Weight(m.projectorPrefix+name+".weight", h, in), Kind: blocks.Project, Layer: -1}
		if m.bias {
			bias := t.Weight(m.projectorPrefix+name+".bias", h)
			l.B = &bias
		}
		x, in = b.Linear(x, l), h
	}
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, m.tokens(), h)})
	output := "projected"
	if m.newline != "" {
		output = "mlp" // "projected" are the rows that the recipe arranges from it
	}
	b.Output(output, x, onnx.Float, onnx.Free("tiles"), onnx.Fixed(m.tokens()), onnx.Fixed(h))
	m.newlineOutput(b)
}

// picture completes the recipe with what becomes of its tensors.
func (m llavaModel) picture(p *Plan, t *blocks.Tensors) {
	pic := p.Manifest.Picture
	pic.Stages = []string{"vision", "connector"}
	pic.Features = "projected"
	pic.TokensPerTile = int(m.tokens())
	if m.selection == "default" && m.towerTokens == 0 { // without the class token the features are a map of the picture
		pic.PatchGrid = int(m.vision.grid())
	}
}
