// The Q-Former (Li et al. 2023, "BLIP-2", section 3.1; transformers' Blip2QFormerModel): a BERT whose first rows are
// learned queries. Queries and text attend to each other; only the queries look at the picture, in every second layer;
// queries and text have feed-forwards of their own.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// qformer is Blip2QFormerConfig and InstructBlipQFormerConfig.
type qformer struct {
	VocabSize    int64   `json:"vocab_size"`
	HiddenSize   int64   `json:"hidden_size"`
	Layers       int64   `json:"num_hidden_layers"`
	Heads        int64   `json:"num_attention_heads"`
	Intermediate int64   `json:"intermediate_size"`
	HiddenAct    string  `json:"hidden_act"`
	MaxPositions int64   `json:"max_position_embeddings"`
	LayerNormEps float64 `json:"layer_norm_eps"`
	CrossEvery   int64   `json:"cross_attention_frequency"`
	EncoderSize  int64   `json:"encoder_hidden_size"`
	UseText      bool    `json:"use_qformer_text_input"`
	HiddenDrop   float64 `json:"hidden_dropout_prob"`
	AttnDrop     float64 `json:"attention_probs_dropout_prob"`
	PositionType string  `json:"position_embedding_type"`

	queries     int64 // num_query_tokens
	imageTokens int64 // rows of the vision tower
}

func decodeQFormer(raw json.RawMessage, queries int64, vision evaVision, t *blocks.Tensors) (qformer, bool) {
	c := qformer{VocabSize: 30522, HiddenSize: 768, Layers: 12, Heads: 12, Intermediate: 3072, HiddenAct: "gelu", MaxPositions: 512,
		LayerNormEps: 1e-12, CrossEvery: 2, EncoderSize: 1408, PositionType: "absolute", queries: queries, imageTokens: vision.tokens()}
	where := "config.json qformer_config"
	if raw != nil {
		decode(raw, &c, where, t)
	}
	ok := within(t, where+" hidden_size", c.HiddenSize, 1, 1<<16)
	ok = within(t, where+" num_hidden_layers", c.Layers, 1, 1<<10) && ok
	ok = within(t, where+" num_attention_heads", c.Heads, 1, 1<<10) && ok
	ok = within(t, where+" intermediate_size", c.Intermediate, 1, 1<<18) && ok
	ok = within(t, where+" vocab_size", c.VocabSize, 1, 1<<24) && ok
	ok = within(t, where+" max_position_embeddings", c.MaxPositions, 1, 1<<16) && ok
	ok = within(t, where+" cross_attention_frequency", c.CrossEvery, 1, 1<<10) && ok
	ok = within(t, "config.json num_query_tokens", queries, 1, 1<<12) && ok
	if ok && c.HiddenSize%c.Heads != 0 {
		t.Problem(where+" hidden_size", fmt.Sprintf("(%d) is not a multiple of num_attention_heads (%d)", c.HiddenSize, c.Heads))
		ok = false
	}
	if c.EncoderSize != vision.HiddenSize {
		t.Problem(where+" encoder_hidden_size", fmt.Sprintf("is %d and the vision tower's hidden_size %d", c.EncoderSize, vision.HiddenSize))
		ok = false
	}
	if c.PositionType != "absolute" {
		t.Problem(where+" position_embedding_type", fmt.Sprintf("is %q where absolute is due", c.PositionType))
		ok = false
	}
	if _, err := blocks.ParseActivation(c.HiddenAct); err != nil {
		t.Problem(where+" hidden_act", err.Error())
		ok = false
	}
	return c, ok
}

// textRows are a batch of texts as they enter beside the queries.
type textRows struct {
	ids  *onnx.Value // [batch, text_tokens] i64
	mask *onnx.Value // [batch, text_tokens] i64, 1 for a token and 0 for padding
}

// queryRows is the learned queries, once for every batch row that like has.
func (c qformer) queryRows(b *blocks.Builder, tensor string, like *onnx.Value) *onnx.Value {
	w := b.Tensors.Shared(tensor, 1, c.queries, c.HiddenSize)
	return b.Repeat(b.Param("query_tokens", w), like, c.queries, c.HiddenSize)
}

// embedText is word + position embeddings of the texts, [batch, text_tokens, hidden_size]; positions start at 0.
func (c qformer) embedText(b *blocks.Builder, prefix string, text textRows) *onnx.Value {
	t := b.Tensors
	words := b.Param("word_embeddings", t.Shared(prefix+"word_embeddings.weight", c.VocabSize, c.HiddenSize))
	positions := b.Param("position_embeddings", t.Shared(prefix+"position_embeddings.weight", c.MaxPositions, c.HiddenSize))
	t.Ignore(prefix + "position_ids")
	length := b.Op("Shape", []*onnx.Value{text.ids}, onnx.Int("start", 1), onnx.Int("end", 2))
	own := b.Op("Slice", []*onnx.Value{positions, b.Ints1(0), length, b.Ints1(0)})
	return b.Op("Add", []*onnx.Value{b.Op("Gather", []*onnx.Value{words, text.ids}), own})
}

// maskBias turns masks of keys into scores to add: 0 for a token, the lowest float for padding; [batch, 1, query, key].
// queries is how many query rows come before the text, all of them visible.
func (c qformer) maskBias(b *blocks.Builder, mask *onnx.Value, queries int64) *onnx.Value {
	visible := b.Op("Cast", []*onnx.Value{mask}, onnx.Int("to", int64(onnx.Float)))
	if queries > 0 {
		ones := b.Repeat(b.Float32s([]int64{1, 1}, 1), mask, queries)
		visible = b.Op("Concat", []*onnx.Value{ones, visible}, onnx.Int("axis", 1))
	}
	hidden := b.Op("Mul", []*onnx.Value{b.Op("Sub", []*onnx.Value{b.Scalar(1), visible}), b.Scalar(-3.4e38)})
	hidden = b.Op("Unsqueeze", []*onnx.Value{hidden, b.Ints1(1, 2)}) // [batch, 1, 1, key]
	size := b.Op("Shape", []*onnx.Value{hidden}, onnx.Int("start", 3), onnx.Int("end", 4))
	shape := b.Op("Concat", []*onnx.Value{b.Ints1(1, 1), size, b.Ints1(1)}, onnx.Int("axis", 0))
	return b.Op("Expand", []*onnx.Value{hidden, shape})
}

// queriesOnly runs the Q-Former over the learned queries alone (captioning): picture features
// [batch, image_tokens, encoder_hidden_size] in, [batch·queries, hidden_size] rows out.
func (c qformer) queriesOnly(b *blocks.Builder, prefix, queryTensor, norm string, features *onnx.Value) *onnx.Value {
	h := c.HiddenSize
	var x *onnx.Value
	b.Scope("qformer", func() {
		x = b.LayerNormAt("layernorm", norm, c.queryRows(b, queryTensor, features), h, c.LayerNormEps)
		x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h)})
		picture := b.Op("Reshape", []*onnx.Value{features, b.Ints1(-1, c.EncoderSize)})
		for i := range c.Layers {
			b.Scope(fmt.Sprintf("layer.%d", i), func() {
				layer := fmt.Sprintf("%sencoder.layer.%d.", prefix, i)
				x = c.attention(b, layer+"attention.", "attention", x, x, blocks.Heads{QueryLength: c.queries, KeyLength: c.queries}, h, int(i))
				if i%c.CrossEvery == 0 {
					x = c.attention(b, layer+"crossattention.", "crossattention", x, picture,
						blocks.Heads{QueryLength: c.queries, KeyLength: c.imageTokens}, c.EncoderSize, int(i))
				}
				x = c.feedForward(b, layer, "_query", x, int(i), false)
			})
		}
	})
	return x
}

// overMemory runs the Q-Former's queries over memory [batch, rows, encoder_hidden_size] of any length and returns
// [batch, queries, hidden_size].
func (c qformer) overMemory(b *blocks.Builder, prefix, queryTensor, norm string, memory *onnx.Value) *onnx.Value {
	x := b.LayerNormAt("layernorm", norm, c.queryRows(b, queryTensor, memory), c.HiddenSize, c.LayerNormEps)
	for i := range c.Layers {
		b.Scope(fmt.Sprintf("layer.%d", i), func() {
			layer := fmt.Sprintf("%sencoder.layer.%d.", prefix, i)
			x = c.attention(b, layer+"attention.", "attention", x, x, blocks.Heads{}, c.HiddenSize, int(i))
			if i%c.CrossEvery == 0 {
				x = c.attention(b, layer+"crossattention.", "crossattention", x, memory, blocks.Heads{}, c.EncoderSize, int(i))
			}
			x = c.feedForward(b, layer, "_query", x, int(i), true)
		})
	}
	return x
}

// withText runs the Q-Former over the learned queries and a text side by side. It returns
// [batch, queries + text_tokens, hidden_size]. The first queries rows are the queries.
//
// pick is nil, or [batch] i64 that says which picture of features each row of the batch looks at.
func (c qformer) withText(b *blocks.Builder, prefix, queryTensor, norm, embeddings string, features, pick *onnx.Value, text textRows) *onnx.Value {
	h := c.HiddenSize
	var x *onnx.Value
	b.Scope("qformer", func() {
		x = b.Op("Concat", []*onnx.Value{c.queryRows(b, queryTensor, text.ids), c.embedText(b, embeddings, text)}, onnx.Int("axis", 1))
		x = b.LayerNorm("layernorm", x, b.Tensors.Shared(norm+".weight", h), b.Tensors.Shared(norm+".bias", h), c.LayerNormEps)
		bias := c.maskBias(b, text.mask, c.queries)
		for i := range c.Layers {
			b.Scope(fmt.Sprintf("layer.%d", i), func() {
				layer := fmt.Sprintf("%sencoder.layer.%d.", prefix, i)
				x = c.attention(b, layer+"attention.", "attention", x, x, blocks.Heads{Bias: bias}, h, int(i))
				queries := b.Op("Slice", []*onnx.Value{x, b.Ints1(0), b.Ints1(c.queries), b.Ints1(1)})
				words := b.Op("Slice", []*onnx.Value{x, b.Ints1(c.queries), b.Ints1(1 << 62), b.Ints1(1)})
				if i%c.CrossEvery == 0 {
					queries = c.pickedAttention(b, layer+"crossattention.", "crossattention", queries, features, pick, blocks.Heads{}, c.EncoderSize, int(i))
				}
				queries = c.feedForward(b, layer, "_query", queries, int(i), true)
				words = c.feedForward(b, layer, "", words, int(i), true)
				x = b.Op("Concat", []*onnx.Value{queries, words}, onnx.Int("axis", 1))
			})
		}
	})
	return x
}

// textOnly runs the Q-Former over texts alone (the contrastive text branch): no queries, no picture. It returns
// [batch, text_tokens, hidden_size].
func (c qformer) textOnly(b *blocks.Builder, prefix, norm, embeddings string, text textRows) *onnx.Value {
	h := c.HiddenSize
	var x *onnx.Value
	b.Scope("qformer", func() {
		x = c.embedText(b, embeddings, text)
		x = b.LayerNorm("layernorm", x, b.Tensors.Shared(norm+".weight", h), b.Tensors.Shared(norm+".bias", h), c.LayerNormEps)
		bias := c.maskBias(b, text.mask, 0)
		for i := range c.Layers {
			b.Scope(fmt.Sprintf("layer.%d", i), func() {
				layer := fmt.Sprintf("%sencoder.layer.%d.", prefix, i)
				x = c.attention(b, layer+"attention.", "attention", x, x, blocks.Heads{Bias: bias}, h, int(i))
				x = c.feedForward(b, layer, "", x, int(i), true)
			})
		}
	})
	return x
}

func (c qformer) attention(b *blocks.Builder, path, name string, x, memory *onnx.Value, heads blocks.Heads, memorySize int64, layer int) *onnx.Value {
	return c.pickedAttention(b, path, name, x, memory, nil, heads, memorySize, layer)
}

// pickedAttention is Blip2QFormerAttention: multi-head attention of x over memory, a dense layer, post-norm residual.
// heads carries the lengths and the bias. With pick, row i of the batch attends to memory[pick[i]]: the keys and values of
// a picture are computed once however many texts it is paired with.
func (c qformer) pickedAttention(b *blocks.Builder, path, name string, x, memory, pick *onnx.Value, heads blocks.Heads, memorySize int64, layer int) (y *onnx.Value) {
	h := c.HiddenSize
	heads.Count, heads.Dim = c.Heads, h/c.Heads
	b.Scope(name, func() {
		dense := func(v *onnx.Value, name, at string, in int64) *onnx.Value {
			bias := b.Tensors.Shared(path+at+".bias", h)
			l := blocks.Linear{Name: name, W: b.Tensors.Shared(path+at+".weight", h, in), B: &bias, Kind: blocks.Attention, Layer: layer}
			return c.linear(b, v, l, heads.QueryLength == 0)
		}
		q := dense(x, "query", "attention.query", h)
		k := dense(memory, "key", "attention.key", memorySize)
		v := dense(memory, "value", "attention.value", memorySize)
		if pick != nil {
			k, v = b.Op("Gather", []*onnx.Value{k, pick}), b.Op("Gather", []*onnx.Value{v, pick})
		}
		y = dense(b.FullAttention(q, k, v, heads), "dense", "output.dense", h)
		y = c.addNorm(b, path+"output.LayerNorm", x, y)
	})
	return y
}

// linear takes rows, or [batch, length, …] where lengths vary.
func (c qformer) linear(b *blocks.Builder, x *onnx.Value, l blocks.Linear, varies bool) *onnx.Value {
	if varies {
		return b.LinearOver(x, l)
	}
	return b.Linear(x, l)
}

// feedForward is Blip2QFormerIntermediate and Blip2QFormerOutput of the queries (kind "_query") or the text ("").
func (c qformer) feedForward(b *blocks.Builder, layer, kind string, x *onnx.Value, index int, varies bool) (y *onnx.Value) {
	t, h, m := b.Tensors, c.HiddenSize, c.Intermediate
	b.Scope("feed_forward"+kind, func() {
		up, down := layer+"intermediate"+kind+".dense", layer+"output"+kind
		upBias, downBias := t.Shared(up+".bias", m), t.Shared(down+".dense.bias", h)
		y = c.linear(b, x, blocks.Linear{Name: "intermediate", W: t.Shared(up+".weight", m, h), B: &upBias, Kind: blocks.MLP, Layer: index}, varies)
		y = b.Activate(blocks.Activation(c.HiddenAct), y)
		y = c.linear(b, y, blocks.Linear{Name: "output", W: t.Shared(down+".dense.weight", h, m), B: &downBias, Kind: blocks.MLP, Layer: index}, varies)
		y = c.addNorm(b, down+".LayerNorm", x, y)
	})
	return y
}

// addNorm is BERT's post-norm: LayerNorm(x + y). Weights are shared: a release with heads runs the same layers in three
// graphs.
func (c qformer) addNorm(b *blocks.Builder, path string, x, y *onnx.Value) *onnx.Value {
	_, out := b.AddLayerNorm("LayerNorm", x, y, b.Tensors.Shared(path+".weight", c.HiddenSize), b.Tensors.Shared(path+".bias", c.HiddenSize), c.LayerNormEps)
	return out
}
