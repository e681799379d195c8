// A graph in float16 arithmetic, made from the float32 one: GPUs compute in float16, and attention over a cache has no other
// kernel on CUDA.
//
// Families build their graphs in float32 and never see this. Which operators change is the caller's rule; what follows from
// it is done here: element types are inferred from node to node, Casts stand where float16 and float32 meet, constants and
// weights take the type of their users. A node of an operator that is not listed is an error, so that a new one is thought of.

package onnx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Narrowing is what Narrow must be told.
type Narrowing struct {
	// Keep reports that a node computes in float32. single says that one of its inputs that vary is float32 by what came
	// before it. Nodes that are not kept compute in float16 if they are heavy, or if an input that varies is float16.
	Keep func(node *Node, single bool) bool
	// Port reports that an input or output becomes float16. The other ports keep their types.
	Port func(name string) bool
	// Round writes values, which are within float16's range, as float16: two bytes each.
	Round func(dst []byte, values []float32)
}

// Halver is a payload of float32 elements that can be stored as float16.
type Halver interface{ Half() Payload }

// The largest float16, and its smallest normal number.
const (
	largestHalf = 65504
	normalHalf  = 1.0 / (1 << 14)
)

// heavy operators compute in float16 whatever their inputs were: that is where the time goes.
var heavy = []string{"Gemm", "MatMul", "MatMulNBits", "Conv", "MultiHeadAttention", "GroupQueryAttention", "LayerNormalization",
	"SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}

// precise operators compute in float32 always: they add up squares, or leave float16's range.
var precise = []string{"Softmax", "Exp", "Log", "ReduceL2", "ReduceSumSquare"}

// follows are operators whose results have the type of their inputs; integers among them stay what they are.
var follows = []string{"Abs", "Add", "AveragePool", "Concat", "Div", "Expand", "Gather", "GatherND", "Gelu", "Identity", "Max", "Min", "Mul",
	"Neg", "QuickGelu", "Range", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "RotaryEmbedding", "Slice", "Split", "Squeeze", "Sub",
	"Transpose", "Unsqueeze", "Where"}

// compares are operators that make bool of what they compare.
var compares = []string{"Greater", "GreaterOrEqual", "LessOrEqual"}

// biasInput is the input of an attention that is added to its scores, by operator.
var biasInput = map[string]int{"MultiHeadAttention": 5, "GroupQueryAttention": 10}

// narrower is a Narrow that is under way.
type narrower struct {
	graph   *Graph
	rule    Narrowing
	types   map[*Value]DType
	weights map[*Value]*Weight
	halves  map[*Weight]*Weight // float16 forms that were asked for
	casts   map[castKey]*Value
	nodes   []*Node
}

type castKey struct {
	value *Value
	to    DType
	limit bool
}

// Narrow rewrites the graph in place.
func (g *Graph) Narrow(rule Narrowing) error {
	n := &narrower{graph: g, rule: rule, types: map[*Value]DType{}, weights: map[*Value]*Weight{}, halves: map[*Weight]*Weight{}, casts: map[castKey]*Value{}}
	for i := range g.Inputs {
		p := &g.Inputs[i]
		if p.DType == Float && rule.Port(p.Value.name) {
			p.DType = Float16
		}
		n.types[p.Value] = p.DType
	}
	for _, w := range g.Weights {
		n.types[w.Value], n.weights[w.Value] = w.DType, w
	}
	var problems []error
	for _, node := range g.Nodes {
		g.scope = scopeOf(node)
		if err := n.node(node); err != nil {
			problems = append(problems, fmt.Errorf("node %s (%s): %w", node.Name, node.Op, err))
		}
	}
	g.scope = nil
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("graph %s in float16: %w", g.Name, err)
	}
	n.outputs()
	g.Nodes = n.nodes
	n.settleWeights()
	return nil
}

// scopeOf is the scope that a node was made in.
func scopeOf(node *Node) []string {
	parts := strings.Split(node.Name, ".")
	return parts[:len(parts)-1]
}

func isFloat(t DType) bool { return t == Float || t == Float16 }

// node decides the type that a node computes in, converts its inputs and notes the types of its outputs.
func (n *narrower) node(node *Node) error {
	out := DType(0)
	switch {
	case node.Op == "Shape":
		n.emit(node, Int64)
		return nil
	case node.Op == "And" || node.Op == "Or":
		n.emit(node, Bool)
		return nil
	case node.Op == "Cast":
		return n.cast(node)
	case slices.Contains(compares, node.Op):
		out = Bool
	case !slices.Contains(heavy, node.Op) && !slices.Contains(precise, node.Op) && !slices.Contains(follows, node.Op):
		return errors.New("this operator is not known here")
	}
	to, float := n.decide(node)
	if !float { // integers through and through
		if out == 0 {
			out = n.types[node.Inputs[min(len(node.Inputs)-1, dataInput(node))]]
		}
		n.emit(node, out)
		return nil
	}
	for i, in := range node.Inputs {
		if in == None || !isFloat(n.types[in]) {
			continue
		}
		at, isBias := biasInput[node.Op]
		v, err := n.as(in, to, isBias && at == i)
		if err != nil {
			return err
		}
		node.Inputs[i] = v
	}
	if out == 0 {
		out = to
	}
	n.emit(node, out)
	return nil
}

// dataInput is the input whose type an operator's result has.
func dataInput(node *Node) int {
	if node.Op == "Where" {
		return 1
	}
	return 0
}

func (n *narrower) emit(node *Node, out DType) {
	for _, o := range node.Outputs {
		n.types[o] = out
	}
	n.nodes = append(n.nodes, node)
}

// decide returns the type that a node computes in; float is false where none of its inputs is a floating-point number.
func (n *narrower) decide(node *Node) (to DType, float bool) {
	half, single, exact := false, false, false
	for i, in := range node.Inputs {
		t, known := n.types[in]
		if !known || !isFloat(t) {
			continue
		}
		float = true
		if w := n.weights[in]; w != nil {
			exact = exact || node.Op != "Where" && w.outOfHalf()
			continue
		}
		half, single = half || t == Float16, single || t == Float
		exact = exact || node.Op == "Div" && i == 1 && t == Float // small divisors would become zero
	}
	switch {
	case !float:
		return 0, false
	case slices.Contains(precise, node.Op), exact, n.rule.Keep(node, single):
		return Float, true
	case half, !single, slices.Contains(heavy, node.Op):
		return Float16, true
	}
	return Float, true
}

// outOfHalf reports whether a constant is lost in float16: too large, or too small for a normal number.
func (w *Weight) outOfHalf() bool {
	if w.payload != nil || w.DType != Float {
		return false
	}
	return slices.ContainsFunc(w.values(), func(v float32) bool {
		size := math.Abs(float64(v))
		return size > largestHalf || size != 0 && size < normalHalf
	})
}

// values are those of an inline float32 constant.
func (w *Weight) values() []float32 {
	values := make([]float32, 0, len(w.inline)/4)
	for raw := w.inline; len(raw) >= 4; raw = raw[4:] {
		values = append(values, math.Float32frombits(binary.LittleEndian.Uint32(raw)))
	}
	return values
}

// cast handles a Cast that the graph had: what it makes is what it says.
func (n *narrower) cast(node *Node) error {
	to, ok := node.attr("to")
	if !ok {
		return errors.New("it does not say to which type")
	}
	n.emit(node, DType(to))
	return nil
}

func (n *Node) attr(name string) (int64, bool) {
	for _, a := range n.Attrs {
		if v, ok := a.value.(int64); ok && a.Name == name {
			return v, true
		}
	}
	return 0, false
}

// as returns a value in another floating-point type. limit brings it into float16's range first, as the minus infinity of a
// mask has to be.
func (n *narrower) as(v *Value, to DType, limit bool) (*Value, error) {
	if n.types[v] == to {
		return v, nil
	}
	if w := n.weights[v]; w != nil && to == Float16 {
		return n.half(w)
	}
	key := castKey{v, to, limit && to == Float16}
	if made := n.casts[key]; made != nil {
		return made, nil
	}
	from := v
	if key.limit {
		from = n.add("Max", Float, v, n.constant(-largestHalf))
	}
	made := n.add("Cast", to, from)
	n.nodes[len(n.nodes)-1].Attrs = []Attr{Int("to", int64(to))}
	n.casts[key] = made
	return made, nil
}

// add appends a node of the new graph.
func (n *narrower) add(op string, out DType, inputs ...*Value) *Value {
	g := n.graph
	saved := g.Nodes
	v := g.Op(op, inputs)
	node := g.Nodes[len(g.Nodes)-1]
	g.Nodes = saved
	n.emit(node, out)
	return v
}

func (n *narrower) constant(v float32) *Value {
	made := n.graph.Scalar(v)
	if _, known := n.types[made]; !known {
		n.types[made], n.weights[made] = Float, n.graph.Weights[len(n.graph.Weights)-1]
	}
	return made
}

// half returns the float16 form of a weight.
func (n *narrower) half(w *Weight) (*Value, error) {
	if made := n.halves[w]; made != nil {
		return made.Value, nil
	}
	made := &Weight{Value: &Value{n.graph.unscoped(w.Value.name + ".float16")}, DType: Float16, Shape: w.Shape, output: w.output}
	switch p := w.payload.(type) {
	case nil:
		values := w.values()
		for i, v := range values {
			values[i] = min(max(v, -largestHalf), largestHalf)
		}
		made.inline = make([]byte, 2*len(values))
		n.rule.Round(made.inline, values)
	case Halver:
		made.payload = p.Half()
	default:
		return nil, fmt.Errorf("its weight %s (%v) has no float16 form", w.Value.name, p)
	}
	n.halves[w] = made
	n.types[made.Value] = Float16
	return made.Value, nil
}

// unscoped is unique without the open scope.
func (g *Graph) unscoped(name string) string {
	saved := g.scope
	g.scope = nil
	defer func() { g.scope = saved }()
	return g.unique(name)
}

// outputs gives the graph's outputs their types.
func (n *narrower) outputs() {
	for i := range n.graph.Outputs {
		p := &n.graph.Outputs[i]
		if p.DType != Float {
			continue
		}
		if n.rule.Port(p.Value.name) {
			p.DType = Float16
		}
		if n.types[p.Value] == p.DType {
			continue
		}
		name := p.Value.name
		p.Value.name = n.graph.unscoped(name + ".inner")
		p.Value = n.add("Cast", p.DType, p.Value)
		n.nodes[len(n.nodes)-1].Attrs = []Attr{Int("to", int64(p.DType))}
		p.Value.name = name
	}
}

// settleWeights keeps the weights that are used, in the order they were made. A weight that is used as float16 alone keeps
// its name.
func (n *narrower) settleWeights() {
	used := map[*Value]bool{}
	for _, node := range n.nodes {
		for _, in := range node.Inputs {
			used[in] = true
		}
	}
	for _, p := range n.graph.Outputs {
		used[p.Value] = true
	}
	var list []*Weight
	for _, w := range n.graph.Weights {
		half := n.halves[w]
		if used[w.Value] {
			list = append(list, w)
		} else if half != nil {
			half.Value.name = w.Value.name
		}
		if half != nil {
			list = append(list, half)
		}
	}
	n.graph.Weights = list
}
