// QLLaMA (Chen et al. 2024, "InternVL", section 3.2): a LLaMA whose first positions are learned queries that look at the
// picture in every second layer. Queries see each other in both directions and nothing of the text behind them, so what they
// become does not depend on it: it is computed once a picture here, and the decoder adds what cross attention gave.

package families

import (
	"fmt"
	"math"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// qllama is the language model with what the picture adds to it.
type qllama struct {
	llamaConfig
	prefix      string // of the language model's tensors, "qllama.model."
	queries     int64  // num_query_token
	crossEvery  int64  // cross_attention_frequency
	visionSize  int64
	imageTokens int64 // rows of the tower, the class token included
	textTokens  int64 // longest text
}

// levels is the number of layers with cross attention.
func (c qllama) levels() int { return int((c.Layers + c.crossEvery - 1) / c.crossEvery) }

func (c qllama) weight(b *blocks.Builder, path string, shape ...int64) blocks.Weight {
	return b.Tensors.Shared(c.prefix+path+".weight", shape...)
}

// buildQueries runs the learned queries: vision_features [tiles, image_tokens, vision_hidden] to qllama_query_output and
// projected, the queries as the decoder takes them in, both [tiles, queries, hidden_size], and deepstack_N of the same shape,
// what the N-th cross attention adds.
func (c qllama) buildQueries(b *blocks.Builder) {
	h, tiles := c.HiddenSize, onnx.Free("tiles")
	features := b.Input("vision_features", onnx.Float, tiles, onnx.Fixed(c.imageTokens), onnx.Fixed(c.visionSize))
	table := b.Param("query_tokens", b.Tensors.Weight("query_tokens", 1, c.queries, h))
	queries := b.Repeat(table, features, c.queries, h)
	var added []*onnx.Value
	cross := func(layer int64, x *onnx.Value) *onnx.Value {
		if layer%c.crossEvery != 0 {
			return x
		}
		var y *onnx.Value
		b.Scope("cross_attn", func() { y = c.crossAttention(b, layer, x, features) })
		added = append(added, y)
		return b.Op("Add", []*onnx.Value{x, y})
	}
	x := c.sequence(b, queries, nil, c.queries, cross)
	dims := []onnx.Dim{tiles, onnx.Fixed(c.queries), onnx.Fixed(h)}
	b.Output("qllama_query_output", x, onnx.Float, dims...)
	b.Output("projected", queries, onnx.Float, dims...)
	for i, y := range added {
		b.Output(fmt.Sprintf("deepstack_%d", i), y, onnx.Float, dims...)
	}
}

// crossAttention is LlamaCrossAttention: norms of its own, no positions, no mask.
func (c qllama) crossAttention(b *blocks.Builder, layer int64, x, features *onnx.Value) *onnx.Value {
	h, v, at := c.HiddenSize, c.visionSize, fmt.Sprintf("layers.%d.cross_attn.", layer)
	linear := func(x *onnx.Value, name string, in int64) *onnx.Value {
		return b.LinearOver(x, blocks.Linear{Name: name, W: c.weight(b, at+name, h, in), Kind: blocks.Attention, Layer: int(layer)})
	}
	q := linear(b.RMSNorm("norm1", x, c.weight(b, at+"norm1", h), c.RMSNormEps), "q_proj", h)
	picture := b.RMSNorm("norm2", features, c.weight(b, at+"norm2", v), c.RMSNormEps)
	y := b.FullAttention(q, linear(picture, "k_proj", v), linear(picture, "v_proj", v), blocks.Heads{Count: c.Heads, Dim: c.headDim()})
	return linear(y, "o_proj", h)
}

// buildText runs texts without a picture: input_ids and attention_mask [texts, text_tokens] to text_embeds [texts, width],
// the last token's hidden state projected, and text_unit, the same with length 1. Id 0 is padding wherever it stands.
func (c qllama) buildText(b *blocks.Builder, width int64) {
	h, dims := c.HiddenSize, []onnx.Dim{onnx.Free("texts"), onnx.Free("text_tokens")}
	ids, mask := b.Input("input_ids", onnx.Int64, dims...), b.Input("attention_mask", onnx.Int64, dims...)
	zero := b.Int64s(nil, 0)
	seen := b.Op("And", []*onnx.Value{b.Op("Greater", []*onnx.Value{ids, zero}), b.Op("Greater", []*onnx.Value{mask, zero})})
	length := b.Op("Squeeze", []*onnx.Value{b.Op("Shape", []*onnx.Value{ids}, onnx.Int("start", 1), onnx.Int("end", 2))})
	place := b.Op("Range", []*onnx.Value{zero, length, b.Int64s(nil, 1)})
	causal := b.Op("LessOrEqual", []*onnx.Value{place, b.Op("Unsqueeze", []*onnx.Value{place, b.Ints1(1)})}) // [query, key]
	visible := b.Op("And", []*onnx.Value{b.Op("Unsqueeze", []*onnx.Value{seen, b.Ints1(1, 2)}), causal})
	bias := b.Op("Where", []*onnx.Value{visible, b.Scalar(0), b.Scalar(-3.4e38)})

	words := b.Param("embed_tokens", c.weight(b, "embed_tokens", c.VocabSize, h))
	x := c.sequence(b, b.Op("Gather", []*onnx.Value{words, ids}), bias, c.textTokens, func(_ int64, x *onnx.Value) *onnx.Value { return x })
	count := b.Op("ReduceSum", []*onnx.Value{b.Op("Cast", []*onnx.Value{seen}, onnx.Int("to", int64(onnx.Int64))), b.Ints1(1)}, onnx.Int("keepdims", 1))
	last := b.Op("Max", []*onnx.Value{b.Op("Sub", []*onnx.Value{count, b.Ints1(1)}), b.Ints1(0)})
	x = b.Op("GatherND", []*onnx.Value{x, last}, onnx.Int("batch_dims", 1))
	projection := b.Tensors.Weight("text_projection", h, width).Transposed()
	x = b.Linear(x, blocks.Linear{Name: "text_projection", W: projection, Kind: blocks.Project, Layer: -1})
	b.Output("text_embeds", x, onnx.Float, onnx.Free("texts"), onnx.Fixed(width))
	b.Output("text_unit", b.Normalize(x), onnx.Float, onnx.Free("texts"), onnx.Fixed(width))
}

// sequence runs all layers and the final norm over x [batch, length, hidden_size], without a cache. bias is added to the
// scores of self attention, nil for none; cross is called behind each layer's self attention. No length exceeds longest.
func (c qllama) sequence(b *blocks.Builder, x, bias *onnx.Value, longest int64, cross func(layer int64, x *onnx.Value) *onnx.Value) *onnx.Value {
	cos, sin := c.tables(b, longest)
	for i := range c.Layers {
		b.Scope(fmt.Sprintf("layers.%d", i), func() { x = c.sequenceLayer(b, i, x, bias, cos, sin, cross) })
	}
	return b.RMSNorm("norm", x, c.weight(b, "norm", c.HiddenSize), c.RMSNormEps)
}

func (c qllama) sequenceLayer(b *blocks.Builder, layer int64, x, bias, cos, sin *onnx.Value, cross func(int64, *onnx.Value) *onnx.Value) *onnx.Value {
	h, m, at := c.HiddenSize, c.IntermediateSize, fmt.Sprintf("layers.%d.", layer)
	linear := func(x *onnx.Value, name string, kind blocks.Kind, w blocks.Weight) *onnx.Value {
		return b.LinearOver(x, blocks.Linear{Name: name, W: w, Kind: kind, Layer: int(layer)})
	}
	y := b.RMSNorm("input_layernorm", x, c.weight(b, at+"input_layernorm", h), c.RMSNormEps)
	qkv := blocks.ConcatRows(c.weight(b, at+"self_attn.q_proj", h, h), c.weight(b, at+"self_attn.k_proj", h, h), c.weight(b, at+"self_attn.v_proj", h, h))
	parts := b.Columns(linear(y, "self_attn.qkv_proj", blocks.Attention, qkv), h, h, h)
	for i := range 2 {
		parts[i] = b.Contrib("RotaryEmbedding", []*onnx.Value{parts[i], b.Ints1(0), cos, sin}, onnx.Int("num_heads", c.Heads))
	}
	y = b.FullAttention(parts[0], parts[1], parts[2], blocks.Heads{Count: c.Heads, Dim: c.headDim(), Bias: bias})
	x = b.Op("Add", []*onnx.Value{x, linear(y, "self_attn.o_proj", blocks.Attention, c.weight(b, at+"self_attn.o_proj", h, h))})
	x = cross(layer, x)
	y = b.RMSNorm("post_attention_layernorm", x, c.weight(b, at+"post_attention_layernorm", h), c.RMSNormEps)
	gateUp := blocks.ConcatRows(c.weight(b, at+"mlp.gate_proj", m, h), c.weight(b, at+"mlp.up_proj", m, h))
	parts = b.Columns(linear(y, "mlp.gate_up_proj", blocks.MLP, gateUp), m, m)
	y = b.Op("Mul", []*onnx.Value{b.Activate("silu", parts[0]), parts[1]})
	return b.Op("Add", []*onnx.Value{x, linear(y, "mlp.down_proj", blocks.MLP, c.weight(b, at+"mlp.down_proj", h, m))})
}

// tables are the rotary tables of the first positions, [longest, head_dim/2].
func (c qllama) tables(b *blocks.Builder, longest int64) (cos, sin *onnx.Value) {
	half := c.headDim() / 2
	var cosines, sines []float32
	for position := range longest {
		for i := range half {
			angle := float64(position) / math.Pow(c.RopeTheta, float64(2*i)/float64(c.headDim()))
			cosines, sines = append(cosines, float32(math.Cos(angle))), append(sines, float32(math.Sin(angle)))
		}
	}
	shape := []int64{longest, half}
	return b.Float32s(shape, cosines...), b.Float32s(shape, sines...)
}
