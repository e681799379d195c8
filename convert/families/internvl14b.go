// InternVL 1.0 (Chen et al. 2024; the authors' InternVLModel, InternVL-14B-224px): InternViT-6B and QLLaMA, which compare
// pictures with texts (InternVL-C by the tower alone, InternVL-G with QLLaMA's queries) and caption.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

type internVL14B struct{}

// internVL14BConfig is InternVLConfig of the authors' code.
type internVL14BConfig struct {
	VisionConfig  json.RawMessage `json:"vision_config"`
	TextConfig    json.RawMessage `json:"qllama_config"`
	PoolHeads     int64           `json:"attn_pool_num_heads"`
	Width         int64           `json:"clip_embed_dim"`
	CrossEvery    int64           `json:"cross_attention_frequency"`
	Queries       int64           `json:"num_query_token"`
	ForceSize     *int64          `json:"force_image_size"`
	BackboneLoRA  int             `json:"use_backbone_lora"`
	TextLoRA      int             `json:"use_qllama_lora"`
	TieEmbeddings *bool           `json:"tie_word_embeddings"` // as qllama_config says
	HiddenSize    json.RawMessage `json:"hidden_size"`         // repeats qllama_config's
	Smoothing     json.RawMessage `json:"label_smoothing"`     // of training
}

// What the authors' retrieval code does to texts: tokenizer(…, max_length=80, truncation=True) behind this prefix.
const (
	retrievalPrefix     = "summarize:"
	retrievalTextTokens = 80
	retrievalTokenizer  = "text_tokenizer.json"
)

func (internVL14B) Name() string                            { return "internvl-1.0" }
func (internVL14B) Match(h Head) bool                       { return h.Is("InternVLModel") && h.ModelType == "internvl" }
func (internVL14B) Parts(json.RawMessage) map[string]string { return nil }

func (f internVL14B) Plan(r *Release, t *blocks.Tensors, opts Options) (*Plan, error) {
	c := internVL14BConfig{PoolHeads: 16, Width: 768, CrossEvery: 2, Queries: 96}
	decode(r.Config, &c, "config.json", t)
	vision, ok := decodeInternViT(c.VisionConfig, "config.json vision_config", t)
	text, good := decodeLlama(c.TextConfig, "config.json qllama_config", t)
	if !ok || !good || !c.valid(vision, text, t) {
		return nil, nil
	}
	if c.ForceSize != nil {
		vision.ImageSize = edge(*c.ForceSize) // the stored positions are of that size
	}
	q := qllama{llamaConfig: text, prefix: "qllama.model.", queries: c.Queries, crossEvery: c.CrossEvery, visionSize: vision.HiddenSize,
		imageTokens: vision.tokens(), textTokens: retrievalTextTokens}
	p := &Plan{Manifest: manifest.Manifest{FormatVersion: manifest.FormatVersion, Family: f.Name(), Precision: string(opts.Precision)}}
	component := func(name string, role blocks.Role, prefix string, layers int64, build func(b *blocks.Builder)) *Component {
		b := blocks.NewBuilder(name, t, blocks.Policy{Asked: opts.Precision, Role: role, Params: t.Elements(prefix), Layers: int(layers)})
		build(b)
		return &Component{name, b}
	}
	// The decoder first: it uses each of its weights once, and the other graphs share them.
	decoder := component("decoder", blocks.Decoder, "qllama.", text.Layers, func(b *blocks.Builder) {
		d := text
		d.openSpans, d.crossEvery, d.deepstack = true, c.CrossEvery, q.levels()
		d.build(b, q.prefix, "qllama.lm_head")
	})
	p.Components = []*Component{
		component("vision", blocks.Vision, "vision_model.", vision.Layers, func(b *blocks.Builder) { f.buildVision(b, vision) }),
		component("queries", blocks.Decoder, "qllama.", text.Layers, q.buildQueries),
		component("image_pooling", blocks.Connector, "clip_projector", 0, func(b *blocks.Builder) { c.buildPooling(b, q) }),
		component("text", blocks.Decoder, "qllama.", text.Layers, func(b *blocks.Builder) { q.buildText(b, c.Width) }),
		decoder,
	}
	t.Unused("itm_head.weight", 2, text.HiddenSize) // trained beside the others and never run
	t.Unused("itm_head.bias", 2)
	table := q.prefix + "embed_tokens.weight"
	p.Embeddings = &Embeddings{Tensor: table, Rows: text.VocabSize, Hidden: text.HiddenSize, Scale: 1}
	p.Manifest.Decoder = text.decoder(t, "config.json qllama_config")
	f.picture(p, r, vision, c.Queries, t)
	r.generation(&p.Manifest, generationConfig{EOS: text.EOS, BOS: text.BOS, Pad: text.Pad}, t)
	p.Manifest.Tokens.Image = int(text.VocabSize) // behind the vocabulary: the authors' code has no token for pictures
	const caption = "English caption:"
	p.Manifest.Prompt = manifest.Prompt{Expansion: "prepend", Caption: caption, RawCaption: caption}
	r.addText(p, r.Tokenizer, "", t)
	return p, f.scoring(p, r, t)
}

func (c internVL14BConfig) valid(vision internViT, text llamaConfig, t *blocks.Tensors) bool {
	ok := within(t, "config.json attn_pool_num_heads", c.PoolHeads, 1, 1<<10)
	ok = within(t, "config.json clip_embed_dim", c.Width, 1, 1<<16) && ok
	ok = within(t, "config.json cross_attention_frequency", c.CrossEvery, 1, 1<<10) && ok
	ok = within(t, "config.json num_query_token", c.Queries, 1, 1<<10) && ok
	if c.ForceSize != nil {
		ok = within(t, "config.json force_image_size", *c.ForceSize, max(1, int64(vision.PatchSize)), 1<<13) && ok
	}
	if !ok {
		return false
	}
	for _, bad := range []struct {
		is        bool
		key, what string
	}{
		{c.BackboneLoRA != 0, "use_backbone_lora", "is set: merge the adapters into the weights first"},
		{c.TextLoRA != 0, "use_qllama_lora", "is set: merge the adapters into the weights first"},
		{text.kvHeads() != text.Heads, "qllama_config num_key_value_heads", "is not num_attention_heads, which is not supported"},
		{text.qkvBias() || text.MLPBias, "qllama_config attention_bias", "is true, which is not supported"},
		{text.RopeScaling != nil || text.partialRotary() != 1, "qllama_config rope_scaling", "is set, which is not supported"},
		{vision.HiddenSize%c.PoolHeads != 0 || text.HiddenSize%c.PoolHeads != 0, "attn_pool_num_heads",
			fmt.Sprintf("(%d) does not divide the hidden sizes %d and %d", c.PoolHeads, vision.HiddenSize, text.HiddenSize)},
	} {
		if bad.is {
			t.Problem("config.json "+bad.key, bad.what)
			ok = false
		}
	}
	return ok
}

// buildVision is the whole tower, its class token kept: pooling and cross attention read that too.
func (internVL14B) buildVision(b *blocks.Builder, vision internViT) {
	h, n, size := vision.HiddenSize, vision.tokens(), onnx.Fixed(vision.size())
	pixels := b.Input("pixel_values", onnx.Float, onnx.Free("tiles"), onnx.Fixed(3), size, size)
	x := vision.build(b, "vision_model.", internAuthors, pixels, vision.Layers)
	b.Output("vision_features", b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, n, h)}), onnx.Float, onnx.Free("tiles"), onnx.Fixed(n), onnx.Fixed(h))
}

// buildPooling makes picture embeddings of the tower's and the queries' rows. image_embeds_c and image_embeds_g are upstream's;
// of each there is also the direction alone, image_unit, and that times exp(logit_scale), image_scaled, whose dot product with
// text_unit is the logit.
func (c internVL14BConfig) buildPooling(b *blocks.Builder, q qllama) {
	tiles := onnx.Free("tiles")
	features := b.Input("vision_features", onnx.Float, tiles, onnx.Fixed(q.imageTokens), onnx.Fixed(q.visionSize))
	queries := b.Input("qllama_query_output", onnx.Float, tiles, onnx.Fixed(q.queries), onnx.Fixed(q.HiddenSize))
	var backbone, both *onnx.Value
	b.Scope("clip_projector", func() { backbone = attentionPool(b, "clip_projector.", features, q.visionSize, c.PoolHeads, c.Width) })
	b.Scope("clip_projector2", func() { both = attentionPool(b, "clip_projector2.", queries, q.HiddenSize, c.PoolHeads, c.Width) })
	out := func(name string, v *onnx.Value) { b.Output(name, v, onnx.Float, tiles, onnx.Fixed(c.Width)) }
	sum := b.Op("Add", []*onnx.Value{b.Normalize(backbone), b.Normalize(both)})
	scale := b.Op("Exp", []*onnx.Value{b.Param("logit_scale", b.Tensors.Weight("logit_scale"))})
	for _, kind := range []struct {
		name   string
		embeds *onnx.Value
	}{{"c", b.Op("Identity", []*onnx.Value{backbone})}, {"g", sum}} {
		unit := b.Normalize(kind.embeds)
		out("image_scaled_"+kind.name, b.Op("Mul", []*onnx.Value{unit, scale}))
		out("image_unit_"+kind.name, unit)
		out("image_embeds_"+kind.name, kind.embeds)
	}
	out("pool1_backbone", backbone)
	out("pool2_qllama", both)
}

func (internVL14B) picture(p *Plan, r *Release, vision internViT, queries int64, t *blocks.Tensors) {
	raw := r.Preprocessor
	pic := clipPicture(raw, int(vision.size()), t)
	if raw == nil {
		pic.Mean, pic.Std = imagenetMean, imagenetStd
	}
	pic.Stages, pic.Features, pic.TokensPerTile, pic.Passes = []string{"vision", "queries"}, "projected", int(queries), manifest.PassesByWork
	p.Manifest.Picture = pic
}

// scoring adds the heads, and a tokenizer that ends texts with </s>.
func (internVL14B) scoring(p *Plan, r *Release, t *blocks.Tensors) error {
	p.Manifest.Scoring = &manifest.Scoring{
		ImageStages: []string{"image_pooling"}, TextStages: []string{"text"}, ImageEmbeds: "image_unit_c", TextEmbeds: "text_unit",
		Text: manifest.TextInput{Tokenizer: retrievalTokenizer, IDs: "input_ids", Mask: "attention_mask", MaxTokens: retrievalTextTokens,
			Prefix: retrievalPrefix, Truncate: true},
		Scores: []manifest.Score{
			{Name: "logits_c", Kind: manifest.KindSimilarity, Scale: 1, ImageEmbeds: "image_scaled_c"},
			{Name: "logits_g", Kind: manifest.KindSimilarity, Scale: 1, ImageEmbeds: "image_scaled_g"},
		},
	}
	if r.Tokenizer == nil {
		return nil // addText has judged it
	}
	tokenizer, err := endingWith(r.Tokenizer, "</s>")
	if err != nil {
		t.Problem(tokenizerFile, err.Error())
		return nil
	}
	p.Files = append(p.Files, File{retrievalTokenizer, tokenizer})
	return nil
}

// endingWith returns tokenizer.json with a token put behind every text (add_eos_token), after whatever it puts there already.
func endingWith(tokenizer json.RawMessage, token string) (json.RawMessage, error) {
	id, found := tokenID(tokenizer, token)
	if !found {
		return nil, fmt.Errorf("has no token %s", token)
	}
	var doc map[string]any
	if err := json.Unmarshal(tokenizer, &doc); err != nil {
		return nil, err
	}
	item := map[string]any{"SpecialToken": map[string]any{"id": token, "type_id": 0}}
	entry := map[string]any{"id": token, "ids": []int{id}, "tokens": []string{token}}
	before, _ := doc["post_processor"].(map[string]any)
	if single, ok := before["single"].([]any); ok && before["type"] == "TemplateProcessing" {
		before["single"] = append(single, item)
		if special, ok := before["special_tokens"].(map[string]any); ok {
			special[token] = entry
		} else {
			before["special_tokens"] = map[string]any{token: entry}
		}
		return json.Marshal(doc)
	}
	text := func(id string, sequence int) any {
		return map[string]any{"Sequence": map[string]any{"id": id, "type_id": sequence}}
	}
	after := map[string]any{"type": "TemplateProcessing", "single": []any{text("A", 0), item}, "pair": []any{text("A", 0), item, text("B", 1), item},
		"special_tokens": map[string]any{token: entry}}
	list := []any{after}
	if before != nil {
		list = []any{before, after}
	}
	doc["post_processor"] = map[string]any{"type": "Sequence", "processors": list}
	return json.Marshal(doc)
}
