package engine

import (
	"encoding/binary"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/graphs"
	"glimpse/manifest"
	"glimpse/preprocess"
)

func TestEmbeddings(t *testing.T) {
	half := func(bits ...uint16) (raw []byte) {
		for _, b := range bits {
			raw = binary.LittleEndian.AppendUint16(raw, b)
		}
		return raw
	}
	full := func(values ...float32) (raw []byte) {
		for _, v := range values {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		}
		return raw
	}
	inf := float32(math.Inf(1))
	for _, c := range []struct {
		dtype string
		scale float64
		raw   []byte
		want  [2][]float32
	}{
		{"float32", 1, full(1, -2, 3.5, 0), [2][]float32{{1, -2}, {3.5, 0}}},
		{"float32", 4, full(1, -2, 3.5, 0), [2][]float32{{4, -8}, {14, 0}}},
		{"bfloat16", 0, half(0x3f80, 0xc000, 0x7f80, 0x3eab), [2][]float32{{1, -2}, {inf, 0.333984375}}},
		{"float16", 1, half(0x3c00, 0xc000, 0x0001, 0x7c00), [2][]float32{{1, -2}, {5.9604645e-8, inf}}},
		{"float16", 1, half(0x8000, 0x03ff, 0x7bff, 0x3555), [2][]float32{{float32(math.Copysign(0, -1)), 6.097555e-5}, {65504, 0.33325195}}},
	} {
		folder := t.TempDir()
		if err := os.WriteFile(filepath.Join(folder, "embeddings.bin"), c.raw, 0o600); err != nil {
			t.Fatal(err)
		}
		m := &manifest.Embeddings{File: "embeddings.bin", DType: c.dtype, Rows: 2, HiddenSize: 2, Scale: c.scale}
		table, err := openEmbeddings(folder, m)
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range c.want {
			row := make([]float32, 2)
			if err := table.row(row, int32(id)); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(want, row); diff != "" {
				t.Errorf("%s × %v, row %d: %s", c.dtype, c.scale, id, diff)
			}
		}
		for _, id := range []int32{-1, 2, math.MaxInt32, math.MinInt32} {
			if err := table.row(make([]float32, 2), id); err == nil {
				t.Errorf("row %d was read", id)
			}
		}
		for range 2 {
			if err := table.Close(); err != nil {
				t.Error(err)
			}
		}
		m.Rows = 3
		if _, err := openEmbeddings(folder, m); err == nil || !strings.Contains(err.Error(), "bytes") {
			t.Errorf("a file of another size: %v", err)
		}
	}
}

// All 65,536 halves against the definition.
func TestFloat16(t *testing.T) {
	for h := range 1 << 16 {
		sign, exponent, fraction := 1-2*float64(h>>15), h>>10&0x1f, float64(h&0x3ff)
		want := sign * math.Ldexp(1+fraction/1024, exponent-15)
		switch {
		case exponent == 0:
			want = sign * math.Ldexp(fraction, -24)
		case exponent == 31 && fraction != 0:
			want = math.NaN()
		case exponent == 31:
			want = math.Inf(int(sign))
		}
		got := float64(float16(uint16(h)))
		if got != want && !(math.IsNaN(got) && math.IsNaN(want)) || math.Signbit(got) != (h>>15 == 1) {
			t.Fatalf("half %#x is %v, want %v", h, got, want)
		}
	}
}

func TestCapacity(t *testing.T) {
	spec := manifest.Decoder{Layers: 2, KVHeads: 4, HeadDim: 8, MaxPositions: 5000, CacheDType: "float32"}
	const token = 2 * 2 * 4 * 8 * 4 // bytes of one slot
	opts := func(capacity, slots int) Options { return Options{Capacity: capacity, Slots: slots, PrefillChunk: 100} }
	for _, c := range []struct {
		name      string
		opts      Options
		available int64
		want      int
		says      string
	}{
		{"default", opts(0, 4), 1 << 40, 4096, ""},
		{"unknown memory", opts(0, 4), 0, 4096, ""},
		{"asked", opts(1000, 4), 1 << 40, 1000, ""},
		{"beyond what the model can", opts(9000, 4), 1 << 40, 5000, ""},
		{"default that shrinks", opts(0, 4), 4 * token * 1000, 900, ""},
		{"just fits", opts(900, 4), 4 * token * 1000, 900, ""},
		{"asked and too much", opts(901, 4), 4 * token * 1000, 0, "900 tokens a slot would fit"},
		{"nothing to speak of", opts(0, 4), 4 * token * 200, 0, "100 tokens a slot would fit"},
		{"nothing at all", opts(0, 4), token, 0, "0 tokens a slot would fit"},
	} {
		got, err := chooseCapacity(spec, c.opts, c.available, slog.New(slog.DiscardHandler))
		if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %d, %v; want %d, %q", c.name, got, err, c.want, c.says)
		}
	}
	spec.CacheDType = "float8"
	if _, err := chooseCapacity(spec, opts(0, 1), 1<<40, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("an unknown cache dtype was accepted")
	}
}

func TestParseAvailable(t *testing.T) {
	for raw, want := range map[string]int64{
		"MemTotal: 5 kB\nMemAvailable:   1234 kB\nX: 1 kB\n": 1234 << 10,
		"MemTotal: 5 kB\n":        0,
		"":                        0,
		"MemAvailable: many kB\n": 0,
		"MemAvailable: -5 kB\n":   0,
		"MemAvailable: 999999999999999999999 kB\n": 0,
	} {
		if got := parseAvailable(strings.NewReader(raw)); got != want {
			t.Errorf("%q: %d, want %d", raw, got, want)
		}
	}
}

func TestComparePorts(t *testing.T) {
	have := []graphs.Port{
		{Name: "a", DType: graphs.Float32, Shape: []int64{-1, 3}, Symbols: []string{"tiles", ""}},
		{Name: "b", DType: graphs.Int64, Shape: []int64{}},
	}
	want := func() []manifest.Port {
		return []manifest.Port{{Name: "b", DType: "int64", Shape: []string{}}, {Name: "a", DType: "float32", Shape: []string{"tiles", "3"}}}
	}
	if err := comparePorts("input", want(), have); err != nil {
		t.Error(err)
	}
	for name, edit := range map[string]func(p []manifest.Port) []manifest.Port{
		"dtype":      func(p []manifest.Port) []manifest.Port { p[1].DType = "float16"; return p },
		"size":       func(p []manifest.Port) []manifest.Port { p[1].Shape[1] = "4"; return p },
		"fixed":      func(p []manifest.Port) []manifest.Port { p[1].Shape[0] = "1"; return p },
		"free":       func(p []manifest.Port) []manifest.Port { p[1].Shape[1] = "width"; return p },
		"dimensions": func(p []manifest.Port) []manifest.Port { p[1].Shape = p[1].Shape[:1]; return p },
		"missing":    func(p []manifest.Port) []manifest.Port { return p[:1] },
		"extra":      func(p []manifest.Port) []manifest.Port { return append(p, manifest.Port{Name: "c", DType: "int64"}) },
	} {
		if err := comparePorts("input", edit(want()), have); err == nil {
			t.Errorf("another %s was accepted", name)
		}
	}
}

func TestResolve(t *testing.T) {
	port := graphs.Port{Name: "x", DType: graphs.Float32, Shape: []int64{-1, 16, -1}, Symbols: []string{"tiles", "", "tokens"}}
	got, err := resolve(port, map[string]int64{"tiles": 3, "tokens": 7})
	if err != nil || !cmp.Equal(got, []int64{3, 16, 7}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := resolve(port, map[string]int64{"tiles": 3}); err == nil || !strings.Contains(err.Error(), "tokens") {
		t.Errorf("an unknown dimension: %v", err)
	}
}

func TestConcat(t *testing.T) {
	one := func(shape []int64, values ...float32) *preprocess.Prepared {
		return &preprocess.Prepared{Tensors: map[string]*preprocess.Array{"x": {Shape: shape, Float32: values}}}
	}
	first := one([]int64{1, 2}, 1, 2)
	got, err := concat([]*preprocess.Prepared{first, one([]int64{2, 2}, 3, 4, 5, 6)})
	if diff := cmp.Diff(map[string]Array{"x": {Shape: []int64{3, 2}, Data: []float32{1, 2, 3, 4, 5, 6}}}, got); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
	if first.Tensors["x"].Shape[0] != 1 {
		t.Error("the first picture's shape was changed")
	}
	other := &preprocess.Prepared{Tensors: map[string]*preprocess.Array{"y": {Shape: []int64{1, 2}, Float32: []float32{1, 2}}}}
	both := &preprocess.Prepared{Tensors: map[string]*preprocess.Array{"x": first.Tensors["x"], "y": other.Tensors["y"]}}
	for name, list := range map[string][]*preprocess.Prepared{
		"another shape":   {first, one([]int64{1, 3}, 1, 2, 3)},
		"another name":    {first, other},
		"one name more":   {first, both},
		"one name less":   {both, first},
		"no dimension":    {one(nil, 1)},
		"another element": {one([]int64{1})},
	} {
		if _, err := concat(list); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
