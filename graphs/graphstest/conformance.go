// Package graphstest holds what every device that package graphs can load a
// session for must do. The tests of a device call Conformance.
package graphstest

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"glimpse/graphs"
)

// suite is the device under test and the graphs it runs.
type suite struct {
	runtime *graphs.Runtime
	options graphs.SessionOptions
	models  string
	cache   cache // of the attention under test
}

// Conformance runs the suite with sessions loaded with the given options. models
// is the folder graphs/testdata.
func Conformance(t *testing.T, runtime *graphs.Runtime, options graphs.SessionOptions, models string) {
	s := &suite{runtime: runtime, options: options, models: models}
	t.Run("ports", s.ports)
	t.Run("every element type", s.elementTypes)
	t.Run("float16 outputs are whole", func(t *testing.T) { s.halves(t, "float16", 11, float16Value) })
	t.Run("bfloat16 outputs are whole", func(t *testing.T) { s.halves(t, "bfloat16", 8, bfloat16Value) })
	t.Run("scalars", s.scalars)
	t.Run("empty tensors", s.empty)
	t.Run("external data", s.externalData)
	t.Run("reshaped tensors", s.reshape)
	t.Run("a step runs again and again", s.step)
	t.Run("chosen outputs", s.chosenOutputs)
	t.Run("many goroutines", s.goroutines)
	t.Run("cancellation", s.cancellation)
	t.Run("attention", func(t *testing.T) {
		s.attention(t, cache{model: "attention.onnx", dtype: graphs.Float32, accuracy: singleAccuracy})
	})
	t.Run("attention in float16", func(t *testing.T) {
		s.attention(t, cache{model: "attention_half.onnx", dtype: graphs.Float16, accuracy: halfAccuracy})
	})
	t.Run("attention over a cache on the device", func(t *testing.T) {
		memory, err := s.load(t, "attention_half.onnx").Memory()
		must(t, err)
		if memory == nil {
			t.Skip("the device computes in ordinary memory")
		}
		s.attention(t, cache{model: "attention_half.onnx", dtype: graphs.Float16, memory: memory, accuracy: halfAccuracy})
	})
	t.Run("memory of the device", func(t *testing.T) {
		memory, err := s.load(t, "add.onnx").Memory()
		must(t, err)
		if memory == nil {
			t.Skip("the device computes in ordinary memory")
		}
		s.memory(t, memory)
	})
	t.Run("out of memory", s.outOfMemory)
}

func (s *suite) load(t *testing.T, name string) *graphs.Session {
	t.Helper()
	session, err := s.runtime.Load(t.Context(), filepath.Join(s.models, name), s.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, session.Close()) })
	return session
}

func (s *suite) tensor(t *testing.T, dtype graphs.DType, shape ...int64) *graphs.Tensor {
	t.Helper()
	tensor, err := s.runtime.NewTensor(dtype, shape...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, tensor.Close()) })
	return tensor
}

func (s *suite) float32(t *testing.T, data []float32, shape ...int64) *graphs.Tensor {
	t.Helper()
	tensor := s.tensor(t, graphs.Float32, shape...)
	if copy(tensor.Float32(), data) != tensor.Len() {
		t.Fatalf("%d values for %v", len(data), tensor)
	}
	return tensor
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%s: %v, want %v", what, got, want)
			return
		}
	}
}

type named = map[string]*graphs.Tensor

func (s *suite) ports(t *testing.T) {
	session := s.load(t, "attention.onnx")
	want := []string{
		"qkv float32[tokens, 128]", "row_map int64[batch, sequence]", "token_map int64[tokens]", "seqlens_k int32[batch]",
		"query_seqlens int32[batch]", "total_sequence_length int32[]", "rope_cos float32[positions, 8]",
		"rope_sin float32[positions, 8]", "past_key float32[batch, 2, capacity, 16]", "past_value float32[batch, 2, capacity, 16]",
	}
	var got []string
	for _, port := range session.Inputs() {
		got = append(got, port.String())
	}
	equal(t, "inputs", got, want)
	if n := len(session.Outputs()); n != 3 {
		t.Errorf("%d outputs, want 3", n)
	}
	if want := string(s.options.Device); want != "" && want != "auto" && session.Device() != want {
		t.Errorf("device %q, want %q", session.Device(), want)
	}
}

func (s *suite) elementTypes(t *testing.T) {
	const n = 1001
	session := s.load(t, "cast.onnx")
	x := s.tensor(t, graphs.Float32, n)
	for i := range x.Float32() {
		x.Float32()[i] = float32(i % 100)
	}
	out := named{}
	for _, port := range session.Outputs() {
		out[port.Name] = s.tensor(t, port.DType, n)
	}
	must(t, session.Run(t.Context(), named{"x": x}, out))
	for i, v := range x.Float32() {
		integer := int(v)
		for name, pair := range map[string][2]int{
			"float16":  {int(out["float16"].Uint16()[i]), int(float16Bits(v))},
			"bfloat16": {int(out["bfloat16"].Uint16()[i]), int(math.Float32bits(v) >> 16)}, // whole numbers below 256 are exact
			"int64":    {int(out["int64"].Int64()[i]), integer},
			"int32":    {int(out["int32"].Int32()[i]), integer},
			"int8":     {int(int8(out["int8"].Bytes()[i])), integer},
			"uint8":    {int(out["uint8"].Bytes()[i]), integer},
			"bool":     {int(out["bool"].Bytes()[i]), min(integer, 1)},
		} {
			if pair[0] != pair[1] {
				t.Fatalf("%s element %d of %d: %#x, want %#x", name, i, n, pair[0], pair[1])
			}
		}
	}
}

// halves guards against the binding's copy of outputs, which takes elements for
// bytes and so loses the second half of 16-bit data: a long tensor of an odd
// length is compared to its last element. precision is the bits of a fraction.
func (s *suite) halves(t *testing.T, name string, precision int, decode func(uint16) float32) {
	const n = 4097
	session := s.load(t, "cast.onnx")
	dtype, err := graphs.ParseDType(name)
	must(t, err)
	step, err := session.NewStep([]string{"x"}, []string{name})
	must(t, err)
	defer step.Close()
	x, out := s.tensor(t, graphs.Float32, n), s.tensor(t, dtype, n)
	for i := range x.Float32() {
		x.Float32()[i] = float32(i+1) * math.Pi / n // never 0, well inside both ranges
	}
	must(t, step.SetInput(0, x))
	must(t, step.SetOutput(0, out))
	must(t, step.Run(t.Context()))
	if len(out.Uint16()) != n || len(out.Bytes()) != 2*n {
		t.Fatalf("%d elements in %d bytes, want %d", len(out.Uint16()), len(out.Bytes()), n)
	}
	for i, want := range x.Float32() {
		got := decode(out.Uint16()[i])
		if math.Abs(float64(got-want)) > math.Ldexp(float64(want), -precision) {
			t.Fatalf("element %d of %d: %v, want %v to %d bits", i, n, got, want, precision)
		}
	}
}

func bfloat16Value(bits uint16) float32 { return math.Float32frombits(uint32(bits) << 16) }

// float16Value decodes a normal number.
func float16Value(bits uint16) float32 {
	exponent := uint32(bits>>10&0x1f) - 15 + 127
	return math.Float32frombits(uint32(bits>>15)<<31 | exponent<<23 | uint32(bits&0x3ff)<<13)
}

// float16Bits encodes a whole number below 2048, which fp16 holds exactly.
func float16Bits(v float32) uint16 {
	if v == 0 {
		return 0
	}
	bits := math.Float32bits(v)
	exponent := int(bits>>23&0xff) - 127 + 15
	return uint16(exponent)<<10 | uint16(bits>>13&0x3ff)
}

func (s *suite) scalars(t *testing.T) {
	session := s.load(t, "scale.onnx")
	factor, total := s.tensor(t, graphs.Int32), s.tensor(t, graphs.Float32)
	factor.Int32()[0] = 3
	y := s.tensor(t, graphs.Float32, 4)
	must(t, session.Run(t.Context(), named{"x": s.float32(t, []float32{1, 2, 3, 4}, 4), "factor": factor}, named{"y": y, "total": total}))
	equal(t, "y", y.Float32(), []float32{3, 6, 9, 12})
	equal(t, "total", total.Float32(), []float32{30})
}

func (s *suite) empty(t *testing.T) {
	session := s.load(t, "add.onnx")
	a, sum := s.tensor(t, graphs.Float32, 0, 3), s.tensor(t, graphs.Float32, 0, 3)
	must(t, session.Run(t.Context(), named{"a": a, "b": a}, named{"sum": sum}))
	if n := len(sum.Float32()); n != 0 {
		t.Errorf("%d elements, want none", n)
	}
}

func (s *suite) externalData(t *testing.T) {
	session := s.load(t, "external.onnx")
	y := s.tensor(t, graphs.Float32, 2, 3)
	must(t, session.Run(t.Context(), named{"x": s.float32(t, []float32{1, 0, 0, 0, 0, 0, 1, 1}, 2, 4)}, named{"y": y}))
	equal(t, "y", y.Float32(), []float32{0, 1, 2, 15, 17, 19})
}

func (s *suite) reshape(t *testing.T) {
	session := s.load(t, "add.onnx")
	a, sum := s.float32(t, []float32{1, 2, 3, 4, 5, 6, 7, 8, 9}, 3, 3), s.tensor(t, graphs.Float32, 3, 3)
	for _, rows := range []int64{3, 1, 2, 3} {
		must(t, a.Reshape(rows, 3))
		must(t, sum.Reshape(rows, 3))
		clear(sum.Float32())
		must(t, session.Run(t.Context(), named{"a": a, "b": a}, named{"sum": sum}))
		equal(t, "sum", sum.Float32(), []float32{2, 4, 6, 8, 10, 12, 14, 16, 18}[:3*rows])
	}
}

func (s *suite) step(t *testing.T) {
	session := s.load(t, "add.onnx")
	a, b, sum := s.tensor(t, graphs.Float32, 2, 3), s.tensor(t, graphs.Float32, 2, 3), s.tensor(t, graphs.Float32, 2, 3)
	step, err := session.Bind(named{"a": a, "b": b}, named{"sum": sum})
	must(t, err)
	defer step.Close()
	for i := range 5 {
		rows := int64(1 + i%2)
		for _, tensor := range []*graphs.Tensor{a, b, sum} {
			must(t, tensor.Reshape(rows, 3))
		}
		want := make([]float32, 3*rows)
		for j := range want {
			a.Float32()[j], b.Float32()[j] = float32(i), float32(10*j)
			want[j] = float32(i + 10*j)
		}
		must(t, step.Run(t.Context()))
		equal(t, "sum", sum.Float32(), want)
	}
	other := s.float32(t, []float32{1, 1, 1}, 1, 3)
	must(t, step.SetInput(step.Input("a"), other))
	must(t, step.SetInput(step.Input("b"), other))
	must(t, sum.Reshape(1, 3))
	must(t, step.Run(t.Context()))
	equal(t, "sum", sum.Float32(), []float32{2, 2, 2})
}

func (s *suite) chosenOutputs(t *testing.T) {
	session := s.load(t, "cast.onnx")
	step, err := session.NewStep([]string{"x"}, []string{"int32"})
	must(t, err)
	defer step.Close()
	out := s.tensor(t, graphs.Int32, 2)
	must(t, step.SetInput(0, s.float32(t, []float32{7, -7}, 2)))
	must(t, step.SetOutput(0, out))
	must(t, step.Run(t.Context()))
	equal(t, "int32", out.Int32(), []int32{7, -7})
}

func (s *suite) goroutines(t *testing.T) {
	session := s.load(t, "add.onnx")
	var group sync.WaitGroup
	for g := range 8 {
		a, b := s.tensor(t, graphs.Float32, 4, 3), s.tensor(t, graphs.Float32, 4, 3)
		sum := s.tensor(t, graphs.Float32, 4, 3)
		group.Go(func() {
			for i := range 50 {
				want := make([]float32, 12)
				for j := range want {
					a.Float32()[j], b.Float32()[j] = float32(g), float32(i*j)
					want[j] = float32(g + i*j)
				}
				if err := session.Run(t.Context(), named{"a": a, "b": b}, named{"sum": sum}); err != nil {
					t.Error(err)
					return
				}
				equal(t, "sum", sum.Float32(), want)
			}
		})
	}
	group.Wait()
}

func (s *suite) cancellation(t *testing.T) {
	session := s.load(t, "loop.onnx")
	trips, x, y := s.tensor(t, graphs.Int64), s.tensor(t, graphs.Float32, 64, 64), s.tensor(t, graphs.Float32, 64, 64)
	step, err := session.Bind(named{"trips": trips, "x": x}, named{"y": y})
	must(t, err)
	defer step.Close()

	trips.Int64()[0] = 1 << 40 // years of work
	ctx, cancel := context.WithCancel(t.Context())
	timer := time.AfterFunc(20*time.Millisecond, cancel)
	defer timer.Stop()
	begin := time.Now()
	if err := step.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled run: %v, want context.Canceled", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("a cancelled run ended after %v", took)
	}
	if err := step.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("run with a context that is over: %v, want context.Canceled", err)
	}
	deadline, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := session.Run(deadline, named{"trips": trips, "x": x}, named{"y": y}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("run past its deadline: %v, want context.DeadlineExceeded", err)
	}
	// The same step works again: the stop belongs to the context, not the step.
	trips.Int64()[0] = 3
	must(t, step.Run(t.Context()))
	must(t, step.Run(context.Background()))
	must(t, session.Run(t.Context(), named{"trips": trips, "x": x}, named{"y": y}))
}

// outOfMemory wants 16 TiB of a run, and then little of the same session.
func (s *suite) outOfMemory(t *testing.T) {
	session := s.load(t, "huge.onnx")
	count, total := s.tensor(t, graphs.Int64, 1), s.tensor(t, graphs.Float32, 1)
	in, out := map[string]*graphs.Tensor{"count": count}, map[string]*graphs.Tensor{"total": total}
	count.Int64()[0] = 1 << 42
	if err := session.Run(t.Context(), in, out); !errors.Is(err, graphs.ErrOutOfMemory) {
		t.Errorf("a run of 16 TiB: %v", err)
	}
	count.Int64()[0] = 8
	must(t, session.Run(t.Context(), in, out))
	equal(t, "the sum", total.Float32(), []float32{8})
}
