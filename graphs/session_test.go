package graphs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"glimpse/graphs"
)

type named = map[string]*graphs.Tensor

func load(t testing.TB, rt *graphs.Runtime, name string) *graphs.Session {
	t.Helper()
	session, err := rt.Load(t.Context(), filepath.Join("testdata", name), graphs.SessionOptions{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := session.Close(); err != nil {
			t.Error(err)
		}
	})
	return session
}

// Whatever is wrong with a graph's file is an error that names the file.
func TestLoadRefuses(t *testing.T) {
	rt := open(t)
	folder := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	external, err := os.ReadFile("testdata/external.onnx")
	if err != nil {
		t.Fatal(err)
	}
	attention, err := os.ReadFile("testdata/attention.onnx")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path, want string
		options          graphs.SessionOptions
	}{
		{name: "missing", path: filepath.Join(folder, "gone.onnx"), want: "no such file"},
		{name: "folder", path: folder, want: "not a regular file"},
		{name: "empty", path: write("empty.onnx", nil), want: "empty"},
		{name: "text", path: write("text.onnx", []byte("this is no graph")), want: "Protobuf parsing failed"},
		{name: "truncated", path: write("truncated.onnx", attention[:len(attention)/2]), want: ""},
		{name: "without its data", path: write("alone.onnx", external), want: "external.onnx.data"},
		{name: "strings", path: "testdata/strings.onnx", want: `"text" has ONNX element type 8`},
		{name: "device", path: "testdata/add.onnx", want: `unknown device "tpu"`, options: graphs.SessionOptions{Device: "tpu"}},
		{name: "threads", path: "testdata/add.onnx", want: "-2 threads", options: graphs.SessionOptions{Threads: -2}},
		{name: "optimization", path: "testdata/add.onnx", want: "optimization level 9", options: graphs.SessionOptions{Optimization: 9}},
	} {
		t.Run(test.name, func(t *testing.T) {
			session, err := rt.Load(t.Context(), test.path, test.options)
			if err == nil {
				session.Close()
				t.Fatal("loaded")
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.path) {
				t.Errorf("error %q; want it to name %s and say %q", err, test.path, test.want)
			}
		})
	}
	// Data that ends too early.
	write("external.onnx.data", make([]byte, 10))
	if session, err := rt.Load(t.Context(), write("external.onnx", external), graphs.SessionOptions{}); err == nil {
		session.Close()
		t.Error("a graph whose data is truncated was loaded")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := rt.Load(cancelled, "testdata/add.onnx", graphs.SessionOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("load with a context that is over: %v", err)
	}
}

func TestLoadOptions(t *testing.T) {
	rt := open(t)
	prefix := filepath.Join(t.TempDir(), "trace")
	for _, level := range []graphs.Optimization{graphs.OptimizeAll, graphs.OptimizeExtended, graphs.OptimizeBasic, graphs.OptimizeNone} {
		session, err := rt.Load(t.Context(), "testdata/add.onnx", graphs.SessionOptions{Threads: 2, StopSpinning: true, Optimization: level, Profile: prefix})
		if err != nil {
			t.Fatal(err)
		}
		if session.Device() != "cpu" || session.Path() != "testdata/add.onnx" {
			t.Errorf("device %q, path %q", session.Device(), session.Path())
		}
		if err := session.Close(); err != nil {
			t.Error(err)
		}
	}
	if traces, _ := filepath.Glob(prefix + "*"); len(traces) == 0 {
		t.Error("no profile was written")
	}
}

// Without the GPU package cuda is an error that names the file, and auto says
// that it took the CPU.
func TestDeviceWithoutCUDA(t *testing.T) {
	if graphs.Diagnose("").CUDA == nil {
		t.Skip("the CUDA provider is there")
	}
	var log bytes.Buffer
	rt, err := graphs.Open(graphs.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	_, err = rt.Load(t.Context(), "testdata/add.onnx", graphs.SessionOptions{Device: graphs.CUDA})
	if err == nil || !strings.Contains(err.Error(), "libonnxruntime_providers_cuda.so") {
		t.Errorf("cuda without its library: %v", err)
	}
	session, err := rt.Load(t.Context(), "testdata/add.onnx", graphs.SessionOptions{Device: graphs.Auto})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if session.Device() != "cpu" || !strings.Contains(log.String(), "device=cpu") {
		t.Errorf("auto chose %q and logged %q", session.Device(), log.String())
	}
}

// ONNX Runtime's messages come through the logger, not on stderr.
func TestNativeLog(t *testing.T) {
	var log bytes.Buffer
	handler := slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug - 8})
	rt, err := graphs.Open(graphs.Options{Logger: slog.New(handler)})
	if err != nil {
		t.Fatal(err)
	}
	session, err := rt.Load(t.Context(), "testdata/add.onnx", graphs.SessionOptions{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	session.Close()
	rt.Close()
	if !strings.Contains(log.String(), "source=onnxruntime") {
		t.Errorf("no message of ONNX Runtime was logged:\n%s", log.String())
	}
}

// cancelling is a log handler that ends a context at the first message.
type cancelling struct {
	slog.Handler
	cancel func()
	once   *sync.Once
}

func (h cancelling) Handle(context.Context, slog.Record) error {
	h.once.Do(func() {
		h.cancel()
		// The load goes on when this returns; its flag is set by another goroutine.
		time.Sleep(50 * time.Millisecond)
	})
	return nil
}

// A context that ends while ONNX Runtime prepares a graph stops it.
func TestLoadIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var armed atomic.Bool
	handler := cancelling{
		slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug - 8}),
		func() {
			if armed.Load() {
				cancel()
			}
		}, new(sync.Once)}
	rt, err := graphs.Open(graphs.Options{Logger: slog.New(handler)})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	armed.Store(true)
	*handler.once = sync.Once{}
	session, err := rt.Load(ctx, "testdata/attention.onnx", graphs.SessionOptions{Threads: 1})
	if !errors.Is(err, context.Canceled) {
		session.Close()
		t.Errorf("a load whose context ended: %v, want context.Canceled", err)
	}
}

// What a caller gets wrong is named before native code sees it.
func TestRunRefuses(t *testing.T) {
	rt := open(t)
	session := load(t, rt, "add.onnx")
	a, b, sum := tensor(t, rt, graphs.Float32, 2, 3), tensor(t, rt, graphs.Float32, 2, 3), tensor(t, rt, graphs.Float32, 2, 3)
	closed := tensor(t, rt, graphs.Float32, 2, 3)
	closed.Close()
	for _, test := range []struct {
		name    string
		in, out named
		want    string
	}{
		{"no inputs", nil, named{"sum": sum}, `input "a" is missing`},
		{"missing input", named{"a": a}, named{"sum": sum}, `input "b" is missing`},
		{"nil input", named{"a": a, "b": nil}, named{"sum": sum}, `input "b" is missing`},
		{"missing output", named{"a": a, "b": b}, nil, `output "sum" is missing`},
		{"unknown input", named{"a": a, "b": b, "c": a}, named{"sum": sum}, `no input "c" (it has a, b)`},
		{"misspelt input", named{"a": a, "B": b}, named{"sum": sum}, `no input "B"`},
		{"unknown output", named{"a": a, "b": b}, named{"sum": sum, "difference": sum}, `no output "difference"`},
		{"input dtype", named{"a": a, "b": tensor(t, rt, graphs.Float16, 2, 3)}, named{"sum": sum}, `input "b" is float32, and the tensor given is float16`},
		{"output dtype", named{"a": a, "b": b}, named{"sum": tensor(t, rt, graphs.Int32, 2, 3)}, `output "sum" is float32, and the tensor given is int32`},
		{"rank", named{"a": a, "b": tensor(t, rt, graphs.Float32, 6)}, named{"sum": sum}, `input "b" has 2 dimensions`},
		{"fixed dimension", named{"a": a, "b": tensor(t, rt, graphs.Float32, 2, 4)}, named{"sum": sum}, `input "b": dimension 1 is 4 where the graph has 3`},
		{"free dimension", named{"a": a, "b": tensor(t, rt, graphs.Float32, 1, 3)}, named{"sum": sum}, `input "b" has rows = 1, and "a" has 2`},
		{"output's free dimension", named{"a": a, "b": b}, named{"sum": tensor(t, rt, graphs.Float32, 3, 3)}, `output "sum" has rows = 3, and "a" has 2`},
		{"closed tensor", named{"a": a, "b": closed}, named{"sum": sum}, `input "b": tensor already closed`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := session.Run(t.Context(), test.in, test.out)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "add.onnx") {
				t.Errorf("error %v; want it to name add.onnx and say %q", err, test.want)
			}
		})
	}
	if err := session.Run(t.Context(), named{"a": a, "b": b}, named{"sum": sum}); err != nil {
		t.Errorf("the session does not work after refusals: %v", err)
	}
}

// An output whose size the ports leave open is checked by ONNX Runtime.
func TestRunReportsNativeErrors(t *testing.T) {
	rt := open(t)
	session := load(t, rt, "attention.onnx")
	in, out := named{}, named{}
	shapes := map[string][]int64{"qkv": {1, 128}, "row_map": {1, 1}, "token_map": {1}, "seqlens_k": {1}, "query_seqlens": {1}, "total_sequence_length": {},
		"rope_cos": {4, 8}, "rope_sin": {4, 8}, "past_key": {1, 2, 4, 16}, "past_value": {1, 2, 4, 16}, "out": {1, 64}, "present_key": {1, 2, 4, 16}, "present_value": {1, 2, 4, 16}}
	for _, port := range session.Inputs() {
		in[port.Name] = tensor(t, rt, port.DType, shapes[port.Name]...)
	}
	for _, port := range session.Outputs() {
		out[port.Name] = tensor(t, rt, port.DType, shapes[port.Name]...)
	}
	in["row_map"].Int64()[0] = 7 // there is one row
	err := session.Run(t.Context(), in, out)
	if err == nil || !strings.Contains(err.Error(), "attention.onnx") || !strings.Contains(err.Error(), "Gather") {
		t.Errorf("a row map out of range: %v", err)
	}
}

func TestStepRefuses(t *testing.T) {
	rt := open(t)
	session := load(t, rt, "add.onnx")
	for _, test := range []struct {
		inputs, outputs []string
		want            string
	}{
		{[]string{"a"}, nil, `input "b" is missing`},
		{[]string{"a", "b", "c"}, nil, `no input "c"`},
		{[]string{"a", "b", "a"}, nil, `input "a" is named twice`},
		{nil, []string{"difference"}, `no output "difference"`},
	} {
		if _, err := session.NewStep(test.inputs, test.outputs); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("step over %v, %v: %v; want %q", test.inputs, test.outputs, err, test.want)
		}
	}
	step, err := session.NewStep([]string{"b", "a"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if step.Input("b") != 0 || step.Input("a") != 1 || step.Output("sum") != 0 || step.Input("sum") != -1 {
		t.Error("the indices do not follow the names given")
	}
	for _, err := range []error{step.SetInput(2, nil), step.SetInput(-1, nil), step.SetOutput(0, nil), step.SetInput(0, tensor(t, rt, graphs.Int8, 1, 3))} {
		if err == nil {
			t.Error("a wrong tensor or index was taken")
		}
	}
	if err := step.Run(t.Context()); err == nil || !strings.Contains(err.Error(), `input "b": no tensor`) {
		t.Errorf("run of a step without tensors: %v", err)
	}
	for range 2 {
		if err := step.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := step.Run(t.Context()); !errors.Is(err, graphs.ErrClosed) {
		t.Errorf("run of a closed step: %v", err)
	}
}

// busy starts a run that lasts until cancel and returns when it runs.
func busy(t *testing.T, rt *graphs.Runtime, session *graphs.Session) (trips, x, y *graphs.Tensor, step *graphs.Step, cancel func() error) {
	t.Helper()
	trips, x, y = tensor(t, rt, graphs.Int64), tensor(t, rt, graphs.Float32, 32, 32), tensor(t, rt, graphs.Float32, 32, 32)
	trips.Int64()[0] = 1 << 40
	step, err := session.Bind(named{"trips": trips, "x": x}, named{"y": y})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { step.Close() })
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- step.Run(ctx) }()
	for deadline := time.Now().Add(10 * time.Second); !graphs.Pinned(y); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the run did not start")
		}
	}
	return trips, x, y, step, func() error { stop(); return <-done }
}

// Closing during a run is safe: memory goes when the run ends.
func TestCloseDuringRun(t *testing.T) {
	rt := open(t)
	session := load(t, rt, "loop.onnx")
	trips, x, y, step, cancel := busy(t, rt, session)
	if err := step.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Errorf("a second run of a running step: %v", err)
	}
	if err := x.Reshape(16, 64); err == nil || !strings.Contains(err.Error(), "a run is using it") {
		t.Errorf("reshape of a tensor in use: %v", err)
	}
	for _, tensor := range []*graphs.Tensor{trips, x, y} {
		if err := tensor.Close(); err != nil {
			t.Error(err)
		}
	}
	closing := make(chan error, 1)
	go func() { closing <- session.Close() }()
	select {
	case <-closing:
		t.Error("the session closed during a run")
	case <-time.After(30 * time.Millisecond):
	}
	if err := cancel(); !errors.Is(err, context.Canceled) {
		t.Errorf("the run ended with %v", err)
	}
	if err := <-closing; err != nil {
		t.Error(err)
	}
	if err := session.Close(); err != nil {
		t.Error(err)
	}
}

func TestUseAfterClose(t *testing.T) {
	rt, err := graphs.Open(graphs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	session, err := rt.Load(t.Context(), "testdata/add.onnx", graphs.SessionOptions{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	a, sum := tensor(t, rt, graphs.Float32, 1, 3), tensor(t, rt, graphs.Float32, 1, 3)
	step, err := session.NewStep(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	}
	// What was made from a Runtime outlives it.
	if err := session.Run(t.Context(), named{"a": a, "b": a}, named{"sum": sum}); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"tensor":  second(rt.NewTensor(graphs.Float32, 1)),
		"session": second(rt.Load(t.Context(), "testdata/add.onnx", graphs.SessionOptions{})),
		"arena view": func() error {
			arena, err := rt.NewArena(graphs.ArenaSpec{Layers: 1, Slots: 1, KVHeads: 1, Capacity: 1, HeadDim: 8, DType: graphs.Float32})
			if err != nil {
				return err
			}
			defer arena.Close()
			return second(arena.View(0, 1))
		}(),
	} {
		if !errors.Is(err, graphs.ErrClosed) {
			t.Errorf("a %s from a closed Runtime: %v", what, err)
		}
	}
	if err := session.Close(); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"run":  session.Run(t.Context(), named{"a": a, "b": a}, named{"sum": sum}),
		"step": second(session.NewStep(nil, nil)),
		"old step": func() error {
			step.SetInput(0, a)
			step.SetInput(1, a)
			step.SetOutput(0, sum)
			return step.Run(t.Context())
		}(),
	} {
		if !errors.Is(err, graphs.ErrClosed) {
			t.Errorf("%s on a closed session: %v", what, err)
		}
	}
	if err := step.Close(); err != nil {
		t.Error(err)
	}
}

func second[T any](_ T, err error) error { return err }

// The environment is made again after the last user of the first is gone.
func TestOpenAgain(t *testing.T) {
	for range 3 {
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				rt, err := graphs.Open(graphs.Options{})
				if err != nil {
					t.Error(err)
					return
				}
				defer rt.Close()
				if rt.Version() == "" || len(rt.Providers()) == 0 {
					t.Errorf("version %q, providers %v", rt.Version(), rt.Providers())
				}
				session, err := rt.Load(t.Context(), "testdata/add.onnx", graphs.SessionOptions{Threads: 1})
				if err != nil {
					t.Error(err)
					return
				}
				if err := session.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
}
