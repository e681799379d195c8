// Linear layers and their lowering to operators by format.

package blocks

import (
	"glimpse/convert/onnx"
)

// Builder builds one component's graph.
type Builder struct {
	*onnx.Graph
	Tensors *Tensors
	Policy  Policy

	parameters int64
	formats    map[string]int64
	wide       bool // some layer is of kind Wide
	Linears    []LinearInfo
	gathered   map[string]bool // paths of Linears that report
	smoothed   int             // Linears whose inputs are smoothed
	blockwise  map[*onnx.Node]blockwise
	derived    bool // from another component, whose weights these are
	kept       map[*onnx.Node]bool
	residual   bool // the sums of layers leave float16's range; see WideResidual
}

// NewBuilder starts the graph of a component.
func NewBuilder(name string, tensors *Tensors, policy Policy) *Builder {
	policy.Target = tensors.Guide.Target
	return &Builder{Graph: onnx.NewGraph(name), Tensors: tensors, Policy: policy, formats: map[string]int64{},
		gathered: map[string]bool{}, blockwise: map[*onnx.Node]blockwise{}, kept: map[*onnx.Node]bool{}}
}

// Parameters returns the number of weight elements in the graph, and how many are stored in each format.
func (b *Builder) Parameters() (total int64, byFormat map[string]int64) {
	return b.parameters, b.formats
}

// Derived reports whether the component computes with the weights of another one.
func (b *Builder) Derived() bool { return b.derived }

// Describe says in words how the component's weights are stored, and why where a layer is kept from what was asked.
func (b *Builder) Describe() string {
	if b.derived {
		return FormatInt8Rows.String() + ", for prompts and wide batches"
	}
	text := b.Policy.Describe()
	if mix := b.describeMix(); mix != "" {
		text = mix
	}
	text += b.describeKnown()
	if b.wide && b.Policy.resolved() != FP32 {
		text += "; the feed-forward's output matrices (wo) stay fp32, because their results overflow float16"
	}
	return text
}

func (b *Builder) count(w Weight, format string) {
	b.parameters += w.Elements()
	b.formats[format] += w.Elements()
}

// Param adds a weight as it is, in float32: norm scales, position tables, biases. ForCUDA stores it as float16 where what uses it
// computes so.
func (b *Builder) Param(name string, w Weight) *onnx.Value {
	if b.halves() && !b.residual {
		b.count(w, FormatFP16.Name)
	} else {
		b.count(w, FormatFP32.Name)
	}
	return b.param(name, w)
}

// param is Param that is not counted.
func (b *Builder) param(name string, w Weight) *onnx.Value {
	return b.AddPayload(&plainPayload{w, onnx.Float}, onnx.WeightSpec{Name: name, DType: onnx.Float, Shape: w.shape})[0]
}

// Linear is y = x·Wᵀ + b with W [out, in] as PyTorch stores it.
type Linear struct {
	Name  string
	W     Weight
	B     *Weight // nil for none
	Kind  Kind
	Layer int // place in the component's stack, −1 outside of it
}

// Linear adds the layer over x [rows, in] and returns [rows, out].
func (b *Builder) Linear(x *onnx.Value, l Linear) (y *onnx.Value) {
	b.wide = b.wide || l.Kind == Wide
	b.Scope(l.Name, func() {
		bias := onnx.None
		if l.B != nil {
			bias = b.Param("bias", *l.B)
		}
		b.gather(x, l)
		switch f := b.format(l); {
		case f == FormatFP32:
			b.count(l.W, FormatFP32.Name)
			y = b.gemm(x, b.param("weight", l.W), bias)
		case f == FormatFP16:
			y = b.gemm(x, b.half("weight", l.W), bias)
		case f.Block > 0:
			y = b.matMulNBits(x, l.W, f, bias)
			b.blockwise[b.Nodes[len(b.Nodes)-1]] = blockwise{l, f.Name, bias}
		default:
			y = b.int8Rows(x, l.W, bias)
		}
		if l.Kind == Wide {
			b.kept[b.Nodes[len(b.Nodes)-1]] = true
		}
	})
	return y
}

// LinearOver is Linear over x [batch, length, in] whose dimensions vary: it works on rows and gives the shape back.
func (b *Builder) LinearOver(x *onnx.Value, l Linear) *onnx.Value {
	outer := b.Op("Shape", []*onnx.Value{x}, onnx.Int("start", 0), onnx.Int("end", 2))
	rows := b.Op("Reshape", []*onnx.Value{x, b.Ints1(-1, l.W.shape[1])})
	shape := b.Op("Concat", []*onnx.Value{outer, b.Ints1(l.W.shape[0])}, onnx.Int("axis", 0))
	return b.Op("Reshape", []*onnx.Value{b.Linear(rows, l), shape})
}

// Dense is a Linear whose weight and bias are stored at path + ".weight" and path + ".bias".
func (b *Builder) Dense(x *onnx.Value, name, path string, out, in int64, kind Kind, layer int) *onnx.Value {
	bias := b.Tensors.Weight(path+".bias", out)
	return b.Linear(x, Linear{Name: name, W: b.Tensors.Weight(path+".weight", out, in), B: &bias, Kind: kind, Layer: layer})
}

// half stores a weight as float16. For the CPU it is widened in the graph; ONNX Runtime folds the Cast when it loads the model.
func (b *Builder) half(name string, w Weight) *onnx.Value {
	b.count(w, FormatFP16.Name)
	v := b.AddPayload(&plainPayload{w, onnx.Float16}, onnx.WeightSpec{Name: name, DType: onnx.Float16, Shape: w.shape})[0]
	if b.Policy.Target == CUDA {
		return v
	}
	return b.Op("Cast", []*onnx.Value{v}, onnx.Int("to", int64(onnx.Float)))
}

// gemm keeps W as it is stored: transB spares a transposed copy on disk.
func (b *Builder) gemm(x, w, bias *onnx.Value) *onnx.Value {
	return b.Op("Gemm", []*onnx.Value{x, w, bias}, onnx.Int("transB", 1))
}

// matMulNBits is the blockwise operator. On the CPU accuracy_level 4 computes with int8 activations in blocks of the same size; on
// CUDA there is no such level, and scales have the type of the activations.
func (b *Builder) matMulNBits(x *onnx.Value, w Weight, f Format, bias *onnx.Value) *onnx.Value {
	bits := int64(4)
	if f.Name == "int8" {
		bits = 8
	}
	b.count(w, f.Name)
	n, k := w.shape[0], w.shape[1]
	blocks := (k + f.Block - 1) / f.Block
	scales := onnx.Float
	attrs := []onnx.Attr{onnx.Int("K", k), onnx.Int("N", n), onnx.Int("bits", bits), onnx.Int("block_size", f.Block)}
	if b.Policy.Target == CUDA {
		scales = onnx.Float16
	} else {
		attrs = append(attrs, onnx.Int("accuracy_level", int64(4)))
	}
	packed := b.AddPayload(&blockPayload{w: w, bits: int(bits), block: int(f.Block), inputs: b.statistics(k), scales: scales},
		onnx.WeightSpec{Name: "weight_quant", DType: onnx.Uint8, Shape: []int64{n, blocks, f.Block * bits / 8}},
		onnx.WeightSpec{Name: "weight_scale", DType: scales, Shape: []int64{n, blocks}})
	return b.Contrib("MatMulNBits", []*onnx.Value{x, packed[0], packed[1], onnx.None, onnx.None, bias}, attrs...)
}

// rowLinear is the definition of RowLinear, and with biased of RowLinearBias: y = x·(weight·scale)ᵀ + bias, with activations that are
// quantized row by row. A row is divided by its own largest magnitude, so that all rows share the range −1..1, the fixed scale
// 1/127 and the zero point 128, and the result is multiplied by the magnitude. One scale for the whole activation, which
// DynamicQuantizeMatMul takes, would let a single long row spoil the others and make a row's result depend on which other
// rows share the step.
//
// The floor keeps rows of zeros from dividing by zero. Activations are uint8 because ONNX Runtime's kernels for signed ones are
// 15 times slower on x86. Weights are [out, in], as they are stored, which is what a kernel of its own for the function reads fastest.
func rowLinear(name string, biased bool) *onnx.Function {
	parameters := []string{"x", "weight", "scale"}
	if biased {
		parameters = append(parameters, "bias")
	}
	return onnx.NewFunction(name, parameters, func(f *onnx.Graph, in []*onnx.Value) *onnx.Value {
		float := func(v float32) *onnx.Value { return f.Op("Constant", nil, onnx.Float32("value_float", v)) }
		zero := f.Op("Cast", []*onnx.Value{f.Op("Constant", nil, onnx.Int("value_int", 128))}, onnx.Int("to", int64(onnx.Uint8)))
		last := f.Op("Constant", nil, onnx.Ints("value_ints", -1))
		largest := f.Op("ReduceMax", []*onnx.Value{f.Op("Abs", []*onnx.Value{in[0]}), last}, onnx.Int("keepdims", 1))
		largest = f.Op("Max", []*onnx.Value{largest, float(1e-30)})
		scale := float(1.0 / 127)
		rows := f.Op("QuantizeLinear", []*onnx.Value{f.Op("Div", []*onnx.Value{in[0], largest}), scale, zero})
		weight := f.Op("Transpose", []*onnx.Value{in[1]}, onnx.Ints("perm", 1, 0))
		y := f.Op("Mul", []*onnx.Value{f.Contrib("MatMulIntegerToFloat", []*onnx.Value{rows, weight, scale, in[2], zero}), largest})
		if biased {
			y = f.Op("Add", []*onnx.Value{y, in[3]})
		}
		return y
	})
}

var (
	rowLinearFunction     = rowLinear("RowLinear", false)
	rowLinearBiasFunction = rowLinear("RowLinearBias", true)
)

// int8Rows multiplies int8 weights, one scale an output channel, by activations that are quantized row by row.
func (b *Builder) int8Rows(x *onnx.Value, w Weight, bias *onnx.Value) *onnx.Value {
	b.count(w, FormatInt8Rows.Name)
	n, k := w.shape[0], w.shape[1]
	q := b.AddPayload(&int8RowsPayload{w: w},
		onnx.WeightSpec{Name: "weight_quant", DType: onnx.Int8, Shape: []int64{n, k}},
		onnx.WeightSpec{Name: "weight_scale", DType: onnx.Float, Shape: []int64{n}})
	if bias != onnx.None {
		return b.Call(rowLinearBiasFunction, []*onnx.Value{x, q[0], q[1], bias})
	}
	return b.Call(rowLinearFunction, []*onnx.Value{x, q[0], q[1]})
}
