// The CLIP vision tower (transformers' CLIPVisionModel; Radford et al. 2021, section 2.4).

package families

import (
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// clipVision is CLIPVisionConfig.
type clipVision struct {
	HiddenSize       int64   `json:"hidden_size"`
	IntermediateSize int64   `json:"intermediate_size"`
	Layers           int64   `json:"num_hidden_layers"`
	Heads            int64   `json:"num_attention_heads"`
	Channels         int64   `json:"num_channels"`
	ImageSize        int64   `json:"image_size"`
	PatchSize        int64   `json:"patch_size"`
	HiddenAct        string  `json:"hidden_act"`
	LayerNormEps     float64 `json:"layer_norm_eps"`
	VocabSize        int64   `json:"vocab_size"` // of the text tower; releases repeat it here
}

func clipVisionDefaults() clipVision {
	return clipVision{HiddenSize: 768, IntermediateSize: 3072, Layers: 12, Heads: 12, Channels: 3, ImageSize: 224,
		PatchSize: 32, HiddenAct: "quick_gelu", LayerNormEps: 1e-5}
}

// valid notes sizes that cannot be; planning with them would overflow or divide by zero.
func (c clipVision) valid(t *blocks.Tensors, where string) bool {
	ok := within(t, where+" hidden_size", c.HiddenSize, 1, 1<<16)
	ok = within(t, where+" intermediate_size", c.IntermediateSize, 1, 1<<18) && ok
	ok = within(t, where+" num_hidden_layers", c.Layers, 1, 1<<10) && ok
	ok = within(t, where+" num_attention_heads", c.Heads, 1, 1<<10) && ok
	ok = within(t, where+" num_channels", c.Channels, 3, 3) && ok
	ok = within(t, where+" image_size", c.ImageSize, 1, 1<<13) && ok
	ok = within(t, where+" patch_size", c.PatchSize, 1, max(1, min(c.ImageSize, 1<<13))) && ok
	if ok && c.HiddenSize%c.Heads != 0 {
		t.Problem(where+" hidden_size", fmt.Sprintf("(%d) is not a multiple of num_attention_heads (%d)", c.HiddenSize, c.Heads))
		ok = false
	}
	if _, err := blocks.ParseActivation(c.HiddenAct); err != nil {
		t.Problem(where+" hidden_act", err.Error())
		ok = false
	}
	return ok
}

func (c clipVision) grid() int64 { return c.ImageSize / c.PatchSize }

// tokens is the length of the tower's sequence: the class token and the patches.
func (c clipVision) tokens() int64 { return c.grid()*c.grid() + 1 }

// hiddenState turns vision_feature_layer into an index of hidden_states, where 0 is the embedding's output and i the
// output of layer i−1; negative ones count from the end.
func (c clipVision) hiddenState(layer int64) (int64, bool) {
	if layer < 0 {
		layer += c.Layers + 1
	}
	return layer, layer >= 0 && layer <= c.Layers
}

// build adds the tower up to the last of the wanted hidden states and returns those, each [tiles·tokens, hidden_size]
// rows with the class token first. The layers behind it and post_layernorm are stored in releases and never run.
func (c clipVision) build(b *blocks.Builder, prefix string, pixels *onnx.Value, wanted []int64) []*onnx.Value {
	t := b.Tensors
	h := c.HiddenSize
	states := map[int64]*onnx.Value{}
	var x *onnx.Value
	b.Scope("embeddings", func() { x = c.embed(b, prefix+"embeddings.", pixels) })
	x = b.LayerNorm("pre_layrnorm", x, t.Weight(prefix+"pre_layrnorm.weight", h), t.Weight(prefix+"pre_layrnorm.bias", h), c.LayerNormEps)
	states[0] = x
	last := int64(0)
	for _, w := range wanted {
		last = max(last, w)
	}
	for i := range last {
		b.Scope(fmt.Sprintf("layers.%d", i), func() { x = c.layer(b, fmt.Sprintf("%sencoder.layers.%d.", prefix, i), x, int(i)) })
		states[i+1] = x
	}
	for i := last; i < c.Layers; i++ {
		c.unused(t, fmt.Sprintf("%sencoder.layers.%d.", prefix, i))
	}
	t.Unused(prefix+"post_layernorm.weight", h)
	t.Unused(prefix+"post_layernorm.bias", h)
	t.Ignore(prefix + "embeddings.position_ids")
	out := make([]*onnx.Value, len(wanted))
	for i, w := range wanted {
		out[i] = states[w]
	}
	return out
}

// embed is CLIPVisionEmbeddings: patches by convolution, the class token in front, learned positions.
func (c clipVision) embed(b *blocks.Builder, prefix string, pixels *onnx.Value) *onnx.Value {
	t := b.Tensors
	h, p, n := c.HiddenSize, c.PatchSize, c.tokens()
	kernel := b.Param("patch_embedding", t.Weight(prefix+"patch_embedding.weight", h, c.Channels, p, p))
	x := b.Op("Conv", []*onnx.Value{pixels, kernel}, onnx.Ints("kernel_shape", p, p), onnx.Ints("strides", p, p))
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(0, h, -1)})
	x = b.Op("Transpose", []*onnx.Value{x}, onnx.Ints("perm", 0, 2, 1)) // [tiles, patches, hidden_size]
	class := b.Param("class_embedding", t.Weight(prefix+"class_embedding", h).Reshape(1, 1, h))
	tiles := b.Op("Shape", []*onnx.Value{pixels}, onnx.Int("start", 0), onnx.Int("end", 1))
	class = b.Op("Expand", []*onnx.Value{class, b.Op("Concat", []*onnx.Value{tiles, b.Ints1(1, h)}, onnx.Int("axis", 0))})
	x = b.Op("Concat", []*onnx.Value{class, x}, onnx.Int("axis", 1))
	x = b.Op("Add", []*onnx.Value{x, b.Param("position_embedding", t.Weight(prefix+"position_embedding.weight", n, h))})
	return b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h)})
}

func (c clipVision) layer(b *blocks.Builder, prefix string, x *onnx.Value, index int) *onnx.Value {
	return c.layerOf(b, prefix, x, index, c.tokens())
}

// layerOf is CLIPEncoderLayer over sequences of length tokens: pre-norm attention and MLP, both with biases. SigLIP's
// layers are the same.
func (c clipVision) layerOf(b *blocks.Builder, prefix string, x *onnx.Value, index int, length int64) *onnx.Value {
	t := b.Tensors
	h, m := c.HiddenSize, c.IntermediateSize
	y := b.LayerNormAt("layer_norm1", prefix+"layer_norm1", x, h, c.LayerNormEps)

	attn := prefix + "self_attn."
	bias := blocks.ConcatRows(t.Weight(attn+"q_proj.bias", h), t.Weight(attn+"k_proj.bias", h), t.Weight(attn+"v_proj.bias", h))
	qkv := blocks.Linear{Name: "self_attn.qkv_proj", B: &bias, Kind: blocks.Attention, Layer: index,
		W: blocks.ConcatRows(t.Weight(attn+"q_proj.weight", h, h), t.Weight(attn+"k_proj.weight", h, h), t.Weight(attn+"v_proj.weight", h, h))}
	parts := b.Columns(b.Linear(y, qkv), h, h, h)
	y = b.FullAttention(parts[0], parts[1], parts[2], blocks.Heads{Count: c.Heads, Dim: h / c.Heads, QueryLength: length, KeyLength: length})
	y = b.Dense(y, "self_attn.out_proj", attn+"out_proj", h, h, blocks.Attention, index)

	x, y = b.AddLayerNormAt("layer_norm2", prefix+"layer_norm2", x, y, h, c.LayerNormEps)
	y = b.Dense(y, "mlp.fc1", prefix+"mlp.fc1", m, h, blocks.MLP, index)
	y = b.Activate(blocks.Activation(c.HiddenAct), y)
	y = b.Dense(y, "mlp.fc2", prefix+"mlp.fc2", h, m, blocks.MLP, index)
	return b.Op("Add", []*onnx.Value{x, y})
}

// unused names the tensors of a layer behind the last wanted hidden state.
func (c clipVision) unused(t *blocks.Tensors, prefix string) {
	h, m := c.HiddenSize, c.IntermediateSize
	for _, w := range []struct {
		name    string
		out, in int64
	}{
		{"self_attn.q_proj", h, h}, {"self_attn.k_proj", h, h}, {"self_attn.v_proj", h, h}, {"self_attn.out_proj", h, h}, {"mlp.fc1", m, h}, {"mlp.fc2", h, m},
	} {
		t.Unused(prefix+w.name+".weight", w.out, w.in)
		t.Unused(prefix+w.name+".bias", w.out)
	}
	for _, norm := range []string{"layer_norm1", "layer_norm2"} {
		t.Unused(prefix+norm+".weight", h)
		t.Unused(prefix+norm+".bias", h)
	}
}
