package onnx

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// filled is a payload whose outputs are all of one byte.
type filled struct {
	sizes []int64
	value byte
	short int64 // how much of the first output is left out
	err   error
}

func (f *filled) String() string { return "filled" }

func (f *filled) Produce(_ context.Context, sink Sink) error {
	for i, n := range f.sizes {
		if i == 0 {
			n -= f.short
		}
		if err := sink.WriteAt(i, bytes.Repeat([]byte{f.value}, int(n)), 0); err != nil {
			return err
		}
	}
	return f.err
}

// small returns a graph with a small and a large weight: y = x·a + b.
func small(p *filled) *Graph {
	g := NewGraph("small")
	x := g.Input("x", Float, Free("rows"), Fixed(4))
	w := g.AddPayload(p, WeightSpec{"weight", Float, []int64{4, 2000}}, WeightSpec{"bias", Float, []int64{3}})
	var y *Value
	g.Scope("layer", func() { y = g.Op("MatMul", []*Value{x, w[0]}) })
	g.Output("y", y, Float, Free("rows"), Fixed(2000))
	g.Output("bias_out", g.Op("Identity", []*Value{w[1]}), Float, Fixed(3))
	return g
}

func TestWriteLaysWeightsOutOnPages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.onnx")
	g := small(&filled{sizes: []int64{32000, 12}, value: 7})
	var written atomic.Int64
	res, err := g.Write(t.Context(), path, Options{Producer: "p", Version: "v", Written: func(n int64) { written.Add(n) }})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path + ".data")
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(data)) != res.DataBytes || g.DataBytes(nil) != res.DataBytes || res.DataFile != "m.onnx.data" {
		t.Errorf("%+v for a file of %d bytes", res, len(data))
	}
	if written.Load() != 32012 {
		t.Errorf("%d bytes were reported as written", written.Load())
	}
	extents, _ := g.layout(nil, "")
	for w, e := range extents {
		if w.Bytes() >= pageAlign && e.offset%pageAlign != 0 || e.offset%smallAlign != 0 {
			t.Errorf("%s of %d bytes starts at %d", w.Value.Name(), w.Bytes(), e.offset)
		}
	}
}

func TestWriteFindsAPayloadThatGivesTooLittle(t *testing.T) {
	for name, tc := range map[string]struct {
		payload *filled
		want    string
	}{
		"short":   {&filled{sizes: []int64{32000, 12}, short: 4}, "31996 bytes were produced where 32000 are due"},
		"long":    {&filled{sizes: []int64{32004, 12}}, "do not fit"},
		"surplus": {&filled{sizes: []int64{32000, 12, 1}}, "output 2 of 2"},
		"failing": {&filled{sizes: []int64{32000, 12}, err: errors.New("disk on fire")}, "disk on fire"},
	} {
		_, err := small(tc.payload).Write(t.Context(), filepath.Join(t.TempDir(), "m.onnx"), Options{})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

func TestWriteStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := small(&filled{sizes: []int64{32000, 12}}).Write(ctx, filepath.Join(t.TempDir(), "m.onnx"), Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestCheckNamesLooseEdges(t *testing.T) {
	g := NewGraph("g")
	x := g.Input("x", Float, Fixed(1))
	other := NewGraph("other").Input("elsewhere", Float, Fixed(1))
	y := g.Op("Add", []*Value{x, other})
	g.Output("y", y, Float, Fixed(1))
	_, err := g.Write(t.Context(), filepath.Join(t.TempDir(), "m.onnx"), Options{})
	if err == nil || !strings.Contains(err.Error(), "nothing before it makes its input elsewhere") {
		t.Fatalf("got %v", err)
	}
}

func TestNodeOutputsAreTheCallersOwn(t *testing.T) {
	g := NewGraph("g")
	x := g.Input("x", Float, Fixed(2))
	parts := g.Node("", "Split", 2, []*Value{x})
	first := parts[0]
	parts[0] = g.Op("Neg", []*Value{first})
	if g.Nodes[0].Outputs[0] != first {
		t.Error("writing into the slice that Node returned changed the node")
	}
}

func TestNamesAreScopedAndUnique(t *testing.T) {
	g := NewGraph("g")
	x := g.Input("x", Float, Fixed(1))
	var a, b *Value
	g.Scope("layers.0", func() { a = g.Op("Neg", []*Value{x}); b = g.Op("Neg", []*Value{x}) })
	if a.Name() != "layers.0.Neg:out" || b.Name() != "layers.0.Neg_2:out" {
		t.Errorf("names %q and %q", a.Name(), b.Name())
	}
	if one, two := g.Ints1(1, 2), g.Ints1(1, 2); one != two {
		t.Error("equal constants are stored twice")
	}
	if g.Ints1(1, 2) == g.Int64s([]int64{1, 2}, 1, 2) {
		t.Error("constants of different shapes are one")
	}
}

// TestModelIsTheFormatOfOnnxProto walks the written bytes by field number: what the writer means must be what a reader of
// onnx.proto sees.
func TestModelIsTheFormatOfOnnxProto(t *testing.T) {
	g := NewGraph("g")
	x := g.Input("x", Float, Free("n"))
	y := g.Contrib("QuickGelu", []*Value{x, None}, Float32("alpha", 1.5), Int("axis", -1), String("mode", "m"), Ints("perm", 1, 0))
	g.Output("y", y, Float, Free("n"))
	model := fields(t, encodeModel(g, "producer", "1", "", nil))
	if v := model[1][0].number; v != irVersion {
		t.Errorf("ir_version %d", v)
	}
	if string(model[2][0].bytes) != "producer" || len(model[8]) != 2 {
		t.Errorf("producer %q, %d opset imports", model[2][0].bytes, len(model[8]))
	}
	graph := fields(t, model[7][0].bytes)
	node := fields(t, graph[1][0].bytes)
	if string(node[4][0].bytes) != "QuickGelu" || string(node[7][0].bytes) != Microsoft || len(node[1]) != 1 {
		t.Errorf("node op %q domain %q with %d inputs", node[4][0].bytes, node[7][0].bytes, len(node[1]))
	}
	kinds := map[string]uint64{}
	for _, a := range node[5] {
		f := fields(t, a.bytes)
		kinds[string(f[1][0].bytes)] = f[20][0].number
	}
	for name, kind := range map[string]uint64{"alpha": 1, "axis": 2, "mode": 3, "perm": 7} {
		if kinds[name] != kind {
			t.Errorf("attribute %s has type %d, want %d", name, kinds[name], kind)
		}
	}
	port := fields(t, fields(t, fields(t, graph[11][0].bytes)[2][0].bytes)[1][0].bytes)
	if port[1][0].number != uint64(Float) || string(fields(t, fields(t, port[2][0].bytes)[1][0].bytes)[2][0].bytes) != "n" {
		t.Error("the input's type or shape is not where a reader looks")
	}
}

// field is one occurrence of a protobuf field.
type field struct {
	number uint64
	bytes  []byte
}

func fields(t *testing.T, raw []byte) map[protowire.Number][]field {
	t.Helper()
	out := map[protowire.Number][]field{}
	for len(raw) > 0 {
		num, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			t.Fatal("bad tag")
		}
		raw = raw[n:]
		var f field
		switch kind {
		case protowire.VarintType:
			f.number, n = protowire.ConsumeVarint(raw)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(raw)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(raw)
			f.number = uint64(v)
		default:
			t.Fatalf("field %d has wire type %d", num, kind)
		}
		if n < 0 {
			t.Fatalf("field %d is cut short", num)
		}
		raw = raw[n:]
		out[num] = append(out[num], f)
	}
	return out
}
