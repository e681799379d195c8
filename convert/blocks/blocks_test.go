package blocks_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
	"glimpse/graphs"
)

// linear is x·Wᵀ + b in float64.
func linear(x, w, bias array) []float64 {
	rows, k, n := x.shape[0], x.shape[1], w.shape[0]
	y := make([]float64, rows*n)
	for r := range rows {
		for o := range n {
			sum := float64(bias.data[o])
			for i := range k {
				sum += float64(x.data[r*k+i]) * float64(w.data[o*k+i])
			}
			y[r*n+o] = sum
		}
	}
	return y
}

// TestLinearInEveryFormat compares each lowering with float64; one row is a thousand times larger than the others and
// must not spoil them, so rows are compared one by one.
func TestLinearInEveryFormat(t *testing.T) {
	x, w, bias := random(1, 5, 64), random(2, 48, 64), random(3, 48)
	for i := range 64 {
		x.data[2*64+i] *= 1000
	}
	want := linear(x, w, bias)
	for _, tc := range []struct {
		asked     blocks.Precision
		role      blocks.Role
		layer     int
		tolerance float64
	}{
		{blocks.FP32, blocks.Decoder, 1, 1e-6},
		{blocks.FP16, blocks.Decoder, 1, 1e-3},
		{blocks.INT8, blocks.Decoder, 1, 0.02}, // int8 by row
		{blocks.INT8, blocks.Vision, 1, 0.02},
		{blocks.INT4, blocks.Decoder, 0, 0.02}, // first layer: int8 in blocks
		{blocks.INT4, blocks.Decoder, 1, 0.15},
		{blocks.INT4, blocks.Connector, 1, 1e-6}, // connectors stay fp32
	} {
		t.Run(fmt.Sprintf("%s %s layer %d", tc.asked, tc.role, tc.layer), func(t *testing.T) {
			tensors := account(t, map[string]array{"p.weight": w, "p.bias": bias})
			policy := blocks.Policy{Asked: tc.asked, Role: tc.role, Layers: 3}
			out := run(t, tensors, policy, func(b *blocks.Builder) {
				in := b.Input("x", onnx.Float, onnx.Free("rows"), onnx.Fixed(64))
				b.Output("y", b.Dense(in, "p", "p", 48, 64, blocks.MLP, tc.layer), onnx.Float, onnx.Free("rows"), onnx.Fixed(48))
			}, map[string]*graphs.Tensor{"x": tensor(t, x)}, map[string][]int64{"y": {5, 48}})
			for r := range 5 {
				near(t, fmt.Sprintf("row %d", r), out["y"][r*48:(r+1)*48], want[r*48:(r+1)*48], tc.tolerance)
			}
		})
	}
}

// The same for CUDA, in float16; the operators run on the CPU here, whose kernels take float16 too. The row a thousand times
// larger stays: each value of it fits float16.
func TestLinearForCUDA(t *testing.T) {
	x, w, bias := random(1, 5, 64), random(2, 48, 64), random(3, 48)
	for i := range 64 {
		x.data[2*64+i] *= 1000
	}
	want := linear(x, w, bias)
	for _, tc := range []struct {
		asked     blocks.Precision
		role      blocks.Role
		kind      blocks.Kind
		layer     int
		tolerance float64
		stored    string
	}{
		{blocks.FP32, blocks.Decoder, blocks.MLP, 1, 1e-6, "fp32"},
		{blocks.FP16, blocks.Decoder, blocks.MLP, 1, 2e-3, "fp16"},
		{blocks.FP16, blocks.Encoder, blocks.Wide, 1, 1e-6, "fp32"}, // float32 throughout, as asked
		{blocks.INT4, blocks.Decoder, blocks.MLP, 0, 0.02, "int8"},  // first layer: int8 in blocks
		{blocks.INT4, blocks.Decoder, blocks.MLP, 1, 0.15, "int4"},
		{blocks.INT4, blocks.Vision, blocks.MLP, 1, 2e-3, "fp16"},
		{blocks.INT4, blocks.Connector, blocks.Project, 1, 2e-3, "fp16"},
		{blocks.Auto, blocks.Decoder, blocks.MLP, 1, 2e-3, "fp16"},
	} {
		t.Run(fmt.Sprintf("%s %s %s layer %d", tc.asked, tc.role, tc.kind, tc.layer), func(t *testing.T) {
			tensors := account(t, map[string]array{"p.weight": w, "p.bias": bias})
			tensors.Guide.Target = blocks.CUDA
			policy := blocks.Policy{Asked: tc.asked, Role: tc.role, Layers: 3}
			out := run(t, tensors, policy, func(b *blocks.Builder) {
				in := b.Input("x", onnx.Float, onnx.Free("rows"), onnx.Fixed(64))
				b.Output("y", b.Dense(in, "p", "p", 48, 64, tc.kind, tc.layer), onnx.Float, onnx.Free("rows"), onnx.Fixed(48))
				if err := b.ForCUDA(); err != nil {
					t.Fatal(err)
				}
				if _, formats := b.Parameters(); formats[tc.stored] < 48*64 {
					t.Errorf("stored as %v, want %s", formats, tc.stored)
				}
			}, map[string]*graphs.Tensor{"x": tensor(t, x)}, map[string][]int64{"y": {5, 48}})
			for r := range 5 {
				near(t, fmt.Sprintf("row %d", r), out["y"][r*48:(r+1)*48], want[r*48:(r+1)*48], tc.tolerance)
			}
		})
	}
}

// What the CUDA provider cannot compute is refused by name.
func TestTargets(t *testing.T) {
	if _, err := blocks.ParseTarget("cuda", blocks.INT8); err == nil || !strings.Contains(err.Error(), "MatMulIntegerToFloat") {
		t.Errorf("int8 for cuda: %v", err)
	}
	if _, err := blocks.ParseTarget("npu", blocks.FP32); err == nil || !strings.Contains(err.Error(), `"npu"`) {
		t.Errorf("npu: %v", err)
	}
	for name, want := range map[string]blocks.Target{"": blocks.CPU, "cpu": blocks.CPU, "cuda": blocks.CUDA} {
		if got, err := blocks.ParseTarget(name, blocks.INT4); err != nil || got != want {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	big := blocks.Policy{Asked: blocks.Auto, Target: blocks.CUDA, Role: blocks.Decoder, Params: 7e9, Layers: 32}
	if f := big.Linear(blocks.MLP, 5); f != blocks.FormatInt4Block {
		t.Errorf("auto of 7 B for cuda: %v", f)
	}
}

func TestInt8RowsOfZerosGiveTheBias(t *testing.T) {
	x, w, bias := array{[]int64{2, 32}, make([]float32, 64)}, random(2, 16, 32), random(3, 16)
	copy(x.data[32:], random(4, 32).data)
	out := run(t, account(t, map[string]array{"p.weight": w, "p.bias": bias}), blocks.Policy{Asked: blocks.INT8, Role: blocks.Decoder}, func(b *blocks.Builder) {
		in := b.Input("x", onnx.Float, onnx.Free("rows"), onnx.Fixed(32))
		b.Output("y", b.Dense(in, "p", "p", 16, 32, blocks.MLP, 0), onnx.Float, onnx.Free("rows"), onnx.Fixed(16))
	}, map[string]*graphs.Tensor{"x": tensor(t, x)}, map[string][]int64{"y": {2, 16}})
	near(t, "the row of zeros", out["y"][:16], linear(x, w, bias)[:16], 1e-6)
}

// layerNorm and rmsNorm are the formulas, in float64.
func layerNorm(x []float64, w, bias []float32, eps float64) []float64 {
	mean, variance := 0.0, 0.0
	for _, v := range x {
		mean += v / float64(len(x))
	}
	for _, v := range x {
		variance += (v - mean) * (v - mean) / float64(len(x))
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = (v-mean)/math.Sqrt(variance+eps)*float64(w[i]) + float64(bias[i])
	}
	return y
}

func rmsNorm(x []float64, w []float32, eps float64) []float64 {
	square := 0.0
	for _, v := range x {
		square += v * v / float64(len(x))
	}
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = v / math.Sqrt(square+eps) * float64(w[i])
	}
	return y
}

func TestNorms(t *testing.T) {
	const h, eps = 24, 1e-5
	x, skip, w, bias := random(1, 3, h), random(2, 3, h), random(3, h), random(4, h)
	tensors := account(t, map[string]array{"w": w, "b": bias})
	names := []string{"layer_norm", "rms_norm", "sum", "add_layer_norm", "rms_sum", "add_rms_norm"}
	shapes := map[string][]int64{}
	for _, n := range names {
		shapes[n] = []int64{3, h}
	}
	out := run(t, tensors, fp32, func(b *blocks.Builder) {
		dims := []onnx.Dim{onnx.Free("rows"), onnx.Fixed(h)}
		a, s := b.Input("x", onnx.Float, dims...), b.Input("skip", onnx.Float, dims...)
		wt, bt := tensors.Shared("w", h), tensors.Shared("b", h)
		sum, added := b.AddLayerNorm("c", a, s, wt, bt, eps)
		rmsSum, rmsAdded := b.AddRMSNorm("d", a, s, wt, eps)
		for i, v := range []*onnx.Value{b.LayerNorm("a", a, wt, bt, eps), b.RMSNorm("b", a, wt, eps), sum, added, rmsSum, rmsAdded} {
			b.Output(names[i], v, onnx.Float, dims...)
		}
	}, map[string]*graphs.Tensor{"x": tensor(t, x), "skip": tensor(t, skip)}, shapes)
	want := map[string][]float64{}
	for r := range 3 {
		plain, sum := make([]float64, h), make([]float64, h)
		for i := range h {
			plain[i] = float64(x.data[r*h+i])
			sum[i] = plain[i] + float64(skip.data[r*h+i])
		}
		for name, row := range map[string][]float64{
			"layer_norm": layerNorm(plain, w.data, bias.data, eps), "rms_norm": rmsNorm(plain, w.data, eps), "sum": sum, "rms_sum": sum,
			"add_layer_norm": layerNorm(sum, w.data, bias.data, eps), "add_rms_norm": rmsNorm(sum, w.data, eps),
		} {
			want[name] = append(want[name], row...)
		}
	}
	for _, n := range names {
		near(t, n, out[n], want[n], 1e-5)
	}
}

func TestActivations(t *testing.T) {
	sigmoid := func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }
	tanhGelu := func(x float64) float64 {
		return 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
	}
	x := random(1, 4, 16)
	for name, f := range map[string]func(float64) float64{
		"gelu":              func(x float64) float64 { return 0.5 * x * (1 + math.Erf(x/math.Sqrt2)) },
		"gelu_pytorch_tanh": tanhGelu, "gelu_new": tanhGelu,
		"quick_gelu": func(x float64) float64 { return x * sigmoid(1.702*x) },
		"silu":       func(x float64) float64 { return x * sigmoid(x) },
		"relu":       func(x float64) float64 { return max(0, x) },
	} {
		act, err := blocks.ParseActivation(name)
		if err != nil {
			t.Fatal(err)
		}
		out := run(t, account(t, map[string]array{"unused": random(9, 1)}), fp32, func(b *blocks.Builder) {
			in := b.Input("x", onnx.Float, onnx.Free("rows"), onnx.Fixed(16))
			b.Output("y", b.Activate(act, in), onnx.Float, onnx.Free("rows"), onnx.Fixed(16))
		}, map[string]*graphs.Tensor{"x": tensor(t, x)}, map[string][]int64{"y": {4, 16}})
		want := make([]float64, len(x.data))
		for i, v := range x.data {
			want[i] = f(float64(v))
		}
		near(t, name, out["y"], want, 1e-5)
	}
	if _, err := blocks.ParseActivation("mish"); err == nil {
		t.Error("an activation that nothing lowers was accepted")
	}
}

// attend is softmax(q·kᵀ·scale + bias)·v for one head: q [n, d], k and v [m, d], bias by (query, key).
func attend(q, k, v [][]float64, scale float64, bias func(i, j int) float64) [][]float64 {
	out := make([][]float64, len(q))
	for i := range q {
		scores, largest, total := make([]float64, len(k)), math.Inf(-1), 0.0
		for j := range k {
			for d := range q[i] {
				scores[j] += q[i][d] * k[j][d] * scale
			}
			scores[j] += bias(i, j)
			largest = max(largest, scores[j])
		}
		for j := range scores {
			scores[j] = math.Exp(scores[j] - largest)
			total += scores[j]
		}
		out[i] = make([]float64, len(v[0]))
		for j := range scores {
			for d := range out[i] {
				out[i][d] += scores[j] / total * v[j][d]
			}
		}
	}
	return out
}

// head takes the rows of one batch entry and head out of [batch·length, heads·d] rows.
func head(a array, batch, length, heads, d, b, h int) [][]float64 {
	rows := make([][]float64, length)
	for i := range rows {
		rows[i] = make([]float64, d)
		for j := range d {
			rows[i][j] = float64(a.data[((b*length+i)*heads+h)*d+j])
		}
	}
	return rows
}

func TestFullAttention(t *testing.T) {
	const batch, queries, keys, heads, d = 2, 3, 5, 2, 8
	q, k, v, bias := random(1, batch*queries, heads*d), random(2, batch*keys, heads*d), random(3, batch*keys, heads*d), random(4, 1, heads, queries, keys)
	for _, tc := range []struct {
		name     string
		scale    float32
		withBias bool
	}{{"plain", 0, false}, {"scale and bias", 1, true}} {
		t.Run(tc.name, func(t *testing.T) {
			in := map[string]*graphs.Tensor{"q": tensor(t, q), "k": tensor(t, k), "v": tensor(t, v)}
			if tc.withBias {
				in["bias"] = tensor(t, bias)
			}
			out := run(t, account(t, map[string]array{"unused": random(9, 1)}), fp32, func(b *blocks.Builder) {
				input := func(name, rows string) *onnx.Value {
					return b.Input(name, onnx.Float, onnx.Free(rows), onnx.Fixed(heads*d))
				}
				h := blocks.Heads{Count: heads, Dim: d, QueryLength: queries, KeyLength: keys, Scale: tc.scale}
				if tc.withBias {
					h.Bias = b.Input("bias", onnx.Float, onnx.Fixed(1), onnx.Fixed(heads), onnx.Fixed(queries), onnx.Fixed(keys))
				}
				y := b.FullAttention(input("q", "queries"), input("k", "keys"), input("v", "keys"), h)
				b.Output("y", y, onnx.Float, onnx.Free("queries"), onnx.Fixed(heads*d))
			}, in, map[string][]int64{"y": {batch * queries, heads * d}})
			scale := 1 / math.Sqrt(d)
			if tc.scale != 0 {
				scale = float64(tc.scale)
			}
			want := make([]float64, batch*queries*heads*d)
			for b := range batch {
				for h := range heads {
					rows := attend(head(q, batch, queries, heads, d, b, h), head(k, batch, keys, heads, d, b, h), head(v, batch, keys, heads, d, b, h), scale,
						func(i, j int) float64 {
							if !tc.withBias {
								return 0
							}
							return float64(bias.data[(h*queries+i)*keys+j])
						})
					for i, row := range rows {
						for j, x := range row {
							want[((b*queries+i)*heads+h)*d+j] = x
						}
					}
				}
			}
			near(t, "attention", out["y"], want, 1e-5)
		})
	}
}
