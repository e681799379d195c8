package graphs_test

import (
	"os"
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
