package engine_test

import (
	"context"
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

// media reads a picture of the golden sets.
func media(t testing.TB, name string) *engine.Picture {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(goldens, "media", name))
	if err != nil {
		t.Fatal(err)
	}
	return &engine.Picture{Data: data, Source: name}
}

// ask is a user's turn with pictures first.
func ask(text string, pictures ...*engine.Picture) engine.Request {
	var parts []engine.Part
	for _, p := range pictures {
		parts = append(parts, engine.Part{Type: engine.PartImage, Picture: p})
	}
	return engine.Request{
		Messages:  []engine.Message{{Role: "user", Content: append(parts, engine.Part{Type: engine.PartText, Text: text})}},
		MaxTokens: 24,
	}
}

// generate answers a request and reports an error as the test's.
func generate(t testing.TB, e *engine.Engine, ctx context.Context, req engine.Request) *engine.Result {
	t.Helper()
	r, err := e.Generate(ctx, req)
	if err != nil {
		t.Error(err)
		return &engine.Result{}
	}
	return r
}
