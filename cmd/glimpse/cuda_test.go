package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// A model for CUDA is one that the CPU computes too, and says so.
func TestConvertForCUDA(t *testing.T) {
	out := filepath.Join(t.TempDir(), "m")
	refused(t, glimpse(t, "convert", checkpoint, "-o", out, "--target", "cuda", "--precision", "int8"), "MatMulIntegerToFloat", "fp16")
	refused(t, glimpse(t, "convert", checkpoint, "-o", out, "--target", "npu"), "npu", "cuda")
	r := must(t, "convert", checkpoint, "-o", out, "--target", "cuda", "--precision", "fp16")
	if !strings.Contains(r.stdout, "precision fp16, for cuda") {
		t.Errorf("the target is not printed: %s", r.stdout)
	}
	in := decode[inspection](t, must(t, "inspect", out, "--json").stdout)
	if in.Target != "cuda" || in.Decoder == nil || in.Decoder.CacheDType != "float16" || in.Precision != "fp16" {
		t.Errorf("%+v", in)
	}
	v := must(t, "verify", out, "--golden", goldenSet)
	if strings.Count(v.stderr, "made for CUDA") != 1 || !strings.Contains(v.stdout, "10 of 10 cases ok") {
		t.Errorf("%s%s", v.stderr, v.stdout)
	}
}

// Without the GPU package --device cuda is an error that names the file and says what to do, in one line; auto takes the CPU and says
// so, in one line.
func TestDeviceCUDAWithoutItsLibrary(t *testing.T) {
	m := model(t)
	cuda := glimpse(t, "ask", m, "hi", "--device", "cuda", "--max-tokens", "2")
	if cuda.code == 0 || cuda.stdout != "" || strings.Count(cuda.stderr, "\n") != 1 {
		t.Errorf("exit %d, %q, %q", cuda.code, cuda.stdout, cuda.stderr)
	}
	for _, want := range []string{"libonnxruntime_providers_cuda.so beside ", "GPU package", "--device cpu"} {
		if !strings.Contains(cuda.stderr, want) {
			t.Errorf("%q does not say %q", cuda.stderr, want)
		}
	}
	auto := must(t, "ask", m, "hi", "--device", "auto", "--max-tokens", "2")
	if auto.stdout == "" || strings.Count(auto.stderr, "\n") != 1 || !strings.Contains(auto.stderr, "device auto: graphs run on the CPU") || !strings.Contains(auto.stderr, "libonnxruntime_providers_cuda.so") {
		t.Errorf("%q, %q", auto.stdout, auto.stderr)
	}
	doctor := glimpse(t, "doctor", "--json")
	var d diagnosis
	if err := json.Unmarshal([]byte(doctor.stdout), &d); err != nil || !strings.Contains(d.ONNXRuntime.CUDA, "libonnxruntime_providers_cuda.so") || len(d.ONNXRuntime.GPUs) != 0 {
		t.Errorf("doctor says of CUDA %q, %v", d.ONNXRuntime.CUDA, err)
	}
}
