// Attention over packed rows whose grouping is data: windows and frames of pictures of any size, and rotary embedding with
// a row of the tables for each token.

package blocks

import (
	"math"

	"glimpse/convert/onnx"
)

// RotateHeads is the rotary embedding (halves, not interleaved) of x [rows, heads·head_dim], whose i-th row turns by the
// i-th row of cos and sin [rows, head_dim/2].
func (b *Builder) RotateHeads(x, cos, sin *onnx.Value, heads, headDim int64) *onnx.Value {
	// The operator takes [batch, sequence, …] and a first position: one batch, from the tables' first row on.
	x = b.Op("Unsqueeze", []*onnx.Value{x, b.Ints1(0)})
	x = b.Contrib("RotaryEmbedding", []*onnx.Value{x, b.Ints1(0), cos, sin}, onnx.Int("num_heads", heads))
	return b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, heads*headDim)})
}

// RotateStep is RotateHeads with the tables of the step.
func (b *Builder) RotateStep(s *Step, x *onnx.Value, heads, headDim int64) *onnx.Value {
	return b.RotateHeads(x, s.ropeCos, s.ropeSin, heads, headDim)
}

// Windows says which rows attend to each other. Map [windows, longest] i64 names the rows of each window, and any row (0)
// behind its Lengths [windows] i64; Place [rows] i64 is where each row is found in the flattened map.
type Windows struct {
	Map, Lengths, Place *onnx.Value
}

// WindowInputs adds the three inputs of Windows over rows of the named dimension.
func (b *Builder) WindowInputs(rows onnx.Dim) Windows {
	windows := onnx.Free("windows")
	return Windows{
		Map:     b.Input("window_map", onnx.Int64, windows, onnx.Free("longest")),
		Lengths: b.Op("Cast", []*onnx.Value{b.Input("window_lengths", onnx.Int64, windows)}, onnx.Int("to", int64(onnx.Int32))),
		Place:   b.Input("window_place", onnx.Int64, rows),
	}
}

// WindowAttention attends within windows: q, k, v and the result are [rows, heads·head_dim].
func (b *Builder) WindowAttention(q, k, v *onnx.Value, w Windows, h Heads) *onnx.Value {
	gather := func(x *onnx.Value) *onnx.Value { return b.Op("Gather", []*onnx.Value{x, w.Map}) }
	y := b.Contrib("MultiHeadAttention", []*onnx.Value{gather(q), gather(k), gather(v), onnx.None, w.Lengths}, onnx.Int("num_heads", h.Count))
	y = b.Op("Reshape", []*onnx.Value{y, b.Ints1(-1, h.Count*h.Dim)})
	return b.Op("Gather", []*onnx.Value{y, w.Place})
}

// FrameAttention attends within frames of equal size: frames is a tensor of as many elements as there are frames, and
// the rows of q, k, v [rows, heads·head_dim] are frame after frame.
func (b *Builder) FrameAttention(q, k, v, frames *onnx.Value, h Heads) *onnx.Value {
	width := h.Count * h.Dim
	shape := b.Op("Concat", []*onnx.Value{b.Op("Shape", []*onnx.Value{frames}), b.Ints1(-1, width)}, onnx.Int("axis", 0))
	batched := func(x *onnx.Value) *onnx.Value { return b.Op("Reshape", []*onnx.Value{x, shape}) }
	y := b.FullAttention(batched(q), batched(k), batched(v), Heads{Count: h.Count, Dim: h.Dim})
	return b.Op("Reshape", []*onnx.Value{y, b.Ints1(-1, width)})
}

// LogScale is max(1, log(place) / log(length)) of each packed token, [tokens, 1], where places count from 1: queries
// farther back than a model was trained for are scaled up (log-n attention).
func (b *Builder) LogScale(s *Step, length int64) *onnx.Value {
	if s.logScale == nil {
		place := b.Op("Add", []*onnx.Value{b.Op("Cast", []*onnx.Value{s.PositionIDs}, onnx.Int("to", int64(onnx.Float))), b.Scalar(1)})
		ratio := b.Op("Div", []*onnx.Value{b.Op("Log", []*onnx.Value{place}), b.Scalar(float32(math.Log(float64(length))))})
		s.logScale = b.Op("Unsqueeze", []*onnx.Value{b.Op("Max", []*onnx.Value{ratio, b.Scalar(1)}), b.Ints1(1)})
	}
	return s.logScale
}
