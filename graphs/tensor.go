package graphs

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"
)

// Tensor is a dense, row-major array that native code can read and write. Its
// memory comes from the operating system (or from an Arena, or a device) and
// keeps its address until Close, which may be called again and during a run. The
// slices that a tensor hands out must not be used after its Close; one that lies
// in a device's memory hands out none.
//
// Reading or writing the elements while a run uses them is a data race that
// nothing here can see. Everything else is safe for many goroutines.
type Tensor struct {
	env    *environment
	memory *block
	start  unsafe.Pointer // of this tensor's memory
	size   int            // bytes of it
	dtype  DType
	native value
	rank   int
	dims   [maxRank]int64
	bytes  int // in use by the current shape
	// state counts the runs that use the tensor; above them are flags.
	state atomic.Int64
}

const (
	stateClosed    = 1 << 62 // Close was called; memory goes with the last run
	stateExclusive = 1 << 61 // the shape is being changed
)

// NewTensor allocates a tensor of zeros. No dimensions make a scalar; a
// dimension may be 0. Pages are resident only once written.
func (r *Runtime) NewTensor(dtype DType, shape ...int64) (*Tensor, error) {
	bytes, err := shapeBytes(dtype, shape)
	if err != nil {
		return nil, fmt.Errorf("allocate a tensor: %w", err)
	}
	memory, err := newBlock(bytes, dense)
	if err != nil {
		return nil, fmt.Errorf("allocate a %v tensor %v: %w", dtype, slices.Clone(shape), err)
	}
	defer memory.release()
	return r.viewTensor(memory, 0, bytes, dtype, shape)
}

// viewTensor makes a tensor over part of a block, on which it takes a reference.
// The part from offset on has size bytes, at least those of the shape.
func (r *Runtime) viewTensor(memory *block, offset, size int64, dtype DType, shape []int64) (*Tensor, error) {
	env, err := r.use()
	if err != nil {
		return nil, err
	}
	t := &Tensor{env: env, memory: memory.retain(), start: unsafe.Add(memory.start, offset), size: int(size), dtype: dtype, native: newValue()}
	if err := t.setShape(shape); err != nil {
		t.Close()
		return nil, fmt.Errorf("make a %v tensor %v: %w", dtype, slices.Clone(shape), err)
	}
	return t, nil
}

// setShape makes the native tensor; the shape is known to fit.
func (t *Tensor) setShape(shape []int64) error {
	bytes := t.dtype.Size()
	for _, d := range shape {
		bytes *= int(d)
	}
	info, err := t.env.placeInfo(t.memory.device)
	if err != nil {
		return err
	}
	// The tensor may be empty while the block under it never is.
	if err := t.native.make(t.env.api, info, t.start, bytes, shape, t.dtype); err != nil {
		return err
	}
	t.bytes = bytes
	t.rank = copy(t.dims[:], shape)
	return nil
}

// FromFloat32 allocates a float32 tensor and copies data into it.
func (r *Runtime) FromFloat32(data []float32, shape ...int64) (*Tensor, error) {
	return fromSlice(r, Float32, data, shape)
}

// FromInt64 allocates an int64 tensor and copies data into it.
func (r *Runtime) FromInt64(data []int64, shape ...int64) (*Tensor, error) {
	return fromSlice(r, Int64, data, shape)
}

// FromInt32 allocates an int32 tensor and copies data into it.
func (r *Runtime) FromInt32(data []int32, shape ...int64) (*Tensor, error) {
	return fromSlice(r, Int32, data, shape)
}

func fromSlice[T any](r *Runtime, dtype DType, data []T, shape []int64) (*Tensor, error) {
	bytes, err := shapeBytes(dtype, shape)
	if err != nil {
		return nil, fmt.Errorf("allocate a tensor: %w", err)
	}
	if bytes/int64(dtype.Size()) != int64(len(data)) {
		return nil, fmt.Errorf("make a %v tensor %v: %d elements given", dtype, slices.Clone(shape), len(data))
	}
	t, err := r.NewTensor(dtype, shape...)
	if err != nil {
		return nil, err
	}
	copy(elements[T](t, dtype), data)
	return t, nil
}

// elements views the tensor's memory as T; nil when the dtype is another, the
// tensor is closed or lies on a device.
func elements[T any](t *Tensor, dtype DType) []T {
	if t.dtype != dtype || t.state.Load()&stateClosed != 0 || t.memory.device != nil {
		return nil
	}
	return unsafe.Slice((*T)(t.start), t.bytes/dtype.Size())
}

// Float32 is the elements of a float32 tensor, not a copy; nil when the tensor
// has another type, is closed or lies on a device. The same holds for Int64 and Int32.
func (t *Tensor) Float32() []float32 { return elements[float32](t, Float32) }

// Int64 is the elements of an int64 tensor.
func (t *Tensor) Int64() []int64 { return elements[int64](t, Int64) }

// Int32 is the elements of an int32 tensor.
func (t *Tensor) Int32() []int32 { return elements[int32](t, Int32) }

// Uint16 is the bit patterns of a float16 or bfloat16 tensor.
func (t *Tensor) Uint16() []uint16 {
	if t.dtype == BFloat16 {
		return elements[uint16](t, BFloat16)
	}
	return elements[uint16](t, Float16)
}

// Bytes is the memory of the current shape, little-endian; nil once closed, and
// on a device.
func (t *Tensor) Bytes() []byte {
	if t.state.Load()&stateClosed != 0 || t.memory.device != nil {
		return nil
	}
	return unsafe.Slice((*byte)(t.start), t.bytes)
}

// DType is the element type.
func (t *Tensor) DType() DType { return t.dtype }

// Shape is a copy of the current shape.
func (t *Tensor) Shape() []int64 { return slices.Clone(t.dims[:t.rank]) }

// Dim is one dimension of the current shape, without a copy; 0 when there is no
// such dimension.
func (t *Tensor) Dim(i int) int64 {
	if i < 0 || i >= t.rank {
		return 0
	}
	return t.dims[i]
}

// Len is the number of elements of the current shape.
func (t *Tensor) Len() int { return t.bytes / t.dtype.Size() }

// Cap is the number of elements that fit the tensor's memory.
func (t *Tensor) Cap() int { return t.size / t.dtype.Size() }

// Reshape gives the tensor another shape over the same memory, from its start:
// contents stay as they are. The shape must fit what was allocated. It costs one
// small native object, and nothing when the shape is the current one. A tensor
// that a run is using cannot be reshaped.
func (t *Tensor) Reshape(shape ...int64) error {
	if slices.Equal(shape, t.dims[:t.rank]) {
		return t.usable()
	}
	bytes, err := shapeBytes(t.dtype, shape)
	if err == nil && bytes > int64(t.size) {
		err = fmt.Errorf("it needs %s where %s were allocated", formatBytes(bytes), formatBytes(int64(t.size)))
	}
	if err == nil {
		err = t.exclusive(func() error { return t.setShape(shape) })
	}
	if err != nil {
		return fmt.Errorf("reshape a %v tensor %v to %v: %w", t.dtype, t.Shape(), slices.Clone(shape), err)
	}
	return nil
}

func (t *Tensor) usable() error {
	if t.state.Load()&stateClosed != 0 {
		return fmt.Errorf("tensor: %w", ErrClosed)
	}
	return nil
}

// exclusive runs f while no run uses the tensor.
func (t *Tensor) exclusive(f func() error) error {
	if !t.state.CompareAndSwap(0, stateExclusive) {
		if err := t.usable(); err != nil {
			return err
		}
		return fmt.Errorf("a run is using it")
	}
	defer t.state.Store(0)
	return f()
}

// acquire keeps the tensor's memory and shape as they are until release.
func (t *Tensor) acquire() error {
	for {
		state := t.state.Load()
		switch {
		case state&stateClosed != 0:
			return ErrClosed
		case state&stateExclusive != 0:
			runtime.Gosched()
		case t.state.CompareAndSwap(state, state+1):
			return nil
		}
	}
}

func (t *Tensor) release() {
	if t.state.Add(-1) == stateClosed {
		t.free()
	}
}

// Close gives the memory back, at once or when the last run that uses the tensor
// ends. Closing again does nothing.
func (t *Tensor) Close() error {
	if t == nil {
		return nil
	}
	for {
		state := t.state.Load()
		switch {
		case state&stateClosed != 0:
			return nil
		case state&stateExclusive != 0:
			runtime.Gosched()
		case t.state.CompareAndSwap(state, state|stateClosed):
			if state == 0 {
				return t.free()
			}
			return nil
		}
	}
}

func (t *Tensor) free() error {
	t.native.free(t.env.api)
	err := t.memory.release()
	if releaseErr := t.env.release(); err == nil {
		err = releaseErr
	}
	return err
}

// String describes the tensor without its contents.
func (t *Tensor) String() string {
	dims := make([]string, t.rank)
	for i := range dims {
		dims[i] = fmt.Sprint(t.dims[i])
	}
	return t.dtype.String() + "[" + strings.Join(dims, ", ") + "]"
}
