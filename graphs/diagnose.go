package graphs

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"glimpse/graphs/kernels"
)

// Diagnosis is what `glimpse doctor` says about running graphs on this machine.
type Diagnosis struct {
	Library        Library  // what was found; Tried lists the places before it
	Err            error    // why none can be used, or nil
	MinimumVersion string   // the oldest ONNX Runtime that fits
	RequiredAPI    int      // the C API version the binding asks for
	BindingVersion string   // the Go binding's module version
	Providers      []string // execution providers compiled into the library
	CUDA           error    // why --device cuda cannot be used, or nil
	GPUs           []GPU    // what --device cuda can use
	Features       []Feature
	Processors     int    // logical, all that Go sees
	Cores          int    // physical, allowed by the affinity mask
	Threads        int    // what a session uses without --threads
	Kernels        string // what of the processor our own kernels use, or "none"
}

// bindingModule is the Go module that binds ONNX Runtime.
const bindingModule = "github.com/yalue/onnxruntime_go"

// Diagnose looks for ONNX Runtime as Open would (flag is --ort-lib) without
// opening it, and at the processor.
func Diagnose(flag string) Diagnosis {
	d := Diagnosis{
		MinimumVersion: minimumVersion,
		RequiredAPI:    requiredAPI,
		BindingVersion: moduleVersion(bindingModule),
		Features:       cpuFeatures(),
		Processors:     runtime.NumCPU(),
		Cores:          physicalCores(),
		Threads:        DefaultThreads(),
		Kernels:        kernels.This().String(),
	}
	if d.Library, d.Err = FindLibrary(flag); d.Err != nil {
		d.CUDA = errors.New("no ONNX Runtime library")
		return d
	}
	d.Providers, d.Err = libraryProviders(d.Library.Path)
	if d.CUDA = checkCUDA(d.Library.Path, d.Library.Version, d.Providers); d.CUDA == nil {
		d.GPUs, d.CUDA = findGPUs(filepath.Join(libraryFolder(d.Library.Path), cudaLibraries[0]))
	}
	return d
}

func libraryProviders(path string) ([]string, error) {
	lib, err := openLibrary(path)
	if err != nil {
		return nil, err
	}
	defer lib.close()
	table, ok := lib.api(requiredAPI)
	if !ok {
		return nil, fmt.Errorf("%s does not offer C API %d", path, requiredAPI)
	}
	return table.providers()
}

// moduleVersion is the version of a module linked into this program.
func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == path {
				return module.Version
			}
		}
	}
	return "unknown"
}

// String writes the diagnosis as lines of "what: answer".
func (d Diagnosis) String() string {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s %s\n", what+":", fmt.Sprintf(format, args...))
	}
	if d.Err != nil {
		line("onnxruntime", "%v", d.Err)
	} else {
		line("onnxruntime", "%s at %s", d.Library.Version, d.Library.Path)
		for _, place := range d.Library.Tried {
			line("  before it", "%s", place)
		}
	}
	line("needed", "release %s or newer, C API %d (binding %s %s)", d.MinimumVersion, d.RequiredAPI, bindingModule, d.BindingVersion)
	if len(d.Providers) > 0 {
		line("providers", "%s", strings.Join(d.Providers, ", "))
	}
	if d.CUDA != nil {
		line("device cuda", "no: %v", d.CUDA)
	} else {
		line("device cuda", "%d GPUs", len(d.GPUs))
	}
	var present, absent []string
	for _, feature := range d.Features {
		if feature.Present {
			present = append(present, feature.Name)
		} else {
			absent = append(absent, feature.Name)
		}
	}
	line("cpu has", "%s", orNone(present))
	line("cpu lacks", "%s", orNone(absent))
	line("threads", "%d (%d cores allowed, %d processors)", d.Threads, d.Cores, d.Processors)
	return b.String()
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, " ")
}
