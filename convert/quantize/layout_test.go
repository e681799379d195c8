package quantize

// Proof that the packed layouts are those of ONNX Runtime's operators. testdata/packed.json holds weights and what this
// package makes of them; testdata/ort_outputs.py runs MatMulNBits and DynamicQuantizeMatMul on them and writes
// testdata/outputs.json. To renew both: go test -run TestLayout -update, then the script.

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/packed.json anew")

type layoutCase struct {
	Name        string
	N, K        int
	Rows        int       // of the activations
	Bits, Block int       // 0 bits: int8 per channel, transposed
	A           []float32 // [rows, k]
	W           []float32 // [n, k]
	Packed      []byte
	Scales      []float32
	ZeroPoints  []byte
}

// layoutCases has sizes that divide nothing.
func layoutCases(t *testing.T) []layoutCase {
	var cases []layoutCase
	add := func(c layoutCase, asymmetric bool) {
		rng := rand.New(rand.NewPCG(uint64(len(cases)), 7))
		c.Rows = 3
		for range c.Rows * c.K {
			c.A = append(c.A, float32(rng.IntN(2001)-1000)/1000)
		}
		for i := range c.N * c.K {
			v := float32(rng.NormFloat64())
			if i/c.K == 1 {
				v = 0 // a row of zeros
			}
			if i/c.K == 2 {
				v = v*v + 0.5 // a row without negative weights
			}
			c.W = append(c.W, v)
		}
		if c.Bits == 0 {
			c.Name = fmt.Sprintf("int8 n%d k%d", c.N, c.K)
			q := make([]int8, c.N*c.K)
			c.Scales = make([]float32, c.N)
			if err := Int8Rows(c.W, c.N, c.K, q, c.Scales); err != nil {
				t.Fatal(err)
			}
			for i := range q { // the operator that is compared with takes them by column
				c.Packed = append(c.Packed, byte(q[i%c.N*c.K+i/c.N]))
			}
		} else {
			c.Name = fmt.Sprintf("int%d block%d n%d k%d zero points %v", c.Bits, c.Block, c.N, c.K, asymmetric)
			l := Sizes(c.N, c.K, c.Bits, c.Block)
			c.Packed, c.Scales = make([]byte, l.Packed), make([]float32, l.Scales)
			if asymmetric {
				c.ZeroPoints = make([]byte, l.ZeroPoints)
			}
			if err := Blockwise(c.W, c.N, c.K, c.Bits, c.Block, c.Packed, c.Scales, c.ZeroPoints); err != nil {
				t.Fatal(err)
			}
		}
		cases = append(cases, c)
	}
	for _, bits := range []int{4, 8} {
		for _, asymmetric := range []bool{false, true} {
			add(layoutCase{N: 5, K: 37, Bits: bits, Block: 16}, asymmetric)
			add(layoutCase{N: 7, K: 64, Bits: bits, Block: 32}, asymmetric)
			add(layoutCase{N: 4, K: 99, Bits: bits, Block: 32}, asymmetric)
		}
	}
	add(layoutCase{N: 5, K: 37}, false)
	add(layoutCase{N: 8, K: 64}, false)
	return cases
}

func TestLayout(t *testing.T) {
	cases := layoutCases(t)
	packedPath := filepath.Join("testdata", "packed.json")
	if *update {
		writeJSON(t, packedPath, cases)
	}
	var stored []layoutCase
	readJSON(t, packedPath, &stored)
	if diff := cmp.Diff(stored, cases); diff != "" {
		t.Fatalf("quantized weights differ from the stored ones, which ONNX Runtime has run (-stored +now):\n%s", diff)
	}
	outputs := map[string][]float32{}
	readJSON(t, filepath.Join("testdata", "outputs.json"), &outputs)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			want, ok := outputs[c.Name]
			if !ok {
				t.Fatal("no output of ONNX Runtime is stored; run the script")
			}
			got := c.matmul()
			if len(got) != len(want) {
				t.Fatalf("%d values, not %d", len(got), len(want))
			}
			for i := range got {
				if d := math.Abs(float64(got[i] - want[i])); d > 2e-5*(1+math.Abs(float64(want[i]))) {
					t.Errorf("value %d: %v from the layout, %v from ONNX Runtime", i, got[i], want[i])
				}
			}
		})
	}
}

// matmul is A·Wᵀ as the layout says.
func (c layoutCase) matmul() []float32 {
	a, w := c.A, make([]float32, c.N*c.K)
	if c.Bits == 0 {
		a = dynamicallyQuantized(c.A)
		for n := range c.N {
			for k := range c.K {
				w[n*c.K+k] = float32(int8(c.Packed[k*c.N+n])) * c.Scales[n]
			}
		}
	} else {
		Blocks{Bits: c.Bits, Block: c.Block}.Dequantize(w, c.N, c.K, c.Packed, c.Scales, c.ZeroPoints)
	}
	var out []float32
	for r := range c.Rows {
		for n := range c.N {
			sum := 0.0
			for k := range c.K {
				sum += float64(a[r*c.K+k]) * float64(w[n*c.K+k])
			}
			out = append(out, float32(sum))
		}
	}
	return out
}

// dynamicallyQuantized is what DynamicQuantizeMatMul does to its activations: uint8 over the range of all of them and 0.
func dynamicallyQuantized(a []float32) []float32 {
	low, high := float32(0), float32(0)
	for _, v := range a {
		low, high = min(low, v), max(high, v)
	}
	scale := (high - low) / 255
	zero := math.RoundToEven(float64(-low / scale))
	out := make([]float32, len(a))
	for i, v := range a {
		q := min(max(math.RoundToEven(float64(v/scale))+zero, 0), 255)
		out[i] = float32(q-zero) * scale
	}
	return out
}

func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
