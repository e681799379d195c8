package verify

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/engine"
	"glimpse/engine/internal/golden"
)

func TestCompareArray(t *testing.T) {
	nan := float32(math.NaN())
	want := golden.Array{Shape: []int64{2}, Data: []float32{1, -10}}
	for _, c := range []struct {
		name  string
		array string
		have  []float32
		tol   float64
		ok    bool
	}{
		{"equal", "projected", []float32{1, -10}, 1e-3, true},
		{"within 1e-4 of the largest", "projected", []float32{1.0009, -10}, 1e-3, true},
		{"beyond it", "projected", []float32{1.0011, -10}, 1e-3, false},
		{"logits have one of their own", engine.ArrayLastLogits, []float32{1.0019, -10}, 2e-3, true},
		{"logits beyond it", engine.ArrayFirstLogits, []float32{1.0021, -10}, 2e-3, false},
		{"NaN", "projected", []float32{nan, -10}, 1e-3, false},
		{"NaN after a difference", "projected", []float32{1.0001, nan}, 1e-3, false},
	} {
		r := compareArray(c.array, engine.Array{Shape: []int64{2}, Data: c.have}, want, tolerance(c.array, want))
		if r.OK != c.ok || math.Abs(r.Tolerance-c.tol) > 1e-9 || (r.Note == "") != c.ok {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	if r := compareArray("x", engine.Array{Shape: []int64{1, 2}, Data: want.Data}, want, 1); r.OK {
		t.Error("another shape is ok")
	}
	if r := compareArray("x", engine.Array{Shape: []int64{0}}, golden.Array{Shape: []int64{0}}, 1); r.OK {
		t.Error("an empty array is ok")
	}
}

func TestWithinLevels(t *testing.T) {
	levels := channelLevels([]float64{1.0 / 255, 0.5 / 255, 0.25 / 255}) // 1, 2 and 4
	want := make([]float32, 2*3*2)
	have := []float32{1, 0, 2, 0, 4, 0 /* tile 2 */, 1.5, 0, 0, -2, 0, 12}
	share, worst := withinLevels(have, want, 2, levels)
	if share != 10.0/12 || worst != 3 {
		t.Errorf("share %v, worst %v", share, worst)
	}
	have[3] = float32(math.NaN())
	if _, worst := withinLevels(have, want, 2, levels); !math.IsNaN(worst) {
		t.Errorf("NaN is %v levels off", worst)
	}
}

func TestOrder(t *testing.T) {
	names := sortedArrays(map[string]string{"logits_last": "", "a": "", "projected": "", "pixel_values": "", "logits_first": "", "vision_features": "", "inputs_embeds": ""})
	if diff := cmp.Diff([]string{"vision_features", "projected", "inputs_embeds", "logits_first", "logits_last", "a"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestLossy(t *testing.T) {
	if lossy([]string{"a.png", "b.gif"}) || !lossy([]string{"a.png", "b.JPG"}) || !lossy([]string{"b.jpeg"}) || lossy(nil) {
		t.Error("JPEG is told by its name")
	}
}
