// What a conversion knows besides the checkpoint: statistics of a layer's inputs, formats chosen layer by layer, or that
// it is to gather such statistics.

package blocks

import (
	"glimpse/convert/calibration"
	"glimpse/convert/onnx"
)

// Guide is what a conversion knows besides the checkpoint. The zero value is nothing.
type Guide struct {
	// Target is what the graphs are to run on; empty is CPU.
	Target Target
	// Statistics of the layers' inputs; nil for none.
	Statistics *calibration.Statistics
	// Formats, by calibration.Key, take the place of the policy's.
	Formats map[string]Format
	// Gather gives every Linear an output that reports on its inputs (calibration.PortInputs); everything is fp32 then.
	Gather bool
	// Hessians is how many bytes of calibration.PortHessian outputs a model may have; layers take them in their order.
	Hessians int64

	hessianBytes int64
}

// LinearInfo is a Linear as it was lowered.
type LinearInfo struct {
	Key    string // calibration.Key
	Kind   Kind
	Layer  int
	W      Weight
	Format Format
}

// component is the name under which statistics of this graph are kept.
func (b *Builder) component() string { return b.Name }

// peek is how the Linear whose scope is open will be stored.
func (b *Builder) peek(l Linear) Format {
	if b.Tensors.Guide.Gather {
		return FormatFP32
	}
	if chosen, ok := b.Tensors.Guide.Formats[calibration.Key(b.component(), b.Path())]; ok {
		return chosen
	}
	return b.Policy.Linear(l.Kind, l.Layer)
}

// format is peek for the Linear that is being lowered.
func (b *Builder) format(l Linear) Format {
	f := b.peek(l)
	b.Linears = append(b.Linears, LinearInfo{calibration.Key(b.component(), b.Path()), l.Kind, l.Layer, l.W, f})
	return f
}

// statistics returns what is known about the inputs of the Linear whose scope is open, nil for nothing.
func (b *Builder) statistics(k int64) *calibration.Layer {
	return b.Tensors.Guide.Statistics.Layer(calibration.Key(b.component(), b.Path()), k)
}

// gather adds the outputs that report on x [rows, k], the input of the Linear whose scope is open.
func (b *Builder) gather(x *onnx.Value, l Linear) {
	k := l.W.shape[1]
	g := b.Tensors.Guide
	if !g.Gather || b.gathered[b.Path()] {
		return
	}
	b.gathered[b.Path()] = true
	path := b.Path()
	rows := b.Op("Cast", []*onnx.Value{b.Op("Shape", []*onnx.Value{x}, onnx.Int("start", 0), onnx.Int("end", 1))}, onnx.Int("to", int64(onnx.Float)))
	largest := b.Op("ReduceMax", []*onnx.Value{b.Op("Abs", []*onnx.Value{x}), b.Ints1(0)}, onnx.Int("keepdims", 0))
	squares := b.Op("ReduceSumSquare", []*onnx.Value{x, b.Ints1(0)}, onnx.Int("keepdims", 0))
	all := b.Op("Concat", []*onnx.Value{largest, squares, rows}, onnx.Int("axis", 0))
	b.Output(calibration.PortInputs+path, all, onnx.Float, onnx.Fixed(2*k+1))
	decodes := b.Policy.Role == Decoder || b.Policy.Role == Encoder // what 4 bits are for
	if bytes := 4 * k * k; decodes && l.Kind != Head && g.hessianBytes+bytes <= g.Hessians {
		g.hessianBytes += bytes
		h := b.Op("MatMul", []*onnx.Value{b.Op("Transpose", []*onnx.Value{x}, onnx.Ints("perm", 1, 0)), x})
		b.Output(calibration.PortHessian+path, h, onnx.Float, onnx.Fixed(k), onnx.Fixed(k))
	}
}
