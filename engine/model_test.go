package engine_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"glimpse/convert"
	"glimpse/engine"
	"glimpse/graphs"
)

// goldens is the folder of golden sets in the repository.
const goldens = "../testdata/goldens"

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if converted.folder != "" {
			os.RemoveAll(filepath.Dir(converted.folder))
		}
		os.Exit(code)
	}))
}

// converted holds the model folder that TestMain removes; converting takes a second, so it is done once.
var converted struct {
	once   sync.Once
	folder string
	err    error
}

// tinyModel returns llava15-tiny as a model folder at fp32.
func tinyModel(t testing.TB) string {
	t.Helper()
	converted.once.Do(func() {
		dir, err := os.MkdirTemp("", "glimpse-engine-")
		if err != nil {
			converted.err = err
			return
		}
		converted.folder = filepath.Join(dir, "llava15-tiny")
		_, converted.err = convert.Convert(t.Context(), convert.Options{
			Checkpoint: filepath.Join(goldens, "llava15-tiny", "checkpoint"), Out: converted.folder, Precision: "fp32",
		})
	})
	if converted.err != nil {
		t.Fatal(converted.err)
	}
	return converted.folder
}

// openRuntime opens ONNX Runtime for a test.
func openRuntime(t testing.TB) *graphs.Runtime {
	t.Helper()
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	})
	return rt
}

// openTiny opens llava15-tiny.
func openTiny(t testing.TB, opts engine.Options) *engine.Engine {
	t.Helper()
	opts.Runtime = openRuntime(t)
	if opts.Threads == 0 {
		opts.Threads = 1
	}
	e, err := engine.Open(t.Context(), tinyModel(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestOneRequest(t *testing.T) {
	e := openTiny(t, engine.Options{})
	data, err := os.ReadFile(filepath.Join(goldens, "media", "cat.png"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := e.Generate(t.Context(), engine.Request{MaxTokens: 24, Messages: []engine.Message{{Role: "user", Content: []engine.Part{
		{Type: engine.PartImage, Picture: &engine.Picture{Data: data, Source: "cat.png"}},
		{Type: engine.PartText, Text: "Describe the image in detail."},
	}}}})
	t.Logf("%+v %v", r, err)
}
