// Protobuf encoding of the messages of onnx.proto that graphs use. Field numbers are those of onnx.proto (IR version 10).

package onnx

import (
	"math"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// irVersion is ONNX IR version 10, the one of ONNX 1.16, which opset 21 belongs to.
const irVersion = 10

// External data of a weight: where its bytes lie in the data file.
type extent struct {
	offset, length int64
	file           string // of another graph, where its weight is the same; empty for the graph's own data file
}

func appendMessage(b []byte, field protowire.Number, body []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, body)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

func appendInt(b []byte, field protowire.Number, v int64) []byte {
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(v))
}

// encodeModel returns the ModelProto. dataFile is the name external weights refer to.
func encodeModel(g *Graph, producer, version, dataFile string, extents map[*Weight]extent) []byte {
	var b []byte
	b = appendInt(b, 1, irVersion)
	b = appendString(b, 2, producer)
	b = appendString(b, 3, version)
	b = appendMessage(b, 7, encodeGraph(g, dataFile, extents))
	b = appendMessage(b, 8, encodeOpset("", OpsetVersion))
	// Declared by every graph, since ONNX Runtime fuses operators of this domain into graphs of standard ones.
	b = appendMessage(b, 8, encodeOpset(Microsoft, 1))
	own := slices.ContainsFunc(g.Functions, func(f *Function) bool { return f.Domain == OwnDomain })
	if own {
		b = appendMessage(b, 8, encodeOpset(OwnDomain, 1))
	}
	for _, f := range g.Functions {
		b = appendMessage(b, 25, encodeFunction(f))
	}
	return b
}

// encodeFunction writes a FunctionProto.
func encodeFunction(f *Function) []byte {
	b := appendString(nil, 1, f.Body.Name)
	for _, p := range f.Body.Inputs {
		b = appendString(b, 4, p.Value.name)
	}
	for _, p := range f.Body.Outputs {
		b = appendString(b, 5, p.Value.name)
	}
	for _, n := range f.Body.Nodes {
		b = appendMessage(b, 7, encodeNode(n))
	}
	b = appendMessage(b, 9, encodeOpset("", OpsetVersion))
	if f.Body.uses(Microsoft) {
		b = appendMessage(b, 9, encodeOpset(Microsoft, 1))
	}
	return appendString(b, 10, f.Domain)
}

func encodeOpset(domain string, version int64) []byte {
	return appendInt(appendString(nil, 1, domain), 2, version)
}

func (g *Graph) uses(domain string) bool {
	for _, n := range g.Nodes {
		if n.Domain == domain {
			return true
		}
	}
	return false
}

func encodeGraph(g *Graph, dataFile string, extents map[*Weight]extent) []byte {
	var b []byte
	for _, n := range g.Nodes {
		b = appendMessage(b, 1, encodeNode(n))
	}
	b = appendString(b, 2, g.Name)
	for _, w := range g.Weights {
		b = appendMessage(b, 5, encodeTensor(w, dataFile, extents))
	}
	for _, p := range g.Inputs {
		b = appendMessage(b, 11, encodePort(p))
	}
	for _, p := range g.Outputs {
		b = appendMessage(b, 12, encodePort(p))
	}
	return b
}

func encodeNode(n *Node) []byte {
	var b []byte
	for _, v := range n.Inputs {
		b = appendString(b, 1, v.name)
	}
	for _, v := range n.Outputs {
		b = appendString(b, 2, v.name)
	}
	b = appendString(b, 3, n.Name)
	b = appendString(b, 4, n.Op)
	for _, a := range n.Attrs {
		b = appendMessage(b, 5, encodeAttr(a))
	}
	if n.Domain != "" {
		b = appendString(b, 7, n.Domain)
	}
	return b
}

// encodeAttr writes an AttributeProto; field 20 is the type that selects which value field holds.
func encodeAttr(a Attr) []byte {
	b := appendString(nil, 1, a.Name)
	switch v := a.value.(type) {
	case float32:
		b = protowire.AppendTag(b, 2, protowire.Fixed32Type)
		b = protowire.AppendFixed32(b, math.Float32bits(v))
		return appendInt(b, 20, 1)
	case int64:
		return appendInt(appendInt(b, 3, v), 20, 2)
	case string:
		return appendInt(appendString(b, 4, v), 20, 3)
	case []int64:
		for _, i := range v {
			b = appendInt(b, 8, i)
		}
		return appendInt(b, 20, 7)
	}
	panic("onnx: attribute " + a.Name + " has a value of no known type")
}

func encodeTensor(w *Weight, dataFile string, extents map[*Weight]extent) []byte {
	var b []byte
	for _, d := range w.Shape {
		b = appendInt(b, 1, d)
	}
	b = appendInt(b, 2, int64(w.DType))
	b = appendString(b, 8, w.Value.name)
	e, external := extents[w]
	if !external {
		b = protowire.AppendTag(b, 9, protowire.BytesType)
		return protowire.AppendBytes(b, w.inline)
	}
	if e.file != "" {
		dataFile = e.file
	}
	b = appendMessage(b, 13, encodeEntry("location", dataFile))
	b = appendMessage(b, 13, encodeEntry("offset", itoa(e.offset)))
	b = appendMessage(b, 13, encodeEntry("length", itoa(e.length)))
	return appendInt(b, 14, 1) // data_location = EXTERNAL
}

func encodeEntry(key, value string) []byte {
	return appendString(appendString(nil, 1, key), 2, value)
}

// encodePort writes ValueInfoProto{name, TypeProto{Tensor{elem_type, TensorShapeProto}}}.
func encodePort(p Port) []byte {
	var shape []byte
	for _, d := range p.Shape {
		var dim []byte
		if d.Name != "" {
			dim = appendString(nil, 2, d.Name)
		} else {
			dim = appendInt(nil, 1, d.Size)
		}
		shape = appendMessage(shape, 1, dim)
	}
	tensor := appendMessage(appendInt(nil, 1, int64(p.DType)), 2, shape)
	return appendMessage(appendString(nil, 1, p.Value.name), 2, appendMessage(nil, 1, tensor))
}
