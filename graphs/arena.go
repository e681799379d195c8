package graphs

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"sync"
)

// ArenaSpec is the geometry of a KV cache. A slot is the cache of one sequence.
type ArenaSpec struct {
	Layers   int
	Slots    int
	KVHeads  int
	Capacity int // tokens a slot holds, chunk slack included
	HeadDim  int
	DType    DType
}

// Arena is the KV cache of a decoder: for each layer keys and values
// [slots, kv_heads, capacity, head_dim] in one anonymous map, or in one piece of a device's memory. Slots lead, so any
// run of neighbouring slots is a contiguous view, and a graph that is given a
// view as past and as present updates it in place. Ordinary memory is resident only where
// tokens were written, in pages of 4 KiB. An Arena is safe for use by many goroutines; what a run
// writes into its views is up to the runs.
type Arena struct {
	runtime *Runtime
	spec    ArenaSpec
	slot    int64 // bytes of one slot in one layer's keys (or values)
	plane   int64 // bytes from one layer's keys to its values, and so on
	memory  *block

	mu     sync.Mutex
	views  map[[2]int]*ArenaView
	copies []BlockCopy // of one Copy, kept between calls
	closed bool
}

// ArenaView is slots first..first+n-1 of every layer. Its tensors belong to the
// arena.
type ArenaView struct {
	First, Slots int
	Keys         []*Tensor // by layer, [n, kv_heads, capacity, head_dim]
	Values       []*Tensor
}

// planeAlign keeps the start of each layer's keys and values on a cache line.
const planeAlign = 64

// NewArena reserves a cache of zeros in ordinary memory. The error of a cache
// that is too large for the machine says how many bytes it asked for.
func (r *Runtime) NewArena(spec ArenaSpec) (*Arena, error) { return r.NewArenaIn(nil, spec) }

// NewArenaIn is NewArena in a device's memory; nil is ordinary memory.
func (r *Runtime) NewArenaIn(device DeviceMemory, spec ArenaSpec) (*Arena, error) {
	a := &Arena{runtime: r, spec: spec, views: make(map[[2]int]*ArenaView)}
	total, err := a.measure()
	if err != nil {
		return nil, fmt.Errorf("allocate a KV arena: %w", err)
	}
	if device != nil {
		a.memory, err = newDeviceBlock(device, total)
	} else {
		a.memory, err = newBlock(total, sparse)
	}
	if err != nil {
		return nil, fmt.Errorf("allocate a KV arena of %s (%d slots of %d tokens, %d layers): %w; ask for fewer slots or a smaller capacity",
			formatBytes(total), spec.Slots, spec.Capacity, spec.Layers, err)
	}
	return a, nil
}

// measure fills in the strides and returns the bytes of the whole cache.
func (a *Arena) measure() (int64, error) {
	s := a.spec
	if !s.DType.valid() {
		return 0, fmt.Errorf("%v is no element type", s.DType)
	}
	for _, part := range []struct {
		name string
		size int
	}{{"layers", s.Layers}, {"slots", s.Slots}, {"kv_heads", s.KVHeads}, {"capacity", s.Capacity}, {"head_dim", s.HeadDim}} {
		if part.size <= 0 {
			return 0, fmt.Errorf("%s is %d; it must be at least 1", part.name, part.size)
		}
	}
	overflow := false
	times := func(x uint64, y int) uint64 {
		high, low := bits.Mul64(x, uint64(y))
		overflow = overflow || high != 0 || low > math.MaxInt64-planeAlign
		return low
	}
	slot := times(times(times(uint64(s.DType.Size()), s.HeadDim), s.Capacity), s.KVHeads)
	plane := (times(slot, s.Slots) + planeAlign - 1) / planeAlign * planeAlign
	total := times(times(plane, s.Layers), 2)
	if overflow {
		return 0, fmt.Errorf("%+v has more bytes than an address can name", s)
	}
	a.slot, a.plane = int64(slot), int64(plane)
	return int64(total), nil
}

// Spec is the geometry the arena was made with.
func (a *Arena) Spec() ArenaSpec { return a.spec }

// Bytes is the memory reserved. What is resident grows with the tokens written.
func (a *Arena) Bytes() int64 { return 2 * int64(a.spec.Layers) * a.plane }

// View is slots first..first+n-1. A view is made once and then returned again,
// so asking in every step costs nothing. The caller must not close its tensors.
func (a *Arena) View(first, n int) (*ArenaView, error) {
	if first < 0 || n < 1 || first > a.spec.Slots-n {
		return nil, fmt.Errorf("view %d slots from %d: the arena has %d", n, first, a.spec.Slots)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, fmt.Errorf("KV arena: %w", ErrClosed)
	}
	if view := a.views[[2]int{first, n}]; view != nil {
		return view, nil
	}
	view := &ArenaView{First: first, Slots: n}
	for layer := range a.spec.Layers {
		for _, plane := range []struct {
			index int
			list  *[]*Tensor
		}{{2 * layer, &view.Keys}, {2*layer + 1, &view.Values}} {
			tensor, err := a.tensor(plane.index, first, n)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("view %d slots from %d: %w", n, first, err), view.close())
			}
			*plane.list = append(*plane.list, tensor)
		}
	}
	a.views[[2]int{first, n}] = view
	return view, nil
}

func (a *Arena) tensor(plane, first, n int) (*Tensor, error) {
	start := int64(plane)*a.plane + int64(first)*a.slot
	shape := []int64{int64(n), int64(a.spec.KVHeads), int64(a.spec.Capacity), int64(a.spec.HeadDim)}
	return a.runtime.viewTensor(a.memory, start, int64(n)*a.slot, a.spec.DType, shape)
}

func (v *ArenaView) close() error {
	var err error
	for _, list := range [][]*Tensor{v.Keys, v.Values} {
		for _, tensor := range list {
			err = errors.Join(err, tensor.Close())
		}
	}
	return err
}

// Close closes every view and gives the memory back when the last run that uses
// one ends. Closing again does nothing.
func (a *Arena) Close() error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	var err error
	for _, view := range a.views {
		err = errors.Join(err, view.close())
	}
	a.views = nil
	return errors.Join(err, a.memory.release())
}
