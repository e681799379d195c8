// The precision policy: which format a layer's weights are stored in. Families never ask; blocks do, when they lower a
// layer to operators.

package blocks

import (
	"fmt"
	"slices"
)

// Precision is what the user asked for.
type Precision string

// The precisions that convert takes.
const (
	Auto Precision = "auto"
	FP32 Precision = "fp32"
	FP16 Precision = "fp16"
	INT8 Precision = "int8"
	INT4 Precision = "int4"
)

// Precisions lists them as the command line does.
var Precisions = []Precision{Auto, FP32, FP16, INT8, INT4}

// ParsePrecision checks a precision's name.
func ParsePrecision(s string) (Precision, error) {
	if s == "" {
		return Auto, nil
	}
	if p := Precision(s); slices.Contains(Precisions, p) {
		return p, nil
	}
	return "", fmt.Errorf("precision %q is not known: use one of %v", s, Precisions)
}

// Target is what the graphs are made to run on.
type Target string

// The targets that convert takes.
const (
	CPU  Target = "cpu"
	CUDA Target = "cuda"
)

// Targets lists them as the command line does.
var Targets = []Target{CPU, CUDA}

// ParseTarget checks a target's name and that it computes in the precision.
func ParseTarget(s string, precision Precision) (Target, error) {
	switch t := Target(s); {
	case s == "":
		return CPU, nil
	case !slices.Contains(Targets, t):
		return "", fmt.Errorf("target %q is not known: use one of %v", s, Targets)
	case t == CUDA && precision == INT8:
		return "", fmt.Errorf("--target cuda has no int8: int8 activations are computed by an operator (MatMulIntegerToFloat) that ONNX Runtime's CUDA provider does not have; use fp16, int4 or fp32")
	default:
		return t, nil
	}
}

// Role is what a component does in the model; the policy treats components by role and not by family.
type Role string

// The roles of components.
const (
	Vision    Role = "vision"
	Connector Role = "connector"
	Encoder   Role = "encoder" // of an encoder-decoder language model
	Decoder   Role = "decoder"
)

// Kind is what a Linear does in its component.
type Kind string

// The kinds of Linear layers.
const (
	Attention Kind = "attention" // q, k, v and output projections
	MLP       Kind = "mlp"
	Head      Kind = "head"      // vocabulary logits
	Patch     Kind = "patch"     // patch embedding
	Project   Kind = "projector" // between towers
	// Wide is a layer whose activations leave float16's range (T5's wo: every port that halved it overflowed). Its weights
	// stay fp32 whatever was asked.
	Wide Kind = "wide"
)

// Format is how one weight is stored and which operator computes with it.
type Format struct {
	Name string // fp32, fp16, int8, int4
	// Block is the group size of blockwise formats (MatMulNBits); 0 is int8 per output channel with activations
	// quantized per row.
	Block int64
}

// The formats in use. For the CPU fp16 is a storage format: weights are widened when the model is loaded.
var (
	FormatFP32      = Format{Name: "fp32"}
	FormatFP16      = Format{Name: "fp16"}
	FormatInt8Rows  = Format{Name: "int8"}
	FormatInt8Block = Format{Name: "int8", Block: 32}
	FormatInt4Block = Format{Name: "int4", Block: 32}
)

func (f Format) String() string {
	switch {
	case f.Block > 0:
		return fmt.Sprintf("%s, blocks of %d", f.Name, f.Block)
	case f.Name == "int8":
		return "int8 per channel, activations per row"
	}
	return f.Name
}

// smallDecoder is the size below which int4 costs more quality than the bytes are worth (docs/precision.md).
const smallDecoder = 2_000_000_000

// Policy maps layers to formats for one component.
type Policy struct {
	Asked  Precision
	Target Target // empty is CPU
	Role   Role
	Params int64 // elements of the component's weights
	Layers int   // of the component's stack
}

// resolved turns auto into what it stands for: the measurements behind it are in docs/precision.md.
func (p Policy) resolved() Precision {
	if p.Asked != Auto {
		return p.Asked
	}
	if (p.Role == Decoder || p.Role == Encoder) && p.Params >= smallDecoder {
		return INT4
	}
	if p.Target == CUDA {
		return FP16
	}
	return INT8
}

// Linear returns the format of a Linear of this kind in layer (−1 outside the stack).
func (p Policy) Linear(kind Kind, layer int) Format {
	switch asked := p.resolved(); {
	case asked == FP32, kind == Wide:
		return FormatFP32
	case asked == FP16, p.Target == CUDA && (p.Role == Vision || p.Role == Connector || kind == Project || kind == Patch):
		return FormatFP16
	case p.Role == Connector, kind == Project:
		return FormatFP32 // a few matrices between the towers: cheap, and every picture token passes through them
	case kind == Patch && asked != FP16:
		return FormatFP32
	case p.Role == Vision:
		return FormatInt8Rows // 4 bits hurt vision towers and are slower there than fp32
	case asked == INT8:
		return FormatInt8Rows
	case kind == Head, layer == 0, layer == p.Layers-1:
		return FormatInt8Block
	}
	return FormatInt4Block
}

// Describe says in words what the policy does, for convert's summary.
func (p Policy) Describe() string {
	mlp, head := p.Linear(MLP, 1), p.Linear(Head, -1)
	text := mlp.String()
	if p.Layers > 2 && p.Linear(MLP, 0) != mlp {
		text += fmt.Sprintf("; first and last layer %s", p.Linear(MLP, 0))
	}
	if p.Role == Decoder && head != mlp {
		text += fmt.Sprintf("; head %s", head)
	}
	return text
}
