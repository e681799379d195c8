package graphs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"unsafe"

	ort "github.com/yalue/onnxruntime_go"

	"glimpse/graphs/kernels"
)

// Optimization is how much ONNX Runtime rewrites a graph when it loads it.
type Optimization uint8

// The levels; the zero value is all of them.
const (
	OptimizeAll      Optimization = iota
	OptimizeExtended              // without the layout changes of the hardware at hand
	OptimizeBasic                 // constant folding and what keeps the operators standard
	OptimizeNone
)

// SessionOptions say how to load a graph. The zero value runs on the CPU with a
// thread for each physical core.
type SessionOptions struct {
	Device   Device // "" is CPU; "cuda:N" is GPU N, whatever DeviceID says
	DeviceID int    // which GPU
	// Threads is the number of threads inside an operator; 0 is DefaultThreads.
	// Operators run one after the other.
	Threads int
	// StopSpinning lets the threads sleep as soon as a run ends. For graphs that
	// run now and then beside a busy one; in a decode loop it costs speed.
	StopSpinning bool
	// Background lets the graph's threads give way to those of other sessions
	// where both want the processor (Linux). For graphs that run beside a decode
	// loop whose answers are read as they come.
	Background bool
	// Profile, when set, is the path prefix of a Chrome trace that is written when
	// the session closes.
	Profile      string
	Optimization Optimization
	// StockKernels leaves everything to ONNX Runtime's own kernels, also where package kernels has faster ones.
	StockKernels bool
	// WithoutTiles keeps our kernels from AMX, as if the processor had none.
	WithoutTiles bool
	// PackWeights lets kernels of ours copy weights into an order that is read faster, after loading and beside runs. For graphs
	// that read all their weights for a few rows at a time: a decoder.
	PackWeights bool
}

// Session is a loaded graph. Many goroutines may run it at once.
type Session struct {
	env    *environment
	path   string
	device Device
	// deviceID is which GPU, where device is CUDA.
	deviceID int
	inputs   []Port
	outputs  []Port
	// statistics are outputs that only the observer sees; none without one.
	statistics []Port
	runtime    *Runtime
	native     *ort.DynamicAdvancedSession
	pointer    unsafe.Pointer

	// running is held for reading by runs and for writing by Close, which so waits
	// for them.
	running sync.RWMutex
	closed  bool

	background *background  // nil: runs are on their callers' threads
	kernels    *kernels.Set // nil: ONNX Runtime's own

	idleMu sync.Mutex
	idle   []*Step // whole-graph steps for Run, kept between calls
}

// Load reads the graph at path, with its external data beside it, and prepares
// it for the device. Cancelling ctx gives up.
//
// Device CUDA without its provider is an error that names the missing library;
// nothing falls back but Auto, which logs what it chose.
func (r *Runtime) Load(ctx context.Context, path string, options SessionOptions) (*Session, error) {
	session, err := r.load(ctx, path, options)
	if err != nil {
		return nil, fmt.Errorf("load graph %s: %w", path, err)
	}
	return session, nil
}

func (r *Runtime) load(ctx context.Context, path string, options SessionOptions) (*Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	device, id, given, err := ParseDevice(string(options.Device))
	if err != nil {
		return nil, err
	}
	if given {
		options.DeviceID = id
	}
	if err := checkModelFile(path); err != nil {
		return nil, err
	}
	env, err := r.use()
	if err != nil {
		return nil, err
	}
	s := &Session{env: env, path: path, runtime: r}
	if options.Background {
		s.background = newBackground()
	}
	if err := s.open(ctx, device, options, r.logger); err != nil {
		s.kernels.Stop()
		if s.native != nil {
			s.native.Destroy()
		}
		s.background.close()
		s.kernels.Close()
		env.release()
		return nil, err
	}
	return s, nil
}

// open creates the native session on the device, or on the one Auto finds, and
// reads its ports.
func (s *Session) open(ctx context.Context, device Device, options SessionOptions, logger *slog.Logger) error {
	if device == Auto {
		device = CUDA
		err := s.create(ctx, CUDA, options)
		if err != nil && ctx.Err() == nil {
			device = CPU
			// Once, and seen by default: whoever asks for auto hopes for the GPU.
			s.runtime.fellBack.Do(func() {
				logger.Warn("device auto: graphs run on the CPU, because cuda is not usable", "device", device, "error", err)
			})
			err = s.create(ctx, CPU, options)
		}
		if err != nil {
			return err
		}
		if device == CUDA {
			s.runtime.tookCUDA.Do(func() { logger.Warn("device auto: graphs run on CUDA", "device", device, "gpu", options.DeviceID) })
		}
		logger.Info("device chosen", "graph", filepath.Base(s.path), "device", device)
	} else if err := s.create(ctx, device, options); err != nil {
		return err
	}
	var err error
	if s.inputs, err = s.env.api.ports(s.pointer, false); err != nil {
		return err
	}
	s.outputs, err = s.env.api.ports(s.pointer, true)
	if s.runtime.observe != nil {
		s.outputs, s.statistics = splitStatistics(s.outputs)
	}
	return err
}

// checkModelFile finds the mistakes for which ONNX Runtime's message is obscure.
func checkModelFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return reason(err)
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if info.Size() == 0 {
		return errors.New("the file is empty")
	}
	return nil
}

// create makes the native session for one device, with our kernels where they fit the processor and every node of theirs.
func (s *Session) create(ctx context.Context, device Device, options SessionOptions) error {
	processor := kernels.Processor(0)
	if device == CPU && !options.StockKernels {
		processor = s.runtime.processor()
		if options.WithoutTiles {
			processor &^= kernels.AMX
		}
	}
	err := s.createWith(ctx, device, processor, options)
	if err != nil && processor != 0 && ctx.Err() == nil {
		// A node that only ONNX Runtime's kernel computes, or a graph that does not declare com.microsoft and into which
		// ONNX Runtime would fuse operators of that domain.
		s.runtime.logger.Debug("graph left to ONNX Runtime's own kernels", "graph", s.path, "reason", err)
		err = s.createWith(ctx, device, 0, options)
	}
	return err
}

func (s *Session) createWith(ctx context.Context, device Device, processor kernels.Processor, options SessionOptions) error {
	native, err := s.env.sessionOptions(options)
	if err != nil {
		return err
	}
	defer native.Destroy()
	pointer, err := pointerIn(native, "o")
	if err != nil {
		return err
	}
	s.kernels.Close()
	if s.kernels, err = kernels.Register(unsafe.Pointer(s.env.api.table), pointer, processor, options.PackWeights); err != nil {
		return err
	}
	// The flag belongs to the options, so the callback must be over before they go.
	var cancelling sync.WaitGroup
	cancelling.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer cancelling.Done()
		_ = s.env.api.cancelLoad(pointer)
	})
	defer func() {
		if !stop() {
			cancelling.Wait()
		}
	}()
	open := func() {
		if device == CUDA {
			if err = s.env.appendCUDA(native, options.DeviceID); err != nil {
				return
			}
		}
		s.native, err = ort.NewDynamicAdvancedSession(s.path, nil, nil, native)
	}
	if device == CUDA {
		keepSignals(open)
	} else {
		s.background.do(open)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return outOfMemory(errors.New(strings.TrimPrefix(err.Error(), "Error creating C session from file: ")))
	}
	s.device, s.deviceID = device, options.DeviceID
	if s.pointer, err = pointerIn(s.native, "s", "ortSession"); err == nil && options.PackWeights {
		s.kernels.Pack(inBackground)
	}
	return err
}

// sessionOptions translates ours into ONNX Runtime's.
func (e *environment) sessionOptions(options SessionOptions) (*ort.SessionOptions, error) {
	if options.Threads < 0 {
		return nil, fmt.Errorf("%d threads: want 1 or more, or 0 for one a core", options.Threads)
	}
	threads := options.Threads
	if threads == 0 {
		threads = DefaultThreads()
	}
	level, ok := map[Optimization]ort.GraphOptimizationLevel{
		OptimizeAll:      ort.GraphOptimizationLevelEnableAll,
		OptimizeExtended: ort.GraphOptimizationLevelEnableExtended,
		OptimizeBasic:    ort.GraphOptimizationLevelEnableBasic,
		OptimizeNone:     ort.GraphOptimizationLevelDisableAll,
	}[options.Optimization]
	if !ok {
		return nil, fmt.Errorf("optimization level %d is unknown", options.Optimization)
	}
	stopSpinning := "0"
	if options.StopSpinning {
		stopSpinning = "1"
	}
	native, err := ort.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	settings := []func() error{
		func() error { return native.SetIntraOpNumThreads(threads) },
		func() error { return native.SetInterOpNumThreads(1) },
		func() error { return native.SetExecutionMode(ort.ExecutionModeSequential) },
		func() error { return native.SetGraphOptimizationLevel(level) },
		func() error { return native.SetCpuMemArena(true) },
		func() error { return native.SetMemPattern(true) },
		// Weights are allocated once and exactly, not rounded up by the arena.
		func() error {
			return native.AddSessionConfigEntry("session.use_device_allocator_for_initializers", "1")
		},
		func() error { return native.AddSessionConfigEntry("session.disable_prepacking", "0") },
		func() error { return native.AddSessionConfigEntry("session.force_spinning_stop", stopSpinning) },
	}
	if saturates() {
		settings = append(settings, func() error { return native.AddSessionConfigEntry("session.x64quantprecision", "1") })
	}
	if options.Profile != "" {
		settings = append(settings, func() error { return native.EnableProfiling(options.Profile) })
	}
	for _, set := range settings {
		if err := set(); err != nil {
			native.Destroy()
			return nil, fmt.Errorf("session options: %w", err)
		}
	}
	return native, nil
}

// Settle waits until the graph runs as fast as it will: until SessionOptions.PackWeights has done its work. For measurements.
func (s *Session) Settle() { s.kernels.Wait() }

// Inputs lists the inputs that must be given, in the graph's order.
func (s *Session) Inputs() []Port { return slices.Clone(s.inputs) }

// Outputs lists the outputs, in the graph's order.
func (s *Session) Outputs() []Port { return slices.Clone(s.outputs) }

// Device is what computes the graph, "cpu" or "cuda".
func (s *Session) Device() string { return string(s.device) }

// Path is the file the graph was loaded from.
func (s *Session) Path() string { return s.path }

// Run computes every output from every input. All tensors are the caller's, the
// outputs too, and have the dtypes of the ports and shapes that fit them. One
// tensor may be input and output at once (a cache that is updated in place).
// When ctx ends the run stops at the next node and returns ctx's error; the
// outputs then hold anything.
func (s *Session) Run(ctx context.Context, in, out map[string]*Tensor) error {
	if err := checkNames("input", s.inputs, in); err != nil {
		return s.failed(err)
	}
	if err := checkNames("output", s.outputs, out); err != nil {
		return s.failed(err)
	}
	step, err := s.takeStep()
	if err != nil {
		return err
	}
	defer s.returnStep(step)
	for i, port := range s.inputs {
		step.inputs[i] = in[port.Name]
	}
	for i, port := range s.outputs {
		step.outputs[i] = out[port.Name]
	}
	return step.Run(ctx)
}

// checkNames compares the given names with the graph's.
func checkNames(kind string, ports []Port, given map[string]*Tensor) error {
	var problems []error
	for _, port := range ports {
		if given[port.Name] == nil {
			problems = append(problems, fmt.Errorf("%s %q is missing (the graph has %s)", kind, port.Name, port))
		}
	}
	if len(given) > len(ports)-len(problems) {
		for name := range given {
			if !slices.ContainsFunc(ports, func(p Port) bool { return p.Name == name }) {
				problems = append(problems, fmt.Errorf("the graph has no %s %q (it has %s)", kind, name, portNames(ports)))
			}
		}
	}
	return errors.Join(problems...)
}

func (s *Session) failed(err error) error {
	err = outOfMemory(err)
	return fmt.Errorf("run graph %s: %w", filepath.Base(s.path), err)
}

func (s *Session) takeStep() (*Step, error) {
	s.idleMu.Lock()
	defer s.idleMu.Unlock()
	if n := len(s.idle); n > 0 {
		step := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return step, nil
	}
	return s.NewStep(nil, nil)
}

// returnStep keeps the step for the next Run, without the tensors of this one.
func (s *Session) returnStep(step *Step) {
	clear(step.inputs)
	clear(step.outputs[:step.visible])
	step.forget()
	s.idleMu.Lock()
	defer s.idleMu.Unlock()
	s.running.RLock()
	defer s.running.RUnlock()
	if s.closed {
		step.Close()
		return
	}
	s.idle = append(s.idle, step)
}

// Close waits for the runs in progress and gives the graph's memory back.
// Closing again does nothing.
func (s *Session) Close() error {
	if s == nil {
		return nil
	}
	s.running.Lock()
	if s.closed {
		s.running.Unlock()
		return nil
	}
	s.closed = true
	s.kernels.Stop()
	err := s.native.Destroy()
	s.background.close()
	err = errors.Join(err, s.kernels.Close())
	s.running.Unlock()

	s.idleMu.Lock()
	idle := s.idle
	s.idle = nil
	s.idleMu.Unlock()
	for _, step := range idle {
		err = errors.Join(err, step.Close())
	}
	return errors.Join(err, s.env.release())
}
