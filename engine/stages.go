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
	"sync/atomic"
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
	batch    int    // most tiles at once
	newline  string // the tensor that ends rows of features, [1, hidden_size]; empty where none does
	// deepstack is how many of the stages' outputs deepstack_N the decoder takes.
	deepstack int
	gate      chan struct{} // for one run at a time
	queue     *tileQueue
	runs      atomic.Int64 // of all stages together, for tests
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
	prepared  time.Duration    // decoding the pictures and making the tensors
}

// openStages loads the graphs of m.Picture.Stages.
func openStages(ctx context.Context, folder string, m *manifest.Manifest, opts Options) (*stages, error) {
	p := &stages{runtime: opts.Runtime, features: m.Picture.Features, newline: m.Picture.Newline, deepstack: deepstackLevels(m), batch: opts.PictureBatch, gate: make(chan struct{}, 1)}
	p.queue = newTileQueue(p.batch, p.gate, p.runSegments)
	return p.load(ctx, folder, m.Picture.Stages, m, opts)
}

// load loads the graphs; after an error it has closed what it loaded.
func (p *stages) load(ctx context.Context, folder string, names []string, m *manifest.Manifest, opts Options) (*stages, error) {
	for _, name := range names {
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

// over returns stages over other graphs, which share the machine with these and are closed by whoever owns them.
func (p *stages) over(list []stage, batch int) *stages {
	other := &stages{runtime: p.runtime, list: list, batch: batch, gate: p.gate}
	other.queue = newTileQueue(batch, p.gate, other.runSegments)
	return other
}

// checkFlow makes sure that the features come out of a stage, where there is a prompt that takes them.
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
		return fmt.Errorf("the manifest's features are %q, and the stages make %s", p.features, strings.Join(names, ", "))
	}
	return nil
}

// keeping says which tensors on the way through stages are wanted; nil: none.
type keeping func(name string) bool

func keepAll(string) bool { return true }

// run takes the recipe's tensors, whose leading dimensions are the tiles of all pictures of the request, and returns the
// feature rows. Tiles go through in batches, with those of other requests that wait. Tensors on the way are returned as
// keep says.
func (p *stages) run(ctx context.Context, tensors map[string]Array, keep keeping) (*stageResult, error) {
	tiles, err := commonTiles(tensors)
	if err != nil {
		return nil, err
	}
	r := newStageResult(tensors, keep)
	return r, p.queue.do(ctx, &tileJob{tensors: tensors, tiles: tiles, result: r})
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

// runSegments runs every stage on the tiles of a batch and gives each job its own.
func (p *stages) runSegments(ctx context.Context, batch []segment) error {
	live := map[string]*graphs.Tensor{}
	shares := make([]share, len(batch))
	for i, s := range batch {
		shares[i] = share{s.job.result, s.n}
	}
	for name := range batch[0].job.tensors {
		joined := joinTiles(batch, name)
		t, err := joined.tensor(p.runtime, 0, int(joined.Shape[0]))
		if err != nil {
			closeAll(live)
			return fmt.Errorf("copy tensor %s: %w", name, err)
		}
		live[name] = t
	}
	return p.runLive(ctx, live, shares)
}

// joinTiles puts a tensor of a batch's tiles together; one segment alone is not copied.
func joinTiles(batch []segment, name string) Array {
	out := batch[0].job.tensors[name].tiles(batch[0].first, batch[0].n)
	if len(batch) == 1 {
		return out
	}
	out.Data, out.Int64 = slices.Clone(out.Data), slices.Clone(out.Int64)
	for _, s := range batch[1:] {
		more := s.job.tensors[name].tiles(s.first, s.n)
		out.Shape[0] += more.Shape[0]
		out.Data, out.Int64 = append(out.Data, more.Data...), append(out.Int64, more.Int64...)
	}
	return out
}

// share is a result and how many of a run's tiles are its.
type share struct {
	*stageResult
	tiles int
}

// runLive runs every stage on the tensors, which it takes over, and appends to each share what its tiles made.
func (p *stages) runLive(ctx context.Context, live map[string]*graphs.Tensor, shares []share) error {
	defer closeAll(live)
	p.runs.Add(1)
	var first, rest time.Duration
	collected := make([]map[string]Array, len(shares)) // nothing is appended before all went well: a batch may be run again
	for i := range collected {
		collected[i] = map[string]Array{}
	}
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
			first += elapsed
		} else {
			rest += elapsed
		}
		for name, t := range made {
			if name == p.newline { // it has no tiles
				continue
			}
			for k, part := range parts(t, shares) {
				if keep := shares[k].keep; keep != nil && keep(name) {
					part.Data = slices.Clone(part.Data)
					collected[k][name] = part
				}
			}
		}
	}
	return p.deal(live, shares, collected, first, rest)
}

// deal appends the results of a run.
func (p *stages) deal(live map[string]*graphs.Tensor, shares []share, collected []map[string]Array, first, rest time.Duration) error {
	for i := range p.deepstack {
		if live[deepstackName(i)] == nil {
			return fmt.Errorf("the stages make no %s, which the decoder takes", deepstackName(i))
		}
	}
	for k, s := range shares {
		s.first, s.rest = s.first+first, s.rest+rest
		if out := live[p.newline]; out != nil {
			s.newline = slices.Clone(out.Float32())
		}
		for name, part := range collected[k] {
			s.collect(name, part)
		}
	}
	if p.features == "" {
		return nil
	}
	out := live[p.features]
	for k, part := range parts(out, shares) {
		shares[k].width = int(out.Dim(len(out.Shape()) - 1))
		shares[k].features = append(shares[k].features, part.Data...)
	}
	for i := range p.deepstack {
		for k, part := range parts(live[deepstackName(i)], shares) {
			if len(shares[k].deepstack) == i {
				shares[k].deepstack = append(shares[k].deepstack, nil)
			}
			shares[k].deepstack[i] = append(shares[k].deepstack[i], part.Data...)
		}
	}
	return nil
}

// parts divides a tensor's leading dimension among the shares; the data is the tensor's own memory.
func parts(t *graphs.Tensor, shares []share) []Array {
	whole := Array{Shape: t.Shape(), Data: t.Float32()}
	if len(shares) == 1 {
		return []Array{whole}
	}
	tiles := 0
	for _, s := range shares {
		tiles += s.tiles
	}
	each, at := int(whole.Shape[0])/tiles, 0
	out := make([]Array, len(shares))
	for k, s := range shares {
		out[k] = whole.tiles(at, s.tiles*each)
		at += s.tiles * each
	}
	return out
}

// tiles returns rows first..first+n−1 of the leading dimension, in the same memory.
func (a Array) tiles(first, n int) Array {
	row := a.size() / int(a.Shape[0])
	out := Array{Shape: append([]int64{int64(n)}, a.Shape[1:]...)}
	if a.Int64 != nil {
		out.Int64 = a.Int64[first*row : (first+n)*row]
	} else {
		out.Data = a.Data[first*row : (first+n)*row]
	}
	return out
}

// tensor copies rows first..first+n−1 of the leading dimension.
func (a Array) tensor(rt *graphs.Runtime, first, n int) (*graphs.Tensor, error) {
	part := a.tiles(first, n)
	if part.Int64 != nil {
		return rt.FromInt64(part.Int64, part.Shape...)
	}
	return rt.FromFloat32(part.Data, part.Shape...)
}

// collect appends a part of a tensor that is kept.
func (r *stageResult) collect(name string, part Array) {
	a := r.arrays[name]
	if a.Shape == nil {
		a.Shape = slices.Clone(part.Shape)
	} else {
		a.Shape[0] += part.Shape[0]
	}
	a.Data = append(a.Data, part.Data...)
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

// resolve returns the shape of an output whose free dimensions are named like those of an input, or "NAME + NUMBER",
// "NAME * NUMBER", or "NAME / NUMBER" where the division leaves nothing over.
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
		if base, by, product := strings.Cut(port.Symbols[d], " * "); !ok && product {
			factor, err := strconv.ParseInt(by, 10, 32)
			size, ok = sizes[base]
			ok = ok && err == nil && factor > 0
			size *= factor
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
