package graphs_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"glimpse/convert/onnx"
	"glimpse/graphs"
	"glimpse/graphs/graphstest"
	"glimpse/graphs/kernels"
)

// TestConformanceStockKernels holds ONNX Runtime's own kernels to the suite where TestConformanceCPU runs ours.
func TestConformanceStockKernels(t *testing.T) {
	graphstest.Conformance(t, open(t), graphs.SessionOptions{Device: graphs.CPU, Threads: 1, StockKernels: true}, "testdata")
}

// made is a payload of bytes that a test made.
type made struct {
	name string
	data [][]byte
}

func (m *made) String() string { return m.name }
func (m *made) Produce(_ context.Context, sink onnx.Sink) error {
	for i, d := range m.data {
		if err := sink.WriteAt(i, d, 0); err != nil {
			return err
		}
	}
	return nil
}

func floats(values []float32) []byte {
	var raw []byte
	for _, v := range values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	return raw
}

// linear is one layer of a graph y = linear(x), whose weights are random.
type linear struct {
	k, n, bits, block int64 // block 0: RowLinear
	bias              bool
	half              bool // scales are float16's
}

func (l linear) String() string {
	if l.block == 0 {
		return fmt.Sprintf("rows k %d n %d bias %v", l.k, l.n, l.bias)
	}
	return fmt.Sprintf("%d bits blocks of %d k %d n %d bias %v", l.bits, l.block, l.k, l.n, l.bias)
}

func (l linear) write(t *testing.T) string {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(l.k), uint64(l.n)))
	g := onnx.NewGraph("linear")
	x := g.Input("x", onnx.Float, onnx.Free("rows"), onnx.Fixed(l.k))
	random := func(count int64, most float32) []float32 {
		values := make([]float32, count)
		for i := range values {
			values[i] = (r.Float32() + 0.1) * most
			if l.half {
				values[i] = math.Float32frombits(math.Float32bits(values[i]) &^ 0x1fff)
			}
		}
		return values
	}
	bias := onnx.None
	if l.bias {
		bias = g.AddPayload(&made{"bias", [][]byte{floats(random(l.n, 1))}}, onnx.WeightSpec{Name: "bias", DType: onnx.Float, Shape: []int64{l.n}})[0]
	}
	var y *onnx.Value
	if l.block == 0 {
		weights := make([]byte, l.n*l.k)
		for i := range weights {
			weights[i] = byte(int8(r.IntN(255) - 127))
		}
		w := g.AddPayload(&made{"weights", [][]byte{weights, floats(random(l.n, 0.01))}}, onnx.WeightSpec{Name: "w", DType: onnx.Int8, Shape: []int64{l.n, l.k}},
			onnx.WeightSpec{Name: "s", DType: onnx.Float, Shape: []int64{l.n}})
		if l.bias {
			y = g.Call(rowLinear(true), []*onnx.Value{x, w[0], w[1], bias})
		} else {
			y = g.Call(rowLinear(false), []*onnx.Value{x, w[0], w[1]})
		}
	} else {
		blocks := (l.k + l.block - 1) / l.block
		weights := make([]byte, l.n*blocks*l.block*l.bits/8)
		for i := range weights {
			weights[i] = byte(r.IntN(256))
		}
		w := g.AddPayload(&made{"weights", [][]byte{weights, floats(random(l.n*blocks, 0.01))}},
			onnx.WeightSpec{Name: "w", DType: onnx.Uint8, Shape: []int64{l.n, blocks, l.block * l.bits / 8}}, onnx.WeightSpec{Name: "s", DType: onnx.Float, Shape: []int64{l.n, blocks}})
		y = g.Contrib("MatMulNBits", []*onnx.Value{x, w[0], w[1], onnx.None, onnx.None, bias}, onnx.Int("K", l.k), onnx.Int("N", l.n), onnx.Int("bits", l.bits),
			onnx.Int("block_size", l.block), onnx.Int("accuracy_level", 4))
	}
	g.Output("y", y, onnx.Float, onnx.Free("rows"), onnx.Fixed(l.n))
	path := filepath.Join(t.TempDir(), "linear.onnx")
	if _, err := g.Write(t.Context(), path, onnx.Options{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// rowLinear is a definition of the function, as models carry one: what a runtime without a kernel computes.
func rowLinear(bias bool) *onnx.Function {
	name, parameters := "RowLinear", []string{"x", "weight", "scale"}
	if bias {
		name, parameters = "RowLinearBias", append(parameters, "bias")
	}
	return onnx.NewFunction(name, parameters, func(f *onnx.Graph, in []*onnx.Value) *onnx.Value {
		last := f.Op("Constant", nil, onnx.Ints("value_ints", -1))
		step := f.Op("Constant", nil, onnx.Float32("value_float", 1.0/127))
		largest := f.Op("ReduceMax", []*onnx.Value{f.Op("Abs", in[:1]), last}, onnx.Int("keepdims", 1))
		largest = f.Op("Max", []*onnx.Value{largest, f.Op("Constant", nil, onnx.Float32("value_float", 1e-30))})
		levels := f.Op("Round", []*onnx.Value{f.Op("Div", []*onnx.Value{f.Op("Div", []*onnx.Value{in[0], largest}), step})})
		weight := f.Op("Transpose", []*onnx.Value{f.Op("Cast", in[1:2], onnx.Int("to", int64(onnx.Float)))}, onnx.Ints("perm", 1, 0))
		y := f.Op("Mul", []*onnx.Value{f.Op("Mul", []*onnx.Value{f.Op("MatMul", []*onnx.Value{levels, weight}), in[2]}), f.Op("Mul", []*onnx.Value{largest, step})})
		if bias {
			y = f.Op("Add", []*onnx.Value{y, in[3]})
		}
		return y
	})
}

func runLinear(t *testing.T, rt *graphs.Runtime, path string, options graphs.SessionOptions, x []float32, k, n int64) []float32 {
	t.Helper()
	session, err := rt.Load(t.Context(), path, options)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	return runRows(t, rt, session, x, k, n)
}

func runRows(t *testing.T, rt *graphs.Runtime, session *graphs.Session, x []float32, k, n int64) []float32 {
	t.Helper()
	rows := int64(len(x)) / k
	in, err := rt.FromFloat32(x, rows, k)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := rt.NewTensor(graphs.Float32, rows, n)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := session.Run(t.Context(), map[string]*graphs.Tensor{"x": in}, map[string]*graphs.Tensor{"y": out}); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(out.Float32())
}

// Our kernels find what ONNX Runtime's find, in all shapes and with every number of rows, and a row the same to the last bit
// whatever rows are computed with it.
func TestKernelsOfLinearLayers(t *testing.T) {
	if kernels.This() == 0 {
		t.Skip("no kernels of ours for this processor")
	}
	rt := open(t)
	layers := []linear{{256, 96, 4, 32, false, false}, {256, 50, 4, 128, true, false}, {96, 48, 4, 32, true, false}, {160, 33, 4, 64, false, false}, {1000, 40, 4, 256, false, false}, {90, 17, 8, 64, false, false},
		{2112, 64, 4, 32, false, false}, {2112, 64, 4, 128, true, false}, {256, 96, 8, 32, true, false}, {512, 72, 8, 128, false, false}, {1000, 40, 8, 256, false, false},
		{256, 96, 0, 0, true, false}, {64, 16, 0, 0, false, false}, {70, 33, 0, 0, true, false}, {70, 5, 0, 0, false, false}, {1152, 200, 0, 0, true, false}, {2100, 64, 0, 0, false, false}}
	for _, l := range layers {
		t.Run(l.String(), func(t *testing.T) {
			path := l.write(t)
			session, err := rt.Load(t.Context(), path, graphs.SessionOptions{Threads: 2})
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			plain, err := rt.Load(t.Context(), path, graphs.SessionOptions{Threads: 2, WithoutTiles: true})
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			for _, rows := range []int64{1, 2, 3, 4, 15, 16, 17, 33, 70} {
				x := randomRows(rows, l.k)
				ours := runRows(t, rt, session, x, l.k, l.n)
				if !slices.Equal(ours, runRows(t, rt, plain, x, l.k, l.n)) {
					t.Fatalf("%d rows differ with and without tiles", rows)
				}
				compareRows(t, ours, runLinear(t, rt, path, graphs.SessionOptions{Threads: 1, StockKernels: true}, x, l.k, l.n), l.n)
				for r := range rows {
					if alone := runRows(t, rt, session, x[r*l.k:(r+1)*l.k], l.k, l.n); !slices.Equal(alone, ours[r*l.n:(r+1)*l.n]) {
						t.Fatalf("row %d of %d differs from the same row alone", r, rows)
					}
				}
			}
		})
	}
}

// Packed weights give the same results to the last bit, whenever in the middle of runs they come.
func TestPackedWeightsChangeNothing(t *testing.T) {
	if kernels.This() == 0 {
		t.Skip("no kernels of ours for this processor")
	}
	rt := open(t)
	for _, l := range []linear{{256, 96, 4, 32, false, false}, {1000, 40, 4, 256, true, false}, {90, 17, 8, 64, false, false}, {2112, 70, 4, 128, true, false}, {200, 33, 4, 64, false, false},
		{256, 96, 4, 32, false, true}, {2112, 70, 4, 128, true, true}, {90, 17, 8, 64, false, true}} {
		path := l.write(t)
		plain, err := rt.Load(t.Context(), path, graphs.SessionOptions{Threads: 2})
		if err != nil {
			t.Fatal(err)
		}
		packed, err := rt.Load(t.Context(), path, graphs.SessionOptions{Threads: 2, PackWeights: true})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			x := randomRows(int64(i%20)+1, l.k)
			if !slices.Equal(runRows(t, rt, plain, x, l.k, l.n), runRows(t, rt, packed, x, l.k, l.n)) {
				t.Fatalf("%s: run %d of %d rows differs", l, i, i%20+1)
			}
			time.Sleep(time.Millisecond)
		}
		if err := errors.Join(packed.Close(), packed.Close(), plain.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// randomRows has rows of very different size, and one of zeros.
func randomRows(rows, k int64) []float32 {
	r := rand.New(rand.NewPCG(uint64(rows), 3))
	x := make([]float32, rows*k)
	for i := range x {
		x[i] = float32(r.NormFloat64() * math.Pow(10, float64(int64(i)/k%5)-2))
	}
	if rows > 2 {
		clear(x[k : 2*k])
	}
	return x
}

func compareRows(t *testing.T, ours, stock []float32, n int64) {
	t.Helper()
	for r := 0; r < len(ours); r += int(n) {
		var largest, off float64
		for i := r; i < r+int(n); i++ {
			largest = max(largest, math.Abs(float64(stock[i])))
			off = max(off, math.Abs(float64(ours[i]-stock[i])))
			if math.IsNaN(float64(ours[i] - stock[i])) {
				off = math.Inf(1)
			}
		}
		// A quantized activation in the middle of two levels may go to either: one level of 127, in one of many columns.
		if off > 2e-3*largest {
			t.Fatalf("row %d differs by %g where values reach %g", r/int(n), off, largest)
		}
	}
}

// What is no number, or without bounds, stays visible in its row, and there alone: it has no level of int8 to hide behind.
func TestKernelsKeepWhatIsNoNumber(t *testing.T) {
	if kernels.This() == 0 {
		t.Skip("no kernels of ours for this processor")
	}
	rt := open(t)
	for _, l := range []linear{{256, 48, 4, 32, true, false}, {256, 48, 4, 128, false, false}, {256, 48, 8, 64, false, false}, {256, 48, 0, 0, true, false}} {
		for _, rows := range []int64{1, 3, 20} {
			for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
				x := randomRows(rows, l.k)
				x[(rows-1)*l.k+77] = float32(bad)
				for i, y := range runLinear(t, rt, l.write(t), graphs.SessionOptions{Threads: 1}, x, l.k, l.n) {
					if last := int64(i) >= (rows-1)*l.n; math.IsNaN(float64(y)) != last {
						t.Fatalf("%s, %v in row %d of %d: row %d has %v", l, bad, rows-1, rows, int64(i)/l.n, y)
					}
				}
			}
		}
	}
}
