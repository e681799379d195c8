// The OPT decoder (Zhang et al. 2022; transformers' OPTForCausalLM): learned positions with an offset of two, pre-norm,
// relu, biases everywhere, the head tied to the token table.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/manifest"
)

// optConfig is OPTConfig.
type optConfig struct {
	VocabSize    int64     `json:"vocab_size"`
	HiddenSize   int64     `json:"hidden_size"`
	Layers       int64     `json:"num_hidden_layers"`
	FFN          int64     `json:"ffn_dim"`
	Heads        int64     `json:"num_attention_heads"`
	MaxPositions int64     `json:"max_position_embeddings"`
	Activation   string    `json:"activation_function"`
	NormBefore   bool      `json:"do_layer_norm_before"`
	WordProj     *int64    `json:"word_embed_proj_dim"`
	EnableBias   bool      `json:"enable_bias"`
	NormAffine   bool      `json:"layer_norm_elementwise_affine"`
	DropNorm     bool      `json:"_remove_final_layer_norm"`
	TieWords     *bool     `json:"tie_word_embeddings"`
	EOS          oneOrMany `json:"eos_token_id"`
	BOS          *int      `json:"bos_token_id"`
	Pad          *int      `json:"pad_token_id"`
}

// positionOffset is OPTLearnedPositionalEmbedding's: the table has two rows before position 0.
const positionOffset = 2

// optNormEps is nn.LayerNorm's default, which OPT uses.
const optNormEps = 1e-5

func decodeOPT(raw json.RawMessage, t *blocks.Tensors) (optConfig, bool) {
	bos, pad := 2, 1
	c := optConfig{VocabSize: 50272, HiddenSize: 768, Layers: 12, FFN: 3072, Heads: 12, MaxPositions: 2048, Activation: "relu",
		NormBefore: true, EnableBias: true, NormAffine: true, EOS: oneOrMany{2}, BOS: &bos, Pad: &pad}
	where := "config.json text_config"
	if raw != nil {
		decode(raw, &c, where, t)
	}
	ok := within(t, where+" vocab_size", c.VocabSize, 1, 1<<24)
	ok = within(t, where+" hidden_size", c.HiddenSize, 1, 1<<16) && ok
	ok = within(t, where+" num_hidden_layers", c.Layers, 1, 1<<10) && ok
	ok = within(t, where+" ffn_dim", c.FFN, 1, 1<<20) && ok
	ok = within(t, where+" num_attention_heads", c.Heads, 1, 1<<10) && ok
	ok = within(t, where+" max_position_embeddings", c.MaxPositions, 1, 1<<20) && ok
	for _, bad := range []struct {
		is        bool
		key, what string
	}{
		{!c.NormBefore, "do_layer_norm_before", "is false: post-norm OPT (350m) is not supported"},
		{c.WordProj != nil && *c.WordProj != c.HiddenSize, "word_embed_proj_dim", "differs from hidden_size: projected embeddings are not supported"},
		{!c.EnableBias, "enable_bias", "is false: layers without biases are not supported"},
		{!c.NormAffine, "layer_norm_elementwise_affine", "is false: norms without weights are not supported"},
		{c.DropNorm, "_remove_final_layer_norm", "is true: decoders without a final norm are not supported"},
		{ok && c.HiddenSize%c.Heads != 0, "hidden_size", "is not a multiple of num_attention_heads"},
	} {
		if bad.is {
			t.Problem(where+" "+bad.key, bad.what)
			ok = false
		}
	}
	if ok && (c.HiddenSize/c.Heads)%8 != 0 {
		t.Problem(where+" num_attention_heads", fmt.Sprintf("gives heads of %d; attention on the CPU needs a multiple of 8", c.HiddenSize/c.Heads))
		ok = false
	}
	if _, err := blocks.ParseActivation(c.Activation); err != nil {
		t.Problem(where+" activation_function", err.Error())
		ok = false
	}
	return c, ok
}

func (c optConfig) cache() blocks.Cache {
	return blocks.Cache{Layers: int(c.Layers), Heads: c.Heads, KVHeads: c.Heads, HeadDim: c.HiddenSize / c.Heads, Learned: true}
}

// build adds the decoder; prefix leads to OPTDecoder's modules, head is the output head's name without ".weight", which
// a release may leave out since it is the token table.
func (c optConfig) build(b *blocks.Builder, prefix, head string) {
	t, h, cache := b.Tensors, c.HiddenSize, c.cache()
	step := b.StepInputs(h, cache)
	table := t.Weight(prefix+"embed_positions.weight", c.MaxPositions+positionOffset, h).Rows(positionOffset, c.MaxPositions+positionOffset)
	positions := b.Op("Gather", []*onnx.Value{b.Param("embed_positions", table), step.PositionIDs})
	x := b.Op("Add", []*onnx.Value{step.InputsEmbeds, positions})
	var pending *onnx.Value
	for i := range c.Layers {
		b.Scope(fmt.Sprintf("layers.%d", i), func() {
			x, pending = c.layer(b, step, fmt.Sprintf("%slayers.%d.", prefix, i), int(i), x, pending)
		})
	}
	_, x = b.AddLayerNormAt("final_layer_norm", prefix+"final_layer_norm", b.WantedRows(step, x), b.WantedRows(step, pending), h, optNormEps)
	w := t.Shared(prefix+"embed_tokens.weight", c.VocabSize, h)
	if t.Has(head + ".weight") {
		w = t.Weight(head+".weight", c.VocabSize, h)
	}
	b.StepOutputs(step, b.Linear(x, blocks.Linear{Name: "lm_head", W: w, Kind: blocks.Head, Layer: -1}), c.VocabSize, cache)
}

// layer is OPTDecoderLayer; as in llamaConfig.layer the second residual sum is left to the next norm.
func (c optConfig) layer(b *blocks.Builder, step *blocks.Step, prefix string, index int, x, pending *onnx.Value) (*onnx.Value, *onnx.Value) {
	t, h := b.Tensors, c.HiddenSize
	var y *onnx.Value
	if pending == nil {
		y = b.LayerNormAt("self_attn_layer_norm", prefix+"self_attn_layer_norm", x, h, optNormEps)
	} else {
		x, y = b.AddLayerNormAt("self_attn_layer_norm", prefix+"self_attn_layer_norm", x, pending, h, optNormEps)
	}
	attn := prefix + "self_attn."
	bias := blocks.ConcatRows(t.Weight(attn+"q_proj.bias", h), t.Weight(attn+"k_proj.bias", h), t.Weight(attn+"v_proj.bias", h))
	qkv := blocks.Linear{Name: "self_attn.qkv_proj", B: &bias, Kind: blocks.Attention, Layer: index,
		W: blocks.ConcatRows(t.Weight(attn+"q_proj.weight", h, h), t.Weight(attn+"k_proj.weight", h, h), t.Weight(attn+"v_proj.weight", h, h))}
	y = b.CachedAttention(step, index, b.Linear(y, qkv), c.cache(), 0)
	y = b.Dense(y, "self_attn.out_proj", attn+"out_proj", h, h, blocks.Attention, index)
	x, y = b.AddLayerNormAt("final_layer_norm", prefix+"final_layer_norm", x, y, h, optNormEps)
	y = b.Dense(y, "fc1", prefix+"fc1", c.FFN, h, blocks.MLP, index)
	y = b.Dense(b.Activate(blocks.Activation(c.Activation), y), "fc2", prefix+"fc2", h, c.FFN, blocks.MLP, index)
	return x, y
}

func (c optConfig) decoder() *manifest.Decoder {
	return &manifest.Decoder{Component: "decoder", Layers: int(c.Layers), HiddenSize: int(c.HiddenSize), Heads: int(c.Heads), KVHeads: int(c.Heads),
		HeadDim: int(c.HiddenSize / c.Heads), VocabSize: int(c.VocabSize), MaxPositions: int(c.MaxPositions), CacheDType: "float32"}
}
