package graphs

import (
	"errors"
	"fmt"
	"strings"
)

// ErrOutOfMemory is what an error of Load or Run wraps when the memory of the
// machine or of the GPU did not suffice. The session stays usable: a smaller run
// may succeed.
var ErrOutOfMemory = errors.New("out of memory")

// outOfMemoryTexts are how ONNX Runtime's allocators, the C++ library and CUDA
// say it; ONNX Runtime has no status of its own for it.
var outOfMemoryTexts = []string{
	"Failed to allocate memory for requested buffer",
	"is smaller than requested bytes",
	"std::bad_alloc", "bad allocation",
	"CUDA failure 2:", "cudaErrorMemoryAllocation", "CUDA error out of memory",
	"CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
}

// outOfMemory marks an error of ONNX Runtime that says so; others stay as they
// are.
func outOfMemory(err error) error {
	if err == nil || errors.Is(err, ErrOutOfMemory) {
		return err
	}
	text := err.Error()
	for _, sign := range outOfMemoryTexts {
		if strings.Contains(text, sign) {
			return fmt.Errorf("%w: use fewer slots, a smaller context, a lower precision or fewer pictures at once: %w", ErrOutOfMemory, err)
		}
	}
	return err
}
