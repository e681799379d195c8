package preprocess

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"glimpse/manifest"
)

type ropeCase struct {
	Name            string
	Rope            manifest.Rope
	Length          int
	InvFreq         []float32 `json:"inv_freq"`
	AttentionFactor float32   `json:"attention_factor"`
	Rows            []int
	Cos, Sin        [][]float32
}

func TestRopeTablesEqualTransformers(t *testing.T) {
	data, err := os.ReadFile("testdata/rope.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []ropeCase }
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Cases) < 8 {
		t.Fatalf("%d cases", len(file.Cases))
	}
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			f, factor, err := ropeFrequencies(c.Rope, c.Length)
			if err != nil {
				t.Fatal(err)
			}
			if len(f) != len(c.InvFreq) {
				t.Fatalf("%d frequencies, want %d", len(f), len(c.InvFreq))
			}
			unequal := 0
			for i, want := range c.InvFreq {
				// torch's vectorised pow is off by up to a unit in the last place, ours is rounded correctly.
				if relative := math.Abs(float64(f[i]-want)) / float64(want); relative > 2.5e-7 {
					t.Errorf("frequency %d is %v, want %v", i, f[i], want)
				}
				if f[i] != want {
					unequal++
				}
			}
			if relative := math.Abs(float64(factor/c.AttentionFactor - 1)); relative > 1e-7 {
				t.Errorf("attention factor %v, want %v", factor, c.AttentionFactor)
			}
			cos, sin, err := RopeTables(c.Rope, c.Length, c.Length)
			if err != nil {
				t.Fatal(err)
			}
			worst := 0.0
			for i, row := range c.Rows {
				for j := range f {
					// An ulp of the frequency is position × that in the angle; the functions themselves add one of theirs.
					allowed := 2e-7 + 2.5e-7*float64(row)*float64(f[j])*float64(factor)
					got := [2]float32{cos[row*len(f)+j], sin[row*len(f)+j]}
					for k, want := range [2]float32{c.Cos[i][j], c.Sin[i][j]} {
						d := math.Abs(float64(got[k]) - float64(want))
						worst = max(worst, d)
						if d > allowed {
							t.Errorf("row %d, frequency %d: %v, want %v", row, j, got[k], want)
						}
					}
				}
			}
			t.Logf("%d of %d frequencies differ in the last place, tables by at most %.2g", unequal, len(f), worst)
		})
	}
}

func TestRopeTablesShape(t *testing.T) {
	cos, sin, err := RopeTables(manifest.Rope{Type: "default", Theta: 10000, Dim: 6}, 5, 0)
	if err != nil || len(cos) != 15 || len(sin) != 15 {
		t.Fatalf("%d and %d values, %v", len(cos), len(sin), err)
	}
	for i := range 3 {
		if cos[i] != 1 || sin[i] != 0 {
			t.Errorf("position 0 is turned by cos %v, sin %v", cos[i], sin[i])
		}
	}
}

func TestRopeTablesRefuse(t *testing.T) {
	good := manifest.Rope{Type: "default", Theta: 10000, Dim: 8, Factor: 2, OriginalMaxPositions: 16, LowFreqFactor: 1, HighFreqFactor: 4}
	with := func(change func(*manifest.Rope)) manifest.Rope {
		r := good
		change(&r)
		return r
	}
	cases := []struct {
		rope      manifest.Rope
		positions int
		want      string
	}{
		{with(func(r *manifest.Rope) { r.Type = "longrope" }), 4, `"longrope"`},
		{with(func(r *manifest.Rope) { r.Type = "" }), 4, `""`},
		{with(func(r *manifest.Rope) { r.Dim = 7 }), 4, "dim is 7"},
		{with(func(r *manifest.Rope) { r.Dim = 0 }), 4, "dim is 0"},
		{with(func(r *manifest.Rope) { r.Theta = math.NaN() }), 4, "theta"},
		{with(func(r *manifest.Rope) { r.Theta = 0 }), 4, "theta"},
		{with(func(r *manifest.Rope) { r.Type, r.Factor = "linear", 0 }), 4, "factor"},
		{with(func(r *manifest.Rope) { r.Type, r.OriginalMaxPositions = "dynamic", 0 }), 4, "original_max_positions"},
		{with(func(r *manifest.Rope) { r.Type, r.Dim = "dynamic", 2 }), 4, "dim"},
		{with(func(r *manifest.Rope) { r.Type, r.OriginalMaxPositions = "yarn", 0 }), 4, "original_max_positions"},
		{with(func(r *manifest.Rope) { r.Type, r.HighFreqFactor = "llama3", 1 }), 4, "high_freq_factor"},
		{good, 0, "0 positions"},
		{good, 1 << 40, "positions"},
	}
	for _, c := range cases {
		if _, _, err := RopeTables(c.rope, c.positions, 64); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v, %d positions: error %v, want one with %q", c.rope, c.positions, err, c.want)
		}
	}
}

// The base of a prompt's length is that of get_ntk_alpha in Qwen-7B's code, worked out in Python.
func TestPromptNTKGrowsInSteps(t *testing.T) {
	r := manifest.Rope{Type: manifest.RopePromptNTK, Theta: 10000, Dim: 128, OriginalMaxPositions: 2048}
	for _, c := range []struct {
		prompt int
		alpha  float64
	}{{0, 1}, {2048, 1}, {2049, 3}, {4096, 3}, {4097, 7}, {8192, 7}} {
		got, _, err := ropeFrequencies(r, c.prompt)
		if err != nil {
			t.Fatal(err)
		}
		want := inverseFrequencies(float32(10000*math.Pow(c.alpha, 128.0/126)), 128)
		if !slices.Equal(got, want) {
			t.Errorf("a prompt of %d tokens does not have α = %v", c.prompt, c.alpha)
		}
	}
	if _, _, err := ropeFrequencies(manifest.Rope{Type: manifest.RopePromptNTK, Theta: 10000, Dim: 128}, 1); err == nil {
		t.Error("no original length gives no error")
	}
}
