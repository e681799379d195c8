package graphs_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"glimpse/graphs"
	"glimpse/graphs/graphstest"
)

func open(t testing.TB) *graphs.Runtime {
	t.Helper()
	runtime, err := graphs.Open(graphs.Options{})
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
