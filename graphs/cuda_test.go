package graphs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"
)

// compileShared builds a shared library for a test.
func compileShared(t *testing.T, to, source string, args ...string) string {
	t.Helper()
	compiler, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler: ", err)
	}
	cmd := exec.Command(compiler, append([]string{"-shared", "-fPIC", "-o", to, source}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile %s: %v\n%s", source, err, out)
	}
	return to
}

func emptySource(t *testing.T, folder string) string {
	t.Helper()
	path := filepath.Join(folder, "empty.c")
	if err := os.WriteFile(path, []byte("int glimpse_test_empty;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fakeCUDA is cudaMemory over a runtime that has no GPU.
func fakeCUDA(t *testing.T, device int) *cudaMemory {
	t.Helper()
	library := compileShared(t, filepath.Join(t.TempDir(), "libcudart.so.13"), "testdata/cudart.c", "-Wl,-soname,libcudart.so.13")
	m, err := openCUDA(library, device)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// CUDAMemoryForTest is the memory of a GPU that does not exist, for the suite in graphstest. ONNX Runtime takes it for ordinary.
func CUDAMemoryForTest(t *testing.T) DeviceMemory { return ordinaryPlace{fakeCUDA(t, 0)} }

type ordinaryPlace struct{ *cudaMemory }

func (ordinaryPlace) Place() (string, int) { return "Cpu", 0 }

func TestCUDAMemory(t *testing.T) {
	m := fakeCUDA(t, 1)
	if name, id := m.Place(); name != "Cuda" || id != 1 {
		t.Errorf("place %s %d", name, id)
	}
	before, err := m.Available()
	if err != nil || before != 32<<20 {
		t.Fatalf("%d bytes of device 1, %v", before, err)
	}
	gpus, err := m.devices()
	if err != nil || len(gpus) != 2 || gpus[0] != (GPU{0, 64 << 20}) || gpus[1] != (GPU{1, 32 << 20}) {
		t.Errorf("GPUs %v, %v", gpus, err)
	}
	p, err := m.Allocate(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if after, _ := m.Available(); after != before-1<<20 {
		t.Errorf("%d bytes are left of %d", after, before)
	}
	if _, err := m.Allocate(40 << 20); !errors.Is(err, ErrOutOfMemory) || !strings.Contains(err.Error(), "GPU 1 refused 40.0 MiB") {
		t.Errorf("40 MiB of 32: %v", err)
	}
	if _, err := m.Allocate(0); err == nil {
		t.Error("nothing was allocated")
	}
	if err := m.Free(p); err != nil {
		t.Error(err)
	}
	if err := m.Free(p); err == nil || !strings.Contains(err.Error(), "CUDA failure 1: cudaFree: invalid argument") {
		t.Errorf("freed twice: %v", err)
	}
	absent := &cudaMemory{m.runtime, 7}
	if _, err := absent.Allocate(8); err == nil || !strings.Contains(err.Error(), "invalid device ordinal") {
		t.Errorf("GPU 7: %v", err)
	}
	var data [8]byte
	bad := BlockCopy{To: unsafe.Pointer(&data), From: unsafe.Pointer(&data), ToPitch: 1, FromPitch: 1, Width: 2, Rows: 2}
	if err := m.Copy([]BlockCopy{bad}); err == nil || !strings.Contains(err.Error(), "cudaMemcpy2D") {
		t.Errorf("rows closer than they are wide: %v", err)
	}
}

// ONNX Runtime takes a tensor over memory that it is told lies on a GPU, without a GPU: nothing is read until a run.
func TestCUDAPlace(t *testing.T) {
	rt, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	m := fakeCUDA(t, 0)
	tensor, err := rt.NewTensorIn(m, Float16, 3, 5)
	if err != nil {
		t.Fatal(err)
	}
	if err := tensor.Reshape(5, 3); err != nil {
		t.Error(err)
	}
	if err := tensor.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := m.Available(); left != 64<<20 {
		t.Errorf("%d bytes are left", left)
	}
}

// The runtime is the one that the provider names; whatever is missing around it is said by name.
func TestCUDALibraries(t *testing.T) {
	folder := t.TempDir()
	source := emptySource(t, folder)
	library := filepath.Join(folder, "libonnxruntime.so.1.32.0")
	providers := []string{"CUDAExecutionProvider", "CPUExecutionProvider"}
	refused := func(want ...string) {
		t.Helper()
		err := checkCUDA(library, "1.32.0", providers)
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%v: does not say %q", err, w)
			}
		}
	}
	refused("libonnxruntime_providers_cuda.so", "1.32.0", "--device cpu")
	provider := filepath.Join(folder, cudaLibraries[0])
	runtime := compileShared(t, filepath.Join(folder, "libcudart.so.99"), source, "-Wl,-soname,libcudart.so.99")
	blas := compileShared(t, filepath.Join(folder, "libcublas.so.99"), source, "-Wl,-soname,libcublas.so.99")
	compileShared(t, provider, source, "-Wl,--no-as-needed", runtime, blas)
	refused("libonnxruntime_providers_shared.so")
	compileShared(t, filepath.Join(folder, cudaLibraries[1]), source)
	refused(provider, "libcudart.so.99, libcublas.so.99, libcudnn.so.9", "LD_LIBRARY_PATH")
	if name, err := cudaRuntime(provider); err != nil || name != "libcudart.so.99" {
		t.Errorf("runtime %q, %v", name, err)
	}
	if _, err := openCUDA(runtime, 0); err == nil || !strings.Contains(err.Error(), "cudaGetDeviceCount") {
		t.Errorf("a library that is no CUDA runtime: %v", err)
	}
	if _, err := openCUDA("libcudart.so.99", 0); err == nil || !strings.Contains(err.Error(), "libcudart.so.99") {
		t.Errorf("a runtime that is not there: %v", err)
	}
	compileShared(t, provider, source) // a build with the runtime inside
	if _, err := cudaRuntime(provider); err == nil || !strings.Contains(err.Error(), "libcudart.so") {
		t.Errorf("a provider without a shared runtime: %v", err)
	}
	if err := checkCUDA(library, "1.32.0", providers); err != nil {
		t.Errorf("everything is there: %v", err)
	}
	providers = providers[1:]
	refused(library, "built without CUDA", "GPU package")
	providers = []string{"CUDAExecutionProvider"}
	if err := os.WriteFile(provider, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(provider, "read what")
}
