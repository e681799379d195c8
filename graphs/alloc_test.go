package graphs_test

import (
	"context"
	"testing"

	"glimpse/graphs"
)

// decodeStep is a bound step over attention.onnx and a function that does what a
// decode loop does between runs: reshape, set, point at another view.
func decodeStep(t testing.TB) (*graphs.Step, func(n int64) error) {
	rt := open(t)
	session := load(t, rt, "attention.onnx")
	arena, err := rt.NewArena(graphs.ArenaSpec{Layers: 1, Slots: 4, KVHeads: 2, Capacity: 32, HeadDim: 16, DType: graphs.Float32})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { arena.Close() })
	step, err := session.NewStep(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { step.Close() })
	made := named{
		"qkv": tensor(t, rt, graphs.Float32, 4, 128), "row_map": tensor(t, rt, graphs.Int64, 4, 1), "token_map": tensor(t, rt, graphs.Int64, 4),
		"seqlens_k": tensor(t, rt, graphs.Int32, 4), "query_seqlens": tensor(t, rt, graphs.Int32, 4), "total_sequence_length": tensor(t, rt, graphs.Int32),
		"rope_cos": tensor(t, rt, graphs.Float32, 32, 8), "rope_sin": tensor(t, rt, graphs.Float32, 32, 8),
	}
	for name, tensor := range made {
		if err := step.SetInput(step.Input(name), tensor); err != nil {
			t.Fatal(err)
		}
	}
	made["total_sequence_length"].Int32()[0] = 32
	for i := range made["query_seqlens"].Int32() {
		made["query_seqlens"].Int32()[i] = 1
	}
	out := tensor(t, rt, graphs.Float32, 4, 64)
	if err := step.SetOutput(step.Output("out"), out); err != nil {
		t.Fatal(err)
	}
	pastKey, pastValue := step.Input("past_key"), step.Input("past_value")
	presentKey, presentValue := step.Output("present_key"), step.Output("present_value")
	return step, func(n int64) error {
		view, err := arena.View(0, int(n))
		if err != nil {
			return err
		}
		for _, err := range []error{
			made["qkv"].Reshape(n, 128), made["row_map"].Reshape(n, 1), made["token_map"].Reshape(n), made["seqlens_k"].Reshape(n),
			made["query_seqlens"].Reshape(n), out.Reshape(n, 64),
			step.SetInput(pastKey, view.Keys[0]), step.SetInput(pastValue, view.Values[0]),
			step.SetOutput(presentKey, view.Keys[0]), step.SetOutput(presentValue, view.Values[0]),
		} {
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// A decode step, with the reshapes and views it needs and a context that can be
// cancelled, leaves no garbage.
func TestStepMakesNoGarbage(t *testing.T) {
	step, prepare := decodeStep(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := prepare(4); err != nil {
		t.Fatal(err)
	}
	n := int64(4)
	for _, kind := range []struct {
		name string
		ctx  context.Context
	}{{"background", context.Background()}, {"cancellable", ctx}} {
		allocated := testing.AllocsPerRun(100, func() {
			n = n%4 + 1
			if err := prepare(n); err != nil {
				t.Fatal(err)
			}
			if err := step.Run(kind.ctx); err != nil {
				t.Fatal(err)
			}
		})
		if allocated != 0 {
			t.Errorf("a step with a %s context makes %v allocations, want none", kind.name, allocated)
		}
	}
}

func BenchmarkStep(b *testing.B) {
	step, prepare := decodeStep(b)
	if err := prepare(4); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		if err := step.Run(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStepReshaped(b *testing.B) {
	step, prepare := decodeStep(b)
	n := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		n = n%4 + 1
		if err := prepare(n); err != nil {
			b.Fatal(err)
		}
		if err := step.Run(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRunWithMaps(b *testing.B) {
	rt := open(b)
	session := load(b, rt, "add.onnx")
	a, sum := tensor(b, rt, graphs.Float32, 1, 3), tensor(b, rt, graphs.Float32, 1, 3)
	in, out := named{"a": a, "b": a}, named{"sum": sum}
	b.ReportAllocs()
	for b.Loop() {
		if err := session.Run(context.Background(), in, out); err != nil {
			b.Fatal(err)
		}
	}
}
