// Attention pooling (the authors' AttentionPoolingBlock): the mean of all rows asks, all rows answer.

package families

import (
	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// attentionPool turns x [batch, rows, size] into [batch, width]. Biases of q, k and v are parameters of their own.
func attentionPool(b *blocks.Builder, prefix string, x *onnx.Value, size, heads, width int64) *onnx.Value {
	const eps = 1e-5
	t := b.Tensors
	linear := func(x *onnx.Value, name, bias string, out int64) *onnx.Value {
		at := prefix + "cross_attn."
		offset := t.Weight(at+bias, out)
		return b.LinearOver(x, blocks.Linear{Name: name, W: t.Weight(at+name+".weight", out, size), B: &offset, Kind: blocks.Project, Layer: -1})
	}
	mean := b.Op("ReduceMean", []*onnx.Value{x, b.Ints1(1)}, onnx.Int("keepdims", 1))
	q := linear(b.LayerNormAt("norm1_q", prefix+"norm1_q", mean, size, eps), "q", "q_bias", size)
	k := linear(b.LayerNormAt("norm1_k", prefix+"norm1_k", x, size, eps), "k", "k_bias", size)
	v := linear(b.LayerNormAt("norm1_v", prefix+"norm1_v", x, size, eps), "v", "v_bias", size)
	y := b.FullAttention(q, k, v, blocks.Heads{Count: heads, Dim: size / heads})
	return b.Op("Squeeze", []*onnx.Value{linear(y, "proj", "proj.bias", width), b.Ints1(1)})
}
