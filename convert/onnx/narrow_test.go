package onnx

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"
)

// truncated writes float16 of small whole numbers, and the largest float16.
func truncated(dst []byte, values []float32) {
	for i, v := range values {
		bits := math.Float32bits(v)
		half := uint16(bits>>16&0x8000) | uint16((bits&0x7fffffff)>>13-112<<10)
		if v == 0 {
			half = 0
		}
		binary.LittleEndian.PutUint16(dst[2*i:], half)
	}
}

// halved is filled with a float16 form.
type halved struct{ filled }

func (h *halved) String() string { return "halved" }
func (h *halved) Half() Payload  { return &filled{sizes: []int64{h.sizes[0] / 2}, value: h.value} }

func all() Narrowing {
	return Narrowing{Keep: func(*Node, bool) bool { return false }, Port: func(name string) bool { return strings.HasPrefix(name, "cache") }, Round: truncated}
}

func text(t *testing.T, g *Graph) string {
	t.Helper()
	if err := g.check(); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := g.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func has(t *testing.T, graph string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(graph, l) {
			t.Errorf("no line %q in\n%s", l, graph)
		}
	}
}

// Ports stay float32 but for caches; casts stand at the edges, once for each value; an output that is used inside keeps its name
// outside.
func TestNarrowEdges(t *testing.T) {
	g := NewGraph("edges")
	x, cache := g.Input("x", Float, Free("rows"), Fixed(4)), g.Input("cache_in", Float, Free("rows"), Fixed(4))
	w := g.AddPayload(&halved{filled{sizes: []int64{64}, value: 1}}, WeightSpec{"w", Float, []int64{4, 4}})[0]
	y := g.Op("Gemm", []*Value{x, w})
	z := g.Op("Gemm", []*Value{x, w})
	g.Output("y", y, Float, Free("rows"), Fixed(4))
	g.Output("cache_out", g.Op("Add", []*Value{g.Op("Add", []*Value{y, z}), cache}), Float, Free("rows"), Fixed(4))
	if err := g.Narrow(all()); err != nil {
		t.Fatal(err)
	}
	got := text(t, g)
	has(t, got, "input  x float32", "input  cache_in float16", "output y float32", "output cache_out float16", "weight w float16[4 4]",
		"Cast:out = Cast(x) {to=10}", "y.inner = Gemm(Cast:out, w)", "Add:out = Add(y.inner, ", "y = Cast(y.inner) {to=1}")
	if n := strings.Count(got, "Cast(x)"); n != 1 {
		t.Errorf("x is cast %d times", n)
	}
}

// What float16 cannot hold stays float32: small divisors, small and large constants, and what the rule keeps. A weight that is
// used as both is stored as both.
func TestNarrowKeeps(t *testing.T) {
	g := NewGraph("keeps")
	x := g.Input("x", Float, Free("rows"), Fixed(4))
	w := g.AddPayload(&halved{filled{sizes: []int64{64}, value: 1}}, WeightSpec{"w", Float, []int64{4, 4}})[0]
	y := g.Op("Gemm", []*Value{x, w})
	length := g.Op("Max", []*Value{g.Op("ReduceL2", []*Value{y}), g.Scalar(1e-12)})
	unit := g.Op("Div", []*Value{y, length})
	g.Output("unit", unit, Float, Free("rows"), Fixed(4))
	kept := g.Node("", "Gemm", 1, []*Value{unit, w}, Int("kept", 1))[0]
	g.Output("kept", kept, Float, Free("rows"), Fixed(4))
	rule := all()
	rule.Keep = func(n *Node, _ bool) bool { _, ok := n.attr("kept"); return ok }
	if err := g.Narrow(rule); err != nil {
		t.Fatal(err)
	}
	got := text(t, g)
	has(t, got, "ReduceL2(Cast_2:out)", "Max(ReduceL2:out, const.f32)", "unit = Div(Cast_2:out, Max:out)", "kept = Gemm(unit, w) {kept=1}",
		"weight w float32[4 4]", "weight w.float16 float16[4 4]", "weight const.f32 float32")
}

// A mask's lowest number is brought into range: minus infinity in a row that is all mask makes NaN.
func TestNarrowMasks(t *testing.T) {
	g := NewGraph("masks")
	q := g.Input("q", Float, Free("b"), Free("s"), Fixed(4))
	seen, mask := g.Input("seen", Bool, Free("b"), Fixed(1), Fixed(1), Fixed(2)), g.Input("mask", Float, Free("b"), Fixed(1), Fixed(1), Fixed(2))
	attend := func(bias *Value) *Value {
		return g.Contrib("MultiHeadAttention", []*Value{q, q, q, None, None, bias}, Int("num_heads", 1))
	}
	a := attend(g.Op("Where", []*Value{seen, g.Scalar(0), g.Scalar(-3.4e38)}))
	b := attend(g.Op("Mul", []*Value{mask, g.Scalar(-3.4e38)}))
	g.Output("sum", g.Op("Add", []*Value{a, b}), Float, Free("b"), Free("s"), Fixed(4))
	if err := g.Narrow(all()); err != nil {
		t.Fatal(err)
	}
	got := text(t, g)
	has(t, got, "weight const.f32_2.float16 float16[] = inline fffb", // −65504
		"Mul(mask, const.f32_2)", "Max:out = Max(Mul:out, const.f32_3)", "Cast_2:out = Cast(Max:out) {to=10}")
}

// Whatever is not known is an error that names the node: nothing passes through with a guessed type.
func TestNarrowRefuses(t *testing.T) {
	g := NewGraph("refused")
	x := g.Input("x", Float, Free("rows"), Fixed(4))
	g.Scope("layer", func() { x = g.Op("Sinh", []*Value{x}) })
	w := g.AddPayload(&filled{sizes: []int64{64}}, WeightSpec{"w", Float, []int64{4, 4}})[0]
	g.Output("y", g.Op("Gemm", []*Value{x, w}), Float, Free("rows"), Fixed(4))
	err := g.Narrow(all())
	for _, want := range []string{"layer.Sinh (Sinh)", "Gemm (Gemm)", "weight w", "no float16 form"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not say %q", err, want)
		}
	}
}
