package onnx

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A weight that two graphs of a folder hold is written once, and both refer to the first graph's file.
func TestGraphsShareEqualWeights(t *testing.T) {
	folder := t.TempDir()
	shared, planned := NewShared(), NewShared()
	var results []Result
	for i, name := range []string{"first", "second", "third"} {
		p := &filled{sizes: []int64{32000, 12}, value: 7}
		g := small(p)
		if i == 2 { // one weight of its own, after the shared ones
			w := g.AddPayload(&filled{sizes: []int64{64}, value: 9}, WeightSpec{"more", Float, []int64{16}})
			g.Output("more_out", g.Op("Identity", []*Value{w[0]}), Float, Fixed(16))
		}
		size := g.DataBytes(planned)
		res, err := g.Write(t.Context(), filepath.Join(folder, name+".onnx"), Options{Shared: shared})
		if err != nil {
			t.Fatal(err)
		}
		if size != res.DataBytes {
			t.Errorf("%s: %d bytes were planned and %d written", name, size, res.DataBytes)
		}
		results = append(results, res)
	}
	if results[0].DataFile != "first.onnx.data" || results[0].DataBytes == 0 || results[1].DataBytes != 0 || results[1].DataFile != "" || results[2].DataBytes != 64 {
		t.Errorf("%+v", results)
	}
	for name, others := range map[string]int{"first.onnx": 0, "second.onnx": 2, "third.onnx": 2} {
		raw, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(raw, []byte("first.onnx.data")); n != max(others, 2) {
			t.Errorf("%s refers to the first graph's data %d times", name, n)
		}
	}
	if _, err := os.Stat(filepath.Join(folder, "second.onnx.data")); err == nil {
		t.Error("the second graph has a data file of its own")
	}
}
