package graphs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	ort "github.com/yalue/onnxruntime_go"
)

// Device says what computes a session's graph.
type Device string

// The devices a session can be loaded for.
const (
	CPU  Device = "cpu"
	CUDA Device = "cuda"
	Auto Device = "auto" // cuda when it is there and works, else cpu
)

// ParseDevice reads a --device value; the empty string is CPU.
func ParseDevice(name string) (Device, error) {
	switch device := Device(name); device {
	case "":
		return CPU, nil
	case CPU, CUDA, Auto:
		return device, nil
	}
	return "", fmt.Errorf("unknown device %q: want cpu, cuda or auto", name)
}

// The libraries that ONNX Runtime loads from its own folder when a session asks
// for CUDA.
var cudaLibraries = []string{"libonnxruntime_providers_cuda.so", "libonnxruntime_providers_shared.so"}

// missingCUDA says which file of the CUDA provider is not beside the library.
// ONNX Runtime's own message for it differs between builds and often names none.
func missingCUDA(library, version string) error {
	folder := filepath.Dir(library)
	if real, err := filepath.EvalSymlinks(library); err == nil {
		folder = filepath.Dir(real)
	}
	for _, name := range cudaLibraries {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			return fmt.Errorf("device cuda needs %s beside %s: use the library of ONNX Runtime's GPU package, release %s, or --device cpu", name, library, version)
		}
	}
	return nil
}

// appendCUDA adds the CUDA provider to the options of a session.
func (e *environment) appendCUDA(options *ort.SessionOptions, deviceID int) error {
	if err := missingCUDA(e.path, e.version); err != nil {
		return err
	}
	cuda, err := ort.NewCUDAProviderOptions()
	if err != nil {
		return fmt.Errorf("device cuda: %w", err)
	}
	defer cuda.Destroy()
	if err := cuda.Update(map[string]string{"device_id": strconv.Itoa(deviceID)}); err != nil {
		return fmt.Errorf("device cuda %d: %w", deviceID, err)
	}
	if err := options.AppendExecutionProviderCUDA(cuda); err != nil {
		return fmt.Errorf("device cuda %d: load %s: %w", deviceID, cudaLibraries[0], err)
	}
	return nil
}
