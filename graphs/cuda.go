package graphs

// Memory of NVIDIA GPUs, for caches that stay there.
//
// ONNX Runtime takes tensors over memory that somebody else allocated (CreateMemoryInfo, CreateTensorWithDataAsOrtValue), as inputs
// and as outputs of a run, and copies nothing that already lies where the provider computes. Allocating and copying are left to the
// CUDA runtime itself, the one that the provider was linked with:
//
//   - OrtApi's CopyTensors finds its copies in providers that were registered with the environment as plugins; the CUDA provider is
//     appended to a session's options, and then is not among them.
//   - An allocator of the session (CreateAllocator) would hand out memory, but nothing to copy it with or to ask how much is left.
//
// A run ends with its stream synchronized, so copies that start afterwards see what it wrote. They wait for themselves, because the
// provider's streams do not wait for the one that copies use.

// #include <stdlib.h>
// #include "cuda.h"
import "C"

import (
	"debug/elf"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"
)

// cudaMemory is the memory of one GPU.
type cudaMemory struct {
	runtime *C.gl_cuda // never freed: the library stays loaded for as long as the process
	device  int
}

// cudaPlace is ONNX Runtime's name of the memory.
const cudaPlace = "Cuda"

// cudaMemory returns the memory of a GPU on which a session runs.
func (e *environment) cudaMemory(device int) (*cudaMemory, error) {
	e.devices.Lock()
	defer e.devices.Unlock()
	if m := e.cuda[device]; m != nil {
		return m, nil
	}
	name, err := cudaRuntime(filepath.Join(libraryFolder(e.path), cudaLibraries[0]))
	if err != nil {
		return nil, err
	}
	m, err := openCUDA(name, device)
	if err != nil {
		return nil, err
	}
	if e.cuda == nil {
		e.cuda = map[int]*cudaMemory{}
	}
	e.cuda[device] = m
	return m, nil
}

// cudaRuntime is the name of the CUDA runtime that the provider needs, such as libcudart.so.13. It is loaded already when a session
// is, and then the loader returns that one.
func cudaRuntime(provider string) (string, error) {
	needed, err := neededBy(provider)
	if err != nil {
		return "", err
	}
	for _, name := range needed {
		if strings.HasPrefix(name, "libcudart.so") {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s needs no libcudart.so among %s: its memory cannot be shared", provider, strings.Join(needed, ", "))
}

// GPU is a device that CUDA sees.
type GPU struct {
	Number    int   // N of --device cuda:N
	Available int64 // bytes
}

// findGPUs asks the CUDA runtime of a provider for its devices; none is an error.
func findGPUs(provider string) ([]GPU, error) {
	name, err := cudaRuntime(provider)
	if err != nil {
		return nil, err
	}
	m, err := openCUDA(name, 0)
	if err != nil {
		return nil, err
	}
	return m.devices()
}

func (m *cudaMemory) devices() (list []GPU, err error) {
	var count C.int
	if err := m.result(C.gl_cuda_count(m.runtime, &count)); err != nil {
		return nil, fmt.Errorf("device cuda: no GPU can be used: %w", err)
	}
	if count < 1 {
		return nil, errors.New("device cuda: there is no GPU")
	}
	for i := range int(count) {
		available, err := (&cudaMemory{m.runtime, i}).Available()
		if err != nil {
			return nil, fmt.Errorf("device cuda: GPU %d: %w", i, err)
		}
		list = append(list, GPU{i, available})
	}
	return list, nil
}

// openCUDA loads the CUDA runtime by the name or path given.
func openCUDA(library string, device int) (*cudaMemory, error) {
	name := C.CString(library)
	defer C.free(unsafe.Pointer(name))
	runtime := (*C.gl_cuda)(C.calloc(1, C.size_t(unsafe.Sizeof(C.gl_cuda{}))))
	if err := nativeError(C.gl_cuda_open(runtime, name)); err != nil {
		C.free(unsafe.Pointer(runtime))
		return nil, fmt.Errorf("load the CUDA runtime %s: %w", library, err)
	}
	return &cudaMemory{runtime, device}, nil
}

func (m *cudaMemory) Place() (string, int) { return cudaPlace, m.device }

func (m *cudaMemory) Allocate(bytes int64) (unsafe.Pointer, error) {
	if bytes < 1 {
		return nil, fmt.Errorf("%d bytes is no possible size", bytes)
	}
	var memory unsafe.Pointer
	if err := m.result(C.gl_cuda_alloc(m.runtime, C.int(m.device), C.size_t(bytes), &memory)); err != nil {
		return nil, fmt.Errorf("GPU %d refused %s: %w", m.device, formatBytes(bytes), err)
	}
	return memory, nil
}

func (m *cudaMemory) Free(memory unsafe.Pointer) error {
	return m.result(C.gl_cuda_free(m.runtime, C.int(m.device), memory))
}

func (m *cudaMemory) Copy(copies []BlockCopy) error {
	for _, c := range copies {
		err := m.result(C.gl_cuda_copy(m.runtime, C.int(m.device), c.To, C.size_t(c.ToPitch), c.From, C.size_t(c.FromPitch), C.size_t(c.Width), C.size_t(c.Rows)))
		if err != nil {
			return fmt.Errorf("copy %d × %d bytes on GPU %d: %w", c.Rows, c.Width, m.device, err)
		}
	}
	return m.result(C.gl_cuda_synchronize(m.runtime, C.int(m.device)))
}

func (m *cudaMemory) Available() (int64, error) {
	var bytes C.size_t
	err := m.result(C.gl_cuda_available(m.runtime, C.int(m.device), &bytes))
	return int64(bytes), err
}

// Enter and Leave have nothing to do: the memory is always the device's alone.
func (m *cudaMemory) Enter() {}
func (m *cudaMemory) Leave() {}

// result turns a message into an error, which says when memory was short.
func (m *cudaMemory) result(message *C.char) error { return outOfMemory(nativeError(message)) }

// missingNeeds names what a provider's library needs and the system's loader does not find: CUDA's own libraries. The provider itself
// is not loaded: its constructors want ONNX Runtime around them.
func missingNeeds(provider string) error {
	needed, err := neededBy(provider)
	if err != nil {
		return err
	}
	missing := slices.DeleteFunc(slices.Clone(needed), loads)
	named := func(prefix string) bool {
		return slices.ContainsFunc(needed, func(library string) bool { return strings.HasPrefix(library, prefix) })
	}
	if named("libcudart.so") && !named("libcudnn.so") && !slices.ContainsFunc(cudnnLibraries, loads) {
		missing = append(missing, cudnnLibraries[0])
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("device cuda: %s needs %s, which the system's loader does not find: install CUDA and cuDNN, or name their folder in LD_LIBRARY_PATH",
		provider, strings.Join(missing, ", "))
}

// cudnnLibraries are the names by which a provider looks for cuDNN when the first convolution or masked attention runs: its header
// need not name it.
var cudnnLibraries = []string{"libcudnn.so.9", "libcudnn.so.10", "libcudnn.so"}

// loads reports whether the system's loader finds a library.
func loads(library string) bool {
	name := C.CString(library)
	defer C.free(unsafe.Pointer(name))
	return nativeError(C.gl_load(name)) == nil
}

func neededBy(provider string) ([]string, error) {
	file, err := elf.Open(provider)
	if err != nil {
		return nil, fmt.Errorf("read what %s needs: %w", provider, err)
	}
	defer file.Close()
	needed, err := file.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read what %s needs: %w", provider, err)
	}
	return needed, nil
}

// libraryFolder is the folder that ONNX Runtime looks for its providers in.
func libraryFolder(library string) string {
	if real, err := filepath.EvalSymlinks(library); err == nil {
		return filepath.Dir(real)
	}
	return filepath.Dir(library)
}
