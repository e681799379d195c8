// The Gemma 3 decoder (transformers' Gemma3TextModel): norms before and behind attention and feed-forward that multiply by
// 1 + weight, norms of queries and keys, sliding and full layers with rotary tables of their own.

package families

import (
	"encoding/json"
	"fmt"
	"math"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

// gemmaConfig is Gemma3TextConfig.
type gemmaConfig struct {
	VocabSize        int64        `json:"vocab_size"`
	HiddenSize       int64        `json:"hidden_size"`
	IntermediateSize int64        `json:"intermediate_size"`
	Layers           int64        `json:"num_hidden_layers"`
	Heads            int64        `json:"num_attention_heads"`
	KVHeads          int64        `json:"num_key_value_heads"`
	HeadDim          int64        `json:"head_dim"`
	HiddenAct        string       `json:"hidden_activation"`
	MaxPositions     int64        `json:"max_position_embeddings"`
	RMSNormEps       float64      `json:"rms_norm_eps"`
	AttentionBias    bool         `json:"attention_bias"`
	QueryScalar      float64      `json:"query_pre_attn_scalar"`
	SlidingWindow    int64        `json:"sliding_window"`
	SlidingPattern   int64        `json:"sliding_window_pattern"`
	LayerTypes       []string     `json:"layer_types"`
	RopeTheta        float64      `json:"rope_theta"`
	RopeLocalTheta   float64      `json:"rope_local_base_freq"`
	RopeScaling      *ropeScaling `json:"rope_scaling"`
	// RopeParameters is what transformers 5 writes instead of the three above.
	RopeParameters *struct {
		Full  *ropeScaling `json:"full_attention"`
		Local *ropeScaling `json:"sliding_attention"`
	} `json:"rope_parameters"`
	FinalCap      *float64  `json:"final_logit_softcapping"`
	AttnCap       *float64  `json:"attn_logit_softcapping"`
	Bidirectional *bool     `json:"use_bidirectional_attention"`
	TieEmbeddings *bool     `json:"tie_word_embeddings"`
	Cache         *string   `json:"cache_implementation"`
	EOS           oneOrMany `json:"eos_token_id"`
	BOS           *int      `json:"bos_token_id"`
	Pad           *int      `json:"pad_token_id"`
}

func decodeGemma(raw json.RawMessage, where string, t *blocks.Tensors) (gemmaConfig, bool) {
	bos, pad := 2, 0
	c := gemmaConfig{VocabSize: 262208, HiddenSize: 2304, IntermediateSize: 9216, Layers: 26, Heads: 8, KVHeads: 4, HeadDim: 256,
		HiddenAct: "gelu_pytorch_tanh", MaxPositions: 131072, RMSNormEps: 1e-6, QueryScalar: 256, SlidingWindow: 4096, SlidingPattern: 6,
		RopeTheta: 1e6, RopeLocalTheta: 10000, BOS: &bos, Pad: &pad}
	if raw != nil {
		decode(raw, &c, where, t)
	}
	ok := within(t, where+" vocab_size", c.VocabSize, 1, 1<<24)
	ok = within(t, where+" hidden_size", c.HiddenSize, 1, 1<<16) && ok
	ok = within(t, where+" intermediate_size", c.IntermediateSize, 1, 1<<20) && ok
	ok = within(t, where+" num_hidden_layers", c.Layers, 1, 1<<10) && ok
	ok = within(t, where+" num_attention_heads", c.Heads, 1, 1<<10) && ok
	ok = within(t, where+" num_key_value_heads", c.KVHeads, 1, max(1, min(c.Heads, 1<<10))) && ok
	ok = within(t, where+" head_dim", c.HeadDim, 16, 1<<12) && ok
	ok = within(t, where+" max_position_embeddings", c.MaxPositions, 1, 1<<24) && ok
	ok = within(t, where+" sliding_window", c.SlidingWindow, 1, 1<<24) && ok
	ok = within(t, where+" sliding_window_pattern", c.SlidingPattern, 1, 1<<10) && ok
	_, actErr := blocks.ParseActivation(c.HiddenAct)
	for _, bad := range []struct {
		is        bool
		key, what string
	}{
		{ok && c.Heads%c.KVHeads != 0, "num_key_value_heads", fmt.Sprintf("(%d) does not divide num_attention_heads (%d)", c.KVHeads, c.Heads)},
		{c.HeadDim%16 != 0, "head_dim", fmt.Sprintf("is %d; rotary attention on the CPU needs a multiple of 16", c.HeadDim)},
		{actErr != nil, "hidden_activation", fmt.Sprint(actErr)},
		{c.AttentionBias, "attention_bias", "is true, which is not supported"},
		{!(c.QueryScalar > 0), "query_pre_attn_scalar", fmt.Sprintf("is %v", c.QueryScalar)},
		{c.FinalCap != nil, "final_logit_softcapping", "is set, which is not supported"},
		{c.AttnCap != nil, "attn_logit_softcapping", "is set, which is not supported"},
		{c.Bidirectional != nil && *c.Bidirectional, "use_bidirectional_attention", "is true: text that sees what follows is not supported"},
		{c.LayerTypes != nil && int64(len(c.LayerTypes)) != c.Layers, "layer_types", fmt.Sprintf("has %d entries for %d layers", len(c.LayerTypes), c.Layers)},
	} {
		if bad.is {
			t.Problem(where+" "+bad.key, bad.what)
			ok = false
		}
	}
	for _, kind := range c.LayerTypes {
		if kind != "sliding_attention" && kind != "full_attention" {
			t.Problem(where+" layer_types", fmt.Sprintf("holds %q", kind))
			ok = false
		}
	}
	return c, ok
}

// sliding reports whether a layer looks back no farther than the window: five of six do, unless layer_types says more.
func (c gemmaConfig) sliding(layer int64) bool {
	if c.LayerTypes != nil {
		return c.LayerTypes[layer] == "sliding_attention"
	}
	return (layer+1)%c.SlidingPattern != 0
}

func (c gemmaConfig) cache() blocks.Cache {
	return blocks.Cache{Layers: int(c.Layers), Heads: c.Heads, KVHeads: c.KVHeads, HeadDim: c.HeadDim, RopeDim: c.HeadDim,
		Scale: float32(math.Pow(c.QueryScalar, -0.5))}
}

// build adds the whole decoder.
func (c gemmaConfig) build(b *blocks.Builder, prefix, head string) {
	t, h, cache := b.Tensors, c.HiddenSize, c.cache()
	b.WideResidual() // releases were trained in bfloat16; their sums pass 65504
	step := b.StepInputs(h, cache)
	var full, local *blocks.Step
	opened := b.Opened(step)
	b.Scope("full_attention", func() { full = b.Open(opened, 0) })
	b.Scope("sliding_attention", func() { local = b.Open(b.LocalRope(opened, cache), c.SlidingWindow) })
	x := step.InputsEmbeds
	for i := range c.Layers {
		kind := full
		if c.sliding(i) {
			kind = local
		}
		b.Scope(fmt.Sprintf("layers.%d", i), func() { x = c.layer(b, kind, fmt.Sprintf("%slayers.%d.", prefix, i), int(i), x) })
	}
	x = c.norm(b, "norm", prefix+"norm", b.WantedRows(step, x))
	w := t.Shared(prefix+"embed_tokens.weight", c.VocabSize, h)
	if t.Has(head + ".weight") {
		w = t.Weight(head+".weight", c.VocabSize, h)
	}
	logits := b.Linear(x, blocks.Linear{Name: "lm_head", W: w, Kind: blocks.Head, Layer: -1})
	b.StepOutputs(step, logits, c.VocabSize, cache)
}

// norm is Gemma3RMSNorm: its weight is stored as what is added to 1.
func (c gemmaConfig) norm(b *blocks.Builder, name, path string, x *onnx.Value) *onnx.Value {
	return b.RMSNorm(name, x, b.Tensors.Weight(path+".weight", c.HiddenSize).Plus(1), c.RMSNormEps)
}

// layer is Gemma3DecoderLayer.
func (c gemmaConfig) layer(b *blocks.Builder, step *blocks.Step, prefix string, index int, x *onnx.Value) *onnx.Value {
	t, h, m, d := b.Tensors, c.HiddenSize, c.IntermediateSize, c.HeadDim
	q, kv := c.Heads*d, c.KVHeads*d
	weight := func(name string, out, in int64) blocks.Weight { return t.Weight(prefix+name+".weight", out, in) }
	y := c.norm(b, "input_layernorm", prefix+"input_layernorm", x)
	y = b.Linear(y, blocks.Linear{Name: "self_attn.qkv_proj", Kind: blocks.Attention, Layer: index,
		W: blocks.ConcatRows(weight("self_attn.q_proj", q, h), weight("self_attn.k_proj", kv, h), weight("self_attn.v_proj", kv, h))})
	parts := b.Columns(y, q, kv, kv)
	for i, p := range []struct {
		name  string
		width int64
	}{{"q_norm", q}, {"k_norm", kv}} {
		heads := b.Op("Reshape", []*onnx.Value{parts[i], b.Ints1(-1, d)})
		heads = b.RMSNorm(p.name, heads, t.Weight(prefix+"self_attn."+p.name+".weight", d).Plus(1), c.RMSNormEps)
		parts[i] = b.Op("Reshape", []*onnx.Value{heads, b.Ints1(-1, p.width)})
	}
	y = b.CachedAttention(step, index, b.Op("Concat", parts, onnx.Int("axis", 1)), c.cache(), 0)
	y = b.Linear(y, blocks.Linear{Name: "self_attn.o_proj", W: weight("self_attn.o_proj", h, q), Kind: blocks.Attention, Layer: index})
	y = c.norm(b, "post_attention_layernorm", prefix+"post_attention_layernorm", y)

	x, y = b.AddRMSNorm("pre_feedforward_layernorm", x, y, t.Weight(prefix+"pre_feedforward_layernorm.weight", h).Plus(1), c.RMSNormEps)
	y = b.Linear(y, blocks.Linear{Name: "mlp.gate_up_proj", Kind: blocks.MLP, Layer: index,
		W: blocks.ConcatRows(weight("mlp.gate_proj", m, h), weight("mlp.up_proj", m, h))})
	parts = b.Columns(y, m, m)
	y = b.Op("Mul", []*onnx.Value{b.Activate(blocks.Activation(c.HiddenAct), parts[0]), parts[1]})
	y = b.Linear(y, blocks.Linear{Name: "mlp.down_proj", W: weight("mlp.down_proj", h, m), Kind: blocks.MLP, Layer: index})
	y = c.norm(b, "post_feedforward_layernorm", prefix+"post_feedforward_layernorm", y)
	return b.Op("Add", []*onnx.Value{x, y})
}

// decoder describes the decoder in the manifest.
func (c gemmaConfig) decoder(t *blocks.Tensors, where string) *manifest.Decoder {
	full := llamaConfig{HiddenSize: c.HiddenSize, Heads: c.Heads, HeadDim: &c.HeadDim, MaxPositions: c.MaxPositions, RopeTheta: c.RopeTheta,
		RopeScaling: c.RopeScaling, PartialRotary: 1}
	local := full
	local.RopeTheta, local.RopeScaling = c.RopeLocalTheta, nil
	if p := c.RopeParameters; p != nil {
		full.RopeParameters, local.RopeParameters = p.Full, p.Local
	}
	// The longer context is in max_position_embeddings already.
	rope, _ := full.rope(t, where)
	ropeLocal, _ := local.rope(t, where)
	return &manifest.Decoder{Component: "decoder", Layers: int(c.Layers), HiddenSize: int(c.HiddenSize), Heads: int(c.Heads),
		KVHeads: int(c.KVHeads), HeadDim: int(c.HeadDim), VocabSize: int(c.VocabSize), MaxPositions: int(c.MaxPositions),
		CacheDType: "float32", Rope: rope, RopeLocal: ropeLocal}
}
