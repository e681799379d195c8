package blocks_test

import (
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"glimpse/convert/blocks"
	"glimpse/convert/onnx"
)

// TestWeightExpressions reads each transform whole and compares with the transform done by hand.
func TestWeightExpressions(t *testing.T) {
	a, c := random(1, 6, 4), random(2, 3, 4)
	tensors := account(t, map[string]array{"a": a, "c": c})
	wa, wc := tensors.Shared("a", 6, 4), tensors.Shared("c", 3, 4)
	at := func(m array, r, col int) float32 { return m.data[r*4+col] }
	for _, tc := range []struct {
		name string
		w    blocks.Weight
		rows int
		want func(r, c int) float32
		text string
	}{
		{"rows", wa.Rows(2, 5), 3, func(r, c int) float32 { return at(a, r+2, c) }, "a[2:5]"},
		{"concat", blocks.ConcatRows(wc, wa), 9, func(r, col int) float32 {
			if r < 3 {
				return at(c, r, col)
			}
			return at(a, r-3, col)
		}, "rows(c, a)"},
		{"permute", wa.PermuteRows("turned", []int64{5, 0, 0, 3}), 4, func(r, c int) float32 { return at(a, []int{5, 0, 0, 3}[r], c) }, "turned(a)"},
		{"plus", wa.Plus(1), 6, func(r, c int) float32 { return at(a, r, c) + 1 }, "(a + 1)"},
		{"times", wa.Times(-2), 6, func(r, c int) float32 { return at(a, r, c) * -2 }, "(a × -2)"},
		{"rows of a permuted concat", blocks.ConcatRows(wa, wc).PermuteRows("p", []int64{8, 0}).Rows(0, 1), 1, func(_, col int) float32 { return at(c, 2, col) }, "p(rows(a, c))[0:1]"},
		{"transposed", wa.Transposed().Reshape(6, 4), 6, func(r, col int) float32 {
			i := r*4 + col // element of the [4, 6] transpose
			return at(a, i%6, i/6)
		}, "transpose(a)"},
		{"zeros", blocks.Zeros(2, 4), 2, func(int, int) float32 { return 0 }, "zeros"},
	} {
		got, err := tc.w.Float32s(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if len(got) != tc.rows*4 || tc.w.String() != tc.text {
			t.Errorf("%s: %d values, text %q, want %d and %q", tc.name, len(got), tc.w, tc.rows*4, tc.text)
			continue
		}
		for i, v := range got {
			if want := tc.want(i/4, i%4); v != want {
				t.Errorf("%s: element %d is %v, want %v", tc.name, i, v, want)
				break
			}
		}
	}
}

// TestPayloadsDoNotDependOnTheirParts: a weight made of any cut of a matrix's rows is written like the matrix.
func TestPayloadsDoNotDependOnTheirParts(t *testing.T) {
	whole := random(3, 40, 32)
	rapid.Check(t, func(rt *rapid.T) {
		cut := int64(rapid.IntRange(1, 39).Draw(rt, "cut"))
		tensors := account(t, map[string]array{"w": whole, "top": {[]int64{cut, 32}, whole.data[:cut*32]}, "bottom": {[]int64{40 - cut, 32}, whole.data[cut*32:]}})
		for _, asked := range []blocks.Precision{blocks.FP32, blocks.INT8, blocks.INT4} {
			one := data(t, tensors, asked, tensors.Shared("w", 40, 32))
			two := data(t, tensors, asked, blocks.ConcatRows(tensors.Shared("top", cut, 32), tensors.Shared("bottom", 40-cut, 32)))
			if one != two {
				rt.Fatalf("%s: cutting at %d changes the bytes", asked, cut)
			}
		}
	})
}

// data writes a Linear over the weight and returns its external data.
func data(t *testing.T, tensors *blocks.Tensors, asked blocks.Precision, w blocks.Weight) string {
	b := blocks.NewBuilder("test", tensors, blocks.Policy{Asked: asked, Role: blocks.Decoder, Layers: 3})
	x := b.Input("x", onnx.Float, onnx.Free("rows"), onnx.Fixed(32))
	b.Output("y", b.Linear(x, blocks.Linear{Name: "l", W: w, Kind: blocks.MLP, Layer: 1}), onnx.Float, onnx.Free("rows"), onnx.Fixed(40))
	path := t.TempDir() + "/l.onnx"
	if _, err := b.Write(t.Context(), path, onnx.Options{Producer: "test"}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path + ".data")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestHalfRefusesWhatItCannotHold: an infinity in a weight spoils every output, so storing one is an error that says
// what to do.
func TestHalfRefusesWhatItCannotHold(t *testing.T) {
	big := array{[]int64{1, 32}, make([]float32, 32)}
	big.data[5] = 1e6
	tensors := account(t, map[string]array{"w": big})
	b := blocks.NewBuilder("test", tensors, blocks.Policy{Asked: blocks.FP16, Role: blocks.Decoder})
	x := b.Input("x", onnx.Float, onnx.Free("rows"), onnx.Fixed(32))
	b.Output("y", b.Linear(x, blocks.Linear{Name: "l", W: tensors.Weight("w", 1, 32), Kind: blocks.MLP}), onnx.Float, onnx.Free("rows"), onnx.Fixed(1))
	_, err := b.Write(t.Context(), t.TempDir()+"/l.onnx", onnx.Options{})
	if err == nil || !strings.Contains(err.Error(), "float16") || !strings.Contains(err.Error(), "fp32") {
		t.Fatalf("got %v", err)
	}
}

// TestAccountNamesEveryProblem covers what the account of tensors reports.
func TestAccountNamesEveryProblem(t *testing.T) {
	tensors := account(t, map[string]array{"used": random(1, 2, 2), "left": random(2, 3), "shaped": random(3, 4), "old.position_ids": random(4, 1)})
	tensors.Weight("used", 2, 2)
	tensors.Weight("used", 2, 2)
	tensors.Weight("shaped", 5)
	tensors.Weight("gone", 1)
	tensors.Ignore("*.position_ids")
	var text []string
	for _, p := range tensors.Problems() {
		text = append(text, p.String())
	}
	all := strings.Join(text, "\n")
	for _, want := range []string{"used: is used by two layers", "shaped: has shape [4] where the configuration asks for [5]", "gone: is missing", "left: (F32 [3]) belongs to no layer"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in:\n%s", want, all)
		}
	}
	if strings.Contains(all, "position_ids") {
		t.Errorf("an ignored tensor is reported:\n%s", all)
	}
	if tensors.Prefix("model.", "old.") != "old." || tensors.Prefix("model.", "new.") != "model." {
		t.Error("prefixes are not chosen by what is stored")
	}
}
