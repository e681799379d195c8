package graphs

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	ort "github.com/yalue/onnxruntime_go"

	"glimpse/graphs/kernels"
)

// ErrClosed is returned, wrapped, by anything used after its Close.
var ErrClosed = errors.New("already closed")

// Options say how to open ONNX Runtime.
type Options struct {
	// LibraryPath is the shared library to use (--ort-lib). Empty searches as
	// FindLibrary documents.
	LibraryPath string
	// Logger takes this package's and ONNX Runtime's own messages; nil drops them.
	// ONNX Runtime logs to the logger of whoever opened it first.
	Logger *slog.Logger
	// Observe, when set, is called after every run of a session of this Runtime, on
	// the goroutine of the run and before it returns. Runs beside each other call it
	// beside each other.
	Observe func(*Observation)
	// DeviceMemory takes the place of the memory of whatever device a session is on, the CPU included. It is for tests, which
	// give one that nothing but runs and copies can touch; nil otherwise.
	DeviceMemory DeviceMemory
	// StockKernels is SessionOptions.StockKernels of every session.
	StockKernels bool
}

// Runtime is a handle on the process's ONNX Runtime. Open may be called any
// number of times; the environment lives until every Runtime and everything made
// from one (sessions, steps, tensors, arenas) is closed. A Runtime is safe for
// use by many goroutines.
type Runtime struct {
	env     *environment
	logger  *slog.Logger
	observe func(*Observation)
	device  DeviceMemory // Options.DeviceMemory
	stock   bool
	closed  atomic.Bool

	fellBack sync.Once // device auto said that it is the CPU
	tookCUDA sync.Once // or that it is CUDA
}

// environment is ONNX Runtime as the process has it once: the library, the
// binding's environment and ours (the same native object, counted twice).
type environment struct {
	lib     *library
	api     api
	path    string
	version string
	env     unsafe.Pointer
	memory  unsafe.Pointer // OrtMemoryInfo of ordinary memory
	refs    int            // guarded by process.mu

	devices sync.Mutex // guards what follows
	places  map[devicePlace]unsafe.Pointer
	cuda    map[int]*cudaMemory
}

// process holds what ONNX Runtime itself keeps once a process.
var process struct {
	mu  sync.Mutex
	env *environment
	// loaded keeps every library used, for good: threads that ONNX Runtime left
	// behind may still run code in it.
	loaded map[string]*library
}

// Open finds and loads ONNX Runtime, or joins the environment that is already
// open. Asking by name for another library than the one in use is an error.
func Open(options Options) (*Runtime, error) {
	logger := options.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	process.mu.Lock()
	defer process.mu.Unlock()
	if env := process.env; env != nil {
		if err := env.sameLibrary(options.LibraryPath); err != nil {
			return nil, err
		}
		env.refs++
		return &Runtime{env: env, logger: logger, observe: options.Observe, device: options.DeviceMemory, stock: options.StockKernels}, nil
	}
	found, err := FindLibrary(options.LibraryPath)
	if err != nil {
		return nil, err
	}
	env, err := openEnvironment(found, logger)
	if err != nil {
		return nil, fmt.Errorf("open ONNX Runtime %s at %s: %w", found.Version, found.Path, err)
	}
	process.env = env
	logger.Debug("ONNX Runtime opened", "version", env.version, "library", env.path)
	return &Runtime{env: env, logger: logger, observe: options.Observe, device: options.DeviceMemory, stock: options.StockKernels}, nil
}

func (e *environment) sameLibrary(asked string) error {
	if asked == "" {
		return nil
	}
	if real, err := filepath.EvalSymlinks(asked); err == nil {
		asked = real
	}
	if using, err := filepath.EvalSymlinks(e.path); err == nil && using != asked {
		return fmt.Errorf("open ONNX Runtime at %s: this process already uses the one at %s, and can use only one", asked, e.path)
	}
	return nil
}

// openEnvironment loads the library, makes the environment with our log first
// (ONNX Runtime keeps the log of whoever was first) and lets the binding join.
func openEnvironment(found Library, logger *slog.Logger) (*environment, error) {
	lib := process.loaded[found.Path]
	if lib == nil {
		var err error
		if lib, err = openLibrary(found.Path); err != nil {
			return nil, err
		}
		if process.loaded == nil {
			process.loaded = make(map[string]*library)
		}
		process.loaded[found.Path] = lib
	}
	table, ok := lib.api(requiredAPI)
	if !ok {
		return nil, fmt.Errorf("it does not offer C API %d", requiredAPI)
	}
	e := &environment{lib: lib, api: table, path: found.Path, version: lib.version(), refs: 1}
	logSink.Store(logger)
	var err error
	if e.env, err = table.createEnv(nativeSeverity(logger)); err != nil {
		logSink.Store(nil)
		return nil, err
	}
	if e.memory, err = table.createMemoryInfo(); err != nil {
		return nil, errors.Join(err, e.destroy(false))
	}
	ort.SetSharedLibraryPath(found.Path)
	if err := ort.InitializeEnvironment(); err != nil {
		return nil, errors.Join(err, e.destroy(false))
	}
	if err := ort.DisableTelemetry(); err != nil {
		return nil, errors.Join(err, e.destroy(true))
	}
	return e, nil
}

// destroy gives the environment back. binding tells whether the binding joined.
func (e *environment) destroy(binding bool) error {
	var err error
	if binding {
		err = ort.DestroyEnvironment()
	}
	if e.memory != nil {
		e.api.releaseMemoryInfo(e.memory)
	}
	for _, info := range e.places {
		e.api.releaseMemoryInfo(info)
	}
	e.api.releaseEnv(e.env)
	logSink.Store(nil)
	return err
}

// retain counts one more user; the caller already holds a reference.
func (e *environment) retain() {
	process.mu.Lock()
	defer process.mu.Unlock()
	e.refs++
}

func (e *environment) release() error {
	process.mu.Lock()
	defer process.mu.Unlock()
	e.refs--
	if e.refs > 0 {
		return nil
	}
	process.env = nil
	return e.destroy(true)
}

// use takes a reference on the environment for something that is being made.
func (r *Runtime) use() (*environment, error) {
	process.mu.Lock()
	defer process.mu.Unlock()
	if r.closed.Load() {
		return nil, fmt.Errorf("ONNX Runtime: %w", ErrClosed)
	}
	r.env.refs++
	return r.env, nil
}

// Version is ONNX Runtime's release, such as "1.32.0".
func (r *Runtime) Version() string { return r.env.version }

// LibraryPath is the file ONNX Runtime was loaded from.
func (r *Runtime) LibraryPath() string { return r.env.path }

// Kernels names what of the processor our own kernels for the CPU use; "none" where graphs are left to ONNX Runtime's.
func (r *Runtime) Kernels() string { return r.processor().String() }

func (r *Runtime) processor() kernels.Processor {
	if r.stock {
		return 0
	}
	return kernels.This()
}

// Providers lists the execution providers compiled into the library, such as
// CPUExecutionProvider. Being listed does not mean that a device is there.
func (r *Runtime) Providers() []string {
	if r.closed.Load() {
		return nil
	}
	providers, err := r.env.api.providers()
	if err != nil {
		r.logger.Warn("cannot list ONNX Runtime's providers", "error", err)
	}
	return providers
}

// Close gives up this handle. What was made from it keeps working.
func (r *Runtime) Close() error {
	if r == nil || !r.closed.CompareAndSwap(false, true) {
		return nil
	}
	return r.env.release()
}
