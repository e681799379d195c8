// Attention in which some neighbouring tokens see each other in both directions: the tokens of a picture in a prompt that
// is causal otherwise.

package blocks

import "glimpse/convert/onnx"

// Opened prepares a step for attention whose mask is data: Open then makes a step for each kind of layer. It adds the
// inputs span_first and span_last [tokens] i64, the places of the first and the last token that a token sees whatever lies
// between: those of its picture, or its own twice.
//
// The operator takes no number of new tokens a slot beside such a mask. Each slot is therefore given sequence new ones; what
// is behind its own is hidden by the mask, lies where its next tokens will, and is overwritten by them.
func (b *Builder) Opened(s *Step) *Step {
	opened := *s
	opened.spanFirst = b.Input("span_first", onnx.Int64, onnx.Free("tokens"))
	opened.spanLast = b.Input("span_last", onnx.Int64, onnx.Free("tokens"))
	one := b.Int32s(nil, 1)
	length := b.Op("Squeeze", []*onnx.Value{b.Op("Shape", []*onnx.Value{s.rowMap}, onnx.Int("start", 1), onnx.Int("end", 2))})
	length = b.Op("Cast", []*onnx.Value{length}, onnx.Int("to", int64(onnx.Int32)))
	opened.seqlensK = b.Op("Add", []*onnx.Value{b.Op("Sub", []*onnx.Value{s.seqlensK, s.querySeqlens}), length})
	opened.total = b.Op("Add", []*onnx.Value{b.Op("ReduceMax", []*onnx.Value{opened.seqlensK}, onnx.Int("keepdims", 0)), one})
	opened.querySeqlens, opened.open = length, true
	return &opened
}

// Open returns an opened step with the attention of one kind of layer: a token sees what lies before it, no farther back
// than window (0: all of it), and its span. The caches are those of the step.
func (b *Builder) Open(s *Step, window int64) *Step {
	query, key := b.StepPositions(s)
	axes := func(v *onnx.Value, at ...int64) *onnx.Value {
		return b.Op("Unsqueeze", []*onnx.Value{v, b.Ints1(at...)})
	}
	place := func(v *onnx.Value) *onnx.Value { return axes(b.Op("Gather", []*onnx.Value{v, s.rowMap}), 1, 3) }
	key = axes(key, 0, 1, 2) // [1, 1, 1, total]
	visible := b.Op("LessOrEqual", []*onnx.Value{key, place(s.spanLast)})
	if window > 0 {
		near := b.Op("Greater", []*onnx.Value{key, b.Op("Sub", []*onnx.Value{axes(query, 1, 3), b.Int64s(nil, window)})})
		own := b.Op("GreaterOrEqual", []*onnx.Value{key, place(s.spanFirst)})
		visible = b.Op("And", []*onnx.Value{visible, b.Op("Or", []*onnx.Value{near, own})})
	}
	open := *s
	open.Bias = b.Op("Where", []*onnx.Value{visible, b.Scalar(0), b.Scalar(-3.4e38)})
	return &open
}

// LocalRope returns the step with rotary tables of its own, which the inputs rope_cos_local and rope_sin_local bring.
func (b *Builder) LocalRope(s *Step, c Cache) *Step {
	local := *s
	local.ropeCos = b.Input("rope_cos_local", onnx.Float, onnx.Free("positions"), onnx.Fixed(c.RopeDim/2))
	local.ropeSin = b.Input("rope_sin_local", onnx.Float, onnx.Free("positions"), onnx.Fixed(c.RopeDim/2))
	return &local
}
