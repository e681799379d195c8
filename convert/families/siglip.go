// The SigLIP vision tower (Zhai et al. 2023; transformers' SiglipVisionModel, SmolVLMVisionTransformer): a pre-norm ViT
// without class token.

package families

import (
	"encoding/json"
	"fmt"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// siglip is SiglipVisionConfig and SmolVLMVisionConfig.
type siglip struct {
	HiddenSize       int64           `json:"hidden_size"`
	IntermediateSize int64           `json:"intermediate_size"`
	Layers           int64           `json:"num_hidden_layers"`
	Heads            int64           `json:"num_attention_heads"`
	Channels         int64           `json:"num_channels"`
	ImageSize        int64           `json:"image_size"`
	PatchSize        int64           `json:"patch_size"`
	HiddenAct        string          `json:"hidden_act"`
	LayerNormEps     float64         `json:"layer_norm_eps"`
	UseHead          *bool           `json:"vision_use_head"` // the pooling head is never run here
	MaxImageSize     json.RawMessage `json:"max_image_size"`  // repeats the processor's
	Size             json.RawMessage `json:"size"`
	BaseSigLIP       json.RawMessage `json:"use_base_siglip"`
	TieWords         *bool           `json:"tie_word_embeddings"`
}

// decodeSigLIP reads the tower's configuration over the defaults of its class.
func decodeSigLIP(raw json.RawMessage, c siglip, t *blocks.Tensors) (siglip, bool) {
	where := "config.json vision_config"
	if raw != nil {
		decode(raw, &c, where, t)
	}
	tower := clipVision{HiddenSize: c.HiddenSize, IntermediateSize: c.IntermediateSize, Layers: c.Layers, Heads: c.Heads, Channels: c.Channels,
		ImageSize: c.ImageSize, PatchSize: c.PatchSize, HiddenAct: c.HiddenAct}
	return c, tower.valid(t, where)
}

// siglipDefaults is SiglipVisionConfig's.
func siglipDefaults() siglip {
	return siglip{HiddenSize: 768, IntermediateSize: 3072, Layers: 12, Heads: 12, Channels: 3, ImageSize: 224, PatchSize: 16,
		HiddenAct: "gelu_pytorch_tanh", LayerNormEps: 1e-6}
}

func (c siglip) grid() int64   { return c.ImageSize / c.PatchSize }
func (c siglip) tokens() int64 { return c.grid() * c.grid() }

// build adds the tower from pixel_values to vision_features, [tiles, tokens, hidden_size]: the output of layer last−1, or
// with finalNorm what post_layernorm makes of it. Pixels that do not fill a patch are left out, as by the convolution.
func (c siglip) build(b *blocks.Builder, prefix string, last int64, finalNorm bool) {
	t, h, p, n := b.Tensors, c.HiddenSize, c.PatchSize, c.tokens()
	size := onnx.Fixed(c.ImageSize)
	pixels := b.Input("pixel_values", onnx.Float, onnx.Free("tiles"), onnx.Fixed(3), size, size)
	var x *onnx.Value
	b.Scope("embeddings", func() {
		kernel := b.Param("patch_embedding", t.Weight(prefix+"embeddings.patch_embedding.weight", h, c.Channels, p, p))
		bias := b.Param("patch_embedding.bias", t.Weight(prefix+"embeddings.patch_embedding.bias", h))
		x = b.Op("Conv", []*onnx.Value{pixels, kernel, bias}, onnx.Ints("kernel_shape", p, p), onnx.Ints("strides", p, p))
		x = b.Op("Transpose", []*onnx.Value{b.Op("Reshape", []*onnx.Value{x, b.Ints1(0, h, -1)})}, onnx.Ints("perm", 0, 2, 1))
		x = b.Op("Add", []*onnx.Value{x, b.Param("position_embedding", t.Weight(prefix+"embeddings.position_embedding.weight", n, h))})
		x = b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, h)})
	})
	layers := clipVision{HiddenSize: h, IntermediateSize: c.IntermediateSize, Heads: c.Heads, HiddenAct: c.HiddenAct, LayerNormEps: c.LayerNormEps}
	for i := range last {
		b.Scope(fmt.Sprintf("layers.%d", i), func() {
			x = layers.layerOf(b, fmt.Sprintf("%sencoder.layers.%d.", prefix, i), x, int(i), n)
		})
	}
	for i := last; i < c.Layers; i++ {
		layers.unused(t, fmt.Sprintf("%sencoder.layers.%d.", prefix, i))
	}
	if finalNorm {
		x = b.LayerNormAt("post_layernorm", prefix+"post_layernorm", x, h, c.LayerNormEps)
	} else {
		t.Unused(prefix+"post_layernorm.weight", h)
		t.Unused(prefix+"post_layernorm.bias", h)
	}
	t.Ignore(prefix+"head.*", prefix+"head.*.*", prefix+"embeddings.position_ids")
	b.Output("vision_features", b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, n, h)}), onnx.Float, onnx.Free("tiles"), onnx.Fixed(n), onnx.Fixed(h))
}
