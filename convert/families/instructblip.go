// InstructBLIP (Dai et al. 2023; transformers' InstructBlipForConditionalGeneration): BLIP-2 whose Q-Former reads the
// instruction beside its queries, with a Vicuna or flan-t5 language model.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type instructBLIP struct{}

func (instructBLIP) Name() string                            { return "instructblip" }
func (instructBLIP) Match(h Head) bool                       { return h.Is("InstructBlipForConditionalGeneration") }
func (instructBLIP) Parts(json.RawMessage) map[string]string { return nil }

// instructionTokenizer is the Q-Former's tokenizer, in the release and in the model folder.
const (
	instructionTokenizer     = "qformer_tokenizer/tokenizer.json"
	instructionTokenizerFile = "qformer_tokenizer.json"
)

func (f instructBLIP) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := blip2Config{Queries: 32, TextHidden: 256}
	decode(r.Config, &c, "config.json", t)
	vision, ok := decodeEVA(c.VisionConfig, t)
	former, good := decodeQFormer(c.QFormerConfig, c.Queries, vision, t)
	if !ok || !good {
		return nil, nil
	}
	m := blip2Model{family: f.Name(), vision: vision, former: former, embeddingNorm: "qformer.embeddings.layernorm", instructed: true}
	p := m.plan(r, t, opts)
	var head Head
	if err := json.Unmarshal(c.TextConfig, &head); err != nil {
		return nil, fmt.Errorf("read config.json text_config: %w", err)
	}
	switch head.ModelType {
	case "llama":
		text, ok := decodeLlama(c.TextConfig, "config.json text_config", t)
		if !ok {
			return nil, nil
		}
		m.addLlama(p, text, r, t, opts)
	case "t5":
		text, ok := decodeT5(c.TextConfig, t)
		if !ok {
			return nil, nil
		}
		m.addT5(p, text, r, t, opts)
	default:
		t.Problem("config.json text_config model_type", fmt.Sprintf("is %q; llama and t5 are supported here", head.ModelType))
		return nil, nil
	}
	p.Manifest.Instruction = &manifest.TextInput{Tokenizer: instructionTokenizerFile, IDs: "qformer_input_ids", Mask: "qformer_attention_mask", MaxTokens: int(former.MaxPositions)}
	if raw := r.Extra[instructionTokenizer]; raw != nil {
		p.Files = append(p.Files, File{instructionTokenizerFile, raw})
	} else if !r.PlanOnly {
		t.Problem(instructionTokenizer, "is missing: the Q-Former reads the instruction with a tokenizer of its own")
	}
	t.Ignore("qformer.embeddings.position_ids")
	m.finish(p, r, c, t)
	return p, nil
}

// instructedConnector is the Q-Former over its queries and the instruction, and language_projection of the queries.
func (m blip2Model) instructedConnector(b *blocks.Builder, hidden int64) {
	tiles, tokens, q, h := onnx.Free("tiles"), onnx.Free("text_tokens"), m.former.queries, m.former.HiddenSize
	features := b.Input("vision_features", onnx.Float, tiles, onnx.Fixed(m.vision.tokens()), onnx.Fixed(m.vision.HiddenSize))
	text := textRows{ids: b.Input("qformer_input_ids", onnx.Int64, tiles, tokens), mask: b.Input("qformer_attention_mask", onnx.Int64, tiles, tokens)}
	x := m.former.withText(b, "qformer.", "query_tokens", m.embeddingNorm, "qformer.embeddings.", features, nil, text)
	rows := b.Op("Reshape", []*onnx.Value{b.Op("Slice", []*onnx.Value{x, b.Ints1(0), b.Ints1(q), b.Ints1(1)}), b.Ints1(-1, h)})
	y := b.Dense(rows, "language_projection", "language_projection", hidden, h, blocks.Project, -1)
	b.Output("qformer", x, onnx.Float, tiles, onnx.Free(fmt.Sprintf("text_tokens + %d", q)), onnx.Fixed(h))
	b.Output("projected", b.Op("Reshape", []*onnx.Value{y, b.Ints1(-1, q, hidden)}), onnx.Float, tiles, onnx.Fixed(q), onnx.Fixed(hidden))
}

func (m blip2Model) addLlama(p *Plan, text llamaConfig, r *Release, t *blocks.Tensors, opts Options) {
	const model = "language_model.model."
	m.add(p, "connector", blocks.Connector, "qformer.", m.former.Layers, t, opts, func(b *blocks.Builder) { m.connector(b, text.HiddenSize) })
	m.add(p, "decoder", blocks.Decoder, model, text.Layers, t, opts, func(b *blocks.Builder) { text.build(b, model, "language_model.lm_head") })
	t.Shared(model+"embed_tokens.weight", text.VocabSize, text.HiddenSize)
	p.Embeddings = &Embeddings{Tensor: model + "embed_tokens.weight", Rows: text.VocabSize, Hidden: text.HiddenSize, Scale: 1}
	p.Manifest.Decoder = text.decoder(t, "config.json text_config")
	r.generation(&p.Manifest, generationConfig{EOS: text.EOS, BOS: text.BOS, Pad: text.Pad}, t)
}
