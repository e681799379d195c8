package graphs

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// DefaultThreads is the number of physical cores that this process may use:
// those its affinity mask allows, counted once whatever their hyper-threads, and
// no more than GOMAXPROCS, which follows a container's CPU limit.
func DefaultThreads() int {
	return max(1, min(physicalCores(), runtime.GOMAXPROCS(0)))
}

// physicalCores counts the cores behind the processors of the affinity mask.
func physicalCores() int {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return runtime.NumCPU()
	}
	cores := make(map[string]bool)
	for processor, left := 0, allowed.Count(); left > 0 && processor < 64*len(allowed); processor++ {
		if !allowed.IsSet(processor) {
			continue
		}
		left--
		// The list of a core's hyper-threads is the same text for each of them.
		siblings, err := os.ReadFile(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", processor))
		if err != nil {
			siblings = fmt.Append(nil, processor)
		}
		cores[strings.TrimSpace(string(siblings))] = true
	}
	if len(cores) == 0 {
		return runtime.NumCPU()
	}
	return len(cores)
}

// Feature is an instruction set and whether the processor has it.
type Feature struct {
	Name    string
	Present bool
}

// Processor names the processor and the instruction sets that kernels choose by, for
// keys of what is measured or made on one machine.
func Processor() string {
	var words []string
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(raw), "model name"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			words = append(words, strings.TrimLeft(line, "\t: "))
		}
	}
	for _, f := range cpuFeatures() {
		if f.Present {
			words = append(words, f.Name)
		}
	}
	return runtime.GOARCH + " " + strings.Join(words, " ")
}

// saturates reports whether int8 kernels add pairs of products in 16 bits, which
// uint8 activations times int8 weights overflow: x86 before VNNI. ONNX Runtime
// then has slower kernels that do not, when it is asked.
func saturates() bool {
	return runtime.GOARCH == "amd64" && !cpu.X86.HasAVX512VNNI && !cpu.X86.HasAVXVNNI
}

// cpuFeatures lists what ONNX Runtime's kernels look for.
func cpuFeatures() []Feature {
	switch runtime.GOARCH {
	case "amd64":
		return []Feature{
			{"avx2", cpu.X86.HasAVX2},
			{"fma", cpu.X86.HasFMA},
			{"avx512f", cpu.X86.HasAVX512F},
			{"avx512_vnni", cpu.X86.HasAVX512VNNI},
			{"avx512_bf16", cpu.X86.HasAVX512BF16},
			{"avx_vnni", cpu.X86.HasAVXVNNI},
			{"amx_tile", cpu.X86.HasAMXTile},
			{"amx_int8", cpu.X86.HasAMXInt8},
			{"amx_bf16", cpu.X86.HasAMXBF16},
		}
	case "arm64":
		return []Feature{
			{"asimd", cpu.ARM64.HasASIMD},
			{"asimddp", cpu.ARM64.HasASIMDDP},
			{"i8mm", cpu.ARM64.HasI8MM},
			{"sve", cpu.ARM64.HasSVE},
		}
	}
	return nil
}
