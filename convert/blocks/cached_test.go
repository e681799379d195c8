package blocks_test

import (
	"math"
	"testing"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/graphs"
)

// TestCachedAttentionSlidesItsWindow: a window of w tokens lets a query see itself and the w−1 before it, as
// transformers' sliding_window does, in one prompt chunk and across chunks.
func TestCachedAttentionSlidesItsWindow(t *testing.T) {
	const tokens, d, window, capacity = 9, 16, 4, 16
	qkv := random(1, tokens, 3*d)
	cache := blocks.Cache{Layers: 1, Heads: 1, KVHeads: 1, HeadDim: d}
	part := func(at int) [][]float64 {
		rows := make([][]float64, tokens)
		for i := range rows {
			for j := range d {
				rows[i] = append(rows[i], float64(qkv.data[i*3*d+at*d+j]))
			}
		}
		return rows
	}
	want := attend(part(0), part(1), part(2), 1/math.Sqrt(d), func(i, j int) float64 {
		if j > i || i-j >= window {
			return math.Inf(-1)
		}
		return 0
	})
	past := map[string]array{"key": {[]int64{1, 1, capacity, d}, make([]float32, capacity*d)}, "value": {[]int64{1, 1, capacity, d}, make([]float32, capacity*d)}}
	for _, chunks := range [][]int{{9}, {6, 3}, {1, 1, 1, 1, 1, 1, 1, 1, 1}} {
		keys, values := tensor(t, past["key"]), tensor(t, past["value"])
		done := 0
		for _, n := range chunks {
			got := windowStep(t, cache, window, array{[]int64{int64(n), 3 * d}, qkv.data[done*3*d : (done+n)*3*d]}, done, keys, values)
			done += n
			var flat []float64
			for _, row := range want[done-n : done] {
				flat = append(flat, row...)
			}
			near(t, "window", got, flat, 1e-5)
		}
	}
}

// windowStep runs one chunk of a single sequence over the caches.
func windowStep(t *testing.T, cache blocks.Cache, window int64, qkv array, done int, keys, values *graphs.Tensor) []float32 {
	t.Helper()
	n := qkv.shape[0]
	rows := make([]int64, n)
	for i := range rows {
		rows[i] = int64(i)
	}
	width := cache.HeadDim * cache.Heads
	b := blocks.NewBuilder("test", account(t, map[string]array{"unused": random(9, 1)}), fp32)
	step := b.StepInputs(3*width, cache)
	y := b.CachedAttention(step, 0, step.InputsEmbeds, cache, window)
	b.StepOutputs(step, b.WantedRows(step, y), width, cache)
	path := t.TempDir() + "/step.onnx"
	if _, err := b.Write(t.Context(), path, onnx.Options{Producer: "test"}); err != nil {
		t.Fatal(err)
	}
	rt := runtime(t)
	s, err := rt.Load(t.Context(), path, graphs.SessionOptions{Device: "cpu", Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := rt.NewTensor(graphs.Float32, n, width)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	err = s.Run(t.Context(), map[string]*graphs.Tensor{
		"inputs_embeds": tensor(t, qkv), "row_map": longs(t, rows, 1, n), "token_map": longs(t, rows, n), "logits_rows": longs(t, rows, n),
		"seqlens_k": ints(t, []int32{int32(done) + int32(n) - 1}, 1), "query_seqlens": ints(t, []int32{int32(n)}, 1),
		"total_sequence_length": ints(t, []int32{16}), "past_key.0": keys, "past_value.0": values,
	}, map[string]*graphs.Tensor{"logits": out, "present_key.0": keys, "present_value.0": values})
	if err != nil {
		t.Fatal(err)
	}
	return append([]float32(nil), out.Float32()...)
}
