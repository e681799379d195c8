package convert_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"glimpse/convert"
)

// Whatever can be planned for the CPU can be for CUDA: no graph of a real release has an operator that is not thought of.
func TestInventoriesForCUDA(t *testing.T) {
	list, err := filepath.Glob("../testdata/inventories/*.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	list = append(list, "../testdata/inventories/video-llama.toml")
	planned := 0
	for _, path := range list {
		if _, err := convert.Convert(t.Context(), convert.Options{Checkpoint: path, Precision: "fp32", Plan: true}); err != nil {
			continue // a piece of a release
		}
		planned++
		for _, precision := range []string{"auto", "fp32", "fp16", "int4"} {
			s, err := convert.Convert(t.Context(), convert.Options{Checkpoint: path, Precision: precision, Target: "cuda", Plan: true})
			if err != nil {
				t.Errorf("%s in %s: %v", filepath.Base(path), precision, err)
				continue
			}
			for _, c := range s.Components {
				if c.Name == "prefill" || c.Name == "decoder" && precision == "int4" && c.Formats["int4"] == 0 {
					t.Errorf("%s in %s: component %s stored as %v", filepath.Base(path), precision, c.Name, c.Formats)
				}
			}
		}
	}
	if planned < 15 {
		t.Errorf("only %d inventories were planned", planned)
	}
}

// What cannot be made for CUDA is the options' fault, and says what can.
func TestOptionsForCUDA(t *testing.T) {
	const tiny = "../testdata/goldens/llava15-tiny/checkpoint"
	for _, tc := range []struct{ target, precision, want string }{
		{"cuda", "int8", "use fp16, int4 or fp32"}, {"rocm", "fp16", `target "rocm" is not known`}, {"cuda", "fp8", `precision "fp8" is not known`},
	} {
		_, err := convert.Convert(t.Context(), convert.Options{Checkpoint: tiny, Precision: tc.precision, Target: tc.target, Plan: true})
		if !errors.Is(err, convert.ErrInput) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s for %s: %v", tc.precision, tc.target, err)
		}
	}
}
