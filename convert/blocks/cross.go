// Cross attention of an encoder-decoder's decoder: keys and values were computed from the prompt once, and lie in a second
// arena beside the KV cache.

package blocks

import (
	"fmt"

	"glimpse/convert/onnx"
)

// Cross holds the inputs of cross attention.
type Cross struct {
	keys, values []*onnx.Value // [batch, heads, encoder_capacity, head_dim]
	seqlens      *onnx.Value   // [batch] i32: the prompt's length in each slot
}

// CrossInputs adds cross_key.N, cross_value.N and encoder_seqlens to the graph.
func (b *Builder) CrossInputs(c Cache) *Cross {
	batch := onnx.Free("batch")
	x := &Cross{seqlens: b.Input("encoder_seqlens", onnx.Int32, batch)}
	for i := range c.Layers {
		dims := []onnx.Dim{batch, onnx.Fixed(c.Heads), onnx.Free("encoder_capacity"), onnx.Fixed(c.HeadDim)}
		x.keys = append(x.keys, b.Input(fmt.Sprintf("cross_key.%d", i), onnx.Float, dims...))
		x.values = append(x.values, b.Input(fmt.Sprintf("cross_value.%d", i), onnx.Float, dims...))
	}
	return x
}

// CrossAttention attends from the step's new tokens, q [tokens, heads·head_dim], to the slots' prompts. Places of a slot
// behind its prompt are hidden.
func (b *Builder) CrossAttention(s *Step, x *Cross, layer int, q *onnx.Value, c Cache) *onnx.Value {
	attrs := []onnx.Attr{onnx.Int("num_heads", c.Heads)}
	if c.Scale != 0 {
		attrs = append(attrs, onnx.Float32("scale", c.Scale))
	}
	unpacked := b.Op("Gather", []*onnx.Value{q, s.rowMap})
	y := b.Contrib("MultiHeadAttention", []*onnx.Value{unpacked, x.keys[layer], x.values[layer], onnx.None, x.seqlens}, attrs...)
	flat := b.Op("Reshape", []*onnx.Value{y, b.Ints1(-1, c.Heads*c.HeadDim)})
	return b.Op("Gather", []*onnx.Value{flat, s.tokenMap})
}

// StepPositions returns the positions of the step's tokens, [batch, sequence] i64, and of the cache's places, [total] i64,
// from which relative position biases are looked up.
func (b *Builder) StepPositions(s *Step) (query, key *onnx.Value) {
	wide := func(v *onnx.Value) *onnx.Value {
		return b.Op("Cast", []*onnx.Value{v}, onnx.Int("to", int64(onnx.Int64)))
	}
	scalar := func(v int64) *onnx.Value { return b.Int64s(nil, v) }
	past := b.Op("Sub", []*onnx.Value{b.Op("Add", []*onnx.Value{wide(s.seqlensK), scalar(1)}), wide(s.querySeqlens)})
	length := b.Op("Squeeze", []*onnx.Value{b.Op("Shape", []*onnx.Value{s.rowMap}, onnx.Int("start", 1), onnx.Int("end", 2))})
	steps := b.Op("Range", []*onnx.Value{scalar(0), length, scalar(1)})
	query = b.Op("Add", []*onnx.Value{b.Op("Unsqueeze", []*onnx.Value{past, b.Ints1(1)}), steps})
	return query, b.Op("Range", []*onnx.Value{scalar(0), wide(s.total), scalar(1)})
}
