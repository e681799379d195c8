package graphs_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"glimpse/convert/onnx"
	"glimpse/graphs"
	"glimpse/graphs/kernels"
)

// openAttention is a graph of MultiHeadAttention without a mask, or with a length for each row's keys; quantized puts an int8 layer beside it.
type openAttention struct {
	heads, dim         int64
	lengths, quantized bool
}

func (a openAttention) write(t *testing.T) string {
	t.Helper()
	g := onnx.NewGraph("attention")
	width := a.heads * a.dim
	var in []*onnx.Value
	for _, name := range []string{"q", "k", "v"} {
		length := "keys"
		if name == "q" {
			length = "queries"
		}
		in = append(in, g.Input(name, onnx.Float, onnx.Free("batch"), onnx.Free(length), onnx.Fixed(width)))
	}
	in = append(in, onnx.None)
	if a.lengths {
		in = append(in, g.Input("lengths", onnx.Int32, onnx.Free("batch")))
	}
	y := g.Contrib("MultiHeadAttention", in, onnx.Int("num_heads", a.heads))
	if a.quantized { // adds zeros, by a layer whose weights are zero
		w := g.AddPayload(&made{"weights", [][]byte{make([]byte, width*width), floats(make([]float32, width))}},
			onnx.WeightSpec{Name: "w", DType: onnx.Int8, Shape: []int64{width, width}}, onnx.WeightSpec{Name: "s", DType: onnx.Float, Shape: []int64{width}})
		y = g.Op("Add", []*onnx.Value{y, g.Call(rowLinear(false), []*onnx.Value{in[0], w[0], w[1]})})
	}
	g.Output("y", y, onnx.Float, onnx.Free("batch"), onnx.Free("queries"), onnx.Fixed(width))
	path := filepath.Join(t.TempDir(), "attention.onnx")
	if _, err := g.Write(t.Context(), path, onnx.Options{}); err != nil {
		t.Fatal(err)
	}
	return path
}

func (a openAttention) run(t *testing.T, rt *graphs.Runtime, path string, stock bool, batch, queries, keys int64) []float32 {
	t.Helper()
	session, err := rt.Load(t.Context(), path, graphs.SessionOptions{Threads: 2, StockKernels: stock})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	r := rand.New(rand.NewPCG(uint64(queries), uint64(keys)))
	in := map[string]*graphs.Tensor{}
	for _, name := range []string{"q", "k", "v"} {
		length := keys
		if name == "q" {
			length = queries
		}
		x := make([]float32, batch*length*a.heads*a.dim)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		if in[name], err = rt.FromFloat32(x, batch, length, a.heads*a.dim); err != nil {
			t.Fatal(err)
		}
		defer in[name].Close()
	}
	if a.lengths {
		lengths := make([]int32, batch)
		for i := range lengths {
			lengths[i] = max(1, int32(keys)-int32(i)*7)
		}
		if in["lengths"], err = rt.FromInt32(lengths, batch); err != nil {
			t.Fatal(err)
		}
		defer in["lengths"].Close()
	}
	out, err := rt.NewTensor(graphs.Float32, batch, queries, a.heads*a.dim)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := session.Run(t.Context(), in, map[string]*graphs.Tensor{"y": out}); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(out.Float32())
}

// Attention without a mask is that of ONNX Runtime, to float32's precision, and among quantized layers to 16 bits of its factors.
func TestKernelsOfOpenAttention(t *testing.T) {
	if kernels.This()&kernels.AMX == 0 {
		t.Skip("no attention of ours for this processor")
	}
	rt := open(t)
	for _, a := range []openAttention{{4, 64, false, false}, {2, 80, true, false}, {3, 24, false, false}, {2, 128, true, true}, {4, 64, false, true}, {1, 256, false, false}} {
		t.Run(fmt.Sprintf("%+v", a), func(t *testing.T) {
			path := a.write(t)
			limit := 4e-6
			if a.quantized {
				limit = 1e-4
			}
			for _, size := range [][3]int64{{1, 1, 1}, {1, 17, 33}, {3, 40, 150}, {2, 300, 577}, {5, 1, 129}} {
				ours, stock := a.run(t, rt, path, false, size[0], size[1], size[2]), a.run(t, rt, path, true, size[0], size[1], size[2])
				for i := range ours {
					if d := math.Abs(float64(ours[i] - stock[i])); !(d <= limit) {
						t.Fatalf("batch %d, %d queries, %d keys: element %d is %g, ONNX Runtime's %g", size[0], size[1], size[2], i, ours[i], stock[i])
					}
				}
			}
		})
	}
}
