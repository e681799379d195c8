// BLIP-2 for retrieval (transformers' Blip2ForImageTextRetrieval, blip2-itm-vit-g): the Q-Former's query rows as picture
// embeddings, its [CLS] row as text embedding (ITC), and a head over queries that have seen text and picture (ITM).

package families

import (
	"encoding/json"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type blip2Retrieval struct{}

func (blip2Retrieval) Name() string                            { return "blip-2 retrieval" }
func (blip2Retrieval) Match(h Head) bool                       { return h.Is("Blip2ForImageTextRetrieval") }
func (blip2Retrieval) Parts(json.RawMessage) map[string]string { return nil }

func (f blip2Retrieval) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := blip2Config{Queries: 32, TextHidden: 256}
	decode(r.Config, &c, "config.json", t)
	vision, ok := decodeEVA(c.VisionConfig, t)
	former, good := decodeQFormer(c.QFormerConfig, c.Queries, vision, t)
	ok = within(t, "config.json image_text_hidden_size", c.TextHidden, 1, 1<<16) && ok
	if !ok || !good {
		return nil, nil
	}
	m := blip2Model{family: f.Name(), vision: vision, former: former, embeddingNorm: "qformer.layernorm"}
	p := m.plan(r, t, opts)
	p.Manifest.Picture.Stages, p.Manifest.Picture.Features = []string{"vision"}, ""
	heads := retrievalHeads{m, c.TextHidden}
	m.add(p, "image_projection", blocks.Connector, "qformer.", former.Layers, t, opts, heads.image)
	m.add(p, "text_projection", blocks.Connector, "qformer.", former.Layers, t, opts, heads.text)
	m.add(p, "matcher", blocks.Connector, "qformer.", former.Layers, t, opts, heads.match)
	p.Manifest.Scoring = &manifest.Scoring{
		ImageStages: []string{"image_projection"}, TextStages: []string{"text_projection"}, ImageEmbeds: "image_embeds", TextEmbeds: "text_embeds",
		Text: manifest.TextInput{Tokenizer: tokenizerFile, IDs: "input_ids", Mask: "attention_mask", MaxTokens: int(former.MaxPositions)},
		Scores: []manifest.Score{
			{Name: "itc", Kind: "similarity", Scale: 1},
			{Name: "itm", Kind: "pair", Component: "matcher", Output: "itm_prob"},
		},
	}
	r.generation(&p.Manifest, generationConfig{}, t)
	p.Manifest.Tokens.EOS, p.Manifest.Tokens.Image = nil, -1
	if r.Tokenizer != nil {
		if pad, found := tokenID(r.Tokenizer, "[PAD]"); found {
			p.Manifest.Scoring.Text.Pad = pad
		}
	}
	r.addText(p, r.Tokenizer, "", t)
	return p, nil
}

// retrievalHeads are the three graphs over one Q-Former; they share its weights.
type retrievalHeads struct {
	blip2Model
	width int64 // image_text_hidden_size
}

// norm over the Q-Former's input and word embeddings, as they are stored.
const (
	retrievalNorm  = "qformer.layernorm"
	retrievalWords = "embeddings."
)

func (m retrievalHeads) features(b *blocks.Builder) *onnx.Value {
	return b.Input("vision_features", onnx.Float, onnx.Free("tiles"), onnx.Fixed(m.vision.tokens()), onnx.Fixed(m.vision.HiddenSize))
}

func (m retrievalHeads) texts(b *blocks.Builder) textRows {
	dims := []onnx.Dim{onnx.Free("texts"), onnx.Free("text_tokens")}
	return textRows{ids: b.Input("input_ids", onnx.Int64, dims...), mask: b.Input("attention_mask", onnx.Int64, dims...)}
}

// image is the contrastive picture branch: vision_features to image_embeds, [tiles, queries, width], each row of length 1.
func (m retrievalHeads) image(b *blocks.Builder) {
	q := m.former.queries
	x := m.former.queriesOnly(b, "qformer.", "query_tokens", retrievalNorm, m.features(b))
	x = b.Dense(x, "vision_projection", "vision_projection", m.width, m.former.HiddenSize, blocks.Project, -1)
	x = b.Op("Reshape", []*onnx.Value{b.Normalize(x), b.Ints1(-1, q, m.width)})
	b.Output("image_embeds", x, onnx.Float, onnx.Free("tiles"), onnx.Fixed(q), onnx.Fixed(m.width))
}

// text is the contrastive text branch: the Q-Former over the text alone, its [CLS] row projected.
func (m retrievalHeads) text(b *blocks.Builder) {
	x := m.former.textOnly(b, "qformer.", retrievalNorm, retrievalWords, m.texts(b))
	first := b.Op("Squeeze", []*onnx.Value{b.Op("Slice", []*onnx.Value{x, b.Ints1(0), b.Ints1(1), b.Ints1(1)}), b.Ints1(1)})
	y := b.Normalize(b.Dense(first, "text_projection", "text_projection", m.width, m.former.HiddenSize, blocks.Project, -1))
	b.Output("text_last_hidden", x, onnx.Float, onnx.Free("texts"), onnx.Free("text_tokens"), onnx.Fixed(m.former.HiddenSize))
	b.Output("text_embeds", y, onnx.Float, onnx.Free("texts"), onnx.Fixed(m.width))
}

// match is image-text matching over pairs: text row i against picture image_index[i]. The head runs on each query row
// and is averaged. It gives the logits [pairs, 2] and the probability of a match [pairs].
func (m retrievalHeads) match(b *blocks.Builder) {
	t, q, h := b.Tensors, m.former.queries, m.former.HiddenSize
	features := m.features(b)
	pick := b.Input("image_index", onnx.Int64, onnx.Free("texts"))
	x := m.former.withText(b, "qformer.", "query_tokens", retrievalNorm, retrievalWords, features, pick, m.texts(b))
	x = b.Op("Slice", []*onnx.Value{x, b.Ints1(0), b.Ints1(q), b.Ints1(1)})
	bias := t.Weight("itm_head.bias", 2)
	x = b.LinearOver(x, blocks.Linear{Name: "itm_head", W: t.Weight("itm_head.weight", 2, h), B: &bias, Kind: blocks.Project, Layer: -1})
	logits := b.Op("ReduceMean", []*onnx.Value{x, b.Ints1(1)}, onnx.Int("keepdims", 0))
	prob := b.Op("Softmax", []*onnx.Value{logits}, onnx.Int("axis", -1))
	prob = b.Op("Squeeze", []*onnx.Value{b.Op("Slice", []*onnx.Value{prob, b.Ints1(1), b.Ints1(2), b.Ints1(1)}), b.Ints1(1)})
	b.Output("itm_logits", logits, onnx.Float, onnx.Free("texts"), onnx.Fixed(2))
	b.Output("itm_prob", prob, onnx.Float, onnx.Free("texts"))
}
