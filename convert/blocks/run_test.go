package blocks_test

// A harness that builds a graph over weights given in the test, runs it in ONNX Runtime and returns its output.

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"glimpse/convert/blocks"
	"glimpse/convert/checkpoint"
	"glimpse/convert/onnx"
	"glimpse/graphs"
)

// array is a named float32 tensor of a test.
type array struct {
	shape []int64
	data  []float32
}

func size(shape []int64) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	return n
}

// random returns normal values, the same for the same seed.
func random(seed uint64, shape ...int64) array {
	r := rand.New(rand.NewPCG(seed, 7))
	a := array{shape: shape, data: make([]float32, size(shape))}
	for i := range a.data {
		a.data[i] = float32(r.NormFloat64())
	}
	return a
}

// account writes the arrays as a checkpoint and opens it.
func account(t *testing.T, weights map[string]array) *blocks.Tensors {
	t.Helper()
	var list []checkpoint.TensorData
	for name, a := range weights {
		raw := make([]byte, 4*len(a.data))
		for i, v := range a.data {
			binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(v))
		}
		list = append(list, checkpoint.TensorData{TensorInfo: checkpoint.TensorInfo{Name: name, DType: "F32", Shape: a.shape}, Data: raw})
	}
	path := filepath.Join(t.TempDir(), "model.safetensors")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkpoint.WriteSafetensors(f, list); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cp, err := checkpoint.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cp.Close() })
	tensors := blocks.NewTensors(cp)
	tensors.Bind(cp)
	return tensors
}

// run builds a graph, writes it, and runs it on inputs; the outputs come back by name. outputs gives their shapes.
func run(t *testing.T, tensors *blocks.Tensors, policy blocks.Policy, build func(b *blocks.Builder), inputs map[string]*graphs.Tensor, outputs map[string][]int64) map[string][]float32 {
	t.Helper()
	b := blocks.NewBuilder("test", tensors, policy)
	build(b)
	if p := tensors.Noted(); len(p) > 0 {
		t.Fatalf("problems: %v", p)
	}
	path := filepath.Join(t.TempDir(), "test.onnx")
	if _, err := b.Write(t.Context(), path, onnx.Options{Producer: "test"}); err != nil {
		t.Fatal(err)
	}
	rt := runtime(t)
	s, err := rt.Load(t.Context(), path, graphs.SessionOptions{Device: "cpu", Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	out := map[string]*graphs.Tensor{}
	for name, shape := range outputs {
		if out[name], err = rt.NewTensor(graphs.Float32, shape...); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { out[name].Close() })
	}
	if err := s.Run(t.Context(), inputs, out); err != nil {
		t.Fatal(err)
	}
	got := map[string][]float32{}
	for name, tensor := range out {
		got[name] = append([]float32(nil), tensor.Float32()...)
	}
	return got
}

func runtime(t *testing.T) *graphs.Runtime {
	t.Helper()
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close() })
	return rt
}

// tensor copies an array into ONNX Runtime's memory.
func tensor(t *testing.T, a array) *graphs.Tensor {
	t.Helper()
	x, err := runtime(t).FromFloat32(a.data, a.shape...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func ints(t *testing.T, data []int32, shape ...int64) *graphs.Tensor {
	t.Helper()
	x, err := runtime(t).FromInt32(data, shape...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func longs(t *testing.T, data []int64, shape ...int64) *graphs.Tensor {
	t.Helper()
	x, err := runtime(t).FromInt64(data, shape...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// close asserts that two slices agree within tolerance of the largest reference value.
func near(t *testing.T, what string, got []float32, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	largest, worst := 1e-9, 0.0
	for i := range want {
		largest = max(largest, math.Abs(want[i]))
		d := math.Abs(float64(got[i]) - want[i])
		if math.IsNaN(d) {
			t.Fatalf("%s: value %d is %v", what, i, got[i])
		}
		worst = max(worst, d)
	}
	if worst > tolerance*largest {
		t.Errorf("%s: differs by %.3g where values reach %.3g (tolerance %.3g of that)", what, worst, largest, tolerance)
	}
}

var fp32 = blocks.Policy{Asked: blocks.FP32}
