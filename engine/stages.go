// From a picture's tensors to rows of the prompt: the graphs of picture.stages, fed by name.

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"glimpse/graphs"
	"glimpse/manifest"
)

// stages runs the picture graphs of a model. It is safe for many goroutines; one request at a time is on the machine,
// since each operator already uses all its cores.
type stages struct {
	runtime  *graphs.Runtime
	list     []stage
	features string // the tensor that the prompt takes
	newline  string // the tensor that ends rows of features, [1, hidden_size]; empty where none does
	batch    int    // most tiles at once
	// deepstack is how many of the stages' outputs deepstack_N the decoder takes.
	deepstack int
	gate      chan struct{}
}

type stage struct {
	name    string
	session *graphs.Session
}

// stageResult is what the stages made of the pictures of one request.
type stageResult struct {
	features []float32 // [rows, hidden_size]
	width    int       // hidden_size
	newline  []float32 // [hidden_size]; nil without
	// deepstack are further rows for the same tokens, [rows, hidden_size] for each of the decoder's first layers.
	deepstack [][]float32
	keep      keeping
	arrays    map[string]Array // tensors by name, those that are asked for
	first     time.Duration    // of the first stage
	rest      time.Duration    // of the others
}

// openStages loads the graphs of m.Picture.Stages.
func openStages(ctx context.Context, folder string, m *manifest.Manifest, opts Options) (*stages, error) {
	p := &stages{runtime: opts.Runtime, features: m.Picture.Features, newline: m.Picture.Newline, deepstack: deepstackLevels(m), batch: opts.PictureBatch, gate: make(chan struct{}, 1)}
	for _, name := range m.Picture.Stages {
		s, err := loadComponent(ctx, folder, name, m, opts)
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		p.list = append(p.list, stage{name, s})
	}
	if err := p.checkFlow(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// checkFlow makes sure that picture.features comes out of a stage, where there is a prompt that takes them.
func (p *stages) checkFlow() error {
	if p.features == "" {
		return nil
	}
	var names []string
	for _, s := range p.list {
		for _, port := range s.session.Outputs() {
			names = append(names, port.Name)
		}
	}
	if !slices.Contains(names, p.features) {
		return fmt.Errorf("picture.features is %q, and the stages make %s", p.features, strings.Join(names, ", "))
	}
	return nil
}

// keeping says which tensors on the way through stages are wanted; nil: none.
type keeping func(name string) bool

func keepAll(string) bool { return true }

// run takes the recipe's tensors, whose leading dimensions are the tiles of all pictures of the request, and returns the
// feature rows. Tiles go through in batches. Tensors on the way are returned as keep says.
func (p *stages) run(ctx context.Context, tensors map[string]Array, keep keeping) (*stageResult, error) {
	tiles, err := commonTiles(tensors)
	if err != nil {
		return nil, err
	}
	leave, err := p.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	r := newStageResult(tensors, keep)
	for first := 0; first < tiles; first += p.batch {
		if err := p.runBatch(ctx, tensors, first, min(p.batch, tiles-first), r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// newStageResult starts with the tensors that go in.
func newStageResult(tensors map[string]Array, keep keeping) *stageResult {
	r := &stageResult{keep: keep}
	if keep == nil {
		return r
	}
	r.arrays = map[string]Array{}
	for name, a := range tensors {
		if keep(name) {
			r.arrays[name] = a
		}
	}
	return r
}

// enter waits for the machine; leave gives it to the next.
func (p *stages) enter(ctx context.Context) (leave func(), err error) {
	select {
	case p.gate <- struct{}{}:
		return func() { <-p.gate }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// makes reports whether a stage has the output.
func (p *stages) makes(name string) bool {
	return slices.ContainsFunc(p.list, func(s stage) bool {
		return slices.ContainsFunc(s.session.Outputs(), func(port graphs.Port) bool { return port.Name == name })
	})
}

// commonTiles returns the leading dimension that all tensors share.
func commonTiles(tensors map[string]Array) (int, error) {
	tiles := -1
	for name, a := range tensors {
		size := int64(1)
		for _, d := range a.Shape {
			size *= d
		}
		if len(a.Shape) == 0 || size != int64(a.size()) || size == 0 || len(a.Data) > 0 && len(a.Int64) > 0 {
			return 0, fmt.Errorf("tensor %s: shape %v does not describe its %d values", name, a.Shape, a.size())
		}
		if tiles >= 0 && int64(tiles) != a.Shape[0] {
			return 0, fmt.Errorf("tensor %s has %d tiles, others %d", name, a.Shape[0], tiles)
		}
		tiles = int(a.Shape[0])
	}
	if tiles < 0 {
		return 0, errors.New("no picture tensors were given")
	}
	return tiles, nil
}

// runBatch runs every stage on tiles first..first+n−1 and appends to r.
func (p *stages) runBatch(ctx context.Context, tensors map[string]Array, first, n int, r *stageResult) error {
	live := map[string]*graphs.Tensor{}
	for name, a := range tensors {
		t, err := a.tensor(p.runtime, first, n)
		if err != nil {
			closeAll(live)
			return fmt.Errorf("copy tensor %s: %w", name, err)
		}
		live[name] = t
	}
	return p.runLive(ctx, live, r)
}

// runLive runs every stage on the tensors, which it takes over, and appends to r.
func (p *stages) runLive(ctx context.Context, live map[string]*graphs.Tensor, r *stageResult) error {
	defer closeAll(live)
	for i, s := range p.list {
		start := time.Now()
		made, err := s.run(ctx, p.runtime, live)
		if err != nil {
			return fmt.Errorf("run %s: %w", s.name, err)
		}
		for name, t := range made {
			live[name].Close() // a stage may hand on a tensor under the same name
			live[name] = t
		}
		if elapsed := time.Since(start); i == 0 {
			r.first += elapsed
		} else {
			r.rest += elapsed
		}
		for name, t := range made {
			if name != p.newline { // it has no tiles
				r.collect(name, t)
			}
		}
	}
	if out := live[p.newline]; out != nil {
		r.newline = slices.Clone(out.Float32())
	}
	if p.features == "" {
		return nil
	}
	out := live[p.features]
	r.width = int(out.Dim(len(out.Shape()) - 1))
	r.features = append(r.features, out.Float32()...)
	for i := range p.deepstack {
		t := live[deepstackName(i)]
		if t == nil {
			return fmt.Errorf("the stages make no %s, which the decoder takes", deepstackName(i))
		}
		if len(r.deepstack) == i {
			r.deepstack = append(r.deepstack, nil)
		}
		r.deepstack[i] = append(r.deepstack[i], t.Float32()...)
	}
	return nil
}

// tensor copies rows first..first+n−1 of the leading dimension.
func (a Array) tensor(rt *graphs.Runtime, first, n int) (*graphs.Tensor, error) {
	row := a.size() / int(a.Shape[0])
	shape := append([]int64{int64(n)}, a.Shape[1:]...)
	if a.Int64 != nil {
		return rt.FromInt64(a.Int64[first*row:(first+n)*row], shape...)
	}
	return rt.FromFloat32(a.Data[first*row:(first+n)*row], shape...)
}

// collect appends a batch of a tensor to the arrays that are kept.
func (r *stageResult) collect(name string, t *graphs.Tensor) {
	if r.keep == nil || !r.keep(name) {
		return
	}
	a := r.arrays[name]
	if a.Shape == nil {
		a.Shape = t.Shape()
	} else {
		a.Shape[0] += t.Dim(0)
	}
	a.Data = append(a.Data, t.Float32()...)
	r.arrays[name] = a
}

// run feeds the stage from what is there and returns its outputs, which the caller closes.
func (s stage) run(ctx context.Context, rt *graphs.Runtime, live map[string]*graphs.Tensor) (_ map[string]*graphs.Tensor, err error) {
	in, out, sizes := map[string]*graphs.Tensor{}, map[string]*graphs.Tensor{}, map[string]int64{}
	defer func() {
		if err != nil {
			closeAll(out)
		}
	}()
	for _, port := range s.session.Inputs() {
		t := live[port.Name]
		if t == nil {
			return nil, fmt.Errorf("its input %s is made by nothing before it (there are %s)", port.Name,
				strings.Join(slices.Sorted(maps.Keys(live)), ", "))
		}
		in[port.Name] = t
		for d, symbol := range port.Symbols {
			if symbol != "" && port.Shape[d] < 0 {
				sizes[symbol] = t.Dim(d)
			}
		}
	}
	for _, port := range s.session.Outputs() {
		if port.DType != graphs.Float32 {
			return nil, fmt.Errorf("its output is %v; picture stages hand on float32", port)
		}
		shape, err := resolve(port, sizes)
		if err != nil {
			return nil, err
		}
		t, err := rt.NewTensor(port.DType, shape...)
		if err != nil {
			return nil, err
		}
		out[port.Name] = t
	}
	return out, s.session.Run(ctx, in, out)
}

func closeAll(tensors map[string]*graphs.Tensor) {
	for _, t := range tensors {
		t.Close()
	}
}

// resolve returns the shape of an output whose free dimensions are named like those of an input, or "NAME + NUMBER", or
// "NAME / NUMBER" where the division leaves nothing over.
func resolve(port graphs.Port, sizes map[string]int64) ([]int64, error) {
	shape := slices.Clone(port.Shape)
	for d, n := range shape {
		if n >= 0 {
			continue
		}
		symbol, more, sum := strings.Cut(port.Symbols[d], " + ")
		size, ok := sizes[symbol]
		if sum && ok {
			extra, err := strconv.ParseInt(more, 10, 32)
			ok = err == nil && extra >= 0
			size += extra
		}
		if base, by, quotient := strings.Cut(port.Symbols[d], " / "); !ok && quotient {
			divisor, err := strconv.ParseInt(by, 10, 32)
			size, ok = sizes[base]
			if ok = ok && err == nil && divisor > 0 && size%divisor == 0; ok {
				size /= divisor
			}
		}
		if !ok {
			return nil, fmt.Errorf("its output is %v, and dimension %d is that of no input", port, d)
		}
		shape[d] = size
	}
	return shape, nil
}

// Close closes the graphs. It is idempotent.
func (p *stages) Close() error {
	if p == nil {
		return nil
	}
	var problems []error
	for _, s := range p.list {
		problems = append(problems, s.session.Close())
	}
	return errors.Join(problems...)
}
