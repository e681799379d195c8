// Package onnx holds an ONNX graph under construction, prints it as text for review, and writes it as a .onnx file
// with external data.
//
// A graph is symbolic: its weights are payloads that know their shape and how to produce their bytes, and nothing is
// read until Write. That is what lets a 7B model be planned in milliseconds and written with a few megabytes of memory.
//
// What must stay true: the same calls in the same order give the same bytes. Names are derived from scopes and
// counters of the graph alone; no maps are ranged over, no clock and no randomness are used.
package onnx

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
)

// DType is an element type, numbered as in TensorProto.DataType.
type DType int32

// The element types that graphs of this project use.
const (
	Float    DType = 1
	Uint8    DType = 2
	Int8     DType = 3
	Int32    DType = 6
	Int64    DType = 7
	Bool     DType = 9
	Float16  DType = 10
	BFloat16 DType = 16
)

// Size returns the bytes of one element.
func (t DType) Size() int64 {
	switch t {
	case Uint8, Int8, Bool:
		return 1
	case Float16, BFloat16:
		return 2
	case Float, Int32:
		return 4
	case Int64:
		return 8
	}
	panic(fmt.Sprintf("onnx: element type %d has no size", int32(t)))
}

// String returns the type's name as manifests write it.
func (t DType) String() string {
	switch t {
	case Float:
		return "float32"
	case Uint8:
		return "uint8"
	case Int8:
		return "int8"
	case Int32:
		return "int32"
	case Int64:
		return "int64"
	case Bool:
		return "bool"
	case Float16:
		return "float16"
	case BFloat16:
		return "bfloat16"
	}
	return fmt.Sprintf("dtype(%d)", int32(t))
}

// Microsoft is the operator domain of ONNX Runtime's contributed operators.
const Microsoft = "com.microsoft"

// OpsetVersion is the version of the standard operator set that graphs declare.
const OpsetVersion = 21

// Value is an edge of a graph: an input, a weight, or the output of a node. The zero name stands for an optional input
// that is not given.
type Value struct{ name string }

// None is the optional input that is not given.
var None = &Value{}

// Name returns the value's name in the graph.
func (v *Value) Name() string { return v.name }

// Dim is one dimension of a port: a size, or a name for what varies between runs.
type Dim struct {
	Size int64
	Name string
}

// Fixed is a dimension of a known size.
func Fixed[N int | int64](n N) Dim { return Dim{Size: int64(n)} }

// Free is a dimension that varies between runs; equal names mean equal sizes.
func Free(name string) Dim { return Dim{Name: name} }

func (d Dim) String() string {
	if d.Name != "" {
		return d.Name
	}
	return fmt.Sprint(d.Size)
}

// Port is an input or output of the graph.
type Port struct {
	Value *Value
	DType DType
	Shape []Dim
}

// Attr is an attribute of a node. Exactly one of the constructors below makes it.
type Attr struct {
	Name  string
	value any // int64, float32, string, []int64
}

// Int, Float32, String and Ints make attributes.
func Int[N int | int64](name string, v N) Attr { return Attr{name, int64(v)} }
func Float32(name string, v float32) Attr      { return Attr{name, v} }
func String(name, v string) Attr               { return Attr{name, v} }
func Ints(name string, v ...int64) Attr        { return Attr{name, v} }
func (a Attr) text() string                    { return fmt.Sprintf("%s=%v", a.Name, a.value) }

// Node is one operator.
type Node struct {
	Op      string
	Domain  string // "" is the standard operator set
	Name    string
	Inputs  []*Value
	Outputs []*Value
	Attrs   []Attr
}

// Payload produces the bytes of one or more weights in one pass over their source. Produce writes every byte of every
// output exactly once, in any order, little-endian and row-major; it may be called from any goroutine and must not keep
// more than a few chunks in memory. String says what it is made of, for the text form of the graph.
type Payload interface {
	Produce(ctx context.Context, sink Sink) error
	String() string
}

// Sink takes the bytes of a payload's outputs.
type Sink interface {
	// WriteAt writes p at the byte offset of the payload's output-th weight.
	WriteAt(output int, p []byte, offset int64) error
}

// Weight is an initializer: inline bytes, or one output of a payload.
type Weight struct {
	Value   *Value
	DType   DType
	Shape   []int64
	inline  []byte
	payload Payload
	output  int
}

// Bytes returns the size of the weight's data.
func (w *Weight) Bytes() int64 {
	n := w.DType.Size()
	for _, d := range w.Shape {
		n *= d
	}
	return n
}

// Graph is an ONNX graph under construction. It is not safe for concurrent use.
type Graph struct {
	Name    string
	Inputs  []Port
	Outputs []Port
	Nodes   []*Node
	Weights []*Weight

	Functions []*Function // that nodes call, in the order of their first use

	scope  []string
	taken  map[string]bool
	inline map[string]*Value // constants by content, so that equal ones are stored once
}

// NewGraph returns an empty graph.
func NewGraph(name string) *Graph {
	return &Graph{Name: name, taken: map[string]bool{}, inline: map[string]*Value{}}
}

// Scope runs build with name appended to the prefix of every name made inside, as module paths are in a checkpoint.
func (g *Graph) Scope(name string, build func()) {
	g.scope = append(g.scope, name)
	defer func() { g.scope = g.scope[:len(g.scope)-1] }()
	build()
}

// Path is the open scopes' names, joined by dots.
func (g *Graph) Path() string { return strings.Join(g.scope, ".") }

// unique returns the scoped name, with a number behind it when it is already used.
func (g *Graph) unique(base string) string {
	name := strings.Join(append(g.scope[:len(g.scope):len(g.scope)], base), ".")
	candidate := name
	for i := 2; g.taken[candidate]; i++ {
		candidate = fmt.Sprintf("%s_%d", name, i)
	}
	g.taken[candidate] = true
	return candidate
}

// claim reserves a name that must be exact.
func (g *Graph) claim(name string) {
	if g.taken[name] {
		panic(fmt.Sprintf("onnx: graph %s: the name %q is used twice", g.Name, name))
	}
	g.taken[name] = true
}

// Input adds a graph input with exactly this name.
func (g *Graph) Input(name string, dtype DType, shape ...Dim) *Value {
	g.claim(name)
	v := &Value{name}
	g.Inputs = append(g.Inputs, Port{v, dtype, shape})
	return v
}

// Output makes v a graph output with exactly this name, renaming it.
func (g *Graph) Output(name string, v *Value, dtype DType, shape ...Dim) {
	for _, in := range g.Inputs {
		if in.Value == v {
			v = g.Op("Identity", []*Value{v})
		}
	}
	g.claim(name)
	v.name = name
	g.Outputs = append(g.Outputs, Port{v, dtype, shape})
}

// Op adds a node of the standard operator set with one output.
func (g *Graph) Op(op string, inputs []*Value, attrs ...Attr) *Value {
	return g.Node("", op, 1, inputs, attrs...)[0]
}

// Contrib adds a node of ONNX Runtime's com.microsoft domain with one output.
func (g *Graph) Contrib(op string, inputs []*Value, attrs ...Attr) *Value {
	return g.Node(Microsoft, op, 1, inputs, attrs...)[0]
}

// Node adds a node with n outputs. Trailing inputs that are None are dropped, as ONNX asks.
func (g *Graph) Node(domain, op string, n int, inputs []*Value, attrs ...Attr) []*Value {
	for len(inputs) > 0 && inputs[len(inputs)-1] == None {
		inputs = inputs[:len(inputs)-1]
	}
	node := &Node{Op: op, Domain: domain, Name: g.unique(op), Inputs: inputs, Attrs: attrs}
	for i := range n {
		suffix := ""
		if n > 1 {
			suffix = fmt.Sprintf(".%d", i)
		}
		node.Outputs = append(node.Outputs, &Value{node.Name + ":out" + suffix})
	}
	g.Nodes = append(g.Nodes, node)
	return slices.Clone(node.Outputs) // the caller may write into its own
}

// Function is an operator that the model file defines itself, by a graph of others: a runtime that has a kernel for it uses that, any
// other one computes the body. It has no attributes and no weights.
type Function struct {
	Domain string
	Body   *Graph // its name is the operator's, its ports' names the parameters
}

// OwnDomain is the domain of functions that graphs of this project define.
const OwnDomain = "glimpse"

// NewFunction returns a function whose body is built over its parameters.
func NewFunction(name string, parameters []string, build func(body *Graph, in []*Value) *Value) *Function {
	body := NewGraph(name)
	in := make([]*Value, len(parameters))
	for i, p := range parameters {
		in[i] = body.Input(p, 0)
	}
	body.Output("y", build(body, in), 0)
	return &Function{OwnDomain, body}
}

// Call adds a node that is the function's result.
func (g *Graph) Call(f *Function, inputs []*Value) *Value {
	if !slices.Contains(g.Functions, f) {
		g.Functions = append(g.Functions, f)
	}
	return g.Node(f.Domain, f.Body.Name, 1, inputs)[0]
}

// Drop marks an output of a node as not wanted: it gets the empty name that ONNX uses for optional outputs.
func (v *Value) Drop() { v.name = "" }

// WeightSpec describes one output of a payload.
type WeightSpec struct {
	Name  string // below the current scope
	DType DType
	Shape []int64
}

// AddPayload adds the weights that one payload produces, in the order of its outputs.
func (g *Graph) AddPayload(p Payload, specs ...WeightSpec) []*Value {
	values := make([]*Value, len(specs))
	for i, s := range specs {
		values[i] = &Value{g.unique(s.Name)}
		g.Weights = append(g.Weights, &Weight{Value: values[i], DType: s.DType, Shape: s.Shape, payload: p, output: i})
	}
	return values
}

// Int64s adds a small constant; equal constants are shared.
func (g *Graph) Int64s(shape []int64, data ...int64) *Value {
	raw := make([]byte, 0, 8*len(data))
	for _, d := range data {
		raw = appendUint64(raw, uint64(d))
	}
	return g.constant("i64", Int64, shape, raw)
}

// Int32s is Int64s in int32.
func (g *Graph) Int32s(shape []int64, data ...int32) *Value {
	raw := make([]byte, 0, 4*len(data))
	for _, d := range data {
		raw = appendUint32(raw, uint32(d))
	}
	return g.constant("i32", Int32, shape, raw)
}

// Ints1 is a one-dimensional int64 constant.
func (g *Graph) Ints1(data ...int64) *Value { return g.Int64s([]int64{int64(len(data))}, data...) }

// Scalar is a float32 constant without dimensions.
func (g *Graph) Scalar(v float32) *Value {
	return g.constant("f32", Float, nil, appendUint32(nil, math.Float32bits(v)))
}

// Uint8 is a uint8 constant without dimensions.
func (g *Graph) Uint8(v uint8) *Value { return g.constant("u8", Uint8, nil, []byte{v}) }

// Float32s adds a small float32 constant; equal constants are shared.
func (g *Graph) Float32s(shape []int64, data ...float32) *Value {
	raw := make([]byte, 0, 4*len(data))
	for _, d := range data {
		raw = appendUint32(raw, math.Float32bits(d))
	}
	return g.constant("f32", Float, shape, raw)
}

func (g *Graph) constant(kind string, dtype DType, shape []int64, raw []byte) *Value {
	key := fmt.Sprint(kind, shape, raw)
	if v, ok := g.inline[key]; ok {
		return v
	}
	// Constants are shared across scopes, so their names carry none.
	saved := g.scope
	g.scope = nil
	v := &Value{g.unique("const." + kind)}
	g.scope = saved
	g.Weights = append(g.Weights, &Weight{Value: v, DType: dtype, Shape: shape, inline: raw})
	g.inline[key] = v
	return v
}

func appendUint32(b []byte, v uint32) []byte {
	return append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
}

func appendUint64(b []byte, v uint64) []byte {
	return appendUint32(appendUint32(b, uint32(v)), uint32(v>>32))
}
