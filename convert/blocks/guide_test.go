package blocks_test

import (
	"fmt"
	"math"
	"testing"

	"glimpse/convert/blocks"
	"glimpse/convert/calibration"
	"glimpse/convert/onnx"
	"glimpse/graphs"
)

// statisticsOf sums up rows x [rows, k] as inputs of a layer.
func statisticsOf(t *testing.T, component, path string, x array, hessian bool) *calibration.Statistics {
	t.Helper()
	rows, k := int(x.shape[0]), int(x.shape[1])
	values, h := make([]float32, 2*k+1), make([]float32, k*k)
	for r := range rows {
		row := x.data[r*k : (r+1)*k]
		for i, v := range row {
			values[i] = max(values[i], float32(math.Abs(float64(v))))
			values[k+i] += v * v
			for j, w := range row {
				h[i*k+j] += v * w
			}
		}
	}
	values[2*k] = float32(rows)
	a := calibration.NewAccumulator()
	a.Add(component, calibration.PortInputs+path, values)
	if hessian {
		a.Add(component, calibration.PortHessian+path, h)
	}
	s, err := a.Statistics()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A graph that gathers reports what a run gave its layers, and computes the same.
func TestGatheredStatisticsAreThoseOfTheInputs(t *testing.T) {
	x, w, bias := random(1, 5, 32), random(2, 16, 32), random(3, 16)
	tensors := account(t, map[string]array{"p.weight": w, "p.bias": bias})
	tensors.Guide = &blocks.Guide{Gather: true, Hessians: 4 * 32 * 32}
	out := run(t, tensors, blocks.Policy{Asked: blocks.INT8, Role: blocks.Decoder}, func(b *blocks.Builder) {
		in := b.Input("x", onnx.Float, onnx.Free("rows"), onnx.Fixed(32))
		b.Output("y", b.Dense(in, "p", "p", 16, 32, blocks.MLP, 0), onnx.Float, onnx.Free("rows"), onnx.Fixed(16))
	}, map[string]*graphs.Tensor{"x": tensor(t, x)}, map[string][]int64{"y": {5, 16}, calibration.PortInputs + "p": {65}, calibration.PortHessian + "p": {32, 32}})
	near(t, "result", out["y"], linear(x, w, bias), 1e-6)
	a := calibration.NewAccumulator()
	for name, values := range out {
		a.Add("test", name, values)
	}
	got, err := a.Statistics()
	if err != nil {
		t.Fatal(err)
	}
	want := statisticsOf(t, "test", "p", x, true).Layer("test/p", 32)
	l := got.Layer("test/p", 32)
	if l == nil || l.Rows != 5 {
		t.Fatalf("%+v", l)
	}
	near(t, "maxima", l.Maximum, widened(want.Maximum), 1e-6)
	near(t, "squares", l.Square, widened(want.Square), 1e-6)
	near(t, "second moments", l.Hessian, widened(want.Hessian), 1e-5)
}

func widened(values []float32) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = float64(v)
	}
	return out
}

// One large channel spoils a row's scale; smoothing gives most of it back, at 8 and at 4 bits.
func TestSmoothingKeepsTheFunctionAndLessensTheError(t *testing.T) {
	x, norm, w := random(1, 6, 64), random(2, 64), random(3, 24, 64)
	for i := range norm.data {
		norm.data[i] = 1
	}
	norm.data[5] = 60
	normed := make([]float64, len(x.data))
	rows := array{x.shape, make([]float32, len(x.data))}
	for r := range 6 {
		in := make([]float64, 64)
		for i := range in {
			in[i] = float64(x.data[r*64+i])
		}
		copy(normed[r*64:], rmsNorm(in, norm.data, 1e-6))
	}
	for i, v := range normed {
		rows.data[i] = float32(v)
	}
	want := linear(rows, w, array{[]int64{24}, make([]float32, 24)})
	for _, asked := range []blocks.Precision{blocks.INT8, blocks.INT4} {
		wrong := func(known bool) float64 {
			tensors := account(t, map[string]array{"norm": norm, "p": w})
			if known {
				tensors.Guide = &blocks.Guide{Statistics: statisticsOf(t, "test", "p", rows, false)}
			}
			out := run(t, tensors, blocks.Policy{Asked: asked, Role: blocks.Decoder, Layers: 3}, func(b *blocks.Builder) {
				in := b.Input("x", onnx.Float, onnx.Free("rows"), onnx.Fixed(64))
				n, l := b.Smooth(b.Tensors.Weight("norm", 64), blocks.Linear{Name: "p", W: b.Tensors.Weight("p", 24, 64), Kind: blocks.MLP, Layer: 1})
				b.Output("y", b.Linear(b.RMSNorm("norm", in, n, 1e-6), l), onnx.Float, onnx.Free("rows"), onnx.Fixed(24))
			}, map[string]*graphs.Tensor{"x": tensor(t, x)}, map[string][]int64{"y": {6, 24}})
			sum, all := 0.0, 0.0
			for i, v := range out["y"] {
				sum += (float64(v) - want[i]) * (float64(v) - want[i])
				all += want[i] * want[i]
			}
			return math.Sqrt(sum / all)
		}
		plain, smooth := wrong(false), wrong(true)
		t.Logf("%s: error %.4f, smoothed %.4f", asked, plain, smooth)
		if smooth > 0.7*plain {
			t.Errorf("%s: error %.4f of the outputs' size, smoothed %.4f", asked, plain, smooth)
		}
	}
}

// A mix stays within its budget, keeps what the policy keeps, and gives bits to the layers that err most.
func TestMix(t *testing.T) {
	weights := map[string]array{}
	for i := range 6 {
		w := random(uint64(i+1), 32, 128)
		if i == 3 { // a few large weights in each block: the others get few levels
			for j := 0; j < len(w.data); j += 16 {
				w.data[j] *= 20
			}
		}
		weights[fmt.Sprint("w", i)] = w
	}
	tensors := account(t, weights)
	var list []blocks.LinearInfo
	for i := range 6 {
		f := blocks.FormatInt4Block
		if i == 0 {
			f = blocks.FormatInt8Block
		}
		list = append(list, blocks.LinearInfo{Key: fmt.Sprint("test/w", i), Kind: blocks.MLP, W: tensors.Weight(fmt.Sprint("w", i), 32, 128), Format: f})
	}
	for _, bits := range []float64{4.25, 5, 5.7, 6.4, 9} {
		formats, err := blocks.Mix(t.Context(), list, nil, bits)
		if err != nil {
			t.Fatal(err)
		}
		used := 0.0
		for _, f := range formats {
			used += f.Bits(128) / 6
		}
		if used > bits+1e-9 || used < bits-0.8 {
			t.Errorf("%v bits asked for, %v used", bits, used)
		}
		if bits > 5.5 && formats["test/w0"] != blocks.FormatInt8Block {
			t.Errorf("%v bits: the policy's own layer is %v", bits, formats["test/w0"])
		}
		if bits > 6.3 && formats["test/w3"] != blocks.FormatInt8Block {
			t.Errorf("%v bits: the layer that errs most is %v", bits, formats["test/w3"])
		}
	}
	if _, err := blocks.Mix(t.Context(), list, nil, 4); err == nil {
		t.Error("fewer bits than int4 takes were accepted")
	}
}
