package graphs_test

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"glimpse/graphs"
	"glimpse/graphs/graphstest"
)

func open(t testing.TB) *graphs.Runtime {
	t.Helper()
	return openWith(t, graphs.Options{})
}

func openWith(t testing.TB, options graphs.Options) *graphs.Runtime {
	t.Helper()
	runtime, err := graphs.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := runtime.Close(); err != nil {
			t.Error(err)
		}
	})
	return runtime
}

func TestConformanceCPU(t *testing.T) {
	graphstest.Conformance(t, open(t), graphs.SessionOptions{Device: graphs.CPU, Threads: 1}, "testdata")
}

// The same with a device whose memory nothing but runs and copies may touch.
func TestConformanceShielded(t *testing.T) {
	memory := graphstest.NewShielded(1 << 30)
	graphstest.Conformance(t, openWith(t, graphs.Options{DeviceMemory: memory}), graphs.SessionOptions{Device: graphs.CPU, Threads: 1}, "testdata")
	if memory.Used() != 0 || memory.Copied() == 0 || memory.Entered() == 0 {
		t.Errorf("%d bytes were not given back; %d bytes copied, %d times entered", memory.Used(), memory.Copied(), memory.Entered())
	}
}

// The same with a GPU's memory, as far as that goes without one: a CUDA runtime whose memory is the process's.
func TestConformanceCUDAMemory(t *testing.T) {
	memory := graphs.CUDAMemoryForTest(t)
	before, err := memory.Available()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("suite", func(t *testing.T) {
		graphstest.Conformance(t, openWith(t, graphs.Options{DeviceMemory: memory}), graphs.SessionOptions{Device: graphs.CPU, Threads: 1}, "testdata")
	})
	if after, err := memory.Available(); err != nil || after != before {
		t.Errorf("%d of %d bytes were given back, %v", after, before, err)
	}
}

// The shield is one: a touch without a run or a copy is a fault.
func TestShieldFaults(t *testing.T) {
	memory := graphstest.NewShielded(1 << 20)
	p, err := memory.Allocate(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Free(p)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	touch := func() (fault any) {
		defer func() { fault = recover() }()
		*(*byte)(p) = 1
		return nil
	}
	if touch() == nil {
		t.Error("shielded memory was written")
	}
	memory.Enter()
	if fault := touch(); fault != nil {
		t.Errorf("during a run: %v", fault)
	}
	memory.Leave()
	if touch() == nil {
		t.Error("shielded memory was written after a run")
	}
}

// The CUDA suite wants a GPU and the GPU package's library, so it runs where
// GLIMPSE_TEST_CUDA says that both are there.
func TestConformanceCUDA(t *testing.T) {
	if os.Getenv("GLIMPSE_TEST_CUDA") == "" {
		t.Skip("GLIMPSE_TEST_CUDA is not set")
	}
	graphstest.Conformance(t, open(t), graphs.SessionOptions{Device: graphs.CUDA, Threads: 1}, "testdata")
}

func TestParseDevice(t *testing.T) {
	for _, tc := range []struct {
		name   string
		device graphs.Device
		id     int
		given  bool
	}{{"", graphs.CPU, 0, false}, {"cpu", graphs.CPU, 0, false}, {"auto", graphs.Auto, 0, false}, {"cuda", graphs.CUDA, 0, false}, {"cuda:0", graphs.CUDA, 0, true}, {"cuda:3", graphs.CUDA, 3, true}} {
		device, id, given, err := graphs.ParseDevice(tc.name)
		if err != nil || device != tc.device || id != tc.id || given != tc.given {
			t.Errorf("%q: %v, %d, %v, %v", tc.name, device, id, given, err)
		}
	}
	for _, name := range []string{"tpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cuda:256", "cuda:1:2", "cpu:0", "auto:1", ":1"} {
		if _, _, _, err := graphs.ParseDevice(name); err == nil || !strings.Contains(err.Error(), strconv.Quote(name)) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
