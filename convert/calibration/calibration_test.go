package calibration_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"glimpse/convert/calibration"
)

func gathered(t testing.TB) *calibration.Statistics {
	t.Helper()
	a := calibration.NewAccumulator()
	a.Add("decoder", calibration.PortInputs+"layers.0.mlp", []float32{3, 1, 9, 1, 1})
	a.Add("decoder", calibration.PortInputs+"layers.0.mlp", []float32{2, 4, 7, 31, 3})
	a.Add("decoder", calibration.PortHessian+"layers.0.mlp", []float32{16, 8, 8, 32})
	a.Add("vision", calibration.PortInputs+"fc1", []float32{2, 4, 1})
	a.Add("decoder", "logits", []float32{1})
	s, err := a.Statistics()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSumsBecomeMeans(t *testing.T) {
	s := gathered(t)
	want := &calibration.Layer{Rows: 4, Maximum: []float32{3, 4}, Square: []float32{4, 8}, Hessian: []float32{4, 2, 2, 8}}
	if diff := cmp.Diff(want, s.Layer("decoder/layers.0.mlp", 2)); diff != "" {
		t.Error(diff)
	}
	if s.Layer("decoder/layers.0.mlp", 3) != nil || s.Layer("decoder/other", 2) != nil {
		t.Error("statistics of a layer that has none")
	}
	if s.Rows("decoder") != 4 || s.Rows("vision") != 1 {
		t.Errorf("%d and %d rows", s.Rows("decoder"), s.Rows("vision"))
	}
	a := calibration.NewAccumulator()
	a.Add("decoder", calibration.PortInputs+"x", []float32{1, 2})
	if _, err := a.Statistics(); err == nil {
		t.Error("an even number of values was taken")
	}
}

func TestFileKeepsStatistics(t *testing.T) {
	s := gathered(t)
	path := filepath.Join(t.TempDir(), "c.safetensors")
	if err := s.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := calibration.Read(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Keys(), got.Keys()); diff != "" {
		t.Fatal(diff)
	}
	for _, key := range s.Keys() {
		k := int64(2)
		if key == "vision/fc1" {
			k = 1
		}
		if diff := cmp.Diff(s.Layer(key, k), got.Layer(key, k)); diff != "" {
			t.Errorf("%s: %s", key, diff)
		}
	}
}

// FuzzRead: whatever is in the file, an error or statistics that hold together.
func FuzzRead(f *testing.F) {
	path := filepath.Join(f.TempDir(), "c.safetensors")
	if err := gathered(f).Write(path); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`0       {"a:rows":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}abcd`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "c.safetensors")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := calibration.Read(t.Context(), path)
		if err != nil {
			return
		}
		for _, key := range s.Keys() {
			for k := range int64(8) {
				if l := s.Layer(key, k); l != nil && (l.Rows < 1 || int64(len(l.Maximum)) != k) {
					t.Fatalf("%s: %+v", key, l)
				}
			}
		}
	})
}
