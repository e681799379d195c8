package graphs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	ort "github.com/yalue/onnxruntime_go"
)

// Step is a session's argument list that is filled once and run again and again:
// a decode step. Setting a tensor is an assignment, and a run makes no garbage.
//
// Tensors stay set until replaced, and may be reshaped between runs. A Step
// belongs to one goroutine at a time; a session may have many.
type Step struct {
	session     *Session
	env         *environment
	inputPorts  []Port
	outputPorts []Port
	inputs      []*Tensor
	outputs     []*Tensor
	visible     int // outputs that are the caller's; behind them are the observer's
	symbols     symbols
	args        *arguments
	options     *ort.RunOptions
	pointer     unsafe.Pointer
	busy        atomic.Bool
	closed      bool // guarded by busy

	cancel cancellation
}

// NewStep makes a step over the named ports, whose order gives the indices of
// SetInput and SetOutput. nil means all ports in the graph's order. Every input
// must be named; outputs that are not named are not fetched, and cost nothing
// where nothing else needs them. A decoder must name all its present_* outputs:
// those left out are computed somewhere else and the cache stays as it was.
func (s *Session) NewStep(inputs, outputs []string) (*Step, error) {
	step, err := s.newStep(inputs, outputs)
	if err != nil {
		return nil, fmt.Errorf("prepare a step of graph %s: %w", s.path, err)
	}
	return step, nil
}

func (s *Session) newStep(inputs, outputs []string) (*Step, error) {
	inputPorts, err := selectPorts("input", s.inputs, inputs)
	if err != nil {
		return nil, err
	}
	for _, port := range s.inputs {
		if inputs != nil && !slices.Contains(inputs, port.Name) {
			err = errors.Join(err, fmt.Errorf("input %q is missing", port.Name))
		}
	}
	outputPorts, outputErr := selectPorts("output", s.outputs, outputs)
	if err := errors.Join(err, outputErr); err != nil {
		return nil, err
	}
	s.running.RLock()
	defer s.running.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	options, err := ort.NewRunOptions()
	if err != nil {
		return nil, err
	}
	pointer, err := pointerIn(options, "o")
	if err != nil {
		options.Destroy()
		return nil, err
	}
	outputPorts = append(slices.Clip(outputPorts), s.statistics...)
	s.env.retain()
	step := &Step{
		session: s, env: s.env,
		inputPorts: inputPorts, outputPorts: outputPorts,
		inputs: make([]*Tensor, len(inputPorts)), outputs: make([]*Tensor, len(outputPorts)),
		symbols: newSymbols(inputPorts, outputPorts),
		args:    newArguments(namesOf(inputPorts), namesOf(outputPorts)),
		visible: len(outputPorts) - len(s.statistics),
		options: options, pointer: pointer,
	}
	if err := step.watch(s.runtime, s.statistics); err != nil {
		return nil, errors.Join(err, step.Close())
	}
	return step, nil
}

func namesOf(ports []Port) []string {
	names := make([]string, len(ports))
	for i, port := range ports {
		names[i] = port.Name
	}
	return names
}

func selectPorts(kind string, ports []Port, names []string) ([]Port, error) {
	if names == nil {
		return ports, nil
	}
	var problems []error
	selected := make([]Port, 0, len(names))
	for i, name := range names {
		at := slices.IndexFunc(ports, func(p Port) bool { return p.Name == name })
		switch {
		case at < 0:
			problems = append(problems, fmt.Errorf("the graph has no %s %q (it has %s)", kind, name, portNames(ports)))
		case slices.Contains(names[:i], name):
			problems = append(problems, fmt.Errorf("%s %q is named twice", kind, name))
		default:
			selected = append(selected, ports[at])
		}
	}
	return selected, errors.Join(problems...)
}

// Bind makes a step over every port with its tensors set.
func (s *Session) Bind(in, out map[string]*Tensor) (*Step, error) {
	if err := errors.Join(checkNames("input", s.inputs, in), checkNames("output", s.outputs, out)); err != nil {
		return nil, fmt.Errorf("prepare a step of graph %s: %w", s.path, err)
	}
	step, err := s.NewStep(nil, nil)
	if err != nil {
		return nil, err
	}
	for i, port := range s.inputs {
		err = errors.Join(err, step.SetInput(i, in[port.Name]))
	}
	for i, port := range s.outputs {
		err = errors.Join(err, step.SetOutput(i, out[port.Name]))
	}
	if err != nil {
		step.Close()
		return nil, err
	}
	return step, nil
}

// Input is the index of the named input, -1 when the step has none.
func (st *Step) Input(name string) int {
	return slices.IndexFunc(st.inputPorts, func(p Port) bool { return p.Name == name })
}

// Output is the index of the named output, -1 when the step has none.
func (st *Step) Output(name string) int {
	return slices.IndexFunc(st.outputPorts[:st.visible], func(p Port) bool { return p.Name == name })
}

// SetInput gives input i its tensor until it is set again.
func (st *Step) SetInput(i int, t *Tensor) error {
	return st.set("input", st.inputPorts, st.inputs, i, t)
}

// SetOutput gives output i the tensor to write until it is set again.
func (st *Step) SetOutput(i int, t *Tensor) error {
	return st.set("output", st.outputPorts[:st.visible], st.outputs, i, t)
}

func (st *Step) set(kind string, ports []Port, tensors []*Tensor, i int, t *Tensor) error {
	if i < 0 || i >= len(ports) {
		return st.session.failed(fmt.Errorf("there is no %s %d; the step has %d", kind, i, len(ports)))
	}
	if t == nil {
		return st.session.failed(fmt.Errorf("%s %q: no tensor", kind, ports[i].Name))
	}
	if t.dtype != ports[i].DType {
		return st.session.failed(fmt.Errorf("%s %q is %v, and the tensor given is %v", kind, ports[i].Name, ports[i].DType, t.dtype))
	}
	tensors[i] = t
	return nil
}

// Run computes the outputs. When ctx ends, the run stops at the next node and
// returns ctx's error; the outputs then hold anything. A ctx that can end stays
// registered with the step until a run with another, or Close.
func (st *Step) Run(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return st.session.failed(err)
	}
	if !st.busy.CompareAndSwap(false, true) {
		return st.session.failed(errors.New("the step is already running; one goroutine at a time"))
	}
	defer st.busy.Store(false)
	s := st.session
	s.running.RLock()
	defer s.running.RUnlock()
	if st.closed || s.closed {
		return s.failed(ErrClosed)
	}
	if err := st.cancel.follow(ctx, st.options); err != nil {
		return s.failed(err)
	}
	held, err := st.acquire()
	defer st.release(held)
	if err == nil {
		err = st.check()
	}
	if err != nil {
		return s.failed(err)
	}
	if s.background == nil {
		err = st.compute()
	} else {
		err = st.computeInBackground()
	}
	if err != nil {
		if ctx.Err() != nil {
			return s.failed(ctx.Err())
		}
		return s.failed(err)
	}
	if s.runtime.observe != nil {
		st.report()
	}
	return nil
}

func (st *Step) compute() error { return st.env.api.run(st.session.pointer, st.pointer, st.args) }

// computeInBackground stands apart because its closure is garbage, which a decode loop's steps do not make.
func (st *Step) computeInBackground() (err error) {
	st.session.background.do(func() { err = st.compute() })
	return err
}

// acquire pins the tensors for the run and writes the native argument lists. It
// returns how many are pinned, which release takes back.
func (st *Step) acquire() (int, error) {
	held := 0
	for i, t := range st.inputs {
		if err := pin(t, "input", &st.inputPorts[i]); err != nil {
			return held, err
		}
		enter(t)
		st.args.inputValues[i] = t.native.pointer()
		held++
	}
	for i, t := range st.outputs {
		if err := pin(t, "output", &st.outputPorts[i]); err != nil {
			return held, err
		}
		enter(t)
		st.args.outputValues[i] = t.native.pointer()
		held++
	}
	return held, nil
}

func pin(t *Tensor, kind string, port *Port) error {
	if t == nil {
		return fmt.Errorf("%s %q: no tensor", kind, port.Name)
	}
	if err := t.acquire(); err != nil {
		return fmt.Errorf("%s %q: tensor %w", kind, port.Name, err)
	}
	return nil
}

func (st *Step) release(held int) {
	for i := range held {
		t := (*Tensor)(nil)
		if i < len(st.inputs) {
			t = st.inputs[i]
		} else {
			t = st.outputs[i-len(st.inputs)]
		}
		if device := t.memory.device; device != nil {
			device.Leave()
		}
		t.release()
	}
}

// enter tells the tensor's device that a run will use its memory; release says that it has.
func enter(t *Tensor) {
	if device := t.memory.device; device != nil {
		device.Enter()
	}
}

// check compares dtypes and shapes with the ports, and free dimensions of one
// name with each other.
func (st *Step) check() error {
	clear(st.symbols.values)
	for i, t := range st.inputs {
		if err := st.symbols.check("input", &st.inputPorts[i], st.symbols.inputs[i], t); err != nil {
			return err
		}
	}
	for i, t := range st.outputs {
		if err := st.symbols.check("output", &st.outputPorts[i], st.symbols.outputs[i], t); err != nil {
			return err
		}
	}
	return nil
}

// forget drops the context of the last run.
func (st *Step) forget() { st.cancel.drop() }

// Close gives the step's native lists back; the tensors stay their owners'.
// Closing again does nothing; closing during a run is an error.
func (st *Step) Close() error {
	if st == nil {
		return nil
	}
	if !st.busy.CompareAndSwap(false, true) {
		return fmt.Errorf("close a step of graph %s: it is running", st.session.path)
	}
	defer st.busy.Store(false)
	if st.closed {
		return nil
	}
	st.closed = true
	st.cancel.drop()
	st.args.free()
	err := errors.Join(st.options.Destroy(), st.unwatch())
	return errors.Join(err, st.env.release())
}

// symbols checks that a free dimension has one size in all ports of a run.
type symbols struct {
	names   []string
	inputs  [][]int // by port and dimension, an index into names; -1 for none
	outputs [][]int
	values  []seenDim
}

// seenDim is the size a symbol has in this run, plus one: 0 is not seen yet.
type seenDim struct {
	size int64
	port *Port
}

// index numbers a dimension's name; -1 when the size is fixed or has no name.
func (s *symbols) index(size int64, name string) int {
	if size >= 0 || name == "" {
		return -1
	}
	at := slices.Index(s.names, name)
	if at < 0 {
		at = len(s.names)
		s.names = append(s.names, name)
	}
	return at
}

func newSymbols(inputs, outputs []Port) symbols {
	var s symbols
	number := func(ports []Port) [][]int {
		all := make([][]int, len(ports))
		for i, port := range ports {
			all[i] = make([]int, len(port.Shape))
			for d, name := range port.Symbols {
				all[i][d] = s.index(port.Shape[d], name)
			}
		}
		return all
	}
	s.inputs, s.outputs = number(inputs), number(outputs)
	s.values = make([]seenDim, len(s.names))
	return s
}

func (s *symbols) check(kind string, port *Port, dims []int, t *Tensor) error {
	if t.dtype != port.DType {
		return fmt.Errorf("%s %q is %v, and the tensor given is %v", kind, port.Name, port.DType, t.dtype)
	}
	if t.rank != len(port.Shape) {
		return fmt.Errorf("%s %q has %d dimensions, and the tensor given is %v; the port is %v", kind, port.Name, len(port.Shape), t, port)
	}
	for d, want := range port.Shape {
		got := t.dims[d]
		if want >= 0 && got != want {
			return fmt.Errorf("%s %q: dimension %d is %d where the graph has %d; the port is %v", kind, port.Name, d, got, want, port)
		}
		if dims[d] < 0 {
			continue
		}
		seen := &s.values[dims[d]]
		if seen.port == nil {
			*seen = seenDim{got, port}
		} else if seen.size != got {
			return fmt.Errorf("%s %q has %s = %d, and %q has %d", kind, port.Name, s.names[dims[d]], got, seen.port.Name, seen.size)
		}
	}
	return nil
}

// cancellation connects the context of a run to the flag that stops it. It stays
// connected between runs of one context, so that a loop pays once.
type cancellation struct {
	mu         sync.Mutex
	done       <-chan struct{}
	stop       func() bool
	terminated bool
	options    *ort.RunOptions
	generation uint64 // tells a late callback that its context was replaced
}

// follow makes the end of ctx stop runs with these options.
func (c *cancellation) follow(ctx context.Context, options *ort.RunOptions) error {
	done := ctx.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	if done == c.done {
		return nil
	}
	c.detach()
	if c.terminated {
		if err := options.UnsetTerminate(); err != nil {
			return err
		}
		c.terminated = false
	}
	if done == nil {
		return nil
	}
	c.done, c.options = done, options
	generation := c.generation
	c.stop = context.AfterFunc(ctx, func() { c.terminate(generation) })
	return nil
}

func (c *cancellation) terminate(generation uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if generation != c.generation {
		return
	}
	c.terminated = true
	_ = c.options.Terminate() // fails only for options that were destroyed
}

// detach leaves the current context; mu is held.
func (c *cancellation) detach() {
	if c.stop != nil {
		c.stop()
	}
	c.generation++
	c.done, c.stop = nil, nil
}

func (c *cancellation) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.detach()
}
