package graphs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

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

// maxDeviceID bounds the number of a GPU.
const maxDeviceID = 255

// ParseDevice reads a --device value: cpu, cuda, auto, or cuda:N for GPU N; the
// empty string is cpu. given tells whether a number was named.
func ParseDevice(name string) (device Device, id int, given bool, err error) {
	word, number, numbered := strings.Cut(name, ":")
	switch device = Device(word); device {
	case "":
		device = CPU
	case CPU, CUDA, Auto:
	default:
		return "", 0, false, unknownDevice(name)
	}
	if !numbered {
		return device, 0, false, nil
	}
	id, err = strconv.Atoi(number)
	if device != CUDA || err != nil || id < 0 || id > maxDeviceID {
		return "", 0, false, unknownDevice(name)
	}
	return device, id, true, nil
}

func unknownDevice(name string) error {
	return fmt.Errorf("unknown device %q: want cpu, cuda, cuda:N for GPU N of those from 0 on, or auto", name)
}

// The libraries that ONNX Runtime loads from its own folder when a session asks
// for CUDA.
var cudaLibraries = []string{"libonnxruntime_providers_cuda.so", "libonnxruntime_providers_shared.so"}

// cudaProvider is ONNX Runtime's name of the provider.
const cudaProvider = "CUDAExecutionProvider"

// missingCUDA says which file of the CUDA provider is not beside the library, or
// that the library is not one that loads it. ONNX Runtime's own message for it
// differs between builds and often names none.
func missingCUDA(library, version string, providers []string) error {
	folder := libraryFolder(library)
	for _, name := range cudaLibraries {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			return fmt.Errorf("device cuda needs %s beside %s: use the library of ONNX Runtime's GPU package, release %s, or --device cpu", name, library, version)
		}
	}
	if !slices.Contains(providers, cudaProvider) {
		return fmt.Errorf("device cuda: %s was built without CUDA, though a provider lies beside it: use the library of ONNX Runtime's GPU package, release %s", library, version)
	}
	return nil
}

// checkCUDA says what is missing on this machine for device cuda, a GPU aside.
func checkCUDA(library, version string, providers []string) error {
	if err := missingCUDA(library, version, providers); err != nil {
		return err
	}
	return missingNeeds(filepath.Join(libraryFolder(library), cudaLibraries[0]))
}

// cudaOptions are the provider's options for a GPU.
func cudaOptions(deviceID int) map[string]string {
	return map[string]string{
		"device_id": strconv.Itoa(deviceID),
		// Doubling would leave up to half of the memory to nobody: a model's
		// buffers have the same sizes at every step.
		"arena_extend_strategy": "kSameAsRequested",
		// With TF32 a float32 graph differs from upstream in the fourth digit.
		"use_tf32": "0",
		// Otherwise the sums of a float16 SkipLayerNormalization are float16 themselves.
		"enable_skip_layer_norm_strict_mode": "1",
	}
}

// appendCUDA adds the CUDA provider to the options of a session.
func (e *environment) appendCUDA(options *ort.SessionOptions, deviceID int) error {
	providers, err := e.api.providers()
	if err != nil {
		return err
	}
	if err := missingCUDA(e.path, e.version, providers); err != nil {
		return err
	}
	if err := e.appendProvider(options, deviceID); err != nil {
		return whyNotCUDA(filepath.Join(libraryFolder(e.path), cudaLibraries[0]), deviceID, err)
	}
	return nil
}

// whyNotCUDA finds the reason that the provider cannot be used where ONNX
// Runtime's own message is about its source code.
func whyNotCUDA(provider string, deviceID int, err error) error {
	if missing := missingNeeds(provider); missing != nil {
		return missing
	}
	switch gpus, gpuErr := findGPUs(provider); {
	case gpuErr != nil:
		return gpuErr
	case deviceID >= len(gpus):
		return fmt.Errorf("device cuda:%d: this machine has %d, cuda:0 to cuda:%d", deviceID, len(gpus), len(gpus)-1)
	}
	return fmt.Errorf("device cuda:%d: %w", deviceID, err)
}

// appendProvider has ONNX Runtime load the provider, which looks for the GPU.
func (e *environment) appendProvider(options *ort.SessionOptions, deviceID int) error {
	cuda, err := ort.NewCUDAProviderOptions()
	if err != nil {
		return err
	}
	defer cuda.Destroy()
	if err := cuda.Update(cudaOptions(deviceID)); err != nil {
		return err
	}
	return options.AppendExecutionProviderCUDA(cuda)
}
