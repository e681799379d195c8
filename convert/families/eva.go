// The EVA ViT of BLIP-2 and InstructBLIP (transformers' Blip2VisionModel, InstructBlipVisionModel; LAVIS'
// eva_vit_g): pre-norm, fused qkv whose key bias is zero, the class token kept, a final norm over every row.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// evaVision is Blip2VisionConfig.
type evaVision struct {
	HiddenSize       int64   `json:"hidden_size"`
	IntermediateSize int64   `json:"intermediate_size"`
	Layers           int64   `json:"num_hidden_layers"`
	Heads            int64   `json:"num_attention_heads"`
	Channels         int64   `json:"num_channels"`
	ImageSize        int64   `json:"image_size"`
	PatchSize        int64   `json:"patch_size"`
	HiddenAct        string  `json:"hidden_act"`
	LayerNormEps     float64 `json:"layer_norm_eps"`
	QKVBias          bool    `json:"qkv_bias"`

	rawOutput bool    // also give the rows before the final norm, as vit_output
	finalEps  float64 // of the norm behind the tower; 0: LayerNormEps
}

func decodeEVA(raw json.RawMessage, t *blocks.Tensors) (evaVision, bool) {
	c := evaVision{HiddenSize: 1408, IntermediateSize: 6144, Layers: 39, Heads: 16, Channels: 3, ImageSize: 224, PatchSize: 14,
		HiddenAct: "gelu", LayerNormEps: 1e-6, QKVBias: true}
	where := "config.json vision_config"
	if raw != nil {
		decode(raw, &c, where, t)
	}
	tower := clipVision{HiddenSize: c.HiddenSize, IntermediateSize: c.IntermediateSize, Layers: c.Layers, Heads: c.Heads, Channels: c.Channels,
		ImageSize: c.ImageSize, PatchSize: c.PatchSize, HiddenAct: c.HiddenAct}
	return c, tower.valid(t, where)
}

func (c evaVision) tokens() int64 {
	grid := c.ImageSize / c.PatchSize
	return grid*grid + 1
}

// build adds the tower from pixel_values to vision_features, [tiles, tokens, hidden_size] after the final norm.
func (c evaVision) build(b *blocks.Builder, prefix string) {
	t, h, p, n := b.Tensors, c.HiddenSize, c.PatchSize, c.tokens()
	size := onnx.Fixed(c.ImageSize)
	pixels := b.Input("pixel_values", onnx.Float, onnx.Free("tiles"), onnx.Fixed(3), size, size)
	var x *onnx.Value
	b.Scope("embeddings", func() {
		kernel := b.Param("patch_embedding", t.Weight(prefix+"embeddings.patch_embedding.weight", h, c.Channels, p, p))
		bias := b.Param("patch_embedding.bias", t.Weight(prefix+"embeddings.patch_embedding.bias", h))
		x = b.Op("Conv", []*onnx.Value{pixels, kernel, bias}, onnx.Ints("kernel_shape", p, p), onnx.Ints("strides", p, p))
		x = b.Op("Transpose", []*onnx.Value{b.Op("Reshape", []*onnx.Value{x, b.Ints1(0, h, -1)})}, onnx.Ints("perm", 0, 2, 1))
		class := b.Repeat(b.Param("class_embedding", t.Weight(prefix+"embeddings.class_embedding", 1, 1, h)), pixels, 1, h)
		x = b.Op("Concat", []*onnx.Value{class, x}, onnx.Int("axis", 1))
		x = b.Op("Add", []*onnx.Value{x, b.Param("position_embedding", t.Weight(prefix+"embeddings.position_embedding", 1, n, h))})
		x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h)})
	})
	for i := range c.Layers {
		b.Scope(fmt.Sprintf("layers.%d", i), func() { x = c.layer(b, fmt.Sprintf("%sencoder.layers.%d.", prefix, i), x, int(i)) })
	}
	if c.rawOutput {
		b.Output("vit_output", b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, n, h)}), onnx.Float, onnx.Free("tiles"), onnx.Fixed(n), onnx.Fixed(h))
	}
	eps := c.LayerNormEps
	if c.finalEps != 0 {
		eps = c.finalEps
	}
	x = b.LayerNormAt("post_layernorm", prefix+"post_layernorm", x, h, eps)
	x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, n, h)})
	b.Output("vision_features", x, onnx.Float, onnx.Free("tiles"), onnx.Fixed(n), onnx.Fixed(h))
}

// layer is Blip2EncoderLayer.
func (c evaVision) layer(b *blocks.Builder, prefix string, x *onnx.Value, index int) *onnx.Value {
	t, h, m := b.Tensors, c.HiddenSize, c.IntermediateSize
	y := b.LayerNormAt("layer_norm1", prefix+"layer_norm1", x, h, c.LayerNormEps)
	qkv := blocks.Linear{Name: "self_attn.qkv", W: t.Weight(prefix+"self_attn.qkv.weight", 3*h, h), Kind: blocks.Attention, Layer: index}
	switch attn := prefix + "self_attn."; {
	case c.QKVBias && !t.Has(attn+"qkv.bias") && t.Has(attn+"q_bias"): // as LAVIS stores it: keys have no bias
		bias := blocks.ConcatRows(t.Weight(attn+"q_bias", h), blocks.Zeros(h), t.Weight(attn+"v_bias", h))
		qkv.B = &bias
	case c.QKVBias:
		bias := t.Weight(attn+"qkv.bias", 3*h)
		qkv.B = &bias
	}
	parts := b.Columns(b.Linear(y, qkv), h, h, h)
	y = b.FullAttention(parts[0], parts[1], parts[2], blocks.Heads{Count: c.Heads, Dim: h / c.Heads, QueryLength: c.tokens(), KeyLength: c.tokens()})
	y = b.Dense(y, "self_attn.projection", prefix+"self_attn.projection", h, h, blocks.Attention, index)
	x, y = b.AddLayerNormAt("layer_norm2", prefix+"layer_norm2", x, y, h, c.LayerNormEps)
	y = b.Dense(y, "mlp.fc1", prefix+"mlp.fc1", m, h, blocks.MLP, index)
	y = b.Activate(blocks.Activation(c.HiddenAct), y)
	y = b.Dense(y, "mlp.fc2", prefix+"mlp.fc2", h, m, blocks.MLP, index)
	return b.Op("Add", []*onnx.Value{x, y})
}
