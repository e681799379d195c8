// Norms and activations.

package blocks

import (
	"fmt"

	"glimpse/convert/onnx"
)

// LayerNorm is y = (x − mean)/√(var + eps)·w + b over the last dimension.
func (b *Builder) LayerNorm(name string, x *onnx.Value, w, bias Weight, eps float64) (y *onnx.Value) {
	b.Scope(name, func() {
		y = b.Op("LayerNormalization", []*onnx.Value{x, b.Param("weight", w), b.Param("bias", bias)},
			onnx.Int("axis", -1), onnx.Float32("epsilon", float32(eps)))
	})
	return y
}

// LayerNormAt is LayerNorm with weight and bias stored at path + ".weight" and path + ".bias".
func (b *Builder) LayerNormAt(name, path string, x *onnx.Value, size int64, eps float64) *onnx.Value {
	return b.LayerNorm(name, x, b.Tensors.Weight(path+".weight", size), b.Tensors.Weight(path+".bias", size), eps)
}

// AddLayerNormAt is AddLayerNorm with weight and bias stored at path + ".weight" and path + ".bias".
func (b *Builder) AddLayerNormAt(name, path string, x, skip *onnx.Value, size int64, eps float64) (sum, y *onnx.Value) {
	return b.AddLayerNorm(name, x, skip, b.Tensors.Weight(path+".weight", size), b.Tensors.Weight(path+".bias", size), eps)
}

// AddLayerNorm returns x + skip and its LayerNorm, in one operator. x and skip are [rows, hidden_size].
func (b *Builder) AddLayerNorm(name string, x, skip *onnx.Value, w, bias Weight, eps float64) (sum, y *onnx.Value) {
	b.Scope(name, func() {
		out := b.Node(onnx.Microsoft, "SkipLayerNormalization", 4,
			[]*onnx.Value{x, skip, b.Param("weight", w), b.Param("bias", bias)}, onnx.Float32("epsilon", float32(eps)))
		out[1].Drop()
		out[2].Drop()
		sum, y = out[3], out[0]
	})
	return sum, y
}

// RMSNorm is y = x/√(mean(x²) + eps)·w over the last dimension.
func (b *Builder) RMSNorm(name string, x *onnx.Value, w Weight, eps float64) (y *onnx.Value) {
	b.Scope(name, func() {
		y = b.Op("SimplifiedLayerNormalization", []*onnx.Value{x, b.Param("weight", w)},
			onnx.Int("axis", -1), onnx.Float32("epsilon", float32(eps)), onnx.Int("stash_type", 1))
	})
	return y
}

// AddRMSNorm returns x + skip and its RMSNorm, in one operator. x and skip are [rows, hidden_size].
func (b *Builder) AddRMSNorm(name string, x, skip *onnx.Value, w Weight, eps float64) (sum, y *onnx.Value) {
	b.Scope(name, func() {
		out := b.Node(onnx.Microsoft, "SkipSimplifiedLayerNormalization", 4,
			[]*onnx.Value{x, skip, b.Param("weight", w)}, onnx.Float32("epsilon", float32(eps)))
		out[1].Drop()
		out[2].Drop()
		sum, y = out[3], out[0]
	})
	return sum, y
}

// Activation is an activation function by its name in transformers' ACT2FN.
type Activation string

// ParseActivation checks that the name is one that Activate lowers.
func ParseActivation(name string) (Activation, error) {
	switch name {
	case "gelu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "silu", "swish", "relu":
		return Activation(name), nil
	}
	return "", fmt.Errorf("activation %q is not supported", name)
}

// Activate applies the function elementwise.
func (b *Builder) Activate(a Activation, x *onnx.Value) *onnx.Value {
	switch a {
	case "gelu":
		return b.Op("Gelu", []*onnx.Value{x})
	case "gelu_pytorch_tanh", "gelu_new":
		return b.Op("Gelu", []*onnx.Value{x}, onnx.String("approximate", "tanh"))
	case "quick_gelu": // x·sigmoid(1.702·x)
		return b.Contrib("QuickGelu", []*onnx.Value{x}, onnx.Float32("alpha", 1.702))
	case "silu", "swish":
		return b.Contrib("QuickGelu", []*onnx.Value{x}, onnx.Float32("alpha", 1))
	case "relu":
		return b.Op("Relu", []*onnx.Value{x})
	}
	panic("blocks: activation " + string(a) + " was not parsed")
}

// Repeat expands a constant of leading dimension 1 to the leading dimension of like; rest are its other dimensions.
func (b *Builder) Repeat(x, like *onnx.Value, rest ...int64) *onnx.Value {
	batch := b.Op("Shape", []*onnx.Value{like}, onnx.Int("start", 0), onnx.Int("end", 1))
	shape := b.Op("Concat", []*onnx.Value{batch, b.Ints1(rest...)}, onnx.Int("axis", 0))
	return b.Op("Expand", []*onnx.Value{x, shape})
}

// Normalize divides each row of x by its Euclidean length (at least 1e-12, as torch.nn.functional.normalize).
func (b *Builder) Normalize(x *onnx.Value) *onnx.Value {
	length := b.Op("ReduceL2", []*onnx.Value{x, b.Ints1(-1)}, onnx.Int("keepdims", 1))
	return b.Op("Div", []*onnx.Value{x, b.Op("Max", []*onnx.Value{length, b.Scalar(1e-12)})})
}
