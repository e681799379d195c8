// Writing a graph: lay out the external data, stream every payload into its place, then write the model file.

package onnx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Weights of a page or more start on a page, so that ONNX Runtime maps them instead of copying; small ones are packed.
const (
	pageAlign  = 4096
	smallAlign = 64
)

// Options say how a graph is written.
type Options struct {
	Producer string // name and version that the model file states
	Version  string
	Workers  int               // payloads produced at once; 0 for one a processor
	Written  func(bytes int64) // called after each write with its size, from many goroutines; may be nil
	Shared   *Shared           // what graphs before this one wrote into the same folder; nil: nothing is shared
}

// Shared remembers where the weights of a folder's graphs lie, so that a weight that several graphs hold is stored once. Its
// zero value is not ready: use NewShared. It is not safe for concurrent use.
type Shared struct{ places map[string]extent }

// NewShared returns a folder without weights.
func NewShared() *Shared { return &Shared{map[string]extent{}} }

// key is what a weight's bytes follow from: two weights with the same key have the same bytes.
func (w *Weight) key() string {
	return fmt.Sprintf("%T %s output %d as %s %v", w.payload, w.payload, w.output, w.DType, w.Shape)
}

// Result says what Write made.
type Result struct {
	ModelBytes int64
	DataBytes  int64  // size of the external data file, 0 when there is none
	DataFile   string // its base name, empty when there is none
}

// DataBytes returns the size of the external data file that the graph will have, without reading anything. shared notes the
// graph's weights as Write would; it may be nil.
func (g *Graph) DataBytes(shared *Shared) int64 {
	_, size := g.layout(shared, g.Name)
	return size
}

// Write writes the graph as path (which ends in .onnx) and its weights as path + ".data". Both files are synced. It
// leaves partial files behind when it fails: the caller writes into a folder that it removes or renames as a whole.
func (g *Graph) Write(ctx context.Context, path string, opts Options) (Result, error) {
	if err := g.check(); err != nil {
		return Result{}, fmt.Errorf("write graph %s: %w", g.Name, err)
	}
	extents, size := g.layout(opts.Shared, filepath.Base(path)+".data")
	var res Result
	if size > 0 {
		res.DataFile = filepath.Base(path) + ".data"
		res.DataBytes = size
		if err := g.writeData(ctx, path+".data", extents, size, opts); err != nil {
			return Result{}, fmt.Errorf("write weights of graph %s: %w", g.Name, err)
		}
	}
	model := encodeModel(g, opts.Producer, opts.Version, res.DataFile, extents)
	res.ModelBytes = int64(len(model))
	if err := writeSynced(path, model); err != nil {
		return Result{}, fmt.Errorf("write graph %s: %w", g.Name, err)
	}
	return res, nil
}

// layout gives every payload-backed weight its extent, in the order the graph holds them: in the data file of this name, or
// where an earlier graph has put the same bytes.
func (g *Graph) layout(shared *Shared, file string) (map[*Weight]extent, int64) {
	extents := map[*Weight]extent{}
	var end int64
	for _, w := range g.Weights {
		if w.payload == nil {
			continue
		}
		key := ""
		if shared != nil {
			key = w.key()
			if e, ok := shared.places[key]; ok {
				extents[w] = e
				continue
			}
		}
		n := w.Bytes()
		align := int64(smallAlign)
		if n >= pageAlign {
			align = pageAlign
		}
		start := (end + align - 1) / align * align
		extents[w] = extent{offset: start, length: n}
		if shared != nil {
			shared.places[key] = extent{start, n, file}
		}
		end = start + n
	}
	return extents, end
}

// job is one payload with the weights it produces, by output.
type job struct {
	payload Payload
	weights []*Weight
}

func (g *Graph) jobs(extents map[*Weight]extent) []*job {
	var order []*job
	byPayload := map[Payload]*job{}
	for _, w := range g.Weights {
		if w.payload == nil || extents[w].file != "" {
			continue
		}
		j := byPayload[w.payload]
		if j == nil {
			j = &job{payload: w.payload}
			byPayload[w.payload] = j
			order = append(order, j)
		}
		j.weights = append(j.weights, w)
	}
	return order
}

func (g *Graph) writeData(ctx context.Context, path string, extents map[*Weight]extent, size int64, opts Options) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	workers := opts.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, j := range g.jobs(extents) {
		if gctx.Err() != nil {
			break
		}
		group.Go(func() error { return j.run(gctx, f, extents, opts.Written) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.Sync()
}

func (j *job) run(ctx context.Context, f *os.File, extents map[*Weight]extent, written func(int64)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	sink := &fileSink{file: f, written: written}
	for _, w := range j.weights {
		sink.outputs = append(sink.outputs, &sinkOutput{extent: extents[w], name: w.Value.name})
	}
	if err := j.payload.Produce(ctx, sink); err != nil {
		return fmt.Errorf("produce %s from %s: %w", j.weights[0].Value.name, j.payload, err)
	}
	return sink.complete()
}

type sinkOutput struct {
	extent
	name  string
	count atomic.Int64
}

// fileSink writes into the data file and counts, so that a payload that produces too little is an error and not zeros.
type fileSink struct {
	file    *os.File
	outputs []*sinkOutput
	written func(int64)
}

func (s *fileSink) WriteAt(output int, p []byte, offset int64) error {
	if output < 0 || output >= len(s.outputs) {
		return fmt.Errorf("output %d of %d", output, len(s.outputs))
	}
	o := s.outputs[output]
	if offset < 0 || offset+int64(len(p)) > o.length {
		return fmt.Errorf("%s: %d bytes at %d do not fit its %d", o.name, len(p), offset, o.length)
	}
	if _, err := s.file.WriteAt(p, o.offset+offset); err != nil {
		return fmt.Errorf("%s: %w", o.name, err)
	}
	o.count.Add(int64(len(p)))
	if s.written != nil {
		s.written(int64(len(p)))
	}
	return nil
}

func (s *fileSink) complete() error {
	for _, o := range s.outputs {
		if n := o.count.Load(); n != o.length {
			return fmt.Errorf("%s: %d bytes were produced where %d are due", o.name, n, o.length)
		}
	}
	return nil
}

func writeSynced(path string, data []byte) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
