package checkpoint

// What the readers of all formats share: tensors located in files, and reading from there.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// dataFile is an open weight file.
type dataFile struct {
	name string // as shown in errors and in Files
	path string
	size int64
	*os.File
}

func openDataFile(path, name string) (*dataFile, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	return &dataFile{name: name, path: path, size: size, File: f}, nil
}

// openRegular opens a file, or what a link leads to. It looks before it opens: opening a pipe would wait for a writer.
func openRegular(path string) (*os.File, int64, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, 0, err
	} else if !info.Mode().IsRegular() {
		return nil, 0, errors.New("is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// readFull is pread until dst is full. The sizes were checked when the file was opened, so an end of file means that it
// has been cut since.
func (f *dataFile) readFull(dst []byte, offset int64) error {
	_, err := f.ReadAt(dst, offset)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("reading %s: it became shorter while it was being read", f.path)
	default:
		return fmt.Errorf("reading %s: %w", f.path, err)
	}
}

// tensor is a TensorInfo and where its elements are.
type tensor struct {
	TensorInfo
	file   *dataFile
	offset int64 // of element [0, 0, …] in the file
	bytes  int64 // of the row-major tensor

	// For tensors of torch files that do not lie in the file as they are read: nil strides and no swap otherwise.
	strides []int64 // in elements, none negative
	swap    bool    // stored big-endian
	extent  int64   // bytes from offset to behind the last element
}

func (t *tensor) gathered() bool { return t.strides != nil || t.swap }

// part is one opened file: what a format's reader returns.
type part struct {
	file    *dataFile
	tensors []*tensor
}

// store is the Checkpoint over files of any format.
type store struct {
	names   []string
	tensors map[string]*tensor
	files   []*dataFile
	buffers sync.Pool // *[]byte of chunkBytes

	mu      sync.Mutex
	closed  bool
	gathers []*gather // the least recently used first
}

// chunkBytes is read at once before it is widened: few enough to stay in the core's own cache.
const chunkBytes = 256 << 10

func newStore() *store {
	return &store{
		tensors: map[string]*tensor{},
		buffers: sync.Pool{New: func() any { b := make([]byte, chunkBytes); return &b }},
	}
}

// seal is called when all tensors are in.
func (s *store) seal() {
	s.names = make([]string, 0, len(s.tensors))
	for name := range s.tensors {
		s.names = append(s.names, name)
	}
	slices.Sort(s.names)
	slices.SortFunc(s.files, func(a, b *dataFile) int { return strings.Compare(a.name, b.name) })
}

func (s *store) Names() []string { return s.names }

func (s *store) Lookup(name string) (TensorInfo, bool) {
	t, ok := s.tensors[name]
	if !ok {
		return TensorInfo{}, false
	}
	return t.TensorInfo, true
}

func (s *store) Files() []File {
	files := make([]File, len(s.files))
	for i, f := range s.files {
		files[i] = File{Name: f.name, Path: f.path, Bytes: f.size}
	}
	return files
}

func (s *store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.gathers = nil
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func (s *store) find(name string) (*tensor, error) {
	t, ok := s.tensors[name]
	if !ok {
		return nil, fmt.Errorf("reading %s: %w", quoted(name), ErrUnknownTensor)
	}
	return t, nil
}

func (s *store) ReadRaw(ctx context.Context, name string, offset int64, dst []byte) error {
	t, err := s.find(name)
	if err != nil {
		return err
	}
	if offset < 0 || offset > t.bytes || int64(len(dst)) > t.bytes-offset {
		return fmt.Errorf("reading bytes %d to %d of %s (%d bytes): %w",
			offset, offset+int64(len(dst)), quoted(name), t.bytes, ErrRange)
	}
	if err := s.read(ctx, t, offset, dst); err != nil {
		return fmt.Errorf("tensor %s: %w", quoted(name), err)
	}
	return nil
}

func (s *store) ReadFloat32(ctx context.Context, name string, first int64, dst []float32) error {
	t, err := s.find(name)
	if err != nil {
		return err
	}
	if n := t.Elements(); first < 0 || first > n || int64(len(dst)) > n-first {
		return fmt.Errorf("reading elements %d to %d of %s (%d elements): %w",
			first, first+int64(len(dst)), quoted(name), n, ErrRange)
	}
	if err := s.readFloat32(ctx, t, first, dst); err != nil {
		return fmt.Errorf("tensor %s: %w", quoted(name), err)
	}
	return nil
}

func (s *store) readFloat32(ctx context.Context, t *tensor, first int64, dst []float32) error {
	size := t.DType.Size()
	if t.DType == F32 && littleEndian { // nothing to widen
		return s.read(ctx, t, first*size, bytesOf(dst))
	}
	if t.gathered() {
		data, err := s.gather(ctx, t)
		if err != nil {
			return err
		}
		widen(t.DType, dst, data[first*size:])
		return nil
	}
	buffer := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buffer)
	for step := chunkBytes / int(size); len(dst) > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(step, len(dst))
		raw := (*buffer)[:int64(n)*size]
		if err := t.file.readFull(raw, t.offset+first*size); err != nil {
			return err
		}
		widen(t.DType, dst[:n], raw)
		dst, first = dst[n:], first+int64(n)
	}
	return nil
}

// read copies bytes of the row-major, little-endian tensor; the caller has checked the range.
func (s *store) read(ctx context.Context, t *tensor, offset int64, dst []byte) error {
	if t.gathered() {
		data, err := s.gather(ctx, t)
		if err != nil {
			return err
		}
		copy(dst, data[offset:])
		return nil
	}
	const step = 16 << 20 // between two looks at the context
	for len(dst) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(step, len(dst))
		if err := t.file.readFull(dst[:n], t.offset+offset); err != nil {
			return err
		}
		dst, offset = dst[n:], offset+int64(n)
	}
	return nil
}

// gather is a tensor brought into row-major order.
type gather struct {
	tensor *tensor
	ready  chan struct{} // closed when data or err is set
	data   []byte
	err    error
}

// keptGathers bounds the memory: a converter works on one tensor, perhaps while it reads the next.
const keptGathers = 2

// gather returns the tensor's row-major bytes, made once for all who ask for the tensor at the same time.
func (s *store) gather(ctx context.Context, t *tensor) ([]byte, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, fmt.Errorf("reading %s: %w", t.file.path, os.ErrClosed)
	}
	if i := slices.IndexFunc(s.gathers, func(g *gather) bool { return g.tensor == t }); i >= 0 {
		g := s.gathers[i]
		s.gathers = append(slices.Delete(s.gathers, i, i+1), g)
		s.mu.Unlock()
		select {
		case <-g.ready:
			return g.data, g.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	g := &gather{tensor: t, ready: make(chan struct{})}
	s.gathers = append(s.gathers, g)
	if len(s.gathers) > keptGathers {
		s.gathers = slices.Delete(s.gathers, 0, 1)
	}
	s.mu.Unlock()

	// The work is not bound to this caller's context: others may be waiting for it, and it is one tensor long.
	g.data, g.err = t.rowMajor()
	if g.err != nil {
		s.Release(t.Name) // a later read tries again
	}
	close(g.ready)
	return g.data, g.err
}

func (s *store) Release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gathers = slices.DeleteFunc(s.gathers, func(g *gather) bool { return g.tensor.Name == name })
}

// rowMajor reads the part of the storage that the tensor spans and picks its elements.
func (t *tensor) rowMajor() ([]byte, error) {
	if t.bytes == 0 {
		return nil, nil
	}
	raw := make([]byte, t.extent)
	if err := t.file.readFull(raw, t.offset); err != nil {
		return nil, err
	}
	size := t.DType.Size()
	out := raw
	if t.strides != nil {
		out = make([]byte, t.bytes)
		g := gatherer{out: out, raw: raw, size: size, shape: t.Shape, strides: t.strides}
		g.dimension(0, 0)
	}
	if t.swap {
		for i := int64(0); i < int64(len(out)); i += size {
			slices.Reverse(out[i : i+size])
		}
	}
	return out, nil
}

// gatherer walks a strided tensor in row-major order.
type gatherer struct {
	out, raw       []byte
	written        int64
	size           int64
	shape, strides []int64
}

// dimension copies everything below one index of the outer dimensions; at is that index's element in raw.
func (g *gatherer) dimension(dim int, at int64) {
	if dim == len(g.shape) {
		copy(g.out[g.written:g.written+g.size], g.raw[at*g.size:])
		g.written += g.size
		return
	}
	n, stride := g.shape[dim], g.strides[dim]
	if dim < len(g.shape)-1 {
		for i := range n {
			g.dimension(dim+1, at+i*stride)
		}
		return
	}
	switch g.size { // the two sizes of real weights without a call an element
	case 2:
		for i := range n {
			from := (at + i*stride) * 2
			out := g.out[g.written : g.written+2]
			out[0], out[1] = g.raw[from], g.raw[from+1]
			g.written += 2
		}
	case 4:
		for i := range n {
			from := (at + i*stride) * 4
			copy(g.out[g.written:g.written+4], g.raw[from:from+4])
			g.written += 4
		}
	default:
		for i := range n {
			g.dimension(dim+1, at+i*stride)
		}
	}
}

// absolute makes paths in errors useful whatever the working directory was.
func absolute(path string) string {
	if full, err := filepath.Abs(path); err == nil {
		return full
	}
	return path
}
