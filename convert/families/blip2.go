// BLIP-2 (Li et al. 2023): a frozen EVA ViT, a Q-Former whose queries become the prompt's first rows, and a language
// model: OPT or flan-t5 (transformers' Blip2ForConditionalGeneration).

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type blip2 struct{}

// blip2Config is Blip2Config.
type blip2Config struct {
	TextConfig    json.RawMessage `json:"text_config"`
	VisionConfig  json.RawMessage `json:"vision_config"`
	QFormerConfig json.RawMessage `json:"qformer_config"`
	Queries       int64           `json:"num_query_tokens"`
	ImageToken    *int            `json:"image_token_index"`
	ImageTokenID  *int            `json:"image_token_id"`
	TextHidden    int64           `json:"image_text_hidden_size"`
	DecoderOnly   *bool           `json:"use_decoder_only_language_model"`
	TieWords      *bool           `json:"tie_word_embeddings"`
}

func (blip2) Name() string                            { return "blip-2" }
func (blip2) Match(h Head) bool                       { return h.Is("Blip2ForConditionalGeneration") }
func (blip2) Parts(json.RawMessage) map[string]string { return nil }

func (f blip2) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	return f.planWith(r, t, opts, func(*evaVision) {})
}

// planWith plans with a tower that adjust may change.
func (f blip2) planWith(r *Release, t *blocks.Tensors, opts Options, adjust func(*evaVision)) (*Plan, error) {
	c := blip2Config{Queries: 32, TextHidden: 256}
	decode(r.Config, &c, "config.json", t)
	vision, ok := decodeEVA(c.VisionConfig, t)
	former, good := decodeQFormer(c.QFormerConfig, c.Queries, vision, t)
	if !ok || !good {
		return nil, nil
	}
	adjust(&vision)
	m := blip2Model{family: f.Name(), vision: vision, former: former, embeddingNorm: "qformer.layernorm"}
	p := m.plan(r, t, opts)
	var head Head
	if c.TextConfig != nil {
		if err := json.Unmarshal(c.TextConfig, &head); err != nil {
			return nil, fmt.Errorf("read config.json text_config: %w", err)
		}
	}
	switch head.ModelType {
	case "opt", "":
		text, ok := decodeOPT(c.TextConfig, t)
		if !ok {
			return nil, nil
		}
		m.addOPT(p, text, r, t, opts)
	case "t5":
		text, ok := decodeT5(c.TextConfig, t)
		if !ok {
			return nil, nil
		}
		m.addT5(p, text, r, t, opts)
	default:
		t.Problem("config.json text_config model_type", fmt.Sprintf("is %q; opt and t5 are supported here", head.ModelType))
		return nil, nil
	}
	m.finish(p, r, c, t)
	return p, nil
}

// blip2Model is the part that BLIP-2 and InstructBLIP share.
type blip2Model struct {
	family        string
	vision        evaVision
	former        qformer
	embeddingNorm string // where the norm over the Q-Former's input is stored
	instructed    bool   // the Q-Former reads the instruction (InstructBLIP)
}

// plan adds the tower; the connector needs the language model's width and is added with it.
func (m blip2Model) plan(r *Release, t *blocks.Tensors, opts Options) *Plan {
	p := &Plan{Manifest: manifest.Manifest{FormatVersion: manifest.FormatVersion, Family: m.family, Precision: string(opts.Precision)}}
	m.add(p, "vision", blocks.Vision, "vision_model.", m.vision.Layers, t, opts, func(b *blocks.Builder) { m.vision.build(b, "vision_model.") })
	pic := stretchPicture(r.Preprocessor, int(m.vision.ImageSize), t)
	pic.Stages, pic.Features, pic.TokensPerTile = []string{"vision", "connector"}, "projected", int(m.former.queries)
	p.Manifest.Picture = pic
	p.Manifest.Prompt = manifest.Prompt{Expansion: "prepend"}
	return p
}

func (m blip2Model) add(p *Plan, name string, role blocks.Role, prefix string, layers int64, t *blocks.Tensors, opts Options, build func(b *blocks.Builder)) {
	b := blocks.NewBuilder(name, t, blocks.Policy{Asked: opts.Precision, Role: role, Params: t.Elements(prefix), Layers: int(layers)})
	build(b)
	p.Components = append(p.Components, &Component{name, b})
}

// connector is the Q-Former over its queries and language_projection: vision_features in, qformer and projected out.
func (m blip2Model) connector(b *blocks.Builder, hidden int64) {
	if m.instructed {
		m.instructedConnector(b, hidden)
		return
	}
	tiles, q, h := onnx.Free("tiles"), m.former.queries, m.former.HiddenSize
	features := b.Input("vision_features", onnx.Float, tiles, onnx.Fixed(m.vision.tokens()), onnx.Fixed(m.vision.HiddenSize))
	x := m.former.queriesOnly(b, "qformer.", "query_tokens", m.embeddingNorm, features)
	y := b.Dense(x, "language_projection", "language_projection", hidden, h, blocks.Project, -1)
	b.Output("qformer", b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, q, h)}), onnx.Float, tiles, onnx.Fixed(q), onnx.Fixed(h))
	b.Output("projected", b.Op("Reshape", []*onnx.Value{y, b.Ints1(-1, q, hidden)}), onnx.Float, tiles, onnx.Fixed(q), onnx.Fixed(hidden))
}

func (m blip2Model) addOPT(p *Plan, text optConfig, r *Release, t *blocks.Tensors, opts Options) {
	const model = "language_model.model.decoder."
	m.add(p, "connector", blocks.Connector, "qformer.", m.former.Layers, t, opts, func(b *blocks.Builder) { m.connector(b, text.HiddenSize) })
	m.add(p, "decoder", blocks.Decoder, model, text.Layers, t, opts, func(b *blocks.Builder) { text.build(b, model, "language_model.lm_head") })
	p.Embeddings = &Embeddings{Tensor: model + "embed_tokens.weight", Rows: text.VocabSize, Hidden: text.HiddenSize, Scale: 1}
	p.Manifest.Decoder = text.decoder()
	r.generation(&p.Manifest, generationConfig{EOS: text.EOS, BOS: text.BOS, Pad: text.Pad}, t)
}

func (m blip2Model) addT5(p *Plan, text t5Config, r *Release, t *blocks.Tensors, opts Options) {
	const model = "language_model."
	m.add(p, "connector", blocks.Connector, "qformer.", m.former.Layers, t, opts, func(b *blocks.Builder) { m.connector(b, text.HiddenSize) })
	m.add(p, "encoder", blocks.Encoder, model+"encoder.", text.Layers, t, opts, func(b *blocks.Builder) { text.buildEncoder(b, model) })
	m.add(p, "decoder", blocks.Decoder, model+"decoder.", text.decoderLayers(), t, opts, func(b *blocks.Builder) { text.buildDecoder(b, model) })
	t.Shared(model+"shared.weight", text.VocabSize, text.HiddenSize)
	p.Embeddings = &Embeddings{Tensor: model + "shared.weight", Rows: text.VocabSize, Hidden: text.HiddenSize, Scale: 1}
	p.Manifest.Decoder = text.decoder()
	r.generation(&p.Manifest, generationConfig{EOS: text.EOS, BOS: text.BOS, Pad: text.Pad}, t)
}

// finish fills in the image token. Releases from before late 2024 have none: the queries were put in front without ids,
// so any id behind the vocabulary does.
func (m blip2Model) finish(p *Plan, r *Release, c blip2Config, t *blocks.Tensors) {
	image := p.Manifest.Decoder.VocabSize
	set(&image, c.ImageTokenID)
	set(&image, c.ImageToken)
	p.Manifest.Tokens.Image = image
	r.addText(p, r.Tokenizer, "", t)
}
