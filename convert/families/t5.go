// T5 (Raffel et al. 2020; transformers' T5ForConditionalGeneration, as flan-t5): RMS norms, no scaling of the scores,
// relative position biases that the first layer of each stack owns and all share, gated feed-forwards.
//
// Two graphs: the encoder also computes the keys and values of the decoder's cross attention, once a request; the
// decoder keeps its own keys and values in the KV arena as every decoder here does.

package families

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

// t5Config is T5Config.
type t5Config struct {
	VocabSize     int64     `json:"vocab_size"`
	HiddenSize    int64     `json:"d_model"`
	HeadDim       int64     `json:"d_kv"`
	FFN           int64     `json:"d_ff"`
	Layers        int64     `json:"num_layers"`
	DecoderLayers *int64    `json:"num_decoder_layers"`
	Heads         int64     `json:"num_heads"`
	Buckets       int64     `json:"relative_attention_num_buckets"`
	MaxDistance   int64     `json:"relative_attention_max_distance"`
	NormEps       float64   `json:"layer_norm_epsilon"`
	FeedForward   string    `json:"feed_forward_proj"`
	Activation    string    `json:"dense_act_fn"`
	Gated         *bool     `json:"is_gated_act"`
	Positions     int64     `json:"n_positions"`
	ScaleOutputs  bool      `json:"scale_decoder_outputs"`
	TieWords      *bool     `json:"tie_word_embeddings"`
	Start         *int      `json:"decoder_start_token_id"`
	EOS           oneOrMany `json:"eos_token_id"`
	BOS           *int      `json:"bos_token_id"`
	Pad           *int      `json:"pad_token_id"`
}

func decodeT5(raw json.RawMessage, t *blocks.Tensors) (t5Config, bool) {
	zero := 0
	c := t5Config{VocabSize: 32128, HiddenSize: 512, HeadDim: 64, FFN: 2048, Layers: 6, Heads: 8, Buckets: 32, MaxDistance: 128, NormEps: 1e-6,
		FeedForward: "relu", Positions: 512, EOS: oneOrMany{1}, Pad: &zero, Start: &zero}
	where := "config.json text_config"
	decode(raw, &c, where, t)
	ok := within(t, where+" vocab_size", c.VocabSize, 1, 1<<24)
	ok = within(t, where+" d_model", c.HiddenSize, 1, 1<<16) && ok
	ok = within(t, where+" d_kv", c.HeadDim, 1, 1<<12) && ok
	ok = within(t, where+" d_ff", c.FFN, 1, 1<<20) && ok
	ok = within(t, where+" num_layers", c.Layers, 1, 1<<10) && ok
	ok = within(t, where+" num_decoder_layers", c.decoderLayers(), 1, 1<<10) && ok
	ok = within(t, where+" num_heads", c.Heads, 1, 1<<10) && ok
	ok = within(t, where+" relative_attention_num_buckets", c.Buckets, 4, 1<<10) && ok
	ok = within(t, where+" relative_attention_max_distance", c.MaxDistance, c.Buckets, 1<<14) && ok
	if ok && c.HeadDim%8 != 0 {
		t.Problem(where+" d_kv", fmt.Sprintf("is %d; attention on the CPU needs a multiple of 8", c.HeadDim))
		ok = false
	}
	if !c.gated() {
		t.Problem(where+" feed_forward_proj", fmt.Sprintf("is %q; gated feed-forwards (flan-t5) are supported", c.FeedForward))
		ok = false
	}
	if _, err := blocks.ParseActivation(c.activation()); err != nil {
		t.Problem(where+" dense_act_fn", err.Error())
		ok = false
	}
	if c.ScaleOutputs {
		t.Problem(where+" scale_decoder_outputs", "is true: tied heads that scale their input are not supported")
		ok = false
	}
	return c, ok
}

func (c t5Config) decoderLayers() int64 {
	if c.DecoderLayers != nil {
		return *c.DecoderLayers
	}
	return c.Layers
}

func (c t5Config) gated() bool {
	return strings.HasPrefix(c.FeedForward, "gated-") || c.Gated != nil && *c.Gated
}

// activation: a stored dense_act_fn wins; "gated-gelu" alone stands for the tanh form, as T5Config has it.
func (c t5Config) activation() string {
	if c.Activation != "" {
		return c.Activation
	}
	if act := strings.TrimPrefix(c.FeedForward, "gated-"); act != "gelu" {
		return act
	}
	return "gelu_new"
}

// bucket is T5Attention._relative_position_bucket of a distance key − query. Half of the buckets are exact, the rest
// grow logarithmically up to MaxDistance. The arithmetic is float32, as upstream's.
func (c t5Config) bucket(relative int64, bidirectional bool) int64 {
	buckets, offset := c.Buckets, int64(0)
	if bidirectional {
		buckets /= 2
		if relative > 0 {
			offset = buckets
		}
		relative = max(relative, -relative)
	} else {
		relative = max(-relative, 0)
	}
	exact := buckets / 2
	if relative < exact {
		return offset + relative
	}
	ratio := float32(math.Log(float64(float32(relative)/float32(exact)))) / float32(math.Log(float64(c.MaxDistance)/float64(exact)))
	return offset + min(exact+int64(ratio*float32(buckets-exact)), buckets-1)
}

// biasTable is the stack's relative_attention_bias by clipped distance instead of bucket, [distances, heads], and the
// offset to add to key − query to index it: −MaxDistance..MaxDistance for the encoder, −MaxDistance..0 for the decoder.
func (c t5Config) biasTable(b *blocks.Builder, path string, bidirectional bool) (table *onnx.Value, offset int64) {
	high := int64(0)
	if bidirectional {
		high = c.MaxDistance
	}
	var order []int64
	for d := -c.MaxDistance; d <= high; d++ {
		order = append(order, c.bucket(d, bidirectional))
	}
	w := b.Tensors.Weight(path+"block.0.layer.0.SelfAttention.relative_attention_bias.weight", c.Buckets, c.Heads)
	return b.Param("relative_attention_bias", w.PermuteRows("by_distance", order)), c.MaxDistance
}

// scoreBias looks the biases of key − query up: positions are [batch, query] and [key] i64; it returns
// [batch, heads, query, key].
func (c t5Config) scoreBias(b *blocks.Builder, table *onnx.Value, offset int64, query, key *onnx.Value, bidirectional bool) *onnx.Value {
	high := int64(0)
	if bidirectional {
		high = c.MaxDistance
	}
	distance := b.Op("Sub", []*onnx.Value{key, b.Op("Unsqueeze", []*onnx.Value{query, b.Ints1(-1)})})
	distance = b.Op("Min", []*onnx.Value{b.Op("Max", []*onnx.Value{distance, b.Int64s(nil, -c.MaxDistance)}), b.Int64s(nil, high)})
	bias := b.Op("Gather", []*onnx.Value{table, b.Op("Add", []*onnx.Value{distance, b.Int64s(nil, offset)})})
	return b.Op("Transpose", []*onnx.Value{bias}, onnx.Ints("perm", 0, 3, 1, 2))
}

// feedForward is T5LayerFF without its residual: the norm, wo(act(wi_0(x))·wi_1(x)). wo is the layer that overflows in
// float16, so it is of the kind that stays fp32.
func (c t5Config) feedForward(b *blocks.Builder, path string, y *onnx.Value, layer int) *onnx.Value {
	t, h, m := b.Tensors, c.HiddenSize, c.FFN
	wi := blocks.ConcatRows(t.Weight(path+"DenseReluDense.wi_0.weight", m, h), t.Weight(path+"DenseReluDense.wi_1.weight", m, h))
	parts := b.Columns(b.Linear(y, blocks.Linear{Name: "wi", W: wi, Kind: blocks.MLP, Layer: layer}), m, m)
	y = b.Op("Mul", []*onnx.Value{b.Activate(blocks.Activation(c.activation()), parts[0]), parts[1]})
	return b.Linear(y, blocks.Linear{Name: "wo", W: t.Weight(path+"DenseReluDense.wo.weight", h, m), Kind: blocks.Wide, Layer: layer})
}

// fused is a Linear over several matrices that share their input, all [heads·d_kv, d_model].
func (c t5Config) fused(b *blocks.Builder, x *onnx.Value, name, path string, parts string, layer int) []*onnx.Value {
	inner := c.Heads * c.HeadDim
	var ws []blocks.Weight
	var widths []int64
	for _, p := range parts {
		ws = append(ws, b.Tensors.Weight(path+string(p)+".weight", inner, c.HiddenSize))
		widths = append(widths, inner)
	}
	y := b.Linear(x, blocks.Linear{Name: name, W: blocks.ConcatRows(ws...), Kind: blocks.Attention, Layer: layer})
	if len(widths) == 1 {
		return []*onnx.Value{y}
	}
	return b.Columns(y, widths...)
}

func (c t5Config) output(b *blocks.Builder, y *onnx.Value, name, path string, layer int) *onnx.Value {
	w := b.Tensors.Weight(path+"o.weight", c.HiddenSize, c.Heads*c.HeadDim)
	return b.Linear(y, blocks.Linear{Name: name, W: w, Kind: blocks.Attention, Layer: layer})
}

// buildEncoder adds T5Stack's encoder over one prompt: inputs_embeds [tokens, d_model] to encoder_last_hidden_state and
// the decoder's cross_key.N and cross_value.N, [1, heads, tokens, d_kv].
func (c t5Config) buildEncoder(b *blocks.Builder, prefix string) {
	t, h, inner := b.Tensors, c.HiddenSize, c.Heads*c.HeadDim
	tokens := onnx.Free("tokens")
	x := b.Input("inputs_embeds", onnx.Float, tokens, onnx.Fixed(h))
	table, offset := c.biasTable(b, prefix+"encoder.", true)
	length := b.Op("Squeeze", []*onnx.Value{b.Op("Shape", []*onnx.Value{x}, onnx.Int("start", 0), onnx.Int("end", 1))})
	positions := b.Op("Range", []*onnx.Value{b.Int64s(nil, 0), length, b.Int64s(nil, 1)})
	bias := c.scoreBias(b, table, offset, b.Op("Unsqueeze", []*onnx.Value{positions, b.Ints1(0)}), positions, true)
	batch := b.Ints1(1, -1, inner)
	var pending *onnx.Value
	for i := range c.Layers {
		b.Scope(fmt.Sprintf("block.%d", i), func() {
			path := fmt.Sprintf("%sencoder.block.%d.layer.", prefix, i)
			var y *onnx.Value
			x, y = c.norm(b, "SelfAttention.layer_norm", path+"0.layer_norm", x, pending)
			qkv := c.fused(b, y, "SelfAttention.qkv", path+"0.SelfAttention.", "qkv", int(i))
			for j, v := range qkv {
				qkv[j] = b.Op("Reshape", []*onnx.Value{v, batch})
			}
			y = b.FullAttention(qkv[0], qkv[1], qkv[2], blocks.Heads{Count: c.Heads, Dim: c.HeadDim, Scale: 1, Bias: bias})
			y = c.output(b, b.Op("Reshape", []*onnx.Value{y, b.Ints1(-1, inner)}), "SelfAttention.o", path+"0.SelfAttention.", int(i))
			x, y = c.norm(b, "feed_forward.layer_norm", path+"1.layer_norm", x, y)
			pending = c.feedForward(b, path+"1.", y, int(i))
		})
	}
	_, x = c.norm(b, "final_layer_norm", prefix+"encoder.final_layer_norm", x, pending)
	for i := range c.decoderLayers() {
		b.Scope(fmt.Sprintf("decoder.block.%d.EncDecAttention", i), func() {
			for j, v := range c.fused(b, x, "kv", fmt.Sprintf("%sdecoder.block.%d.layer.1.EncDecAttention.", prefix, i), "kv", int(i)) {
				v = b.Op("Reshape", []*onnx.Value{v, b.Ints1(1, -1, c.Heads, c.HeadDim)})
				v = b.Op("Transpose", []*onnx.Value{v}, onnx.Ints("perm", 0, 2, 1, 3))
				b.Output(fmt.Sprintf("cross_%s.%d", []string{"key", "value"}[j], i), v, onnx.Float, onnx.Fixed(1), onnx.Fixed(c.Heads), tokens, onnx.Fixed(c.HeadDim))
			}
		})
	}
	b.Output("encoder_last_hidden_state", x, onnx.Float, tokens, onnx.Fixed(h))
	t.Ignore(prefix + "encoder.embed_tokens.weight")
}

// norm is T5LayerNorm over x, or over x + pending where a sum is still due; it returns the sum and the norm.
func (c t5Config) norm(b *blocks.Builder, name, path string, x, pending *onnx.Value) (sum, y *onnx.Value) {
	w := b.Tensors.Weight(path+".weight", c.HiddenSize)
	if pending == nil {
		return x, b.RMSNorm(name, x, w, c.NormEps)
	}
	return b.AddRMSNorm(name, x, pending, w, c.NormEps)
}

func (c t5Config) cache() blocks.Cache {
	return blocks.Cache{Layers: int(c.decoderLayers()), Heads: c.Heads, KVHeads: c.Heads, HeadDim: c.HeadDim, Scale: 1}
}

// buildDecoder adds T5Stack's decoder as a step over the arena, with the cross attention's keys and values as inputs.
func (c t5Config) buildDecoder(b *blocks.Builder, prefix string) {
	t, h, cache := b.Tensors, c.HiddenSize, c.cache()
	step := b.StepInputs(h, cache)
	cross := b.CrossInputs(cache)
	table, offset := c.biasTable(b, prefix+"decoder.", false)
	query, key := b.StepPositions(step)
	step.Bias = c.scoreBias(b, table, offset, query, key, false)
	x, pending := step.InputsEmbeds, (*onnx.Value)(nil)
	for i := range c.decoderLayers() {
		b.Scope(fmt.Sprintf("block.%d", i), func() {
			path := fmt.Sprintf("%sdecoder.block.%d.layer.", prefix, i)
			var y *onnx.Value
			x, y = c.norm(b, "SelfAttention.layer_norm", path+"0.layer_norm", x, pending)
			inner := c.Heads * c.HeadDim
			qkv := blocks.ConcatRows(t.Weight(path+"0.SelfAttention.q.weight", inner, h), t.Weight(path+"0.SelfAttention.k.weight", inner, h),
				t.Weight(path+"0.SelfAttention.v.weight", inner, h))
			y = b.Linear(y, blocks.Linear{Name: "SelfAttention.qkv", W: qkv, Kind: blocks.Attention, Layer: int(i)})
			y = c.output(b, b.CachedAttention(step, int(i), y, cache, 0), "SelfAttention.o", path+"0.SelfAttention.", int(i))
			x, y = c.norm(b, "EncDecAttention.layer_norm", path+"1.layer_norm", x, y)
			q := c.fused(b, y, "EncDecAttention.q", path+"1.EncDecAttention.", "q", int(i))[0]
			y = c.output(b, b.CrossAttention(step, cross, int(i), q, cache), "EncDecAttention.o", path+"1.EncDecAttention.", int(i))
			x, y = c.norm(b, "feed_forward.layer_norm", path+"2.layer_norm", x, y)
			pending = c.feedForward(b, path+"2.", y, int(i))
		})
	}
	_, x = c.norm(b, "final_layer_norm", prefix+"decoder.final_layer_norm", b.WantedRows(step, x), b.WantedRows(step, pending))
	w := t.Shared(prefix+"shared.weight", c.VocabSize, h)
	if t.Has(prefix + "lm_head.weight") {
		w = t.Weight(prefix+"lm_head.weight", c.VocabSize, h)
	}
	b.StepOutputs(step, b.Linear(x, blocks.Linear{Name: "lm_head", W: w, Kind: blocks.Head, Layer: -1}), c.VocabSize, cache)
	t.Ignore(prefix + "decoder.embed_tokens.weight")
}

func (c t5Config) decoder() *manifest.Decoder {
	start := 0
	set(&start, c.Start)
	return &manifest.Decoder{Component: "decoder", Layers: int(c.decoderLayers()), HiddenSize: int(c.HiddenSize), Heads: int(c.Heads), KVHeads: int(c.Heads),
		HeadDim: int(c.HeadDim), VocabSize: int(c.VocabSize), MaxPositions: int(c.Positions), CacheDType: "float32",
		Encoder: &manifest.Encoder{Component: "encoder", StartToken: start, MaxPositions: int(c.Positions)}}
}
